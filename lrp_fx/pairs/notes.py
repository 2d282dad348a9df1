"""Notes on relevance of pairs: signs of a weak map, each with a remedy."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lrp_fx.results import Note
from lrp_fx.results.notes import CANCELLING, Signs


def _little(signs: Signs) -> str | None:
    few = signs.little
    if not few.any():
        return None
    share = float((signs.inputs / signs.target)[few].median())
    says = f"hold {share:.0%} of the similarity" if share >= 0 else "add up to the opposite sign of the similarity"
    return (
        f"pairs of features {says}{signs.count(few)}: biases, positions or softmax hold the rest (the last row and "
        'column of .table). An output= that normalises takes all: give the embedding before, and similarity="cosine".'
    )


def _cancelling(signs: Signs) -> str | None:
    large = signs.cancelling
    if not large.any():
        return None
    return (
        f"magnitudes of relevance add up to over {CANCELLING} times the similarity{signs.count(large)}: large parts "
        'cancel, and the picture shows the parts. Try rules="vit_gamma" or "epsilon_plus".'
    )


_SIGNS: dict[str, Callable[[Signs], str | None]] = {"small share": _little, "cancelling": _cancelling}


def notes_on(pairs: Tensor, similarity: Tensor) -> tuple[Note, ...]:
    """The notes on (B, I, J) relevance of pairs for (B,) similarities."""
    if pairs.is_meta:
        return ()
    signs = Signs({"pairs": pairs}, similarity.double(), None)
    texts = ((name, describe(signs)) for name, describe in _SIGNS.items())
    return tuple(Note(name, text) for name, text in texts if text is not None)
