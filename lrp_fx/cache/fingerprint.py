"""Fingerprints: a digest of everything that a capture depends on (structure and code of the model, call, versions).

Models with the same fingerprint have the same graph. It covers the class of every module with its source, every
attribute, names and sizes of parameters and buffers (not their values, on which the graph does not depend), and the
values of all other tensors. A model with a part that has no description by value or by name has no fingerprint.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import pathlib
import platform
import re
import sys
import types
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrp_fx.cache.folder import digest
from lrp_fx.capture.model_state import NAMED, NOT_COUNTED, switches
from lrp_fx.capture.object_contents import functions_behind, functions_of, global_names
from lrp_fx.capture.packages import is_installed, is_local, is_torch, version
from lrp_fx.capture.signature import Call

_BY_VALUE = (type(None), bool, int, float, complex, str, bytes, type(...), range, pathlib.PurePath, np.generic)
_BY_STR = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch._ops.OpOverload, re.Pattern)
_OURS = Path(__file__).parent.parent


class Unkeyable(Exception):
    """A part of a model has no description that is the same in another process."""


def fingerprint(model: nn.Module, call: Call, *options: Any) -> str:
    """A hexadecimal digest of everything that a capture of this call depends on.

    The sizes of the call's tensors are left out, as in :attr:`Call.key`: the guards of a capture check these.

    Args:
        model: the model.
        call: the call; its constants are described by value.
        *options: further plain values.

    Raises:
        Unkeyable: for an attribute that is no plain value, tensor, module, importable function or plain object.
    """
    described = _Describer(model)
    description = [described.model(), described.call(call), [repr(o) for o in options], environment()]
    return digest(*description, described.code())


def contents(tensor: Tensor) -> str:
    """A digest of a tensor's values.

    Raises:
        Unkeyable: for a tensor subclass, and for a layout that is not strided.
    """
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.layout is not torch.strided:
        raise Unkeyable(f"a tensor of type {type(tensor).__name__} and layout {tensor.layout}")
    if tensor.is_meta:
        return "meta"
    values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def environment() -> list[str]:
    """Versions, and the global switches of PyTorch that change the outputs of a model."""
    cuda = torch.backends.cuda
    kernels = (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled())
    further = (torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled(), kernels)
    versions = (platform.python_version(), torch.__version__, torch.version.git_version, version("transformers"))
    return [repr((switches(), further)), repr(versions), _package_sources()]


@functools.cache
def _package_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(_OURS.rglob("*.py")):
        digest.update(str(path.relative_to(_OURS)).encode() + path.read_bytes())
    return digest.hexdigest()


def _source(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise Unkeyable(f"code without a source file: {file}") from error


def _written(code: types.CodeType) -> str:
    """The source file of code; "" for generated code (dataclasses) and for frozen modules of Python."""
    return "" if code.co_filename.startswith(("<string>", "<frozen")) else code.co_filename


def _meaning(code: types.CodeType) -> str:
    """A digest of bytecode and constants, the same in every process."""
    constants = [_meaning(c) if isinstance(c, types.CodeType) else _sorted(c) for c in code.co_consts]
    described = (code.co_qualname, code.co_code, code.co_names, code.co_freevars, constants)
    return hashlib.sha256(repr(described).encode()).hexdigest()


def _sorted(constant: Any) -> str:
    return repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)


class _Describer:
    """Describes values, and collects their classes and functions for :meth:`code`."""

    def __init__(self, model: nn.Module) -> None:
        self.root = model
        self.modules = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.tensors = {id(tensor): name for name, tensor in named}
        self.named = named
        self.met: dict[int, tuple[str, Any]] = {}  # keeps the objects alive, so that ids stay unique
        self.owners: set[str] = set()  # modules whose code is part of the fingerprint
        self.definitions: set[tuple[Any, ...]] = set()
        self.read: dict[types.CodeType, str] = {}  # of local functions: what is described of the globals they read

    def model(self) -> list[Any]:
        """Every module with its class and attributes, and every parameter and buffer."""
        storages: dict[int, int] = {}
        descriptions: list[Any] = []
        for name, module in self.root.named_modules(remove_duplicate=False):
            if isinstance(module, torch.jit.ScriptModule):
                raise Unkeyable(f"'{name}' is compiled by TorchScript")
            attributes = {k: v for k, v in vars(module).items() if k not in NOT_COUNTED.union(NAMED)}
            descriptions.append((name, self.modules[id(module)], self.type(type(module)), self.items(attributes, name)))
        for name, tensor in self.named:
            if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.layout is not torch.strided:
                raise Unkeyable(f"'{name}' is a {type(tensor).__name__} of layout {tensor.layout}")
            storage = storages.setdefault(tensor.untyped_storage()._cdata, len(storages))
            descriptions.append((name, self.tensors[id(tensor)], storage, tensor.storage_offset(), *_form(tensor)))
        return descriptions

    def call(self, call: Call) -> list[Any]:
        """The structure of a call, dtype, rank and device of its tensors, its constants."""
        leaves = [
            (leaf.dtype, leaf.dim(), leaf.device) if isinstance(leaf, Tensor) else self.value(leaf, name)
            for name, leaf in zip(call.names, call.leaves, strict=True)
        ]
        return [call.key[0], call.names, leaves]

    def items(self, values: dict[Any, Any], where: str) -> list[Any]:
        """Every entry of a dict, in order, without cached hashes of objects, which differ between processes."""
        counted = {k: v for k, v in values.items() if not str(k).endswith("_object_hash")}
        return [(self.value(k, where), self.value(v, f"{where}.{k}".lstrip("."))) for k, v in counted.items()]

    def value(self, value: Any, where: str) -> Any:
        """A description of a value; ``where`` is its path, for errors."""
        if isinstance(value, enum.Enum):
            return (self.type(type(value)), value.name)
        if type(value) in _BY_VALUE or isinstance(value, (pathlib.PurePath, np.generic)):
            return (type(value).__name__, repr(value))
        if isinstance(value, _BY_STR):
            return (type(value).__name__, str(value))
        if isinstance(value, Tensor):
            return self._tensor(value, where)
        if id(value) in self.modules:
            return ("module", self.modules[id(value)])
        if isinstance(value, weakref.ReferenceType):  # described by its referent, or None
            return ("weak", self.value(value(), where))
        if isinstance(value, types.ModuleType):
            self.owners.add(value.__name__)
            return ("import", value.__name__)
        if isinstance(value, type):
            return self.type(value)
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
            return self._function(value, where)
        if isinstance(value, types.MethodType):
            return ("method", self.value(value.__self__, where), self.value(value.__func__, where))
        if isinstance(value, functools.partial):
            return ("partial", [self.value(v, where) for v in (value.func, value.args, value.keywords)])
        if id(value) not in self.met:
            self.met[id(value)] = ("inside itself", value)
            digest = hashlib.sha256(repr(self._described(value, where)).encode()).hexdigest()
            self.met[id(value)] = (digest, value)
        return self.met[id(value)][0]

    def _described(self, value: Any, where: str) -> Any:
        """A description of a container or object: its class, entries and attributes."""
        kind = type(value)
        attributes = self.items(vars(value), where) if hasattr(value, "__dict__") else []
        if isinstance(value, dict):
            factory = self.value(getattr(value, "default_factory", None), where)
            return (self.type(kind), self.items(dict(value), where), factory, attributes)
        if isinstance(value, (list, tuple)):
            return (self.type(kind), [self.value(v, f"{where}[{i}]") for i, v in enumerate(value)], attributes)
        if isinstance(value, (set, frozenset)):
            return (self.type(kind), sorted(repr(self.value(v, where)) for v in value), attributes)
        if isinstance(value, np.ndarray) and value.dtype != object:
            digest = hashlib.sha256(value.tobytes()).hexdigest()
            return ("array", str(value.dtype), value.shape, digest)
        if not hasattr(value, "__dict__") or not _only_attributes(kind):
            raise Unkeyable(f"'{where}' is a {kind.__module__}.{kind.__qualname__}")
        return (self.type(kind), attributes)

    def _tensor(self, tensor: Tensor, where: str) -> Any:
        if id(tensor) in self.tensors:
            return ("named", self.tensors[id(tensor)])
        try:
            return ("constant", *_form(tensor), contents(tensor))
        except Unkeyable as error:
            raise Unkeyable(f"'{where}' is {error}") from error

    def _function(self, function: Any, where: str) -> Any:
        """A function, described by module and name; it must be importable by that name."""
        module, name = getattr(function, "__module__", None) or "builtins", function.__qualname__
        if function not in (_named(module, name), _named(module, function.__name__)):  # the latter: torch.tanh
            raise Unkeyable(f"'{where}' is the function {module}.{name}, which cannot be imported by that name")
        self.owners.add(module)
        if isinstance(function, types.FunctionType):
            self._globals(function)
        return ("function", module, name)

    def _globals(self, function: types.FunctionType) -> None:
        """Describe globals and defaults of a local function; code of modules and functions counts elsewhere."""
        code, namespace = function.__code__, function.__globals__
        if code in self.read or not is_local(function):
            return
        self.read[code] = ""
        names = sorted(name for name in global_names(code) if name in namespace)
        values = [
            (name, namespace[name]) for name in names if not isinstance(namespace[name], (types.ModuleType, type))
        ]
        values += [(name, getattr(function, name)) for name in ("__defaults__", "__kwdefaults__")]
        self.read[code] = repr([(n, self.value(value, f"{function.__module__}.{n}")) for n, value in values])

    def type(self, kind: type) -> Any:
        """A class, described by module and name; its code and that of its bases becomes part of the fingerprint."""
        if _named(kind.__module__, kind.__qualname__) is not kind:
            raise Unkeyable(f"the class {kind.__module__}.{kind.__qualname__} cannot be imported by that name")
        for base in kind.__mro__:
            self.owners.add(base.__module__)
            for function in functions_of(base):
                self._globals(function)
            if not is_torch(base.__module__) or base is kind:
                self.definitions.update(_definitions(vars(base), f"{base.__module__}.{base.__qualname__}"))
        return ("class", kind.__module__, kind.__qualname__)

    def code(self) -> list[Any]:
        """Source and version of the code of all described classes and functions.

        A module outside of installed packages counts together with its imports from such modules. Functions that were
        patched into a class or module are covered by the files that define them.
        """
        owners = {m for m in self.owners if not is_torch(m) and m not in sys.stdlib_module_names}
        local = set(_reachable(m for m in owners if not is_installed(m)))
        definitions = set(self.definitions)
        for owner in owners | local:  # the imported code may be older than its file: both count
            definitions |= set(_definitions(vars(sys.modules[owner]), owner))
            kinds = [v for v in vars(sys.modules[owner]).values() if isinstance(v, type) and v.__module__ == owner]
            definitions |= {
                d for k in kinds if owner in local for d in _definitions(vars(k), f"{owner}.{k.__qualname__}")
            }
        files = {sys.modules[m].__file__ or "" for m in local | owners if getattr(sys.modules[m], "__file__", None)}
        if any(getattr(sys.modules[m], "__file__", None) is None for m in local):
            raise Unkeyable("a class without a source file")
        files |= {d[2] for d in definitions} - {""}
        packages = {m.partition(".")[0] for m in owners}
        return [
            sorted((name, version(name)) for name in packages),
            sorted((file, _source(file)) for file in files),
            sorted(repr(d) for d in definitions),
            sorted(self.read.values()),
        ]


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return (*map(str, (tensor.dtype, tensor.device)), tuple(tensor.shape), tensor.stride())


def _named(module: str, qualname: str) -> Any:
    value: Any = sys.modules.get(module)
    for name in qualname.split("."):
        value = getattr(value, name, None)
    return value


def _only_attributes(kind: type) -> bool:
    """Whether instances have no state but their ``__dict__``: Python classes without slots."""
    return all(
        base is object or (base.__flags__ & 1 << 9 and not base.__dict__.get("__slots__")) for base in kind.__mro__
    )


def _definitions(namespace: Any, owner: str) -> Iterator[tuple[Any, ...]]:
    """(owner, name, file, line, meaning) of every Python function in a namespace, also of wrapped ones."""
    for name, value in list(namespace.items()):
        for function in functions_behind(value):
            code = function.__code__
            yield (owner, name, _written(code), code.co_firstlineno, _meaning(code))


def _reachable(modules: Iterable[str]) -> Iterator[str]:
    """Modules and their imports outside of installed packages, recursively."""
    pending, seen = list(modules), set()
    while pending:
        name = pending.pop()
        module = sys.modules.get(name)
        if name in seen or module is None or is_torch(name) or is_installed(name):
            continue
        seen.add(name)
        yield name
        for value in list(vars(module).values()):
            origin = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if isinstance(origin, str):
                pending.append(origin)
