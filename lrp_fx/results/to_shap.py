"""Results as explanations of shap: its plots and its statistics work on them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.results.batch import Batch
from lrp_fx.results.context import Tokens

_CHANNELS = (1, 3, 4)  #: sizes of dimension 1 of an input that is a picture


def to_shap(result: Batch, input: str | None) -> Any:
    """A ``shap.Explanation`` of one input (:meth:`lrp_fx.results.Result.to_shap`)."""
    shap: Any = require("shap", "shap")
    names = [*result.token_inputs, *result.relevance]
    name = names[0] if input is None and names else input
    if name not in result.relevance:
        raise InputError(f"no input is called {name!r}: there are {', '.join(result.relevance)}")
    values, target = (_samples_first(result, t) for t in (result.relevance[name], result.target))
    if result.target_names is not None:  # targets are shap's outputs, its last dimension
        values = values.movedim(1, -1)
    values = values.detach().double().cpu()
    ranks = tuple(range(1, values.dim() - (result.target_names is not None)))
    base = (target.detach().double().cpu() - values.sum(ranks)).numpy()
    outputs = None if result.target_names is None else list(result.target_names)
    if name in result.token_inputs:
        shown = [_shown(tokens) for tokens in result.tokens(name)]
        rows = [row[kept].numpy() for row, (kept, _) in zip(values, shown, strict=True)]
        return shap.Explanation(_packed(rows), base, _packed([t for _, t in shown]), output_names=outputs)
    data = result.inputs.get(name)
    if values.dim() - (outputs is not None) == 4 and values.shape[1] in _CHANNELS:
        values = values.movedim(1, 3)
        data = None if data is None else data.movedim(1, 3)
    features = result.context.features.get(name)
    return shap.Explanation(
        values.numpy(), base, None if data is None else data.detach().cpu().numpy(),
        feature_names=None if features is None else list(features), output_names=outputs,
    )  # fmt: skip


def _samples_first(result: Batch, tensor: Tensor) -> Tensor:
    if tensor.dim() <= result.SAMPLES or tensor.shape[result.SAMPLES] != len(result):
        raise InputError("samples that share an input have no relevance of their own: explain them one by one")
    return tensor.movedim(result.SAMPLES, 0)


def _shown(tokens: Tokens) -> tuple[list[int], np.ndarray]:
    """Positions that are no padding, and what they show; a space where the text has one behind a token."""
    kept = [i for i, padding in enumerate(tokens.padding) if not padding]
    texts = [tokens.texts[i] for i in kept]
    if tokens.offsets is not None:
        gaps = [tokens.offsets[a][1] < tokens.offsets[b][0] for a, b in itertools.pairwise(kept)]
        texts = [text + (" " if gap else "") for text, gap in zip(texts, [*gaps, False], strict=True)]
    return kept, np.array(texts, dtype=object)


def _packed(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of one length as an array, others as an array of arrays."""
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    packed = np.empty(len(rows), dtype=object)
    packed[:] = rows
    return packed
