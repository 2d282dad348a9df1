"""Rule sets of the LRP literature: agreement with zennit on convolutional nets, explicit formulas, and a closed ledger."""

from functools import partial

import pytest
import torch
from models import few
from torch import nn

import lrp_fx
from lrp_fx.errors import RuleSetError


def norm(width):
    """zennit's folding leaves the eps of the emptied normalization in; a small one makes the two comparable."""
    return nn.BatchNorm2d(width, eps=1e-12)


class Sum(nn.Module):
    """Adds what is stacked along the last dimension (zennit has a module of this name that it gives a rule)."""

    kind = None

    def __init__(self):
        super().__init__()
        self.sum = Sum.kind()

    def forward(self, a, b):
        return self.sum(torch.stack([a, b], dim=-1))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width)
        self.relu1 = nn.ReLU()
        self.second, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width)
        self.add, self.relu2 = Sum(), nn.ReLU()

    def forward(self, x):
        return self.relu2(self.add(self.norm2(self.second(self.relu1(self.norm1(self.first(x))))), x))


def vgg():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 5),
    )  # fmt: skip


def resnet():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, bias=False), norm(6), nn.ReLU(), nn.MaxPool2d(2), Residual(6), Residual(6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def mobilenet(activation=nn.ReLU6):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, bias=False), norm(6), activation(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), norm(6), activation(),
        nn.Conv2d(6, 8, 1, bias=False), norm(8), activation(), nn.ConvTranspose2d(8, 6, 2, bias=False),
        norm(6), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def prepared(build, zennit):
    """A net in evaluation mode with statistics of its own, and pictures with black pixels."""
    torch.manual_seed(0)
    Sum.kind = zennit.layer.Sum
    model = build().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    x = torch.randn(2, 3, 14, 14, dtype=torch.float64).clamp(-2.5, 2.5)
    x[:, :, :5, :4] = 0
    return model, x


COMPOSITES = {
    "epsilon_gamma_box": {"low": -3.0, "high": 3.0},
    "epsilon_plus": {},
    "epsilon_alpha2_beta1": {},
    "epsilon_plus_flat": {},
    "epsilon_alpha2_beta1_flat": {},
    "guided_backprop": {},
    "deconvnet": {},
}
CLASSES = torch.tensor([1, 3])


@pytest.mark.parametrize("build", few([vgg, resnet, mobilenet], resnet))
@pytest.mark.parametrize("name", COMPOSITES)
def test_agrees_with_zennit(name, build, zennit):
    gradients = name in ("guided_backprop", "deconvnet")
    if gradients and build is mobilenet:
        build = partial(mobilenet, nn.ReLU)  # zennit gives these two rules to nn.ReLU alone
    model, x = prepared(build, zennit)
    found = lrp_fx.convert(model, x, rules="attnlrp").explain(x, target=CLASSES, rules=name)
    with torch.no_grad():
        chosen = torch.eye(5, dtype=x.dtype)[CLASSES]
    composite = zennit.composites.COMPOSITES[name](
        canonizers=[zennit.canonizers.SequentialMergeBatchNorm()], **COMPOSITES[name]
    )
    with zennit.attribution.Gradient(model=model, composite=composite) as attributor:
        _, expected = attributor(x.clone(), (lambda out: chosen) if gradients else (lambda out: out * chosen))
    expected = x * expected if gradients else expected
    relevance = found.relevance["input"]
    assert float((relevance - expected).abs().max()) <= 1e-6 * float(expected.abs().max())
    assert found.ledger.balance < 1e-9


@pytest.mark.parametrize("name", COMPOSITES)
def test_forward_is_bit_equal_and_every_node_is_accounted_for(name, zennit):
    model, x = prepared(resnet, zennit)
    check = lrp_fx.convert(model, x, rules=name).verify(x)
    assert check.bit_equal
    assert check.passed


def layer_and_input():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    x[0, 2] = 0
    return layer, x


def explained(layer, x, rule):
    rules = {"base": "cp_lrp", "rules": {"dense": rule}}
    return lrp_fx.convert(layer, x, rules=rules).explain(x, target=lambda y: y.sum(-1)).relevance["input"]


def stable(z):
    return z + 1e-6 * torch.where(z >= 0, 1.0, -1.0)


def test_gamma_by_its_formula():
    """Montavon et al. 2019: x (w + gamma w+) over its sum, for inputs that are not negative."""
    layer, x = layer_and_input()
    x, w, b, gamma = x.abs(), layer.weight, layer.bias, 0.25
    parts = x[:, None] * (w + gamma * w.clamp(min=0))
    total = parts.sum(-1) + b + gamma * b.clamp(min=0)
    expected = (parts * (layer(x) / stable(total))[..., None]).sum(1)
    torch.testing.assert_close(explained(layer, x, {"rule": "gamma", "gamma": gamma}), expected, rtol=1e-10, atol=1e-12)


def test_generalised_gamma_by_its_formula():
    """For outputs above zero: x+ (w + gamma w+) and x- (w + gamma w-) over their sum; below zero the other way round."""
    layer, x = layer_and_input()
    w, b, gamma = layer.weight, layer.bias, 0.25
    y = layer(x)
    up, down = w + gamma * w.clamp(min=0), w + gamma * w.clamp(max=0)
    plus, minus = x.clamp(min=0)[:, None], x.clamp(max=0)[:, None]
    over = plus * up + minus * down, b + gamma * b.clamp(min=0)
    under = plus * down + minus * up, b + gamma * b.clamp(max=0)
    expected = sum(
        (parts * (torch.where(sign, y, 0.0) / stable(parts.sum(-1) + bias))[..., None]).sum(1)
        for (parts, bias), sign in ((over, y > 0), (under, y < 0))
    )
    found = explained(layer, x, {"rule": "generalised-gamma", "gamma": gamma})
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (2.0, 1.0), (1.5, 0.5)])
def test_alpha_beta_by_its_formula(alpha, beta):
    layer, x = layer_and_input()
    contributions, b, y = x[:, None] * layer.weight, layer.bias, layer(x)
    positive, negative = contributions.clamp(min=0), contributions.clamp(max=0)
    up = alpha * y / stable(positive.sum(-1) + b.clamp(min=0))
    down = beta * y / stable(negative.sum(-1) + b.clamp(max=0))
    expected = (positive * up[..., None] - negative * down[..., None]).sum(1)
    found = explained(layer, x, {"rule": "alpha-beta", "alpha": alpha, "beta": beta})
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    if beta == 0:
        torch.testing.assert_close(explained(layer, x, "z-plus"), expected, rtol=1e-10, atol=1e-12)


def test_rules_that_look_at_weights_alone_by_their_formulas():
    layer, x = layer_and_input()
    y, w = layer(x), layer.weight
    flat = (y / stable(torch.full_like(y, 6.0))).sum(-1, keepdim=True).expand(3, 6)
    torch.testing.assert_close(explained(layer, x, "flat"), flat, rtol=1e-10, atol=1e-12)
    square = (w.square() * (y / stable(w.square().sum(-1) + layer.bias.square()))[..., None]).sum(1)
    torch.testing.assert_close(explained(layer, x, "w-square"), square, rtol=1e-10, atol=1e-12)


def test_z_box_by_its_formula():
    layer, x = layer_and_input()
    low, high, w = -3.0, 2.5, layer.weight
    parts = x[:, None] * w - low * w.clamp(min=0) - high * w.clamp(max=0)
    expected = (parts * (layer(x) / stable(parts.sum(-1)))[..., None]).sum(1)
    found = explained(layer, x, {"rule": "z-box", "low": low, "high": high})
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


class Experts(nn.Module):
    """Weights of every kind: a matmul, an einsum, addmm."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(6, 6, dtype=torch.float64)) for _ in range(3))
        self.bias = nn.Parameter(torch.randn(6, dtype=torch.float64))

    def forward(self, x):
        return torch.addmm(self.bias, torch.einsum("bi,oi->bo", x @ self.a, self.b), self.c).sum(-1)


@pytest.mark.parametrize("rule", ["gamma", "generalised-gamma", "alpha-beta", "z-plus", "w-square", "flat"])
def test_weights_of_every_kind(rule):
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(3, 6, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules={"base": "cp_lrp", "rules": {"dense": rule}})
    assert xmodel.verify(x, target=lambda y: y).passed
    assert xmodel.explain(x, target=lambda y: y).ledger.balance < 1e-9


def test_layers_are_told_apart():
    """The first layer sees the input; projections of attention are not feed-forward layers."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            h = self.patch((x - 0.5) / 0.2).flatten(2).transpose(1, 2)
            n = self.norm(h)
            h = h + self.attention(n, n, n, need_weights=False)[0]
            return (h + self.down(torch.relu(self.up(h)))).sum((1, 2))

    x = torch.randn(2, 3, 8, 8)
    xmodel = lrp_fx.convert(Block().eval(), x, rules="attnlrp")
    layers = xmodel.current.under(xmodel.ruleset).plan.facts.layers
    roles = [layer.roles[0] for layer in layers.values()]
    assert roles == ["patch-embedding", "attention-projection", "attention-projection", "dense", "dense"]


#: layer -> shape of its input, whether it cuts the input into patches
EMBEDDINGS = {
    "patches": (nn.Conv2d(3, 8, 4, 4), (2, 3, 8, 8), True),
    "tubes": (nn.Conv3d(1, 4, (2, 4, 4), (2, 4, 4), bias=False), (2, 1, 4, 8, 8), True),
    "frames": (nn.Conv1d(2, 4, 5, 5, padding="valid"), (2, 2, 20), True),
    "windows that overlap": (nn.Conv2d(3, 8, 4, 2), (2, 3, 8, 8), False),
    "windows with gaps": (nn.Conv2d(3, 8, 2, 4), (2, 3, 8, 8), False),
    "padded": (nn.Conv2d(3, 8, 4, 4, padding=2), (2, 3, 8, 8), False),
    "dilated": (nn.Conv2d(3, 8, 2, 2, dilation=2), (2, 3, 8, 8), False),
    "by channel": (nn.Conv2d(3, 6, 4, 4, groups=3), (2, 3, 8, 8), False),
    "point by point": (nn.Conv2d(3, 8, 1), (2, 3, 4, 4), False),
    "transposed": (nn.ConvTranspose2d(3, 8, 2, 2), (2, 3, 4, 4), False),
    "dense": (nn.Linear(6, 8), (2, 6), False),
}


def test_a_convolution_without_a_stride_embeds_nothing():
    """conv_tbc: (steps, samples, channels)."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.randn(5))

        def forward(self, x):
            return torch.conv_tbc(x.transpose(0, 1).contiguous(), self.weight, self.bias, 1).relu().sum(0)

    x = torch.randn(2, 6, 4)
    xmodel = lrp_fx.convert(Net(), x)
    assert xmodel.explain(x, target=1).ledger.balance < 1e-5
    (layer,) = xmodel.current.under(xmodel.ruleset).plan.facts.layers.values()
    assert layer.roles == ("first-convolution", "first-layer", "convolution", "linear")


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_first_convolution_whose_windows_touch_embeds_patches(name):
    layer, shape, embeds = EMBEDDINGS[name]
    x = torch.randn(shape)
    second = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    second(x)
    for model, expected in (
        (second, embeds),
        (nn.Sequential(nn.Tanh(), *second), False),
    ):  # behind tanh: no first layer
        xmodel = lrp_fx.convert(model.eval(), x, rules="attnlrp")
        roles = next(iter(xmodel.current.under(xmodel.ruleset).plan.facts.layers.values())).roles
        assert ("patch-embedding" in roles) is expected
        assert ("first-convolution" in roles) is (model is second and name != "dense" and not embeds)


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "alpha-beta", "alpha": 2, "beta": 2},
        {"rule": "gamma", "beta": 1},
        {"rule": "z-box", "low": 1, "high": 2},
        {"rule": "gamma", "gamma": -1},
    ],
)
def test_parameters_are_checked(rule):
    with pytest.raises(RuleSetError):
        lrp_fx.RuleSet.load({"base": "attnlrp", "rules": {"convolution": rule}})


def dense_block(kind, norm, size):
    """Normalization over the batch, ReLU, layer, as in pre-activated residual and densely connected nets; and once more."""
    make = {"conv": lambda: nn.Conv2d(5, 5, 3, padding=1), "transposed": lambda: nn.ConvTranspose2d(5, 5, 2)}
    make["dense"] = lambda: nn.Linear(5, 5)
    model = nn.Sequential(make[kind](), norm(5), nn.ReLU(), make[kind](), norm(5)).double().eval()
    for module in model.modules():
        if isinstance(module, norm):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)  # of both signs
            nn.init.normal_(module.bias)
    return model[1:], torch.randn(3, 5, *size, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "norm", "size"),
    [("conv", nn.BatchNorm2d, (6, 6)), ("transposed", nn.BatchNorm2d, (6, 6)), ("dense", nn.BatchNorm1d, ())],
)
@pytest.mark.parametrize("rule", ["gamma", "generalised-gamma", "alpha-beta", "z-plus", "flat", "w-square"])
def test_a_normalization_in_front_of_a_relu_is_a_threshold(rule, kind, norm, size):
    """Conserves at every node; outputs stay bit-equal; the ledger closes."""
    torch.manual_seed(0)
    model, x = dense_block(kind, norm, size)
    rules = {"base": "cp_lrp", "rules": {"convolution": rule, "dense": rule, "first-layer": rule}}
    xmodel = lrp_fx.convert(model, x, rules=rules)
    target = lambda y: y.flatten(1).sum(-1)
    check = xmodel.verify(x, target=target)
    assert check.bit_equal and check.passed
    found = xmodel.explain(x, target=target)
    assert found.ledger.balance < 1e-12
    assert "rule" not in found.ledger


def test_a_threshold_by_its_formula():
    """z+ on relu(a z + b) seen as a (cut(z) - cut(0)) + relu(b), cut(z) = max(z, -b/a), or min(z, -b/a) for a < 0."""
    torch.manual_seed(0)
    norm, layer = nn.BatchNorm1d(5).double().eval(), nn.Linear(5, 3).double()
    norm.running_mean.normal_(0, 0.5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    model, z = nn.Sequential(norm, nn.ReLU(), layer), torch.randn(4, 5, dtype=torch.float64)
    rules = {"base": "cp_lrp", "rules": {"dense": "z-plus"}}
    found = lrp_fx.convert(model, z, rules=rules).explain(z, target=lambda y: y.sum(-1)).relevance["input"]
    a = norm.weight / (norm.running_var + norm.eps).sqrt()
    b = norm.bias - a * norm.running_mean

    def cut(value):
        return torch.where(a > 0, torch.maximum(value, -b / a), torch.minimum(value, -b / a))

    signal = cut(z) - cut(torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(a * signal + b.relu(), torch.relu(norm(z)))
    assert bool(((signal / z >= 0) & (signal / z <= 1)).all())
    parts = (signal[:, None] * (layer.weight * a)).clamp(min=0)
    total = parts.sum(-1) + (layer.bias + layer.weight @ b.relu()).clamp(min=0)
    expected = (parts * (model(z) / stable(total))[..., None]).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_grouped_experts_are_a_loop_of_linear_layers():
    """Experts computed together by one operator, and by a loop of linear layers, have the same relevance under gamma."""
    from models import build

    model, inputs = build("mixtral")
    rules = {"base": "attnlrp", "rules": {"dense": {"rule": "generalised-gamma", "gamma": 0.1}}}
    grouped = lrp_fx.convert(model, **inputs, rules=rules)
    looped = lrp_fx.convert(model, **inputs, rules=rules, capture="trace")
    ops = [{r.op for r in x.report().rows if r.role == "linear"} for x in (grouped, looped)]
    assert any("grouped" in op for op in ops[0]) and not any("grouped" in op for op in ops[1])
    a, b = (x.explain(**inputs).relevance["input_ids"] for x in (grouped, looped))
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)
