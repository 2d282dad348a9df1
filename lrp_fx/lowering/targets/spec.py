"""Targets of a lowered graph: the kind of target is fixed in the graph, its indices are inputs."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import TargetError
from lrp_fx.explain.reading import Reading
from lrp_fx.explain.target import at_pixels, at_positions, by_class, of_class, of_span, resolved, select
from lrp_fx.explain.target_types import (
    INDICES,
    Logit,
    OfClass,
    Pixels,
    Span,
    Target,
    check_bounds,
    check_range,
    indices_of,
)

Choose = Callable[..., Tensor]


#: field of a target -> name of its graph input, where the two differ
_NAMES = {"chosen": "target"}


@dataclass(frozen=True)
class TargetSpec:
    """The kind of target of a graph; targets of one spec share the graph.

    Attributes:
        kind: "largest", "class", "index", the name of another form ("contrast", "logprob", "span", ...), "pixels" (with
            an axis, where the target names one), "callable", or "many", "contrasts" (each input is (B, n) for any n).
        names: names of the target inputs, each a (B,) tensor of integers.
        choose: (reading, output, readable inputs of the model, *target inputs) -> (B,) values to explain; it is traced
            and must not read tensor values.
    """

    kind: str
    names: tuple[str, ...]
    choose: Choose

    def inputs(
        self, target: Target, sizes: Sequence[int | None], device: torch.device, reading: Reading
    ) -> tuple[Tensor, ...]:
        """The target inputs for ``target``, on logits of shape ``sizes`` (None for an unknown size).

        Raises:
            TargetError: for a target of another kind, a wrong number of indices, or an index out of range.
        """
        target = resolved(target, reading)
        other = target_spec(target, reading)
        if (other.kind, other.names) != (self.kind, self.names):
            raise TargetError(
                f"this graph was lowered for a target of kind {self.kind!r} with inputs {list(self.names)}, not "
                f"{other.kind!r} with {list(other.names)}: lower it for that kind with target="
            )
        batch = (sizes[0] if sizes else None) or 1
        if isinstance(target, Span) and len(sizes) > 1 and sizes[1] is not None:
            check_bounds(target, batch, sizes[1])
        limits = _limits(target, self.names, sizes, reading)
        return tuple(_per_sample(v, batch, n, device) for v, n in zip(_parts(target), limits, strict=True))


def _limits(
    target: Target, names: Sequence[str], sizes: Sequence[int | None], reading: Reading
) -> tuple[int | None, ...]:
    """Upper bound of each target input; None where it is unknown, or checked elsewhere (spans)."""
    if isinstance(target, Span):
        return (None,) * len(names)
    if len(sizes) < 2:
        return (1,) * len(names)
    if isinstance(target, tuple):
        return tuple(sizes[1:])
    axis = getattr(target, "axis", None)
    axis = reading.axis if isinstance(target, Pixels) and axis is None else axis
    return tuple(sizes[1] if name == "position" else sizes[-1 if axis is None else axis] for name in names)


def _parts(target: Target) -> list[Any]:
    if type(target) in INDICES:
        return list(indices_of(target).values())
    if callable(target) and not isinstance(target, Tensor):
        return []
    return list(target) if isinstance(target, tuple) else [target]


def _per_sample(value: Any, batch: int, classes: int | None, device: torch.device) -> Tensor:
    if not isinstance(value, (int, Tensor)):
        raise TargetError(f"a graph takes integers, or (B,) tensors of them, as targets, not {value!r}")
    return check_range(value, batch, classes).to(device).long().expand(batch).contiguous()


def distinct(names: Sequence[str], reserved: Iterable[str] = ()) -> list[str]:
    """Distinct argument names from these, none of them ``reserved``: a model input may have a target input's name."""
    used = set(reserved)
    renamed = []
    for name in names:
        unused = re.sub(r"\W", "_", name)
        while unused in used or keyword.iskeyword(unused):
            unused += "_"
        used.add(unused)
        renamed.append(unused)
    return renamed


def target_spec(target: Target, reading: Reading) -> TargetSpec:
    """The spec of a target.

    Raises:
        TargetError: for an object that is no target.
    """
    target = resolved(target, reading)
    if isinstance(target, Pixels):
        return _pixels_spec(target)
    if isinstance(target, Logit) and target.position is None:
        return _LARGEST if target.chosen is None else _CLASS
    if isinstance(target, Span):
        return TargetSpec("span", tuple(indices_of(target)), _choose_span)
    if type(target) in INDICES:
        return _class_spec(target)  # type: ignore[arg-type]
    if isinstance(target, tuple):
        return TargetSpec("index", tuple(f"target_{i}" for i in range(len(target))), _choose_index)
    if callable(target) and not isinstance(target, Tensor):
        return TargetSpec("callable", (), lambda reading, output, inputs: select(output, target, inputs, reading))
    return _CLASS


def _rows(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[0], device=logits.device)


def _choose_largest(reading: Reading, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return select(output, Logit(), inputs, reading)


def _choose_class(reading: Reading, output: Any, inputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
    logits = reading.logits(output)
    if logits.dim() < 2:
        return _choose_largest(reading, output, inputs)  # one value per sample
    logits = by_class(logits, inputs, reading)
    return logits[_rows(logits), target % logits.shape[1]]


_LARGEST = TargetSpec("largest", (), _choose_largest)
_CLASS = TargetSpec("class", ("target",), _choose_class)


def _choose_index(reading: Reading, output: Any, inputs: Mapping[str, Tensor], *indices: Tensor) -> Tensor:
    logits = reading.logits(output)
    if len(indices) != logits.dim() - 1:
        raise TargetError(
            f"a target of {len(indices)} indices for an output of shape {tuple(logits.shape)}: lowered graphs take "
            f"{logits.dim() - 1}, one per dimension but the batch"
        )
    *positions, last = indices
    for index in positions:  # one dimension after the other: each selection can be hoisted on its own
        logits = at_positions(logits, (index % logits.shape[1])[:, None]).squeeze(1)
    return logits[_rows(logits), last % logits.shape[1]]


def _class_spec(target: OfClass) -> TargetSpec:
    form, fields = type(target), tuple(indices_of(target))

    def choose(reading: Reading, output: Any, inputs: Mapping[str, Tensor], *indices: Tensor) -> Tensor:
        index = dict(zip(fields, indices, strict=True))
        logits = by_class(reading.logits(output), inputs, reading, index.get("position"))
        count = logits.shape[1]
        chosen = index["chosen"] % count if "chosen" in index else logits.detach().argmax(-1)
        return of_class(form, logits, chosen, index["foil"] % count if "foil" in index else None)

    return TargetSpec(form.__name__.lower(), tuple(_NAMES.get(field, field) for field in fields), choose)


def _choose_span(
    reading: Reading, output: Any, inputs: Mapping[str, Tensor], start: Tensor, end: Tensor | None = None
) -> Tensor:
    return of_span(reading.logits(output), start, end, inputs, reading)


def _pixels_spec(target: Pixels) -> TargetSpec:
    def choose(reading: Reading, output: Any, inputs: Mapping[str, Tensor], chosen: Tensor) -> Tensor:
        return at_pixels(reading.logits(output), target, inputs, reading, chosen)

    return TargetSpec("pixels" if target.axis is None else f"pixels along {target.axis}", ("target",), choose)
