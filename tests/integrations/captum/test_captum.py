"""captum 0.9: our LRP in its calls, its smoothing, its metrics and its plots."""

import pytest
import torch
from captum.attr import InputXGradient, NoiseTunnel, visualization
from captum.metrics import infidelity, sensitivity_max
from torch import nn

import lrp_fx
from lrp_fx.errors import LatentError
from lrp_fx.integrations.captum import LRP, LayerLRP

CLASSES = [1, 3]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), nn.GELU(), nn.Linear(4 * 6 * 6, 5)

    def forward(self, x, scale=1.0):
        return self.head(self.act(self.conv(x)).flatten(1)) * scale


@pytest.fixture
def net():
    return Net().double().eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8, dtype=torch.float64)


def test_attribute_is_explain_and_the_delta_is_what_inputs_lack(net, x):
    method = LRP(net, rules="attnlrp")
    attributions, delta = method.attribute(x, target=CLASSES, return_convergence_delta=True)
    expected = lrp_fx.convert(net, rules="attnlrp").explain(x, target=torch.tensor(CLASSES))
    assert torch.equal(attributions, expected.relevance["x"])
    torch.testing.assert_close(delta, net(x)[range(2), CLASSES] - attributions.flatten(1).sum(1))
    torch.testing.assert_close(method.compute_convergence_delta(attributions, expected.target), delta)
    plain = InputXGradient(method.model).attribute(x.clone().requires_grad_(), target=CLASSES)
    torch.testing.assert_close(attributions, plain, rtol=1e-9, atol=1e-12)


def test_targets_of_every_kind(x):
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x):
            return self.conv(x)

    method = LRP(Pixels().double(), rules="gradient")
    single = method.attribute(x, target=(2, 1, 4))
    listed = method.attribute(x, target=[(2, 1, 4), (0, 3, 3)])
    assert torch.equal(single[0], listed[0]) and not torch.equal(single[1], listed[1])
    assert torch.equal(listed[1], method.attribute(x, target=(0, 3, 3))[1])


def test_tuples_and_further_arguments(net, x):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(6, 3)

        def forward(self, a, b, weight, flip):
            return (self.a(a) + self.b(b)) * weight * (-1 if flip else 1)

    a, b, weight = torch.randn(2, 4), torch.randn(2, 6), torch.tensor(2.0)
    found = LRP(Two(), rules="gradient").attribute((a, b), target=0, additional_forward_args=(weight, True))
    assert isinstance(found, tuple) and [tuple(t.shape) for t in found] == [(2, 4), (2, 6)]
    doubled = LRP(net).attribute(x, 1, torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(doubled, 2 * LRP(net).attribute(x, 1, torch.tensor(1.0, dtype=torch.float64)))


def test_layers(net, x):
    expected = lrp_fx.convert(net).explain(x, target=1, at=["act", "head@input"])
    by_path, delta = LayerLRP(net, "act").attribute(x, 1, return_convergence_delta=True)
    assert torch.equal(by_path, expected.latents["act"]) and torch.equal(
        LayerLRP(net, net.act).attribute(x, 1), by_path
    )
    torch.testing.assert_close(delta, expected.target - by_path.flatten(1).sum(1))
    several = LayerLRP(net, ["act", net.head]).attribute(x, 1)
    assert torch.equal(several[0], by_path) and several[1].shape == (2, 5)
    inside = LayerLRP(net, net.head).attribute(x, 1, attribute_to_layer_input=True)
    assert torch.equal(inside, expected.latents["head@input"])
    with pytest.raises(LatentError):
        LayerLRP(net, nn.Linear(2, 2))


def test_smoothing_metrics_and_plots_of_captum(net, x):
    method = LRP(net)
    smooth = NoiseTunnel(method).attribute(x, nt_samples=3, stdevs=0.01, target=1)
    assert torch.nn.functional.cosine_similarity(smooth.flatten(), method.attribute(x, target=1).flatten(), 0) > 0.9
    assert bool((sensitivity_max(method.attribute, x, n_perturb_samples=2, target=1) < 1).all())

    def moved(inputs):
        noise = 0.01 * torch.randn_like(inputs)
        return noise, inputs - noise

    assert bool(infidelity(method.model, moved, x, method.attribute(x, target=1) / x, target=1).isfinite().all())
    picture = method.attribute(x, target=1)[0].permute(1, 2, 0).numpy()
    figure, _ = visualization.visualize_image_attr(picture, sign="all", use_pyplot=False)
    assert figure.axes


def test_token_ids_get_a_number_each():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    ids = torch.tensor([[1, 5, 3], [2, 2, 0]])
    found, delta = LRP(model).attribute(ids, 1, return_convergence_delta=True)
    assert found.shape == (2, 3)
    torch.testing.assert_close(found.sum(1) + delta, model(ids)[:, 1])
