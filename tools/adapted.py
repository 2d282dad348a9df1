"""Adapted and quantized models against their dense equals (needs peft, torchao, bitsandbytes): one row each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as tf
from torch import Tensor, nn

import lrp_fx


@dataclass(frozen=True)
class Pair:
    """A model, and the plain model that computes the same."""

    model: nn.Module
    dense: nn.Module


def tiny(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=112
    )
    return tf.LlamaForCausalLM(config).to(dtype).eval()


def with_lora() -> Pair:
    """LoRA adapters, against adapters merged into the weights."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    adapted = get_peft_model(tiny(torch.float64), config).double().eval()
    return Pair(adapted, copy.deepcopy(adapted).merge_and_unload().eval())


def with_lora_on_int8() -> Pair:
    """LoRA adapters on int8 weights, against the sum of both as weights."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(in_int8().model, config).eval()
    return Pair(adapted, dense(adapted.get_base_model()))


def in_int8() -> Pair:
    """int8 weights of torchao, one scale per row."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = tiny()
    quantize_(model, Int8WeightOnlyConfig())
    return Pair(model, dense(model))


def in_int4() -> Pair:
    """int4 weights of torchao, kept as int8, a scale per 32 values."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    model = tiny()
    quantize_(model, IntxWeightOnlyConfig(torch.int4, PerGroup(32)))
    return Pair(model, dense(model))


def in_packed_int4() -> Pair:
    """int4 weights of torchao, packed for the processor's own product: an operator without a derivative."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    model = tiny()
    quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False))
    return Pair(model, dense(model))


def in_eight_bits(threshold: float) -> Pair:
    """8-bit weights of bitsandbytes, whose product rounds activations to 8 bits too, in float64.

    Args:
        threshold: columns with an activation beyond it are not rounded; 0 rounds all.
    """
    from bitsandbytes.nn import Linear8bitLt

    model = with_layers(
        lambda old: Linear8bitLt(
            old.in_features, old.out_features, bias=False, has_fp16_weights=False, threshold=threshold
        )
    )
    return Pair(model.double().eval(), dense(model))


def in_four_bits(kind: str, nested: bool) -> Pair:
    """4-bit weights of bitsandbytes ("nf4" or "fp4"), their scales quantized once more where ``nested``."""
    from bitsandbytes.nn import Linear4bit

    model = with_layers(
        lambda old: Linear4bit(
            old.in_features, old.out_features, bias=False, compute_dtype=torch.float32,
            compress_statistics=nested, quant_type=kind,
        )
    )  # fmt: skip
    return Pair(model.eval(), dense(model))


def with_layers(make_layer: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A model with other layers of the same weights, except for the last layer."""
    model = tiny()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            new = make_layer(module)
            new.load_state_dict(module.state_dict())
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, new.to("cpu"))
    return model


def dense(model: nn.Module) -> nn.Module:
    """The plain model with weights read off the layers of ``model``, as their outputs for unit vectors."""
    dtype = model.get_input_embeddings().weight.dtype
    plain = tiny(dtype)
    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(model.get_submodule(name)(torch.eye(module.in_features, dtype=dtype)).t())
    return plain


PAIRS: dict[str, Callable[[], Pair]] = {
    "LoRA": with_lora,
    "LoRA on int8": with_lora_on_int8,
    "int8": in_int8,
    "int4": in_int4,
    "int4, packed": in_packed_int4,
    "nf4": lambda: in_four_bits("nf4", nested=False),
    "nf4, nested": lambda: in_four_bits("nf4", nested=True),
    "fp4": lambda: in_four_bits("fp4", nested=False),
    "8 bits": lambda: in_eight_bits(threshold=0.0),
    "8 bits, outliers": lambda: in_eight_bits(threshold=2.0),
}


def difference(actual: Tensor, wanted: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((actual - wanted).abs().max() / wanted.abs().max())


def ids() -> Tensor:
    return torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(0))


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'weights':18}against dense   lowered against eager   output against the model's   route")
    for name, build in PAIRS.items():
        pair = build()
        with torch.no_grad():
            output = pair.model(input_ids=ids()).logits
        xmodel = lrp_fx.convert(pair.model, input_ids=ids())
        explained = xmodel.explain(input_ids=ids())
        actual = explained.relevance["input_ids"]
        wanted = lrp_fx.convert(pair.dense).explain(input_ids=ids()).relevance["input_ids"]
        lowered = xmodel.lower()(input_ids=ids()).relevance["input_ids"]
        figures = f"{difference(actual, wanted):<16.1e}{difference(lowered, actual):<24.1e}"
        route = xmodel.current.captured.route
        print(f"{name:18}{figures}{difference(explained.output.logits, output):<29.1e}{route}", flush=True)


if __name__ == "__main__":
    main()
