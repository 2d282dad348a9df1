"""sae-lens 6.54: its autoencoders as dictionaries of a latent."""

import pytest
import torch
import transformers as tf
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

import lrp_fx
from lrp_fx import concepts


@pytest.fixture(scope="module")
def xmodel():
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return lrp_fx.convert(tf.LlamaForCausalLM(config).double().eval(), rules="attnlrp")


def standard():
    return StandardSAE(StandardSAEConfig(d_in=16, d_sae=40, dtype="float64", device="cpu", apply_b_dec_to_input=True))


def top_k():
    return TopKSAE(TopKSAEConfig(d_in=16, d_sae=40, k=5, dtype="float64", device="cpu"))


@pytest.mark.parametrize("make", [standard, top_k])
def test_relevance_is_told_apart_by_feature_and_adds_up(make, xmodel):
    torch.manual_seed(1)
    sae = make().eval()
    with torch.no_grad():
        sae.b_dec.normal_(0, 0.1)
    ids = torch.randint(3, 50, (2, 6))
    at = "model.layers.0"
    found = concepts.explain_features(xmodel, sae, input_ids=ids, at=at)
    whole = xmodel.explain(input_ids=ids, at=at).latents[at]
    parts = found.features.sum(-1) + found.error.sum(-1) + found.bias.sum(-1)
    torch.testing.assert_close(parts, whole.sum(-1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        found.activations, sae.encode(found.latent * 0 + _latent(xmodel, ids)), rtol=1e-9, atol=1e-12
    )
    assert found.features.shape == (2, 6, 40) and bool((found.features[found.activations == 0] == 0).all())
    to_inputs = found.to_inputs(range(40))["input_ids"]
    assert to_inputs.shape == (2, 6) and bool(to_inputs.any())


def _latent(xmodel, ids):
    kept = []
    handle = xmodel.model.model.layers[0].register_forward_hook(lambda _, __, out: kept.append(out))
    with torch.no_grad():
        xmodel.model(input_ids=ids, use_cache=False)
    handle.remove()
    return kept[0][0] if isinstance(kept[0], tuple) else kept[0]
