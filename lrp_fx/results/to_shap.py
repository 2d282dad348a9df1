"""Results as ``shap.Explanation``, for shap's plots and statistics."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.results.batch import Batch
from lrp_fx.results.context import Tokens

_CHANNELS = (1, 3, 4)  #: sizes of the channel dimension of an image


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
        samples = [_unpadded(tokens) for tokens in result.tokens(name)]
        rows = [row[positions].numpy() for row, (positions, _) in zip(values, samples, strict=True)]
        return shap.Explanation(_packed(rows), base, _packed([texts for _, texts in samples]), output_names=outputs)
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
        raise InputError("samples that share an input have one relevance together: explain them one by one")
    return tensor.movedim(result.SAMPLES, 0)


def _unpadded(tokens: Tokens) -> tuple[list[int], np.ndarray]:
    """(positions without padding, their texts). A text ends in a space if a gap follows its token."""
    positions = [i for i, padding in enumerate(tokens.padding) if not padding]
    texts = [tokens.texts[i] for i in positions]
    if tokens.offsets is not None:
        gaps = [tokens.offsets[a][1] < tokens.offsets[b][0] for a, b in itertools.pairwise(positions)]
        texts = [text + (" " if gap else "") for text, gap in zip(texts, [*gaps, False], strict=True)]
    return positions, np.array(texts, dtype=object)


def _packed(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of one length as a matrix, rows of several lengths as an array of arrays."""
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    packed = np.empty(len(rows), dtype=object)
    packed[:] = rows
    return packed
