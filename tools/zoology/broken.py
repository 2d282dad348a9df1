"""The zoo's check on deliberately broken rules and declarations: it has to catch every one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import suite_transformers
from case import Case
from check import check
from rich.progress import track

import lrp_fx
from lrp_fx.operators.table import op_name

MODELS = ("llama", "gemma2", "bert", "mt5", "mixtral", "mamba", "vit", "recurrent_gemma")


def _rule(role: str) -> dict[str, Any]:
    return {"rules": {"base": "cp_lrp", "rules": {role: "gradient"}}}


#: name of the fault -> (role or operators concerned, arguments of the check)
BROKEN: dict[str, tuple[set[str], Mapping[str, Any]]] = {
    "normalization: relevance through the statistic": ({"normalization"}, _rule("normalization")),
    "nonlinearity: the plain derivative": ({"nonlinearity"}, _rule("nonlinearity")),
    "gate: the product's full gradient": ({"gate"}, _rule("gate")),
    "recurrent-gate: the product's full gradient": ({"recurrent-gate"}, _rule("recurrent-gate")),
    "softmax: its gradient": ({"softmax", "attention"}, {"rules": {"base": "cp_lrp", "rules": {"softmax": "gradient"}}}),
    "activations declared as movement": (
        {"aten.silu", "aten.gelu", "aten.tanh"},
        {"ops": {"movement": {"aten.silu": "self", "aten.gelu": "self", "aten.tanh": "self"}}},
    ),
    "products declared as sums": ({"aten.mul"}, {"ops": {"linear": {"aten.mul": {"args": "self other"}}}}),
    "sums that lose an operand": ({"aten.add"}, {"ops": {"linear": {"aten.add": {"args": "self", "elementwise": True}}}}),
    "softmax declared as linear": ({"aten.softmax"}, {"ops": {"linear": {"aten.softmax": "self"}}}),
}  # fmt: skip


def _present(case: Case) -> set[str]:
    """Roles and operators on the path of relevance under the rule set of the check.

    Under cp_lrp no relevance flows through a gate, so a wrong derivative there is no fault.
    """
    built = case.build()
    xmodel = lrp_fx.convert(built.model, *built.args, **built.inputs, rules="cp_lrp")
    decisions = xmodel.current.under(xmodel.ruleset).plan.decisions
    return {d.role for d in decisions.values()} | {op_name(n) for n in decisions if len(decisions[n].live) > 0}


def run_broken() -> dict[str, dict[str, str]]:
    """Fault -> model -> "caught", "absent" (the model has no such node) or "MISSED"."""
    cases = {c.name.split(" ")[0]: c for c in reversed(suite_transformers.cases()) if c.name.split(" ")[0] in MODELS}
    results: dict[str, dict[str, str]] = {what: {} for what in BROKEN}
    for model in track(MODELS, description="broken rules"):
        present = _present(cases[model])
        sound = check(cases[model].build)
        for what, (concerned, arguments) in BROKEN.items():
            if sound.verdict != "pass":
                results[what][model] = "unsound"
            elif not concerned & present:
                results[what][model] = "absent"
            else:
                row = check(cases[model].build, **arguments)
                results[what][model] = "caught" if row.verdict == "fail" else "MISSED"
    return results
