"""Floating-point inputs that are masks: they only select what other tensors contribute, and get no relevance.

A mask is recognised by its uses, never by its name. They are followed through movement, casts, scaling and shifts by
numbers, and sums over it. A mask

- *hides*: it is scaled by a huge number (or filled with one) and added to a signal, as in ``(1 - mask) * -1e9``;
- *selects*: it is compared, or cast to booleans, and nothing else;
- *counts*: it weighs a signal, and the weighed sum is divided by the sum of the mask.

An input with any other use (a layer reads it, it is added unscaled, it multiplies without such a division) is a signal.
An additive mask of 0 and -1e9 needs no special treatment: the cotangent is 0 wherever the mask is not.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field

import torch
from torch.fx import Graph, Node

from lrp_fx.graph.operands import Slot, all_slots, is_float, value
from lrp_fx.operators.table import OpSpec, OpTable, bind, coefficients

_HUGE = 1e3  #: larger numbers hide the entries that they are added to


@dataclass(frozen=True)
class _Image:
    """A node as a function of the input x: ``scale * x + shift``, a sum of x (``count``), huge numbers (``filled``)."""

    scale: float = 1.0
    shift: float = 0.0
    count: bool = False
    filled: bool = False


@dataclass
class _Uses:
    """The uses of one input.

    ``depends`` has for each node the bits of the inputs that it depends on, ``bit`` is that of this input.
    """

    ops: OpTable
    depends: dict[Node, int]
    bit: int
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

    def follow(self, node: Node, image: _Image) -> None:
        """Note every use of ``node``, which is ``image`` of the input."""
        stack = [(node, image)]
        while stack and not self.signal:
            node, image = stack.pop()
            for user in node.users:
                if (further := self._use(user, node, image)) is not None and user not in self.seen:
                    self.seen.add(user)
                    stack.append((user, further))

    def _use(self, user: Node, node: Node, image: _Image) -> _Image | None:
        """Note one use; ``user`` as an image of the input if its own uses count, else None."""
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
            return _Image(image.scale, image.shift, image.count, image.filled or huge)
        if (spec.reduces and spec.kind in ("linear", "selection")) or spec.extra.get("cumulative"):
            return _Image(count=True)
        if spec.kind == "attention":
            self._added(user, image)
            return None
        if spec.elementwise and spec.kind in ("linear", "product", "quotient"):
            if not others:
                return _numbers(user, spec, node, image)
            self._joined(user, spec, image, others)
            return None
        self.signal |= not (image.count and spec.elementwise)  # a count may be clamped away from 0
        return image if image.count else None

    def _joined(self, user: Node, spec: OpSpec, image: _Image, others: list[Node]) -> None:
        apart = any(self.depends.get(n, 0) & ~self.bit for n in others)
        if spec.kind == "linear":
            self._added(user, image)
        elif image.count:
            self.divides |= spec.kind == "quotient" and Slot("other") in all_slots(user) and apart
            self.signal |= not apart
        elif apart:
            self.weighs = True
        else:
            self.signal = True

    def _added(self, user: Node, image: _Image) -> None:
        complement = image.shift == -image.scale
        hides = image.filled or (abs(image.scale) >= _HUGE and (complement or _goes_to_softmax(user, self.ops)))
        self.hides |= hides
        self.signal |= not hides


def _numbers(user: Node, spec: OpSpec, node: Node, image: _Image) -> _Image:
    """The image that ``user``, an operator on ``node`` and a number, makes of ``image``."""
    bound = bind(user)
    if spec.kind == "linear":
        weights = coefficients(user, spec) or {name: 1 for name in spec.args}
        factors = [weight for name, weight in weights.items() if bound.get(name) is node]
        factor = sum(factors) if factors else 1
        added = sum(w * bound[n] for n, w in weights.items() if isinstance(bound.get(n), (int, float)))
        return _Image(image.scale * factor, image.shift * factor + added, image.count, image.filled)
    number = next((v for v in user.args if isinstance(v, (int, float))), bound.get("other"))
    if not isinstance(number, (int, float)):
        return image
    factor = number if spec.kind == "product" else 1 / number if number else 0.0
    return _Image(image.scale * factor, image.shift * factor, image.count, image.filled)


def _goes_to_softmax(node: Node, ops: OpTable) -> bool:
    """Whether ``node`` goes into a softmax, through elementwise operators and movement."""
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
    """The floating-point placeholders of a graph that are masks."""
    depends: dict[Node, int] = {}
    inputs: list[Node] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            depends[node] = 1 << len(inputs)
            inputs.append(node)
        else:
            depends[node] = functools.reduce(operator.or_, (depends[n] for n in node.all_input_nodes), 0)
    masks = set()
    for node in inputs:
        if is_float(node) and node.users:
            uses = _Uses(ops, depends, depends[node])
            uses.follow(node, _Image())
            if uses.mask:
                masks.add(node)
    return masks
