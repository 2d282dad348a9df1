"""Explanations in the interfaces of other packages: a module for each, imported when it is asked for.

``captum`` (LRP, LayerLRP), ``quantus`` (explain_func), ``sklearn`` (TabularExplainer), ``inseq`` (a registered method).
What turns a result or a rule set into theirs, or theirs into ours, is a method of it: ``Attribution.to_shap``,
``RuleSet.from_zennit``, ``concepts.to_graph_json``. Versions that were tested: docs/integrations.md.
"""
