"""The result of an explanation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from torch import Tensor

from lrp_fx.errors import LatentError
from lrp_fx.explain.ledger import Ledger
from lrp_fx.explain.notes import Note, find_notes


@dataclass(frozen=True)
class Later:
    """A part of an attribution that is computed when it is asked for."""

    make: Callable[[], Any]


@dataclass
class Attribution:
    """Relevance of one target per sample.

    Attributes:
        relevance: input name -> relevance. Token ids: (B, S), summed over features; floating inputs: their own shape.
        latents: module path -> relevance of that module's output, in its shape (what ``at=`` asked for).
        target: (B,) the explained values.
        ruleset: name of the rule set.
    """

    relevance: dict[str, Tensor]
    latents: dict[str, Tensor]
    target: Tensor
    _output: Any = field(repr=False)
    ruleset: str
    _inputs: dict[str, Tensor] | Later = field(repr=False)
    _account: Callable[[], Ledger] = field(repr=False)

    @cached_property
    def output(self) -> Any:
        """The model's output, of its own type, detached. Where a compiled graph that does not compute it explained,
        a second sweep on the same inputs and weights does."""
        return _now(self._output)

    @cached_property
    def ledger(self) -> Ledger:
        """Where all of the relevance went. Computed at first use, by a second sweep on the same inputs and weights."""
        return self._account()

    @property
    def notes(self) -> tuple[Note, ...]:
        """Signs that the map is weak, each with what to try (:mod:`lrp_fx.explain.notes`); those that the ledger shows
        only once it was computed."""
        amounts = self.ledger.by("category") if "ledger" in self.__dict__ else None
        return find_notes(self.relevance, self.target, amounts)

    @cached_property
    def sources(self) -> dict[str, Tensor]:
        """Every tensor that relevance was collected at, by name, elementwise: embeddings of the inputs, then the
        position, type, class-token and latent parameters that join on the way (from the ledger)."""
        collected = dict(_now(self._inputs))
        for entry in self.ledger.entries:
            if entry.category == "source" and entry.relevance is not None:
                earlier = collected.get(entry.name)
                same = earlier is not None and earlier.shape == entry.relevance.shape
                key = entry.name if earlier is None or same else f"{entry.name} ({entry.node})"
                collected[key] = earlier + entry.relevance if same and earlier is not None else entry.relevance
        return collected

    def __getstate__(self) -> dict[str, Any]:
        """For another process: what was still to be computed, computed; the ledger too, where there is one."""
        try:
            account: Callable[[], Ledger] = functools.partial(_as_computed, self.ledger)
        except LatentError:  # it has none, and says why
            account = self._account
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        return state | {"_output": self.output, "_inputs": _now(self._inputs), "_account": account}

    def __repr__(self) -> str:
        shapes = {name: tuple(r.shape) for name, r in self.relevance.items()}
        notes = "".join(f"\n  note: {note}" for note in self.notes)
        return f"Attribution(relevance={shapes}, target={self.target.tolist()}, rules={self.ruleset!r}){notes}"


def no_ledger(why: str) -> Callable[[], Ledger]:
    """What stands for the account of an attribution that has no ledger: it says why when it is asked."""
    return functools.partial(_refuse, why)


def _refuse(why: str) -> Ledger:
    raise LatentError(why)


def _as_computed(ledger: Ledger) -> Ledger:
    return ledger


def _now(value: Any) -> Any:
    return value.make() if isinstance(value, Later) else value
