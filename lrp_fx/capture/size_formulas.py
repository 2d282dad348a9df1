"""Formulas of sizes as plain data: written, read, evaluated and shown, without running code from the data.

A formula is an int, a float, a bool, the name of a size, or [function, *arguments].
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import sympy
from torch.utils._sympy import functions as formulas

#: function -> its evaluation
_VALUES: dict[Any, Callable[..., Any]] = {
    sympy.Add: lambda *terms: sum(terms),
    sympy.Mul: lambda *factors: math.prod(factors),
    sympy.Pow: operator.pow,
    sympy.Eq: operator.eq,
    sympy.Ne: operator.ne,
    sympy.Lt: operator.lt,
    sympy.Le: operator.le,
    sympy.Gt: operator.gt,
    sympy.Ge: operator.ge,
    sympy.And: lambda *conditions: all(conditions),
    sympy.Or: lambda *conditions: any(conditions),
    sympy.Not: operator.not_,
    formulas.FloorDiv: operator.floordiv,
    formulas.CleanDiv: operator.floordiv,
    formulas.CeilDiv: lambda a, b: -(-a // b),
    formulas.ModularIndexing: lambda a, divisor, modulus: a // divisor % modulus,
    formulas.PythonMod: operator.mod,
    formulas.Mod: operator.mod,
    formulas.Where: lambda condition, a, b: a if condition else b,
    formulas.Max: max,
    formulas.Min: min,
    formulas.PowByNatural: operator.pow,
    formulas.FloatPow: lambda a, b: float(a) ** b,
    formulas.IntTrueDiv: operator.truediv,
    formulas.FloatTrueDiv: operator.truediv,
    formulas.ToFloat: float,
    formulas.TruncToInt: math.trunc,
    formulas.TruncToFloat: lambda a: float(math.trunc(a)),
    formulas.RoundToInt: round,
    formulas.CeilToInt: math.ceil,
    formulas.FloorToInt: math.floor,
    formulas.LShift: operator.lshift,
    formulas.RShift: operator.rshift,
    formulas.Identity: lambda a: a,
    formulas.OpaqueUnaryFn_sqrt: math.sqrt,
    formulas.OpaqueUnaryFn_log2: math.log2,
    formulas.OpaqueUnaryFn_log: math.log,
    formulas.OpaqueUnaryFn_exp: math.exp,
}
_FORMULAS: dict[str, Any] = {kind.__name__: kind for kind in _VALUES}
_BY_NAME: dict[str, Callable[..., Any]] = {kind.__name__: value for kind, value in _VALUES.items()} | {
    "Rational": Fraction
}
_INFIX = {
    "Add": " + ", "Mul": " * ", "Pow": "**", "PowByNatural": "**", "FloorDiv": " // ", "CleanDiv": " // ",
    "Mod": " % ", "PythonMod": " % ", "IntTrueDiv": " / ", "FloatTrueDiv": " / ", "Rational": "/",
    "Equality": " == ", "Unequality": " != ", "StrictLessThan": " < ", "LessThan": " <= ",
    "StrictGreaterThan": " > ", "GreaterThan": " >= ", "And": " and ", "Or": " or ",
}  # fmt: skip
EQUAL = sympy.Eq.__name__


class Unstorable(Exception):
    """A part of a graph has no plain form."""


def formula(expression: Any) -> Any:
    """The plain form of a formula of sizes.

    Raises:
        Unstorable: for a function that is not in ``_VALUES``.
    """
    if isinstance(expression, int) or getattr(expression, "is_Integer", False):
        return int(expression)
    if isinstance(expression, sympy.Symbol):
        return expression.name
    if expression in (sympy.true, sympy.false):
        return bool(expression)
    if isinstance(expression, sympy.Rational):
        return ["Rational", int(expression.p), int(expression.q)]
    if isinstance(expression, sympy.Float):
        return float(expression)
    name = expression.func.__name__
    if _FORMULAS.get(name) is not expression.func:
        raise Unstorable(f"the formula {expression}")
    return [name, *map(formula, expression.args)]


def formula_from(plain: Any, symbols: Mapping[str, sympy.Symbol]) -> Any:
    """The formula that :func:`formula` wrote."""
    if isinstance(plain, bool):
        return sympy.true if plain else sympy.false
    if isinstance(plain, (int, float)):
        return sympy.sympify(plain)
    if isinstance(plain, str):
        return symbols[plain]
    name, *arguments = plain
    if name == "Rational":
        return sympy.Rational(*arguments)
    return _FORMULAS[name](*(formula_from(a, symbols) for a in arguments))


def evaluate(plain: Any, sizes: Mapping[str, int]) -> Any:
    """The value of a plain formula for sizes by name.

    Raises:
        KeyError: for an unknown size or function.
        ArithmeticError: if the formula has no value there.
    """
    if isinstance(plain, str):
        return sizes[plain]
    if isinstance(plain, (int, float)):
        return plain
    name, *arguments = plain
    return _BY_NAME[name](*(evaluate(a, sizes) for a in arguments))


def shown(plain: Any, names: Mapping[str, str]) -> str:
    """A plain formula as text, with ``names`` for its sizes."""
    if isinstance(plain, str):
        return names.get(plain, plain)
    if isinstance(plain, (int, float)):
        return str(plain)
    name, *arguments = plain
    if name not in _INFIX:
        return f"{name}({', '.join(shown(a, names) for a in arguments)})"
    texts = [shown(a, names) for a in arguments]
    nested = [isinstance(a, (list, tuple)) and a[0] in _INFIX for a in arguments]
    return _INFIX[name].join(f"({t})" if inner else t for t, inner in zip(texts, nested, strict=True))
