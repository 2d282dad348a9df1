"""What export refuses: data-dependent Python, containers, control-flow operators, recurrent layers, fx graphs."""

import sys

import pytest
import torch
from models import few
from torch import nn
from torch._higher_order_ops.while_loop import while_loop
from torch.autograd import forward_ad
from torch.nn.attention.flex_attention import flex_attention
from torch.utils import _pytree as pytree

import lrp_fx
from lrp_fx.errors import CaptureError


class Decides(nn.Module):
    """Branches on a sum, loops over the rows it picks, writes through views, returns containers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = torch.relu(self.a(x))
        if h.sum() > 1:
            h = self.b(h)
        buffer = torch.zeros(x.shape[0], 4, dtype=x.dtype)
        buffer[:, 0] = h[:, 1]
        view = buffer[:, 2:]
        view += h[:, :2]
        for i in torch.nonzero(h[:, 0] > 0).flatten().tolist():
            buffer[i] = buffer[i] + h[i]
        return {"y": [self.a(buffer)], "rest": (h, None, 3)}


class Experts(nn.Module):
    """A mixture of experts that loops over those that were chosen."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 6)) for _ in range(3))

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == e)
            if rows.numel():
                out.index_add_(0, rows, expert(x[rows]) * weights[rows, place, None])
        return x + out


class Cache:
    """A container that torch knows nothing of."""

    def __init__(self, state):
        self.state = state


class Container(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x)
        return y, Cache(y.detach())


def leaves(value):
    return [t for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]


def first(output):
    return leaves(output)[0].flatten(1).sum(1)


@pytest.mark.parametrize("kind, shape", [(Decides, (3, 4)), (Experts, (5, 6)), (Container, (2, 4))])
def test_a_recorded_run_explains_exactly(kind, shape):
    torch.manual_seed(0)
    model = kind().double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    assert xmodel.report().route.startswith("trace (")
    assert all(torch.equal(a, b) for a, b in zip(leaves(xmodel(x)), leaves(model(x)), strict=True))
    attribution = xmodel.explain(x, target=first)
    assert attribution.ledger.balance < 1e-12
    assert attribution.relevance["x"].abs().sum() > 0
    assert xmodel.verify(x, target=first).passed


@pytest.mark.slow
@pytest.mark.parametrize("kind, shape", few([(Decides, (3, 4)), (Experts, (5, 6))], (Decides, (3, 4))))
def test_other_decisions_are_recorded_anew(kind, shape):
    torch.manual_seed(1)
    model = kind().double().eval()
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    for _ in range(8):
        x = 2 * torch.randn(shape, dtype=torch.float64)
        assert all(torch.equal(a, b) for a, b in zip(leaves(xmodel(x)), leaves(model(x)), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(leaves(xmodel(x)), leaves(model(x)), strict=True))
    captures = len(xmodel.captures)
    assert 1 < captures <= 8


def test_the_same_decisions_are_not_recorded_again():
    model = Decides().double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    xmodel(x * 1.0001)
    assert len(xmodel.captures) == 1


def test_a_recorded_run_keeps_names_and_parameters():
    model = Decides().double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    assert {n for n, _ in xmodel.graph_module.named_parameters()} >= {"a.weight", "a.bias"}
    mine = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in mine for p in xmodel.graph_module.parameters())
    assert "a" in {m for row in xmodel.report().rows for m in row.modules}
    attribution = xmodel.explain(x, target=first, at="a")
    assert set(attribution.latents) == {"a"}


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        from torch._higher_order_ops.scan import scan
        from torch._higher_order_ops.while_loop import while_loop

        h = torch.cond(x.sum() > 0, lambda x: torch.relu(self.a(x)), lambda x: self.b(x), (x,))
        (h,) = while_loop(lambda h: h.abs().sum() < 50, lambda h: (h * 1.5 + 0.1 * self.b(h),), (h,))
        step = lambda c, x: (torch.tanh(c + x), 2 * torch.tanh(c + x))
        return scan(step, torch.zeros(4, dtype=x.dtype), h)[1]


class Flexible(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.a(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        return flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + 0.1 * (i - j)).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("kind, shape", few([(Conditional, (3, 4)), (Flexible, (2, 8, 16))], (Conditional, (3, 4))))
def test_operators_of_higher_order(kind, shape):
    torch.manual_seed(0)
    model = kind().double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    for scale in (1, -1):
        with torch.no_grad():
            assert torch.allclose(xmodel(scale * x), model(scale * x), rtol=1e-12, atol=1e-12)
        attribution = xmodel.explain(scale * x, target=lambda y: y.flatten()[:1])
        assert attribution.ledger.balance < 1e-12
        assert attribution.relevance["x"].abs().sum() > 0


class Mixed(nn.Module):
    """Computes one branch in bfloat16."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x):
        def narrow(x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.a(x).float()

        return torch.cond(x.sum() > 0, narrow, lambda x: 2 * self.a(x), (x,))


def test_autocast_in_a_branch_holds_in_the_graph():
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.rand(2, 8)
    assert not torch.equal(model(x), model.a(x))
    assert torch.equal(lrp_fx.convert(model, x)(x), model(x))


@pytest.mark.parametrize("kind", few([nn.LSTM, nn.GRU, nn.RNN], nn.LSTM))
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"bias": False}])
def test_recurrent_layers(kind, packed, options):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.core = kind(4, 6, batch_first=True, **options)

        def forward(self, x, lengths):
            if packed:
                x = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
                y = nn.utils.rnn.pad_packed_sequence(self.core(x)[0], batch_first=True)[0]
            else:
                y = self.core(x)[0]
            return y.sum(1)

    torch.manual_seed(0)
    model = Model().double().eval()
    x, lengths = torch.randn(3, 5, 4, dtype=torch.float64), torch.tensor([2, 5, 3])
    xmodel = lrp_fx.convert(model, x, lengths, rules="attnlrp")
    assert torch.allclose(xmodel(x, lengths), model(x, lengths), rtol=1e-12, atol=1e-14)
    attribution = xmodel.explain(x, lengths)
    assert attribution.ledger.balance < 1e-12
    relevance = attribution.relevance["x"].abs().sum(-1)
    assert (relevance[0, :2] > 0).all()
    if packed:
        assert relevance[0, 2:].sum() == 0
    own = {id(p) for p in model.parameters()}
    assert all(id(w) in own for w in model.core._flat_weights)  # export puts its own there, and takes them back


def test_a_graph_that_was_traced_before_is_a_model_like_any_other():
    model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(2, 4, dtype=torch.float64)
    expected = lrp_fx.convert(model, x, rules="attnlrp").explain(x).relevance["input"]
    symbolic = torch.fx.symbolic_trace(model)
    exported = torch.export.export(model, (x,)).module()
    for graph_module in (symbolic, exported):
        found = lrp_fx.convert(graph_module, x, rules="attnlrp").explain(x).relevance
        assert torch.allclose(next(iter(found.values())), expected, rtol=1e-12, atol=1e-14)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 7 * g  # wrong on purpose: relevance follows what is computed, not what its author says of gradients


def test_custom_autograd_functions_are_seen_through():
    class Model(nn.Module):
        def forward(self, x):
            return Doubled.apply(x).sum(-1, keepdim=True)

    x = torch.randn(2, 4, dtype=torch.float64)
    relevance = lrp_fx.convert(Model(), x, rules="attnlrp").explain(x).relevance["x"]
    assert torch.allclose(relevance, 2 * x)


class Hashing(nn.Module):
    """Takes the rows that a random projection, seeded anew in every call, picks."""

    def forward(self, x):
        torch.manual_seed(3)
        if float((x @ torch.randn(5)).max()) > 1e6:
            return x
        return x * torch.randn(5)


def test_numbers_drawn_during_the_run_stay_those_of_the_run():
    model, x = Hashing(), torch.randn(4, 5)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    assert xmodel.report().route.startswith("trace")
    assert torch.equal(xmodel(x), model(x))
    assert torch.equal(xmodel(x), model(x))


class Shortcut(nn.Module):
    """Skips its mask when it believes itself compiled."""

    def forward(self, x):
        return x.sum(-1) if torch.compiler.is_exporting() else x.tril().sum(-1)


def test_an_export_that_computes_something_else_is_not_trusted():
    model, x = Shortcut(), torch.randn(4, 4)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    assert torch.equal(xmodel(x), model(x))
    assert "disagrees" in xmodel.current.captured.refusal
    with pytest.raises(CaptureError, match="disagrees"):
        lrp_fx.convert(model, x, capture="export", rules="attnlrp")


class OwnControl(nn.Module):
    """A branch on a value, ``torch.cond``, ``while_loop`` and a part that the model compiles itself."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 5)
        self.c = torch.compile(nn.Sequential(nn.Linear(5, 5), nn.GELU()))

    def forward(self, x):
        if x.sum().item() > 1e9:
            return x
        y = torch.cond(x.sum() > 0, lambda x: torch.relu(self.a(x)), lambda x: torch.tanh(self.a(x)), (x,))
        y = self.c(self.b(y))
        return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 0.5 + torch.tanh(y)), (torch.tensor(0), y))[1]


@pytest.mark.slow
def test_control_flow_inside_of_a_recorded_run():
    torch.manual_seed(0)
    model, x = OwnControl().double().eval(), torch.randn(3, 5, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    for value in (x, -x):
        torch.testing.assert_close(xmodel(value), model(value), rtol=1e-12, atol=1e-12)
        assert xmodel.verify(value, target=lambda y: y.sum(-1)).passed


class Picks(torch.nn.Module):
    """A run that has to be recorded, whose model reads one position of its attention, found by an index."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = torch.nn.Embedding(20, 16), torch.nn.LayerNorm(16)
        self.qkv, self.out, self.head = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16), torch.nn.Linear(16, 4)

    def forward(self, ids):
        h = self.embed(ids)
        if ids.sum() > 0:
            h = self.norm(h)
        q, k, v = self.qkv(h).view(*h.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        h = self.out(mixed.transpose(1, 2).flatten(2))
        last = (ids != 0).sum(-1) - 1
        return self.head(h[torch.arange(len(ids)), last][:, None]).squeeze(1)


def test_values_of_a_recorded_run_can_be_computed_with(monkeypatch):
    """Attention is asked at the positions that the model itself reads: shapes are computed from those of the run."""
    monkeypatch.delenv("LRP_FX_CACHE")
    model, ids = Picks().double(), torch.randint(1, 20, (2, 5))
    xmodel = lrp_fx.convert(model, ids, rules="attnlrp")
    assert xmodel.current.captured.route == "trace"
    found = xmodel.explain(ids, target=1)
    assert found.ledger.balance < 1e-9
    modes = {
        n.meta["val"].fake_mode for n in xmodel.graph_module.graph.nodes if hasattr(n.meta.get("val"), "fake_mode")
    }
    assert len(modes) == 1


class Writes(nn.Module):
    """Writes into a buffer or a plain tensor that it holds, and reads it twice; counts its calls."""

    def __init__(self, buffer):
        super().__init__()
        self.lin, self.out, self.calls = nn.Linear(4, 4), nn.Linear(4, 3), 0
        if buffer:
            self.register_buffer("cache", torch.zeros(4, 16, 4, dtype=torch.float64), persistent=False)
        else:
            self.cache = torch.zeros(4, 16, 4, dtype=torch.float64)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.count.add_(1)
        b, s, _ = x.shape
        self.cache[:b, :s] = self.lin(x)
        self.cache[:b, :s].mul_(2)
        return self.out(self.cache[:b, :s])


@pytest.mark.parametrize("capture", ["export", "trace"])
@pytest.mark.parametrize("buffer", [True, False])
def test_writes_into_what_the_model_holds(buffer, capture):
    model, plain = Writes(buffer).double().eval(), Writes(buffer).double().eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, capture=capture, rules="attnlrp")
    torch.testing.assert_close(xmodel(x), plain(x), rtol=1e-12, atol=1e-12)
    found = xmodel.explain(x, target=(4, 1), rules="gradient").relevance["x"]
    given = x.clone().requires_grad_()
    plain.cache = torch.zeros_like(plain.cache)
    (gradient,) = torch.autograd.grad(plain(given)[:, 4, 1].sum(), given)
    torch.testing.assert_close(found, x * gradient, rtol=1e-10, atol=1e-12)
    assert xmodel.explain(x, target=(4, 1)).ledger.balance < 1e-12
    assert xmodel.verify(x, target=(4, 1)).passed
    assert float(model.count) == 0 and model.calls == 0 and float(model.cache.abs().sum()) == 0


class Assign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scratch, value, index):
        ctx.index = index
        scratch.data[index] = value
        return scratch

    @staticmethod
    def backward(ctx, g):
        return g, g[ctx.index], None


def _an_index_of_rows(weight, x):
    rows = weight.repeat(len(x), 1, 1)
    rows[:, torch.tensor([1, 3])] = x
    return rows


def _a_slice(weight, x):
    rows = (2 * weight).expand(len(x), 6, 4).clone()
    rows[:, 1:3] = x
    return rows


def _a_view_of_a_view(weight, x):
    rows = weight.repeat(len(x), 1, 1)
    rows.view(len(x), 3, 2, 4)[:, 0] = x
    return rows


def _all_of_it(weight, x):
    rows = 3 * weight
    rows += x.mean((0, 1))
    return rows.expand(len(x), 6, 4)


class Inserts(nn.Module):
    """Writes its input into a tensor that is made of a parameter alone."""

    def __init__(self, insert):
        super().__init__()
        self.insert, self.weight, self.last = insert, nn.Parameter(torch.randn(1, 6, 4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.insert(self.weight, x).tanh()).sum(1)


@pytest.mark.parametrize("capture", ["export", "trace"])
@pytest.mark.parametrize("insert", [_an_index_of_rows, _a_slice, _a_view_of_a_view, _all_of_it])
def test_writes_into_what_is_made_of_parameters_alone(insert, capture):
    torch.manual_seed(0)
    model = Inserts(insert).double()
    x = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    explained = lrp_fx.convert(model, x.detach(), rules="gradient", capture=capture).explain(x.detach(), target=1)
    torch.testing.assert_close(explained.relevance["x"], (x * gradient).detach(), rtol=1e-9, atol=1e-12)


def test_a_custom_function_that_writes():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(3, 3)

        def forward(self, x):
            k = torch.empty(*x.shape, 2, dtype=x.dtype)
            k = Assign.apply(k, self.l(x), (..., 0))
            return Assign.apply(k, x, (..., 1)).sum(-1)

    model, x = Model().double().eval(), torch.randn(2, 3, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    torch.testing.assert_close(xmodel(x), model(x), rtol=1e-12, atol=1e-12)
    found = xmodel.explain(x, target=1).relevance["x"]
    expected = x * model.l.weight[1].detach()
    expected[:, 1] += x[:, 1]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_random_state_is_as_it_was():
    model, x = Hashing(), torch.randn(4, 5)
    state = torch.get_rng_state()
    lrp_fx.convert(model, x, rules="attnlrp")
    assert torch.equal(state, torch.get_rng_state())


class Inside(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.l, self.w, self.form = nn.Linear(4, 4, bias=False), nn.Parameter(torch.randn(4, 3)), form

    def forward(self, x):
        return self.form(self, self.l(x))


def _by_autograd(m, h):
    with torch.enable_grad():
        h = h if h.requires_grad else h.detach().requires_grad_()
        return torch.autograd.grad((h @ m.w).tanh().pow(2).sum(), h, create_graph=True)[0]


def _by_dual_numbers(m, h):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual((forward_ad.make_dual(h, torch.ones_like(h)) @ m.w).tanh()).tangent


TRANSFORMS = {
    "vmap": lambda m, h: torch.vmap(lambda r: r @ m.w)(h),
    "nested vmap": lambda m, h: torch.vmap(torch.vmap(lambda a: a * a.sin()))(h),
    "vmap of jacrev": lambda m, h: torch.vmap(torch.func.jacrev(lambda r: (r @ m.w).tanh()))(h).flatten(1),
    "vmap of jacfwd": lambda m, h: torch.vmap(torch.func.jacfwd(lambda r: (r @ m.w).tanh()))(h).flatten(1),
    "jvp": lambda m, h: torch.func.jvp(lambda y: (y @ m.w).tanh().sin(), (h,), (torch.ones_like(h),))[1],
    "dual numbers": _by_dual_numbers,
    "grad": lambda m, h: torch.func.grad(lambda y: (y @ m.w).tanh().sum())(h),
    "autograd.grad": _by_autograd,
}


@pytest.mark.parametrize("form", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_maps_and_derivatives_inside_a_forward(form):
    """They are followed: relevance passes through them."""
    torch.manual_seed(0)
    model, x = Inside(form).double().eval(), torch.randn(3, 4, dtype=torch.float64)
    given = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(given)[:, 1].sum(), given)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    for y in (x, 2 * x):
        torch.testing.assert_close(xmodel(y), model(y), rtol=1e-10, atol=1e-12)
    found = xmodel.explain(x, target=1)
    assert found.ledger.balance < 1e-9 and found.relevance["x"].abs().sum() > 0
    by_gradient = xmodel.explain(x, target=1, rules="gradient").relevance["x"]
    torch.testing.assert_close(by_gradient, x * gradient, rtol=1e-9, atol=1e-11)


def test_what_pytorch_cannot_make_functional_is_an_error_of_ours(monkeypatch):
    def fails(*_):
        raise AssertionError("false INTERNAL ASSERT FAILED")

    monkeypatch.setattr(sys.modules["lrp_fx.capture.capture"], "functional", fails)
    with pytest.raises(CaptureError, match=r"writes in place.*INTERNAL ASSERT FAILED\n.*torch.where"):
        lrp_fx.convert(Inserts(_a_slice), torch.randn(2, 2, 4), capture="trace")


class Flexible(nn.Module):
    """Flexible attention, which refuses operands that require a gradient on a CPU, under a mask made by ``vmap``."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 16) for _ in range(3))

    def forward(self, x):
        q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
        mask = torch.vmap(lambda row: row >= torch.arange(x.shape[1]))(torch.arange(x.shape[1]))
        return flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: torch.where(mask[i, j], s, -torch.inf))[:, 0]


def test_parameters_require_no_gradient_in_a_run_below_vmap():
    torch.manual_seed(0)
    model, x = Flexible().double(), torch.randn(2, 5, 8, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules="gradient", capture="trace")
    with torch.no_grad():
        torch.testing.assert_close(xmodel(x), model(x), rtol=1e-12, atol=1e-12)
    assert xmodel.verify(x, target=(4, 1)).passed
    assert all(p.requires_grad for p in model.parameters())
