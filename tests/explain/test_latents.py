"""Names inside a model: heads, scores, neurons, routers; what enters a block plus what it absorbs is what leaves it."""

from collections import OrderedDict

import pytest
import torch
from models import build, few
from torch import nn

import lrp_fx
from lrp_fx.errors import LatentError

PARTS = ("query", "key", "value", "scores", "weights", "mixed")


def explained(name, at, **kwargs):
    model, inputs = build(name)
    return lrp_fx.convert(model, **inputs, rules="attnlrp").explain(**inputs, at=at, **kwargs)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("llama2", "model.layers.1.self_attn"),
        ("gemma2", "model.layers.1.self_attn"),
        ("vit", "vit.layers.1.attention"),
        ("bert", "bert.encoder.layer.1.attention.self"),
        ("flan-t5", "decoder.block.1.layer.1.EncDecAttention"),
        ("mha", "attention"),
        ("gpt2", "transformer.h.0.attn"),
    ],
)
def test_parts_of_attention_conserve(name, site):
    """Mixed values hand half to the values and half to the weights; scores hand half to queries and half to keys."""
    found = explained(name, [f"{site}@{part}" for part in PARTS])
    r = {key.rpartition("@")[2]: value for key, value in found.latents.items()}
    assert set(r) == set(PARTS)
    total = {part: float(value.sum()) for part, value in r.items()}
    assert abs(total["mixed"]) > 1e-6
    assert total["value"] == pytest.approx(total["mixed"] / 2, rel=1e-9, abs=1e-12)
    assert total["weights"] == pytest.approx(total["mixed"] / 2, rel=1e-9, abs=1e-12)
    assert total["query"] == pytest.approx(total["key"], rel=1e-9, abs=1e-12)
    assert all(bool(value.isfinite().all()) for value in r.values())
    assert r["weights"].shape == r["scores"].shape
    heads = r["mixed"].shape[1]
    per_head = [float(r["mixed"][:, h].sum()) for h in range(heads)]
    weighed = [float(r["weights"][:, h].sum()) for h in range(heads)]
    assert weighed == pytest.approx([h / 2 for h in per_head], rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", few(["llama2", "gemma2", "bert", "gpt2", "mixtral", "flan-t5"], "llama2", "bert"))
def test_looking_inside_changes_nothing(name):
    """Writing fused attention out gives the relevance of the fused graph."""
    model, inputs = build(name)
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    fused, inside = xmodel.explain(**inputs), xmodel.explain(**inputs, at="*@scores")
    assert len(inside.latents) >= 2
    for key, relevance in fused.relevance.items():
        torch.testing.assert_close(inside.relevance[key], relevance, rtol=1e-8, atol=1e-11)


def test_neurons_are_the_input_of_the_layer_that_reads_them():
    found = explained("llama2", ["model.layers.*.mlp.down_proj@input", "model.layers.*.mlp"])
    for layer in range(2):
        neurons, out = (found.latents[f"model.layers.{layer}.mlp{s}"] for s in (".down_proj@input", ""))
        assert neurons.shape[-1] == 64
        torch.testing.assert_close(neurons.sum((1, 2)), out.sum((1, 2)), rtol=1e-9, atol=1e-12)


def test_decisions_of_a_router():
    found = explained("mixtral", ["model.layers.*.mlp.gate", "model.layers.*.mlp.experts", "model.layers.*.mlp"])
    for layer in range(2):
        assert found.latents[f"model.layers.{layer}.mlp.gate"].abs().sum() > 0


@pytest.mark.parametrize("rules", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize(
    ("name", "blocks"), [("llama2", "model.layers.{}"), ("gpt2", "transformer.h.{}"), ("vit", "vit.layers.{}")]
)
def test_what_enters_a_block_plus_what_it_absorbs_is_what_leaves_it(name, blocks, rules):
    """Residual streams: relevance at a block's output = relevance at its input + the ledger's entries inside it."""
    paths = [blocks.format(0), blocks.format(1)]
    found = explained(name, paths, rules=rules)
    before, after = (float(found.latents[p].sum()) for p in paths)
    inside = sum(e.amount for e in found.ledger.entries if e.module.startswith(paths[1]))
    scale = max(abs(after), max(float(v.abs().sum()) for v in found.latents.values()))
    assert abs(before + inside - after) <= 1e-9 * scale
    assert abs(before - after) > 1e-9 * scale or inside == 0


def test_conditions_on_heads_sum_to_the_whole():
    model, inputs = build("gpt2")
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    site = "transformer.h.1.attn@mixed"
    parts = xmodel.explain_conditions(**inputs, conditions=[{site: head} for head in range(4)] + [{site: [0, 1, 2, 3]}])
    none = xmodel.explain(**inputs, condition={site: torch.zeros(1, 1, 1, 1, dtype=torch.bool)})
    rest = none.relevance["input_ids"]  # what does not flow through that attention at all
    total = sum(p.relevance["input_ids"] - rest for p in parts[:-1])
    torch.testing.assert_close(total, parts[-1].relevance["input_ids"] - rest, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        parts[-1].relevance["input_ids"], xmodel.explain(**inputs).relevance["input_ids"], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("at", ["transformer.h.9.attn@mixed", "transformer.h.0.attn@head", "nothing@input"])
def test_names_that_match_nothing_say_what_there_is(at):
    model, inputs = build("gpt2")
    with pytest.raises(LatentError, match="@mixed"):
        lrp_fx.convert(model, **inputs, rules="attnlrp").explain(**inputs, at=at)


@pytest.mark.parametrize("rule", ["generalised-gamma", "z-plus"])
def test_layers_with_folded_batch_norms_have_their_relevance_inside(rule):
    """The rule runs both as one layer, and passes by the tensors between them."""
    torch.manual_seed(0)
    names = ("enter", "tanh", "before", "relu", "layer", "behind", "second", "flat", "head")
    parts = (nn.Conv1d(2, 4, 3), nn.Tanh(), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4))
    parts += (nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    model = nn.Sequential(OrderedDict(zip(names, parts, strict=True))).double().eval()
    for tensor in model.state_dict().values():
        tensor += 0.2 * torch.rand_like(tensor) if tensor.is_floating_point() else 0
    x = torch.randn(2, 2, 8, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules={"base": "attnlrp", "rules": {"convolution": rule}})
    attribution = xmodel.explain(x, target=1, at=names[1:7])
    found = attribution.latents
    for inside, outside in (("before", "tanh"), ("relu", "tanh"), ("layer", "behind"), ("second", "behind")):
        torch.testing.assert_close(found[inside], found[outside], rtol=1e-12, atol=1e-14, msg=inside)
        assert bool(found[inside].any())
    each = [xmodel.explain(x, target=1, condition={"relu": [k]}).relevance["input"] for k in range(6)]
    torch.testing.assert_close(sum(each), attribution.relevance["input"], rtol=1e-10, atol=1e-13)
