"""nnsight 0.8: what it sees inside of a model, and what relevance says of the same places."""

import nnsight
import pytest
import torch
import transformers as tf

import lrp_fx

PLACES = {"transformer.h.0": lambda m: m.transformer.h[0], "transformer.h.1.mlp": lambda m: m.transformer.h[1].mlp}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = tf.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=30, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return tf.GPT2LMHeadModel(config).double().eval()


@pytest.mark.parametrize("place", PLACES)
def test_relevance_is_activation_times_gradient_under_the_gradient_rules(place, model):
    """Names of its envoys, without the leading "model", are names of latents."""
    ids = torch.randint(3, 30, (2, 5))
    seen = nnsight.NNsight(model)
    with seen.trace(input_ids=ids, use_cache=False):
        output = PLACES[place](seen).output
        value = (output[0] if isinstance(output, tuple) else output).save()
        target = seen.output.logits[:, -1, 3].sum()
        with target.backward():
            gradient = value.grad.save()
    found = lrp_fx.convert(model, rules="gradient").explain(input_ids=ids, target=3, at=place)
    torch.testing.assert_close(found.latents[place], (value * gradient).detach(), rtol=1e-8, atol=1e-12)


def test_the_model_inside_is_converted(model):
    seen = nnsight.NNsight(model)
    ids = torch.randint(3, 30, (1, 4))
    inside = lrp_fx.convert(seen._module, rules="attnlrp").explain(input_ids=ids)
    assert torch.equal(inside.target, lrp_fx.convert(model, rules="attnlrp").explain(input_ids=ids).target)
