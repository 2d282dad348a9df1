"""Batches of rows of similar length, with little padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a batch.

    Attributes:
        rows: most rows.
        size: most tokens (samples of sound, images), with padding; a longer row becomes a batch by itself.
        padding: largest share of padding.
    """

    rows: int = 64
    size: int = 4096
    padding: float = 0.0


def batches(lengths: Sequence[int], limits: Limits) -> list[list[int]]:
    """Indices of rows in batches, ordered by length. The result depends on the arguments only.

    Args:
        lengths: number of tokens of each row.
        limits: limits of a batch.
    """
    result: list[list[int]] = []
    total = 0
    for number in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        length = lengths[number]
        size = (len(result[-1]) + 1) * length if result else 0
        fits = bool(result) and len(result[-1]) < limits.rows and size <= limits.size
        if not fits or size - total - length > limits.padding * size:
            result.append([])
            total = 0
        result[-1].append(number)
        total += length
    return result


def padding_of(batch: Sequence[int], lengths: Sequence[int]) -> tuple[int, int]:
    """(tokens of padding, all tokens) of a batch."""
    size = len(batch) * max(lengths[i] for i in batch)
    return size - sum(lengths[i] for i in batch), size
