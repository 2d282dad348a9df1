"""Guards: the sizes for which the model would run this very graph.

Export decides everything that depends on sizes (branches, broadcasts, the number of turns of a loop) for the example
inputs, and records the conditions. These guards are stored with the graph as plain formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lrp_fx.capture.size_formulas import evaluate, shown

_REMEMBERED = 1024  #: number of cached verdicts on sizes


@dataclass(frozen=True)
class Guard:
    """One condition on sizes.

    Attributes:
        condition: a plain formula (:mod:`lrp_fx.capture.size_formulas`).
        place: the line of code that depends on it.
        layout: whether it comes from shape propagation of an operator: the operator is the same if it fails.
    """

    condition: Any
    place: str = ""
    layout: bool = False

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it holds for given sizes; False if it has no value."""
        try:
            return bool(evaluate(self.condition, sizes))
        except (ArithmeticError, ValueError):
            return False

    def shown(self, names: Mapping[str, str]) -> str:
        """The condition and its line of code, as text."""
        return shown(self.condition, names) + (f" ({self.place})" if self.place else "")


@dataclass(frozen=True)
class Shapes:
    """The sizes that a capture serves.

    Attributes:
        dims: one tuple per tensor input: a number for a specialized dimension, a name for a dynamic one.
        limits: name -> smallest and largest size.
        reasons: (input, axis) -> why a size is fixed, if known.
        guards: further conditions, formulas of the names in ``dims``.
        derived: all sizes inside the graph, as such formulas, if export was oblivious to sizes of one.
        inputs: names of the tensor inputs.
        also: sizes of other captures to which the graph was proven equivalent
            (:func:`lrp_fx.capture.equivalence.covers`). The list is shared: all holders of this object see additions.
    """

    dims: tuple[tuple[int | str, ...], ...]
    limits: dict[str, tuple[int, int]]
    reasons: dict[tuple[str, int], str] = field(default_factory=dict)
    guards: tuple[Guard, ...] = ()
    derived: tuple[Any, ...] = ()
    inputs: tuple[str, ...] = ()
    also: list[Shapes] = field(default_factory=list, repr=False, compare=False)
    _unsure: dict[tuple[int, ...], tuple[Any, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _verdicts: dict[tuple[int, ...], str | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __str__(self) -> str:
        sizes = [f"{name} ({', '.join(map(str, dims))})" for name, dims in zip(self.inputs, self.dims, strict=False)]
        return ", ".join(sizes) or "no tensors"

    def mismatch(self, tensors: Sequence[torch.Tensor]) -> str | None:
        """Why the graph does not serve tensors of these sizes, in a line; None if it does."""
        key = (len(self.also), *(size for tensor in tensors for size in tensor.shape))
        if key not in self._verdicts:
            if len(self._verdicts) >= _REMEMBERED:
                self._verdicts.clear()
            reason = self._mismatch([tuple(t.shape) for t in tensors])
            if reason is not None and any(other.certain(tensors) for other in self.also):
                reason = None
            self._verdicts[key] = reason
            return reason
        return self._verdicts[key]

    @property
    def samples(self) -> tuple[int, ...]:
        """Indices of the tensors with one row per sample; the first dynamic size of a first axis is the batch."""
        firsts = [dims[0] if dims else 0 for dims in self.dims]
        batch = next((size for size in firsts if isinstance(size, str)), None)
        return tuple(i for i, size in enumerate(firsts) if size == batch)

    def is_one_sample(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether tensors are a batch of one sample, in a capture with a dynamic batch."""
        rows = [tensors[i].shape[:1] for i in self.samples if i < len(tensors)]
        return bool(rows) and all(row == (1,) for row in rows)

    def certain(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether the graph serves tensors of these sizes without a further check (:meth:`unsure`)."""
        return self.mismatch(tensors) is None and not self.unsure(tensors)

    def _mismatch(self, sizes: Sequence[Sequence[int]]) -> str | None:
        bound: dict[str, int] = {}
        for number, (shape, dims) in enumerate(zip(sizes, self.dims, strict=True)):
            for axis, (size, dim) in enumerate(zip(shape, dims, strict=True)):
                want = dim if isinstance(dim, int) else bound.setdefault(dim, int(size))
                place = f"dimension {axis}{self._of(number)} is {size}"
                if want != size:
                    return f"{place}, captured as {want}{self._because(dim, number, axis)}"
                low, high = self.limits.get(dim, (1, 2**63)) if isinstance(dim, str) else (1, 2**63)
                if not low <= size <= high:
                    return f"{place}, outside {(low, high)}{self._about(str(dim))}"
        broken = next((g for g in self.guards if not g.layout and not g.holds(bound)), None)
        return None if broken is None else f"the captured graph relies on {broken.shown(self._names())}"

    def _of(self, number: int) -> str:
        return f" of '{self.inputs[number]}'" if number < len(self.inputs) else ""

    def _because(self, dim: int | str, number: int, axis: int) -> str:
        if isinstance(dim, str):
            return f" like {self._names().get(dim, dim)}"
        reason = self.reasons.get((self.inputs[number], axis)) if number < len(self.inputs) else None
        return f": {reason}" if reason else ""

    def _about(self, dim: str) -> str:
        """The guards on one size alone, which limit it."""
        names = self._names()
        conditions = [g.shown(names) for g in self.guards if _sizes_in(g.condition) == {dim}]
        return f": the captured graph relies on {'; '.join(conditions)}" if conditions else ""

    def _names(self) -> dict[str, str]:
        """Name of a size -> an input dimension of that size, as text."""
        names: dict[str, str] = {}
        for name, dims in zip(self.inputs, self.dims, strict=False):
            for axis, dim in enumerate(dims):
                if isinstance(dim, str):
                    names.setdefault(dim, f"{name}.shape[{axis}]")
        return names

    def bound(self, tensors: Sequence[torch.Tensor]) -> dict[str, int]:
        """Name -> size."""
        return {
            dim: int(size)
            for tensor, dims in zip(tensors, self.dims, strict=True)
            for size, dim in zip(tensor.shape, dims, strict=True)
            if isinstance(dim, str)
        }

    def unsure(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """(indices of ``derived`` sizes that are 0 or 1, indices of layout guards that fail), if any; else ().

        Export did not check operators at such sizes. A check at some sizes holds for all sizes with the same result.
        """
        key = tuple(size for tensor in tensors for size in tensor.shape)
        if key not in self._unsure:
            if len(self._unsure) >= _REMEMBERED:
                self._unsure.clear()
            if self._mismatch([tuple(t.shape) for t in tensors]) is not None:  # sizes of ``also``, which are proven
                self._unsure[key] = ()
                return ()
            bound = self.bound(tensors)
            ones = tuple(i for i, size in enumerate(self.derived) if evaluate(size, bound) <= 1)
            broken = tuple(i for i, g in enumerate(self.guards) if g.layout and not g.holds(bound))
            self._unsure[key] = (ones, broken) if ones or broken else ()
        return self._unsure[key]

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "dims": self.dims,
            "limits": self.limits,
            "reasons": [[*place, reason] for place, reason in self.reasons.items()],
            "guards": [[guard.condition, guard.place, guard.layout] for guard in self.guards],
            "derived": self.derived,
            "called": self.inputs,
            "also": [other.plain() for other in self.also],
        }

    @classmethod
    def from_plain(cls, document: Mapping[str, Any]) -> Shapes:
        """Read the result of :meth:`plain`."""
        return cls(
            tuple(tuple(int(d) if isinstance(d, int) else str(d) for d in sizes) for sizes in document["dims"]),
            {str(name): (int(low), int(high)) for name, (low, high) in document["limits"].items()},
            {(str(name), int(axis)): str(reason) for name, axis, reason in document["reasons"]},
            tuple(Guard(condition, str(place), bool(layout)) for condition, place, layout in document["guards"]),
            tuple(document["derived"]),
            tuple(map(str, document["called"])),
            [cls.from_plain(other) for other in document.get("also", ())],
        )

    @property
    def specialised(self) -> list[tuple[int, int, int]]:
        """(input number, axis, size) of every specialized dimension."""
        return [(i, a, d) for i, dims in enumerate(self.dims) for a, d in enumerate(dims) if isinstance(d, int)]

    def explained(self, names: Sequence[str]) -> list[str]:
        """One line per specialized dimension: input, axis, size and reason."""
        return [
            f"{names[i]} axis {axis} is {size}: {self.reasons.get((names[i], axis), _unknown_reason(size, axis))}"
            for i, axis, size in self.specialised
        ]

    @property
    def relied(self) -> list[str]:
        """One line per guard from a branch of the model: the condition and its line of code."""
        names = self._names()
        return [guard.shown(names) for guard in self.guards if not guard.layout]


def _sizes_in(plain: Any) -> set[str]:
    if isinstance(plain, str):
        return {plain}
    return set().union(*map(_sizes_in, plain[1:])) if isinstance(plain, (list, tuple)) else set()


def _unknown_reason(size: int, axis: int) -> str:
    if size == 1:
        return "the example has one; export specializes sizes of one"
    return (
        "sizes of images and video are specialized"
        if axis > 1
        else "the model broadcasts or compares it with a fixed size"
    )
