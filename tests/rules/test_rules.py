"""Each rule against the paper's explicit relevance formula (not its gradient form), in float64 on random small tensors.

Equation numbers are those of AttnLRP (Achtibat et al., ICML 2024, arXiv:2402.05602).
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import lrp_fx

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}


class Function(nn.Module):
    """A module around a function of one, two or three tensors."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, a, b=None, c=None):
        return self.function(*[t for t in (a, b, c) if t is not None])


def explain(function, *tensors, rules="attnlrp"):
    """Relevances of the inputs, output y and its relevance R for a random cotangent."""
    module = function if isinstance(function, nn.Module) else Function(function)
    with torch.no_grad():
        y = module(*tensors)
    cotangent = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    attribution = lrp_fx.convert(module, *tensors, rules=rules, dynamic=False).explain(
        *tensors, target=lambda out: (out * cotangent).sum()
    )
    assert attribution.ledger.balance < 1e-9
    return list(attribution.relevance.values()), y, y * cotangent


def values(draw, shape, zeros=True):
    """Normal values, a few of them exactly zero."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    if zeros:
        x[torch.rand(shape, generator=generator) < 0.15] = 0.0
    return x


def safe(numerator, denominator):
    """0 / 0 = 0: no relevance arrives where the output is zero."""
    return torch.where(denominator == 0, 0.0, numerator / denominator)


sizes = st.integers(1, 5)


@pytest.mark.parametrize("epsilon", [0.0, 1e-2])
@given(data=st.data(), n=sizes, m=sizes)
def test_epsilon_linear(data, epsilon, n, m):
    """Eq. 8: R_j = sum_k x_j w_kj R_k / (z_k + epsilon sign z_k), bias included in z."""
    x, w, b = values(data.draw, (n,)), values(data.draw, (m, n)), values(data.draw, (m,))
    layer = nn.Linear(n, m).double()
    layer.weight.data, layer.bias.data = w, b
    rules = {"base": "attnlrp", "rules": {"linear": {"rule": "epsilon", "epsilon": epsilon}}}
    (found,), z, relevance = explain(layer, x[None], rules=rules)
    z, relevance = z[0], relevance[0]
    stabilised = torch.where(z >= 0, z + epsilon, z - epsilon)
    expected = torch.einsum("j,kj,k->j", x, w, safe(relevance, stabilised))
    torch.testing.assert_close(found[0], expected, **TOLERANCE)


@given(data=st.data(), n=sizes, k=sizes, m=sizes)
def test_uniform_matmul(data, n, k, m):
    """Prop. 3.3: R_ji = sum_p A_ji V_ip R_jp / (2 O_jp), and likewise for V."""
    a, v = values(data.draw, (n, k)), values(data.draw, (k, m))
    (ra, rv), o, r = explain(torch.matmul, a, v)
    share = safe(r, 2 * o)
    torch.testing.assert_close(ra, torch.einsum("ji,ip,jp->ji", a, v, share), **TOLERANCE)
    torch.testing.assert_close(rv, torch.einsum("ji,ip,jp->ip", a, v, share), **TOLERANCE)


@given(data=st.data(), n=sizes, m=sizes)
def test_uniform_product_with_broadcasting(data, n, m):
    """Eq. 7 with N = 2: each factor receives R / 2, summed where it was broadcast."""
    a, b = values(data.draw, (n, m)), values(data.draw, (1, m))
    (ra, rb), _, r = explain(torch.mul, a, b)
    torch.testing.assert_close(ra, r / 2, **TOLERANCE)
    torch.testing.assert_close(rb, (r / 2).sum(0, keepdim=True), **TOLERANCE)


PRODUCTS = {
    "(a*b)*c": (lambda a, b, c: (a * b) * c, (1, 1, 1)),
    "a*(b*c)": (lambda a, b, c: a * (b * c), (1, 1, 1)),
    "einsum": (lambda a, b, c: torch.einsum("ij,ij,ij->ij", a, b, c), (1, 1, 1)),
    "a*a*c, b unused": (lambda a, b, c: a * a * c + 0 * b, (2, 0, 1)),
    "square(a)*c": (lambda a, b, c: a.square() * c + 0 * b, (2, 0, 1)),
    "a**3*b*c": (lambda a, b, c: a**3 * b * c, (3, 1, 1)),
    "a*b/c": (lambda a, b, c: a * b / c, (1, 1, 1)),
    "a/(b*c)": (lambda a, b, c: a / (b * c), (1, 1, 1)),
    "shared a*b": (lambda a, b, c: torch.stack([(t := a * b) * c, 0 * t])[0], (1, 1, 1)),
    "scaled and signed": (lambda a, b, c: -(2 * a * b) * (c / 3), (1, 1, 1)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_product_of_n_factors_gives_each_one_nth(name):
    """Eq. 7 for n factors with multiplicity, whatever the association; a quotient is a product with a reciprocal."""
    function, counts = PRODUCTS[name]
    tensors = [torch.randn(3, 4, dtype=torch.float64) for _ in range(3)]
    found, _, r = explain(function, *tensors)
    for relevance, count in zip(found, counts, strict=True):
        torch.testing.assert_close(relevance, r * count / sum(counts), **TOLERANCE)


@given(data=st.data(), n=sizes, m=sizes)
def test_a_matrix_times_its_own_transpose(data, n, m):
    """x @ x.T: each of the two places of x receives half (prop. 3.3), and they add."""
    x = values(data.draw, (n, m))
    (found,), o, r = explain(lambda x: x @ x.T, x)
    share = safe(r, 2 * o)
    left = torch.einsum("ji,pi,jp->ji", x, x, share)
    right = torch.einsum("ji,pi,jp->pi", x, x, share)
    torch.testing.assert_close(found, left + right, **TOLERANCE)


@given(data=st.data(), n=sizes, m=st.integers(2, 5))
def test_softmax_taylor(data, n, m):
    """Prop. 3.1: R_i = x_i (R_i - s_i sum_j R_j)."""
    x = values(data.draw, (n, m))
    (found,), s, r = explain(lambda x: x.softmax(-1), x)
    torch.testing.assert_close(found, x * (r - s * r.sum(-1, keepdim=True)), **TOLERANCE)


NONLINEARITIES = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"), "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "exp": torch.exp, "softplus": F.softplus, "mish": F.mish, "elu": F.elu, "hardswish": F.hardswish,
    "leaky": F.leaky_relu, "erf": torch.erf, "sin": torch.sin, "cube": lambda x: x**3, "sqrt": lambda x: (x * x + 1).sqrt(),
    "relu6": F.relu6, "abs": torch.abs, "square": torch.square, "softsign": F.softsign, "reciprocal": torch.reciprocal,
}  # fmt: skip


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_identity_rule(name):
    """Eq. 9: R_x = R_y element by element, for any function of one scalar."""
    x = torch.randn(4, 5, dtype=torch.float64)
    x = x + 0.01 * x.sign()
    function = NONLINEARITIES[name]
    if name == "sqrt":
        (found,), _, r = explain(lambda x: x.abs().sqrt(), x)
    else:
        (found,), _, r = explain(function, x)
    torch.testing.assert_close(found, r, **TOLERANCE)


@pytest.mark.parametrize("name", [n for n in NONLINEARITIES if n not in ("sqrt", "reciprocal")])
def test_identity_rule_is_finite_at_zero(name):
    x = torch.zeros(2, 3, dtype=torch.float64)
    (found,), _, _ = explain(NONLINEARITIES[name], x)
    assert found.isfinite().all() and (found == 0).all()


@pytest.mark.parametrize("weighted", [True, False])
@given(data=st.data(), n=sizes, m=st.integers(2, 6))
def test_layer_norm(data, weighted, n, m):
    """Section 3.3.2: with the deviation constant, LayerNorm is linear: the epsilon rule with w_kj = (delta - 1/m) w_k / s."""
    x = values(data.draw, (n, m), zeros=False)
    layer = nn.LayerNorm(m, elementwise_affine=weighted).double()
    if weighted:
        layer.weight.data, layer.bias.data = values(data.draw, (m,)), values(data.draw, (m,))
    (found,), y, r = explain(layer, x)
    deviation = (x.var(-1, correction=0, keepdim=True) + layer.eps).sqrt()
    centring = torch.eye(m, dtype=torch.float64) - 1 / m
    weight = layer.weight.detach() if weighted else torch.ones(m, dtype=torch.float64)
    expected = torch.einsum("nj,kj,k,nk->nj", x / deviation, centring, weight, safe(r, y))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@given(data=st.data(), n=sizes, m=st.integers(2, 6))
def test_rms_norm(data, n, m):
    """Section 3.3.2: identity rule, R_x = R_y."""
    x = values(data.draw, (n, m), zeros=False)
    layer = nn.RMSNorm(m).double()
    layer.weight.data = values(data.draw, (m,), zeros=False)
    (found,), _, r = explain(layer, x)
    torch.testing.assert_close(found, r, **TOLERANCE)


@pytest.mark.parametrize(
    "layer", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(4, 4, affine=False)]
)
def test_group_and_instance_norm(layer):
    """Section 3.3.2 with one statistic per group: centring over the group stays linear."""
    layer = layer.double()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    groups = getattr(layer, "num_groups", 4)
    if getattr(layer, "weight", None) is not None:
        torch.nn.init.normal_(layer.weight)
    (found,), y, r = explain(layer, x)
    rows = x.reshape(2, groups, -1)
    size = rows.shape[-1]
    weight = layer.weight.detach() if getattr(layer, "weight", None) is not None else torch.ones(4, dtype=torch.float64)
    g = (safe(r, y) * weight.view(1, 4, 1, 1)).reshape(rows.shape)
    g = g / (rows.var(-1, correction=0, keepdim=True) + layer.eps).sqrt()
    centring = torch.eye(size, dtype=torch.float64) - 1 / size
    torch.testing.assert_close(found, (rows * (g @ centring)).reshape(x.shape), rtol=1e-8, atol=1e-10)


def explicit_attention(q, k, v, mask, scale, r):
    """AttnLRP section 3.3 in relevances: uniform over A V, Taylor over softmax, uniform over Q K^T."""
    z = scale * q @ k.transpose(-1, -2)
    a = (z if mask is None else z.masked_fill(~mask, float("-inf"))).softmax(-1)
    share = safe(r, 2 * (a @ v))
    ra = torch.einsum("bhji,bhip,bhjp->bhji", a, v, share)
    rv = torch.einsum("bhji,bhip,bhjp->bhip", a, v, share)
    rz = z * (ra - a * ra.sum(-1, keepdim=True))
    share = safe(rz, 2 * z)
    rq = scale * torch.einsum("bhjd,bhid,bhji->bhjd", q, k, share)
    rk = scale * torch.einsum("bhjd,bhid,bhji->bhid", q, k, share)
    return rq, rk, rv


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention(causal):
    q, k, v = (torch.randn(2, 2, 5, 4, dtype=torch.float64) for _ in range(3))
    found, _, r = explain(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal), q, k, v)
    mask = torch.ones(5, 5, dtype=torch.bool).tril() if causal else None
    for got, expected in zip(found, explicit_attention(q, k, v, mask, 0.5, r), strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCE)


def test_cp_lrp_attention_is_linear_in_the_values():
    """Ali et al. 2022, AH rule: attention weights are constants, R_ip = sum_j A_ji V_ip R_jp / O_jp."""
    q, k, v = (torch.randn(2, 2, 5, 4, dtype=torch.float64) for _ in range(3))
    (rq, rk, rv), o, r = explain(F.scaled_dot_product_attention, q, k, v, rules="cp_lrp")
    a = (0.5 * q @ k.transpose(-1, -2)).softmax(-1)
    assert not rq.any() and not rk.any()
    torch.testing.assert_close(rv, torch.einsum("bhji,bhip,bhjp->bhip", a, v, safe(r, o)), **TOLERANCE)


def test_gates():
    """attnlrp splits a gated unit in half; cp_lrp gives the signal all (Arras et al. 2017)."""
    g, u = (torch.randn(3, 4, dtype=torch.float64) for _ in range(2))
    (rg, ru), _, r = explain(lambda g, u: F.silu(g) * u, g, u)
    torch.testing.assert_close(rg, r / 2, **TOLERANCE)
    torch.testing.assert_close(ru, r / 2, **TOLERANCE)
    (rg, ru), _, r = explain(lambda g, u: F.silu(g) * u, g, u, rules="cp_lrp")
    assert not rg.any()
    torch.testing.assert_close(ru, r, **TOLERANCE)


def test_selection_is_winner_takes_all():
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    (found,), _, r = explain(lambda x: F.max_pool2d(x, 2), x)
    _, index = F.max_pool2d(x, 2, return_indices=True)
    expected = torch.zeros(1, 2, 36, dtype=torch.float64).scatter(2, index.flatten(2), r.flatten(2)).view_as(x)
    torch.testing.assert_close(found, expected, **TOLERANCE)


def windows(function, x):
    """(outputs, inputs) bool: which inputs the window of every output of a selection holds."""
    rows = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    seen = torch.stack([function(row) == 1 for row in rows])  # the only 1 among zeros is chosen wherever it is seen
    return seen.flatten(1).T


POOLS = {
    "overlapping": (lambda x: F.max_pool2d(x, 3, 2, 1), (1, 2, 7, 7)),
    "off the edge": (lambda x: F.max_pool2d(x, 2, 2, 0, ceil_mode=True), (1, 2, 5, 5)),
    "one dimension": (lambda x: F.max_pool1d(x, 3, 1, 1), (1, 3, 8)),
    "three dimensions": (lambda x: F.max_pool3d(x, 2), (1, 2, 4, 4, 4)),
    "everywhere": (lambda x: torch.amax(x, (2, 3)), (1, 3, 4, 4)),
}


@pytest.mark.parametrize("rule", ["proportional", "even"])
@pytest.mark.parametrize("pool", POOLS)
def test_selections_spread_over_their_windows(pool, rule):
    """R_i = x_i+ / sum x+ R, or evenly over positive inputs; of negative ones the winner takes all. It conserves."""
    function, shape = POOLS[pool]
    x = torch.randn(shape, dtype=torch.float64)
    x.flatten()[: x.numel() // 2] -= 4  # windows without a positive input, too
    rules = {"base": "attnlrp", "rules": {"selection": rule}}
    (found,), y, r = explain(function, x, rules=rules)
    assert (y < 0).any() and (y > 0).any()
    inside = windows(function, x)
    part = x.flatten().clamp(min=0) if rule == "proportional" else (x.flatten() > 0).double()
    winners = inside & (x.flatten() == y.reshape(-1, 1))
    share = torch.where(y.reshape(-1, 1) > 0, inside * part, winners)
    expected = (share / share.sum(1, keepdim=True) * r.reshape(-1, 1)).sum(0).view_as(x)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    torch.testing.assert_close(found.sum(), r.sum(), **TOLERANCE)


@pytest.mark.parametrize(
    "function", [lambda x: F.max_pool2d(x, 2, 1, 0, dilation=2), lambda x: x.topk(2, -1).values, lambda x: x.max(-1)[0]]
)
def test_selections_without_windows_stay_winner_takes_all(function):
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    (found,), _, _ = explain(function, x, rules={"base": "attnlrp", "rules": {"selection": "even"}})
    (expected,), _, _ = explain(function, x)
    assert torch.equal(found, expected)


def test_convolution_and_batch_norm():
    """Eq. 8 on a convolution; batch norm in evaluation mode is affine."""
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    conv, norm = nn.Conv2d(3, 4, 3).double(), nn.BatchNorm2d(4).double().eval()
    (
        norm.running_mean.normal_(),
        norm.running_var.uniform_(0.5, 2),
        nn.init.normal_(norm.weight),
        nn.init.normal_(norm.bias),
    )
    (found,), y, r = explain(nn.Sequential(conv, norm), x)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    g = safe(r, y) * scale.view(1, 4, 1, 1)
    expected = x * F.conv_transpose2d(g, conv.weight.detach())
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_stop_and_gradient_rules():
    x = torch.randn(3, 4, dtype=torch.float64)
    rules = {"base": "attnlrp", "overrides": {"op:aten.tanh": {"nonlinearity": "stop"}}}
    (found,), _, r = explain(lambda x: torch.tanh(x) + 2 * x, x, rules=rules)
    y = torch.tanh(x) + 2 * x
    torch.testing.assert_close(found, 2 * x * r / y, **TOLERANCE)
    (found,), y, r = explain(torch.tanh, x, rules="gradient")
    torch.testing.assert_close(found, x * (1 - y * y) * r / y, **TOLERANCE)
