"""Stage 1, capture: any ``nn.Module`` and example inputs -> a functional ATen graph that shares its parameters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.capture import normalise
from lrp_fx.capture.conventions import traceable
from lrp_fx.capture.precision import widen_islands
from lrp_fx.capture.signature import Call, Shapes, read_call
from lrp_fx.errors import CaptureError

__all__ = ["Call", "Captured", "Shapes", "capture", "failing_node", "read_call"]


@dataclass(frozen=True)
class Captured:
    """A captured model.

    Attributes:
        graph_module: the graph, with the model's own call signature and output type (pytree code generation).
        names: user-facing name of each placeholder, in order (constants included).
        out_spec: pytree structure of the output.
        shapes: the sizes this capture serves.
        seconds: what the capture took.
    """

    graph_module: fx.GraphModule
    names: tuple[str, ...]
    out_spec: pytree.TreeSpec
    shapes: Shapes
    seconds: float

    @property
    def placeholders(self) -> list[Node]:
        """Placeholder nodes, in order."""
        return [node for node in self.graph_module.graph.nodes if node.op == "placeholder"]


def _grown(axes: Callable[[torch.Tensor], tuple[int, ...]]) -> Callable[[Any], Any]:
    """Repeat examples of size one along ``axes`` so that export does not freeze those dimensions."""

    def grow(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        for axis in axes(leaf):
            if leaf.dim() > axis and leaf.shape[axis] == 1:
                leaf = torch.cat([leaf, leaf], dim=axis)
        return leaf

    return grow


def _examples(args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool) -> Iterator[tuple[Any, Any]]:
    """Example inputs to try, the most general first."""
    if dynamic:
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(t.dim() > 1 and t.shape[1] == 1 and not t.is_floating_point() for t in tensors):
            yield pytree.tree_map(_grown(lambda t: (0,) if t.is_floating_point() else (0, 1)), (args, kwargs))
        if any(t.dim() and t.shape[0] == 1 for t in tensors):
            yield pytree.tree_map(_grown(lambda t: (0,)), (args, kwargs))
    yield args, kwargs


def _export(model: torch.nn.Module, args: Any, kwargs: Any, dynamic: bool) -> torch.export.ExportedProgram:
    dims = pytree.tree_map(lambda x: _free_dims(x, dynamic) if isinstance(x, torch.Tensor) else None, (args, kwargs))
    # export takes one specification for *args and one for **kwargs, by parameter name
    names = [n for n in _parameter_names(model, len(args))]
    spec = dict(zip(names, dims[0], strict=False)) | dims[1]
    return torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=spec or None)


def _free_dims(tensor: torch.Tensor, dynamic: bool) -> dict[int, Any]:
    """Batch and sequence dimensions are left free. Of images and video only the batch is: the arithmetic of strided
    convolutions on a symbolic height takes export minutes, and a new size is captured anew in seconds."""
    spatial = tensor.is_floating_point() and tensor.dim() >= 4
    free = torch.export.Dim.AUTO
    return {i: free if dynamic and (i == 0 or not spatial) else torch.export.Dim.STATIC for i in range(tensor.dim())}


def _parameter_names(model: torch.nn.Module, count: int) -> list[str]:
    import inspect

    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if count > len(positional):
        raise CaptureError(
            f"{type(model).__name__}.forward takes *args: pass its {count} inputs by keyword, or wrap it in a module "
            "with named parameters"
        )
    return positional[:count]


def _size(dim: Any) -> int | str:
    return int(str(dim)) if str(dim).isdigit() else str(dim)


def _shapes(program: torch.export.ExportedProgram, placeholders: list[Node]) -> Shapes:
    dims = tuple(
        tuple(_size(d) for d in node.meta["val"].shape)
        for node in placeholders
        if isinstance(node.meta.get("val"), torch.Tensor)
    )
    limits = {}
    for symbol, rng in program.range_constraints.items():
        low, high = max(rng.lower, 0), min(rng.upper, 2**63)  # export's infinities are integers of their own kind
        limits[str(symbol)] = (int(low), int(high))
    return Shapes(dims, limits)


def capture(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool = True) -> Captured:
    """Capture ``model`` as called with ``args`` and ``kwargs``.

    Non-strict pre-dispatch export, with every tensor dimension left free where the model allows it. The model runs in
    evaluation mode with caches off for the duration; parameters and buffers are shared, never copied.

    Raises:
        CaptureError: when export refuses; the message carries export's own reason.
    """
    start = time.perf_counter()
    call = read_call(model, args, kwargs)
    kwargs = dict(sorted(kwargs.items()))
    failure: Exception | None = None
    for example in _examples(args, kwargs, dynamic):
        try:
            with traceable(model), torch.enable_grad():
                program = _export(model, *example, dynamic)
            break
        except CaptureError:
            raise
        except Exception as error:  # export raises many types; each means "not this example"
            failure = failure or error
    else:
        reason = str(failure).strip().splitlines() or [type(failure).__name__]
        raise CaptureError(
            f"torch.export cannot capture {type(model).__name__}: {type(failure).__name__}: {reason[0]}\n"
            "Remedy: call the model once with the same arguments to see that it runs; replace data-dependent Python "
            "control flow by tensor operations, or convert the submodule without it."
        ) from failure
    graph_module = _plain(program)
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    return Captured(
        graph_module,
        call.names,
        program.call_spec.out_spec,
        _shapes(program, placeholders),
        time.perf_counter() - start,
    )


def _plain(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The exported program as a functional GraphModule with the model's parameters as attributes."""
    graph_module = _unlifted(program)
    normalise.inline_regions(graph_module)
    normalise.drop_assertions(graph_module.graph)
    if not normalise.functionalise(graph_module):
        graph_module = _unlifted(program.run_decompositions({}))
        normalise.inline_regions(graph_module)
        normalise.drop_assertions(graph_module.graph)
        normalise.functionalise(graph_module)
        normalise.mend(graph_module.graph)
    normalise.split_moments(graph_module.graph)
    widen_islands(graph_module.graph)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def _unlifted(program: torch.export.ExportedProgram) -> fx.GraphModule:
    module = program.module(check_guards=False)
    plain = fx.GraphModule(module, module.graph, class_name="CapturedModule")
    for name, buffer in module.named_buffers():  # buffers that are not persistent are missed by the copy
        if not hasattr(plain, name.split(".")[0]):
            plain.register_buffer(name, buffer, persistent=False)
    return plain


def failing_node(graph_module: fx.GraphModule, leaves: tuple[Any, ...]) -> Node | None:
    """The first node of a graph that raises on flat inputs, or None."""

    class Probe(fx.Interpreter):
        at: Node | None = None

        def run_node(self, n: Node) -> Any:
            self.at = n
            return super().run_node(n)

    probe = Probe(graph_module)
    probe.extra_traceback = False
    try:
        with torch.no_grad():
            probe.run(*leaves, enable_io_processing=False)
    except Exception:
        return probe.at
    return None
