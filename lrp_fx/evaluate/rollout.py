"""Methods on attention weights: rollout, gradient times rollout, and AtMan, which changes the scores.

Attention is found in the captured graph (:mod:`lrp_fx.analysis.attention`), fused kernels decomposed, so the model does
not have to return its weights. Relevance of positions of the sequence is mapped to features: a token is a position; the
patches of an image are the last positions, row by row, after class tokens.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lrp_fx.analysis.attention import find_attention
from lrp_fx.evaluate.embedded import Embedded, Embedder, Point
from lrp_fx.evaluate.grad_cam import pool_map
from lrp_fx.evaluate.methods import Explainer, Method
from lrp_fx.evaluate.task import Batch, Task
from lrp_fx.explain.sweep import cotangents
from lrp_fx.specialization import Specialization


def attention_rollout() -> Method:
    """Attention rollout (Abnar and Zuidema, arXiv:2005.00928): the product over layers of (A + I) / 2, with A the mean
    over heads. It depends on the target only by the positions that the explained value reads (:func:`_read_at`)."""
    return _rolled("attention_rollout", lambda weights, _: weights.mean(1), lambda state, mixed: (state + mixed) / 2)


def gradient_rollout() -> Method:
    """Gradient times attention rollout (Chefer et al., arXiv:2103.15679, eqs. 5 and 6): R <- R + A R, with A the mean
    over heads of the positive part of weight times gradient."""
    return _rolled(
        "gradient_rollout",
        lambda weights, gradient: (weights * gradient).clamp(min=0).mean(1),
        lambda state, mixed: state + mixed,
    )


#: (weights, gradient), (B, heads, S, T) each -> (B, S, T)
_Join = Callable[[Tensor, Tensor], Tensor]
#: (relevance of a sequence before a layer, A times that of the sequence it attends to) -> after the layer
_Update = Callable[[Tensor, Tensor], Tensor]


def _rolled(name: str, join: _Join, update: _Update) -> Method:
    def prepare(task: Task) -> Explainer | None:
        embedder = Embedder(task, _watch("weights"))
        if not embedder.applies() or not _rolls(task, embedder):
            return None

        def explain(batch: Batch) -> Tensor:
            point = embedder.point(batch)
            weights, gradients, read = _weights(point, len(batch))
            positions = weights[0].shape[-1]
            streams = {positions: torch.eye(positions, dtype=read.dtype).expand(len(batch), -1, -1)}
            for weight, gradient in zip(weights, gradients, strict=True):
                attended, length = join(weight, gradient), weight.shape[-2]
                if (state := streams.get(weight.shape[-1])) is not None:  # None: a decoder before its first input
                    mixed = attended @ state
                    streams[length] = update(streams.get(length, torch.zeros_like(mixed)), mixed)
            rolled = (read[:, None] @ streams[read.shape[1]])[:, 0]
            return to_features(task, batch, rolled)

        return explain

    return Method(name, prepare)


def atman(factor: float = 0.9, limit: int | None = None) -> Method:
    """AtMan (Deiseroth et al., arXiv:2301.08110, eqs. 4 to 6, without token similarity): drop of the explained value
    when the scores of one key position are multiplied by 1 - ``factor`` in all attentions."""

    def prepare(task: Task) -> Explainer | None:
        embedder = Embedder(task, _watch("scores"))
        if not embedder.applies() or not _rolls(task, embedder):
            return None

        def explain(batch: Batch) -> Tensor:
            point = embedder.point(batch)
            with torch.no_grad():
                shapes: list[torch.Size] = []
                with _hooks(point.embedded, lambda scores: shapes.append(scores.shape)):
                    whole = point.embedded.explained(*point.values, *point.rest)
                drops = []
                for position in range(shapes[0][-1]):
                    scale = torch.ones(shapes[0][-1], dtype=whole.dtype)
                    scale[position] = 1 - factor
                    with _hooks(point.embedded, functools.partial(_suppressed, scale)):
                        drops.append(whole - point.embedded.explained(*point.values, *point.rest))
            return to_features(task, batch, torch.stack(drops, 1))

        return explain

    return Method("atman", prepare, limit=limit)


def _suppressed(scale: Tensor, scores: Tensor) -> Tensor:
    return scores * scale if scores.shape[-1] == len(scale) else scores


def to_features(task: Task, batch: Batch, relevance: Tensor) -> Tensor:
    """(B, T) relevance of positions of the sequence -> (B, F)."""
    value = batch.inputs[task.features.input]
    if value.dim() != 4:
        return task.features.pool(relevance)
    rows, columns = grid(relevance.shape[1], *value.shape[2:])
    return pool_map(task, batch, relevance[:, -rows * columns :].view(len(batch), 1, rows, columns))


def grid(positions: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the patches among ``positions``: the largest grid with the image's aspect ratio; (0, 0) if it
    has at most half of the positions."""
    common = math.gcd(height, width)
    down, across = height // common, width // common
    times = math.isqrt(positions // (down * across))
    rows, columns = times * down, times * across
    return (rows, columns) if 2 * rows * columns > positions else (0, 0)


def _watch(part: str) -> Callable[[Specialization], tuple[Specialization, Mapping[str, Node]] | None]:
    def view(specialization: Specialization) -> tuple[Specialization, Mapping[str, Node]] | None:
        written = specialization.written_out
        sites = find_attention(written.captured.graph_module.graph, written.facts)
        nodes = [site.part(part) for site in sites]
        if not sites or None in nodes:
            return None
        watched = {f"site_{i}": node for i, node in enumerate(nodes) if node is not None}
        return written, {**watched, "mixed": sites[-1].mixed}

    return view


def _rolls(task: Task, embedder: Embedder) -> bool:
    """Whether the first attention is self-attention over the positions of the task's input, and all others are over
    these or by one other sequence (a decoder); not so for windows and pyramids."""
    batch = task.batch(slice(0, 2))
    point = embedder.point(batch)
    shapes: list[torch.Size] = []
    with torch.no_grad(), _hooks(point.embedded, lambda value: shapes.append(value.shape)):
        point.embedded.explained(*point.values, *point.rest)
    value = batch.inputs[task.features.input]
    length = shapes[0][-1]
    fits = grid(length, *value.shape[2:]) != (0, 0) if value.dim() == 4 else length == value.shape[1]
    rows = [s[:-2].numel() % len(batch) == 0 and (s[0] % len(batch) == 0) for s in shapes]
    return shapes[0][-2] == length and fits and all(rows) and len({s[-2] for s in shapes} | {length}) <= 2


@contextlib.contextmanager
def _hooks(embedded: Embedded, see: Callable[[Tensor], Any]) -> Iterator[None]:
    """Call ``see`` with the value at every watched attention; a tensor that it returns replaces the value."""

    def hook(module: object, inputs: object, output: Tensor) -> Tensor | None:
        replacement = see(output)
        return replacement if isinstance(replacement, Tensor) else None

    sites = [module for name, module in embedded.cut.named_children() if name.startswith("site_")]
    handles = [module.register_forward_hook(hook) for module in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _weights(point: Point, size: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Attention weights and their gradients, (B, heads, S, T) each, in graph order; and the (B, S) shares of positions
    in the explained value (:func:`_read_at`)."""
    seen: list[Tensor] = []
    mixed: list[Tensor] = []
    leaves = tuple(v.clone().requires_grad_() for v in point.values)
    last = point.embedded.cut.get_submodule("mixed")
    handle = last.register_forward_hook(lambda module, inputs, output: mixed.append(output))
    try:
        with _hooks(point.embedded, seen.append), torch.enable_grad():
            chosen = point.embedded.explained(*leaves, *point.rest)
    finally:
        handle.remove()
    gradients = cotangents(chosen, [*seen, *mixed])
    gradients_or_zeros = [torch.zeros_like(w) if g is None else g for w, g in zip(seen, gradients[:-1], strict=True)]
    assert gradients[-1] is not None
    return (
        [w.detach().reshape(size, -1, *w.shape[-2:]) for w in seen],
        [g.reshape(size, -1, *g.shape[-2:]) for g in gradients_or_zeros],
        _read_at(gradients[-1], size, seen[-1].shape[-2]),
    )


def _read_at(gradient: Tensor, size: int, positions: int) -> Tensor:
    """(B, S) shares of the positions in the L1 norm of the gradient at the output of the last attention.

    They select the row of the rollout that its authors choose by hand: the class token of a classifier that reads it
    alone, the last position of a language model, the mean of all positions for a model that pools.
    """
    norms = gradient.abs().reshape(size, -1, positions, gradient.shape[-1]).sum((1, 3))
    return norms / norms.sum(1, keepdim=True).clamp(min=torch.finfo(norms.dtype).tiny)
