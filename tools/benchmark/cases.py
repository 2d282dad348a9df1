"""The models of the benchmark: random weights, real sizes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model with its inputs.

    Attributes:
        model: in evaluation mode, its parameters without gradients.
        inputs: inputs of the model and of ``explain``.
        embedded: the same call with embeddings in place of token ids, for the plain gradient.
        logits: the model's output -> (B, classes) logits; the largest is explained.
    """

    model: nn.Module
    inputs: dict[str, Any]
    embedded: Callable[[], dict[str, Any]]
    logits: Callable[[Any], Tensor]

    def to(self, device: str, dtype: torch.dtype) -> Case:
        """The case on a device, in a precision."""
        self.model.to(device=device, dtype=dtype)
        for name, value in self.inputs.items():
            if isinstance(value, Tensor):
                self.inputs[name] = value.to(device, dtype if value.is_floating_point() else value.dtype)
        gc.collect()
        return self


def _last(output: Any) -> Tensor:
    return output.logits[:, -1]


def _rows(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _text(model: nn.Module, inputs: dict[str, Any], logits: Callable[[Any], Tensor], *names: str) -> Case:
    model.eval().requires_grad_(False)

    def embedded() -> dict[str, Any]:
        table = model.get_input_embeddings()  # type: ignore[operator]
        renamed = {k: v for k, v in inputs.items() if k not in names}
        for name in names:
            renamed[name.replace("input_ids", "inputs_embeds")] = table(inputs[name]).detach().requires_grad_()
        return renamed

    return Case(model, inputs, embedded, logits)


def _image(model: nn.Module, name: str) -> Case:
    model.eval().requires_grad_(False)
    *_, bias = model.parameters()
    bias[0] += 4  # one class stands out: of a thousand random logits the two largest may be equal in bfloat16
    inputs = {name: torch.randn(1, 3, 224, 224)}
    return Case(model, inputs, lambda: {name: inputs[name].clone().requires_grad_()}, _rows)


def ids(length: int, vocabulary: int) -> Tensor:
    """(1, length) token ids."""
    return torch.randint(3, vocabulary, (1, length))


def llama(layers: int, width: int, length: int, vocabulary: int = 32000) -> Case:
    """A Llama of real proportions; head of 64, all heads of their own; logits of the last position alone."""
    config = tf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=11 * width // 4 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=8192,
        use_cache=False,
    )
    model = tf.LlamaForCausalLM(config)
    return _text(model, {"input_ids": ids(length, vocabulary), "logits_to_keep": 1}, _last, "input_ids")


def mixtral(length: int) -> Case:
    """Eight layers 512 wide, two of eight experts."""
    config = tf.MixtralConfig(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=896,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_local_experts=8,
        sliding_window=None,
        use_cache=False,
    )
    inputs = {"input_ids": ids(length, 32000), "logits_to_keep": 1}
    return _text(tf.MixtralForCausalLM(config), inputs, _last, "input_ids")


def t5(length: int) -> Case:
    """Flan-T5-small's sizes; a decoder of eight tokens."""
    config = tf.T5Config(
        d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=6, vocab_size=32128,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, use_cache=False,
    )  # fmt: skip
    inputs = {"input_ids": ids(length, 32128), "decoder_input_ids": ids(8, 32128)}
    return _text(tf.T5ForConditionalGeneration(config), inputs, _last, "input_ids", "decoder_input_ids")


def bert(length: int) -> Case:
    """BERT-base with a classifier on it."""
    model = tf.BertForSequenceClassification(tf.BertConfig())
    return _text(model, {"input_ids": ids(length, 30522)}, _rows, "input_ids")


CASES: dict[str, Callable[[], Case]] = {
    "llama-128": lambda: llama(8, 512, 128),
    "llama-512": lambda: llama(8, 512, 512),
    "llama-2048": lambda: llama(8, 512, 2048),
    "llama-4096": lambda: llama(8, 512, 4096),
    "llama-16x1024": lambda: llama(16, 1024, 512),
    "mixtral": lambda: mixtral(512),
    "t5": lambda: t5(512),
    "bert": lambda: bert(128),
    "vit": lambda: _image(tf.ViTForImageClassification(tf.ViTConfig(num_labels=1000)), "pixel_values"),
    "resnet": lambda: _image(tf.ResNetForImageClassification(tf.ResNetConfig(num_labels=1000)), "pixel_values"),
}

DEEP = {"llama-32x512": lambda: llama(32, 512, 2048)}

#: models for generation; the time of the smaller one is overhead of operator calls, not arithmetic
GENERATING = {"llama-4x128": lambda: llama(4, 128, 128, 1000), "llama-8x512": lambda: llama(8, 512, 128)}

ON_GPU: dict[str, Callable[[], Case]] = {
    "llama-1b": lambda: llama(16, 2048, 2048),
    "llama-7b": lambda: llama(32, 4096, 2048),
    **{k: CASES[k] for k in ("mixtral", "t5", "bert", "vit", "resnet")},
}

ABOUT = {
    "llama-128": "Llama-like, 8 layers x 512, 128 tokens",
    "llama-512": "Llama-like, 8 x 512, 512 tokens",
    "llama-2048": "Llama-like, 8 x 512, 2048 tokens",
    "llama-4096": "Llama-like, 8 x 512, 4096 tokens",
    "llama-16x1024": "Llama-like, 16 x 1024, 512 tokens",
    "llama-4x128": "Llama-like, 4 x 128",
    "llama-8x512": "Llama-like, 8 x 512",
    "llama-32x512": "Llama-like, 32 x 512, 2048 tokens",
    "mixtral": "Mixtral-like, 8 x 512, 2 of 8 experts, 512 tokens",
    "t5": "T5-like (Flan-T5-small), 512 tokens in, 8 out",
    "bert": "BERT-base, 128 tokens",
    "vit": "ViT-B/16",
    "resnet": "ResNet-50",
    "llama-1b": "Llama-like, 16 x 2048, 2048 tokens",
    "llama-7b": "Llama-like, 32 x 4096, 2048 tokens",
}


def make(name: str, device: str, dtype: str) -> Case:
    """A case by name; the same weights and inputs each time."""
    torch.manual_seed(0)
    builders = CASES | DEEP | GENERATING | ON_GPU
    with torch.device(device):
        case = builders[name]()
    return case.to(device, getattr(torch, dtype))
