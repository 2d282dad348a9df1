"""Batches of rows of similar length, with little padding."""

from __future__ import annotations

from collections.abc import Sequence

PADDING = 0.1  #: largest share of padding in a batch
ROWS, TOKENS = 64, 4096  #: most rows and most tokens (with padding) of a batch


def batches(
    lengths: Sequence[int], rows: int = ROWS, tokens: int = TOKENS, padding: float = PADDING
) -> list[list[int]]:
    """Indices of rows in batches, ordered by length. The result depends on the arguments only.

    Args:
        lengths: number of tokens of each row.
        rows: most rows of a batch.
        tokens: most tokens of a batch, with padding; a longer row becomes a batch by itself.
        padding: largest share of padding in a batch.
    """
    result: list[list[int]] = []
    total = 0
    for number in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        length = lengths[number]
        size = (len(result[-1]) + 1) * length if result else 0
        fits = bool(result) and len(result[-1]) < rows and size <= tokens and size - total - length <= padding * size
        if not fits:
            result.append([])
            total = 0
        result[-1].append(number)
        total += length
    return result


def padding_of(batch: Sequence[int], lengths: Sequence[int]) -> tuple[int, int]:
    """(tokens of padding, all tokens) of a batch."""
    size = len(batch) * max(lengths[i] for i in batch)
    return size - sum(lengths[i] for i in batch), size
