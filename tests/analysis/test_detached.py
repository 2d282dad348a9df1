"""What the model's author held constant is, under every rule set, by both routes, wherever a graph goes."""

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

import lrp_fx
from lrp_fx.errors import TargetError


def without_gradients(x):
    with torch.no_grad():
        return x.exp()


@torch.no_grad()
def decorated(x):
    return x.exp()


def switched(x):
    torch.set_grad_enabled(False)
    y = x.exp()
    torch.set_grad_enabled(True)
    return y


def inferred(x):
    with torch.inference_mode():
        y = x.exp()
    return y.clone()


def switched_on_again(x):
    with torch.no_grad():
        constant = x.exp()
        with torch.enable_grad():
            signal = x.sin()
        both = constant + signal
    return signal * both


def written_inside(x):
    with torch.no_grad():
        return x.clone().mul_(2).exp_()


def written_outside(x):
    y = x.exp().clone()
    with torch.no_grad():
        y.clamp_(min=1e-6)  # as in gaussian_nll_loss
    return y.log() + x


def parts(x):
    with torch.no_grad():
        first, second = x.chunk(2, -1)
    return torch.cat([first * 2, x[..., 2:] * second], -1)


def unchanged(x):
    with torch.no_grad():
        same = F.dropout(x.to(x.dtype).contiguous(), 0.5, False)
        constant = same.exp()
    return x * constant + x.sin() * same


#: what the author wrote -> a function of a signal; each has a gradient of its own
WRITTEN = {
    "detach": lambda x: x * x.exp().detach(),
    "detach_": lambda x: x + (x * 3).detach_(),
    "data": lambda x: x * x.data.exp(),
    "no_grad": lambda x: x + without_gradients(x),
    "no_grad, a tensor as it was": unchanged,
    "a decorator": lambda x: x.sin() * decorated(x),
    "set_grad_enabled": lambda x: x - switched(x),
    "inference_mode": lambda x: x * inferred(x),
    "enable_grad inside": switched_on_again,
    "written inside": lambda x: x + written_inside(x),
    "written outside": lambda x: written_outside(x) * x,
    "written outside by PyTorch": lambda x: F.gaussian_nll_loss(x, x.tanh(), x.exp(), reduction="none"),
    "several outputs": parts,
    "straight through": lambda x: x + ((3 * x).round() - x).detach(),
    "hard and soft": lambda x: x + (s := torch.softmax(x, -1)) + (F.one_hot(s.argmax(-1), 4) - s).detach(),
    "a statistic": lambda x: x / x.norm(dim=-1, keepdim=True).detach(),
    "statistics": lambda x: (x - x.mean(-1, keepdim=True).detach()) / x.std(-1, keepdim=True).detach(),
    "a maximum": lambda x: x + (e := (x - x.amax(-1, keepdim=True).detach()).exp()) / e.sum(-1, keepdim=True),
    "a gate": lambda x: torch.sigmoid(x).detach() * x,
    "a new leaf": lambda x: x * (y := x.exp().detach().requires_grad_()) + y,
}


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.function = nn.Linear(4, 4), nn.Linear(4, 3), function
        self.double()

    def forward(self, x):
        return self.outer(self.function(self.inner(x)))


X = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def input_times_gradient(model):
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    return X * gradient


@pytest.mark.parametrize("route", ["export", "trace"])
@pytest.mark.parametrize("name", WRITTEN)
def test_gradient_is_autograd_and_sums_close(name, route):
    model = Net(WRITTEN[name])
    route = "auto" if name in ("data", "written outside by PyTorch") else route  # export refuses these
    xmodel = lrp_fx.convert(model, X, capture=route, rules="attnlrp")
    assert torch.equal(xmodel(X), model(X))
    found = xmodel.explain(X, target=1, rules="gradient")
    torch.testing.assert_close(found.relevance["x"], input_times_gradient(model), rtol=1e-10, atol=1e-12)
    for rules in ("attnlrp", "cp_lrp", "vit_gamma"):
        assert xmodel.explain(X, target=1, rules=rules).ledger.balance < 1e-9
    verified = xmodel.verify(X, target=1)
    assert verified.passed and not verified.notes


class Cubed(Function):
    """Its forward runs without gradients, but not because the author held it constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 * x * x


class CubedInPlace(Cubed):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone().mul_(x).mul_(x)


class CubedWithoutGradients(Cubed):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch.no_grad():
            square = x * x
        return square * x


class CubedWithGradients(Cubed):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch.enable_grad():  # as a function that recomputes does
            square = x * x
        return square * x


def behind(function):
    """What is held constant in front of a function, inside of a region, and behind it."""

    def apply(x):
        with torch.no_grad():
            constant = function.apply(x).exp()
        return x.sin() + function.apply(x) * constant + x.detach() * x

    return apply


FUNCTIONS = [Cubed, CubedInPlace, CubedWithoutGradients, CubedWithGradients]


@pytest.mark.parametrize("route", ["export", "trace"])
@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_operators_of_a_function_are_differentiated(function, region, route):
    inner = behind(function) if region else function.apply
    model = Net(lambda x: x.tanh() + inner(x))  # there is another path: what is held constant is not seen through
    found = lrp_fx.convert(model, X, capture=route, rules="gradient").explain(X, target=1)
    torch.testing.assert_close(found.relevance["x"], input_times_gradient(model), rtol=1e-10, atol=1e-12)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["no_grad", "straight through", "inference_mode"])
def test_what_is_added_and_held_constant_has_a_category(name):
    ledger = lrp_fx.convert(Net(WRITTEN[name]), rules="attnlrp").explain(X, target=1).ledger
    assert ("detached" in ledger) == (name != "inference_mode")  # (a factor adds nothing)


def test_a_straight_through_estimator_has_the_relevance_of_its_signal():
    hard, soft = (
        lrp_fx.convert(Net(f), rules="attnlrp").explain(X, target=1).relevance["x"]
        for f in (WRITTEN["straight through"], lambda x: x)
    )
    torch.testing.assert_close(hard, soft, rtol=1e-5, atol=1e-7)  # (but for stabilisers)


def test_seen_through_relevance_follows_the_values():
    model, plain = Net(lambda x: x + without_gradients(x).detach()), Net(lambda x: x + x.exp())
    for rules in ("attnlrp", "gradient"):
        found, expected = (
            lrp_fx.convert(m, X, detach="see-through", rules=rules).explain(X, target=1) for m in (model, plain)
        )
        torch.testing.assert_close(found.relevance["x"], expected.relevance["x"], rtol=1e-10, atol=1e-12)
        assert not found.notes or found.notes[0].name != "seen through"
    with pytest.raises(ValueError, match="choose one of honour"):
        lrp_fx.convert(model, X, detach="both", rules="attnlrp")


class Frozen(nn.Module):
    """All of it, or all but its head, runs without gradients."""

    def __init__(self, whole):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.whole = nn.Sequential(nn.Linear(4, 8), nn.GELU()), nn.Linear(8, 3), whole
        self.double()

    def forward(self, x):
        with torch.no_grad():
            h = self.body(x)
            if self.whole:
                h = self.head(h)
        return h if self.whole else self.head(h)


@pytest.mark.parametrize("route", ["export", "trace"])
@pytest.mark.parametrize("whole", [True, False])
def test_where_nothing_is_left_it_is_seen_through_and_noted(whole, route, tmp_path):
    model = Frozen(whole)
    xmodel = lrp_fx.convert(model, X, capture=route, rules="attnlrp")
    found = xmodel.explain(X, target=1)
    expected = lrp_fx.convert(nn.Sequential(model.body, model.head), X, rules="attnlrp").explain(X, target=1)
    torch.testing.assert_close(found.relevance["x"], expected.relevance["input"], rtol=1e-10, atol=1e-12)
    assert ("module 'head'" if whole else "module 'body.1'") in str(note(found))
    assert "without gradients" in repr(found) and note(expected) is None
    lowered = xmodel.lower(X, target=1)
    lowered.save(tmp_path / "graph.pt2")
    for other in (
        xmodel.explain(X, target=1, memory="low"),
        xmodel.explain(X, targets=[0, 1]),
        lowered(X, target=1),
        lrp_fx.load(tmp_path / "graph.pt2")(X, target=1),
    ):
        assert str(note(other)) == str(note(found))


def note(attribution):
    return next((n for n in attribution.notes if n.name == "seen through"), None)


class TwoOutputs(nn.Module):
    """A second output that is detached: a copy of what the first is made of, or a function of what holds that, too."""

    def __init__(self, shared):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.shared = nn.Linear(4, 3), nn.Linear(3, 3), shared
        self.double()

    def forward(self, x):
        h = self.one(x)
        held = h.detach().exp()
        return self.two(h) + (held if self.shared else 0), held * 2


def test_an_output_that_is_detached_is_seen_through_where_no_other_reads_it():
    second = lambda out: out[1][:, 1]
    apart, shared = (lrp_fx.convert(TwoOutputs(s), X, rules="attnlrp") for s in (False, True))
    assert float(apart.explain(X, target=second).relevance["x"].abs().sum()) > 0.1
    with pytest.raises(TargetError, match="see-through"):
        shared.explain(X, target=second)
    assert shared.explain(X, target=lambda out: out[0][:, 1]).ledger.balance < 1e-12


@pytest.mark.parametrize("name", ["straight through", "enable_grad inside", "a statistic"])
def test_every_way_of_explaining_agrees(name, tmp_path):
    xmodel = lrp_fx.convert(Net(WRITTEN[name]), X, rules="attnlrp")
    plain = xmodel.explain(X, target=1)
    lowered = xmodel.lower(X, target=1)
    lowered.save(tmp_path / "graph.pt2")
    ways = [
        xmodel.explain(X, target=1, memory="low").relevance["x"],
        xmodel.explain(X, targets=[0, 1]).relevance["x"][1],
        lowered(X, target=1).relevance["x"],
        lrp_fx.load(tmp_path / "graph.pt2")(X, target=1).relevance["x"],
        xmodel.explain(X[:1], target=1).relevance["x"],
    ]
    for way in ways:
        torch.testing.assert_close(way, plain.relevance["x"][: len(way)], rtol=1e-10, atol=1e-12)


def kept(x):
    """A function of a module, so that captures of it can be kept on disk."""
    return x + ((3 * x).round() - x).detach()


def test_both_readings_are_kept_on_disk_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("LRP_FX_CACHE", str(tmp_path))

    def explained(reading):
        xmodel = lrp_fx.convert(Net(kept), X, detach=reading, rules="attnlrp")
        return xmodel.lower(X, target=1)(X, target=1).relevance["x"]

    first = {reading: explained(reading) for reading in ("honour", "see-through")}
    files = len(list(tmp_path.rglob("*.*")))
    again = {reading: explained(reading) for reading in ("see-through", "honour")}
    assert files == len(list(tmp_path.rglob("*.*"))) > 2
    for reading, relevance in first.items():
        assert torch.equal(relevance, again[reading])
    assert (first["honour"] - first["see-through"]).abs().max() > 0.01


def test_what_depends_on_no_signal_is_left_as_it_was():
    class Rotary(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
            self.double()

        @torch.no_grad()
        def angles(self, ids):
            return (ids.cumsum(-1)[..., None] * torch.arange(1, 5, device=ids.device)).double().cos()

        def forward(self, ids):
            return self.head(self.table(ids) * self.angles(ids) * self.head.weight.detach().sum()).sum(1)

    ids = torch.randint(0, 9, (2, 5))
    xmodel = lrp_fx.convert(Rotary(), ids, rules="attnlrp")
    assert not xmodel.current.facts.detached
    assert xmodel.current.facts.positional and "aten.detach" not in str(xmodel.current.captured.graph_module.graph)
    assert xmodel.explain(ids, target=1).ledger.balance < 1e-12


def test_what_a_model_writes_behind_autograds_back_is_followed():
    """``x.data.masked_fill_`` before a softmax, as old models mask: what is written is what x is from then on."""

    def masked(x):
        scores = x * 1
        scores.data.masked_fill_(torch.tensor([False, True, False, False]), -torch.inf)
        return torch.softmax(scores, -1)

    model = Net(masked)
    found = lrp_fx.convert(model, X, rules="attnlrp").explain(X, target=1, rules="gradient")
    torch.testing.assert_close(found.relevance["x"], input_times_gradient(model), rtol=1e-10, atol=1e-12)


def test_an_input_that_stops_at_a_detach_has_a_note_that_says_so():
    class Two(nn.Module):
        def forward(self, x, y):
            return x * y.detach().exp() + y.detach()

    x, y = torch.rand(2, 2, 3, dtype=torch.float64).unbind()
    found = lrp_fx.convert(Two(), rules="attnlrp").explain(x, y, target=1)
    (unmoved,) = (n for n in found.notes if n.name == "no relevance")
    assert "'y'" in str(unmoved) and "see-through" in str(unmoved)
