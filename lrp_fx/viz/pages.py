"""A self-contained HTML page: the text as a heatmap, what was explained, and the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from lrp_fx.extras import require
from lrp_fx.files import write_text
from lrp_fx.viz.colours import background, css, foreground, largest
from lrp_fx.viz.words import Word, most_relevant


def template(name: str, room: str = "lrp_fx.viz") -> Any:
    """A template that lies in a room of the package, or in this one.

    Raises:
        MissingExtraError: when jinja2 is not installed.
    """
    jinja2: Any = require("jinja2", "html")
    folders = [files(room), files("lrp_fx.viz")]

    def read(other: str) -> str:
        return next(folder for folder in folders if folder.joinpath(other).is_file()).joinpath(other).read_text()

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def cells(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Words as a template shows them."""
    scale = largest(words)
    shown = []
    for word in words:
        colour = background(word.relevance / scale)
        shown.append(
            {
                "text": word.text or "·",
                "relevance": word.relevance,
                "special": word.special,
                "background": css(colour),
                "foreground": css(foreground(colour)),
            }
        )
    return shown


def token_html(words: Sequence[Word]) -> str:
    """The heatmap alone, as an HTML fragment (for notebooks)."""
    return str(template("tokens.html.jinja").module.tokens(cells(words)))


def heatmap_page(words: Sequence[Word], *, title: str, facts: Mapping[str, str], ledger: Mapping[str, float]) -> str:
    """A whole page.

    Args:
        words: the explained text.
        title: heading of the page.
        facts: what to say above the heatmap ("model", "answer", "rules", ...).
        ledger: amounts by category; they add up to the target.

    Raises:
        MissingExtraError: when jinja2 is not installed.
    """
    scale = largest(words)
    stops = [css(background(step / 6)) for step in range(-6, 7)]
    ranked = most_relevant(words)[:10]
    widest = max([abs(v) for v in ledger.values()], default=1.0) or 1.0
    return template("heatmap.html.jinja").render(
        cells=cells(words), title=title, facts=facts, ledger=ledger, total=sum(ledger.values()), scale=scale,
        stops=stops, ranked=cells(ranked) if ranked else [], widest=widest, largest=scale,
    )  # fmt: skip


def write_page(path: str | Path, page: str) -> Path:
    """Write a page, creating its folder where needed, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, page)
