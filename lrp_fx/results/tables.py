"""Results as rows: a row per token, word, entry of an input, or layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.results.batch import Batch
from lrp_fx.viz import visible

Row = dict[str, Any]
#: sign -> whether an amount has it
SIGNS: dict[str | int, Callable[[float], bool]] = {
    "both": lambda r: True, "positive": lambda r: r > 0, "negative": lambda r: r < 0,
    0: lambda r: True, 1: lambda r: r > 0, -1: lambda r: r < 0,
}  # fmt: skip


@dataclass(frozen=True)
class Share:
    """Relevance of one token, word or feature.

    Attributes:
        text: the token, word or name of the feature.
        relevance: its relevance.
        input: name of the input.
        position: its index in the input.
        sample: index of the sample.
        target: name of the target, if there are several.
    """

    text: str
    relevance: float
    input: str
    position: int | tuple[int, ...]
    sample: int
    target: str | None = None


def shares(result: Batch, special: bool = True) -> Iterator[Share]:
    """The share of every token, and of every entry of other inputs; padding without relevance is left out.

    Args:
        result: the result; with merged tokens, shares are of words.
        special: include special tokens.
    """
    token_inputs = set(result.token_inputs)
    for name, relevance in result.relevance.items():
        tokens = result.tokens(name) if name in token_inputs else None
        for sample, target, values in _each(result, relevance):
            if tokens is None:
                yield from _entries(result, name, values, sample, target)
                continue
            one = tokens[sample]
            for position, amount in enumerate(values.tolist()):
                if (one.special[position] and not special) or (one.padding[position] and not amount):
                    continue
                text = one.texts[position].strip() or (
                    "[PAD]" if one.padding[position] else visible(one.texts[position])
                )
                yield Share(text, amount, name, position, sample, target)


def _each(result: Batch, relevance: Tensor) -> Iterator[tuple[int, str | None, Tensor]]:
    """(sample, name of the target, relevance of an input) for every sample and target."""
    samples, names = result.SAMPLES, result.target_names
    split = relevance.dim() > samples and relevance.shape[samples] == len(result)
    for sample in range(len(result)) if split else [0]:
        values = (relevance.select(samples, sample) if split else relevance).detach().double().cpu()
        if names is None:
            yield sample, None, values
        else:
            yield from ((sample, name, values[number]) for number, name in enumerate(names))


def _entries(result: Batch, name: str, values: Tensor, sample: int, target: str | None) -> Iterator[Share]:
    names = result.context.features.get(name, ())
    for index, amount in zip(product(*map(range, values.shape)), values.flatten().tolist(), strict=True):
        named = index and len(names) == values.shape[-1]
        text = names[index[-1]] if named else f"{name}[{', '.join(map(str, index))}]"
        yield Share(text, amount, name, index[0] if len(index) == 1 else index, sample, target)


def with_sign(sign: str | int) -> Callable[[float], bool]:
    """Whether an amount has a sign: "positive", "negative" or "both"; also 1, -1, 0.

    Raises:
        InputError: for an unknown sign.
    """
    if sign not in SIGNS:
        raise InputError(f'sign={sign!r}: choose "positive" (1), "negative" (-1) or "both" (0)')
    return SIGNS[sign]


def top(result: Batch, k: int, sign: str | int, special: bool) -> list[Share]:
    """The k largest shares by magnitude of every sample and target, the largest first.

    Raises:
        InputError: for an unknown sign.
    """
    has_sign = with_sign(sign)
    groups: dict[tuple[int, str | None], list[Share]] = {}
    for share in shares(result, special):
        if has_sign(share.relevance):
            groups.setdefault((share.sample, share.target), []).append(share)
    return [s for group in groups.values() for s in sorted(group, key=lambda s: -abs(s.relevance))[:k]]


def token_rows(result: Batch) -> list[Row]:
    """A row for each share."""
    columns = ("sample", "target", "input", "position", "text", "relevance")
    several = result.target_names is not None
    answers = result.context.answers
    rows = [{c: getattr(s, c) for c in columns if several or c != "target"} for s in shares(result)]
    for row in rows if answers is not None and not several else ():
        row["answer"] = answers[row["sample"]] if answers else None
    return rows


def layer_rows(result: Batch) -> list[Row]:
    """A row for each latent, sample and target: the sum of its relevance.

    Raises:
        InputError: without latents.
    """
    if not result.latents:
        raise InputError('this result has no latents: explain(at="model.layers.*") collects some')
    several = result.target_names is not None
    return [
        {"sample": sample, **({"target": target} if several else {}), "layer": name, "relevance": float(values.sum())}
        for name, relevance in result.latents.items()
        for sample, target, values in _each(result, relevance)
    ]
