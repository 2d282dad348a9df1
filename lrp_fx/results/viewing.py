"""Results as data for the viewer (:mod:`lrp_fx.viz.viewer.schema`), and its pages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrp_fx.errors import InputError, LatentError
from lrp_fx.results.batch import Batch
from lrp_fx.results.context import Tokens
from lrp_fx.results.latent_rows import Neurons, in_order, neuron_rows, rows_of
from lrp_fx.results.merging import without_features
from lrp_fx.results.pictures import SERIES, colours_of
from lrp_fx.results.words import Group, find_groups, merged
from lrp_fx.viz.brightness import stretched
from lrp_fx.viz.pages import write_page
from lrp_fx.viz.viewer import View, encode, viewer_page
from lrp_fx.viz.viewer.schema import Input, Matrix, Sample, SoundInput, TokensInput, Words

LARGEST = 1 << 22  #: most numbers of one array; larger arrays are summed over targets, or over features
STRETCHES = 2048  #: most columns of a waveform
_FRAME = 512  #: samples of sound in a column of a spectrogram


def view(
    *results: Batch, path: str | Path = "view.html", title: str | None = None, names: Sequence[str] | None = None,
    ledger: bool = True, neurons: Neurons = 0,
) -> Path:  # fmt: skip
    """Write a viewer page for results, one or several side by side: one html file that needs no network.

    The page shows words or tokens with their relevance, a ledger for the selection, images, sound, layers and heads
    (``at=``); in a generated text, each token shows its explanation. The page is not opened.

    Args:
        path: path of the file.
        title: heading of the page.
        names: name of each result; None for the names of the rule sets.
        ledger: whether to include each sample's ledger; it takes a sweep unless it is computed already.
        neurons: neurons of latents (``at=``) with rows of their own beside their layer's row: a number per layer, for
            those with most relevance, or {"model.layers.*.mlp": [17, 40]}.

    Returns:
        ``path``.

    Raises:
        InputError: without results, with more or fewer names than results, and for samples that share an input.
        MissingExtraError: when jinja2 is not installed.
    """
    if not results:
        raise InputError("there is nothing to view: give at least one result")
    names = [result.ruleset for result in results] if names is None else names
    if len(names) != len(results):
        raise InputError(f"{len(names)} names for {len(results)} results")
    views = [
        viewer_data(result, name, ledger=ledger, neurons=neurons)
        for result, name in zip(results, _distinct(names), strict=True)
    ]
    return write_page(path, viewer_page(views, title or _title(results)))


def viewer_data(result: Batch, name: str, *, ledger: bool = True, neurons: Neurons = 0) -> View:
    """A result as plain data for the viewer.

    Args:
        result: a result of any kind.
        name: its name on the page.
        ledger: whether to include ledgers.
        neurons: as in :func:`view`.

    Raises:
        InputError: for samples that share an input: explain them one by one.
    """
    facts = {"rules": result.ruleset, "target": result.context.question}
    samples = [_sample(one, number, ledger, neurons) for number, one in enumerate(result)]
    return {"name": name, "facts": [(n, v) for n, v in facts.items() if v], "samples": samples}


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with a number behind those that came before: a screen reader tells panels by their names."""
    distinct: list[str] = []
    for name in names:
        numbered = (f"{name} ({number})" for number in range(2, len(names) + 2))
        distinct.append(name if name not in distinct else next(n for n in numbered if n not in distinct))
    return distinct


def _title(results: Sequence[Batch]) -> str:
    answers = {answer for result in results for answer in result.context.answers or ()}
    return f"Why {answers.pop()}?" if len(answers) == 1 else "What the answer is made of"


def _sample(one: Batch, number: int, ledger: bool, neurons: Neurons) -> Sample:
    values = _targets(one, one.target).tolist()
    answers = one.context.answers
    names = one.target_names or (answers[0] if answers else "explained value",)
    amounts, reason = _ledger(one, ledger)
    inputs, matrices = one.viewer_parts() or _parts(one, neurons)
    return {
        "name": _name(one, number),
        "targets": [{"name": n, "value": encode.finite(v)} for n, v in zip(names, values, strict=True)],
        "inputs": inputs,
        "matrices": matrices,
        "notes": [str(note) for note in one.notes],
        "ledger": amounts,
        "no_ledger": reason,
    }


def _parts(one: Batch, neurons: Neurons) -> tuple[list[Input], list[Matrix]]:
    inputs = [_input(one, n, _targets(one, r)) for n, r in one.relevance.items()]
    return inputs, _matrices(one, inputs, neurons)


def _name(one: Batch, number: int) -> str:
    """Name of a sample within its batch: its number, its answer, the beginning of its text."""
    text = one.tokens()[0].text if one.token_inputs else None
    answers = one.context.answers
    name = [str(number + 1), answers[0] if answers else "", " ".join((text or "").split())[:60]]
    return " · ".join(part for part in name if part)


def _ledger(one: Batch, include: bool) -> tuple[list[tuple[str, float]] | None, str]:
    """(amounts, "") or (None, the reason why there are none)."""
    if not include:
        return None, "this page was written without ledgers (ledger=False)"
    try:
        return list(one.amounts().items()), ""
    except LatentError as reason:
        return None, str(reason)


def _targets(one: Batch, values: Tensor) -> Tensor:
    """A tensor (T, ...) of a result of one sample, in double precision; T targets."""
    values = values.detach().cpu().double()
    shared = values.dim() <= one.SAMPLES or values.shape[one.SAMPLES] != 1
    values = values if shared else values.select(one.SAMPLES, 0)
    return values if len(one.LEADING) > 1 else values[None]


def _input(one: Batch, name: str, values: Tensor) -> Input:
    rank = values.dim() - 1
    data = one.inputs.get(name)
    data = data[0].detach().cpu() if data is not None and data.dim() == rank + 1 else None
    rate = one.context.sampling_rate
    if name in one.token_inputs:
        return _tokens_input(one, name, values)
    if rank == 1 and rate is not None:
        return _sound_input(name, values, data, rate)
    if rank < 2 or (rank == 2 and values.numel() > LARGEST):
        values = values.reshape(len(values), -1) if rank < 2 else values.sum(-1)
        names = one.context.features.get(name, ())
        entries = data.double().flatten() if data is not None and rank < 2 else None
        return {
            "kind": "values",
            "name": name,
            "names": list(names) if len(names) == values.shape[1] else [str(i) for i in range(values.shape[1])],
            "values": None if entries is None else [encode.finite(v) for v in entries.tolist()],
            "relevance": encode.pack(values.numpy()),
        }
    summed = values if rank == 2 else without_features(values, 1)
    summed = summed.reshape(len(values), -1, *summed.shape[-2:]).sum(1)
    picture = None
    if data is not None and rank == 3 and len(data) in (1, 3):
        picture = colours_of(one, name, data.double().numpy())
    upwards = rank == 2 and rate is not None  # a spectrogram, whose low frequencies are below
    if upwards:
        summed = summed.flip(1)
        picture = None if data is None else stretched(data.double().numpy()[::-1])
    caption = "" if rank == 2 else f"summed over {'channels' if rank == 3 else 'all other dimensions'}"
    if rank == 2 and rate is None and summed.shape[2] <= SERIES < summed.shape[1]:
        summed, caption = summed.mT, "a row for each feature, steps from left to right"
    return {
        "kind": "map",
        "name": name,
        "relevance": encode.pack(summed.numpy()),
        "picture": None if picture is None else encode.image(picture),
        "upwards": upwards,
        "caption": caption,
    }


def _tokens_input(one: Batch, name: str, values: Tensor) -> TokensInput:
    tokens = one.tokens(name)[0]
    start = one.start_of(name)
    ends = [0, len(tokens)] if start is None else [0, start, start + len(values), len(tokens)]
    groups: list[Group] = []  # no word contains both tokens of the prompt and generated ones
    shown: list[Tokens] = []
    for begin, end in pairwise(ends):
        piece = tokens.part(slice(begin, end))
        words = find_groups(piece, "words")
        shown.append(merged(piece, words))
        groups += [[position + begin for position in group] for group in words]
    data: TokensInput = {
        "kind": "tokens",
        "name": name,
        "tokens": list(tokens.texts),
        "special": [i for i, special in enumerate(tokens.special) if special],
        "breaks": [i for i in range(1, len(tokens)) if _line_before(tokens, i)],
        "words": _words(tokens, groups, shown),
        "relevance": encode.pack(values.numpy()),
    }
    return data if start is None else {**data, "start": start}


def _words(tokens: Tokens, groups: list[Group], shown: list[Tokens]) -> Words:
    of = [-1] * len(tokens)
    for number, group in enumerate(groups):
        for position in group:
            of[position] = number
    special = [special for one in shown for special in one.special]
    return {
        "of": of,
        "texts": [text for one in shown for text in one.texts],
        "special": [i for i, is_special in enumerate(special) if is_special],
        "breaks": [i for i, group in enumerate(groups) if group[0] and _line_before(tokens, group[0])],
    }


def _line_before(tokens: Tokens, position: int) -> bool:
    if tokens.text is None or tokens.offsets is None:
        return "\n" in tokens.texts[position - 1]
    return "\n" in tokens.text[tokens.offsets[position - 1][1] : tokens.offsets[position][0]]


def _sound_input(name: str, values: Tensor, data: Tensor | None, rate: float) -> SoundInput:
    length = values.shape[1]
    count = max(1, min(STRETCHES, length))
    number = torch.arange(length) * count // max(length, 1)
    summed = values.new_zeros(len(values), count).index_add_(1, number, values)
    wave = torch.zeros(length, dtype=torch.float64) if data is None else data.double()
    ends = [wave.new_zeros(count).scatter_reduce(0, number, wave, how, include_self=False) for how in ("amin", "amax")]
    return {
        "kind": "sound",
        "name": name,
        "rate": rate,
        "seconds": length / rate,
        "player": None if data is None else encode.sound(wave.numpy(), rate),
        "spectrogram": None if data is None or length < _FRAME else encode.image(_spectrogram(wave)),
        "low": encode.pack(ends[0].numpy()),
        "high": encode.pack(ends[1].numpy()),
        "relevance": encode.pack(summed.numpy()),
    }


def _spectrogram(wave: Tensor) -> np.ndarray:
    """Loudness (frequencies, times) in decibels, scaled so that 80 dB below the maximum is 0 and the maximum is 1.

    Low frequencies come last.
    """
    window = torch.hann_window(_FRAME, dtype=wave.dtype)
    hop = max(_FRAME // 4, len(wave) // STRETCHES)
    power = torch.stft(wave, _FRAME, hop, window=window, return_complex=True, pad_mode="constant").abs().square()
    loudness = 10 * power.clamp(min=1e-20).log10()
    return stretched(loudness.clamp(min=float(loudness.max()) - 80).flip(0).numpy())


def _matrices(one: Batch, inputs: Sequence[Input], neurons: Neurons) -> list[Matrix]:
    """Latents with a position per token as matrices of layers (or heads) by tokens, other latents by their sums."""
    shown = {len(i["tokens"]): _shown(i) for i in reversed(inputs) if i["kind"] == "tokens"}
    by_columns: dict[int, tuple[list[str], list[Tensor]]] = {}
    for name, latent in sorted(one.latents.items(), key=lambda item: in_order(item[0])):
        whole = _targets(one, latent)
        rows = rows_of(whole, shown)
        named, values = by_columns.setdefault(rows.shape[-1], ([], []))
        named += [name] if rows.shape[1] == 1 else [f"{name} [{i}]" for i in range(rows.shape[1])]
        values.append(rows)
        for neuron, row in neuron_rows(name, whole, shown, neurons):
            named.append(neuron)
            values.append(row[:, None])
    return [
        _matrix(named, torch.cat(values, 1), shown.get(columns, {0: "all"}))
        for columns, (named, values) in sorted(by_columns.items(), reverse=True)
    ]


def _shown(text: TokensInput) -> dict[int, str]:
    """Position -> token, without padding."""
    return {i: token for i, token in enumerate(text["tokens"]) if text["words"]["of"][i] >= 0}


def _matrix(rows: list[str], values: Tensor, columns: dict[int, str]) -> Matrix:
    values = values[..., list(columns)]
    summed = values.numel() > LARGEST and len(values) > 1
    return {
        "name": "layers and tokens" if len(columns) > 1 else "layers",
        "rows": rows,
        "columns": list(columns.values()),
        "relevance": encode.pack((values.sum(0, keepdim=True) if summed else values).numpy()),
        "summed": summed,
    }
