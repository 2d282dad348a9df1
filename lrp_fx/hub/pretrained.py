"""Loading of a saved model with its rule set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.errors import InputError
from lrp_fx.exporting import EXPLAIN_JSON, EXPLAIN_SCHEMA
from lrp_fx.hub.folder import load_folder
from lrp_fx.module import ExplainableModule


def from_pretrained(
    folder: str | Path, *, rules: RuleSource | None = None, dtype: torch.dtype | None = None, **options: Any
) -> ExplainableModule:
    """Load and convert a model saved by :meth:`lrp_fx.ExplainableModule.save_pretrained`, or any Hugging Face model.

    Args:
        folder: the folder.
        rules: another rule set than the saved one; None for the saved one, or "default" without one.
        dtype: precision of the model; None for the saved one.
        **options: of :func:`lrp_fx.convert`; they replace saved options.

    Raises:
        InputError: for a folder that cannot be read, or was written by a later version.
        RuleSetError: for rules that this version does not have.
        MissingExtraError: if transformers is not installed.
    """
    model, tools = load_folder(folder, dtype)
    saved = _saved(Path(folder) / EXPLAIN_JSON)
    chosen = saved.get("rules", "default") if rules is None else rules
    return convert(model, **{**tools, **saved.get("options", {}), **options}, rules=chosen)


def _saved(path: Path) -> dict[str, Any]:
    """The document ``explain.json`` of a folder; empty without one.

    Raises:
        InputError: for a file that cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text())
        schema = int(document["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if schema > EXPLAIN_SCHEMA:
        raise InputError(f"{path} is of schema {schema}, and this version reads {EXPLAIN_SCHEMA}: install a later one")
    return document
