"""Parts of one tensor are different signals: q / |k| is no normalization, whether q and k are one layer or two."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lrp_fx

#: functions of queries, keys and values, (2, 5, 4) each
PARTS = {
    "a mean": lambda q, k, v: q * k.mean(1, keepdim=True) + v,
    "a maximum": lambda q, k, v: q * k.amax(1, keepdim=True) + v,
    "a gate": lambda q, k, v: q * torch.sigmoid(k.mean(1, keepdim=True)) + v,
    "a norm": lambda q, k, v: q / k.norm(dim=-1, keepdim=True) + v,
    "a sum of products": lambda q, k, v: v * (q * k).sum(-1, keepdim=True),
    "a norm of a sum": lambda q, k, v: q / (k + v).norm(dim=-1, keepdim=True),
    "its own norm": lambda q, k, v: q / q.norm(dim=-1, keepdim=True) + k * v,
    "a norm of a difference": lambda q, k, v: (q - k) / (q - k).norm(dim=-1, keepdim=True) + v,
}


class Attention(nn.Module):
    def __init__(self, function, split):
        super().__init__()
        self.layer, self.head, self.function, self.split = nn.Linear(4, 12), nn.Linear(4, 2), function, split

    def forward(self, x):
        return self.head(self.function(*self.split(self.layer, x))).mean(1)


def layers(layer, x):
    return [F.linear(x, w, b) for w, b in zip(layer.weight.chunk(3), layer.bias.chunk(3), strict=True)]


SPLITS = {
    "chunks": lambda layer, x: layer(x).chunk(3, -1),
    "slices": lambda layer, x: [layer(x)[..., i : i + 4] for i in (0, 4, 8)],
    "rows": lambda layer, x: layer(x).view(2, 5, 3, 4).unbind(2),
}


@pytest.mark.parametrize("rules", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", PARTS)
def test_parts_of_one_layer_are_like_outputs_of_several(name, rules):
    x, found = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), {}
    for how, split in {"layers": layers, **SPLITS}.items():
        torch.manual_seed(0)
        found[how] = lrp_fx.convert(Attention(PARTS[name], split).double(), x, rules=rules).explain(x, target=1)
    for how in SPLITS:
        torch.testing.assert_close(found[how].relevance["x"], found["layers"].relevance["x"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["a whole", "a part of it"])
def test_a_statistic_of_the_whole_or_of_the_same_part_is_constant(name):
    """x / |x| with either side a slice is a normalization, as before."""
    functions = {
        "a whole": lambda x: x[:, :2] / x.norm(dim=-1, keepdim=True),
        "a part of it": lambda x: x / x[:, :2].norm(dim=-1, keepdim=True),
    }

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4).double()

        def forward(self, x):
            return functions[name](self.layer(x))

    x = torch.randn(3, 4, dtype=torch.float64)
    roles = [row.role for row in lrp_fx.convert(Model(), x).report().rows]
    assert "normalization" in roles and "bilinear" not in roles
