"""Explanations in the interfaces of other packages, one module each; none is imported here.

``captum`` (LRP, LayerLRP), ``quantus`` (explain_func), ``sklearn`` (TabularExplainer), ``inseq`` (a registered method).
Conversions are elsewhere: ``Attribution.to_shap``, ``RuleSet.from_zennit``, ``concepts.to_graph_json``. Tested
versions: docs/integrations.md.
"""
