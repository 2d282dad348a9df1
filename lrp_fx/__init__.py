"""lrp_fx: a PyTorch FX compiler for Layer-wise Relevance Propagation (AttnLRP, ICML 2024, arXiv:2402.05602).

The rooms, from the ground up; each imports only what stands before it. ``viz`` draws plain data (words, numbers,
arrays) and knows nothing of models, so that ``results``, which explanations return, can draw themselves:

errors, extras, files, version, status -> operators -> graph -> rules -> capture -> cache -> analysis -> plan ->
passes -> rewrite -> contracts -> viz -> results -> encode -> explain -> verify -> lowering -> recent ->
specialization -> capture_cache -> report -> stand_in -> converted -> exporting -> module -> convert -> concepts ->
pairs -> loading -> pipelines -> evaluate -> tuning -> testing -> integrations -> hub -> runs -> cli
"""

import importlib
from typing import Any

from lrp_fx import errors
from lrp_fx.convert import convert
from lrp_fx.explain import Contrast, Logit, LogProb, Pixels, Probability, Span
from lrp_fx.lowering import Lowered, load
from lrp_fx.module import ExplainableModule
from lrp_fx.operators.table import OpTable, register_op
from lrp_fx.results import Attribution, Attributions, Generation, Ledger, view
from lrp_fx.rules.ruleset import RuleSet, register_rule
from lrp_fx.version import VERSION

#: what is imported at its first use: name -> (module, name in it; none for the module itself)
_ON_DEMAND = {
    "Explained": ("lrp_fx.pipelines", "Explained"),
    "Explainer": ("lrp_fx.runs", "Explainer"),
    "PairAttribution": ("lrp_fx.pairs", "PairAttribution"),
    "Tuned": ("lrp_fx.tuning", "Tuned"),
    "concepts": ("lrp_fx.concepts", None),
    "evaluate": ("lrp_fx.evaluate", None),
    "explain_pairs": ("lrp_fx.pairs", "explain_pairs"),
    "from_pretrained": ("lrp_fx.hub", "from_pretrained"),
    "hub": ("lrp_fx.hub", None),
    "integrations": ("lrp_fx.integrations", None),
    "load_result": ("lrp_fx.loading", "load_result"),
    "pairs": ("lrp_fx.pairs", None),
    "pipeline": ("lrp_fx.pipelines", "pipeline"),
    "run": ("lrp_fx.runs", "run"),
    "testing": ("lrp_fx.testing", None),
    "tune": ("lrp_fx.tuning", "tune"),
}

__all__ = [
    "Attribution",
    "Attributions",
    "Contrast",
    "ExplainableModule",
    "Explained",
    "Explainer",
    "Generation",
    "Ledger",
    "LogProb",
    "Logit",
    "Lowered",
    "OpTable",
    "PairAttribution",
    "Pixels",
    "Probability",
    "RuleSet",
    "Span",
    "Tuned",
    "concepts",
    "convert",
    "errors",
    "evaluate",
    "explain_pairs",
    "from_pretrained",
    "hub",
    "integrations",
    "load",
    "load_result",
    "pairs",
    "pipeline",
    "register_op",
    "register_rule",
    "run",
    "testing",
    "tune",
    "view",
]
__version__ = VERSION


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _ON_DEMAND[name]
    loaded = importlib.import_module(module)
    return loaded if attribute is None else getattr(loaded, attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
