"""The result of a batch as rows of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lrp_fx.results import Attribution, Tokens
from lrp_fx.results.latent_rows import by_feature
from lrp_fx.results.notes import find_notes, names_by_sample
from lrp_fx.results.words import find_groups

#: column -> its meaning; in a row that failed, all columns but "error" are null
COLUMNS: Mapping[str, str] = {
    "tokens": "text of each token, without padding; null for images and sound",
    "special": "whether each token is a special token outside the text (start, separator, end)",
    "words": "number of the word that each token belongs to",
    "relevance": "relevance of each token; of each pixel, moment or band otherwise, in the order of the shape",
    "shape": "shape of the relevance: (tokens), (height, width) summed over colours, ...",
    "target": "the explained value",
    "prediction": "name of the target; null without a name",
    "absorbed": "the explained value less the relevance of all inputs: biases, softmax and other ledger entries",
    "latents": "name of a tensor inside the model -> relevance of each neuron or head, summed over positions",
    "ledger": "the ledger by category; null unless ledgers are computed",
    "notes": 'names of notes that the map is weak (lrp_fx.results.notes), and "cut off" for a truncated input',
    "error": "the error of a row that could not be explained, otherwise null",
}

Row = dict[str, Any]


def explained_rows(result: Attribution, ledger: bool, cut_off: Sequence[bool]) -> list[Row]:
    """A row of :data:`COLUMNS` for each sample.

    Args:
        result: the result of a batch.
        ledger: whether to compute a ledger for each sample.
        cut_off: whether the input of each sample was truncated.
    """
    name = main_input(result)
    tokens: Sequence[Tokens | None] = result.tokens(name) if name in result.token_inputs else [None] * len(result)
    relevance = result.relevance[name].detach().float().cpu().numpy()
    of_inputs = sum(r.detach().double().reshape(len(result), -1).sum(1).cpu() for r in result.relevance.values())
    targets = result.target.detach().double().cpu()
    absorbed = (targets - of_inputs).tolist()
    latents = {n: by_feature(r.detach()).sum(1).float().cpu().numpy() for n, r in result.latents.items()}
    notes = names_by_sample(result.relevance, result.target)
    answers = result.context.answers
    rows = []
    for i, target in enumerate(targets.tolist()):
        amounts = dict(result[i].amounts()) if ledger else None
        names = _names(result, i, amounts) if amounts is not None else notes[i]
        rows.append(
            {
                **_map(relevance[i], tokens[i]),
                "target": target,
                "prediction": None if answers is None else answers[i],
                "absorbed": absorbed[i],
                "latents": {n: values[i] for n, values in latents.items()} or None,
                "ledger": amounts,
                "notes": [*names, *(["cut off"] if cut_off[i] else [])],
                "error": None,
            }
        )
    return rows


def main_input(result: Attribution) -> str:
    """The input of a row's map: the first of tokens, otherwise the largest one."""
    sizes = {name: value.numel() for name, value in result.relevance.items()}
    return next(iter(result.token_inputs), max(sizes, key=sizes.__getitem__))


def _map(relevance: np.ndarray, tokens: Tokens | None) -> Row:
    if tokens is None:
        colours = [axis for axis in (0, 2) if relevance.ndim == 3 and relevance.shape[axis] in (1, 3)]
        summed = relevance.sum(colours[0]) if colours else relevance
        return {"relevance": summed.reshape(-1), "shape": list(summed.shape)}
    places = [i for i, padding in enumerate(tokens.padding) if not padding]
    words = {i: number for number, group in enumerate(find_groups(tokens, "words")) for i in group}
    return {
        "tokens": [tokens.texts[i] for i in places],
        "special": [tokens.special[i] for i in places],
        "words": [words[i] for i in places],
        "relevance": relevance[places],
        "shape": [len(places)],
    }


def _names(result: Attribution, sample: int, amounts: Mapping[str, float]) -> list[str]:
    relevance: dict[str, Tensor] = {n: r[sample : sample + 1] for n, r in result.relevance.items()}
    target = result.target[sample : sample + 1]
    return [note.name for note in find_notes(relevance, target, amounts, result.ruleset)]
