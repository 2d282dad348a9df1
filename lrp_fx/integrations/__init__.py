"""Explanations in the interfaces of other packages, one module each; none is imported here.

``captum`` (LRP, LayerLRP), ``quantus`` (explain_func), ``sklearn`` (TabularExplainer), ``inseq`` (registered methods),
``transformers`` (the export format "lrp"), ``zennit_crp`` (CondAttribution).
Conversions are elsewhere: ``Attribution.to_shap``, ``RuleSet.from_zennit``, ``concepts.to_graph_json``. Tested
versions: docs/integrations.md.
"""
