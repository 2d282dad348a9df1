"""Attention masks: those that follow from sizes become the kernel's own, all others stay."""

from __future__ import annotations

import pytest
import torch
from models import build
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attention

import lrp_fx

FUSED = torch.ops.aten.scaled_dot_product_attention.default


class Masked(nn.Module):
    """Attention under a mask that a function of (queries, keys, x) spells."""

    def __init__(self, mask) -> None:
        super().__init__()
        self.mask = mask
        self.project = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unsqueeze(1).chunk(3, -1)
        positions = torch.arange(x.shape[1])
        return attention(q, k, v, attn_mask=self.mask(positions[:, None], positions[None], x)).sum((1, 2))


def _bias(seen: Tensor, like: Tensor) -> Tensor:
    return torch.where(seen, 0.0, float("-inf")).to(like.dtype)


KINDS = {
    "causal": (lambda q, k, x: k <= q, "causal"),
    "causal bias": (lambda q, k, x: _bias(k <= q, x), "causal"),
    "causal, over samples": (lambda q, k, x: (k <= q).expand(x.shape[0], 1, -1, -1), "causal"),
    "hides nothing": (lambda q, k, x: _bias((k <= q) | (k > q), x), "whole"),
    "narrow window": (lambda q, k, x: (k <= q) & (q - k < 3), None),
    "wide window": (lambda q, k, x: (k <= q) & (q - k < 4096), None),
    "anticausal": (lambda q, k, x: k >= q, None),
    "distances": (lambda q, k, x: (k - q).abs().to(x.dtype), None),
    "values": (lambda q, k, x: (k <= q) & (x.sum(-1)[:, None, None] < 1e9), None),
}


def _kinds(xmodel: lrp_fx.ExplainableModule) -> set[str | None]:
    found = set()
    for node in xmodel.graph_module.graph.nodes:
        if node.target is FUSED:
            masked = len(node.args) > 3 or "attn_mask" in node.kwargs
            found.add(None if masked else "causal" if node.kwargs.get("is_causal") else "whole")
    return found


@pytest.mark.parametrize("name", KINDS)
def test_only_masks_that_hold_at_every_size_are_replaced(name: str) -> None:
    torch.manual_seed(0)
    mask, kind = KINDS[name]
    model = Masked(mask).double().eval()
    xmodel = lrp_fx.convert(model, torch.randn(2, 5, 8, dtype=torch.float64))
    assert _kinds(xmodel) == {kind}
    for batch, length in ((1, 3), (3, 17)):
        x = torch.randn(batch, length, 8, dtype=torch.float64)
        assert torch.allclose(xmodel(x), model(x), atol=1e-14)


@pytest.mark.parametrize(
    ("name", "kind"), [("llama2", "causal"), ("gpt2", "causal"), ("bert-classifier", "whole"), ("mistral", None)]
)
def test_models(name: str, kind: str | None) -> None:
    model, inputs = build(name)
    assert _kinds(lrp_fx.convert(model, **inputs)) == {kind}


def test_a_mask_that_is_given_is_kept() -> None:
    model, inputs = build("llama2")
    xmodel = lrp_fx.convert(model, **inputs, attention_mask=torch.ones(2, 7, dtype=torch.long))
    assert _kinds(xmodel) == {None}


def test_relevance_under_the_kernels_mask_is_that_under_the_spelled_one() -> None:
    model, inputs = build("llama2")
    short = lrp_fx.convert(model, **inputs).explain(**inputs, target=(3, 5)).relevance["input_ids"]
    seen = torch.ones(2, 7, dtype=torch.long)
    spelled = lrp_fx.convert(model, **inputs, attention_mask=seen)
    long = spelled.explain(**inputs, attention_mask=seen, target=(3, 5)).relevance["input_ids"]
    assert (short - long).abs().max() < 1e-12 * long.abs().max()
