"""The viewer's HTML file, with data, style and program inside. Its content security policy forbids the network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from lrp_fx.viz.colours import THEMES, css, foreground, table
from lrp_fx.viz.pages import template
from lrp_fx.viz.viewer.schema import SCHEMA, Page, View

_ROOM = "lrp_fx.viz.viewer"
_FIRST = "main.js"
_IMPORT = re.compile(r"^import \{[^}]*\} from \"\./([\w.]+)\";\n", re.MULTILINE)


def viewer_page(views: Sequence[View], title: str) -> str:
    """The page of one result, or of several side by side.

    Raises:
        MissingExtraError: when jinja2 is not installed.
    """
    colours = {theme: table(theme) for theme in THEMES}
    page: Page = {"schema": SCHEMA, "title": title, "colours": colours, "views": list(views)}
    return whole_page("viewer.html.jinja", _FIRST, page, title=title)


def whole_page(name: str, first: str, data: Any, **shown: Any) -> str:
    """A page of a template, with the data and the program that begins with the module ``first``.

    Raises:
        MissingExtraError: when jinja2 is not installed.
    """
    style, program = _style(), bundle(first)
    return template(name, _ROOM).render(
        style=style, program=program, style_digest=_digest(style), program_digest=_digest(program),
        data=_inside_script(data), **shown,
    )  # fmt: skip


def bundle(first: str = _FIRST) -> str:
    """A module and all that it imports as one script, imported modules first.

    Top-level names are distinct in all modules of a page, so no renaming is necessary.
    """
    order: dict[str, str] = {}

    def visit(name: str) -> None:
        if name in order:
            return
        source = files(_ROOM).joinpath(name).read_text(encoding="utf-8")
        order[name] = ""  # ends import circles
        for imported in _IMPORT.findall(source):
            visit(imported)
        order.pop(name)
        order[name] = re.sub(r"^export ", "", _IMPORT.sub("", source), flags=re.MULTILINE)

    visit(first)
    return "\n" + "\n".join(order.values())


def _style() -> str:
    """The style sheet, with a class for every colour of the scale in both themes."""
    themes = {
        theme: {
            "inks": {name: css(colour) for name, colour in inks.items()},
            "scale": [(css(colour), css(foreground(colour))) for colour in table(theme)],
        }
        for theme, inks in THEMES.items()
    }
    return "\n" + template("viewer.css.jinja", _ROOM).render(themes=themes)


def _digest(text: str) -> str:
    """Name of an inline script or style in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inside_script(data: Any) -> str:
    """JSON that is safe inside a script element, for any text."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
