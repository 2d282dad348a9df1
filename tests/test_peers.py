"""Agreement with the hand-written formulas of the reference implementation, on the families it covers."""

import copy

import oracle
import pytest
import torch
from models import build

import lrp_fx


@pytest.mark.parametrize("name", ["llama2", "qwen2", "qwen3", "qwen3-moe", "gemma3", "gpt2"])
def test_agrees_with_hand_written_attnlrp(name):
    model, inputs = build(name)
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with torch.no_grad():
        expected_logits = model(inputs_embeds=embeddings, use_cache=False).logits
    _, expected = oracle.relevance(copy.deepcopy(model), embeddings)
    xmodel = lrp_fx.convert(model, inputs_embeds=embeddings)
    leaf = embeddings.clone().requires_grad_()
    logits = xmodel(inputs_embeds=leaf).logits
    logits[:, -1].amax(-1).sum().backward()
    assert torch.equal(logits, expected_logits)
    found = (leaf * leaf.grad).sum(-1)
    assert (found - expected).norm() < 2e-7 * expected.norm()
    tokens = xmodel.explain(input_ids=inputs["input_ids"], target=lambda out: out.logits[:, -1].amax(-1))
    torch.testing.assert_close(tokens.relevance["input_ids"], found, rtol=1e-12, atol=1e-14)
