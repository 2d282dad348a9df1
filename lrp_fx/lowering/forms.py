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
from lrp_fx.explain.target import Contrast, Target, at_positions, by_class, find_logits, select

Choose = Callable[..., Tensor]


@dataclass(frozen=True)
class Form:
    """The shape of a target: targets of one form share a graph.

    Attributes:
        kind: "largest", "class", "index", "contrast", "callable" or "many" (each input is (B, n) for any n).
        names: its inputs, each a (B,) tensor of integers.
        choose: (output, masks, *inputs) -> (B,) values to explain; traced, so it reads no value.
    """

    kind: str
    names: tuple[str, ...]
    choose: Choose

    def inputs(self, target: Target, sizes: Sequence[int | None], device: torch.device) -> tuple[Tensor, ...]:
        """The inputs that stand for ``target`` on an output whose indexed dimensions have these sizes.

        Raises:
            TargetError: for a target of another form, a wrong number of them, or one out of range.
        """
        given = form_of(target)
        if (given.kind, given.names) != (self.kind, self.names):
            raise TargetError(
                f"this graph was lowered for a target of kind {self.kind!r} with inputs {list(self.names)}, not "
                f"{given.kind!r} with {list(given.names)}: lower it for that kind with target="
            )
        classes = tuple(sizes[1:]) if self.kind == "index" else (sizes[-1],) * len(self.names)
        if len(sizes) < 2:
            classes = (1,) * len(self.names)
        return tuple(_per_sample(v, sizes[0] or 1, n, device) for v, n in zip(_parts(target), classes, strict=True))


def _parts(target: Target) -> list[Any]:
    if isinstance(target, Contrast):
        return [v for v in (target.chosen, target.foil) if v is not None]
    if target is None or (callable(target) and not isinstance(target, Tensor)):
        return []
    return list(target) if isinstance(target, tuple) else [target]


def _per_sample(value: Any, batch: int, classes: int | None, device: torch.device) -> Tensor:
    index = torch.as_tensor(value, device=device)
    if index.is_floating_point() or index.dtype is torch.bool or index.dim() > 1:
        raise TargetError(
            f"a target must be an int or a (B,) integer tensor, not {index.dtype} of shape {tuple(index.shape)}"
        )
    if index.dim() == 1 and index.shape[0] != batch:
        raise TargetError(f"{index.shape[0]} targets for a batch of {batch}: give one per sample")
    if classes is not None and bool(((index >= classes) | (index < -classes)).any()):
        raise TargetError(f"target {index.tolist()} is out of range: the output has {classes} (0 to {classes - 1})")
    return index.long().expand(batch).contiguous()


def distinct(names: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Argument names made of these, no two alike and none of ``taken``: an input may be called as a target's is."""
    held = set(taken)
    made = []
    for name in names:
        free = re.sub(r"\W", "_", name)
        while free in held or keyword.iskeyword(free):
            free += "_"
        held.add(free)
        made.append(free)
    return made


def form_of(target: Target) -> Form:
    """The form of a target."""
    if target is None:
        return Form("largest", (), lambda output, masks: select(output, None, masks))
    if isinstance(target, Contrast):
        return _contrast_form(target)
    if isinstance(target, tuple):
        return Form("index", tuple(f"target_{i}" for i in range(len(target))), _choose_index)
    if callable(target) and not isinstance(target, Tensor):
        return Form("callable", (), lambda output, masks: select(output, target, masks))
    return Form("class", ("target",), _choose_class)


def _rows(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[0], device=logits.device)


def _choose_class(output: Any, masks: Mapping[str, Tensor], target: Tensor) -> Tensor:
    logits = find_logits(output)
    if logits.dim() < 2:
        return select(output, None, masks)  # one value per sample: there is nothing to choose
    logits = by_class(logits, masks)
    return logits[_rows(logits), target % logits.shape[1]]


def _choose_index(output: Any, masks: Mapping[str, Tensor], *indices: Tensor) -> Tensor:
    logits = find_logits(output)
    if len(indices) != logits.dim() - 1:
        raise TargetError(
            f"a target of {len(indices)} indices for an output of shape {tuple(logits.shape)}: lowered graphs take "
            f"{logits.dim() - 1}, one per dimension but the batch"
        )
    *positions, last = indices
    for index in positions:  # one dimension after the other: what is computed behind the first is computed there only
        logits = at_positions(logits, (index % logits.shape[1])[:, None]).squeeze(1)
    return logits[_rows(logits), last % logits.shape[1]]


def _contrast_form(target: Contrast) -> Form:
    named = {"target": target.chosen, "foil": target.foil}
    names = tuple(n for n, v in named.items() if v is not None)

    def choose(output: Any, masks: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        given = dict(zip(names, inputs, strict=True))
        logits = by_class(find_logits(output), masks)
        rows = _rows(logits)
        chosen = given["target"] % logits.shape[1] if "target" in given else logits.detach().argmax(-1)
        if "foil" in given:
            return logits[rows, chosen] - logits[rows, given["foil"] % logits.shape[1]]
        others = logits.detach().scatter(1, chosen[:, None], -float("inf"))
        shares = torch.softmax(others, -1)
        weighed = torch.where(shares == 0, 0.0, logits * shares)
        return logits[rows, chosen] - weighed.sum(-1)

    return Form("contrast", names, choose)
