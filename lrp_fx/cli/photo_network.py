"""The network of the demo `photo`: inverted residuals by the names of its published weights, with SAME padding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrp_fx.extras import require

SIDE = 224  #: pixels of an image's side
#: repeats, kernel, stride, expansion, output channels
STAGES = [
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]  # fmt: skip


class Conv(nn.Conv2d):
    """Convolution with SAME padding: as much as needed for ceil(size / stride) outputs, the odd pixel at the end."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride))."""
        pads = []
        for size, kernel, stride in zip(
            reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True
        ):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalization with the epsilon of the published weights."""
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project."""

    def __init__(self, inner: int, kernel: int, stride: int, expansion: int, outer: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.residual = stride == 1 and inner == outer
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv, self._bn0 = Conv(inner, wide, 1, bias=False), norm(wide)
        self._depthwise_conv, self._bn1 = Conv(wide, wide, kernel, stride, groups=wide, bias=False), norm(wide)
        self._project_conv, self._bn2 = Conv(wide, outer, 1, bias=False), norm(outer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inner, H, W) -> (B, outer, H / stride, W / stride)."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.residual else y


class PhotoNetwork(nn.Module):
    """(B, 3, 224, 224) pixels, (value - 127) / 128 -> (B, 1000) logits."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = Conv(3, 32, 3, 2, bias=False), norm(32)
        blocks, channels = [], 32
        for repeats, kernel, stride, expansion, outer in STAGES:
            for index in range(repeats):
                blocks.append(Block(channels, kernel, stride if index == 0 else 1, expansion, outer))
                channels = outer
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = Conv(320, 1280, 1, bias=False), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels -> logits."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return self._fc(F.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))


def load_network(weights: Path) -> PhotoNetwork:
    """The network with published weights, in evaluation mode."""
    network = PhotoNetwork()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


class SquarePixels:
    """The square in the middle of an image, as the network takes it: 224 x 224 pixels, (value - 127) / 128.

    Attributes:
        mean: mean of the colours, which are from 0 to 1.
        std: their divisor.
    """

    mean = (127 / 255,)
    std = (128 / 255,)

    def __call__(self, image: Any) -> Tensor:
        """A PIL image, or an (H, W, C) array of bytes -> (3, SIDE, SIDE)."""
        pillow: Any = require("PIL.Image", "images")
        image = image if hasattr(image, "crop") else pillow.fromarray(np.asarray(image).squeeze())
        left, top = ((length - min(image.size)) // 2 for length in image.size)
        square = image.convert("RGB").crop((left, top, left + min(image.size), top + min(image.size)))
        pixels = np.asarray(square.resize((SIDE, SIDE), pillow.Resampling.BICUBIC), dtype=np.float32)
        return torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1).contiguous()
