"""A language model from a GGUF file: a LLaMA of one layer, written here."""

import json

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

from lrp_fx.cli.main import app

WORDS = ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "ab"]
WIDTH, INNER = 32, 64


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3, *[1] * (len(WORDS) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    random = np.random.default_rng(0)
    sizes = {name: (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    sizes |= {"ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}
    tensors = {f"blk.0.{name}.weight": random.normal(0, 0.3, size) for name, size in sizes.items()}
    tensors |= {f"blk.0.{name}.weight": np.ones(WIDTH) for name in ("attn_norm", "ffn_norm")}
    tensors |= {n: random.normal(0, 1, (len(WORDS), WIDTH)) for n in ("token_embd.weight", "output.weight")}
    tensors["output_norm.weight"] = np.ones(WIDTH)
    for name, values in tensors.items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_a_model(file):
    result = CliRunner().invoke(app, ["explain", str(file), "abc", "--json", "--precision", "float64"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert "".join(share["text"] for share in told["shares"]).endswith("abc")
    assert sum(told["ledger"].values()) == pytest.approx(told["target"][0], rel=1e-6)


def test_a_file_that_is_none_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    result = CliRunner().invoke(app, ["explain", str(tmp_path / "broken.gguf"), "abc"])
    told = " ".join(result.output.split())
    assert result.exit_code == 1 and "cannot be read" in told and "Remedy" in told
