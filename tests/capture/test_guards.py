"""What a captured graph serves: the sizes for which the model would run this very graph, and inputs given twice."""

import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import few
from torch import nn
from torch.nn import functional as F

import lrp_fx
from lrp_fx.capture.agreement import difference, disagreement

D = torch.float64


class Branch(nn.Module):
    """Twice or three times the sum, as a predicate of sizes says."""

    def __init__(self, predicate):
        super().__init__()
        self.predicate = predicate

    def forward(self, x, y):
        factor = 2 if self.predicate(*x.shape, *y.shape) else 3
        return (x.sum(1, keepdim=True) + y.sum(1, keepdim=True)) * factor


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 1, dtype=D)

    def forward(self, x):
        missing = (4 - x.shape[1] % 4) % 4
        if missing > 0:
            x = F.pad(x, (0, 0, 0, missing))
        return self.l(x.reshape(x.shape[0], -1, 4, 4).mean((1, 2)))


class Chunks(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4, dtype=D)

    def forward(self, x):
        state = x.new_zeros(x.shape[0], 4)
        for piece in x.split(8, 1):
            state = torch.tanh(self.l(state)) + piece.sum(1)
        return state


class Batched(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False, dtype=D)

    def forward(self, x, mask):
        if mask.shape[0] > 1:
            x = x * mask[..., None]
        return self.a(x).sum(1)


class Plain(nn.Module):
    """Nothing in it depends on sizes."""

    def __init__(self):
        super().__init__()
        self.a, self.n = nn.Linear(4, 4, dtype=D), nn.LayerNorm(4, dtype=D)

    def forward(self, x):
        return self.a(F.gelu(self.n(x))).mean(1)


class Squeezed(nn.Module):
    """At one sample it returns another rank, and no branch says so."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4, dtype=D)

    def forward(self, x):
        h = self.a(x).sum(1).squeeze()
        return h / (1 + h.dim()) if h.dim() == 1 else h


class Derived(nn.Module):
    """What it computes from a length is one for a length of three."""

    def forward(self, x):
        shorter = x[:, 2:]
        if shorter.shape[1] == 1:
            return shorter.sum(1) * 5
        return shorter.sum(1)


class Delta(nn.Module):
    """Rows of a chunk written one after the other into a growing triangle, and a loop over the chunks."""

    def __init__(self, chunk=8):
        super().__init__()
        self.chunk = chunk
        self.q, self.k, self.v = (nn.Linear(4, 4, bias=False, dtype=D) for _ in range(3))

    def forward(self, x):
        length = x.shape[1]
        missing = (self.chunk - length % self.chunk) % self.chunk
        q, k, v = (
            F.pad(part(x).float(), (0, 0, 0, missing)).reshape(x.shape[0], -1, self.chunk, 4)
            for part in (self.q, self.k, self.v)
        )
        rows = -(k @ k.transpose(-1, -2)).tril(-1) / self.chunk
        for i in range(1, self.chunk):
            row, above = rows[..., i, :i].clone(), rows[..., :i, :i].clone()
            rows[..., i, :i] = row + (row.unsqueeze(-1) * above).sum(-2)
        v = (rows + torch.eye(self.chunk)) @ v
        state, out = torch.zeros(x.shape[0], 4, 4), torch.zeros_like(v)
        for i in range((length + missing) // self.chunk):
            out[:, i] = q[:, i] @ state + (q[:, i] @ k[:, i].transpose(-1, -2)).tril() @ v[:, i]
            state = state * 0.5 + k[:, i].transpose(-1, -2) @ v[:, i]
        return out.reshape(x.shape[0], -1, 4)[:, :length].mean(1).to(x.dtype)


def captures(xmodel):
    return int(xmodel.extra_repr().split("captures=")[1].split(",")[0])


def agrees(xmodel, model, *inputs):
    """Same outputs as the model, and the relevance of a fresh conversion."""
    torch.testing.assert_close(xmodel(*inputs), model(*inputs), rtol=1e-9, atol=1e-9)
    found = xmodel.explain(*inputs)
    fresh = lrp_fx.convert(model, rules="attnlrp").explain(*inputs)
    for name, relevance in fresh.relevance.items():
        torch.testing.assert_close(found.relevance[name], relevance, rtol=1e-9, atol=1e-9)


PREDICATES = {
    "parity": lambda b, t, c, u: t % 2 == 0,
    "threshold": lambda b, t, c, u: t > 5,
    "longer than the batch": lambda b, t, c, u: t > b,
    "equal": lambda b, t, c, u: t == u,
    "unequal multiple": lambda b, t, c, u: 2 * t != u,
    "sum": lambda b, t, c, u: t + u >= 12,
    "product": lambda b, t, c, u: b * t % 4 == 0,
    "true division": lambda b, t, c, u: t / 4 > 1.3,
    "floor": lambda b, t, c, u: t // 4 == u // 4,
    "root": lambda b, t, c, u: int(t**0.5) == 2,
    "one sample": lambda b, t, c, u: b == 1,
}


@pytest.mark.parametrize("name", few(PREDICATES, *list(PREDICATES)[::3]))
def test_a_branch_on_sizes_is_a_guard(name):
    model = Branch(PREDICATES[name])
    first = ((2, 4), (2, 9))
    xmodel = lrp_fx.convert(model, *(torch.randn(s, dtype=D) for s in first), rules="attnlrp")
    for b, t, u in ((2, 4, 8), (2, 5, 9), (2, 6, 6), (6, 5, 4), (1, 8, 8), (1, 1, 2), (3, 9, 4), (2, 4, 9)):
        agrees(xmodel, model, torch.randn(b, t, dtype=D), torch.randn(b, u, dtype=D))


OPERATORS = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)
TERMS = st.recursive(
    st.sampled_from(["b", "t", "u"]) | st.integers(1, 6),
    lambda inner: st.tuples(st.sampled_from(["+", "*", "//", "%"]), inner, st.integers(1, 5) | inner),
    max_leaves=4,
)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
ARITHMETIC = {"+": operator.add, "*": operator.mul, "//": operator.floordiv, "%": operator.mod}


def _value(term, sizes):
    if isinstance(term, tuple):
        sign, left, right = term
        return ARITHMETIC[sign](_value(left, sizes), _value(right, sizes))
    return sizes[term] if isinstance(term, str) else term


@given(st.sampled_from(OPERATORS), TERMS, TERMS, SIZES, st.lists(SIZES, min_size=2, max_size=4))
def test_any_predicate_of_sizes(compare, left, right, first, others):
    def predicate(b, t, c, u):
        sizes = {"b": b, "t": t, "u": u}
        try:
            return compare(_value(left, sizes), _value(right, sizes))
        except ZeroDivisionError:
            return False

    model = Branch(predicate)
    xmodel = None
    for b, t, u in (first, *others):
        inputs = torch.randn(b, t, dtype=D), torch.randn(b, u, dtype=D)
        xmodel = xmodel or lrp_fx.convert(model, *inputs, rules="attnlrp")
        torch.testing.assert_close(xmodel(*inputs), model(*inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", [Padded(), Chunks(), Derived(), Squeezed(), Plain()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("first", [(2, 8), (1, 6), (3, 3)])
def test_sizes_that_a_model_computes_with(model, first):
    xmodel = lrp_fx.convert(model, torch.randn(*first, 4, dtype=D), rules="attnlrp")
    for sizes in ((2, 8), (2, 6), (1, 8), (2, 3), (2, 20), (4, 17), (1, 3)):
        x = torch.randn(*sizes, 4, dtype=D)
        torch.testing.assert_close(xmodel(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("first, then", [(1, 3), (3, 1)])
def test_a_batch_of_one_and_of_more(first, then):
    model, mask = Batched(), torch.tensor([[0, 1, 1], [1, 1, 1], [1, 0, 1]], dtype=D)
    x = torch.randn(3, 3, 4, dtype=D)
    xmodel = lrp_fx.convert(model, x[:first], mask[:first], rules="attnlrp")
    for n in (first, then, 2):
        agrees(xmodel, model, x[:n], mask[:n])
    assert captures(xmodel) == 2


@pytest.mark.parametrize("first, then", [(1, 3), (3, 1)])
def test_a_model_that_does_not_look_at_its_batch_is_captured_once(first, then):
    model = Plain()
    xmodel = lrp_fx.convert(model, torch.randn(first, 5, 4, dtype=D), rules="attnlrp")
    for n in (first, then, 7):
        agrees(xmodel, model, torch.randn(n, 5, 4, dtype=D))
    assert captures(xmodel) == 1


@pytest.mark.slow
def test_a_loop_over_chunks_that_writes_growing_slices():
    model, x = Delta(), torch.randn(2, 20, 4, dtype=D)
    xmodel = lrp_fx.convert(model, x[:, :5], rules="attnlrp")
    for length in (7, 20):
        torch.testing.assert_close(xmodel(x[:, :length]), model(x[:, :length]), rtol=1e-6, atol=1e-7)
    fresh = lrp_fx.convert(model, x, rules="attnlrp")
    found, expected = (m.explain(x, target=1).relevance["x"] for m in (xmodel, fresh))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert len(fresh.current.captured.shapes.guards) < 40  # what a capture asks itself, of values it adds, is no guard


def test_why_a_capture_does_not_serve_names_the_guard_and_its_line():
    model = Branch(lambda b, t, c, u: t % 2 == 0)
    xmodel = lrp_fx.convert(model, torch.randn(2, 4), torch.randn(2, 4), rules="attnlrp")
    captured = xmodel.current.captured
    assert captured.why_not((torch.randn(2, 6), torch.randn(2, 5))) is None
    reason = captured.why_not((torch.randn(2, 5), torch.randn(2, 5)))
    assert "x.shape[1] % 2" in reason and "test_guards.py:" in reason


def test_lowered_graphs_refuse_what_the_capture_refuses():
    model = Branch(lambda b, t, c, u: t % 2 == 0)
    xmodel = lrp_fx.convert(model, torch.randn(2, 4, dtype=D), torch.randn(2, 4, dtype=D), rules="attnlrp")
    lowered = xmodel.lower(torch.randn(2, 4, dtype=D), torch.randn(2, 4, dtype=D), target=0)
    x, y = torch.randn(2, 6, dtype=D), torch.randn(2, 6, dtype=D)
    torch.testing.assert_close(lowered(x, y, target=0).target, model(x, y)[:, 0])
    with pytest.raises(lrp_fx.errors.InputError, match="relies on"):
        lowered(x[:, :5], y, target=0)
    for length in (4, 5, 6):
        found = xmodel.explain(x[:, :length], y, targets=[0])
        torch.testing.assert_close(found.target[0], model(x[:, :length], y)[:, 0])


def test_guards_are_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("LRP_FX_CACHE", str(tmp_path))
    model = Padded()
    x = torch.randn(2, 8, 4, dtype=D)
    lrp_fx.convert(model, x, rules="attnlrp")
    again = lrp_fx.convert(model, x, rules="attnlrp")
    assert again.current.captured.key is not None and again.current.captured.shapes.guards
    y = torch.randn(2, 6, 4, dtype=D)
    torch.testing.assert_close(again(y), model(y))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Linear(4, 3, bias=False, dtype=D) for _ in range(2))

    def forward(self, query, context):
        context = context["of"] if isinstance(context, dict) else context
        return self.a(query).sum(1) + self.b(context).sum(1)


@pytest.mark.parametrize("route", ["export", "trace"])
@pytest.mark.parametrize("pair", [lambda x: (x, x), lambda x: (x, x[:, :3]), lambda x: (x, {"of": x})])
def test_one_tensor_given_twice_is_two_inputs(route, pair):
    model, x, y = Two(), torch.randn(2, 5, 4, dtype=D), torch.randn(2, 5, 4, dtype=D)
    query, context = pair(x)
    xmodel = lrp_fx.convert(model, query, context, capture=route, rules="attnlrp")
    other = y[:, :3] if not isinstance(context, dict) and context.shape[1] == 3 else y
    other = {"of": other} if isinstance(context, dict) else other
    for given_query, given_context in ((query, context), (x, other), (y, other)):
        torch.testing.assert_close(xmodel(given_query, given_context), model(given_query, given_context))
        found = xmodel.explain(given_query, given_context, target=1).relevance
        held = given_context["of"] if isinstance(given_context, dict) else given_context
        torch.testing.assert_close(found["query"], given_query * model.a.weight[1])
        (name,) = set(found) - {"query"}
        torch.testing.assert_close(found[name], held * model.b.weight[1])
    assert captures(xmodel) == 1


class Outputs(nn.Module):
    """What a function makes of its input."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x):
        return self.of(x)


def test_agreement_sees_nan_infinities_and_whole_numbers():
    x = torch.randn(2, 3)
    same = Outputs(lambda x: (x, x > 0, x.argmax(1)))
    assert disagreement(same, same, (x,), {}) == 0
    for other in (
        lambda x: (x / 0, x > 0, x.argmax(1)),
        lambda x: (x.where(x > x.mean(), torch.nan), x > 0, x.argmax(1)),
        lambda x: (x, x <= 0, x.argmax(1)),
        lambda x: (x, x > 0, x.argmin(1)),
    ):
        assert disagreement(same, Outputs(other), (x,), {}) == float("inf")
    inf = torch.tensor([1.0, torch.inf])
    assert difference([inf], [inf]) == 0 and difference([inf], [-inf]) == float("inf")


def test_agreement_of_a_model_that_draws():
    x = torch.randn(2, 3)
    model = Outputs(lambda x: x + torch.randn_like(x))
    later = Outputs(lambda x: (torch.rand(1), x + torch.randn_like(x))[1])
    state = torch.get_rng_state()
    assert disagreement(model, model, (x,), {}) == 0
    assert disagreement(model, later, (x,), {}) == 0
    assert disagreement(Outputs(lambda x: x), later, (x,), {}) > 0.01
    assert torch.equal(state, torch.get_rng_state())
