"""The rule table is what the stages read: no rule is named elsewhere, every form is carried out and booked as it says."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.explain.bookings import BOOK
from lrp_fx.rewrite.emit import EMIT
from lrp_fx.rules import functions, table
from lrp_fx.rules.layer_rules import Run, Share

PACKAGE = Path(lrp_fx.__file__).parent
FORMS = {form for entry in table.RULES for form in entry.forms.values()} - {table.STOPPED}
#: entries of the ledger that no rule keeps: what is explained, and what is added
ADDED = {"input", "source", "position", "bias", "constant", "stopped"}


class Net(nn.Module):
    """A node of every role that a rule set can choose for, with a convolution, a pooling and attention projections."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 6, 3, padding=1)
        self.norm, self.gate, self.up, self.head = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.query, self.key, self.value = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        h = nn.functional.max_pool1d(torch.tanh(self.second(torch.relu(self.first(x)))), 2).transpose(1, 2)
        h = h + torch.softmax(self.query(h) @ self.key(h).transpose(1, 2), -1) @ self.value(h)
        h = self.norm(h)
        return self.head((torch.sigmoid(self.gate(h)) * self.up(h)).mean(1))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = Net().double().eval()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    return lrp_fx.convert(model, x), x


def choices():
    """All but the role of position tables, rules that stop (the net hangs on each of its nodes), and rules of the
    first layer elsewhere (an input of 0 has relevance under them, which a ReLU in front of it cannot hand on)."""
    for role, rules in table.ROLES.items():
        for rule in rules if role != "position" else ():
            if rule != "stop" and (role == "first-layer" or not table.entry(role, rule).feeds_zeros):
                yield role, rule


@pytest.mark.parametrize(("role", "rule"), choices())
def test_every_rule_books_what_its_entry_says_and_the_ledger_closes(net, role, rule):
    xmodel, x = net
    value = {"rule": rule, "epsilon": 0.1} if rule == "epsilon" else rule
    attribution = xmodel.explain(x, target=1, rules={"base": "attnlrp", "rules": {role: value}})
    broader = "linear" if role in table.LINEAR else "gate" if role in table.GATES else role
    entries = [e for e in attribution.ledger.entries if e.role == broader]
    assert {e.category for e in entries} <= {*table.entry(role, rule).books, *ADDED}
    assert attribution.ledger.balance < 1e-9


@pytest.mark.parametrize("form", sorted(FORMS, key=lambda f: f.name), ids=lambda f: f.name)
def test_every_form_is_carried_out_and_booked(form):
    assert form in EMIT and form in BOOK


def test_no_stage_compares_the_name_of_a_rule():
    names = {entry.rule for entry in table.RULES}
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "rules":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                parts = [node.left, *node.comparators]
                inner = [e for p in parts for e in (p.elts if isinstance(p, (ast.Tuple, ast.Set, ast.List)) else [p])]
                words = [e.value for e in inner if isinstance(e, ast.Constant) and e.value in names]
                if words and "rule" in ast.unparse(node):
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    assert not found


def test_a_new_rule_is_one_entry(net, monkeypatch):
    """A rule of our own on parts of a layer: R_i in proportion to |w_i|, which conserves without a bias."""
    xmodel, x = net
    shares = lambda p: (Share((Run("ones", "positive", bias=False), Run("ones", "negative", bias=False, sign=-1))),)
    new = table.Entry(
        "absolute", table.LAYERS, table.BY_DEGREE, {"": table.RUNS}, "R_i = |w_i| / sum |w| R", "this test",
        ("stabiliser",), {"epsilon": 1e-9}, shares, feeds_zeros=True,
    )  # fmt: skip
    monkeypatch.setitem(table._BY_ROLE, ("first-layer", "absolute"), new)
    monkeypatch.setitem(table.ROLES, "first-layer", (*table.ROLES["first-layer"], "absolute"))
    found = xmodel.explain(x, target=1, rules={"base": "attnlrp", "rules": {"first-layer": "absolute"}})
    assert found.ledger.balance < 1e-9
    weight = xmodel.model.first.weight.detach().abs()
    at = xmodel.explain(x, target=1, at="first", rules="attnlrp").latents["first"]
    total = torch.nn.functional.conv1d(torch.ones_like(x), weight, padding=1)
    expected = torch.nn.grad.conv1d_input(x.shape, weight, at / total, padding=1)
    torch.testing.assert_close(found.relevance["x"], expected, rtol=1e-6, atol=1e-9)


def call(function, x):
    """A rule function on tensors of the shape of x, with a cotangent that depends on where it is."""
    arguments = {
        functions.scale_relevance: (0.5,), functions.epsilon_rule: (0.1,), functions.rectified_rule: (),
        functions.identity_rule: (x, 2 * x.detach()), functions.closed_identity_rule: (x, "x * x"),
        functions.share_relevance: (x, 0.5, 1, 0.1), functions.favour_sign: (x, x.abs(), 0.5, 0.1),
        functions.nonzero: (), functions.quotient: (2 * x.detach(), 0.5), functions.bounded_quotient: (x.detach(), 0.1),
        functions.centred_quotient: (x.detach(), 0.5, 0.25, 0.1),
        functions.either_quotient: (x.detach(), x.detach().clamp(min=0), 0.5, 0.1),
    }[function]  # fmt: skip
    return function(x, *arguments)


@pytest.mark.parametrize("trait", [functions.POSITIONS, functions.ENTRIES])
def test_what_commutes_commutes(trait):
    torch.manual_seed(0)
    for function in functions.commuting_with(trait):
        x, g = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
        chosen = (slice(1, 2),) if trait == functions.POSITIONS else (slice(None), slice(2, 3))
        sides = []
        for before in (True, False):
            leaf = x.clone().requires_grad_()
            y = call(function, leaf[chosen]) if before else call(function, leaf)[chosen]
            sides.append((y, *torch.autograd.grad(y, leaf, g[chosen])))
        for one, other in zip(*sides, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    "function", [torch.sigmoid, torch.tanh, torch.sin, torch.sinh, lambda x: torch.atan2(x, x[0].detach())]
)
@pytest.mark.parametrize("rules", ["default", "attnlrp"])
def test_every_function_of_a_slope_says_what_it_commutes_with(function, rules):
    class Model(nn.Module):
        def forward(self, x):
            return function(x)

    graph = lrp_fx.convert(Model(), torch.randn(3, 4), rules=rules).graph_module.graph
    calls = {
        n.target for n in graph.nodes if n.op == "call_function" and not isinstance(n.target, torch._ops.OpOverload)
    }
    assert calls and calls <= functions.TRAITS.keys()
