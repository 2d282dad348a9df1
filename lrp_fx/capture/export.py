"""The first route: ``torch.export``, non-strict and pre-dispatch, with every input dimension left free that can be."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.utils import _pytree as pytree

from lrp_fx.capture import normalise
from lrp_fx.capture.calls import noting_calls
from lrp_fx.capture.containers import listed
from lrp_fx.capture.conventions import traceable
from lrp_fx.capture.functional import functionalise
from lrp_fx.capture.paths import module_of
from lrp_fx.capture.recurrent import written_out
from lrp_fx.capture.signature import Shapes
from lrp_fx.errors import CaptureError


def export(model: torch.nn.Module, args: Any, kwargs: Any, dynamic: bool) -> torch.export.ExportedProgram:
    """Export a model, trying the most general form of its example inputs first.

    Raises:
        Exception: what export said of the most general form.
    """
    failure: Exception | None = None
    for example in _examples(args, kwargs, dynamic):
        try:
            with traceable(model), torch.enable_grad(), written_out(model), noting_calls(model):
                program = _export(model, *example, dynamic)
            if _serves(program, args, kwargs):  # a grown example may have been fixed at the size it was grown to
                return program
        except CaptureError:
            raise
        except Exception as error:  # export raises many types; each means "not this example"
            failure = failure or error
    assert failure is not None
    if _in_control_flow(
        failure
    ):  # the strict mode knows more of it; flexible attention has no gradient on every device
        with traceable(model), torch.no_grad():
            return _export(model, args, kwargs, dynamic, strict=True)
    raise failure


def _serves(program: torch.export.ExportedProgram, args: Any, kwargs: Any) -> bool:
    names = set(program.graph_signature.user_inputs)
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    return shapes_of(program, placeholders).mismatch(tensors) is None


def _in_control_flow(error: BaseException) -> bool:
    """Whether an error arose in an operator of higher order."""
    files = {frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)}
    return any("_higher_order_ops" in file or "flex_attention" in file for file in files)


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


def _export(
    model: torch.nn.Module, args: Any, kwargs: Any, dynamic: bool, strict: bool = False
) -> torch.export.ExportedProgram:
    dims = listed(
        pytree.tree_map(lambda x: _free_dims(x, dynamic) if isinstance(x, torch.Tensor) else None, (args, kwargs))
    )
    # export takes one specification for *args and one for **kwargs, by parameter name
    names = [n for n in _parameter_names(model, len(args))]
    spec = dict(zip(names, dims[0], strict=False)) | dims[1]
    # where it fails, export prints all of the graph it had; after each of its passes it would write the graph as Python
    with contextlib.redirect_stderr(io.StringIO()), _use_lazy_graph_module(True):
        return torch.export.export(model, args, kwargs, strict=strict, dynamic_shapes=spec or None)


def _free_dims(tensor: torch.Tensor, dynamic: bool) -> dict[int, Any]:
    """Batch and sequence dimensions are left free. Of images and video only the batch is: the arithmetic of strided
    convolutions on a symbolic height takes export minutes, and a new size is captured anew in seconds."""
    spatial = tensor.is_floating_point() and tensor.dim() >= 4
    free = torch.export.Dim.AUTO
    return {i: free if dynamic and (i == 0 or not spatial) else torch.export.Dim.STATIC for i in range(tensor.dim())}


def _parameter_names(model: torch.nn.Module, count: int) -> list[str]:
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


def shapes_of(program: torch.export.ExportedProgram, placeholders: list[Node]) -> Shapes:
    """The sizes that an exported program serves, and why some of them are fixed."""
    dims = tuple(
        tuple(_size(d) for d in node.meta["val"].shape)
        for node in placeholders
        if isinstance(node.meta.get("val"), torch.Tensor)
    )
    limits = {}
    for symbol, rng in program.range_constraints.items():
        low, high = max(rng.lower, 0), min(rng.upper, 2**63)  # export's infinities are integers of their own kind
        limits[str(symbol)] = (int(low), int(high))
    return Shapes(dims, limits, _reasons(placeholders))


def _reasons(placeholders: list[Node]) -> dict[tuple[str, int], str]:
    """(input, axis) -> the line of the model that fixed the size, as export noted it."""
    values = [node.meta.get("val") for node in placeholders]
    mode: Any = next((v.fake_mode for v in values if isinstance(v, FakeTensor)), None)
    if mode is None or mode.shape_env is None:
        return {}
    environment, found = mode.shape_env, {}
    for symbol, place in environment.replacements_slocs.items():
        for source in environment.var_to_sources.get(symbol, ()):
            name = source.name if isinstance(source.name, str) else source.name()
            if match := re.fullmatch(r"L\['(\w+)'\](.*)\.size\(\)\[(\d+)\]", name):
                found[match[1] + match[2], int(match[3])] = f"the model computes with it at {str(place).strip('()')}"
    return found


def plain(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The exported program as a functional GraphModule with the model's parameters as attributes."""
    graph_module = _unlifted(program)
    normalise.inline_regions(graph_module)
    normalise.drop_assertions(graph_module.graph)
    normalise.drop_inert(graph_module.graph)
    if not functionalise(graph_module):
        graph_module = _unlifted(program.run_decompositions({}))
        normalise.inline_regions(graph_module)
        normalise.drop_assertions(graph_module.graph)
        functionalise(graph_module)
        normalise.mend(graph_module.graph)
    return graph_module


def _unlifted(program: torch.export.ExportedProgram) -> fx.GraphModule:
    module = module_of(program)
    plain = fx.GraphModule(module, module.graph, class_name="CapturedModule")
    for name, buffer in module.named_buffers():  # buffers that are not persistent are missed by the copy
        if not hasattr(plain, name.split(".")[0]):
            plain.register_buffer(name, buffer, persistent=False)
    return plain
