"""Vision-language models: image patches and text tokens in one call, accounted for together."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from models import few
from torch import Tensor, nn

import lrp_fx

IMAGE, WORDS = 99, 100
TEXT = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def ids_with_image(patches: int) -> Tensor:
    """Two questions about one image each: text, the image's places, text."""
    text = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(3))
    return torch.cat([text[:, :3], torch.full((2, patches), IMAGE), text[:, 3:]], 1)


def llava_like() -> tuple[nn.Module, dict[str, Tensor]]:
    vision = tf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
    )
    config = tf.LlavaConfig(
        vision_config=vision, text_config=tf.LlamaConfig(**TEXT), image_token_index=IMAGE, vision_feature_layer=-1
    )
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return tf.LlavaForConditionalGeneration(config), {"input_ids": ids_with_image(4), "pixel_values": pixels}


def qwen_vl_like() -> tuple[nn.Module, dict[str, Tensor]]:
    config = tf.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8},
        image_token_id=IMAGE, video_token_id=98, vision_start_token_id=97, vision_end_token_id=96,
    )  # fmt: skip
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    pixels = torch.randn(32, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ids = ids_with_image(4)
    inputs = {
        "input_ids": ids, "pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": (ids == IMAGE).long(),
    }  # fmt: skip
    return tf.Qwen2VLForConditionalGeneration(config), inputs


@pytest.mark.parametrize("build", few([llava_like, qwen_vl_like], llava_like))
def test_image_and_text_sum_to_the_target_in_one_call(build) -> None:
    torch.manual_seed(0)
    model, inputs = build()
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    xmodel = lrp_fx.convert(model, **inputs)
    attribution = xmodel.explain(**inputs, target=[7, 11], rules="cp_lrp")
    image, text = attribution.relevance["pixel_values"], attribution.relevance["input_ids"]
    assert image.shape == inputs["pixel_values"].shape
    assert text.shape == inputs["input_ids"].shape
    assert bool(image.any())
    places = inputs["input_ids"] == IMAGE
    assert not bool(text[places].any())  # an image's place holds patches, not a word
    assert bool(text[~places].any())
    total = image.sum() + text.sum() + attribution.ledger["source"]
    assert abs(float(total) - attribution.ledger.target) <= 1e-6 * abs(attribution.ledger.target)
    assert attribution.ledger["bias"] == 0
