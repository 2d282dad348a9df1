"""Sound as model inputs, by a feature extractor (Hugging Face)."""

from __future__ import annotations

import inspect
import io
import warnings
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrp_fx.errors import InputError, type_and_line
from lrp_fx.results import Note

_ENDS = 0.05  #: seconds at the end of a sound that are changed to test whether the extractor reads them


@dataclass(frozen=True)
class Sound:
    """One channel of sound.

    Attributes:
        wave: (T,) in single precision.
        rate: samples per second.
    """

    wave: np.ndarray
    rate: float


#: bytes of a sample in a wav file -> (type, value of silence)
_SAMPLES = {1: ("u1", 128), 2: ("<i2", 0), 3: ("<i4", 0), 4: ("<i4", 0)}


def open_sound(source: str | Path | bytes) -> dict[str, Any]:
    """Read a wav file, or its bytes, averaged over channels: ``{"array": ..., "sampling_rate": ...}``.

    Raises:
        InputError: for a file of another kind, and for compressed ones.
    """
    try:
        with wave.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
        kind, silence = _SAMPLES[width]
        if width == 3:  # widened by a lowest byte of 0
            samples = np.frombuffer(data, "u1").reshape(-1, 3)
            data, width = np.pad(samples, ((0, 0), (1, 0))).tobytes(), 4
    except (OSError, wave.Error, EOFError, KeyError, ValueError) as reason:
        name = "the content" if isinstance(source, bytes) else repr(str(source))
        raise InputError(
            f"{name} cannot be read as a wav file of 8, 16, 24 or 32 bits ({type_and_line(reason)})"
        ) from reason
    values = (np.frombuffer(data, kind).astype(np.float64) - silence) / 2 ** (8 * width - 1)
    return {"array": values.reshape(-1, channels).mean(1).astype(np.float32), "sampling_rate": rate}


def decoded_sound(value: Any) -> Any:
    """A decoder, as torchcodec's and as in Hugging Face's data sets, as a sound; other values as they are."""
    if not _decodes(value):
        return value
    samples = value.get_all_samples()
    return {"array": samples.data.float().mean(0).numpy(), "sampling_rate": samples.sample_rate}


def _decodes(value: Any) -> bool:
    return hasattr(value, "get_all_samples")


def is_sound(value: Any) -> bool:
    """Whether a value is a sound: a dict or a decoder as in Hugging Face's data sets, or a (T,) array of numbers."""
    if _decodes(value):
        return True
    if isinstance(value, Mapping):
        return "sampling_rate" in value and bool({"array", "raw"} & value.keys())
    return isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "fi"


def are_sounds(value: Any) -> bool:
    """Whether a value is a sound, or a list of sounds."""
    return is_sound(value) or (isinstance(value, list) and bool(value) and all(map(is_sound, value)))


@dataclass(frozen=True)
class SoundEncoder:
    """A feature extractor.

    Attributes:
        extractor: a function from arrays of sound to tensors by name; its ``sampling_rate`` is the model's.
    """

    extractor: Any

    @property
    def rate(self) -> float:
        """Sampling rate of the model's input, in Hz."""
        return float(self.extractor.sampling_rate)

    def encode(self, value: Any, rate: float | None = None) -> tuple[dict[str, Tensor], tuple[Note, ...]]:
        """Sounds as one batch at the model's rate, with a note on an end that the extractor does not read.

        Args:
            value: one sound, or several.
            rate: samples per second of arrays without a rate of their own.

        Raises:
            InputError: without a rate, and for a sound with several channels.
        """
        sounds = [self._heard(_sound(one, rate)) for one in (value if isinstance(value, list) else [value])]
        notes: list[Note] = []
        for number, sound in enumerate(sounds):
            unread = self._unread(sound)
            if unread:
                seconds = len(sound.wave) / sound.rate
                heard = f"{seconds - unread:.3g} s"
                cut = f"sound {number} has {seconds:.3g} s, and the model hears {heard}: the rest was cut off"
                warnings.warn(cut, stacklevel=5)
                notes.append(Note("cut off", f"{cut}. Explain it in parts."))
        return self._extracted([sound.wave for sound in sounds]), tuple(notes)

    def waves(self, values: list[Any], rate: float | None) -> list[np.ndarray]:
        """Sounds as arrays at the model's rate."""
        return [self._heard(_sound(one, rate)).wave for one in values]

    def _heard(self, sound: Sound) -> Sound:
        """The sound at the model's rate, resampled by its spectrum as in ``scipy.signal.resample``."""
        count = round(len(sound.wave) * self.rate / sound.rate)
        if count == len(sound.wave):
            return Sound(sound.wave, self.rate)
        spectrum = torch.fft.rfft(torch.from_numpy(sound.wave).double())
        resampled = torch.zeros(count // 2 + 1, dtype=spectrum.dtype)
        resampled[: len(spectrum)] = spectrum[: len(resampled)]
        wave = torch.fft.irfft(resampled, n=count) * (count / len(sound.wave))
        return Sound(wave.float().numpy(), self.rate)

    def _extracted(self, waves: list[np.ndarray]) -> dict[str, Tensor]:
        padding = inspect.signature(self.extractor.__call__).parameters.get("padding")
        uneven = len(set(map(len, waves))) > 1 and padding is not None and padding.default is False
        batch = self.extractor(
            waves, sampling_rate=int(self.rate), return_tensors="pt", **({"padding": True} if uneven else {})
        )
        return {n: v for n, v in batch.items() if isinstance(v, Tensor)}

    def _unread(self, sound: Sound) -> float:
        """Seconds at the end that do not affect the extractor's result, found by bisection on changed sounds."""
        length = len(sound.wave)
        end = min(length, max(length // 100, int(_ENDS * self.rate)))
        whole = self._extracted([sound.wave])

        def is_read(start: int) -> bool:
            moved = sound.wave.copy()
            change = np.resize([0.1, -0.1, -0.1], length - start) * (1 + np.abs(moved).max())
            moved[start:] += change.astype(moved.dtype)
            return any(not torch.equal(v, whole[n]) for n, v in self._extracted([moved]).items())

        if is_read(length - end):
            return 0.0
        low, high = 0, length - end  # a change from `low` on has an effect; one from `high` on has none
        while high - low > max(1, length // 200):
            middle = (low + high) // 2
            low, high = (middle, high) if is_read(middle) else (low, middle)
        return (length - high) / sound.rate


def _sound(value: Any, rate: float | None) -> Sound:
    """A sound from a dict, a decoder or an array.

    Raises:
        InputError: without a rate, and for a sound with several channels.
    """
    value = decoded_sound(value)
    if isinstance(value, Mapping):
        rate, value = float(value["sampling_rate"]), value["array"] if "array" in value else value["raw"]
    values = np.asarray(value)
    if values.ndim != 1:
        raise InputError(f"a sound of shape {values.shape}: give one channel, (T,)")
    if not len(values):
        raise InputError("a sound has no samples")
    if rate is None:
        raise InputError("an array of sound needs its rate: explain(array, sampling_rate=16000)")
    largest = np.iinfo(values.dtype).max if values.dtype.kind == "i" else 1
    return Sound((values / largest).astype(np.float32), float(rate))
