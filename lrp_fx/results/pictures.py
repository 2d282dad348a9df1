"""Figures of a result: the kinds by name, and the choice of one for an input."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.results import tables
from lrp_fx.results.batch import Batch
from lrp_fx.results.context import Tokens
from lrp_fx.results.latent_rows import in_order, rows_of
from lrp_fx.results.merging import without_features
from lrp_fx.viz import amount_plots, array_plots, text_plots
from lrp_fx.viz.brightness import stretched
from lrp_fx.viz.words import Word, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 12  #: most bars of a bar chart
_SOUND = 256  #: a row of at least this many numbers is drawn as a sound, a shorter one as a table
SERIES = 8  #: a plane of at most this many rows is drawn as series, a larger one as a spectrogram


def words_of(tokens: Tokens, relevance: Tensor) -> list[Word]:
    """The tokens of one sample with their relevance, (S,); padding without relevance is left out."""
    amounts = relevance.detach().double().cpu().tolist()
    rows = zip(tokens.texts, amounts, tokens.special, tokens.padding, strict=True)
    return [
        Word(text.strip() or text, amount, special) for text, amount, special, padding in rows if amount or not padding
    ]


def heading_of(result: Batch, sample: int = 0) -> str:
    """Name and value of a sample's target."""
    answers, rank = result.context.answers, result.target.dim()
    value = f"{float(result.target[sample]):.4g}" if rank == 1 else ""
    target = visible(answers[sample]) if answers else result.context.question
    return " ".join(part for part in (target, f"({value})" if target and value else value) if part)


def named_arrays(result: Batch, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Relevance and values of an input of the only sample, without the batch dimension."""
    relevance = result.relevance[name]
    values = result.inputs.get(name)
    fits = values is not None and values.shape == relevance.shape and values.is_floating_point()
    batched = relevance.dim() > 0 and relevance.shape[0] == 1
    return _array(relevance, batched), _array(values, batched) if fits and values is not None else None


def _array(tensor: Tensor, batched: bool) -> np.ndarray:
    values = tensor.detach().cpu().double()
    return (values[0] if batched else values).numpy()


def _channels_first(array: np.ndarray) -> np.ndarray:
    """An image with its channels in the first dimension; they may be in the last one."""
    return array if array.shape[0] in (1, 3) else np.moveaxis(array, -1, 0)


def colours_of(result: Batch, name: str, image: np.ndarray) -> np.ndarray:
    """Colours (C, H, W) between 0 and 1: normalization undone if it is known, otherwise stretched to that range."""
    colours = result.context.normalization.get(name)
    if colours is None or not {len(colours.mean), len(colours.std)} <= {1, len(image)}:
        return stretched(image)
    mean, std = (np.asarray(v, float)[:, None, None] for v in (colours.mean, colours.std))
    return np.clip(np.nan_to_num(image) * std + mean, 0, 1)


def suited(result: Batch, name: str) -> str:
    """The kind of figure that suits an input."""
    if result.target_names is not None:
        return "matrix"
    if name in result.token_inputs:
        return "tokens"
    shape = tuple(n for i, n in enumerate(result.relevance[name].shape) if i)
    if len(shape) == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3)):
        return "image"
    if result.context.sampling_rate is not None and int(np.prod(shape)) == max(shape, default=0):
        return "waveform"
    if len(shape) == 2 and shape[0] > 1:
        return "series" if min(shape) <= SERIES else "spectrogram"
    return "waveform" if int(np.prod(shape)) >= _SOUND and len(shape) < 3 else "tabular" if len(shape) < 3 else "image"


def _tokens(result: Batch, name: str) -> Figure:
    tokens = result.tokens(name)
    texts = [(heading_of(result, i), words_of(tokens[i], r)) for i, r in enumerate(result.relevance[name])]
    return text_plots.draw_tokens(texts, _notes(result))


def _image(result: Batch, name: str, overlay: bool = False) -> Figure:
    relevance, values = named_arrays(result, name)
    if relevance.ndim not in (2, 3):
        raise InputError(f"'{name}' of shape {relevance.shape} is no image: choose another kind")
    pictured = values is not None and values.ndim == 3 and (values.shape[0] in (1, 3) or values.shape[-1] in (1, 3))
    heat = _channels_first(relevance).sum(0) if pictured else relevance.reshape(-1, *relevance.shape[-2:]).sum(0)
    image = colours_of(result, name, _channels_first(values)) if pictured and values is not None else None
    if overlay and image is None:
        raise InputError(f"the result has no values of '{name}', or they are no image: an overlay needs an image")
    return array_plots.draw_image(heat, image, overlay=overlay, title=heading_of(result), notes=_notes(result))


def _overlay(result: Batch, name: str) -> Figure:
    return _image(result, name, overlay=True)


def _waveform(result: Batch, name: str) -> Figure:
    relevance, values = named_arrays(result, name)
    if relevance.size != max(relevance.shape, default=0):
        raise InputError(f"'{name}' of shape {relevance.shape} is no single waveform: choose another kind")
    signal = None if values is None else values.reshape(-1)
    rate = result.context.sampling_rate
    return array_plots.draw_waveform(
        signal, relevance.reshape(-1), rate=rate, title=heading_of(result), notes=_notes(result)
    )


def _plane(result: Batch, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    relevance, values = named_arrays(result, name)
    if relevance.ndim == 3 and relevance.shape[0] == 1:
        relevance, values = relevance[0], None if values is None else values[0]
    if relevance.ndim != 2:
        raise InputError(f"'{name}' of shape {relevance.shape} is no plane of numbers: choose another kind")
    return relevance, values


def _spectrogram(result: Batch, name: str) -> Figure:
    relevance, values = _plane(result, name)
    return array_plots.draw_spectrogram(relevance, values, title=heading_of(result), notes=_notes(result))


def _series(result: Batch, name: str) -> Figure:
    relevance, values = _plane(result, name)
    names = result.context.features.get(name, ())
    across = len(names) == relevance.shape[1] or (not names and relevance.shape[0] > relevance.shape[1])
    if across:  # (T, F): a feature is a column
        relevance, values = relevance.T, None if values is None else values.T
    listed = list(names) if len(names) == len(relevance) else [f"{name}[{i}]" for i in range(len(relevance))]
    return array_plots.draw_series(relevance, values, listed, title=heading_of(result), notes=_notes(result))


def _matrix(result: Batch, name: str) -> Figure:
    """Targets by tokens for several targets, otherwise latents by tokens."""
    tokens = result.tokens(name)[0]
    style = {"title": "" if result.target_names else heading_of(result), "notes": _notes(result)}
    shown = [i for i, padding in enumerate(tokens.padding) if not padding]
    columns = [tokens.texts[i] for i in shown]
    if result.target_names is not None:
        values = result.relevance[name].select(result.SAMPLES, 0)[:, shown]
        rows = list(result.target_names)
        down = next(d for d in result.LEADING if d != "sample")
        return text_plots.draw_matrix(_flat(values), rows, columns, across=name, down=down, **style)  # type: ignore
    flat = {n: without_features(v, 1)[0] for n, v in result.latents.items() if v.dim() > 1}
    flat = {n: v[shown] for n, v in flat.items() if v.shape == (len(tokens),)}
    if not flat:
        raise InputError('a matrix needs several targets, or latents with a row per token: explain(at="...layers.*")')
    paths = [n.split(".") for n in flat]
    shared = sum(
        1 for _ in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*(p[:-1] for p in paths), strict=False))
    )
    rows = [".".join(p[shared:]) for p in paths]
    values = torch.stack(list(flat.values()))
    return text_plots.draw_matrix(_flat(values), rows, columns, across=name, **style)  # type: ignore


def _heads(result: Batch, name: str) -> Figure:
    """Heads by tokens: one row for each head of each latent with a dimension for heads."""
    tokens = result.tokens(name)[0]
    shown = [i for i, padding in enumerate(tokens.padding) if not padding]
    rows: list[str] = []
    values: list[Tensor] = []
    for path, latent in sorted(result.latents.items(), key=lambda item: in_order(item[0])):
        heads = rows_of(latent.detach().cpu().double(), (len(tokens),))[0]
        if latent.dim() == 4 and heads.shape[1] == len(tokens):
            rows += [f"{path} [{number}]" for number in range(len(heads))]
            values.append(heads[:, shown])
    if not values or result.target_names is not None:
        raise InputError('heads by tokens need one target, and latents with heads: explain(at="...self_attn@mixed")')
    style = {"title": heading_of(result), "notes": _notes(result)}
    columns = [tokens.texts[i] for i in shown]
    return text_plots.draw_matrix(torch.cat(values).numpy(), rows, columns, across=name, **style)  # type: ignore


def _flat(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()


def largest_shares(shares: Iterable[tuple[str, float]], count: int) -> list[tuple[str, float]]:
    """The largest shares by magnitude, and the sum of all others: the total does not change."""
    ranked = sorted(shares, key=lambda share: -abs(share[1]))
    rest = ranked[count:]
    return [*ranked[:count], *([(f"{len(rest)} others", sum(amount for _, amount in rest))] if rest else [])]


def _valued(result: Batch, name: str) -> Iterator[tuple[str, float]]:
    """(name, relevance) of the entries of an input of the only sample; names of features include their values."""
    values = result.inputs.get(name) if name in result.context.features else None
    for share in tables.shares(result):
        if share.input == name:
            valued = values is not None and values.dim() == 2 and isinstance(share.position, int)
            value = f" = {float(values[0, share.position]):.4g}" if valued and values is not None else ""  # type: ignore
            yield share.text + value, share.relevance


def _bar(result: Batch, name: str) -> Figure:
    amounts = largest_shares(_valued(result, name), _SHOWN)
    total = f"all together {sum(a for _, a in amounts):.4g}"
    return amount_plots.draw_bars(amounts, title=heading_of(result), total=total, notes=_notes(result))


def _notes(result: Batch) -> tuple[str, ...]:
    return tuple(map(str, result.notes))


#: kind -> function that draws an input, by name, of the only sample ("tokens": of all samples)
KINDS: dict[str, Callable[[Batch, str], Figure]] = {
    "tokens": _tokens, "image": _image, "overlay": _overlay, "waveform": _waveform, "spectrogram": _spectrogram,
    "matrix": _matrix, "heads": _heads, "bar": _bar, "series": _series, "tabular": _bar,
}  # fmt: skip


def draw(result: Batch, kind: str, name: str | None) -> Figure:
    """The figure of a kind; "auto" chooses the kind by the input.

    Raises:
        InputError: for an unknown kind or input, and for several samples under any kind but "tokens".
    """
    names = list(result.relevance)
    name = next(iter([*result.token_inputs, *names]), None) if name is None else name
    if name not in names:
        raise InputError(f"input={name!r} has no relevance: choose one of {', '.join(names)}")
    kind = suited(result, name) if kind == "auto" else kind
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: choose one of auto, {', '.join(KINDS)}, waterfall")
    if len(result) != 1 and kind != "tokens":
        raise InputError(
            f"a figure of this kind shows one sample, and there are {len(result)}: result[0].plot() is one"
        )
    return KINDS[kind](result, name)


def waterfall_parts(result: Batch, count: int = 8) -> list[tuple[str, float]]:
    """The largest shares over all inputs of the only sample, and the sum of all others."""
    return largest_shares(((s.text, s.relevance) for s in tables.shares(result)), count)
