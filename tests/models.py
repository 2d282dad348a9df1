"""Tiny random instances of real model classes (float64), with inputs. Tests and tools may name architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

Build = Callable[[], tuple[nn.Module, dict[str, Any]]]


def few(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """Cases of a test, those that are not ``fast`` marked slow: of many that are alike, a few stand for all.

    A case of several arguments is a tuple.
    """

    def slow(case: Any) -> Any:
        return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)

    return [case if case in fast else slow(case) for case in cases]


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SMALL, "vocab_size": 100}
GQA = {**TEXT, "num_key_value_heads": 2}
IMAGE = {**SMALL, "image_size": 32, "patch_size": 8}
NO_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def ids(batch: int = 2, length: int = 7, low: int = 3, high: int = 99) -> torch.Tensor:
    return torch.randint(low, high, (batch, length))


def _text(cls: type, config: type, **fields: Any) -> Build:
    return lambda: (cls(config(**{**TEXT, **fields})), {"input_ids": ids()})


def _image(cls: type, config: type, **fields: Any) -> Build:
    return lambda: (cls(config(**fields)), {"pixel_values": torch.randn(2, 3, 32, 32)})


class SelfAttention(nn.Module):
    """torch.nn.MultiheadAttention as torchvision's vision transformer uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


MODELS: dict[str, Build] = {
    "llama2": _text(tf.LlamaForCausalLM, tf.LlamaConfig),
    "mixtral": _text(tf.MixtralForCausalLM, tf.MixtralConfig, num_key_value_heads=2, num_local_experts=4),
    "flan-t5": lambda: (
        tf.T5ForConditionalGeneration(
            tf.T5Config(
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                vocab_size=100,
                feed_forward_proj="gated-gelu",
                decoder_start_token_id=0,
            )
        ),
        {"input_ids": ids(), "decoder_input_ids": ids(length=5)},
    ),
    "vit": _image(tf.ViTForImageClassification, tf.ViTConfig, **IMAGE),
    "encoder": lambda: (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2),
        {"src": torch.randn(2, 7, 32)},
    ),
    "mha": lambda: (SelfAttention(), {"x": torch.randn(2, 7, 32)}),
    "bert": lambda: (
        tf.BertForMaskedLM(tf.BertConfig(**TEXT)),
        {"input_ids": ids(), "attention_mask": torch.ones(2, 7, dtype=torch.long)},
    ),
    "bert-classifier": _text(tf.BertForSequenceClassification, tf.BertConfig),
    "gpt2": lambda: (
        tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, **NO_TOKENS)),
        {"input_ids": ids()},
    ),
    "gemma2": _text(tf.Gemma2ForCausalLM, tf.Gemma2Config, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8),
    "gemma3": _text(tf.Gemma3ForCausalLM, tf.Gemma3TextConfig, num_key_value_heads=2, head_dim=8),
    "mistral": _text(tf.MistralForCausalLM, tf.MistralConfig, num_key_value_heads=2),
    "qwen2": _text(tf.Qwen2ForCausalLM, tf.Qwen2Config, num_key_value_heads=2),
    "qwen3": _text(tf.Qwen3ForCausalLM, tf.Qwen3Config, num_key_value_heads=2, head_dim=8),
    "qwen3-moe": _text(
        tf.Qwen3MoeForCausalLM,
        tf.Qwen3MoeConfig,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        decoder_sparse_step=1,
    ),
    "phi": _text(tf.PhiForCausalLM, tf.PhiConfig),
    "distilbert": lambda: (
        tf.DistilBertForSequenceClassification(
            tf.DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=4, vocab_size=100)
        ),
        {"input_ids": ids()},
    ),
    "clip": _image(tf.CLIPVisionModel, tf.CLIPVisionConfig, **IMAGE),
    "deit": _image(tf.DeiTForImageClassification, tf.DeiTConfig, **IMAGE),
    "resnet": _image(
        tf.ResNetForImageClassification,
        tf.ResNetConfig,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_labels=5,
    ),
    "albert": _text(tf.AlbertForMaskedLM, tf.AlbertConfig, embedding_size=16),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, dict[str, Any]]:
    """A model in evaluation mode with non-trivial biases, and inputs of its precision."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model = model.to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    if hasattr(getattr(model, "config", None), "_experts_implementation"):
        model.config._experts_implementation = "eager"  # grouped_mm has no float64 kernel outside a capture
    return model, {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def zero_additive_parameters(model: nn.Module) -> None:
    """Zero every parameter that is added: biases, class tokens, position and type tables, running means."""
    tables = (
        "cls_token",
        "class_embedding",
        "distillation_token",
        "position",
        "token_type",
        "wpe",
        "relative_attention",
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if "bias" in name.rsplit(".", 1)[-1] or any(table in name for table in tables):
                parameter.zero_()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()
