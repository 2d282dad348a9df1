"""The last attention is asked at explained positions only, whoever chooses them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import build, few
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

import lrp_fx
from lrp_fx.operators.table import OpTable
from lrp_fx.passes.hoist_slices import drop_whole_slices
from lrp_fx.passes.narrow_queries import narrow_queries

FUSED = torch.ops.aten.scaled_dot_product_attention.default
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default: 0,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default: 1,
}
MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "largest": ("llama2", {}, {}),
    "class": ("llama2", {}, {"target": 7}),
    "position": ("llama2", {}, {"target": (3, 7)}),
    "position from behind": ("llama2", {}, {"target": (-2, 7)}),
    "kept by the model": ("llama2", {"logits_to_keep": 1}, {"target": 7}),
    "some kept by the model": ("llama2", {"logits_to_keep": 3}, {"target": (0, 7)}),
    "padded": ("llama2", {"attention_mask": MASK}, {"target": 7}),
    "grouped queries": ("qwen2", {}, {"target": (3, 7)}),
    "window": ("mistral", {}, {"target": (3, 7)}),
    "bias by distance": ("flan-t5", {}, {"target": (2, 7)}),
    "class token": ("vit", {}, {"target": 1}),
    "pooled token": ("bert-classifier", {"attention_mask": MASK}, {"target": 1}),
}


ATTENTIONS = {
    "llama2": "model.layers.1.self_attn",
    "vit": "vit.layers.1.attention",
    "bert-classifier": "bert.encoder.layer.1.attention.self",
}


def _queries(graph_module: torch.fx.GraphModule) -> list[str]:
    """Number of queries of every attention, forward and backward."""
    found = []
    for node in graph_module.graph.nodes:
        if node.target in ATTENTION:
            found.append(str(node.args[ATTENTION[node.target]].meta["val"].shape[2]))
    return found


@pytest.mark.parametrize("name", few(CASES, "largest", "position from behind", "padded", "class token"))
def test_only_chosen_queries_are_asked(name: str) -> None:
    which, extra, how = CASES[name]
    model, inputs = build(which)
    inputs = {**inputs, **extra}
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    lowered = xmodel.lower(**inputs, **how)
    queries = _queries(lowered.graph_module)
    every = sum(n.target is FUSED for n in xmodel.graph_module.graph.nodes)
    few = {"1"} if name != "some kept by the model" else {"3", "1"}
    assert len(queries) == 2 * every  # nothing is computed twice
    assert sum(q in few for q in queries) == 2  # the last attention, forward and backward
    eager, fast = xmodel.explain(**inputs, **how), lowered(**inputs, **how)
    for source, relevance in eager.relevance.items():
        assert (fast.relevance[source] - relevance).abs().max() <= 1e-10 * relevance.abs().max()


@pytest.mark.slow
def test_other_sizes() -> None:
    model, inputs = build("llama2")
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])  # without it, one sample is another graph
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    lowered = xmodel.lower(**inputs, target=(3, 7))
    for batch, length in ((1, 4), (3, 11)):
        ids = torch.randint(3, 99, (batch, length))
        call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        position = torch.arange(batch) % length
        eager = xmodel.explain(**call, target=(position, 5)).relevance["input_ids"]
        fast = lowered(**call, target=(position, 5)).relevance["input_ids"]
        assert (fast - eager).abs().max() <= 1e-10 * eager.abs().max()


@pytest.mark.parametrize(("which", "target"), few([("llama2", (3, 7)), ("bert-classifier", 1)], ("bert-classifier", 1)))
def test_a_position_that_others_read_is_left(which: str, target: Any) -> None:
    model, inputs = build(which)
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    at = ATTENTIONS[which]
    lowered = xmodel.lower(**inputs, target=target, at=at)
    assert "1" not in _queries(lowered.graph_module)
    eager, fast = xmodel.explain(**inputs, target=target, at=at), lowered(**inputs, target=target)
    for path, latent in eager.latents.items():
        assert latent.abs().sum() > 0
        assert (fast.latents[path] - latent).abs().max() <= 1e-10 * latent.abs().max()


@pytest.mark.parametrize(
    "name", few(["kept by the model", "some kept by the model", "class token", "pooled token"], "class token")
)
def test_what_the_model_chooses_itself_is_not_computed_elsewhere_in_eager_sweeps_either(name: str) -> None:
    """The last attention is asked in full where its output is, too; relevance and outputs are the same."""
    which, extra, how = CASES[name]
    model, inputs = build(which)
    inputs = {**inputs, **extra}
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    specialization, _ = xmodel.specialization((), inputs)

    def asked(*at: str) -> list[str]:
        graph = specialization.sweeper(xmodel.ruleset, at).swept.graph
        return [str(n.args[0].meta["val"].shape[2]) for n in graph.nodes if n.target is FUSED]

    few = {"1", "3"}
    assert sum(q in few for q in asked()) == 1
    assert sum(q in few for q in asked(ATTENTIONS[which])) == 0
    found, full = xmodel.explain(**inputs, **how), xmodel.explain(**inputs, **how, at=ATTENTIONS[which])
    assert (found.target - full.target).abs().max() <= 1e-12 * full.target.abs().max()
    for source, relevance in full.relevance.items():
        assert (found.relevance[source] - relevance).abs().max() <= 1e-10 * relevance.abs().max()
    for given, expected in zip(tree_leaves(found.output), tree_leaves(full.output), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("constant", [False, True])
def test_attention_that_is_held_constant_stays_so(constant):
    """A detach in the way says that no relevance goes back: the choice must not be moved in front of it."""

    def run(query, key, value):
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return (mixed.detach() if constant else mixed).flatten(2)[:, 3:4]

    inputs = [torch.randn(2, 4, 7, 8) for _ in range(3)]
    graph_module = make_fx(run, tracing_mode="fake", pre_dispatch=True)(*inputs)
    graph = graph_module.graph
    drop_whole_slices(graph)
    (choice,) = (n for n in graph.nodes if n.target is torch.ops.aten.slice.Tensor)
    narrow_queries(graph, OpTable.shipped(), choice)
    graph.lint()
    graph_module.recompile()
    (fused,) = (n for n in graph.nodes if n.target is FUSED)
    assert fused.args[0].meta["val"].shape[2] == (7 if constant else 1)
    torch.testing.assert_close(graph_module(*inputs), run(*inputs))
