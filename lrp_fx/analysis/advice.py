"""A proposal for the declaration of an undeclared operator, from trials on random numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.errors import first_line
from lrp_fx.graph.operands import Slot, all_slots, value
from lrp_fx.operators.table import op_name

PAGE = "docs/operators.md"  #: explains the kinds
_LARGEST = 2**20  #: largest number of entries of an operand in a trial

Operands = dict[Slot, Tensor]


@dataclass(frozen=True)
class _Trial:
    """An operator as a function of the operands that relevance reaches; other arguments are as captured.

    Attributes:
        run: operands -> all floating-point outputs in one vector.
        operands: random values.
        tolerance: relative tolerance, from the coarsest dtype of the operands.
    """

    run: Callable[[Operands], Tensor]
    operands: Operands
    tolerance: float

    def other(self) -> Operands:
        """Another random draw of the operands."""
        return {slot: _drawn(t, seed=1 + i) for i, (slot, t) in enumerate(self.operands.items())}

    def agrees(self, actual: Tensor, expected: Tensor) -> bool:
        """Whether two vectors are equal up to rounding."""
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        return bool(((actual - expected).abs() <= self.tolerance * max(scale, 1e-30)).all())


def advice(node: Node, reached: list[Slot]) -> str:
    """One or two sentences: the kind that the trials found and the line that declares it, or the page to read."""
    name = op_name(node)
    try:
        trial = _prepared(node, reached)
        with torch.random.fork_rng(devices=[]):
            kind, entry, words = _classify(trial)
    except Exception as error:  # the kernel of an unknown operator may raise anything
        reason = first_line(error)
        return (
            f"It could not be tried on random numbers ({reason[:120]}). Declare its kind in a TOML file or a dict for "
            f'convert(ops=...): "movement", "linear", "product", "nonlinearity", ... {PAGE} explains the kinds, and '
            "which of them need a derivative."
        )
    names = " ".join(dict.fromkeys(slot.name for slot in reached))
    if not kind:
        return f"Tried on random numbers, {words}"
    line = json.dumps({kind: {name: {"args": names, **entry} if entry else names}})
    return (
        f"Tried on random numbers, it is {words} ({names.replace(' ', ', ')}). Declare it so, in a TOML file or a dict "
        f"given to convert(ops=...): {line}. ({PAGE} explains the kinds.)"
    )


def _prepared(node: Node, reached: list[Slot]) -> _Trial:
    values = {n: _concrete(value(n)) for n in node.all_input_nodes}
    nodes = {slot: n for slot, n in all_slots(node).items() if slot in reached}
    at = {n: slot for slot, n in nodes.items()}

    def run(operands: Operands) -> Tensor:
        def fill(n: Node) -> Any:
            return operands[at[n]] if n in at else values[n]

        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), fill)
        leaves = pytree.tree_leaves(node.target(*args, **kwargs))  # type: ignore[operator]
        floats = [t.reshape(-1) for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]
        if not floats:
            raise ValueError("it has no floating output")
        return torch.cat(floats)

    operands = {slot: values[n] for slot, n in nodes.items()}
    least = max(torch.finfo(t.dtype).eps for t in operands.values())
    return _Trial(run, operands, 100 * math.sqrt(least) if least > 1e-5 else 1e3 * least)


def _concrete(val: Any) -> Any:
    """Random numbers with the shape and dtype of a captured value; zeros for integers."""
    if isinstance(val, Tensor):
        shape = [_number(s) for s in val.shape]
        if math.prod(shape) > _LARGEST or val.device.type == "meta":
            raise ValueError("its operands are too large, or have no memory")
        empty = torch.empty(shape, dtype=val.dtype, device=val.device)
        return _drawn(empty, seed=0) if val.is_floating_point() else torch.zeros_like(empty)
    return _number(val) if isinstance(val, (torch.SymInt, torch.SymFloat)) else val


def _number(size: Any) -> Any:
    return size.node.hint if isinstance(size, (torch.SymInt, torch.SymFloat)) else size


def _drawn(like: Tensor, seed: int) -> Tensor:
    numbers = torch.rand(like.shape, generator=torch.Generator().manual_seed(seed))
    return (numbers + 0.5).to(like.device, like.dtype)


def _classify(trial: _Trial) -> tuple[str, dict[str, Any], str]:
    """(kind, further fields, kind in words); if no kind fits, ("", {}, the reason)."""
    with torch.no_grad():
        first, again = trial.run(trial.operands), trial.run(trial.operands)
    if not torch.equal(first, again):
        return "", {}, f"it gives other numbers every time: relevance cannot pass a random draw ({PAGE})."
    if _is_elementwise(trial, first):
        return _elementwise(trial, first)
    if not _has_derivative(trial):
        return "", {}, (
            "it has no derivative, so relevance cannot pass it, whatever its declaration. Give it a derivative "
            "(torch.library.register_autograd), write it with other operators, or, if no relevance should pass it, "
            f'declare it "constant" ({PAGE}).'
        )  # fmt: skip
    return _by_algebra(trial, first) or ("function", {}, "neither linear nor homogeneous, but has a derivative")


def _elementwise(trial: _Trial, first: Tensor) -> tuple[str, dict[str, Any], str]:
    by_algebra = _by_algebra(trial, first) if _has_derivative(trial) else None
    return by_algebra or ("nonlinearity", {}, "a function of one number at a time")


def _by_algebra(trial: _Trial, first: Tensor) -> tuple[str, dict[str, Any], str] | None:
    slots = list(trial.operands)
    if _is_linear(trial, slots):
        (single, *rest) = trial.operands.values()
        moves = not rest and bool(torch.isin(first, single.reshape(-1)).all())
        return ("movement", {}, "a rearrangement of entries") if moves else ("linear", {}, "linear")
    if len(slots) > 1 and all(_is_linear(trial, [slot]) for slot in slots):
        return "product", {}, "linear in each operand"
    power = _degree(trial, first)
    if power is None:
        return None
    if power == 1 and len(slots) > 1:
        return "linear", {}, "of degree 1 in all operands together"
    if power == 0 or len(slots) > 1:
        return None
    apart = {} if _is_elementwise(trial, first) else {"elementwise": False}
    return "homogeneous", {"degree": power, **apart}, f"homogeneous of degree {power:g}"


def _is_linear(trial: _Trial, slots: list[Slot]) -> bool:
    """Whether f(a + b) + f(0) = f(a) + f(b) in some operands jointly, with the others fixed."""
    other = trial.other()

    def run(change: Callable[[Slot, Tensor], Tensor]) -> Tensor:
        return trial.run({s: change(s, t) if s in slots else t for s, t in trial.operands.items()})

    with torch.no_grad():
        both, one = run(lambda s, t: t + other[s]), run(lambda s, t: t)
        two, none = run(lambda s, t: other[s]), run(lambda s, t: torch.zeros_like(t))
    return trial.agrees(both + none, one + two) and bool(both.abs().max() > 0)


def _degree(trial: _Trial, first: Tensor) -> float | None:
    """k with f(t x) = t^k f(x), or None."""
    with torch.no_grad():
        twice, thrice = (trial.run({s: t * x for s, x in trial.operands.items()}) for t in (2, 3))
    if not bool((first != 0).any()):
        return None
    at = int(first.abs().argmax())
    ratio = float(twice[at] / first[at])
    if ratio <= 0:
        return None
    power = round(4 * math.log2(ratio)) / 4
    holds = trial.agrees(twice, 2**power * first) and trial.agrees(thrice, 3**power * first)
    return power if holds else None


def _is_elementwise(trial: _Trial, first: Tensor) -> bool:
    """Whether every output entry depends only on the entry of the single operand at the same place."""
    if len(trial.operands) != 1:
        return False
    ((slot, x),) = trial.operands.items()
    if first.numel() != x.numel():
        return False
    for place in {0, x.numel() // 2, x.numel() - 1}:
        changed = x.clone()
        changed.reshape(-1)[place] += 0.25
        with torch.no_grad():
            differs = trial.run({slot: changed}) != first
        if int(differs.sum()) > 1 or (differs.any() and not differs[place]):
            return False
    return True


def _has_derivative(trial: _Trial) -> bool:
    leaves = {slot: t.clone().requires_grad_() for slot, t in trial.operands.items()}
    try:
        with torch.enable_grad():
            output = trial.run(leaves)
            grads = torch.autograd.grad(output.sum(), list(leaves.values()), allow_unused=True)
    except (RuntimeError, NotImplementedError):
        return False
    return all(g is not None for g in grads)
