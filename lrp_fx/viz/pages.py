"""Static HTML: whole pages and fragments for notebooks, without scripts and without network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrp_fx.extras import require
from lrp_fx.files import write_text
from lrp_fx.viz.colours import THEMES, background, bar_colour, css, foreground, largest, table
from lrp_fx.viz.words import Word, most_relevant, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RANKED = 10  #: most words in the table of the most relevant words


@dataclass(frozen=True)
class Text:
    """A text to show.

    Attributes:
        words: its words.
        heading: its heading.
        folded: whether its words are hidden until a click on the heading.
    """

    words: Sequence[Word]
    heading: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Panel:
    """One explained sample on a page.

    Attributes:
        heading: its heading.
        facts: facts below the heading: "model", "answer", "rules", ...
        texts: its texts.
        pictures: (caption, figure).
        ledger: amounts by category, which sum to the explained value; an empty one is not shown.
        notes: caveats about the explanation.
        ranked: what the table of the most relevant parts ranks; None for the words of the texts.
    """

    heading: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    texts: Sequence[Text] = ()
    pictures: Sequence[tuple[str, Figure]] = ()
    ledger: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    ranked: Sequence[Word] | None = None


def template(name: str, room: str = "lrp_fx.viz") -> Any:
    """A template from ``room`` or from lrp_fx.viz, with the colours of all themes.

    Raises:
        MissingExtraError: when jinja2 is not installed.
    """
    jinja2: Any = require("jinja2", "html")
    folders = [files(room), files("lrp_fx.viz")]

    def read(other: str) -> str:
        return next(folder for folder in folders if folder.joinpath(other).is_file()).joinpath(other).read_text("utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    themes = {theme: {name: css(colour) for name, colour in inks.items()} for theme, inks in THEMES.items()}
    stops = {theme: ", ".join(map(css, table(theme, 5))) for theme in THEMES}
    environment.globals |= {"themes": themes, "colours": themes["light"], "stops": stops}
    return environment.get_template(name)


def page(panels: Sequence[Panel], title: str) -> str:
    """A whole page.

    Raises:
        MissingExtraError: when jinja2 is not installed.
    """
    return str(template("page.html.jinja").render(panels=list(map(_shown, panels)), title=title))


def fragment(panels: Sequence[Panel], more: str = "") -> str:
    """A part of a page, for notebooks, with the text ``more`` below it."""
    return str(template("fragment.html.jinja").render(panels=list(map(_shown, panels)), more=more))


def cells(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Words for a template, with their colours of background and text under each theme."""
    scale = largest(words)
    shown = []
    for word in words:
        colours = {theme: background(word.relevance / scale, theme) for theme in THEMES}
        pairs = {theme: (css(colour), css(foreground(colour))) for theme, colour in colours.items()}
        shown.append({"text": visible(word.text), "relevance": word.relevance, "special": word.special, **pairs})
    return shown


def _shown(panel: Panel) -> dict[str, Any]:
    words = [word for text in panel.texts if not text.folded for word in text.words]
    most = most_relevant(words if panel.ranked is None else panel.ranked)[:_RANKED]
    ranked = [(visible(word.text), word.relevance) for word in most]
    texts = [
        {"heading": text.heading, "folded": text.folded, "cells": cells(text.words), "scale": largest(text.words)}
        for text in panel.texts
    ]
    pictures = [{"caption": caption, "address": _address(figure)} for caption, figure in panel.pictures]
    return {
        "heading": panel.heading, "facts": dict(panel.facts), "texts": texts, "pictures": pictures,
        "ranked": _bars(ranked), "ledger": _bars(list(panel.ledger.items())), "total": sum(panel.ledger.values()),
        "notes": list(panel.notes),
    }  # fmt: skip


def _bars(amounts: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    widest = max((abs(amount) for _, amount in amounts), default=0.0) or 1.0
    return [
        {"name": name, "amount": a, "width": round(100 * abs(a) / widest, 1), "colour": css(bar_colour(a))}
        for name, a in amounts
    ]  # fmt: skip


def _address(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_page(path: str | Path, page: str) -> Path:
    """Write a page, create its folder if necessary, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, page)
