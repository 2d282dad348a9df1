"""torchvision: one member of every family of classifiers, segmenters, video nets and detection backbones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from case import Built, Case
from prepare import pooled, prepare
from torch import Tensor, nn
from try_build import try_all

# The smallest member of each family, the input's size, and keywords that shrink it where the builder takes them.
CLASSIFIERS: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (64, {}),
    "convnext_tiny": (64, {}),
    "densenet121": (64, {}),
    "efficientnet_b0": (64, {}),
    "efficientnet_v2_s": (64, {}),
    "googlenet": (64, {"init_weights": False, "aux_logits": False}),
    "inception_v3": (80, {"init_weights": False, "aux_logits": False}),
    "mnasnet0_5": (64, {}),
    "mobilenet_v2": (64, {"width_mult": 0.5}),
    "mobilenet_v3_large": (64, {}),
    "mobilenet_v3_small": (64, {}),
    "regnet_x_400mf": (64, {}),
    "regnet_y_400mf": (64, {}),
    "resnet18": (64, {}),
    "resnet50": (64, {}),
    "resnext50_32x4d": (64, {}),
    "shufflenet_v2_x0_5": (64, {}),
    "squeezenet1_0": (64, {}),
    "squeezenet1_1": (64, {}),
    "swin_t": (64, {}),
    "swin_v2_t": (64, {}),
    "vgg11": (64, {}),
    "vgg11_bn": (64, {}),
    "vit_b_16": (64, {"image_size": 64}),
    "wide_resnet50_2": (64, {}),
}
SEGMENTERS = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")
# Name -> (frames, side).
VIDEO = {
    "mc3_18": (4, 32),
    "r2plus1d_18": (4, 32),
    "r3d_18": (4, 32),
    "s3d": (16, 224),
    "swin3d_t": (4, 64),
}


def _image(side: int) -> Tensor:
    return torch.randn(2, 3, side, side)


def _classifier(name: str, side: int, keywords: dict[str, Any]) -> Built:
    from torchvision.models import get_model

    torch.manual_seed(0)
    return prepare(get_model(name, weights=None, num_classes=10, **keywords), _image(side))


def _small_vit() -> Built:
    """The class of all vit_* builders, which fix the width, with small sizes."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64}
    return prepare(VisionTransformer(**sizes, num_classes=10), _image(32))


def _small_maxvit() -> Built:
    """The class of maxvit_t, which fixes its window of 7 and so 224 pixels, with small sizes."""
    from torchvision.models import MaxVit

    torch.manual_seed(0)
    sizes = {"stem_channels": 16, "block_channels": [16, 32], "block_layers": [1, 1], "head_dim": 8}
    model = MaxVit((32, 32), partition_size=2, stochastic_depth_prob=0.1, num_classes=10, **sizes)
    return prepare(model, _image(32))


def _one_class(output: dict[str, Tensor]) -> Tensor:
    """The score of class 1, averaged over the picture."""
    return output["out"][:, 1].mean((1, 2))


def _segmenter(name: str) -> Built:
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(name, weights=None, weights_backbone=None, num_classes=5)
    return prepare(model, _image(64), target=_one_class)


def _all_maps(output: dict[str, Tensor]) -> Tensor:
    """Every feature map averaged, all channels together: single ones may be dead."""
    return torch.stack([maps.flatten(1).mean(1) for maps in output.values()]).sum(0)


def _detection_backbone(name: str) -> Built:
    from torchvision.models import get_model

    torch.manual_seed(0)
    backbone: nn.Module = get_model(name, weights=None, weights_backbone=None, num_classes=5).backbone
    # SSD's extra layers end in an unpadded 3x3 convolution: less than 300 pixels leave it nothing.
    return prepare(backbone, _image(300 if name.startswith("ssd300") else 64), target=_all_maps)


def _video(name: str, frames: int, side: int) -> Built:
    from torchvision.models import get_model

    torch.manual_seed(0)
    batch = 1 if side > 100 else 2  # S3D pools 2x7x7 cells of 8x32x32 at its end
    return prepare(get_model(name, weights=None, num_classes=10), torch.randn(batch, 3, frames, side, side))


def _small_mvit(residual_pool: bool, rel_pos_embed: bool) -> Built:
    """The class of both MViT builders, which fix 16 frames of 224 pixels, with small sizes."""
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    torch.manual_seed(0)
    blocks = [
        MSBlockConfig(1, 16, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        MSBlockConfig(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    model = MViT(
        spatial_size=(32, 32), temporal_size=4, block_setting=blocks, residual_pool=residual_pool,
        residual_with_cls_embed=not residual_pool, rel_pos_embed=rel_pos_embed, proj_after_attn=rel_pos_embed,
        num_classes=10,
    )  # fmt: skip
    return prepare(model, torch.randn(2, 3, 4, 32, 32))


def _optical_flow(name: str) -> Built:
    from torchvision.models import get_model

    torch.manual_seed(0)
    first, second = _image(128), _image(128)
    inputs = {"image1": first, "image2": second, "num_flow_updates": 2}
    return prepare(get_model(name, weights=None), inputs=inputs, target=lambda flows: pooled(flows[-1]))


def cases() -> list[Case]:
    """All of them; torchvision is imported when one is built, or to list the detectors."""
    from torchvision.models import detection, list_models

    listed: list[Case] = []

    def add(group: str, name: str, build: Callable[..., Built], *args: Any) -> None:
        listed.append(Case("torchvision", group, name, lambda: build(*args)))

    for name, (side, keywords) in CLASSIFIERS.items():
        add("classification", name, _classifier, name, side, keywords)
    add("classification", "VisionTransformer (tiny)", _small_vit)
    add("classification", "MaxVit (tiny)", _small_maxvit)
    for name in SEGMENTERS:
        add("segmentation", name, _segmenter, name)
    for name in list_models(module=detection):
        add("detection-backbone", name, _detection_backbone, name)
    for name, (frames, side) in VIDEO.items():
        add("video", name, _video, name, frames, side)
    add("video", "MViT v1 (tiny)", _small_mvit, False, False)
    add("video", "MViT v2 (tiny)", _small_mvit, True, True)
    for name in ("raft_small", "raft_large"):
        add("optical-flow", name, _optical_flow, name)
    return listed


if __name__ == "__main__":
    sys.exit(bool(try_all(cases(), sys.argv[1] if len(sys.argv) > 1 else None)))
