"""Graphs as plain data, and back: operators by name, sizes as formulas, attributes by path.

A graph is written with all that later stages read: nodes with their arguments, captured values (fake tensors with
symbolic sizes), and origins in the model. The reader looks up operators by name and builds only nodes, formulas and
fake tensors; it runs no code that the data names (:mod:`lrp_fx.cache.safe_names`).
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv, SLoc, ValueRangesSLoc
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from lrp_fx.cache.safe_names import attribute, by_torch, harmless, identifier
from lrp_fx.cache.safe_names import operator as operator_named
from lrp_fx.capture.size_formulas import Unstorable, formula, formula_from
from lrp_fx.errors import UnsafeFileError
from lrp_fx.graph.attribute_paths import readable
from lrp_fx.graph.exact_value import exact_value
from lrp_fx.graph.module_calls import CALLS

_FUNCTIONS: dict[str, Any] = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module, names in (
        (operator, "getitem add sub mul floordiv truediv mod pow neg pos lshift rshift"),
        (operator, "eq ne lt le gt ge and_ or_ xor not_"),
        (math, "floor ceil trunc sqrt"),
        (torch, "sym_float sym_int sym_max sym_min sym_not sym_ite sym_sum"),
    )
    for name in names.split()
} | {"lrp_fx.exact_value": exact_value}
_NAMES = {function: name for name, function in _FUNCTIONS.items()}

_NAMED_BY_TORCH = (torch.dtype, torch.layout, torch.memory_format)
_SYMBOLIC = {"SymInt": torch.SymInt, "SymBool": torch.SymBool, "SymFloat": torch.SymFloat}
_TRACED = ("stack_trace", "nn_module_stack", CALLS)


class Writer:
    """Writes the graphs and formulas of one shape environment.

    Attributes:
        table: values and origins of nodes as JSON, without duplicates.
    """

    def __init__(self) -> None:
        self.table: list[str] = []
        self._places: dict[str, int] = {}
        self._environment: ShapeEnv | None = None

    def graph(self, graph: fx.Graph) -> list[Any]:
        """Nodes in order: [op, name, target, args, kwargs, value, origin].

        Raises:
            Unstorable: for a higher-order operator, and for a value without a plain form.
        """
        index = {node: i for i, node in enumerate(graph.nodes)}
        return [self._node(node, index) for node in graph.nodes]

    def _node(self, node: Node, index: Mapping[Node, int]) -> list[Any]:
        if node.op not in ("placeholder", "get_attr", "call_function", "output"):
            raise Unstorable(f"a node of kind {node.op} ({node})")
        target = _target(node) if node.op == "call_function" else str(node.target)
        value = [self._intern(self.plain(node.meta["val"], index))] if "val" in node.meta else []
        origin = {k: node.meta[k] for k in _TRACED if node.meta.get(k)}
        if "nn_module_stack" in origin:
            origin["nn_module_stack"] = [[k, path, str(kind)] for k, (path, kind) in origin["nn_module_stack"].items()]
        args, kwargs = self.plain(list(node.args), index), self.plain(dict(node.kwargs), index)
        return [node.op, node.name, target, args, kwargs, value, self._intern(origin)]

    def _intern(self, plain: Any) -> int:
        text = json.dumps(plain)
        if text not in self._places:
            self._places[text] = len(self.table)
            self.table.append(text)
        return self._places[text]

    def plain(self, value: Any, index: Mapping[Node, int]) -> Any:
        """An argument or a value of a node as plain data; an object that JSON lacks becomes {kind: contents}."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Node):
            return {"node": index[value]}
        if isinstance(value, list):
            return [self.plain(v, index) for v in value]
        if type(value) in (tuple, torch.Size):
            return {"tuple": [self.plain(v, index) for v in value]}
        if isinstance(value, dict):
            return {"dict": [[self.plain(k, index), self.plain(v, index)] for k, v in value.items()]}
        if isinstance(value, slice):
            return {"slice": [self.plain(v, index) for v in (value.start, value.stop, value.step)]}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, _NAMED_BY_TORCH):
            return {"torch": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if type(value).__name__ in _SYMBOLIC:
            return {type(value).__name__: self._symbolic(value)}
        if type(value) is FakeTensor and value.layout is torch.strided:
            sizes, strides = ([self._symbolic(n) for n in numbers] for numbers in (value.shape, value.stride()))
            return {"tensor": [sizes, strides, str(value.dtype)[6:], str(value.device), value.requires_grad]}
        raise Unstorable(f"a value of type {type(value).__name__}")

    def _symbolic(self, number: Any) -> Any:
        if isinstance(number, int):
            return number
        environment = number.node.shape_env
        if environment is not (self._environment or environment):
            raise Unstorable("sizes of two shape environments")
        self._environment = environment
        return formula(number.node.expr)

    def symbols(self) -> list[list[Any]]:
        """[name, assumptions, example, smallest size, largest size] of every symbol.

        Raises:
            Unstorable: for a data-dependent size.
        """
        environment = self._environment
        if environment is None:
            return []
        examples = _examples(environment)
        records = []
        for symbol, limits in environment.var_to_range.items():
            if symbol in examples:
                low, high = (None if n in (int_oo, -int_oo) else int(n) for n in (limits.lower, limits.upper))
                records.append([symbol.name, dict(symbol._assumptions_orig), int(examples[symbol]), low, high])
        used = {name for text in self.table for name in _symbol_names(json.loads(text))}
        if unknown := used - {s[0] for s in records}:
            raise Unstorable(f"data-dependent sizes: {', '.join(sorted(unknown))}")
        return records


def _symbol_names(plain: Any) -> set[str]:
    """Names of the symbols in an entry of the table."""
    if isinstance(plain, dict) and "tensor" in plain:
        return {s for n in (*plain["tensor"][0], *plain["tensor"][1]) for s in _in_formula(n)}
    if isinstance(plain, dict):
        names = {s for kind in _SYMBOLIC if kind in plain for s in _in_formula(plain[kind])}
        return names.union(*(_symbol_names(v) for v in plain.values()))
    return set().union(*map(_symbol_names, plain)) if isinstance(plain, list) else set()


def _in_formula(plain: Any) -> set[str]:
    if isinstance(plain, str):
        return {plain}
    return set().union(*map(_in_formula, plain[1:])) if isinstance(plain, list) else set()


def _examples(environment: ShapeEnv) -> dict[sympy.Symbol, Any]:
    """Symbol -> its size in the example inputs (torch 2.13 renamed this attribute)."""
    name = "backed_var_to_val" if hasattr(environment, "backed_var_to_val") else "var_to_val"
    return getattr(environment, name)


def _target(node: Node) -> Any:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        if not harmless(target):
            raise Unstorable(f"the operator {target}, which is not declared (lrp_fx.register_op)")
        return [target._schema.name, target._overloadname]
    if target in _NAMES:
        return _NAMES[target]
    raise Unstorable(f"the operator {target}")


class Reader:
    """Builds graphs from plain data; their values are fake tensors of one mode.

    Args:
        table: ``Writer.table``.
        symbols: result of ``Writer.symbols``.
    """

    def __init__(self, table: list[str], symbols: list[list[Any]]) -> None:
        self.table = [json.loads(text) for text in table]
        self.environment = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.environment, allow_non_fake_inputs=True)
        self.symbols = {name: self._symbol(name, *rest) for name, *rest in symbols}
        self._sizes: dict[str, Any] = {}
        self._values: dict[int, Any] = {}

    def _symbol(self, name: str, assumptions: Any, example: int, low: int | None, high: int | None) -> sympy.Symbol:
        symbol = sympy.Symbol(identifier(name), **assumptions)
        limits: Any = ValueRanges(-int_oo if low is None else low, int_oo if high is None else high)
        place = SLoc("a graph in the disk cache", None)
        _examples(self.environment)[symbol] = sympy.Integer(example)
        self.environment.var_to_range[symbol] = limits  # constrain_symbol_range would import torch.export
        self.environment.var_to_range_sloc[symbol] = ValueRangesSLoc(place, place)
        return symbol

    def graph(self, nodes: list[Any]) -> fx.Graph:
        """Build the graph that :meth:`Writer.graph` wrote.

        Raises:
            UnsafeFileError: for an invalid name, or an operator that a file may not name.
            Exception: of any kind, if the data describes no graph.
        """
        graph = fx.Graph()
        created: list[Node] = []
        for op, name, target, args, kwargs, value, origin in nodes:
            callee = _TARGETS[op](target)
            keywords = self.value(kwargs, created)
            if op != "call_function" and (args, keywords) != ([], {}) and op != "output":
                raise UnsafeFileError(f"a node of kind {op} must not have arguments")
            keywords = {identifier(key): value for key, value in keywords.items()}
            node = graph.create_node(op, callee, tuple(self.value(args, created)), keywords, identifier(name))
            if value:
                node.meta["val"] = self._shared(value[0])
            node.meta |= {key: self.table[origin][key] for key in _TRACED if key in self.table[origin]}
            if "nn_module_stack" in node.meta:
                node.meta["nn_module_stack"] = {k: (path, kind) for k, path, kind in node.meta["nn_module_stack"]}
            created.append(node)
        graph.lint()
        return graph

    def _shared(self, place: int) -> Any:
        """A value of the table, built once and shared by nodes, as building fake tensors takes most of the time."""
        if place not in self._values:
            self._values[place] = self.value(self.table[place], [])
        return self._values[place]

    def value(self, plain: Any, nodes: list[Node]) -> Any:
        """Build the argument or value that :meth:`Writer.plain` wrote."""
        if isinstance(plain, list):
            return [self.value(v, nodes) for v in plain]
        if not isinstance(plain, dict):
            return plain
        ((kind, content),) = plain.items()
        match kind:
            case "node":
                return nodes[content]
            case "tuple":
                return tuple(self.value(v, nodes) for v in content)
            case "dict":
                return {self.value(k, nodes): self.value(v, nodes) for k, v in content}
            case "slice":
                return slice(*(self.value(v, nodes) for v in content))
            case "complex":
                return complex(*content)
            case "torch":
                return by_torch(content)
            case "device":
                return torch.device(content)
            case "tensor":
                return self._tensor(*content)
        return self._symbolic(content, kind)

    def _tensor(self, sizes: list[Any], strides: list[Any], dtype: str, device: str, requires_grad: bool) -> Tensor:
        shape, step = ([self._symbolic(n) for n in numbers] for numbers in (sizes, strides))
        with self.mode:
            kind = by_torch(dtype)
            return torch.empty_strided(shape, step, dtype=kind, device=device, requires_grad=requires_grad)

    def _symbolic(self, plain: Any, kind: str = "SymInt") -> Any:
        if type(plain) is int and kind == "SymInt":
            return plain
        key = f"{kind} {plain}"
        if key not in self._sizes:
            expression = formula_from(plain, self.symbols)
            if kind == "SymBool":
                self._sizes[key] = self.environment.create_symboolnode(expression)
            else:
                hint = expression.xreplace(_examples(self.environment))
                if kind == "SymInt":
                    self._sizes[key] = self.environment.create_symintnode(expression, hint=int(hint))
                else:
                    self._sizes[key] = self.environment.create_symfloatnode(expression, hint=float(hint))
        return self._sizes[key]


def _operator(target: Any) -> Any:
    if not isinstance(target, str):
        return operator_named(*target)
    if target not in _FUNCTIONS:
        raise UnsafeFileError(f"there is no function {target[:80]!r} of sizes in the table")
    return _FUNCTIONS[target]


_TARGETS: dict[str, Any] = {  #: kind of node -> check of its target
    "call_function": _operator,
    "get_attr": lambda path: readable(attribute(path)),
    "placeholder": identifier,
    "output": identifier,
}
