"""Galleries of rows of a run: texts, images and sounds with their relevance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrp_fx.concepts.explained_run import ExplainedRun
from lrp_fx.concepts.gallery import heat_picture, picture_address, render_gallery
from lrp_fx.encode import open_image
from lrp_fx.errors import InputError
from lrp_fx.viz.pages import cells
from lrp_fx.viz.words import Word

_COLUMNS = 300  #: most columns of the picture of a sound
_SIDE = 320  #: largest side of an image on a page


@dataclass(frozen=True)
class Shown:
    """A row on a page.

    Attributes:
        index: its index among the rows of the run that were explained.
        score: its score.
        remark: a remark behind the score.
    """

    index: int
    score: float
    remark: str = ""


@dataclass(frozen=True)
class Group:
    """Rows below one heading.

    Attributes:
        heading: the heading.
        detail: what stands beside it.
        rows: the rows.
    """

    heading: str
    detail: str
    rows: Sequence[Shown]


def write_gallery(
    run: ExplainedRun, groups: Sequence[Group], title: str, intro: str, path: str | Path | None
) -> str:  # fmt: skip
    """A page of groups of rows; written to ``path``, and returned."""
    pictures = _pictures(run, {row.index for group in groups for row in group.rows})
    listed = [
        {
            "heading": group.heading,
            "detail": group.detail,
            "samples": [
                {"number": int(run.numbers[row.index]), "score": row.score, "remark": row.remark, **pictures[row.index]}
                for row in group.rows
            ],
        }
        for group in groups
    ]
    return render_gallery(listed, title, intro, path)


def _pictures(run: ExplainedRun, indices: set[int]) -> dict[int, dict[str, Any]]:
    """The data of each row for the template: coloured words, or pictures."""
    if run.kind == "text":
        return {
            i: {"cells": cells([Word(word, amount) for word, amount in words])}
            for i, words in enumerate(run.words())
            if i in indices
        }
    return {i: {"pictures": _of_map(run, i, relevance)} for i, relevance in enumerate(run.maps()) if i in indices}


def _of_map(run: ExplainedRun, index: int, relevance: np.ndarray) -> list[str]:
    if relevance.ndim == 1:
        edges = np.unique(np.linspace(0, len(relevance), min(_COLUMNS, len(relevance)) + 1).astype(int))
        relevance = np.repeat(np.add.reduceat(relevance, edges[:-1])[None], 40, 0)
    heat = heat_picture(torch.tensor(relevance).reshape(-1, relevance.shape[-1]))
    original = _original(run.inputs[index]) if run.kind == "image" else None
    return [heat] if original is None else [original, heat]


def _original(path: str | None) -> str | None:
    """The image in a file; None if it is no longer there."""
    try:
        image = open_image(path or "")
    except InputError:
        return None
    image.thumbnail((_SIDE, _SIDE))
    return picture_address(np.asarray(image))
