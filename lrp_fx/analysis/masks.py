"""Floating inputs that are masks: they only say what others may see, so relevance does not belong to them.

A mask is told by what is done with it, never by its name. Followed from the input through movement, casts, numbers that
scale or shift it and sums over it, a mask

- *hides*: it is scaled by a huge number (or filled with one) and added to what it hides, as in ``(1 - mask) * -1e9``;
- *selects*: it is compared, or cast to booleans, and nothing else;
- *counts*: it weighs a signal, and the weighed sum is divided by the sum of the mask.

One that is used in any other way, too (a layer reads it, it is added as it is, it multiplies and no more), is a signal
like any floating input. An additive mask of 0 and -1e9 receives none by itself: what is not 0 has no cotangent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.fx import Graph, Node

from lrp_fx.graph.operands import Slot, all_slots, is_float, value
from lrp_fx.operators.table import OpSpec, OpTable, bind, coefficients

_HUGE = 1e3  #: numbers beyond it hide what they are added to


@dataclass(frozen=True)
class _Held:
    """What a node holds of the input x: ``scale * x + shift``, a sum over it (``count``), huge numbers (``filled``)."""

    scale: float = 1.0
    shift: float = 0.0
    count: bool = False
    filled: bool = False


@dataclass
class _Uses:
    """What is done with one input."""

    ops: OpTable
    depends: dict[Node, int]
    own: int
    hides: bool = False
    selects: bool = False
    weighs: bool = False
    divides: bool = False
    signal: bool = False
    seen: set[Node] = field(default_factory=set)

    @property
    def mask(self) -> bool:
        """Whether the input is a mask."""
        only_selects = self.selects and not self.weighs
        return not self.signal and (self.hides or only_selects or (self.weighs and self.divides))

    def follow(self, node: Node, held: _Held) -> None:
        """Look at every use of ``node``."""
        stack = [(node, held)]
        while stack and not self.signal:
            node, held = stack.pop()
            for user in node.users:
                if (further := self._use(user, node, held)) is not None and user not in self.seen:
                    self.seen.add(user)
                    stack.append((user, further))

    def _use(self, user: Node, node: Node, held: _Held) -> _Held | None:
        """Note one use; what ``user`` holds of the input, where it is to be followed."""
        spec = self.ops.get(user) if user.op == "call_function" else None
        if user.op == "output" or (spec is None and is_float(user)):
            self.signal = True
            return None
        if spec is None or not is_float(user):
            self.selects |= getattr(value(user), "dtype", None) is torch.bool
            return None
        if spec.kind == "constant":
            return None
        others = [n for n in all_slots(user).values() if n is not node and is_float(n)]
        if spec.kind == "movement":
            number = bind(user).get("value")
            huge = isinstance(number, (int, float)) and abs(number) >= _HUGE
            return _Held(held.scale, held.shift, held.count, held.filled or huge)
        if (spec.reduces and spec.kind in ("linear", "selection")) or spec.extra.get("cumulative"):
            return _Held(count=True)
        if spec.kind == "attention":
            self._added(user, held)
            return None
        if spec.elementwise and spec.kind in ("linear", "product", "quotient"):
            if not others:
                return _numbers(user, spec, node, held)
            self._joined(user, spec, held, others)
            return None
        self.signal |= not (held.count and spec.elementwise)  # (a count may be kept from being 0)
        return held if held.count else None

    def _joined(self, user: Node, spec: OpSpec, held: _Held, others: list[Node]) -> None:
        apart = any(self.depends.get(n, 0) & ~self.own for n in others)
        if spec.kind == "linear":
            self._added(user, held)
        elif held.count:
            self.divides |= spec.kind == "quotient" and Slot("other") in all_slots(user) and apart
            self.signal |= not apart
        elif apart:
            self.weighs = True
        else:
            self.signal = True

    def _added(self, user: Node, held: _Held) -> None:
        complement = held.shift == -held.scale
        hides = held.filled or (abs(held.scale) >= _HUGE and (complement or _goes_to_softmax(user, self.ops)))
        self.hides |= hides
        self.signal |= not hides


def _numbers(user: Node, spec: OpSpec, node: Node, held: _Held) -> _Held:
    """What a node holds after an operator with a number, where ``node`` is what it holds ``held`` in."""
    bound = bind(user)
    if spec.kind == "linear":
        weights = coefficients(user, spec) or {name: 1 for name in spec.args}
        own = [weight for name, weight in weights.items() if bound.get(name) is node]
        factor = sum(own) if own else 1
        added = sum(w * bound[n] for n, w in weights.items() if isinstance(bound.get(n), (int, float)))
        return _Held(held.scale * factor, held.shift * factor + added, held.count, held.filled)
    number = next((v for v in user.args if isinstance(v, (int, float))), bound.get("other"))
    if not isinstance(number, (int, float)):
        return held
    factor = number if spec.kind == "product" else 1 / number if number else 0.0
    return _Held(held.scale * factor, held.shift * factor, held.count, held.filled)


def _goes_to_softmax(node: Node, ops: OpTable) -> bool:
    """Whether ``node`` is, or becomes by elementwise operators and movement, what a softmax reads."""
    seen, stack = {node}, [node]
    while stack:
        current = stack.pop()
        spec = ops.get(current) if current.op == "call_function" else None
        if spec is None:
            continue
        if spec.kind in ("softmax", "attention") or spec.extra.get("decay"):
            return True
        if spec.elementwise or spec.kind == "movement":
            new = [u for u in current.users if u not in seen]
            seen.update(new)
            stack += new
    return False


def find_masks(graph: Graph, ops: OpTable) -> set[Node]:
    """The floating placeholders of a graph that are masks."""
    depends: dict[Node, int] = {}
    inputs: list[Node] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            depends[node] = 1 << len(inputs)
            inputs.append(node)
        else:
            own = 0
            for n in node.all_input_nodes:
                own |= depends[n]
            depends[node] = own
    masks = set()
    for node in inputs:
        if is_float(node) and node.users:
            uses = _Uses(ops, depends, depends[node])
            uses.follow(node, _Held())
            if uses.mask:
                masks.add(node)
    return masks
