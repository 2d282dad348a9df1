"""`lrp-fx explain`: the explanation, JSON, and files."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrp_fx.cli.models import Loaded, RawInputs
from lrp_fx.errors import LatentError
from lrp_fx.results import Result, tables


@dataclass(frozen=True)
class ExplainOptions:
    """Options of an explanation.

    Attributes:
        target: as in ``explain``.
        rules: the rule set.
        at: latents to collect.
        generate: number of tokens to generate; None to explain the answer.
    """

    target: Any
    rules: str
    at: tuple[str, ...] = ()
    generate: int | None = None


def explained(loaded: Loaded, inputs: RawInputs, options: ExplainOptions) -> Result:
    """The explanation, with its ledger computed if there is one.

    Raises:
        InputError: without an input.
    """
    xmodel, raw = loaded.converted(options.rules), inputs.raw(loaded)
    if options.generate is not None:
        return xmodel.explain_generation(*raw, max_new_tokens=options.generate, target=options.target, at=options.at)
    attribution = xmodel.explain(*raw, target=options.target, at=options.at)
    with contextlib.suppress(LatentError):
        attribution.ledger  # noqa: B018  (computed now, so that its notes are shown)
    return attribution


def as_json(result: Result, *, words: bool) -> str:
    """A result as JSON: target, the share of every word, token or entry, the ledger, notes."""
    shown = result.merge("words") if words and result.token_inputs else result
    try:
        ledger: dict[str, float] | None = dict(result.amounts())
    except LatentError:
        ledger = None
    return json.dumps(
        {
            "rules": result.ruleset,
            "target": result.target.tolist(),
            "asked": result.context.question,
            "answers": result.context.answers,
            "shares": [vars(share) for share in tables.shares(shown)],
            "ledger": ledger,
            "notes": list(map(str, result.notes)),
        }
    )


def write(
    result: Result, loaded: Loaded, *, words: bool, html: Path | None, view: Path | None, save: Path | None
) -> dict[str, Path]:
    """Write the requested files; returns kind of file -> path."""
    written = {}
    if html is not None:
        facts = {"model": loaded.name}
        written["heatmap"] = result.save_html(html, title=loaded.title, facts=facts, words=words)
    if view is not None:
        written["page"] = result.view(view, title=loaded.title)
    if save is not None:
        written["result"] = result.save(save)
    return written
