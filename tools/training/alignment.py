"""Monotone alignments of letters and phonemes, learnt from counts.

A word is a chain of pieces: a silent letter, one letter or two for a phoneme, or a letter for two phonemes ("x" in "box").
Expectation maximisation over many words finds the probability of each piece; the most probable chain of a word is its
alignment (as in many-to-many aligners, Jiampojamarn et al. 2007).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from training.phonemes import Word

Piece = tuple[str, tuple[str, ...]]  #: letters and their phonemes
SHAPES = ((1, 0), (1, 1), (2, 1), (1, 2))  #: numbers of letters and of phonemes
RARE = 1e-7  #: probability of a piece that was never counted


def _pieces(word: Word, i: int, j: int) -> Iterator[tuple[int, int, Piece]]:
    """(where the letters end, where the phonemes end, piece) of every piece that begins at letter i and phoneme j."""
    for letters, said in SHAPES:
        if i + letters <= len(word.letters) and j + said <= len(word.phonemes):
            yield i + letters, j + said, (word.letters[i : i + letters], word.phonemes[j : j + said])


def _places(word: Word) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(word.letters) + 1) for j in range(len(word.phonemes) + 1)]


def _expected(word: Word, chance: Mapping[Piece, float], counts: dict[Piece, float]) -> None:
    """Add the expected counts of all pieces in a word (forward-backward over all chains)."""
    end = (len(word.letters), len(word.phonemes))
    before, behind = defaultdict(float, {(0, 0): 1.0}), defaultdict(float, {end: 1.0})
    steps = [((i, j), (k, m), piece) for i, j in _places(word) for k, m, piece in _pieces(word, i, j)]
    for start, stop, piece in steps:
        before[stop] += before[start] * chance.get(piece, RARE)
    for start, stop, piece in reversed(steps):
        behind[start] += behind[stop] * chance.get(piece, RARE)
    if before[end] > 0:
        for start, stop, piece in steps:
            counts[piece] += before[start] * chance.get(piece, RARE) * behind[stop] / before[end]


def learn(words: Sequence[Word], rounds: int = 8) -> dict[Piece, float]:
    """The probability of every piece, from words with their phonemes."""
    chance: dict[Piece, float] = defaultdict(lambda: 1.0)
    for piece in {piece for word in words for i, j in _places(word) for _, _, piece in _pieces(word, i, j)}:
        chance[piece] = 1.0
    for _ in range(rounds):
        counts: dict[Piece, float] = defaultdict(float)
        for word in words:
            _expected(word, chance, counts)
        total = sum(counts.values())
        chance = {piece: count / total for piece, count in counts.items()}
    return dict(chance)


def align(word: Word, chance: Mapping[Piece, float]) -> list[set[int]] | None:
    """The letters of each phoneme in the most probable chain; None without a chain."""
    best: dict[tuple[int, int], tuple[float, list[set[int]]]] = {(0, 0): (1.0, [])}
    for i, j in _places(word):
        if (i, j) not in best:
            continue
        probability, letters = best[i, j]
        for k, m, piece in _pieces(word, i, j):
            candidate = probability * chance.get(piece, RARE)
            if candidate > best.get((k, m), (0.0, []))[0]:
                best[k, m] = candidate, [*letters, *({*range(i, k)} for _ in range(j, m))]
    end = best.get((len(word.letters), len(word.phonemes)))
    return None if end is None else end[1]
