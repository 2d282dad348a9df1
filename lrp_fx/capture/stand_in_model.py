"""The copy of a model that is captured: settings of the copy affect neither the model nor other threads.

A copy of objects is not enough: a hook is often a method of the model, or a function that closes over it, and writes
what it sees to an attribute that the forward reads. Hooks of the copy have to write to the copy.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lrp_fx.capture.object_contents import is_set


@dataclass(frozen=True)
class StandInModel:
    """A copy of a model to capture.

    Attributes:
        module: the copy.
        originals: id of a parameter of the copy -> the model's parameter.
        copies: the parameters of the copy, kept alive so that their ids stay unique.
    """

    module: nn.Module
    originals: Mapping[int, nn.Parameter]
    copies: Sequence[nn.Parameter] = ()

    def give_back(self, graph_module: nn.Module) -> None:
        """Replace the parameters of the copy by those of the model, in a graph that was captured from the copy."""
        for module in graph_module.modules():
            for name, parameter in module._parameters.items():
                if id(parameter) in self.originals:
                    module._parameters[name] = self.originals[id(parameter)]


def copied(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    shared: Iterable[Any],
    functions: Iterable[types.FunctionType],
    parts: Collection[int],
) -> StandInModel:
    """A copy of a model.

    Args:
        model: the model.
        parameters: those that the copy shares the memory of, as new objects.
        shared: further objects that the copy shares with the model.
        functions: functions of the model and of its hooks; where they close over parts of the model, those of the copy
            close over the same parts of the copy.
        parts: ids of the modules, containers and objects of the model.

    Raises:
        Exception: of any kind, by an object that cannot be copied.
    """
    copies = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in parameters}
    closing = [function for function in functions if _closes_over(function, parts, set())]
    rebuilt = {id(function): _with_empty_cells(function) for function in closing}
    memo: dict[int, Any] = {id(value): value for value in shared} | copies | rebuilt
    module = copy.deepcopy(model, memo)
    for function in closing:
        for cell, empty in zip(function.__closure__ or (), rebuilt[id(function)].__closure__ or (), strict=True):
            if is_set(cell):
                empty.cell_contents = _counterpart(cell.cell_contents, memo)
    for part in module.modules():  # a copied method has the function of the model's method
        _rebind(vars(part), rebuilt, set())
    return StandInModel(module, {id(copies[id(p)]): p for p in parameters}, list(copies.values()))


def _rebind(values: Any, rebuilt: Mapping[int, types.FunctionType], seen: set[int]) -> None:
    """Give copied methods in attributes, dicts and lists (of hooks) the functions that close over the copy."""
    if id(values) in seen or not isinstance(values, (dict, list)):
        return
    seen.add(id(values))
    for key, value in list(values.items() if isinstance(values, dict) else enumerate(values)):
        if isinstance(value, types.MethodType) and id(value.__func__) in rebuilt:
            values[key] = types.MethodType(rebuilt[id(value.__func__)], value.__self__)
        else:
            _rebind(value, rebuilt, seen)


def _with_empty_cells(function: types.FunctionType) -> types.FunctionType:
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    code, name, defaults = function.__code__, function.__name__, function.__defaults__
    rebuilt = types.FunctionType(code, function.__globals__, name, defaults, cells)
    rebuilt.__kwdefaults__, rebuilt.__module__ = function.__kwdefaults__, function.__module__
    rebuilt.__qualname__ = function.__qualname__
    vars(rebuilt).update(vars(function))
    return rebuilt


def _closes_over(function: types.FunctionType, parts: Collection[int], seen: set[int]) -> bool:
    """Whether a function, or one that it closes over, closes over a part of the model or a method of one."""
    seen.add(id(function))
    for value in (cell.cell_contents for cell in function.__closure__ or () if is_set(cell)):
        owner = value.__self__ if isinstance(value, types.MethodType) else value
        inner = isinstance(value, types.FunctionType) and id(value) not in seen and _closes_over(value, parts, seen)
        if id(owner) in parts or inner:
            return True
    return False


def _counterpart(value: Any, memo: Mapping[int, Any]) -> Any:
    """The copy's counterpart of a value of the model; the value itself if it is no part of the model."""
    if isinstance(value, types.MethodType) and id(value.__self__) in memo:
        return types.MethodType(_counterpart(value.__func__, memo), memo[id(value.__self__)])
    return memo.get(id(value), value)
