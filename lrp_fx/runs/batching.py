"""Batches of rows of nearly one length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Sequence

PADDING = 0.1  #: most of a batch that may be padding
ROWS, TOKENS = 64, 4096  #: most rows, and tokens with padding, of a batch


def batches(
    lengths: Sequence[int], rows: int = ROWS, tokens: int = TOKENS, padding: float = PADDING
) -> list[list[int]]:
    """Numbers of rows, the shortest first, cut where a batch would hold too much padding or grow too large.

    Of equal rows the earlier comes first: the same lengths give the same batches.

    Args:
        lengths: of every row.
        rows: most rows of a batch.
        tokens: most tokens of a batch, padding counted; a longer row is a batch of its own.
        padding: most of a batch that may be padding.
    """
    made: list[list[int]] = []
    total = 0
    for number in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        length = lengths[number]
        size = (len(made[-1]) + 1) * length if made else 0
        fits = bool(made) and len(made[-1]) < rows and size <= tokens and size - total - length <= padding * size
        if not fits:
            made.append([])
            total = 0
        made[-1].append(number)
        total += length
    return made


def padding_of(batch: Sequence[int], lengths: Sequence[int]) -> tuple[int, int]:
    """(tokens of padding, all tokens) of a batch."""
    size = len(batch) * max(lengths[i] for i in batch)
    return size - sum(lengths[i] for i in batch), size
