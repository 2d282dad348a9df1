"""BiLRP (Eberle et al. 2020, arXiv:2003.05431): relevance of pairs of features for the similarity of two inputs.

The similarity of two embeddings is s = sum_m a_m(x) b_m(x'). Every coordinate is explained on its own side, and the
relevance of a pair of features is R_ij = sum_m R_i(a_m) R_j(b_m). If the rules are linear in the cotangent, the sum
over m can be taken before the second sweep: R_ij = R_i(sum_m R_j(b_m) a_m). That takes one sweep for each feature j of
one side instead of one for each coordinate of the other. The cheaper way is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lrp_fx.converted import RuleSource
from lrp_fx.encode import Encoded, kind_of
from lrp_fx.errors import InputError, TargetError
from lrp_fx.module import ExplainableModule
from lrp_fx.pairs.attribution import PairAttribution
from lrp_fx.pairs.embedding import Output
from lrp_fx.pairs.features import Grouping
from lrp_fx.pairs.progress import Progress
from lrp_fx.pairs.side import Side
from lrp_fx.pairs.table import SIDES
from lrp_fx.results import Context, Tokens
from lrp_fx.results.weights_digest import model_fingerprint

Similarity = Literal["dot", "cosine"]
Decode = Callable[[list[int]], list[str]]  #: token ids of one sample -> a text for each


def explain_pairs(
    xmodel: ExplainableModule,
    a: Any,
    b: Any,
    *,
    similarity: Similarity = "dot",
    output: Output = None,
    features: Grouping = None,
    input: str | None = None,
    decode: Decode | None = None,
    rules: RuleSource | None = None,
    chunk: int | None = None,
    progress: bool | None = None,
    check: str | bool | None = None,
) -> PairAttribution:
    """Relevance of every pair of a feature of ``a`` and a feature of ``b`` for their similarity, sample by sample.

    Features are tokens of token ids, pixels of images, or patches with ``features=``. Sums over coordinates are
    computed in single precision at least. The norms of a cosine are constants, like the statistics of normalizations.

    Args:
        xmodel: the converted model, for both sides.
        a: inputs of the first side: a mapping by name, a tuple, or one tensor; B samples. As in ``explain`` also a
            text, an image, or a list of them.
        b: inputs of the second side, B samples; their lengths may differ from those of ``a``.
        similarity: "dot" or "cosine".
        output: the (B, D) embedding: None (the only tensor of the output), a path in the output ("pooler_output"),
            :func:`lrp_fx.pairs.mean_pooling`, :func:`lrp_fx.pairs.first_token`, or a callable (output, inputs by name)
            -> (B, D) that is linear in the output.
        features: how entries of the input are grouped: the side of square patches of an image, or a callable from
            relevance in the shape of the input to (B, I).
        input: name of the input with the features; None for the first that has relevance. Relevance of other inputs is
            in the rest.
        decode: token ids of a sample -> texts (``tokenizer.convert_ids_to_tokens``), for tables and pictures.
        rules: another rule set than the one of the conversion.
        chunk: number of sweeps in one batch; memory grows with it. None for the fastest.
        progress: show a progress bar; None: if it takes long and standard error is a terminal.
        check: as in ``explain``; the check explains the sum of all coordinates.

    Raises:
        TargetError: for an output without an embedding, an embedding that depends on no input, and one of norm 0 under
            "cosine".
        InputError: for sides of different batch sizes, and for features that do not fit the input.
        NumericalError: if an embedding or a relevance is not finite.
    """
    if similarity not in ("dot", "cosine"):
        raise TargetError(f'similarity={similarity!r}: choose "dot" or "cosine"')
    raw = [kind_of(side) for side in (a, b)]
    encoded = [xmodel.encoded((side,), {})[2] if kind else None for side, kind in zip((a, b), raw, strict=True)]
    first, second = (
        Side.forward(
            xmodel, side if batch is None else batch.inputs, output=output, input=input, grouping=features, rules=rules,
            chunk=chunk, check=check,
        )
        for side, batch in zip((a, b), encoded, strict=True)
    )  # fmt: skip
    _check_fit(first, second)
    table = _table(first, second, progress) * _scale(first, second, similarity)[:, None, None]
    products = first.embedding.detach().to(table.dtype) * second.embedding.detach().to(table.dtype)
    sides = (first, second)
    tokens = [_tokens(side, batch, decode) for side, batch in zip(sides, encoded, strict=True)]
    context = Context(
        tokens={side: listed for side, listed in zip(SIDES, tokens, strict=True) if listed is not None},
        question=similarity,
        notes=tuple(note for batch in encoded if batch is not None for note in batch.notes),
        fingerprint=partial(model_fingerprint, xmodel.model),
    )
    return PairAttribution.of_table(
        table, products.sum(-1) * _scale(first, second, similarity), similarity,
        first.sweeper.rewritten.plan.ruleset.name, masks=(first.shown, second.shown), grids=(first.grid, second.grid),
        inputs={name: side.explained for name, side in zip(SIDES, sides, strict=True) if side.has_entries},
        context=context,
    )  # fmt: skip


def _tokens(side: Side, encoded: Encoded | None, decode: Decode | None) -> tuple[Tokens, ...] | None:
    """The tokens of one side; None where features are not tokens."""
    if decode is None:
        tokens = None if encoded is None else encoded.tokens.get(side.features.input)
        return tokens if tokens is not None and {len(one) for one in tokens} == {side.shown.shape[1]} else None
    ids = side.explained
    if ids.is_floating_point() or ids.dim() != 2:
        raise InputError(f"decode= takes token ids (B, S); '{side.features.input}' is {ids.dtype} {tuple(ids.shape)}")
    rows = zip(ids.tolist(), side.shown.tolist(), strict=True)
    return tuple(replace(Tokens.plain(decode(row)), padding=tuple(not s for s in shown)) for row, shown in rows)


def _check_fit(first: Side, second: Side) -> None:
    shapes = [tuple(side.embedding.shape) for side in (first, second)]
    if shapes[0] != shapes[1]:
        raise InputError(f"the sides have embeddings {shapes[0]} and {shapes[1]}: give equally many samples on both")


def _scale(first: Side, second: Side, similarity: Similarity) -> Tensor:
    """(B,) factors of the dot product."""
    lengths = [side.embedding.detach().to(side.precision).norm(dim=-1) for side in (first, second)]
    if similarity == "dot":
        return torch.ones_like(lengths[0])
    product = lengths[0] * lengths[1]
    if not product.is_meta and not bool(product.all()):
        raise TargetError('an embedding is 0 in all coordinates: it has no cosine. Explain similarity="dot"')
    return 1 / product


def _table(first: Side, second: Side, shown: bool | None) -> Tensor:
    """The (B, I + 1, J + 1) table, computed in the cheapest way."""
    width, sizes = first.width, [side.shown.shape[1] + 1 for side in (first, second)]
    costs = {"both": width * (first.cost + second.cost)}
    if first.sweeper.rewritten.plan.is_linear:
        costs["first"] = width * first.cost + sizes[0] * second.cost
        costs["second"] = width * second.cost + sizes[1] * first.cost
    way = min(costs, key=lambda name: costs[name])
    if way == "both":
        return _by_coordinates(first, second, shown)
    if way == "first":
        return _by_features(first, second, shown)
    return _by_features(second, first, shown).transpose(1, 2)


def _by_coordinates(first: Side, second: Side, shown: bool | None) -> Tensor:
    """Products of the factors of both sides, summed over a few coordinates at a time."""
    shape = (len(first.embedding), first.shown.shape[1] + 1, second.shown.shape[1] + 1)
    table = torch.zeros(shape, dtype=first.precision, device=first.embedding.device)
    with Progress(first.width, shown) as bar:
        for start, end in _chunks(first.width, min(first.chunk, second.chunk)):
            table += torch.einsum("tbi,tbj->bij", first.coordinates(start, end), second.coordinates(start, end))
            bar.advance(end - start)
    return table


def _by_features(first: Side, second: Side, shown: bool | None) -> Tensor:
    """Factors of the first side for each coordinate, then sweeps of the second side weighted by them."""
    columns = first.shown.shape[1] + 1
    with Progress(first.width + columns, shown) as bar:
        factors = []
        for start, end in _chunks(first.width, first.chunk):
            factors.append(first.coordinates(start, end))
            bar.advance(end - start)
        weights = torch.cat(factors).permute(2, 1, 0)  # (I + 1, B, D)
        # scaled by a power of two, so that small weights do not underflow in half precision, without rounding
        scale = torch.exp2(torch.frexp(weights.abs().amax(-1, keepdim=True))[1].to(weights.dtype))
        shape = (columns, len(first.embedding), second.shown.shape[1] + 1)
        table = torch.zeros(shape, dtype=first.precision, device=first.embedding.device)
        live = weights.flatten(1).any(1).nonzero()[:, 0]  # (weights of padding are 0)
        for start, end in _chunks(len(live), second.chunk):
            rows = live[start:end]
            table[rows] = second.factors(weights[rows] / scale[rows]) * scale[rows]
            bar.advance(end - start)
    return table.transpose(0, 1)


def _chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, count)) for start in range(0, count, size))
