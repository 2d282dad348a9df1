"""The generalised gamma rule in two products: the definition by contributions, in every way of explaining."""

import pytest
import torch
from torch import nn

import lrp_fx

GAMMA = 0.3
RULES = {
    "base": "attnlrp",
    "rules": {r: {"rule": "generalised-gamma", "gamma": GAMMA} for r in ("dense", "convolution")},
}


def by_contributions(x, weight, bias, relevance, epsilon=1e-6):
    """R_j of x for a dense layer, contribution by contribution (Andeol et al. 2021)."""
    parts = x[:, None, :] * weight  # (samples, outputs, inputs)
    z = parts.sum(-1) + bias
    favoured = torch.where(z[..., None] > 0, parts.clamp(min=0), parts.clamp(max=0))
    whole = torch.where(z > 0, bias.clamp(min=0), bias.clamp(max=0)) + favoured.sum(-1)
    divisor = z + GAMMA * whole
    return ((parts + GAMMA * favoured) / (divisor + epsilon * divisor.sign())[..., None] * relevance[..., None]).sum(1)


@pytest.mark.parametrize("sign", ["any", "not negative"])
def test_a_dense_layer_agrees_with_the_definition(sign):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    x = x.abs() if sign == "not negative" else x
    attribution = lrp_fx.convert(model, x).explain(x, target=2, rules=RULES, at=["0", "1"])
    hidden = model[:2](x)
    output = model(x)
    relevance = torch.zeros_like(output)
    relevance[:, 2] = output[:, 2]
    inner = by_contributions(hidden, model[2].weight, model[2].bias, relevance)
    torch.testing.assert_close(attribution.latents["1"], inner.detach(), rtol=1e-12, atol=1e-14)
    outer = by_contributions(x, model[0].weight, model[0].bias, inner)  # tanh hands on all that it gets
    torch.testing.assert_close(attribution.relevance["input"], outer.detach(), rtol=1e-12, atol=1e-14)
    assert attribution.ledger.balance < 1e-12


class Net(nn.Module):
    """Convolutions, the first between two batch norms (one of them behind a threshold), and a dense layer."""

    def __init__(self):
        super().__init__()
        self.enter, self.first, self.norm = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 6, 3, groups=2), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(
            torch.sigmoid(self.second(torch.relu(self.norm(self.first(torch.relu(self.enter(x))))))).mean((2, 3))
        )


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = Net().eval()
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    for tensor in (*model.parameters(), *buffers):
        tensor.data += 0.2 * torch.rand_like(tensor)
    return model


def test_a_layer_runs_twice_and_no_more(net):
    model = net.double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules=RULES)
    targets = [n.target for n in xmodel.graph_module.graph.nodes]
    assert targets.count(torch.ops.aten.linear.default) == 2
    # where a batch norm is folded in from the front, what it adds is one run more, and the layer as it is another
    assert targets.count(torch.ops.aten.conv2d.default) == 2 + 4


def test_every_way_of_explaining_agrees(net):
    model = net.double()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules=RULES)
    plain = xmodel.explain(x, target=1)
    assert plain.ledger.balance < 1e-12
    ways = {
        "low memory": xmodel.explain(x, target=1, memory="low").relevance["x"],
        "one of many": xmodel.explain(x, targets=[0, 1]).relevance["x"][1],
        "lowered": xmodel.lower(x, target=1)(x, target=1).relevance["x"],
        "one sample": torch.cat([xmodel.explain(s[None], target=1).relevance["x"] for s in x]),
    }
    for relevance in ways.values():
        torch.testing.assert_close(relevance, plain.relevance["x"], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_cancels_nothing(net, dtype):
    """Sums and maps of the float64 model with the same rounded weights."""
    half = net.to(dtype)
    x = torch.randn(2, 3, 8, 8).to(dtype)
    rounded = lrp_fx.convert(half, x, rules=RULES).explain(x, target=1).relevance["x"].double()
    exact = lrp_fx.convert(net.double(), x.double(), rules=RULES).explain(x.double(), target=1).relevance["x"]
    net.double()
    scale = exact.abs().sum()
    assert (rounded - exact).sum().abs() < 0.02 * scale
    assert torch.corrcoef(torch.stack([rounded.flatten(), exact.flatten()]))[0, 1] > 0.999


@pytest.mark.parametrize("rule", ["generalised-gamma", "z-plus", "alpha-beta", "epsilon"])
def test_a_batch_norm_behind_a_nonlinearity_is_linear_and_no_part_of_it(rule):
    """What it shifts by is a bias: as part of tanh it would be no function through 0, and stop the relevance of the
    layer behind it, which folds it in."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 3, 3), nn.Flatten())
    model = model.double().eval()
    for tensor in (*model.parameters(), model[2].running_mean, model[2].running_var):
        tensor.data += 0.2 * torch.rand_like(tensor)
    x = torch.randn(2, 2, 8, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules={"base": "attnlrp", "rules": {"convolution": rule}})
    attribution = xmodel.explain(x, target=1)
    assert "batch_norm" in " ".join(r.op for r in xmodel.report().rows if r.role == "linear")
    assert attribution.ledger.balance < 1e-12 and bool(attribution.relevance["input"].any())


@pytest.mark.parametrize("rule", ["generalised-gamma", "z-plus", "alpha-beta"])
def test_a_batch_norm_of_what_a_relu_yields_is_no_threshold(rule):
    """Relevance of the entries that are 0 would end at the ReLU."""
    torch.manual_seed(0)
    layers = (nn.Conv1d(2, 4, 3), nn.ReLU(), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 3, 3), nn.Flatten())
    model = nn.Sequential(*layers).double().eval()
    for tensor in (*model.parameters(), model[2].running_mean, model[2].running_var):
        tensor.data += 0.2 * torch.rand_like(tensor)
    x = torch.randn(2, 2, 8, dtype=torch.float64)
    attribution = lrp_fx.convert(model, x, rules={"base": "attnlrp", "rules": {"convolution": rule}}).explain(
        x, target=1
    )
    assert attribution.ledger.balance < 1e-12 and bool(attribution.relevance["input"].any())


class Dense(nn.Module):
    """As in a DenseNet: a batch norm of channels that a ReLU yields beside channels of any sign."""

    def __init__(self, pooled):
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.norm, self.last, self.pooled = nn.BatchNorm1d(8), nn.Conv1d(8, 3, 3), pooled

    def forward(self, x):
        rectified = self.first(x).relu()
        if self.pooled:
            rectified = nn.functional.max_pool1d(rectified, 3, 1, 1)
        both = torch.cat([rectified, self.second(rectified)], 1)
        return self.last(self.norm(both).relu()).flatten(1)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("rule", ["generalised-gamma", "z-plus", "alpha-beta"])
def test_a_batch_norm_that_reads_a_relu_among_others_is_no_threshold(rule, pooled):
    torch.manual_seed(0)
    model = Dense(pooled).double().eval()
    for tensor in (*model.parameters(), model.norm.running_mean, model.norm.running_var):
        tensor.data += 0.2 * torch.rand_like(tensor)
    x = torch.randn(2, 2, 8, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules={"base": "attnlrp", "rules": {"convolution": rule}})
    attribution = xmodel.explain(x, target=1, check="always")
    assert attribution.ledger.balance < 1e-12 and bool(attribution.relevance["x"].any())


class PreActivated(nn.Module):
    """Batch norm and ReLU in front of every convolution, which reads a sum: as in a pre-activated ResNet or a DPN."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.Linear(6, 4)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(4))
        self.layers = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(4))

    def forward(self, x):
        h = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + layer(norm(h).relu())
        return self.head(h.mean((2, 3)))


@pytest.fixture
def pre_activated():
    torch.manual_seed(0)
    model = PreActivated().eval()
    for norm in model.norms:
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data += torch.randn_like(tensor).mul(0.3) if tensor is not norm.running_var else torch.rand(6)
    x = torch.randn(2, 1, 12, 12)
    x[..., :7] = 0  # a background: what the stem yields there is 0
    return model, x


@pytest.mark.parametrize("rules", ["default", "vit_gamma", "attnlrp"])
def test_a_tensor_that_is_0_in_front_of_a_threshold_has_no_relevance(pre_activated, rules):
    """The value of the threshold at 0 is a constant, not relevance of a sum that is 0, where it would end."""
    model, x = pre_activated
    attribution = lrp_fx.convert(model, x).explain(x, target=1, rules=rules, check="always", at="stem")
    zero = model.stem(x) == 0
    assert bool(zero.any()) and not bool(attribution.latents["stem"][zero].any())
    assert attribution.ledger.balance < 1e-5
    assert abs(attribution.ledger["stabiliser"]) < 1e-4 * attribution.relevance["x"].abs().sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rules", ["default", "epsilon_plus", "vit_gamma"])
def test_thresholds_in_half_precision(pre_activated, dtype, rules):
    model, x = pre_activated
    for norm in model.norms:
        norm.weight.data[0] = 0  # a threshold beyond the largest number
    half = model.to(dtype)
    rounded = lrp_fx.convert(half, x.to(dtype)).explain(x.to(dtype), target=1, rules=rules).relevance["x"].double()
    x = x.to(dtype).double()
    exact = lrp_fx.convert(model.double(), x).explain(x, target=1, rules=rules).relevance["x"]
    assert (rounded - exact).sum().abs() < 0.02 * exact.abs().sum()
    assert torch.corrcoef(torch.stack([rounded.flatten(), exact.flatten()]))[0, 1] > 0.995


class MixedHeads(nn.Module):
    """Scores of heads, masked and then mixed by a convolution, in which the smallest number overflows."""

    def __init__(self, smallest):
        super().__init__()
        self.smallest = smallest
        self.mix, self.value = nn.Conv2d(2, 2, 1), nn.Linear(4, 2)
        self.mix.weight.data = torch.tensor([[1.5, 1.2], [1.1, 1.4]]).view(2, 2, 1, 1)

    def forward(self, x):
        heads = x.unflatten(-1, (2, 2)).transpose(1, 2)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = self.mix((heads @ heads.mT).masked_fill(later, self.smallest))
        return (scores.softmax(-1) @ self.value(x)[:, None]).mean((1, 2))


@pytest.mark.parametrize("rules", ["default", "attnlrp", "epsilon_plus", "epsilon_gamma_box"])
def test_outputs_that_are_infinite_and_masked_have_no_relevance(rules):
    torch.manual_seed(0)
    finite = MixedHeads(-1e12).double()
    infinite = MixedHeads(torch.finfo(torch.float64).min).double()
    infinite.load_state_dict(finite.state_dict())
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    relevance = [lrp_fx.convert(model, rules=rules).explain(x).relevance["x"] for model in (finite, infinite)]
    assert relevance[0].abs().sum() > 0
    torch.testing.assert_close(*relevance, rtol=1e-12, atol=1e-14)
