"""Columns of a data set that are explained: texts, images, sounds, and how a value of each becomes a raw input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrp_fx.encode import KINDS as INPUTS
from lrp_fx.encode import decoded_sound, open_image, open_sound
from lrp_fx.errors import InputError
from lrp_fx.runs.batching import Limits


@dataclass(frozen=True)
class Kind:
    """A kind of column.

    Attributes:
        read: the raw input of a value.
        limits: limits of its batches.
        suffixes: suffixes of files with one value each, in lower case.
    """

    read: Callable[[Any], Any]
    limits: Limits
    suffixes: tuple[str, ...] = ()


def _text(value: Any) -> Any:
    texts = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(part, str) for part in texts):
        raise InputError(f"no text: {value!r:.60}")
    return value


def _image(value: Any) -> Any:
    """An image, or a file: its path, its bytes, or {"bytes", "path"} as in files of Hugging Face's data sets."""
    return value if INPUTS["image"].fits(value) else open_image(_file(value, "image"))


def _sound(value: Any) -> Any:
    """A sound, a decoder of torchcodec, or a file as for an image."""
    return decoded_sound(value) if INPUTS["sound"].fits(value) else open_sound(_file(value, "sound"))


def _file(value: Any, kind: str) -> Any:
    if isinstance(value, Mapping):
        value = next((value[name] for name in ("bytes", "path") if value.get(name) is not None), None)
    if not isinstance(value, (str, Path, bytes)):
        raise InputError(f"no {kind}: {value!r:.60}")
    return value


#: name of a kind -> the kind; sounds in a batch have one length, as models may hear padding
KINDS: Mapping[str, Kind] = {
    "text": Kind(_text, Limits(rows=64, size=4096, padding=0.05)),
    "image": Kind(_image, Limits(rows=16, size=16), (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")),
    "sound": Kind(_sound, Limits(rows=16, size=480_000_000), (".wav",)),
}


def size_of(kind: str, raw: Any) -> int:
    """Size of a raw input other than a text, for batches: the microseconds of a sound, 1 for an image."""
    if kind != "sound":
        return 1
    if not isinstance(raw, Mapping):
        raise InputError('a sound needs its rate: give {"array": ..., "sampling_rate": ...}')
    return round(1e6 * len(raw["array"] if "array" in raw else raw["raw"]) / raw["sampling_rate"])


def shown(value: Any) -> str | None:
    """A value in a shard: the text, or the path of the file."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return str(value) if isinstance(value, (str, Path)) else None
