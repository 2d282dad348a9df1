"""What a model has before a run: attributes of modules, entries of containers, attributes of objects behind them."""

from __future__ import annotations

import argparse
import collections
import operator
import sys
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CONTAINERS = (dict, list, set, collections.deque, bytearray)
#: values with attributes that are not the model's
_APART = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType, nn.Module, Tensor)
#: objects of the standard library that hold what one puts there; others (locks, loggers) belong to the process
_HOLDERS = (types.SimpleNamespace, argparse.Namespace, collections.UserDict, collections.UserList)
_LONGEST = 2000  #: number of entries up to which the entries of a container are looked at
_MOST = 20_000  #: number of containers and objects up to which they are


class Snapshot:
    """The contents of a model at the time of construction.

    Attributes:
        direct: buffers and tensors that are attributes of modules.
        behind: tensors in containers and objects behind attributes.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]  # not in Python
        spaces: list[Any] = [space for m in modules for space in (vars(m), m._parameters, m._buffers)]
        self._contents: list[tuple[Any, Any]] = [(space, dict(space)) for space in spaces]
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        values = [value for _, before in self._contents for value in before.values()]
        direct = {id(v): v for v in values if isinstance(v, Tensor)}
        inner = self._entered([v for v in values if not isinstance(v, Tensor)], {id(space) for space in spaces})
        self.direct = [t for t in direct.values() if not isinstance(t, nn.Parameter)]
        self.behind = [t for key, t in inner.items() if key not in direct and not isinstance(t, nn.Parameter)]

    def _entered(self, stack: list[Any], seen: set[int]) -> dict[int, Tensor]:
        """Store the contents of containers and objects, each once; the tensors in them by their ids."""
        tensors: dict[int, Tensor] = {}
        while stack and len(seen) < _MOST:
            value = stack.pop()
            if isinstance(value, Tensor):
                tensors[id(value)] = value
                continue
            if isinstance(value, np.ndarray) and id(value) not in seen:
                seen.add(id(value))
                self._arrays.append((value, value.copy()))
            container = vars(value) if _is_object(value) else value
            if not isinstance(container, (*_CONTAINERS, tuple)) or id(container) in seen:
                continue
            seen.add(id(container))
            if not isinstance(container, tuple):
                kind: Any = next(kind for kind in _CONTAINERS if isinstance(container, kind))
                self._contents.append((container, kind(container)))
            if len(container) <= _LONGEST:
                stack += container.values() if isinstance(container, dict) else container
        return tensors

    def restore(self) -> None:
        """Give all containers, arrays and objects the entries and attributes that they had."""
        for container, before in self._contents:
            _restore(container, before)
        for array, values in self._arrays:
            if array.flags.writeable:
                array[...] = values


def _is_object(value: Any) -> bool:
    """Whether a value has attributes of its own that a run of the model may write."""
    if isinstance(value, _APART) or not isinstance(getattr(value, "__dict__", None), dict):
        return False
    of_the_process = type(value).__module__.partition(".")[0] in sys.stdlib_module_names
    return isinstance(value, _HOLDERS) or not (of_the_process or isinstance(value, _CONTAINERS))


def _restore(container: Any, before: Any) -> None:
    """Give a container its entries again; one that has them is left alone."""
    if len(container) == len(before) == 0:
        return
    if isinstance(container, dict):
        if [*container] == [*before] and all(map(operator.is_, container.values(), before.values())):
            return
        for name in container.keys() - before.keys():
            del container[name]
        container.update({name: value for name, value in before.items() if container.get(name, container) is not value})
    elif len(container) != len(before) or not all(map(operator.is_, container, before)):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(before)
