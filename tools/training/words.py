"""Rendered words: random letters in many fonts on white paper, and where each letter stands."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FOLDER = Path("/usr/share/fonts/truetype")
#: fonts for training, from the Debian packages fonts-dejavu-core, fonts-liberation, fonts-freefont-ttf, fonts-lato
LEARNT = (
    "dejavu/DejaVuSans.ttf", "dejavu/DejaVuSans-Bold.ttf", "dejavu/DejaVuSerif.ttf", "dejavu/DejaVuSansMono.ttf",
    "liberation/LiberationSans-Regular.ttf", "liberation/LiberationSans-Bold.ttf", "liberation/LiberationMono-Regular.ttf",
    "liberation/LiberationSerif-Bold.ttf", "freefont/FreeSans.ttf", "freefont/FreeSerif.ttf", "freefont/FreeMonoBold.ttf",
    "lato/Lato-Regular.ttf", "lato/Lato-Bold.ttf", "lato/Lato-Light.ttf",
)  # fmt: skip
#: held-out fonts
HELD_OUT = (
    "liberation/LiberationSerif-Regular.ttf", "lato/Lato-Medium.ttf", "freefont/FreeSansBold.ttf",
    "dejavu/DejaVuSerif-Bold.ttf", "freefont/FreeMono.ttf",
)  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"
BLANK = 0  #: class of CTC that stands for no letter; letter i is class i + 1
HEIGHT, WIDTH, STEP = 32, 112, 4  #: of an image, and the pixels of one step of the output
LENGTHS = (3, 6)
PAPER, INK = 1.0, -1.0  #: pixel values


@dataclass(frozen=True)
class Words:
    """Rendered words.

    Attributes:
        images: (N, 1, HEIGHT, WIDTH), white paper 1, ink -1.
        letters: (N, 6) classes, BLANK behind the last letter.
        begin: (N, 6) first column of each letter's ink.
        end: (N, 6) the column behind its last.
        ink: (N, HEIGHT, WIDTH) bool: pixels that hold any ink.
    """

    images: Tensor
    letters: Tensor
    begin: Tensor
    end: Tensor
    ink: Tensor

    @property
    def lengths(self) -> Tensor:
        """(N,) letters of each word."""
        return (self.letters != BLANK).sum(1)

    def part(self, rows: Tensor) -> Words:
        """The words ``rows``."""
        return Words(self.images[rows], self.letters[rows], self.begin[rows], self.end[rows], self.ink[rows])

    def steps(self) -> Tensor:
        """(N, WIDTH / STEP) class of the letter over the middle of each step of the output, BLANK between letters."""
        middle = torch.arange(WIDTH // STEP) * STEP + STEP // 2
        over = (middle >= self.begin[..., None]) & (middle < self.end[..., None])
        return (over * self.letters[..., None]).amax(1)


def join(batches: Iterable[Words]) -> Words:
    """Several as one."""
    rows = [(p.images, p.letters, p.begin, p.end, p.ink) for p in batches]
    return Words(*(torch.cat(part) for part in zip(*rows, strict=True)))


def fonts(names: Sequence[str]) -> list[Path]:
    """Their files.

    Raises:
        FileNotFoundError: for one that is not installed.
    """
    paths = [FOLDER / name for name in names]
    if missing := [p for p in paths if not p.is_file()]:
        raise FileNotFoundError(f"no font {missing[0]}: tools/train and tools/faithfulness install Debian's fonts-*")
    return paths


@functools.cache
def glyph(font: Path, size: int, letter: str) -> tuple[np.ndarray, int, int]:
    """Ink of a letter from 0 to 1, (2 HEIGHT, columns), its baseline at row HEIGHT; columns left of its ink; its advance."""
    face = ImageFont.truetype(str(font), size)
    image = Image.new("L", (3 * size, 2 * HEIGHT))
    ImageDraw.Draw(image).text((size, HEIGHT), letter, fill=255, font=face, anchor="ls")
    pixels = np.asarray(image) / 255
    inked = np.flatnonzero(pixels.any(0))
    return pixels[:, inked[0] : inked[-1] + 1], int(inked[0]) - size, round(face.getlength(letter))


def render(count: int, files: Sequence[Path], generator: np.random.Generator) -> Words:
    """``count`` words of random letters; every font, size, place and darkness drawn anew for each."""
    most = LENGTHS[1]
    ink = np.zeros((count, HEIGHT, WIDTH))
    letters, begin, end = (np.zeros((count, most), dtype=np.int64) for _ in range(3))
    for row in range(count):
        file, size = files[generator.integers(len(files))], int(generator.integers(16, 24))
        length = int(generator.integers(LENGTHS[0], most + 1))
        chosen = generator.integers(len(LETTERS), size=length)
        shapes = [glyph(file, size, LETTERS[i]) for i in chosen]
        while sum(advance for *_, advance in shapes) > WIDTH - 8:
            shapes.pop()
        spare = WIDTH - 8 - sum(advance for *_, advance in shapes)
        x, base = 4 + int(generator.integers(spare + 1)), int(generator.integers(21, 25))
        for place, (shape, left, advance) in enumerate(shapes):
            first, last = max(x + left, 0), min(x + left + shape.shape[1], WIDTH)
            part = shape[HEIGHT - base : 2 * HEIGHT - base, : last - first]
            ink[row, :, first:last] = np.maximum(ink[row, :, first:last], part)
            letters[row, place], begin[row, place], end[row, place] = chosen[place] + 1, first, last
            x += advance
    darkness = generator.uniform(0.7, 1.0, (count, 1, 1))
    noise = generator.normal(0, 0.03, ink.shape)
    images = PAPER + (INK - PAPER) * darkness * ink + noise
    tensors = (torch.from_numpy(a) for a in (letters, begin, end))
    return Words(torch.from_numpy(images).float()[:, None], *tensors, torch.from_numpy(ink > 0.05))


def read(logits: Tensor) -> tuple[list[list[int]], list[list[int]]]:
    """What CTC reads: the classes of each word, and the step at which each letter's logit is largest in its run."""
    words, places = [], []
    for row in logits:
        classes, counts = torch.unique_consecutive(row.argmax(-1), return_counts=True)
        ends = counts.cumsum(0)
        runs = [(int(c), int(e - n), int(e)) for c, n, e in zip(classes, counts, ends, strict=True) if c != BLANK]
        words.append([c for c, _, _ in runs])
        places.append([a + int(row[a:b, c].argmax()) for c, a, b in runs])
    return words, places
