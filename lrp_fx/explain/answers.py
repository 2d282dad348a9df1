"""What is explained of every sample, by name: a class, a token, one rather than another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lrp_fx.errors import TargetError
from lrp_fx.explain.reading import Reading
from lrp_fx.explain.target import Contrast, Target, by_class, normal

#: (index, how many there are) -> name
Named = Callable[[int, int], str]


def answers(
    target: Target, output: Any, masks: Mapping[str, Tensor], reading: Reading, named: Named
) -> tuple[str, ...] | None:
    """Names of the explained values of every sample; None where they have none (a callable, many values at once).

    Args:
        target: what was explained.
        output: the model's output.
        masks: padding masks among the inputs.
        reading: how the output is read.
        named: names an entry of the logits.
    """
    target = normal(target)
    try:
        logits = reading.logits(output)
        if isinstance(target, Contrast):
            return _contrasted(target, logits, masks, reading, named)
        if isinstance(target, tuple):
            target = target[-1]
        elif reading.kind(logits) in ("classes", "sequence"):
            logits = by_class(logits, masks, reading)
        else:
            return None
    except TargetError:
        return None
    index = logits.argmax(-1) if target is None else target
    if not isinstance(index, (int, Tensor)) or (isinstance(index, Tensor) and index.dim() > 1):
        return None
    return _names(index, len(logits), logits.shape[-1], named)


def _contrasted(
    target: Contrast, logits: Tensor, masks: Mapping[str, Tensor], reading: Reading, named: Named
) -> tuple[str, ...]:
    chosen = answers(target.chosen, logits, masks, Reading(None, reading.axis, reading.named), named)
    count, classes = len(logits), logits.shape[-1]
    foils = ("all others",) * count if target.foil is None else _names(target.foil, count, classes, named)
    return tuple(f"{one} rather than {other}" for one, other in zip(chosen or ("",) * count, foils, strict=True))


def _names(index: int | Tensor, count: int, classes: int, named: Named) -> tuple[str, ...]:
    listed = index.tolist() if isinstance(index, Tensor) else index
    indices = listed if isinstance(listed, list) else [listed] * count
    return tuple(named(i % classes, classes) for i in indices)
