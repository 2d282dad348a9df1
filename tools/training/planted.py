"""Sequences with answers that depend on known tokens; small models learn them perfectly.

In training, each sequence has questions at several positions; ``Sequences.cut`` gives samples with one question, the last
token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

START, ASK = 0, 1
PAIRS, KEYS, VALUES = 8, 24, 24
KINDS, LETTERS, OPEN, LENGTH = 4, 8, 0.25, 20
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


def recall(count: int, generator: torch.Generator, fewest: int = PAIRS) -> Sequences:
    """Associative recall: ``k v k v ... k``, answered by the value that followed that key; then further keys, each a question.

    There are ``fewest`` to eight pairs; ask tokens replace the missing ones, which come first. Truth: that value and the
    key before it. Vocabulary: start, ask, keys, values.
    """
    first = torch.randint(PAIRS - fewest + 1, (count, 1), generator=generator)
    keys = torch.rand(count, KEYS, generator=generator).argsort(-1)[:, :PAIRS] + 2
    values = torch.randint(VALUES, (count, PAIRS), generator=generator) + 2 + KEYS
    asked = first + (torch.rand(count, PAIRS, generator=generator) * (PAIRS - first)).long()
    pairs = torch.stack([keys, values], -1).masked_fill((torch.arange(PAIRS) < first)[..., None], ASK).flatten(1)
    ids = torch.cat([torch.full((count, 1), START), pairs, keys.gather(1, asked)], 1)
    answers, truth = _empty(ids)
    answers[:, 1 + 2 * PAIRS :] = values.gather(1, asked)
    for position, which in enumerate(asked.T, 1 + 2 * PAIRS):
        for offset in (1, 2):
            truth[torch.arange(count), position, 2 * which + offset] = True
    return Sequences(ids, answers, truth)


def brackets(count: int, generator: torch.Generator) -> Sequences:
    """Bracket matching: open brackets of four kinds between letters that mean nothing.

    Every position from the first bracket on asks which kind has to be closed next; the last token asks only. Truth: the
    last bracket that was opened. (With brackets that are closed again the truth would not be one token: an inner pair
    matters as a pair.) Vocabulary: start, ask, open brackets, closing brackets (the answers alone), letters.
    """
    kinds = torch.randint(KINDS, (count, LENGTH), generator=generator)
    letters = torch.randint(LETTERS, (count, LENGTH), generator=generator) + 2 + 2 * KINDS
    opens = torch.rand(count, LENGTH, generator=generator) < OPEN
    opens[:, 0], opens[:, 1], opens[:, -1] = False, True, False
    ids = torch.where(opens, kinds + 2, letters)
    ids[:, 0], ids[:, -1] = START, ASK
    answers, truth = _empty(ids)
    last = torch.where(opens, torch.arange(LENGTH), 0).cummax(1).values[:, 1:]
    answers[:, 1:] = kinds.gather(1, last) + 2 + KINDS
    truth[:, 1:] = F.one_hot(last, LENGTH).bool()
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
