"""Images as model inputs, by an image processor (Hugging Face) or any function of an image."""

from __future__ import annotations

import io
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


def open_image(source: str | Path | bytes) -> Any:
    """Read an image file, or its bytes, with PIL.

    Raises:
        InputError: for a file that cannot be read as an image.
        MissingExtraError: if pillow is not installed.
    """
    pillow: Any = require("PIL.Image", "images")
    try:
        return pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source).convert("RGB")
    except OSError as reason:
        name = "the content" if isinstance(source, bytes) else repr(str(source))
        raise InputError(f"{name} cannot be read as an image: {reason}") from reason


def is_image(value: Any) -> bool:
    """Whether a value is an image: a PIL image, or an array of bytes, (H, W) or (H, W, C) with 1, 3 or 4 channels."""
    if isinstance(value, np.ndarray):
        channels = value.shape[2] if value.ndim == 3 else 1
        return value.dtype == np.uint8 and value.ndim in (2, 3) and channels in (1, 3, 4)
    return hasattr(value, "getbands") and hasattr(value, "convert")


def are_images(value: Any) -> bool:
    """Whether a value is an image, or a list of images."""
    return is_image(value) or (isinstance(value, list) and bool(value) and all(map(is_image, value)))


@dataclass(frozen=True)
class ImageEncoder:
    """Encodes images as tensors.

    Attributes:
        processor: with an attribute ``model_input_names``, a function from images to tensors by name; otherwise a
            function from one image to one tensor, such as torchvision's transforms.
        first: name of the input for the result of such a function.
    """

    processor: Any
    first: str

    def encode(self, value: Any) -> dict[str, Tensor]:
        """Images as one batch.

        Raises:
            InputError: for images that the processor refuses.
        """
        normalization = self._normalization()
        three = normalization is not None and len(normalization.mean) == 3
        images = [_coloured(image, three) for image in (value if isinstance(value, list) else [value])]
        if not hasattr(self.processor, "model_input_names"):
            return {self.first: torch.stack([self.processor(image) for image in images])}
        try:
            batch = self.processor(images=images, return_tensors="pt")
        except (ValueError, TypeError, RuntimeError) as reason:
            raise InputError(f"the image processor refuses the image: {reason}") from reason
        return {n: v for n, v in batch.items() if isinstance(v, Tensor)}

    def normalization(self, inputs: Mapping[str, Tensor]) -> dict[str, Normalization]:
        """Image input -> its normalization, to show values as colours."""
        normalization = self._normalization()
        if normalization is None:
            return {}
        channels = {len(normalization.mean)} if len(normalization.mean) > 1 else {1, 3}
        images = (name for name, value in inputs.items() if value.dim() == 4 and value.shape[1] in channels)
        return dict.fromkeys(images, normalization)

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


def _coloured(image: Any, three: bool) -> Any:
    """An image with another number of channels (a palette, an alpha channel) as RGB; a grey one if ``three``."""
    if hasattr(image, "convert"):
        return image if image.mode == "RGB" or (image.mode == "L" and not three) else image.convert("RGB")
    image = image.reshape(*image.shape[:2], -1)
    return np.repeat(image, 3, axis=-1) if three and image.shape[-1] == 1 else image[..., :3]
