"""Results as plain data: a JSON document of facts, and tensors by name.

The document has schema 1. Fields added later get a default here, so that old files stay readable. A change of meaning
gets a new schema number, and this reader stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrp_fx.results.context import ComputedDigest, Context, Normalization, Tokens
from lrp_fx.results.ledger import Entry, Ledger
from lrp_fx.results.notes import Note
from lrp_fx.version import VERSION

FORMAT, SCHEMA = "lrp_fx result", 1
#: fields of a result that map names to tensors
PARTS = ("relevance", "latents", "inputs")


@dataclass(frozen=True)
class Document:
    """A result as plain data.

    Attributes:
        about: all fields but tensors, for JSON.
        tensors: name ("relevance/input_ids") -> tensor.
    """

    about: dict[str, Any]
    tensors: dict[str, Tensor]


def head(kind: str, rules: str, context: Context) -> dict[str, Any]:
    """The fields of a document that every result has."""
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "kind": kind,
        "versions": {"lrp_fx": VERSION, "torch": torch.__version__},
        "rules": rules,
        "model": context.fingerprint(),
        "target": context.question,
        "answers": context.answers,
        "labels": context.labels,
        "features": dict(context.features),
        "sampling_rate": context.sampling_rate,
        "normalization": {name: vars(one) for name, one in context.normalization.items()},
        "tokens": {name: [vars(one) for one in listed] for name, listed in context.tokens.items()},
        "notes": [vars(note) for note in context.notes],
    }


def ledger_data(ledger: Ledger) -> dict[str, Any]:
    """A ledger without the elementwise relevance of its entries."""
    names = ("category", "name", "role", "module", "node", "amount")
    return {"target": ledger.target, "entries": [[getattr(e, n) for n in names] for e in ledger.entries]}


def read_ledger(data: Any) -> Ledger:
    """Read the output of :func:`ledger_data`."""
    fields = _mapping(data)
    entries = [_sequence(entry) for entry in _sequence(fields["entries"])]
    return Ledger(tuple(map(_entry, entries)), _number(fields["target"]))


def _entry(values: list[Any]) -> Entry:
    category, name, role, module, node = map(_text, values[:5])
    return Entry(category, name, role, module, node, _number(values[5]))


def check_head(about: Any) -> dict[str, Any]:
    """The document, if this version can read it.

    Raises:
        ValueError: for anything else, and for a later schema.
    """
    fields = _mapping(about)
    if fields.get("format") != FORMAT:
        raise ValueError(f"its field 'format' is not {FORMAT!r}")
    if type(fields.get("schema")) is not int or fields["schema"] < 1:
        raise ValueError("its schema is no number")
    if fields["schema"] > SCHEMA:
        raise ValueError(f"it has schema {fields['schema']}, and this version reads up to {SCHEMA}: update lrp_fx")
    return fields


def read_context(about: Mapping[str, Any]) -> Context:
    """Read the context of the samples from a document."""
    rate = about.get("sampling_rate")
    model = about.get("model")
    return Context(
        tokens={_text(n): tuple(map(_tokens, _sequence(v))) for n, v in _mapping(about.get("tokens", {})).items()},
        features={_text(n): _texts(v) for n, v in _mapping(about.get("features", {})).items()},
        labels=_optional(_texts, about.get("labels")),
        answers=_optional(_texts, about.get("answers")),
        question=_text(about.get("target", "")),
        sampling_rate=_optional(_number, rate),
        normalization={_text(n): _normalization(v) for n, v in _mapping(about.get("normalization", {})).items()},
        notes=tuple(Note(_text(n["name"]), _text(n["text"])) for n in map(_mapping, about.get("notes", []))),
        fingerprint=ComputedDigest(_optional(_text, model)),
    )


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one part, without its prefix in their names."""
    return {name.removeprefix(f"{part}/"): t for name, t in tensors.items() if name.startswith(f"{part}/")}


def texts(about: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field of texts; none if it is missing."""
    return _texts(about.get(name, []))


def text(about: Mapping[str, Any], name: str) -> str:
    """A text field."""
    return _text(about[name])


def count(about: Mapping[str, Any], name: str) -> int:
    """A field with a count.

    Raises:
        ValueError: for anything but an integer from 0 on.
    """
    if type(about[name]) is not int or about[name] < 0:
        raise ValueError(f"{name} is no count")
    return about[name]


def _normalization(data: Any) -> Normalization:
    fields = _mapping(data)
    mean, std = (tuple(map(_number, _sequence(fields[name]))) for name in ("mean", "std"))
    return Normalization(mean, std)


def _tokens(data: Any) -> Tokens:
    fields = _mapping(data)
    offsets, words = fields.get("offsets"), fields.get("words")
    return Tokens(
        _texts(fields["texts"]),
        tuple(map(bool, _sequence(fields["special"]))),
        tuple(map(bool, _sequence(fields["padding"]))),
        None if offsets is None else tuple((_whole(a), _whole(b)) for a, b in map(_sequence, _sequence(offsets))),
        None if words is None else tuple(_optional(_whole, w) for w in _sequence(words)),
        _optional(_text, fields.get("text")),
    )


def _optional(read: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else read(value)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, _sequence(value)))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is no text")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{str(value)[:40]!r} is no whole number")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{str(value)[:40]!r} is no number")
    return float(value)


def _sequence(value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{str(value)[:40]!r} is no list")
    return list(value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{str(value)[:40]!r} is no object")
    return value
