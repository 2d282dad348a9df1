"""The op table: what every operator *is* algebraically, read from ``rules/ops.toml``.

An entry says which operands can carry relevance and by what law. Nothing here knows a rule: the rule sets map the
roles that analysis derives from these declarations to rules.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from lrp_fx.errors import RuleSetError

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
    "attention",  # fused scaled-dot-product attention
    "lookup",  # rows of a table picked by integer indices
    "constant",  # never carries relevance (comparisons, shapes, indices, random numbers)
)


@dataclass(frozen=True)
class OpSpec:
    """Declaration of one operator.

    Attributes:
        name: operator packet, ``"aten.linear"``.
        kind: one of :data:`KINDS`.
        args: names of the operands that can carry relevance.
        terms: names of further operands that are *added* to the result (a bias).
        reduces: the result depends on its operand only through a reduction over some dimensions.
        elementwise: the result is computed position by position (operands broadcast).
        degree: degree of homogeneity (``homogeneous`` only); a string is an expression of the op's other arguments.
        slope: closed form of f(x)/x (``nonlinearity`` only) as an expression of ``x``, ``y`` and the op's arguments.
        at_zero: value of f(x)/x at x = 0 where f(0) = 0 and no closed form is given.
        extra: kind-specific fields (the layout of a normalization; the ``mean`` over the windows of a selection; the
            operand of a product that, where it is ``constant``, is transposed on the way back; the argument that
            ``picks`` entries, a result of its own shape where ``entrywise``).
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
    """Folder of the TOML files: inside the installed wheel, or ``rules/`` of a source checkout."""
    installed = Path(__file__).parent / "_rules"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "rules"


def _names(value: str | list[str]) -> tuple[str, ...]:
    return tuple(value.split()) if isinstance(value, str) else tuple(value)


def _parse_entry(kind: str, name: str, value: Any) -> OpSpec:
    fields = dict(value) if isinstance(value, Mapping) else {"args": value}
    known = {key: fields.pop(key) for key in ("reduces", "elementwise", "degree", "slope", "at_zero") if key in fields}
    args, terms = _names(fields.pop("args", "")), _names(fields.pop("terms", ""))
    if kind in ("homogeneous", "nonlinearity"):
        known.setdefault("elementwise", True)
    if kind == "lookup":
        fields.setdefault("picks", "indices")
    return OpSpec(name, kind, args, terms, **known, extra=fields)


def parse_table(document: Mapping[str, Any], origin: str) -> dict[str, OpSpec]:
    """Parse one op-table document (see the head of ``rules/ops.toml`` for the format).

    Raises:
        RuleSetError: for a section that is not one of :data:`KINDS`.
    """
    table: dict[str, OpSpec] = {}
    for kind, entries in document.items():
        if kind not in KINDS:
            raise RuleSetError(f"{origin}: unknown section [{kind}]; the op table knows {', '.join(KINDS)}")
        if kind == "constant":
            named = {name: fields for name, fields in entries.items() if name != "ops"}
            entries = {name: "" for name in entries.get("ops", ())} | named
        for name, value in entries.items():
            table[name] = _parse_entry(kind, name, value)
    return table


@dataclass(frozen=True)
class OpTable:
    """Operator declarations by packet name."""

    specs: Mapping[str, OpSpec]

    @classmethod
    def load(cls, extra: str | Path | Mapping[str, Any] | None = None) -> OpTable:
        """Read ``rules/ops.toml``, the ops declared by :func:`register_op`, then ``extra`` (a path or a dict)."""
        path = rules_dir() / "ops.toml"
        specs = parse_table(tomllib.loads(path.read_text()), str(path))
        specs.update(_REGISTERED)
        if isinstance(extra, (str, Path)):
            specs.update(parse_table(tomllib.loads(Path(extra).read_text()), str(extra)))
        elif extra is not None:
            specs.update(parse_table(extra, "ops="))
        return cls(specs)

    def get(self, node: Node) -> OpSpec | None:
        """The declaration of the operator that ``node`` calls, or None."""
        return self.specs.get(str(node.target)) or self.specs.get(op_name(node))


_REGISTERED: dict[str, OpSpec] = {}


def register_op(name: str, *, role: str, relevance_args: list[str], **fields: Any) -> OpSpec:
    """Declare an operator of your own, for every later ``convert``.

    Args:
        name: ``"mylib::op"`` or ``"mylib.op"``.
        role: one of :data:`KINDS`.
        relevance_args: names (in the op's schema) of the operands that can carry relevance.
        **fields: further fields of :class:`OpSpec` (``terms``, ``slope``, ``degree``, ...).

    Raises:
        RuleSetError: for an unknown role.
    """
    if role not in KINDS:
        raise RuleSetError(f"register_op({name!r}): unknown role {role!r}; choose one of {', '.join(KINDS)}")
    key = name.replace("::", ".")
    _REGISTERED[key] = _parse_entry(role, key, {"args": list(relevance_args), **fields})
    return _REGISTERED[key]


def op_name(node: Node) -> str:
    """``"aten.add"`` for any overload of an operator, ``"operator.getitem"`` for a Python function."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}"
    if callable(target):
        module = getattr(target, "__module__", "") or ""
        return f"{module.lstrip('_')}.{getattr(target, '__name__', target)}"
    return str(target)


def bind(node: Node) -> dict[str, Any]:
    """The node's arguments by the names of its operator's schema, or of its Python function's parameters."""
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema.arguments
        bound = {a.name: v for a, v in zip(schema, node.args, strict=False)}
        return {a.name: a.default_value for a in schema if a.has_default_value()} | bound | dict(node.kwargs)
    return dict(zip(_parameters(node), node.args, strict=False)) | dict(node.kwargs)


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
