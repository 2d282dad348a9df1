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


def _template(name: str) -> Any:
    jinja2: Any = require("jinja2", "html")
    folder = files("lrp_fx.viz")
    loader = jinja2.FunctionLoader(lambda other: folder.joinpath(other).read_text())
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def _cells(words: Sequence[Word]) -> list[dict[str, Any]]:
    scale = largest(words)
    cells = []
    for word in words:
        colour = background(word.relevance / scale)
        cells.append(
            {
                "text": word.text or "·",
                "relevance": word.relevance,
                "special": word.special,
                "background": css(colour),
                "foreground": css(foreground(colour)),
            }
        )
    return cells


def token_html(words: Sequence[Word]) -> str:
    """The heatmap alone, as an HTML fragment (for notebooks)."""
    return str(_template("tokens.html.jinja").module.tokens(_cells(words)))


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
    return _template("heatmap.html.jinja").render(
        cells=_cells(words), title=title, facts=facts, ledger=ledger, total=sum(ledger.values()), scale=scale,
        stops=stops, ranked=_cells(ranked) if ranked else [], widest=widest, largest=scale,
    )  # fmt: skip


def write_page(path: str | Path, page: str) -> Path:
    """Write a page, creating its folder where needed, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, page)
