"""Proof that one captured graph can serve the calls of another: it runs the same operators on the same values there.

A model may branch on a size although both branches compute the same: a mask is expanded to the batch unless there is
one sample. Export then yields two graphs, and the general one is equivalent to the special one at the sizes of the
latter.

The proof is an induction over the general graph, on inputs that the special graph serves. Inputs and parameters of both
graphs are identified. Sizes are computed from those of the special graph. An operator is identified with an operator of
the special graph that has the same target and arguments. An operator that returns its operand at these sizes is
identified with the operand. If all outputs are identified, the graphs are equivalent; otherwise nothing is proven.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.capture.agreement import TOLERANCE, difference
from lrp_fx.capture.captured import Captured
from lrp_fx.capture.guards import Shapes

aten = torch.ops.aten

_SAME_TENSOR = (aten.alias.default, aten.detach.default)
_COPIES = (aten.clone.default, aten.alias.default)  #: operators that export inserts between a constant and its readers
_SOMETIMES_SAME = (aten.expand.default, aten.slice.Tensor)
_END = 2**63 - 1
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


class _Differs(Exception):
    """The proof fails."""


def covers(general: Captured, special: Captured, owned: Collection[int], leaves: Sequence[Any]) -> bool:
    """Whether ``general`` computes what ``special`` does on every input whose sizes ``special`` serves.

    Args:
        general: the graph that may serve the calls of both.
        special: the other graph.
        owned: ids of the model's tensors. These may change, so they are not identified by equal values.
        leaves: flat inputs that ``special`` serves; both graphs are run on them as a further check.
    """
    if general.decisions or special.decisions:
        return False
    if not general.route == special.route == "export" or not _varies(general.shapes, special.shapes):
        return False
    one, other = ((c.names, c.out_spec, _operators(c.graph_module.graph)) for c in (general, special))
    if one != other:
        return False
    values = _Values(special.graph_module, owned)
    try:
        expected = values.of(special.graph_module, register=True)
        if values.of(general.graph_module, register=False) != expected:
            return False
        return difference(_outputs(special.graph_module, leaves), _outputs(general.graph_module, leaves)) <= TOLERANCE
    except Exception:  # any error of an operator on sizes: not proven
        return False


def _varies(general: Shapes, special: Shapes) -> bool:
    """Whether every size that differs is dynamic in the general graph: rules may write fixed sizes into graphs."""
    pairs = zip(general.dims, special.dims, strict=True)
    return all(isinstance(g, str) or g == s for dims in pairs for g, s in zip(*dims, strict=True))


def _outputs(graph_module: fx.GraphModule, leaves: Sequence[Any]) -> list[Tensor]:
    """The tensors that a graph returns for flat inputs; none for inputs without values."""
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
        return []
    with torch.no_grad():
        outputs = fx.Interpreter(graph_module).run(*leaves, enable_io_processing=False)
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _operators(graph: fx.Graph) -> Counter[Any]:
    """Number of calls of each operator, without those that may return their operand: a quick necessary condition."""
    inert = (*_SAME_TENSOR, *_SOMETIMES_SAME, aten.sym_size.int)
    targets = (node.target for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload))
    return Counter(target for target in targets if target not in inert)


class _Values:
    """The values of the special graph: (operator, arguments) -> node.

    Args:
        special: the graph.
        owned: identities of the model's tensors.
    """

    def __init__(self, special: fx.GraphModule, owned: Collection[int]) -> None:
        self.inputs = special.graph.find_nodes(op="placeholder")
        self.owned = owned
        self.attributes: dict[int, Node] = {}
        self.constants: list[tuple[Tensor, Node]] = []
        self.computed: dict[Any, Any] = {}

    def of(self, graph_module: fx.GraphModule, register: bool) -> Any:
        """The outputs of a graph as keys; with ``register`` it is the special graph, whose values are stored."""
        image: dict[Node, Any] = {}
        inputs = iter(self.inputs)
        for node in graph_module.graph.nodes:
            if node.op == "placeholder":
                image[node] = next(inputs)
            elif node.op == "get_attr":
                image[node] = self._attribute(operator.attrgetter(str(node.target))(graph_module), node, register)
            elif node.op == "output":
                return _key(fx.map_arg(node.args[0], image.__getitem__))
            else:
                args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), image.__getitem__)
                image[node] = self._value(node, args, kwargs, register)
        raise _Differs

    def _attribute(self, tensor: Any, node: Node, register: bool) -> Node:
        """The node of a tensor: identified by identity, constants in the model's code by equal values."""
        if id(tensor) in self.attributes:
            return self.attributes[id(tensor)]
        literal = all(user.target in _COPIES for user in node.users)  # written in the model's code
        constant = literal and type(tensor) is Tensor and id(tensor) not in self.owned
        if (
            constant
            and (equal := next((at for other, at in self.constants if _equal(tensor, other)), None)) is not None
        ):
            return equal
        if not register:
            raise _Differs
        self.attributes[id(tensor)] = node
        if constant:
            self.constants.append((tensor, node))
        return node

    def _value(self, node: Node, args: Any, kwargs: Any, register: bool) -> Any:
        """The value of a call: a node of the special graph, or a size."""
        if node.op != "call_function" or _may_differ(node.target):
            raise _Differs
        if _returns_operand(node.target, args):
            return args[0]
        key = (node.target, _key(args), _key(kwargs))
        if register:
            value = node.meta["val"]
            return self.computed.setdefault(key, node if _is_tensor(value) else value)
        if key in self.computed:
            return self.computed[key]
        if node.target is aten.sym_size.int:
            return args[0].meta["val"].shape[args[1]]
        if isinstance(node.target, torch._ops.OpOverload):
            raise _Differs
        return _on_sizes(node.target, args, kwargs)


def _equal(one: Tensor, other: Tensor) -> bool:
    kinds = [(t.dtype, t.shape, t.device, t.layout, t.is_meta) for t in (one, other)]
    return kinds[0] == kinds[1] and not one.is_meta and torch.equal(one, other)


def _is_tensor(value: Any) -> bool:
    return not isinstance(value, (int, float, complex, bool, *_SYMBOLIC))


def _may_differ(target: Any) -> bool:
    """Whether two calls with the same arguments may differ (exported graphs draw no random numbers)."""
    if isinstance(target, torch._ops.OpOverload):
        return bool(target._schema.is_mutable)
    return isinstance(target, torch._ops.HigherOrderOperator)


def _returns_operand(target: Any, args: Sequence[Any]) -> bool:
    """Whether an operator returns its operand: an alias, an expansion to the same sizes, a slice of everything."""
    if target not in _SOMETIMES_SAME:
        return target in _SAME_TENSOR
    sizes, requested = args[0].meta["val"].shape, args[1:]
    if target is aten.expand.default:
        return len(sizes) == len(requested[0]) and all(
            _key(a) in (_key(-1), _key(size)) for a, size in zip(requested[0], sizes, strict=True)
        )
    arguments: list[Any] = [*requested, *[0, None, None, 1][len(requested) :]]
    dim, start, end, step = arguments
    whole = end is None or (isinstance(end, int) and end >= _END) or _key(end) == _key(sizes[dim])
    return whole and _key(start) in (_key(0), _key(None)) and _key(step) == _key(1)


def _on_sizes(target: Any, args: Any, kwargs: Any) -> Any:
    """The result of arithmetic on sizes."""
    operands: list[Any] = []
    fx.node.map_aggregate((args, kwargs), operands.append)
    if not all(isinstance(v, (int, float, bool, *_SYMBOLIC)) for v in operands):
        raise _Differs
    return target(*args, **kwargs)


def _key(value: Any) -> Any:
    """A hashable key of an argument: nodes by identity, sizes by their formulas, others by type and value."""
    if isinstance(value, Node):
        return value
    if isinstance(value, _SYMBOLIC):
        formula = value.node.expr
        return (int, int(formula)) if isinstance(value, torch.SymInt) and formula.is_Integer else ("size", formula)
    if isinstance(value, (list, tuple, torch.Size)):
        return ("sequence", *map(_key, value))
    if isinstance(value, dict):
        return ("mapping", *((k, _key(v)) for k, v in sorted(value.items())))
    if isinstance(value, slice):
        return ("slice", _key(value.start), _key(value.stop), _key(value.step))
    if isinstance(value, (bool, int, float, complex, str)) or value is None:
        return (type(value), repr(value) if isinstance(value, (float, complex)) else value)
    return ("object", value)
