"""The pattern table: every entry recognises its examples, and says what its counterexample lacks."""

import ast
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp_fx
from lrp_fx.analysis import analyse
from lrp_fx.analysis.candidates import Candidates
from lrp_fx.analysis.matching import Condition
from lrp_fx.analysis.patterns import PATTERNS, recognise
from lrp_fx.capture import capture
from lrp_fx.operators.table import OpTable
from lrp_fx.plan import make_plan

SIGNALS = {"x": (2, 5, 6), "y": (2, 5, 6), "z": (2, 5, 6), "image": (2, 3, 8, 8)}
CONSTANTS = {"w": (6,), "W": (6, 6), "angles": (5, 6), "kernel": (4, 3, 3, 3)} | {
    f"{name}{n}": (n,) for name in ("m", "v") for n in (3, 4, 6)
}


class Spelling(nn.Module):
    """Python of the table as a module: its last line is what it computes."""

    def __init__(self, code):
        super().__init__()
        tree = ast.parse(code)
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        self.signals = [name for name in SIGNALS if name in names]
        for name, shape in CONSTANTS.items():
            if name in names:
                self.register_buffer(name, torch.rand(shape, dtype=torch.float64) + 0.5)
        body = [*tree.body[:-1], ast.Return(tree.body[-1].value)]
        parameters = [ast.arg(name) for name in (*self.signals, *(n for n in CONSTANTS if n in names))]
        arguments = ast.arguments(posonlyargs=[], args=parameters, kwonlyargs=[], kw_defaults=[], defaults=[])
        function = ast.FunctionDef("function", arguments, body, [], type_params=[])
        scope = {"torch": torch, "F": F}
        exec(compile(ast.fix_missing_locations(ast.Module([function], [])), "<pattern>", "exec"), scope)
        self.function = scope["function"]

    def forward(self, x=None, y=None, z=None, image=None):
        return self.function(*(s for s in (x, y, z, image) if s is not None), *self.buffers())


@functools.cache
def analysed(code):
    """Graph and facts of what the code computes."""
    model = Spelling(code)
    signals = {name: torch.rand(SIGNALS[name], dtype=torch.float64) + 0.5 for name in model.signals}
    captured = capture(model, (), signals)
    return captured, analyse(captured.graph_module.graph, OpTable.load())


def candidates(code):
    """Every candidate of what the code computes, in graph order, each before the next is looked at."""
    captured, facts = analysed(code)
    return Candidates(facts).walk(captured.graph_module.graph, lambda node: False)


EXAMPLES = [(pattern, code) for pattern in PATTERNS for code in pattern.examples]


@pytest.mark.parametrize(("pattern", "code"), EXAMPLES, ids=[f"{p.name}: {code}" for p, code in EXAMPLES])
def test_an_entry_recognises_its_examples(pattern, code):
    matches = [recognise(c).pattern is pattern if pattern.role else bool(pattern.match(c)) for c in candidates(code)]
    assert any(matches)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_an_entry_says_what_its_counterexample_lacks(pattern):
    misses = [pattern.miss(candidate) for candidate in candidates(pattern.counterexample)]
    assert misses and None not in misses
    assert max(misses, key=lambda miss: miss.after).condition is pattern.missing


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_every_variant_of_an_entry_has_an_example(pattern):
    matched = {pattern.match(candidate) for code in pattern.examples for candidate in candidates(code)}
    assert matched - {None} == set(pattern.variants)


#: near misses, further to the counterexamples of the table
NEAR_MISSES = (
    "(e := x.exp()) / (s := e.sum(-1, keepdim=True)) + s",
    "(e := torch.exp(x @ y.mT)) @ z / (s := e.sum(-1, keepdim=True)) + s",
    "torch.exp(x @ y.mT) @ z / x.exp().sum(-1, keepdim=True)",
    "(s := x.exp().sum(-1)).log() + s",
    "torch.einsum('bij,bkj,jl->bikl', x.exp(), y.exp(), W)",
    "h = y[:, 0]\nfor t in (1, 2):\n    h = torch.exp(x[:, t]) * h + y[:, t]\nh * z[:, 0]",
    "h = y[:, 0]\nfor t in (1, 2):\n    h = torch.exp(x[:, t]) * h + y[:, t] * z[:, t]\nh",
    "F.conv2d(F.relu(image), kernel)",
    "F.conv2d(F.relu(F.batch_norm(F.relu(image), m3, v3)), kernel)",
    "F.conv2d(F.relu(F.batch_norm(image, m3, v3)), kernel[:3, :1], groups=3)",
    "torch.sigmoid(x) + 1",
    "x * (1 + y) * torch.sigmoid(y)",
    "torch.linalg.solve(W, y.mT)",
    "(torch.fft.fft(x) @ W.to(torch.complex64)).real",
)


def test_every_condition_decides_somewhere():
    """Each fails for some candidate for which the conditions before it hold: without it another node would match."""
    decided = set()
    codes = {code for pattern in PATTERNS for code in (*pattern.examples, pattern.counterexample)}
    for candidate in (candidate for code in (*codes, *NEAR_MISSES) for candidate in candidates(code)):
        for pattern in PATTERNS:
            for variant, conditions in pattern.variants.items():
                failing = (condition for condition in conditions if not condition.holds(candidate))
                decided.add((pattern.name, variant, next(failing, None)))
    for pattern in PATTERNS:
        for variant, conditions in pattern.variants.items():
            assert not [c.says for c in conditions if (pattern.name, variant, c) not in decided], pattern.name


def test_every_entry_is_complete():
    for pattern in PATTERNS:
        assert pattern.law.endswith(".") and pattern.source and len(pattern.examples) > 1
        for conditions in pattern.variants.values():
            assert all(isinstance(c, Condition) and c.says[0].isupper() and c.says.endswith(".") for c in conditions)
    names = [pattern.name for pattern in PATTERNS]
    assert len(set(names)) == len(names)


def test_every_role_of_the_rule_sets_has_a_pattern_and_plan_reads_it():
    """A plan has no role that the table does not give."""
    for _, code in EXAMPLES:
        captured, facts = analysed(code)
        plan = make_plan(captured.graph_module.graph, facts, lrp_fx.RuleSet.load("attnlrp"))
        roles = {c.node: recognise(c).pattern.role for c in candidates(code)}
        assert {n: d.role for n, d in plan.decisions.items()} == {n: roles[n] for n in plan.decisions}, code
