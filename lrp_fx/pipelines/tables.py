"""Rows of a table, and similarity of texts: tasks without a pipeline in transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.explain.reading import find_logits
from lrp_fx.pairs import explain_pairs, mean_pooling
from lrp_fx.pipelines.explained import Explained, Request


def table(request: Request) -> Explained:
    """The class, or the value, of each row of a table (a dict, a sequence of numbers, a data frame of rows).

    Raises:
        InputError: for other inputs.
    """
    values, names = _rows(request.raw, request.options.get("features"))
    parameter = next((p for p in request.xmodel.model.parameters() if p.is_floating_point()), torch.empty(0))
    values = values.to(parameter)
    with torch.no_grad():
        logits = find_logits(request.xmodel(values)).detach().double().cpu()
    attribution = request.xmodel.explain(values, rules=request.rules)
    attribution = attribution.knowing(features={next(iter(attribution.relevance)): names})
    answers = [_answer(row, request) for row in logits.reshape(len(values), -1)]
    return Explained(answers if len(answers) > 1 else answers[0], attribution)


def _answer(logits: Tensor, request: Request) -> dict[str, Any]:
    """The most probable class of a row; its value for a model with one output."""
    if len(logits) == 1:
        return {"value": float(logits[0])}
    best = int(logits.argmax())
    encoder = request.xmodel.encoder
    label = f"class {best}" if encoder is None else encoder.answer(best, len(logits))
    return {"label": label, "score": float(logits.softmax(0)[best])}


def _rows(raw: Any, names: Sequence[str] | None) -> tuple[Tensor, list[str]]:
    """(B, F) numbers, and names of the features."""
    if isinstance(raw, Mapping):
        names, raw = list(raw) if names is None else names, [list(raw.values())]
    elif hasattr(raw, "columns") and hasattr(raw, "to_numpy"):
        names, raw = list(map(str, raw.columns)) if names is None else names, raw.to_numpy(dtype=float)
    try:
        values = torch.atleast_2d(torch.as_tensor(raw, dtype=torch.float64))
    except (ValueError, TypeError) as reason:
        raise InputError(f"a row of a table is a dict, numbers or a data frame of numbers: {reason}") from reason
    listed = [f"feature {i}" for i in range(values.shape[-1])] if names is None else list(names)
    if values.dim() != 2 or len(listed) != values.shape[1]:
        raise InputError(f"{len(listed)} names for rows of shape {tuple(values.shape)}")
    return values, listed


def similarity(request: Request) -> Explained:
    """The cosine of the embeddings of two texts, (a, b) or {"source_sentence": a, "sentences": [b, ...]}.

    The embedding is the mean of the last hidden states over tokens; ``output=`` chooses another one.
    """
    raw = request.raw
    if isinstance(raw, Mapping):
        first, second = raw["source_sentence"], list(raw["sentences"])
    elif isinstance(raw, tuple) and len(raw) == 2:
        first, second = raw[0], [raw[1]]
    else:
        raise InputError('give (a, b), or {"source_sentence": a, "sentences": [b, ...]}')
    options = {"similarity": "cosine", "output": mean_pooling, **request.options}
    attribution = explain_pairs(request.xmodel, [first] * len(second), second, rules=request.rules, **options)
    values = attribution.similarity.tolist()
    return Explained(values[0] if len(values) == 1 and isinstance(raw, tuple) else values, attribution)
