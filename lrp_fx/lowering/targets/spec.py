"""Targets of a lowered graph: what of a target is fixed in the graph, and what stays an input of it."""

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
from lrp_fx.explain.target import (
    Contrast,
    Pixels,
    Target,
    at_pixels,
    at_positions,
    by_class,
    check_range,
    normal,
    select,
)

Choose = Callable[..., Tensor]


@dataclass(frozen=True)
class TargetSpec:
    """What of a target is fixed in a graph: targets of one spec share it.

    Attributes:
        kind: "largest", "class", "index", "contrast", "pixels" (with an axis, where the target names one), "callable"
            or "many" (each input is (B, n) for any n).
        names: its inputs, each a (B,) tensor of integers.
        choose: (reading, output, masks, *inputs) -> (B,) values to explain; traced, so it reads no value.
    """

    kind: str
    names: tuple[str, ...]
    choose: Choose

    def inputs(
        self, target: Target, sizes: Sequence[int | None], device: torch.device, reading: Reading
    ) -> tuple[Tensor, ...]:
        """The inputs that stand for ``target`` on an output whose indexed dimensions have these sizes.

        Raises:
            TargetError: for a target of another kind, a wrong number of them, or one out of range.
        """
        target = normal(target)
        other = target_spec(target)
        if (other.kind, other.names) != (self.kind, self.names):
            raise TargetError(
                f"this graph was lowered for a target of kind {self.kind!r} with inputs {list(self.names)}, not "
                f"{other.kind!r} with {list(other.names)}: lower it for that kind with target="
            )
        batch = (sizes[0] if sizes else None) or 1
        classes: tuple[int | None, ...] = (1,) * len(self.names)
        if len(sizes) > 1:
            named = isinstance(target, Pixels) and target.axis is None
            axis = reading.axis if named else getattr(target, "axis", None)
            count = sizes[-1 if axis is None else axis]
            classes = tuple(sizes[1:]) if self.kind == "index" else (count,) * len(self.names)
        return tuple(_per_sample(v, batch, n, device) for v, n in zip(_parts(target), classes, strict=True))


def _parts(target: Target) -> list[Any]:
    if isinstance(target, Contrast):
        return [v for v in (target.chosen, target.foil) if v is not None]
    if isinstance(target, Pixels):
        return [target.chosen]
    if target is None or (callable(target) and not isinstance(target, Tensor)):
        return []
    return list(target) if isinstance(target, tuple) else [target]


def _per_sample(value: Any, batch: int, classes: int | None, device: torch.device) -> Tensor:
    if not isinstance(value, (int, Tensor)):
        raise TargetError(f"a graph takes integers, or (B,) tensors of them, as targets, not {value!r}")
    return check_range(value, batch, classes).to(device).long().expand(batch).contiguous()


def distinct(names: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Argument names made of these, no two alike and none of ``taken``: an input may be called as a target's is."""
    used = set(taken)
    renamed = []
    for name in names:
        unused = re.sub(r"\W", "_", name)
        while unused in used or keyword.iskeyword(unused):
            unused += "_"
        used.add(unused)
        renamed.append(unused)
    return renamed


def target_spec(target: Target) -> TargetSpec:
    """The spec of a target.

    Raises:
        TargetError: for what is no target.
    """
    target = normal(target)
    if target is None:
        return TargetSpec("largest", (), lambda reading, output, masks: select(output, None, masks, reading))
    if isinstance(target, Pixels):
        return _pixels_spec(target)
    if isinstance(target, Contrast):
        return _contrast_spec(target)
    if isinstance(target, tuple):
        return TargetSpec("index", tuple(f"target_{i}" for i in range(len(target))), _choose_index)
    if callable(target) and not isinstance(target, Tensor):
        return TargetSpec("callable", (), lambda reading, output, masks: select(output, target, masks, reading))
    return TargetSpec("class", ("target",), _choose_class)


def _rows(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[0], device=logits.device)


def _choose_class(reading: Reading, output: Any, masks: Mapping[str, Tensor], target: Tensor) -> Tensor:
    logits = reading.logits(output)
    if logits.dim() < 2:
        return select(output, None, masks, reading)  # one value per sample: there is nothing to choose
    logits = by_class(logits, masks, reading)
    return logits[_rows(logits), target % logits.shape[1]]


def _choose_index(reading: Reading, output: Any, masks: Mapping[str, Tensor], *indices: Tensor) -> Tensor:
    logits = reading.logits(output)
    if len(indices) != logits.dim() - 1:
        raise TargetError(
            f"a target of {len(indices)} indices for an output of shape {tuple(logits.shape)}: lowered graphs take "
            f"{logits.dim() - 1}, one per dimension but the batch"
        )
    *positions, last = indices
    for index in positions:  # one dimension after the other: what is computed behind the first is computed there only
        logits = at_positions(logits, (index % logits.shape[1])[:, None]).squeeze(1)
    return logits[_rows(logits), last % logits.shape[1]]


def _contrast_spec(target: Contrast) -> TargetSpec:
    named = {"target": target.chosen, "foil": target.foil}
    names = tuple(n for n, v in named.items() if v is not None)

    def choose(reading: Reading, output: Any, masks: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        classes = dict(zip(names, inputs, strict=True))
        logits = by_class(reading.logits(output), masks, reading)
        rows = _rows(logits)
        chosen = classes["target"] % logits.shape[1] if "target" in classes else logits.detach().argmax(-1)
        if "foil" in classes:
            return logits[rows, chosen] - logits[rows, classes["foil"] % logits.shape[1]]
        others = logits.detach().scatter(1, chosen[:, None], -float("inf"))
        shares = torch.softmax(others, -1)
        weighed = torch.where(shares == 0, 0.0, logits * shares)
        return logits[rows, chosen] - weighed.sum(-1)

    return TargetSpec("contrast", names, choose)


def _pixels_spec(target: Pixels) -> TargetSpec:
    def choose(reading: Reading, output: Any, masks: Mapping[str, Tensor], chosen: Tensor) -> Tensor:
        return at_pixels(reading.logits(output), target, masks, reading, chosen)

    return TargetSpec("pixels" if target.axis is None else f"pixels along {target.axis}", ("target",), choose)
