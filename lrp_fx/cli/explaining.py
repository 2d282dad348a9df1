"""What `lrp-fx explain` does with what it was given."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrp_fx.cli.models import Given, Loaded
from lrp_fx.errors import InputError, LatentError
from lrp_fx.results import Result, tables


@dataclass(frozen=True)
class Wanted:
    """What is to be explained, and how.

    Attributes:
        target: as ``explain`` takes it.
        rules: the rule set.
        at: latents to collect.
        generate: how many tokens to generate; None for an answer.
    """

    target: Any
    rules: str
    at: tuple[str, ...] = ()
    generate: int | None = None


def explained(loaded: Loaded, given: Given, wanted: Wanted) -> Result:
    """The explanation, its ledger computed where there is one.

    Raises:
        InputError: where there is nothing to explain, or options do not go together.
    """
    xmodel, raw = loaded.converted(wanted.rules), given.raw(loaded)
    if wanted.generate is not None:
        if wanted.at:
            raise InputError("--at goes with an answer, not with --generate")
        return xmodel.explain_generation(*raw, max_new_tokens=wanted.generate, target=wanted.target)
    made = xmodel.explain(*raw, target=wanted.target, at=wanted.at)
    with contextlib.suppress(LatentError):
        made.ledger  # noqa: B018  (computed now, so that its notes are shown)
    return made


def as_json(result: Result, *, words: bool) -> str:
    """A result as JSON: what was explained, the share of every word, token or entry, the ledger, notes."""
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
    """Write what was asked for: what it is -> where."""
    written = {}
    if html is not None:
        facts = {"model": loaded.name}
        written["heatmap"] = result.save_html(html, title=loaded.title, facts=facts, words=words)
    if view is not None:
        written["page"] = result.view(view, title=loaded.title)
    if save is not None:
        written["result"] = result.save(save)
    return written
