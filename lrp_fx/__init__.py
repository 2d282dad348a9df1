"""lrp_fx: a PyTorch FX compiler for Layer-wise Relevance Propagation (AttnLRP, ICML 2024, arXiv:2402.05602)."""

from lrp_fx import concepts, errors, evaluate
from lrp_fx.converting import convert
from lrp_fx.explain import Attribution, Contrast, Ledger, Pixels
from lrp_fx.lowering import Attributions, Generation, Lowered, load
from lrp_fx.module import ExplainableModule
from lrp_fx.optable import OpTable, register_op
from lrp_fx.ruleset import RuleSet, register_rule
from lrp_fx.tuning import Tuned, tune

__all__ = [
    "Attribution",
    "Attributions",
    "Contrast",
    "ExplainableModule",
    "Generation",
    "Ledger",
    "Lowered",
    "OpTable",
    "Pixels",
    "RuleSet",
    "Tuned",
    "concepts",
    "convert",
    "errors",
    "evaluate",
    "load",
    "register_op",
    "register_rule",
    "tune",
]
__version__ = "0.1.0"
