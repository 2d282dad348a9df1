"""transformer-lens 3.9: a HookedTransformer converts, and names of its hooks are names of latents."""

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

import lrp_fx

NAMES = ["blocks.1.attn.hook_z", "blocks.0.hook_resid_post", "blocks.0.mlp.hook_post", "blocks.1.hook_attn_out"]


@pytest.fixture(scope="module")
def model():
    config = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=16, d_head=8, n_heads=2, d_mlp=24, d_vocab=30, act_fn="gelu", seed=0,
        device="cpu", dtype=torch.float64, normalization_type="LN",
    )  # fmt: skip
    return HookedTransformer(config).eval()


def test_relevance_at_hooks_is_activation_times_gradient_under_the_gradient_rules(model):
    ids = torch.randint(0, 30, (2, 5))
    found = lrp_fx.convert(model, rules="gradient").explain(ids, target=(-1, 3), at=NAMES)
    activations, gradients = {}, {}

    def forward(value, hook):
        activations[hook.name] = value.detach()

    def backward(gradient, hook):
        gradients[hook.name] = gradient.detach()

    with model.hooks([(n, forward) for n in NAMES], [(n, backward) for n in NAMES]):
        logits = model(ids)
        logits[:, -1, 3].sum().backward()
    torch.testing.assert_close(found.target, logits[:, -1, 3].detach())
    for name in NAMES:
        torch.testing.assert_close(found.latents[name], activations[name] * gradients[name], rtol=1e-8, atol=1e-12)


def test_attnlrp_holds_and_heads_can_be_conditions(model):
    ids = torch.randint(0, 30, (1, 5))
    lrp_fx.testing.assert_explainable(model, ids, rules="attnlrp")
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    whole = xmodel.explain(ids, target=(-1, 3), at="blocks.1.hook_resid_pre")
    assert whole.ledger.balance < 1e-9 and whole.latents["blocks.1.hook_resid_pre"].shape == (1, 5, 16)
