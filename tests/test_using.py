"""The blocks of docs/using.md run as they stand, on a small language model."""

import re
from pathlib import Path

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

import lrp_fx

PAGE = Path(__file__).parents[1] / "docs" / "using.md"
WORDS = ["[PAD]", "[UNK]", "a", "text", *(f"w{i}" for i in range(60))]


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(16, 50), nn.Linear(50, 16)

    def encode(self, x):
        return self.enc(x).relu()

    def decode(self, f):
        return self.dec(f)


@pytest.fixture
def names():
    """What the page takes as given."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=16, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, vocab_size=len(WORDS),
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = torch.randint(2, len(WORDS), (2, 6))
    segmenter = nn.Conv2d(3, 8, 1)
    segmenter.bias.data[7] = 5.0  # wins at every pixel
    return {
        "lrp_fx": lrp_fx,
        "model": tf.LlamaForCausalLM(config).eval(),
        "tokenizer": tf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]"),
        "segmenter": lrp_fx.convert(segmenter),
        "image": torch.rand(1, 3, 12, 12),
        "example_inputs": {"input_ids": ids[:1]},
        "inputs": {"input_ids": ids},
        "data": {"input_ids": ids},
        "prompt": ids[:1],
        "embeddings": torch.randn(1, 5, 16),
        "a": ids,
        "b": ids.flip(1),
        "sae": Autoencoder(),
    }


@pytest.mark.slow
def test_every_block_of_the_page_runs(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) == 3
    assert names["relevance"].shape == (1, 5) and float(names["relevance"].abs().sum()) > 0
    assert names["graph"].number_of_edges() and (tmp_path / "neurons.html").exists()
