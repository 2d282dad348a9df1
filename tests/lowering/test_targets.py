"""Many targets from one forward pass, and generated tokens: what one explanation after the other says."""

import pytest
import torch
import transformers as tf
from models import build, few, ids
from torch.utils._python_dispatch import TorchDispatchMode

import lrp_fx
from lrp_fx.errors import InputError, TargetError


@pytest.fixture(scope="module")
def llama():
    model, inputs = build("llama2")
    return model, inputs, lrp_fx.convert(model, **inputs, rules="attnlrp")


def same(found, wanted):
    assert float((found - wanted).abs().max()) < 1e-9 * float(wanted.abs().max())


def test_many_targets_are_explained_as_one_by_one(llama):
    _, _, xmodel = llama
    inputs = {"input_ids": ids(3, 5)}
    targets = [4, None, torch.tensor([1, -1, 7]), (2, 9), (torch.tensor([0, 3, -2]), 11)]
    found = xmodel.explain(**inputs, targets=targets, at="model.layers.0.mlp", chunk=2)
    assert found.count == 5 and len(found) == 3 and found.ruleset == "attnlrp"
    for i, target in enumerate(targets[:4]):
        one = xmodel.explain(**inputs, target=target, at="model.layers.0.mlp")
        same(found.target[i], one.target)
        same(found.relevance["input_ids"][i], one.relevance["input_ids"])
        same(found.latents["model.layers.0.mlp"][i], one.latents["model.layers.0.mlp"])
    for sample, position in enumerate((0, 3, 3)):
        one = xmodel.explain(**inputs, target=(position, 11))
        same(found.relevance["input_ids"][4][sample], one.relevance["input_ids"][sample])


def test_targets_go_with_places_and_rules_only(llama):
    _, inputs, xmodel = llama
    for further in ({"target": 3}, {"memory": "low"}, {"condition": {"model.layers.0.mlp": 0}}):
        with pytest.raises(ValueError, match="targets="):
            xmodel.explain(**inputs, targets=[1, 2], **further)


class _Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_fused_attention_runs_forward_once_and_back_once_for_all_targets(llama):
    model, inputs, xmodel = llama
    xmodel.explain(**inputs, targets=[1, 2, 3, 4], chunk=4)
    with _Calls() as calls:
        xmodel.explain_targets(**inputs, targets=[1, 2, 3, 4], chunk=4)
    fused = [name for name in calls.names if "scaled_dot_product" in name]
    assert len([n for n in fused if "backward" in n]) == len(fused) / 2 == model.config.num_hidden_layers


@pytest.mark.parametrize("name", few(["mixtral", "vit"], "vit"))
def test_classes_of_other_models(name):
    model, inputs = build(name)
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    found = xmodel.explain_targets(**inputs, targets=[0, 1])
    for i in range(2):
        for key, wanted in xmodel.explain(**inputs, target=i).relevance.items():
            same(found.relevance[key][i], wanted)


def test_padding_decides_the_last_position(llama):
    _, inputs, xmodel = llama
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    found = xmodel.explain_targets(**inputs, attention_mask=mask, targets=[3, 5])
    for i, target in enumerate((3, 5)):
        wanted = xmodel.explain(**inputs, attention_mask=mask, target=target)
        same(found.relevance["input_ids"][i], wanted.relevance["input_ids"])


@pytest.mark.parametrize("target", [100, (9, 3), (1, 2, 3), lrp_fx.Contrast(1, 100), torch.tensor([1, 2, 3]), 0.5])
def test_targets_that_do_not_fit_are_named(llama, target):
    _, inputs, xmodel = llama
    with pytest.raises(TargetError):
        xmodel.explain_targets(**inputs, targets=[1, target])


def test_generated_tokens_are_explained_as_each_prefix_is(llama):
    model, inputs, xmodel = llama
    prompt = inputs["input_ids"]
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    new = 19  # more than one forward pass serves
    found = xmodel.explain_generation(prompt, max_new_tokens=new, chunk=3)
    expected = model.generate(prompt, max_new_tokens=new, do_sample=False)
    assert torch.equal(found.sequences, expected) and found.start == 7
    matrix = found.relevance["input_ids"]
    assert matrix.shape == (2, new, 7 + new)
    for i in range(new):
        one = xmodel.explain(input_ids=expected[:, : 7 + i], target=expected[:, 7 + i])
        same(matrix[:, i, : 7 + i], one.relevance["input_ids"])
        same(found.target[:, i], one.target)
        assert not matrix[:, i, 7 + i :].any()


def test_relevance_inside_the_model_for_generated_tokens(llama):
    """Over two forward passes of different length; a latent has a position for every token."""
    model, inputs, xmodel = llama
    prompt, new, at = inputs["input_ids"], 17, ["model.layers.0", "model.layers.1.self_attn@mixed"]
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    found = xmodel.explain_generation(prompt, max_new_tokens=new, at=at)
    plain = xmodel.explain_generation(prompt, max_new_tokens=new)
    same(found.relevance["input_ids"], plain.relevance["input_ids"])
    assert not plain.latents and list(found.latents) == at
    for i in (0, 15, 16):
        one = xmodel.explain(input_ids=found.sequences[:, : 7 + i], target=found.sequences[:, 7 + i], at=at)
        stream, heads = (found.latents[name][:, i] for name in at)
        assert stream.shape[1] == heads.shape[2] == 7 + new
        same(stream[:, : 7 + i], one.latents[at[0]])
        same(heads[:, :, : 7 + i], one.latents[at[1]])
        assert not stream[:, 7 + i :].any() and not heads[:, :, 7 + i :].any()
    merged = found.merge(lambda tokens: [i // 2 for i in range(len(tokens))])
    stream = found.latents[at[0]]
    same(merged.latents[at[0]][:, 0, 0], stream[:, :2, :2].sum((1, 2)))
    same(merged.latents[at[0]].sum((1, 2)), stream.sum((1, 2)))


def test_left_padding_of_a_prompt(llama):
    model, inputs, xmodel = llama
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    found = xmodel.explain_generation(**inputs, attention_mask=mask, max_new_tokens=2)
    for i in range(2):
        whole = {
            "input_ids": found.sequences[:, : 7 + i],
            "attention_mask": torch.cat([mask, mask[:, :1].new_ones(2, i)], 1),
        }
        one = xmodel.explain(**whole, target=found.sequences[:, 7 + i])
        same(found.relevance["input_ids"][:, i, : 7 + i], one.relevance["input_ids"])


@pytest.mark.slow
def test_an_encoder_decoder_attributes_to_both_of_its_inputs():
    torch.manual_seed(0)
    config = tf.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50, decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    model = tf.T5ForConditionalGeneration(config).double().eval()
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    found = xmodel.explain_generation(ids(2, 6, high=49), max_new_tokens=3)
    assert found.relevance["input_ids"].shape == (2, 3, 6)
    assert found.relevance["decoder_input_ids"].shape == (2, 3, 4)


def test_a_model_that_does_not_generate_is_named():
    with pytest.raises(InputError, match="generate"):
        lrp_fx.convert(torch.nn.Embedding(9, 3), rules="attnlrp").explain_generation(
            torch.ones(1, 2).long(), max_new_tokens=2
        )


class Parts(torch.nn.Module):
    """Writes parts of a tensor, to the end and counted from behind."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.head = (torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        h = self.one(x)
        h[:, 1:] = h[:, 1:] + self.other(x[:, :-1])
        h[:, -2:, -3:] = torch.tanh(h[:, -2:, :3])
        return self.head(h).mean(1)


def test_parts_that_are_written_are_explained_for_many_targets():
    model, x = Parts().double(), torch.randn(2, 5, 6).double()
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    found = xmodel.explain(x, targets=[0, 3])
    for i, target in enumerate((0, 3)):
        same(found.relevance["x"][i], xmodel.explain(x, target=target).relevance["x"])


class Biased(torch.nn.Module):
    """Attention with a mask that all samples share."""

    def __init__(self, shape):
        super().__init__()
        self.qkv, self.head = torch.nn.Linear(8, 24), torch.nn.Linear(8, 5)
        self.register_buffer("bias", torch.randn(shape))

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return self.head(mixed.transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.parametrize("shape", [(1, 2, 6, 6), (6, 6), (3, 1, 6, 6)])
def test_a_mask_that_samples_share_is_shared_by_targets(shape):
    model, x = Biased(shape).double(), torch.randn(3, 6, 8).double()
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    found = xmodel.explain(x, targets=[0, 3])
    for i, target in enumerate((0, 3)):
        same(found.relevance["x"][i], xmodel.explain(x, target=target).relevance["x"])
