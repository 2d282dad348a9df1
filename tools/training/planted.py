"""Sequences whose answer is known to depend on known tokens, for models that learn them to the last sample.

Each sequence asks at several positions while a model learns; ``Sequences.cut`` gives samples with one question, which
is their last token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

START, ASK = 0, 1
PAIRS, KEYS, VALUES = 8, 24, 24
KINDS, LETTERS, DEPTH, LENGTH = 4, 8, 3, 20
DIGITS = 4


@dataclass(frozen=True)
class Sequences:
    """Sequences with questions.

    Attributes:
        ids: (N, S) tokens.
        answers: (N, S) the answer where a position asks for one, elsewhere -100.
        truth: (N, S, S) bool: for each position that asks, the tokens that its answer depends on.
    """

    ids: Tensor
    answers: Tensor
    truth: Tensor

    def cut(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """The first ``length`` tokens, which end with a question: ids (N, L), answer (N,), truth (N, L)."""
        return self.ids[:, :length], self.answers[:, length - 1], self.truth[:, length - 1, :length]


Planted = Callable[[int, torch.Generator], Sequences]


def _empty(ids: Tensor) -> tuple[Tensor, Tensor]:
    count, length = ids.shape
    return torch.full_like(ids, -100), torch.zeros(count, length, length, dtype=torch.bool)


def recall(count: int, generator: torch.Generator) -> Sequences:
    """Associative recall: ``k v k v ... k``, answered by the value that followed that key; then further keys, each a question.

    Truth: that value and the key before it. Vocabulary: start, ask (unused), keys, values.
    """
    keys = torch.rand(count, KEYS, generator=generator).argsort(-1)[:, :PAIRS] + 2
    values = torch.randint(VALUES, (count, PAIRS), generator=generator) + 2 + KEYS
    asked = torch.randint(PAIRS, (count, PAIRS), generator=generator)
    pairs = torch.stack([keys, values], -1).flatten(1)
    ids = torch.cat([torch.full((count, 1), START), pairs, keys.gather(1, asked)], 1)
    answers, truth = _empty(ids)
    answers[:, 1 + 2 * PAIRS :] = values.gather(1, asked)
    for position, which in enumerate(asked.T, 1 + 2 * PAIRS):
        for offset in (1, 2):
            truth[torch.arange(count), position, 2 * which + offset] = True
    return Sequences(ids, answers, truth)


def brackets(count: int, generator: torch.Generator) -> Sequences:
    """Bracket matching: brackets of four kinds, nested up to three deep, between letters that mean nothing.

    Every position from the first open bracket on asks which kind has to be closed next; the last token asks only. Truth: the innermost bracket that
    is still open. Vocabulary: start, ask, open brackets, closing brackets (the answers), letters.
    """
    ids = torch.empty(count, LENGTH, dtype=torch.long)
    ids[:, 0], ids[:, -1] = START, ASK
    answers, truth = _empty(ids)
    letters = torch.randint(LETTERS, ids.shape, generator=generator) + 2 + 2 * KINDS
    kinds = torch.randint(KINDS, ids.shape, generator=generator)
    moves = torch.rand(ids.shape, generator=generator)
    for row in range(count):
        still_open: list[tuple[int, int]] = []
        for i in range(1, LENGTH):
            if i < LENGTH - 1:
                move, kind = float(moves[row, i]), int(kinds[row, i])
                if not still_open or (move < 0.3 and len(still_open) < DEPTH):
                    still_open.append((kind, i))
                    ids[row, i] = 2 + kind
                elif move < 0.55 and len(still_open) > 1:
                    ids[row, i] = 2 + KINDS + still_open.pop()[0]
                else:
                    ids[row, i] = letters[row, i]
            kind, where = still_open[-1]
            answers[row, i] = 2 + KINDS + kind
            truth[row, i, where] = True
    return Sequences(ids, answers, truth)


def addition(count: int, generator: torch.Generator) -> Sequences:
    """Addition of two numbers of four digits, most significant first: ``a a a a b b b b`` and then a question per column.

    The question for a column (units first) is answered by that digit of the sum. No column's digits add up to nine, so
    that a carry is decided by the column to the right alone. Truth: the digits of the column and of the one to its
    right. Vocabulary: start, ask (unused), digits, one question per column.
    """
    first = torch.randint(10, (count, DIGITS), generator=generator)
    second = torch.randint(9, (count, DIGITS), generator=generator)
    second = second + (second >= 9 - first)  # skips 9 - first
    total = first + second
    carry = torch.cat([total[:, 1:] > 9, torch.zeros(count, 1, dtype=torch.bool)], 1)
    digits = (total + carry) % 10
    questions = (12 + torch.arange(DIGITS)).expand(count, -1)
    ids = torch.cat([torch.full((count, 1), START), first + 2, second + 2, questions], 1)
    answers, truth = _empty(ids)
    for column in range(DIGITS):
        position, place = 1 + 2 * DIGITS + column, DIGITS - 1 - column
        answers[:, position] = digits[:, place] + 2
        for needed in {place, min(place + 1, DIGITS - 1)}:
            truth[:, position, [1 + needed, 1 + DIGITS + needed]] = True
    return Sequences(ids, answers, truth)


TASKS: dict[str, Planted] = {"recall": recall, "brackets": brackets, "addition": addition}
VOCABULARY = {"recall": 2 + KEYS + VALUES, "brackets": 2 + 2 * KINDS + LETTERS, "addition": 12 + DIGITS}
