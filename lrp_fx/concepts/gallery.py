"""A gallery of neurons: the top samples of each, coloured by the relevance that flows through it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lrp_fx.concepts.maximisation import Collection, Reference, reference
from lrp_fx.converted import RuleSource
from lrp_fx.errors import InputError
from lrp_fx.explain.target import padding_masks, shown
from lrp_fx.extras import require
from lrp_fx.module import ExplainableModule
from lrp_fx.viz.brightness import channels_last, stretched
from lrp_fx.viz.figures import colour_map, scale_of
from lrp_fx.viz.pages import cells, template, write_page
from lrp_fx.viz.words import Word

#: token ids of one sample -> a text for each
Decode = Callable[[list[int]], list[str]]


def gallery(
    xmodel: ExplainableModule,
    collection: Collection,
    neurons: Iterable[int] | Mapping[str, Iterable[int]],
    *,
    decode: Decode | None = None,
    input: str | None = None,
    samples: int = 8,
    title: str = "What neurons respond to",
    path: str | Path | None = None,
    rules: RuleSource | None = None,
) -> str:
    """A self-contained HTML page.

    Token ids are shown as text, coloured by the relevance that flows through the neuron; images, (C, H, W), next to a
    heat map; other floating inputs as a heat map alone, one row per position. Colours are scaled per sample.

    Args:
        xmodel: the converted model.
        collection: result of :func:`lrp_fx.concepts.collect`.
        neurons: features of the only latent, or latent -> features.
        decode: ids of a sample -> texts (``tokenizer.convert_ids_to_tokens``); without it ids are shown as numbers.
        input: name of the input to show; None for the first that has relevance.
        samples: number of samples per neuron, at most those of the collection.
        title: heading of the page.
        path: file to write the page to; None to return it only.
        rules: another rule set than the one of the conversion.

    Raises:
        LatentError: for a latent or neuron that was not collected.
        InputError: for an input without relevance.
        MissingExtraError: if jinja2, or matplotlib for images, is not installed.
    """
    by_latent = neurons if isinstance(neurons, Mapping) else {collection.latent(): neurons}
    groups = []
    for latent, ids in by_latent.items():
        for neuron in ids:
            shown = reference(xmodel, collection, neuron, at=latent, top=samples, rules=rules)
            groups.append(
                {
                    "heading": latent,
                    "detail": f"neuron {neuron}",
                    "samples": [_shown(item, input, decode) for item in shown],
                }
            )
    intro = (
        f"The samples that rank highest at each neuron by {collection.by} ({collection.pool} over positions), out of "
        f"{collection.count}. Red is positive and blue negative relevance through this neuron, scaled per sample."
    )
    return render_gallery(groups, title, intro, path)


def render_gallery(groups: list[dict[str, Any]], title: str, intro: str, path: str | Path | None = None) -> str:
    """A page of groups of samples.

    Args:
        groups: heading, detail, and samples, each with number, score, and cells of words or addresses of pictures.
        title: heading of the page.
        intro: what the page shows.
        path: file to write the page to; None to return it only.
    """
    page = str(template("gallery.html.jinja", "lrp_fx.concepts").render(groups=groups, title=title, intro=intro))
    if path is not None:
        write_page(path, page)
    return page


def _shown(item: Reference, name: str | None, decode: Decode | None) -> dict[str, Any]:
    name = next(iter(item.relevance)) if name is None else name
    if name not in item.relevance:
        raise InputError(f"input={name!r} has no relevance: choose one of {', '.join(item.relevance)}")
    value, relevance = item.hit.sample.inputs[name][0], item.relevance[name][0].double()
    facts: dict[str, Any] = {"number": item.hit.sample.index, "score": item.hit.score}
    if not value.is_floating_point():
        ids = value.flatten().tolist()
        texts = decode(ids) if decode else [str(i) for i in ids]
        pairs = zip(texts, relevance.flatten().tolist(), _real(item.hit.sample.inputs, name), strict=True)
        return facts | {"cells": cells([Word(text.strip("Ġ▁ "), amount) for text, amount, real in pairs if real])}
    if value.dim() == 3 and value.shape[0] in (1, 3):
        return facts | {"pictures": [_picture(value), heat_picture(relevance.sum(0))]}
    return facts | {"pictures": [heat_picture(relevance.reshape(-1, relevance.shape[-1]))]}


def _real(inputs: Mapping[str, Any], name: str) -> list[bool]:
    """Which token ids of one sample are not padding, by their padding mask."""
    ids = inputs[name]
    for other, mask in padding_masks(inputs).items():
        if mask.shape == ids.shape and ("decoder" in other) == ("decoder" in name):
            return shown(mask[0]).tolist()
    return [True] * ids[0].numel()


def _picture(image: Tensor) -> str:
    """A (C, H, W) image, with values rescaled to the range of colours."""
    return picture_address(channels_last(stretched(image.detach().double().cpu().numpy())))


def heat_picture(relevance: Tensor) -> str:
    """(H, W) relevance as an image: blue for negative, white for zero, red for positive relevance."""
    values = relevance.detach().cpu().numpy()
    largest = scale_of(values)
    return picture_address(values, cmap=colour_map(), vmin=-largest, vmax=largest)


def picture_address(pixels: Any, **style: Any) -> str:
    """(H, W) or (H, W, C) numbers as a picture inside a page; ``style`` is that of matplotlib's ``imsave``."""
    images: Any = require("matplotlib.image", "concepts")
    buffer = io.BytesIO()
    images.imsave(buffer, pixels, format="png", **style)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
