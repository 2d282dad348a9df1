"""Arrays, images and sound as text for a page: base64, and data: URIs. Needs no library for images or sound."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import Any

import numpy as np

from lrp_fx.viz.viewer.schema import Packed

Array = np.ndarray[Any, np.dtype[Any]]


def pack(values: Array) -> Packed:
    """An array in single precision, as base64."""
    data = np.ascontiguousarray(values, dtype="<f4")
    return {"shape": list(values.shape), "float32": base64.b64encode(data.tobytes()).decode()}


def unpack(packed: Packed) -> Array:
    """The array of :func:`pack`."""
    return np.frombuffer(base64.b64decode(packed["float32"]), dtype="<f4").reshape(packed["shape"])


def finite(value: float) -> float | None:
    """The number, or None for infinities and NaN, which JSON lacks."""
    return value if math.isfinite(value) else None


def image(pixels: Array) -> str:
    """A PNG image as a data: URI.

    Args:
        pixels: (H, W) or (C, H, W) with C = 1 or 3; values from 0 (black) to 1 (white).
    """
    channels = pixels[None] if pixels.ndim == 2 else pixels
    scaled = np.round(np.clip(channels, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    height, width, count = scaled.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), scaled.reshape(height, -1)], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[count], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return _uri("image/png", b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def sound(wave: Array, rate: float) -> str:
    """A wav file of one channel as a data: URI, scaled to full amplitude."""
    values = np.nan_to_num(wave.astype(np.float64))
    samples = np.round(values * (32767 / (float(np.abs(values).max()) or 1.0))).astype("<i2").tobytes()
    rate = round(rate)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    data = struct.pack("<4sI", b"data", len(samples)) + samples
    return _uri("audio/wav", struct.pack("<4sI", b"RIFF", 4 + len(form) + len(data)) + b"WAVE" + form + data)


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
