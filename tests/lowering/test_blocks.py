"""Repeated blocks: found in the graph alone, and run again instead of remembered."""

import pytest
import torch
import transformers as tf
from models import TEXT, few, ids
from torch import nn

import lrp_fx
from lrp_fx.lowering.blocks.compile import once_per_block
from lrp_fx.lowering.blocks.find import find_blocks

DEEP = {**TEXT, "num_hidden_layers": 4, "hidden_size": 16, "intermediate_size": 32}


def deep(name):
    torch.manual_seed(0)
    if name == "t5":
        config = tf.T5Config(
            d_model=16, d_kv=4, d_ff=32, num_layers=4, num_heads=4, vocab_size=100, decoder_start_token_id=0
        )
        return tf.T5ForConditionalGeneration(config), {"input_ids": ids(), "decoder_input_ids": ids(2, 5)}
    if name == "gemma3":  # two kinds of layers, one after the other
        config = tf.Gemma3TextConfig(**{**DEEP, "num_key_value_heads": 2}, head_dim=4, sliding_window=4,
                                     layer_types=["sliding_attention", "full_attention"] * 2)  # fmt: skip
        return tf.Gemma3ForCausalLM(config), {"input_ids": ids()}
    if name == "vit":
        config = tf.ViTConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
        )
        return tf.ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 16, 16)}
    return tf.LlamaForCausalLM(tf.LlamaConfig(**DEEP)), {"input_ids": ids()}


@pytest.fixture(scope="module", params=few(["llama", "t5", "gemma3", "vit"], "llama"))
def case(request):
    model, inputs = deep(request.param)
    model = model.double().eval()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    return request.param, lrp_fx.convert(model, **inputs), inputs


def saved(explain):
    """Entries that one explanation keeps for the way back, checkpointed blocks aside."""
    sizes = {}

    def pack(t):
        sizes[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = explain()
    return sum(sizes.values()), result


def test_low_memory_gives_the_same_relevance_and_remembers_less(case):
    name, xmodel, inputs = case
    at = "*layer*.3.mlp" if name in ("llama", "gemma3") else ()
    weights = sum(p.numel() for p in xmodel.model.parameters())
    normal, expected = saved(lambda: xmodel.explain(**inputs, at=at))
    low, found = saved(lambda: xmodel.explain(**inputs, at=at, memory="low"))
    for key, value in expected.relevance.items():
        # the head runs at one position in the one and at all in the other: products differ in their last bits
        torch.testing.assert_close(found.relevance[key], value, rtol=1e-12, atol=1e-15)
    assert found.latents.keys() == expected.latents.keys()
    for key, value in expected.latents.items():
        assert torch.equal(found.latents[key], value)
    assert found.ledger.balance < 1e-9
    assert low < normal - 0.25 * (normal - weights if normal > weights else normal)


def test_the_blocks_are_the_layers(case):
    name, xmodel, _ = case
    graph = xmodel.current.sweeper(xmodel.ruleset, ()).tapped.graph
    stacks = [stack for stack in find_blocks(graph) if len(stack[0].nodes) > 20]
    # layers with a window read a mask, the others use the kernel's own: of two kinds in turn, the pair repeats
    expected = {"llama": [4], "gemma3": [2], "vit": [4], "t5": [3, 3]}[name]
    assert [len(stack) for stack in stacks] == expected
    for stack in stacks:
        assert all(stack[0].alike(block) for block in stack)
        assert all(len(block.outputs) == 1 for block in stack[:-1])  # the residual stream, and nothing else, crosses


def test_blocks_that_differ_in_one_literal_are_not_alike():
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

        def forward(self, x):
            for i, layer in enumerate(self.layers):
                y = torch.tanh(layer(x)) * (0.5 if i < 3 else 0.25)
                x = x + torch.sigmoid(y) * y + torch.relu(-y)
            return x

    xmodel = lrp_fx.convert(Layers().double(), torch.randn(2, 8, dtype=torch.float64))
    stacks = find_blocks(xmodel.current.sweeper(xmodel.ruleset, ()).tapped.graph)
    assert [len(s) for s in stacks] == [3, 3]
    assert not stacks[0][0].alike(stacks[1][0])


def test_a_model_without_blocks_is_explained_as_ever():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x)
    assert torch.equal(xmodel.explain(x, memory="low").relevance["input"], xmodel.explain(x).relevance["input"])
    with pytest.raises(ValueError, match="memory"):
        xmodel.explain(x, memory="tiny")


class Stack(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(8, 16) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(16, 8) for _ in range(depth))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(torch.tanh(up(norm(x))) * torch.sigmoid(up(x)))
        return self.head(x[:, -1])


@pytest.mark.slow
def test_blocks_are_compiled_once_where_four_are_alike(monkeypatch):
    """(A layer at an end of the stack may be a block of its own.)"""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda graph_module, **options: compiled.append(graph_module))
    lowered = lrp_fx.convert(Stack(6), torch.randn(2, 5, 8), rules="attnlrp").lower(torch.randn(2, 5, 8))
    for options in ({}, {"per_block": True}, {"per_block": False}, {"backend": "eager"}):
        lowered.compile(**options)
    assert [len(g.graph.find_nodes(op="call_module")) for g in compiled] == [9, 9, 0, 0]
    assert once_per_block(lowered.graph_module, 6) is lowered.graph_module


@pytest.mark.slow
@pytest.mark.parametrize("rules, outside", [("attnlrp", 0), ("default", 2)])
def test_a_block_is_compiled_once_however_deep_the_model_is(rules, outside):
    """Outside of blocks are only magnitudes of dense weights, which gamma rules need: two a layer here."""
    kernels = {}
    for depth in (4, 6):  # (the first and the last layer are blocks of their own)
        torch.manual_seed(0)
        torch._dynamo.reset()
        xmodel = lrp_fx.convert(Stack(depth), torch.randn(2, 5, 8), rules=rules)
        torch._inductor.metrics.reset()
        x = torch.randn(3, 6, 8)
        wanted = xmodel.explain(x, target=1).relevance["x"]
        found = xmodel.compile(target=0, per_block=True)(x, target=1).relevance["x"]
        kernels[depth] = torch._inductor.metrics.generated_kernel_count
        assert float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    assert kernels[6] - kernels[4] == 2 * outside and kernels[4] > 0


@pytest.mark.slow
def test_no_block_hands_a_size_on():
    """torch.compile traces a region once if all that goes in and out are tensors, and sizes that are one and the same."""
    model, inputs = deep("llama")
    graph = lrp_fx.convert(model, **inputs).lower(**inputs).graph_module.graph
    blocks = [block for stack in find_blocks(graph, 12, constants=True) for block in stack]
    assert len(blocks) >= 4
    assert all(isinstance(n.meta["val"], torch.Tensor) for block in blocks for n in block.outputs)
    sizes = [[n for n in block.inputs if isinstance(n.meta.get("val"), torch.SymInt)] for block in blocks]
    assert len({n for inputs in sizes for n in inputs}) <= 3  # samples, length, and their product
