"""The ledger: all entries of an explanation. Every entry is computed on its own, and they sum to the target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from lrp_fx.viz.amount_plots import draw_waterfall

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: category -> its name in pictures
_SPOKEN = {
    "source": "positions and types", "position": "rotary positions", "bias": "biases", "constant": "constants",
    "stopped": "held constant", "softmax": "softmax (expansion)", "taylor": "other expansions",
    "stabiliser": "stabilisers", "rule": "rules that lose some", "target": "nonlinear target",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One amount in the ledger.

    Attributes:
        category: input, source (position, type and latent parameters), position (rotary tables, if the rule set counts
            them), bias, constant, detached (values that the model detaches), stopped, softmax, taylor (the remainder of
            the first-order expansion of another function of several numbers), stabiliser, rule (relevance that a rule
            loses or invents) or target (the nonlinear part of a target).
        name: input, parameter path, or operator.
        role: role of the node that absorbs it.
        module: module path of that node.
        node: name of that node.
        amount: relevance, summed over the batch.
        relevance: elementwise relevance, for sources.
    """

    category: str
    name: str
    role: str
    module: str
    node: str
    amount: float
    relevance: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Ledger(Mapping[str, float]):
    """All entries of one explanation, and its target (both summed over the batch).

    As a mapping: category -> amount; ``sum(ledger.values())`` is the target.
    """

    entries: tuple[Entry, ...]
    target: float

    @property
    def total(self) -> float:
        """Sum of all entries."""
        return sum(e.amount for e in self.entries)

    @property
    def residual(self) -> float:
        """Target minus total: 0 up to rounding, on any model, under any rule set."""
        return self.target - self.total

    @property
    def balance(self) -> float:
        """Residual relative to the sum of absolute entries (or the target, if larger)."""
        scale = max(abs(self.target), sum(abs(e.amount) for e in self.entries), 1e-300)
        return abs(self.residual) / scale

    def by(self, key: str) -> dict[str, float]:
        """Amounts grouped by an attribute of the entries: "category", "name", "role", "module"."""
        groups: dict[str, float] = {}
        for entry in self.entries:
            group = str(getattr(entry, key))
            groups[group] = groups.get(group, 0.0) + entry.amount
        return groups

    def __getitem__(self, category: str) -> float:
        return self.by("category").get(category, 0.0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.by("category"))

    def __len__(self) -> int:
        return len(self.by("category"))

    def __contains__(self, category: object) -> bool:
        return category in self.by("category")

    def plot(self, parts: Sequence[tuple[str, float]] = (), *, title: str = "", notes: Iterable[object] = ()) -> Figure:
        """Waterfall from 0 over the other categories and the inputs to the explained value.

        Args:
            parts: (name, amount) of parts of the inputs (words), shown in place of the inputs' sum.
            title: heading.
            notes: lines below the picture.

        Raises:
            MissingExtraError: if matplotlib is not installed.
        """
        amounts = self.by("category")
        inputs = amounts.pop("input", 0.0)
        ranked = sorted(amounts.items(), key=lambda item: -abs(item[1]))
        base = [(_SPOKEN.get(category, category), amount) for category, amount in ranked]
        shown = list(parts) or [("inputs", inputs)]
        return draw_waterfall(base, shown, self.target, title=title, notes=tuple(map(str, notes)))

    def __add__(self, other: Ledger) -> Ledger:
        """The ledger of the sum of two targets."""
        return Ledger((*self.entries, *other.entries), self.target + other.target)

    def __mul__(self, factor: float) -> Ledger:
        """The ledger of a multiple of the target."""
        entries = (
            replace(e, amount=e.amount * factor, relevance=None if e.relevance is None else e.relevance * factor)
            for e in self.entries
        )
        return Ledger(tuple(entries), self.target * factor)

    def __str__(self) -> str:
        rows = [f"{category:12} {amount: .6g}" for category, amount in self.by("category").items()]
        return "\n".join([*rows, f"{'total':12} {self.total: .6g}", f"{'target':12} {self.target: .6g}"])

    __repr__ = __str__
