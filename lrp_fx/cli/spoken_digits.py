"""Sound and words of the demo `digit`: log-mel of a recording, and a tokenizer of digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrp_fx.extras import require

RATE, WINDOW, HOP = 8000, 200, 100  #: samples a second, of a window, between windows
MELS, FRAMES = 40, 192
RANGE = 4.0  #: powers of ten between the loudest value (1) and silence (-1)
SILENCE = RATE // 5  #: samples of silence before the first word, as in the recordings that the model learnt
START, END = "<s>", "</s>"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def filters() -> Tensor:
    """(MELS, WINDOW / 2 + 1) triangles, evenly spread over the mel scale."""
    highest = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(50, float(highest), MELS + 2) / 2595) - 1)
    bins = torch.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


def log_mel(sounds: Tensor) -> Tensor:
    """(N, HOP FRAMES) samples -> (N, MELS, FRAMES), frame f around sample HOP f; RANGE below the loudest is -1."""
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(sounds, WINDOW, HOP, window=window, center=True, return_complex=True)[..., :FRAMES]
    power = (filters() @ spectrum.abs().square()).clamp(min=1e-10).log10()
    loudest = power.amax((1, 2), keepdim=True)
    return 1 + 2 * ((power - loudest) / RANGE).clamp(min=-1)


class LogMel:
    """Extracts log-mel features of recordings of up to 2.2 seconds; longer ones are cut off.

    Attributes:
        sampling_rate: samples a second.
        model_input_names: names of its results.
    """

    sampling_rate = RATE
    model_input_names = ("input_features",)

    def __call__(self, sounds: Sequence[np.ndarray], sampling_rate: int, return_tensors: str) -> dict[str, Tensor]:
        """Recordings at ``sampling_rate`` -> {"input_features": (N, MELS, FRAMES)}."""
        waves = torch.zeros(len(sounds), HOP * FRAMES)
        for wave, sound in zip(waves, sounds, strict=True):
            samples = torch.from_numpy(sound)[: len(wave) - SILENCE].float()
            wave[SILENCE : SILENCE + len(samples)] = samples / samples.abs().amax().clamp(min=1e-6)
        return {"input_features": log_mel(waves)}


def digit_tokenizer() -> Any:
    """A tokenizer of start, end and the ten digits.

    Raises:
        MissingExtraError: without transformers.
    """
    transformers: Any = require("transformers", "transformers")
    tokenizers: Any = require("tokenizers", "transformers")
    words = {word: number for number, word in enumerate((START, END, *DIGITS))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=START))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=START, eos_token=END, pad_token=START
    )
