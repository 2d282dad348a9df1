"""zennit-crp 0.6.0 (with zennit 0.4.6): conditional attributions are its own, with masks at latents and beside a skip."""

import pytest
import torch
from crp.attribution import AttributionGraph
from crp.attribution import CondAttribution as Theirs
from crp.concepts import ChannelConcept
from crp.graph import trace_model_graph
from torch import nn
from zennit.composites import EpsilonPlus
from zennit.layer import Sum

from lrp_fx.errors import InputError, LatentError, RuleSetError
from lrp_fx.integrations.zennit_crp import CondAttribution

EPSILON = {"rule": "epsilon", "epsilon": 1e-6}
RULES = {  # zennit's EpsilonPlus, whose parameters can be read from zennit 0.5 on
    "name": "EpsilonPlus", "base": "cp_lrp", "conserves": False,
    "rules": {"linear": EPSILON, "dense": EPSILON, "convolution": {"rule": "z-plus", "epsilon": 1e-6}},
}  # fmt: skip


class Net(nn.Module):
    """Convolutions with a skip around the second one."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.Conv2d(6, 8, 3),
        )
        self.acts = nn.ModuleList([nn.ReLU(), nn.ReLU(), nn.ReLU()])
        self.join, self.head = Sum(), nn.Linear(8 * 6 * 6, 4)

    def forward(self, x):
        h = self.acts[0](self.first(x))
        h = self.join(torch.stack([h, self.acts[1](self.second(h))], -1))
        return self.head(self.acts[2](self.third(h)).flatten(1))


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    model = Net().double().eval()
    return Theirs(model), CondAttribution(model, rules=RULES), EpsilonPlus()


def data(count):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(found, expected):
    scale = float(expected.abs().max()) or 1.0
    assert found.shape == expected.shape and float((found - expected).abs().max()) <= 1e-6 * scale


CASES = {
    "output alone": ([{"y": [1]}, {"y": [3]}], {}),
    "several outputs": ([{"y": [1, 2]}, {"y": [0, 3]}], {"exclude_parallel": False}),
    "one channel": ([{"y": [1], "third": [2]}, {"y": [3], "third": [5, 6]}], {}),
    "beside the skip": ([{"y": [1], "second": [2, 4]}, {"y": [3], "second": [0]}], {}),
    "with the skip": ([{"y": [1], "second": [2, 4]}, {"y": [3], "second": [0]}], {"exclude_parallel": False}),
    "two layers": ([{"y": [1], "third": [1, 2], "second": [3]}, {"y": [2], "third": [0, 7], "second": [1]}], {}),
    "from a layer": ([{"third": [1, 4]}, {"third": [3]}], {"start_layer": "third"}),
    "given relevance": ([{"y": [1], "third": [1]}, {"y": [2], "third": [0]}], {"init_rel": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_zennit_crp(pair, name):
    theirs, ours, composite = pair
    conditions, options = CASES[name]
    expected = theirs(data(2).requires_grad_(), conditions, composite, record_layer=["first"], **options)
    found = ours(data(2), conditions, record_layer=["first"], **options)
    close(found.heatmap, expected.heatmap)
    close(found.prediction, expected.prediction.detach())
    assert found.relevances.keys() == expected.relevances.keys()
    twice = 2 if options.get("exclude_parallel", True) and "start_layer" not in options else 1
    for layer, relevance in expected.relevances.items():  # zennit-crp adds up two passes at the layer of a condition
        close(found.relevances[layer] * (twice if layer in conditions[0] else 1), relevance)
        close(found.activations[layer], expected.activations[layer])


def test_one_sample_under_every_channel_adds_up_and_its_graph_is_theirs(pair):
    theirs, ours, composite = pair
    channels = [{"y": [1], "third": [c]} for c in range(8)]
    parts = torch.cat([part.heatmap for part in ours.generate(data(1), channels, batch_size=3)])
    close(parts.sum(0), ours(data(1), [{"y": [1]}]).heatmap[0])
    layers = {"third": ChannelConcept(), "second": ChannelConcept(), "first": ChannelConcept()}
    graph = trace_model_graph(theirs.model, data(1), list(layers))
    how = {"concept_id": 2, "layer_name": "third", "target": 1, "width": [2, 1], "verbose": False}
    one, other = (
        AttributionGraph(a, graph, layers)(data(1).requires_grad_(), rules, **how)
        for a, rules in ((ours, None), (theirs, composite))
    )
    assert one.nodes == other.nodes and one.connections.keys() == other.connections.keys()


def test_samples_of_one_call_may_have_conditions_at_other_layers(pair):
    _, ours, _ = pair
    conditions = [{"y": [1], "third": [1]}, {"y": [2]}, {"y": [3], "second": [2]}]
    together = ours(data(3), conditions).heatmap
    for row, condition in enumerate(conditions):
        close(together[row : row + 1], ours(data(3)[row : row + 1], [condition]).heatmap)


def test_errors(pair):
    _, ours, composite = pair
    with pytest.raises(RuleSetError, match="rules of zennit before"):
        ours(data(1), [{"y": [1]}], composite)
    with pytest.raises(InputError, match="give 'y' in every condition"):
        ours(data(1), [{"third": [1]}])
    with pytest.raises(LatentError, match="fourth"):
        ours(data(1), [{"y": [1], "fourth": [1]}])
