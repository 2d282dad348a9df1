"""Adapted and quantized models against their dense equals (needs `pip install peft torchao`): prints one row each."""

from __future__ import annotations

import copy

import torch
import transformers as tf
from torch import Tensor, nn

import lrp_fx


def tiny(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=100
    )
    return tf.LlamaForCausalLM(config).to(dtype).eval()


def with_lora() -> tuple[nn.Module, nn.Module]:
    """A model with LoRA adapters, and the same with the adapters merged into its weights."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    adapted = get_peft_model(tiny(torch.float64), config).double().eval()
    return adapted, copy.deepcopy(adapted).merge_and_unload().eval()


def in_int8() -> tuple[nn.Module, nn.Module]:
    """A model with int8 weights, and the same with the weights that these stand for."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantized = tiny(torch.float32)
    quantize_(quantized, Int8WeightOnlyConfig())
    dense = copy.deepcopy(quantized)
    for module in dense.modules():
        if isinstance(module, nn.Linear) and hasattr(module.weight, "dequantize"):
            module.weight = nn.Parameter(module.weight.dequantize().float(), requires_grad=False)
    return quantized, dense


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def main() -> None:
    torch.set_num_threads(1)
    ids = torch.randint(3, 99, (2, 7))
    print("model         against dense   lowered against eager   route")
    for name, pair in (("LoRA, float64", with_lora), ("int8 weights", in_int8)):
        model, dense = pair()
        xmodel = lrp_fx.convert(model, input_ids=ids)
        found = xmodel.explain(input_ids=ids).relevance["input_ids"]
        wanted = lrp_fx.convert(dense).explain(input_ids=ids).relevance["input_ids"]
        lowered = xmodel.lower()(input_ids=ids).relevance["input_ids"]
        route = xmodel._current.captured.route
        print(f"{name:13} {difference(found, wanted):<15.1e} {difference(lowered, found):<23.1e} {route}")


if __name__ == "__main__":
    main()
