"""transformer-lens 4.3: a TransformerBridge converts, and names of its hooks, aliases too, are names of latents."""

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models
from transformer_lens import TransformerBridge

import lrp_fx

NAMES = [
    "blocks.1.attn.hook_z", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.0.mlp.hook_post",
    "blocks.1.attn.o.hook_in",
]  # fmt: skip


@pytest.fixture(scope="module")
def bridge(tmp_path_factory):
    words = {"[UNK]": 0, **{f"w{i}": i for i in range(1, 30)}}
    table = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    place = tmp_path_factory.mktemp("words")
    special = dict.fromkeys(("unk_token", "pad_token", "bos_token", "eos_token"), "[UNK]")
    tf.PreTrainedTokenizerFast(tokenizer_object=table, **special).save_pretrained(place)
    torch.manual_seed(0)
    config = tf.GPT2Config(
        vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=16, architectures=["GPT2LMHeadModel"]
    )
    return TransformerBridge.boot_transformers(
        "gpt2", hf_model=tf.GPT2LMHeadModel(config).double().eval(), tokenizer=tf.AutoTokenizer.from_pretrained(place),
        device="cpu", dtype=torch.float64,
    ).eval()  # fmt: skip


def test_relevance_at_hooks_is_activation_times_gradient_under_the_gradient_rules(bridge):
    ids = torch.randint(0, 30, (2, 5))
    xmodel = lrp_fx.convert(bridge, rules="gradient")
    found = xmodel.explain(ids, target=(-1, 3), at=NAMES)
    activations, gradients = {}, {}

    def forward(value, hook):
        activations[hook.name] = value.detach()

    def backward(gradient, hook):
        gradients[hook.name] = (gradient[0] if isinstance(gradient, tuple) else gradient).detach()

    points = {name: bridge.get_submodule(name).name for name in NAMES}
    with bridge.hooks([(n, forward) for n in NAMES], [(n, backward) for n in NAMES]):
        logits = bridge(ids)
        logits[:, -1, 3].sum().backward()
    torch.testing.assert_close(found.target, logits[:, -1, 3].detach())
    for name, point in points.items():
        expected = activations[point] * gradients[point]
        torch.testing.assert_close(found.latents[name].reshape(expected.shape), expected, rtol=1e-8, atol=1e-12)
    assert xmodel.report().route == "export"


def test_attnlrp_holds_and_hooks_are_conditions(bridge):
    ids = torch.randint(0, 30, (1, 5))
    xmodel = lrp_fx.convert(bridge, rules="attnlrp")
    whole = xmodel.explain(ids, target=(-1, 3), at="blocks.1.hook_resid_pre", check="always")
    assert whole.ledger.balance < 1e-9
    parts = xmodel.explain_conditions(
        ids, target=(-1, 3), conditions=[{"blocks.1.hook_resid_pre": list(range(8))}, {"blocks.1.hook_resid_pre": list(range(8, 16))}]
    )  # fmt: skip
    name = next(iter(whole.relevance))
    torch.testing.assert_close(sum(p.relevance[name] for p in parts), whole.relevance[name])
