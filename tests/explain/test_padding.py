"""Padding: relevance of padded tokens is exactly zero, and a padded sample explains like the unpadded one."""

import pytest
import torch
from models import build, few
from torch import nn

import lrp_fx

# gemma2 is not in the first list: in float64 its own output is NaN for a left-padded batch (its additive mask overflows
# in the float32 softmax); and rotary tables are float32, so left-padded samples are given their positions.
LEFT = ["llama2", "mistral", "qwen2", "qwen3", "gemma3", "mixtral", "phi"]
RIGHT = [*LEFT, "gemma2", "gpt2", "bert", "bert-classifier", "distilbert", "albert", "qwen3-moe"]


def pad(tokens, left):
    batch, length = tokens.shape
    padded = torch.zeros(batch, length + 3, dtype=torch.long)
    mask = torch.zeros_like(padded)
    where = slice(3, None) if left else slice(0, length)
    padded[:, where], mask[:, where] = tokens, 1
    return padded, mask, where


def own_difference(padded, plain, where):
    """How much padding changes the model's own outputs: 0, but for a softmax in single precision, which rounds
    differently over another length on some processors. An explanation cannot be closer than what it explains."""
    a, b = padded.logits, plain.logits
    difference = float(((a[:, where] if a.dim() == 3 else a) - b).abs().max() / b.abs().max())
    assert difference < 1e-6
    return difference if difference > 1e-12 else 0.0


@pytest.mark.parametrize(
    ("name", "left"), few([(n, True) for n in LEFT] + [(n, False) for n in RIGHT], ("llama2", True), ("bert", False))
)
def test_padding_changes_nothing(name, left):
    model, inputs = build(name)
    tokens = inputs["input_ids"]
    xmodel = lrp_fx.convert(model)
    plain = xmodel.explain(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    padded, mask, where = pad(tokens, left)
    positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if left else {}
    attribution = xmodel.explain(input_ids=padded, attention_mask=mask, **positions)
    rtol = 1e-9 + 4 * own_difference(attribution.output, plain.output, where)
    torch.testing.assert_close(attribution.target, plain.target, rtol=rtol, atol=1e-12)
    relevance = attribution.relevance["input_ids"]
    assert (relevance[mask == 0] == 0).all()
    scale = plain.relevance["input_ids"].abs().max()
    assert (relevance[:, where] - plain.relevance["input_ids"]).abs().max() < rtol * max(1.0, scale)


def test_samples_of_different_lengths_explain_as_alone():
    model, inputs = build("llama2")
    tokens = inputs["input_ids"].clone()
    mask = torch.ones_like(tokens)
    tokens[0, 5:], mask[0, 5:] = 0, 0
    xmodel = lrp_fx.convert(model)
    both = xmodel.explain(input_ids=tokens, attention_mask=mask)
    alone = xmodel.explain(input_ids=tokens[:1, :5], attention_mask=mask[:1, :5])
    torch.testing.assert_close(both.relevance["input_ids"][:1, :5], alone.relevance["input_ids"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(both.target[:1], alone.target)


class Words(nn.Module):
    """Logits of every position, whatever the masks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.last = nn.Embedding(10, 4, dtype=torch.float64), nn.Linear(4, 5, dtype=torch.float64)

    def forward(self, input_ids, attention_mask=None, decoder_attention_mask=None, pair_mask=None):
        return self.last(self.words(input_ids))


FIRST_TWO, FIRST_THREE, OF_MORE = ([1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0, 0, 0])
#: which masks are given -> the position that is explained
ENDS = [
    ({}, 3),
    ({"attention_mask": FIRST_TWO}, 1),
    ({"attention_mask": FIRST_TWO, "decoder_attention_mask": FIRST_THREE}, 2),
    ({"attention_mask": OF_MORE}, 3),
    ({"attention_mask": OF_MORE, "decoder_attention_mask": FIRST_TWO}, 1),
    ({"pair_mask": [FIRST_TWO] * 4}, 3),
]


@pytest.mark.parametrize(("masks", "position"), ENDS)
def test_which_input_says_where_a_sequence_ends(masks, position):
    model, tokens = Words(), torch.tensor([[5, 6, 0, 0], [7, 8, 0, 0]])
    given = {name: torch.tensor([mask, mask]) for name, mask in masks.items()}
    found = lrp_fx.convert(model).explain(tokens, target=2, **given)
    torch.testing.assert_close(found.target, model(tokens)[:, position, 2])
    assert found.relevance["input_ids"].nonzero()[:, 1].tolist() == [position] * 2
