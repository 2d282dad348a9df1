"""Images to model inputs by an image processor of Hugging Face's kind, or by any function of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.results import Normalization


def open_image(path: str | Path) -> Any:
    """The image in a file, by PIL.

    Raises:
        InputError: for a file that is none.
        MissingExtraError: when pillow is not installed.
    """
    pillow: Any = require("PIL.Image", "images")
    try:
        return pillow.open(path).convert("RGB")
    except OSError as reason:
        raise InputError(f"{str(path)!r} is no image that can be read: {reason}") from reason


def is_image(value: Any) -> bool:
    """Whether a value is an image: one of PIL, or an array (H, W, 3) of bytes."""
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] in (1, 3, 4)
    return hasattr(value, "getbands") and hasattr(value, "convert")


def are_images(value: Any) -> bool:
    """Whether a value is an image, or a list of images."""
    return is_image(value) or (isinstance(value, list) and bool(value) and all(map(is_image, value)))


@dataclass(frozen=True)
class ImageEncoder:
    """What makes tensors of images.

    Attributes:
        processor: called with images, it returns tensors by name (``model_input_names`` says that it does); else it is
            a function of one image to one tensor, as torchvision's transforms are.
        first: name of the input for what such a function returns.
    """

    processor: Any
    first: str

    def encode(self, value: Any) -> dict[str, Tensor]:
        """Images as one batch.

        Raises:
            InputError: where the processor refuses them.
        """
        images = [_coloured(image) for image in (value if isinstance(value, list) else [value])]
        if not hasattr(self.processor, "model_input_names"):
            return {self.first: torch.stack([self.processor(image) for image in images])}
        try:
            made = self.processor(images=images, return_tensors="pt")
        except (ValueError, TypeError, RuntimeError) as reason:
            raise InputError(f"the image processor refuses the image: {reason}") from reason
        return {n: v for n, v in made.items() if isinstance(v, Tensor)}

    def normalization(self, inputs: Mapping[str, Tensor]) -> dict[str, Normalization]:
        """How values of inputs that are images become colours."""
        known = self._normalization()
        if known is None:
            return {}
        channels = {len(known.mean)} if len(known.mean) > 1 else {1, 3}
        return {name: known for name, value in inputs.items() if value.dim() == 4 and value.shape[1] in channels}

    def _normalization(self) -> Normalization | None:
        source = next((step for step in (self.processor, *_steps(self.processor)) if _has_mean(step)), None)
        if source is not None and getattr(source, "do_normalize", True):
            mean, std = (_listed(getattr(source, n, getattr(source, f"image_{n}", None))) for n in ("mean", "std"))
        else:
            mean, std = (0.0,), (1.0,)
        rescaled = getattr(self.processor, "do_rescale", True)
        factor = 1.0 if rescaled is not False else 1 / 255
        return Normalization(tuple(m * factor for m in mean), tuple(s * factor for s in std))


def _has_mean(step: Any) -> bool:
    return any(getattr(step, name, None) is not None for name in ("image_mean", "mean"))


def _steps(processor: Any) -> list[Any]:
    """The steps of a composed transform, torchvision's or timm's."""
    return list(getattr(processor, "transforms", None) or [])


def _listed(value: Any) -> tuple[float, ...]:
    values = value.flatten().tolist() if isinstance(value, Tensor) else value
    return tuple(map(float, values)) if isinstance(values, (list, tuple)) else (float(values),)


def _coloured(image: Any) -> Any:
    """An image with three channels, where it has another number of them (a palette, an alpha channel)."""
    return image.convert("RGB") if hasattr(image, "convert") and image.mode not in ("RGB", "L") else image
