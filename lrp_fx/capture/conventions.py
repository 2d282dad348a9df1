"""Settings of a model during a capture, and their restoration.

These are conventions of libraries (``training``, ``config.use_cache``), not of architectures. Evaluation mode turns off
dropout, a cache is state that a graph cannot return, and experts that loop over the data have a traceable variant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from lrp_fx.capture.snapshot import Snapshot
from lrp_fx.capture.tensor_writes import TensorWrites, writes_undone
from lrp_fx.errors import CaptureError

TRACEABLE_EXPERTS = "grouped_mm"
_EXPERTS = "_experts_implementation_internal"


def _configs(model: torch.nn.Module) -> list[Any]:
    """Every configuration object of the model's modules, nested ones included, each once."""
    configs: dict[int, Any] = {}
    stack = [config for module in model.modules() if (config := getattr(module, "config", None)) is not None]
    while stack:
        config = stack.pop()
        if id(config) in configs or not hasattr(config, "__dict__") or isinstance(config, torch.nn.Module):
            continue
        configs[id(config)] = config
        stack += [v for k, v in vars(config).items() if k.endswith("config") and hasattr(v, "__dict__")]
    return list(configs.values())


def loop_over_experts(model: torch.nn.Module) -> None:
    """Let a model's experts run in a loop from now on: their fused kernel takes no float64 outside of a capture."""
    for config in _configs(model):
        if _EXPERTS in vars(config):
            vars(config)[_EXPERTS] = "eager"


def is_encoder_decoder(model: torch.nn.Module) -> bool:
    """Whether a model generates another sequence than the one it reads."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside wrappers for several devices and for compilation."""
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        else:
            return model


def is_traced() -> bool:
    """Whether this thread is traced. The flag of export holds for all threads, the stack of modes for one."""
    return torch.compiler.is_dynamo_compiling() or (
        torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() > 0
    )


def copied_inputs(inputs: Any) -> Any:
    """The inputs of a call with copies of their tensors, to which a model may write; a tensor given twice stays one."""
    copies: dict[int, torch.Tensor] = {}

    def copied(value: Any) -> Any:
        if type(value) is not torch.Tensor or value.layout is not torch.strided:
            return value
        if id(value) not in copies:
            copies[id(value)] = value.detach().clone()
        return copies[id(value)]

    return pytree.tree_map(copied, inputs)


def initialise_lazy(model: torch.nn.Module, args: Any, kwargs: Any) -> None:
    """Run a model that has parameters without a shape once: its first run creates them.

    Raises:
        CaptureError: if it does not run.
    """
    if not _is_lazy(model):
        return
    positional, keyword = copied_inputs((args, kwargs))
    try:
        with torch.no_grad(), traceable(model, experts=None):
            model(*positional, **keyword)
    except Exception as error:  # of any kind
        raise CaptureError(
            f"{type(model).__name__} has lazy parameters, which its first run creates, and fails on these inputs:"
            f" {type(error).__name__}: {error}\nRemedy: call the model once before it is converted."
        ) from error


def _is_lazy(model: torch.nn.Module) -> bool:
    """Whether a model has parameters or buffers without a shape."""
    return any(torch.nn.parameter.is_lazy(t) for t in (*model.parameters(), *model.buffers()))


@contextlib.contextmanager
def preserved(model: torch.nn.Module) -> Iterator[TensorWrites]:
    """Restore a model and the random state after a block, in which it may run.

    Parameters, buffers and attributes; entries of containers, attributes of objects behind them, and tensors in these.
    A model with lazy parameters keeps the parameters that its first run creates.

    Returns:
        What the block has written into parameters so far.
    """
    if _is_lazy(model):
        yield TensorWrites(())
        return
    contents = Snapshot(model)
    behind = writes_undone(contents.behind)
    with _restored(model, contents, contents.direct), behind, writes_undone(model.parameters()) as writes:
        yield writes


@contextlib.contextmanager
def attributes_restored(model: torch.nn.Module) -> Iterator[None]:
    """As :func:`preserved`, without parameters: for runs on fake tensors, in which a tracer may compute constants."""
    if _is_lazy(model):
        yield
        return
    contents = Snapshot(model)
    with _restored(model, contents, [*contents.direct, *contents.behind]):
        yield


@contextlib.contextmanager
def _restored(model: torch.nn.Module, contents: Snapshot, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Restore the contents of a model, the values of tensors and the random state."""
    written = [t for t in tensors if not t.is_meta]
    copies = [t.detach().clone() for t in written]
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        contents.restore()
        with torch.no_grad():
            for tensor, copy in zip(written, copies, strict=True):
                if tensor.layout is not torch.strided or not torch.equal(tensor, copy):  # sparse: not compared
                    tensor.copy_(copy)


@contextlib.contextmanager
def traceable(model: torch.nn.Module, experts: str | None = TRACEABLE_EXPERTS) -> Iterator[None]:
    """In this context: evaluation mode, caches off, traceable experts, no opaque kernels. Restored afterwards."""
    training = [
        (m, m.training) for m in model.modules() if hasattr(m, "training")
    ]  # frozen scripts have no such attribute
    changed: list[tuple[Any, str, Any]] = []
    fastpath = torch.backends.mha.get_fastpath_enabled()

    def put(config: Any, name: str, value: Any) -> None:
        changed.append((config, name, vars(config)[name]))
        vars(config)[name] = value

    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator per encoder layer
        for module, _ in training:
            module.training = False
        for config in _configs(model):
            if vars(config).get("use_cache"):
                put(config, "use_cache", False)
            if experts is not None and _EXPERTS in vars(config) and vars(config)[_EXPERTS] != "batched_mm":
                put(config, _EXPERTS, experts)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for config, name, value in reversed(changed):
            vars(config)[name] = value
        for module, mode in training:
            module.training = mode
