"""Spoken digits by espeak-ng: one to three of them in noise, with silence before, between and behind, as log-mel."""

from __future__ import annotations

import hashlib
import io
import subprocess
import wave
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrp_fx.cli.spoken_digits import DIGITS, FRAMES, HOP, RATE, log_mel

START, END, FIRST = 0, 1, 2  #: tokens; digit d is token FIRST + d
VOCABULARY = FIRST + len(DIGITS)
MOST = 3  #: digits of a recording
#: voices of espeak-ng for training, and held-out voices
LEARNT = (
    "en-us", "en-us+m2", "en-us+m3", "en-us+f2", "en-us+f4", "en-gb", "en-gb+m4", "en-gb+f1", "en-gb+f3",
    "en-gb-scotland", "en-gb-scotland+f5", "en-gb-x-rp+m5",
)  # fmt: skip
HELD_OUT = ("en-us+f1", "en-gb+m1", "en-gb-scotland+m2", "en-gb-x-rp+f2")
SPEEDS, PITCHES = (135, 160, 185), (35, 50, 65)


@dataclass(frozen=True)
class Recordings:
    """Digits in a row.

    Attributes:
        mels: (N, MELS, FRAMES) log-mel, from -1 to 1.
        digits: (N, MOST) tokens, END behind the last digit.
        begin: (N, MOST) first frame of each digit.
        end: (N, MOST) the frame behind its last.
    """

    mels: Tensor
    digits: Tensor
    begin: Tensor
    end: Tensor

    def part(self, rows: Tensor) -> Recordings:
        """The recordings ``rows``."""
        return Recordings(self.mels[rows], self.digits[rows], self.begin[rows], self.end[rows])

    @property
    def given(self) -> Tensor:
        """(N, MOST + 1) inputs of the decoder: START, then the digits."""
        return torch.nn.functional.pad(self.digits, (1, 0), value=START)

    @property
    def wanted(self) -> Tensor:
        """(N, MOST + 1) labels of the decoder: the digits, then END, then -100."""
        wanted = torch.nn.functional.pad(self.digits, (0, 1), value=END)
        return torch.where((wanted == END).cumsum(1) > 1, -100, wanted)


def speak(text: str, voice: str, speed: int, pitch: int) -> Tensor:
    """Speech of espeak-ng at RATE, normalised to a largest sample of 1, without silence at both ends.

    Raises:
        FileNotFoundError: when espeak-ng is not installed.
    """
    try:
        options = ["-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout"]
        said = subprocess.run(["espeak-ng", *options, text], capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise FileNotFoundError("no espeak-ng: tools/train and tools/faithfulness install it") from error
    with wave.open(io.BytesIO(said)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(2**30 // 2), dtype=np.int16).astype(np.float32)
    count = int(len(samples) * RATE / rate)
    spectrum = np.fft.rfft(samples)[: count // 2 + 1]  # frequencies above half of RATE are dropped
    sound = torch.from_numpy(np.fft.irfft(spectrum, count).astype(np.float32))
    sound = sound / sound.abs().amax()
    loud = (sound.abs() > 0.02).nonzero()[:, 0]
    return sound[int(loud[0]) : int(loud[-1]) + 1]


def bank(folder: Path, voices: Sequence[str]) -> dict[int, list[Tensor]]:
    """Digit -> its recordings by ``voices``; kept in ``folder``, for espeak-ng is started for each."""
    how = hashlib.sha256(repr((RATE, DIGITS, voices, SPEEDS, PITCHES)).encode()).hexdigest()[:8]
    file = folder / f"{how}.safetensors"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        options = list(product(range(len(DIGITS)), voices, SPEEDS, PITCHES))
        said = {f"{d}|{v}|{s}|{p}": (32767 * speak(DIGITS[d], v, s, p)).short() for d, v, s, p in options}
        save_file(said, file)
    spoken: dict[int, list[Tensor]] = {d: [] for d in range(len(DIGITS))}
    for key, sound in sorted(load_file(file).items()):
        spoken[int(key.split("|")[0])].append(sound.float() / 32767)
    return spoken


def record(count: int, spoken: dict[int, list[Tensor]], generator: np.random.Generator) -> Recordings:
    """``count`` recordings of one to MOST digits; silence is at least a fifth of a second before the first."""
    sounds = torch.zeros(count, HOP * FRAMES)
    digits = torch.full((count, MOST), END)
    begin, end = torch.zeros(count, MOST, dtype=torch.long), torch.zeros(count, MOST, dtype=torch.long)
    for row in range(count):
        chosen = generator.integers(len(DIGITS), size=int(generator.integers(1, MOST + 1))).tolist()
        takes = [spoken[d][int(generator.integers(len(spoken[d])))] for d in chosen]
        gap = RATE // 20
        while sum(map(len, takes)) + gap * len(takes) + RATE // 5 > sounds.shape[1] - gap:
            takes.pop()
        spare = sounds.shape[1] - sum(map(len, takes)) - gap * len(takes) - RATE // 5 - gap
        cuts = np.sort(generator.integers(0, spare + 1, len(takes)))
        for place, (digit, sound) in enumerate(zip(chosen, takes, strict=False)):
            start = RATE // 5 + int(cuts[place]) + gap * place + sum(map(len, takes[:place]))
            sounds[row, start : start + len(sound)] = sound * float(generator.uniform(0.5, 1.0))
            digits[row, place] = FIRST + digit
            begin[row, place], end[row, place] = start // HOP, -(-(start + len(sound)) // HOP)
        sounds[row] += torch.from_numpy(generator.normal(0, 10 ** generator.uniform(-3.5, -2), sounds.shape[1])).float()
    return Recordings(log_mel(sounds), digits, begin, end)


def pool(count: int, spoken: dict[int, list[Tensor]], generator: np.random.Generator) -> Recordings:
    """As :func:`record`, a thousand at a time."""
    batches = [record(min(1000, count - n), spoken, generator) for n in range(0, count, 1000)]
    return join(batches)


def join(recordings: Iterable[Recordings]) -> Recordings:
    """Several as one."""
    rows = [(p.mels, p.digits, p.begin, p.end) for p in recordings]
    return Recordings(*(torch.cat(part) for part in zip(*rows, strict=True)))
