"""Why a node is what it is: the pattern that decides, and the condition that each other pattern lacks."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from models import build
from torch import nn

import lrp_fx
from lrp_fx.analysis.patterns import PATTERNS
from lrp_fx.errors import LatentError
from lrp_fx.plan import why

ROOT = Path(lrp_fx.__file__).parent.parent


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.gate, self.up, self.down = RMSNorm(), nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x, keep):
        h = self.norm(x)
        return self.down(nn.functional.silu(self.gate(h)) * self.up(h)).masked_fill(keep == 0, 0.0)


@pytest.fixture(scope="module")
def report():
    return lrp_fx.convert(MLP(), torch.randn(2, 8), torch.ones(2, 1, dtype=torch.long), rules="attnlrp").report()


def of(reasons, node):
    return next(reason for reason in reasons.nodes if reason.node == node)


def verdict(reason, pattern):
    return next(v for v in reason.verdicts if v.pattern == pattern)


def test_every_pattern_has_its_say_and_one_decides(report):
    for reason in report.why("*").nodes:
        if reason.role:
            assert sorted(v.pattern for v in reason.verdicts) == sorted(p.name for p in PATTERNS)
            assert [v.decides for v in reason.verdicts].count(True) == 1 and reason.verdicts[0].decides
            assert all(v.matches == (not v.fails) for v in reason.verdicts)


def test_a_gate_is_no_recurrent_gate_because_it_weighs_no_state(report):
    reason = of(report.why("mul_2"), "mul_2")
    assert (reason.role, reason.rule, reason.module, reason.verdicts[0].pattern) == (
        "gate",
        "uniform",
        "<root>",
        "gate",
    )
    assert "Its gates weigh a state" in verdict(reason, "recurrent gate").fails
    assert "functions of one and the same tensor" in verdict(reason, "normalization").fails
    assert verdict(reason, "product of signals").matches  # the gate comes first
    assert "silu(self.gate(h)) * self.up(h)" in reason.source


def test_a_module_path_names_all_that_it_computes(report):
    reasons = report.why("norm")
    assert {reason.module for reason in reasons.nodes} == {"norm"}
    assert [r.verdicts[0].pattern for r in reasons.nodes if r.rule] == ["normalization", "normalization"]
    statistic = of(reasons, "mean")
    assert statistic.role == "linear" and not statistic.rule and statistic.remark.startswith("No relevance arrives")
    assert [r.node for r in report.why("no*").nodes] == [r.node for r in report.why("norm*").nodes]


def test_what_carries_no_relevance_says_why(report):
    remarks = {reason.node: reason.remark for reason in report.why("*").nodes if not reason.role}
    assert remarks["x"] == "Relevance is collected here."
    assert "parameter" in remarks["norm_weight"] and "input" in remarks["keep"] and "floating" in remarks["eq"]


def test_a_rule_that_stops_relevance_is_named():
    x = torch.randn(2, 5, 8, dtype=torch.float64)

    class Attention(nn.Module):
        def forward(self, x):
            return torch.softmax(x @ x.mT, -1) @ x

    reasons = lrp_fx.convert(Attention(), x, rules="cp_lrp").report().why("*")
    assert of(reasons, "softmax").remark == "The rule set stops relevance here."
    assert verdict(of(reasons, "softmax"), "attention written out").matches
    assert of(reasons, "matmul_1").role == "linear"  # the weights are constants now


def test_a_name_that_does_not_exist_names_those_that_are_close(report):
    with pytest.raises(LatentError, match="close: norm"):
        report.why("nrm")


@pytest.mark.parametrize(
    ("name", "rules"), [("llama2", "pa_lrp"), ("llama2", "cp_lrp"), ("resnet", "epsilon_gamma_box")]
)
def test_reasons_are_those_of_the_plan(name, rules):
    model, inputs = build(name)
    xmodel = lrp_fx.convert(model, **inputs, rules=rules)
    plan, graph = xmodel.current.under(xmodel.ruleset).plan, xmodel.current.captured.graph_module.graph
    before = dict(plan.decisions)
    first, second = why(graph, plan, "*"), xmodel.report().why("*").nodes
    assert tuple(first) == second and plan.decisions == before
    roles = {node.name: decision.role for node, decision in plan.decisions.items()}
    roles |= {node.name: role for node, role in plan.stopped.items()}
    assert {reason.node: reason.role for reason in first if reason.node in roles} == roles


def test_a_report_can_be_pickled(report):
    assert pickle.loads(pickle.dumps(report)).rows == report.rows


def test_the_example_of_the_readme_is_what_is_printed(report):
    example = re.search(
        r">>> print\(xmodel\.report\(\)\.why\(\"(.*?)\"\)\).*?\n(.*?)```", (ROOT / "docs/using.md").read_text(), re.S
    )
    printed = [line.rstrip() for line in str(report.why(example[1])).splitlines()]
    shown = [line for line in example[2].splitlines() if line != "..."]
    assert len(shown) > 4 and set(shown) <= set(printed)
