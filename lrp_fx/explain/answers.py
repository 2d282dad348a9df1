"""Names of the explained values: a class, a token, one rather than another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lrp_fx.errors import TargetError
from lrp_fx.explain.reading import Reading
from lrp_fx.explain.target import by_class
from lrp_fx.explain.target_types import Contrast, Logit, LogProb, OfClass, Probability, Target, normal

#: (class index, number of classes) -> name
Named = Callable[[int, int], str]


#: type of target -> its words around the name of the class
_SAID: dict[type, str] = {
    Logit: "{}",
    Contrast: "{} rather than {foil}",
    LogProb: "log-probability of {}",
    Probability: "probability of {}",
}


def answers(
    target: Target, output: Any, masks: Mapping[str, Tensor], reading: Reading, named: Named
) -> tuple[str, ...] | None:
    """Name of the explained value of every sample; None for targets without names (a callable, many values at once).

    Args:
        target: the target.
        output: the model's output.
        masks: padding masks among the inputs.
        reading: where the output has its logits.
        named: names an entry of the logits.
    """
    target = normal(target)
    try:
        logits = reading.logits(output)
        if isinstance(target, tuple):
            return _names(target[-1], len(logits), logits.shape[-1], named)
        form = Logit(target) if target is None or isinstance(target, (int, Tensor)) else target
        if not isinstance(form, OfClass) or reading.kind(logits) not in ("classes", "sequence"):
            return None
        return answers_at(form, by_class(logits, masks, reading, form.position), named)
    except TargetError:
        return None


def answers_at(target: Target, logits: Tensor, named: Named) -> tuple[str, ...] | None:
    """The same, from the logits (B, classes) at the target's position."""
    target = normal(target)
    form = Logit(target) if target is None or isinstance(target, (int, Tensor)) else target
    if not isinstance(form, OfClass):
        return None
    count, classes = logits.shape
    chosen = _names(logits.argmax(-1) if form.chosen is None else form.chosen, count, classes, named)
    foil = getattr(form, "foil", None)
    foils = ("all others",) * count if foil is None else _names(foil, count, classes, named)
    if chosen is None or foils is None:
        return None
    return tuple(_SAID[type(form)].format(one, foil=other) for one, other in zip(chosen, foils, strict=True))


def _names(index: Any, count: int, classes: int, named: Named) -> tuple[str, ...] | None:
    if not isinstance(index, (int, Tensor)) or (isinstance(index, Tensor) and index.dim() > 1):
        return None
    listed = index.tolist() if isinstance(index, Tensor) else index
    indices = listed if isinstance(listed, list) else [listed] * count
    return tuple(named(i % classes, classes) for i in indices)
