"""BiLRP (Eberle et al. 2020, arXiv:2003.05431): relevance of pairs of features for the similarity of two inputs.

The similarity of two embeddings is s = sum_m a_m(x) b_m(x'). Every coordinate is explained on its own side, and the
relevance of a pair of features is R_ij = sum_m R_i(a_m) R_j(b_m). Where the rules are linear in what they explain, the
sum over m can be taken before the second sweep: R_ij = R_i(sum_m R_j(b_m) a_m), one sweep for each feature j of one
side in place of one for each coordinate of the other. The cheaper way is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from lrp_fx.converted import RuleSource
from lrp_fx.errors import InputError, TargetError
from lrp_fx.module import ExplainableModule
from lrp_fx.pairs.attribution import PairAttribution, Tokens
from lrp_fx.pairs.embedding import Output
from lrp_fx.pairs.features import Grouping
from lrp_fx.pairs.progress import Progress
from lrp_fx.pairs.side import Side

Similarity = Literal["dot", "cosine"]
Decode = Callable[[list[int]], list[str]]  #: ids of one sample -> the text of each


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
    """Relevance of every pair of a feature of ``a`` and one of ``b`` for their similarity, sample by sample.

    Features of token ids are tokens, of images pixels, or patches with ``features=``. The sums of coordinates are
    computed in single precision at least. Of a cosine the norms are constants, as the statistics of normalizations are.

    Args:
        xmodel: the converted model; both sides are inputs of it.
        a: inputs of the first side: a mapping by name, a tuple, or one tensor; B samples.
        b: inputs of the second side, B samples; their lengths may differ from those of ``a``.
        similarity: "dot" or "cosine".
        output: where in the output the (B, D) embedding is: None (it is the one tensor there), a path
            ("pooler_output"), :func:`lrp_fx.pairs.mean_pooling`, :func:`lrp_fx.pairs.first_token`, or a callable
            (output, inputs by name) -> (B, D) that is linear in the output.
        features: how entries of the input are grouped: the side of square patches of an image, or a callable from
            relevance in the shape of the input to (B, I).
        input: name of the input that has the features; None: the first that has relevance. That of others is in the
                rest.
        decode: ids of a sample -> the text of each (``tokenizer.convert_ids_to_tokens``), for tables and pictures.
        rules: another rule set than the one the model was converted with.
        chunk: how many sweeps run at once: memory grows with it. None: what is fastest.
        progress: show a progress bar; None: when it takes long and standard error is a terminal.
        check: as in ``explain``; what is checked is the sum of all coordinates.

    Raises:
        TargetError: for an output without an embedding, one that depends on no input, or one of length 0 under
            "cosine".
        InputError: for sides that do not fit together, or features that do not fit the input.
        NumericalError: when an embedding or a relevance is not finite.
    """
    if similarity not in ("dot", "cosine"):
        raise TargetError(f'similarity={similarity!r}: choose "dot" or "cosine"')
    first, second = (
        Side.forward(
            xmodel, inputs, output=output, input=input, grouping=features, rules=rules, chunk=chunk, check=check
        )
        for inputs in (a, b)
    )
    _check_fit(first, second)
    table = _table(first, second, progress) * _scale(first, second, similarity)[:, None, None]
    products = first.embedding.detach().to(table.dtype) * second.embedding.detach().to(table.dtype)
    return PairAttribution(
        table,
        products.sum(-1) * _scale(first, second, similarity),
        similarity,
        first.sweeper.rewritten.plan.ruleset.name,
        (first.shown, second.shown),
        None if decode is None else _tokens(first, second, decode),
        (first.grid, second.grid),
    )


def _check_fit(first: Side, second: Side) -> None:
    shapes = [tuple(side.embedding.shape) for side in (first, second)]
    if shapes[0] != shapes[1]:
        raise InputError(f"the sides have embeddings {shapes[0]} and {shapes[1]}: give as many samples on both sides")


def _scale(first: Side, second: Side, similarity: Similarity) -> Tensor:
    """(B,) what the dot product is multiplied by."""
    lengths = [side.embedding.detach().to(side.precision).norm(dim=-1) for side in (first, second)]
    if similarity == "dot":
        return torch.ones_like(lengths[0])
    product = lengths[0] * lengths[1]
    if not product.is_meta and not bool(product.all()):
        raise TargetError('an embedding is 0 in all coordinates: it has no cosine. Explain similarity="dot"')
    return 1 / product


def _table(first: Side, second: Side, shown: bool | None) -> Tensor:
    """(B, I + 1, J + 1) by the cheapest way."""
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
    """The product of the factors of both sides, a few coordinates at a time."""
    shape = (len(first.embedding), first.shown.shape[1] + 1, second.shown.shape[1] + 1)
    table = torch.zeros(shape, dtype=first.precision, device=first.embedding.device)
    with Progress(first.width, shown) as bar:
        for start, end in _chunks(first.width, min(first.chunk, second.chunk)):
            table += torch.einsum("tbi,tbj->bij", first.coordinates(start, end), second.coordinates(start, end))
            bar.advance(end - start)
    return table


def _by_features(first: Side, second: Side, shown: bool | None) -> Tensor:
    """Factors of the first side for each coordinate, then sums of the second side's coordinates weighed by them."""
    columns = first.shown.shape[1] + 1
    with Progress(first.width + columns, shown) as bar:
        parts = []
        for start, end in _chunks(first.width, first.chunk):
            parts.append(first.coordinates(start, end))
            bar.advance(end - start)
        weights = torch.cat(parts).permute(2, 1, 0)  # (I + 1, B, D)
        # a power of two: small weights are not lost in half precision, and nothing is rounded
        scale = torch.exp2(torch.frexp(weights.abs().amax(-1, keepdim=True))[1].to(weights.dtype))
        shape = (columns, len(first.embedding), second.shown.shape[1] + 1)
        table = torch.zeros(shape, dtype=first.precision, device=first.embedding.device)
        live = weights.flatten(1).any(1).nonzero()[:, 0]  # padding weighs nothing
        for start, end in _chunks(len(live), second.chunk):
            rows = live[start:end]
            table[rows] = second.factors(weights[rows] / scale[rows]) * scale[rows]
            bar.advance(end - start)
    return table.transpose(0, 1)


def _chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, count)) for start in range(0, count, size))


def _tokens(first: Side, second: Side, decode: Decode) -> Tokens:
    sides = []
    for side in (first, second):
        ids = side.tensors[side.features.input]
        if ids.is_floating_point() or ids.dim() != 2:
            raise InputError(
                f"decode= takes token ids (B, S); '{side.features.input}' is {ids.dtype} {tuple(ids.shape)}"
            )
        sides.append([list(decode(row)) for row in ids.tolist()])
    return sides[0], sides[1]
