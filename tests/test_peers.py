"""Agreement with the hand-written formulas of the reference implementation, on the families it covers."""

import copy

import oracle
import pytest
import torch
from models import build, few

import lrp_fx

FAMILIES = ["llama2", "qwen2", "qwen3", "qwen3-moe", "gemma3", "gpt2"]


def compare(model, embeddings, norm):
    """(relative difference to the oracle, logits, tokens' relevance)."""
    _, expected = oracle.relevance(copy.deepcopy(model), embeddings, norm)
    leaf = embeddings.clone().requires_grad_()
    logits = lrp_fx.convert(model, inputs_embeds=embeddings, rules="attnlrp")(inputs_embeds=leaf).logits
    logits[:, -1].amax(-1).sum().backward()
    found = (leaf * leaf.grad).sum(-1)
    return float((found - expected).norm() / expected.norm()), logits.detach(), found


@pytest.mark.parametrize("name", few(FAMILIES, "llama2", "bert"))
def test_agrees_with_hand_written_attnlrp(name):
    """With norms in the model's own precision the two are the same function."""
    model, inputs = build(name)
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    oracle.patch_norms(model, oracle.natural_rms)
    difference, _, _ = compare(model, embeddings, oracle.exact_rms)
    assert difference < 1e-9


@pytest.mark.parametrize("name", few(FAMILIES, "llama2"))
def test_agrees_with_the_float32_norms_of_the_model_up_to_their_rounding(name):
    """As the models are: float32 inside. The oracle rounds its cotangents there, lrp_fx does not (its sums are exact)."""
    model, inputs = build(name)
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with torch.no_grad():
        expected = model(inputs_embeds=embeddings, use_cache=False).logits
    difference, logits, found = compare(model, embeddings, oracle.rms)
    assert torch.equal(logits, expected)
    assert difference < 2 * torch.finfo(torch.float32).eps
    tokens = lrp_fx.convert(model, rules="attnlrp").explain(
        input_ids=inputs["input_ids"], target=lambda out: out.logits[:, -1].amax(-1)
    )
    torch.testing.assert_close(tokens.relevance["input_ids"], found, rtol=1e-12, atol=1e-14)
