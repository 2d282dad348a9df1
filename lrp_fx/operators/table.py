"""The op table: the algebraic kind of every operator, read from ``rules/ops.toml``.

An entry declares the operands that can carry relevance, and the law of the operator. Analysis derives a role from it;
rule sets map roles to rules.
"""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from lrp_fx.errors import RuleSetError
from lrp_fx.files import read_toml

KINDS = (
    "movement",  # data is moved, never mixed: the gradient is the rule
    "linear",  # jointly linear in its operands; other additive operands are constants
    "selection",  # picks entries of its operand (max, sort, topk)
    "product",  # linear in each factor: degree 1 in every carrying one; `terms` are added
    "quotient",  # args = numerator, denominator: a product with a reciprocal
    "homogeneous",  # elementwise f(t x) = t^degree f(x): gradient / degree is the identity rule
    "nonlinearity",  # elementwise function of one scalar, with a closed-form slope f(x)/x where there is one
    "normalization",  # a fused normalization: degree 0, the statistic is a constant
    "softmax",  # first-order Taylor with bias (softmax and its logarithms)
    "function",  # any other function of several numbers that has a derivative: first-order Taylor
    "attention",  # fused scaled-dot-product attention
    "lookup",  # rows of a table picked by integer indices
    "constant",  # never carries relevance (comparisons, shapes, indices, random numbers)
)


#: fields of entries of every kind
COMMON = (
    "args",
    "terms",
    "by",
    "reduces",
    "elementwise",
    "positive",
    "decay",
    "sign",
    "rectifies",
    "picks",
    "entrywise",
)

#: kind -> further fields of its entries
FIELDS: dict[str, tuple[str, ...]] = {
    "movement": (
        "form",  # one of FORMS: how the entries are moved
        "inert",  # the argument that, if False, makes it the identity (dropout: train)
        "literals",  # arguments that are entries of the result (a fill value)
        "part",  # the result is a part of the operand
        "fills",  # entries of the result that come from nowhere are 0
    ),
    "linear": (
        "folds",  # a normalization over the batch is folded into the layer before it
        "coefficients",  # factor of each operand: a number, or the name of an argument
        "cumulative",  # a running sum
        "literals",
    ),
    "selection": ("mean",),  # the operator that averages over the same windows
    "product": (
        "layer",  # a narrower role
        "channels",  # dimension of the weight: the output channels
        "constant",  # the weight: where constant, the backward is the product with its transpose
        "features",  # dimension of the result: the features that the weights compute (negative)
        "matrices",  # rows of the first operand times columns of the second
    ),
    "quotient": ("solves",),  # the operand that is the matrix of a linear system
    "homogeneous": ("degree", "count", "solves"),  # count: the function that counts the factors (rules.factors)
    "nonlinearity": ("slope", "at_zero", "jumps"),  # jumps: it only says which side of 0 its operand is on
    "normalization": ("layout", "centred"),
    "softmax": ("distribution",),  # the argument that names the dimension that sums to one
}

#: how a movement moves the entries (explained at the head of ``rules/ops.toml``)
FORMS = ("copy", "detach", "cast", "reshape", "insert", "permute", "pieces")


@dataclass(frozen=True)
class OpSpec:
    """Declaration of one operator.

    Attributes:
        name: operator packet, ``"aten.linear"``.
        kind: one of :data:`KINDS`.
        args: names of the operands that can carry relevance.
        terms: names of further operands that are *added* to the result (a bias).
        reduces: the result is a reduction of its operand over some dimensions.
        elementwise: the result is computed entry by entry (operands broadcast).
        degree: degree of homogeneity (``homogeneous`` only); a string is an expression of the op's other arguments.
        slope: closed form of f(x)/x (``nonlinearity`` only) as an expression of ``x`` and the op's arguments.
        at_zero: limit of f(x)/x at x = 0, where f(0) = 0 and there is no closed form.
        extra: the other fields of the entry, of :data:`COMMON` and :data:`FIELDS`.
    """

    name: str
    kind: str
    args: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    reduces: bool = False
    elementwise: bool = False
    degree: float | str | None = None
    slope: str | None = None
    at_zero: float | str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def rules_dir() -> Path:
    """Folder of the TOML files: ``_rules`` of the installed wheel, or ``rules/`` of a source checkout."""
    installed = Path(__file__).parents[1] / "_rules"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "rules"


def _names(value: str | list[str]) -> tuple[str, ...]:
    return tuple(value.split()) if isinstance(value, str) else tuple(value)


def _parse_entry(kind: str, name: str, value: Any, origin: str) -> OpSpec:
    fields = dict(value) if isinstance(value, Mapping) else {"args": value}
    allowed = (*COMMON, *FIELDS.get(kind, ()))
    for key in fields:
        if key not in allowed:
            raise RuleSetError(
                f"{origin}: {name} has an unknown field {key!r}{_nearest(key, allowed)}; "
                f"entries of kind {kind} have {', '.join(allowed)}"
            )
    facts = {key: fields.pop(key) for key in ("reduces", "elementwise", "degree", "slope", "at_zero") if key in fields}
    args, terms = _names(fields.pop("args", "")), _names(fields.pop("terms", ""))
    if kind in ("homogeneous", "nonlinearity"):
        facts.setdefault("elementwise", True)
    fields |= {key: _names(fields[key]) for key in ("coefficients", "literals") if key in fields}
    if kind == "lookup":
        fields.setdefault("picks", "indices")
    if fields.get("form", "copy") not in FORMS:
        raise RuleSetError(
            f"{origin}: {name} has the unknown form {fields['form']!r}{_nearest(str(fields['form']), FORMS)}; choose "
            f"one of {', '.join(FORMS)}"
        )
    if kind == "nonlinearity" and len(args) > 1:
        raise RuleSetError(
            f"{origin}: {name} is declared a nonlinearity in {', '.join(args)}: a nonlinearity is a function of one "
            'number, whose slope is f(x)/x. Declare a function of several as a "function", or as a "product" if it is '
            "linear in each."
        )
    return OpSpec(name, kind, args, terms, **facts, extra=fields)


def _nearest(word: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(choices), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def parse_table(document: Mapping[str, Any], origin: str) -> dict[str, OpSpec]:
    """Parse one op-table document (see the head of ``rules/ops.toml`` for the format).

    Raises:
        RuleSetError: for a section that is not one of :data:`KINDS`, or a field that entries of its kind do not have.
    """
    table: dict[str, OpSpec] = {}
    for kind, entries in document.items():
        if kind not in KINDS:
            raise RuleSetError(
                f"{origin}: unknown section [{kind}]{_nearest(kind, KINDS)}; the op table knows {', '.join(KINDS)}"
            )
        if not isinstance(entries, Mapping):
            raise RuleSetError(
                f"{origin}: [{kind}] must map operators to their operands, not be a {type(entries).__name__}"
            )
        if kind == "constant":
            named = {name: fields for name, fields in entries.items() if name != "ops"}
            entries = {name: "" for name in entries.get("ops", ())} | named
        for name, value in entries.items():
            table[name.replace("::", ".")] = _parse_entry(kind, name.replace("::", "."), value, origin)
    return table


def _checked(specs: dict[str, OpSpec], origin: str) -> dict[str, OpSpec]:
    """``specs``, once it is checked that the operators and their operands exist.

    Raises:
        RuleSetError: for an unknown operator or operand; the message names the nearest one.
    """
    for spec in specs.values():
        schemas = _schemas(spec.name)
        if schemas is None:
            raise RuleSetError(f"{origin}: there is no operator {spec.name!r}{_nearest(spec.name, _all_operators())}")
        operands = list(dict.fromkeys(a.name for schema in schemas for a in schema.arguments if not a.is_out))
        unknown = [n for n in spec.args + spec.terms if schemas and n not in operands]
        if unknown:
            raise RuleSetError(
                f"{origin}: the declaration of {spec.name} names {unknown[0]}{_nearest(unknown[0], operands)}, but the "
                f"operator's arguments are {', '.join(operands)}"
            )
    return specs


def _schemas(name: str) -> list[Any] | None:
    """Schemas of all overloads of an op-table name; [] for a Python function, None if there is no such operator."""
    namespace, _, rest = name.partition("(")[0].partition(".")
    packet_name, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), packet_name, None) if rest else None
    if isinstance(packet, torch._ops.OpOverloadPacket):
        schemas = [getattr(packet, o)._schema for o in packet.overloads() if overload in ("", o)]
        return schemas or None
    module, _, function = name.rpartition(".")
    places = (sys.modules.get(module), sys.modules.get(f"_{module}"))
    return [] if namespace == "higher_order" or any(hasattr(p, function) for p in places) else None


def _all_operators() -> list[str]:
    return list(dict.fromkeys(n.split(".")[0].replace("::", ".") for n in torch._C._dispatch_get_all_op_names()))


@dataclass(frozen=True)
class OpTable:
    """Operator declarations by packet name."""

    specs: Mapping[str, OpSpec]

    def __repr__(self) -> str:
        return f"OpTable({len(self.specs)} operators)"

    @classmethod
    def load(cls, extra: str | Path | Mapping[str, Any] | None = None) -> OpTable:
        """Read ``rules/ops.toml``, the ops declared by :func:`register_op`, then ``extra`` (a path or a dict).

        Raises:
            RuleSetError: if ``extra`` names a kind, field, operator or operand that does not exist.
        """
        specs = {**cls.shipped().specs, **_REGISTERED}
        if isinstance(extra, (str, Path)):
            specs.update(_checked(parse_table(read_toml(extra), str(extra)), str(extra)))
        elif extra is not None:
            specs.update(_checked(parse_table(extra, "ops="), "ops="))
        return cls(specs)

    @staticmethod
    @functools.cache
    def shipped() -> OpTable:
        """``rules/ops.toml`` alone, without the user's declarations."""
        path = rules_dir() / "ops.toml"
        return OpTable(parse_table(read_toml(path), str(path)))

    def form(self, node: Node) -> str | None:
        """How a movement moves the entries, one of :data:`FORMS`; None where not declared."""
        spec = self.get(node) if node.op == "call_function" else None
        return spec.extra.get("form") if spec is not None else None

    def get(self, node: Node) -> OpSpec | None:
        """The declaration of the operator that ``node`` calls, or None if it has none."""
        overload, name = _spelled(node.target)
        spec = self.specs.get(overload) or self.specs.get(name)
        if spec is None or "by" not in spec.extra:
            return spec
        return self.specs.get(f"{spec.name}({bind(node).get(spec.extra['by'])})", spec)


_REGISTERED: dict[str, OpSpec] = {}


def is_declared(name: str) -> bool:
    """Whether ``rules/ops.toml`` or :func:`register_op` has an entry of this name, ``"aten.add"`` or an overload."""
    return name in _REGISTERED or name in OpTable.shipped().specs


def register_op(name: str, *, role: str, relevance_args: list[str], **fields: Any) -> OpSpec:
    """Declare a custom operator, for every later ``convert``.

    Args:
        name: ``"mylib::op"`` or ``"mylib.op"``.
        role: one of :data:`KINDS`.
        relevance_args: names (in the op's schema) of the operands that can carry relevance.
        **fields: further fields of :class:`OpSpec` (``terms``, ``slope``, ``degree``, ...).

    Raises:
        RuleSetError: for an unknown role or field, an operator or operand that does not exist, or a nonlinearity with
            several operands.
    """
    origin = f"register_op({name!r})"
    if role not in KINDS:
        raise RuleSetError(f"{origin}: unknown role {role!r}{_nearest(role, KINDS)}; choose one of {', '.join(KINDS)}")
    key = name.replace("::", ".")
    spec = _parse_entry(role, key, {"args": list(relevance_args), **fields}, origin)
    _REGISTERED.update(_checked({key: spec}, origin))
    return spec


def op_name(node: Node) -> str:
    """``"aten.add"`` for any overload of an operator, ``"operator.getitem"`` for a Python function."""
    return _spelled(node.target)[1]


def _spelled(target: Any) -> tuple[str, str]:
    """The names of a target, with its overload and without."""
    if isinstance(target, torch._ops.OpOverload):
        return _operator_names(target)
    return str(target), _function_name(target)


@functools.cache
def _operator_names(target: torch._ops.OpOverload) -> tuple[str, str]:
    return str(target), str(target.overloadpacket)


def _function_name(target: Any) -> str:
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}"
    if callable(target):
        module = getattr(target, "__module__", "") or ""
        return f"{module.lstrip('_')}.{getattr(target, '__name__', target)}"
    return str(target)


def bind(node: Node) -> dict[str, Any]:
    """The node's arguments by name, as in the operator's schema or the Python function's signature."""
    if isinstance(node.target, torch._ops.OpOverload):
        names, defaults = _arguments(node.target)
        return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    return dict(zip(_parameters(node), node.args, strict=False)) | dict(node.kwargs)


@functools.cache
def _arguments(target: torch._ops.OpOverload) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of an operator's arguments, and the defaults of those that have one."""
    schema = target._schema.arguments
    return tuple(a.name for a in schema), {a.name: a.default_value for a in schema if a.has_default_value()}


def coefficients(node: Node, spec: OpSpec) -> dict[str, float]:
    """The factor of each operand of a sum, by argument name; empty if not declared, or computed in the graph."""
    bound, weights = bind(node), {}
    for name, declared in zip(spec.args, spec.extra.get("coefficients", ()), strict=False):
        size = declared.removeprefix("-")
        value = bound.get(size, 1) if size.isidentifier() else float(size)
        if isinstance(value, Node):
            return {}
        weights[name] = -value if declared.startswith("-") else value
    return weights


def _parameters(node: Node) -> list[str]:
    """Argument names of a Python function; ``arg0``, ``arg1``, ... for a builtin."""
    code = getattr(node.target, "__code__", None)
    return list(code.co_varnames[: code.co_argcount]) if code else [f"arg{i}" for i in range(len(node.args))]


def set_arg(node: Node, name: str, value: Any) -> None:
    """Replace the argument called ``name`` (as in :func:`bind`) of ``node``."""
    if name in node.kwargs:
        node.update_kwarg(name, value)
        return
    if isinstance(node.target, torch._ops.OpOverload):
        index = next(i for i, a in enumerate(node.target._schema.arguments) if a.name == name)
    else:
        index = _parameters(node).index(name)
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)
