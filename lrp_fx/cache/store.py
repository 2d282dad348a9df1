"""Captures in the disk cache: the second process that explains a model needs no capture.

A cache file (:mod:`lrp_fx.cache.folder`) stores the graph as plain data, and the tensors that are neither parameters
nor buffers of the model; its name is the model's fingerprint. Weights are never stored: the graph gets those of the
current model by name. Files are read by ``torch.load(weights_only=True)`` and :mod:`lrp_fx.cache.serialize`, which run
no code. Still, a graph of another author may compute anything, so a folder that others can write to is not used.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export._unlift import _get_codegen
from torch.utils import _pytree as pytree

from lrp_fx.cache.fingerprint import Unkeyable, fingerprint
from lrp_fx.cache.folder import VARIABLE, Entry, folder
from lrp_fx.cache.safe_names import identifier, needs_import, structure
from lrp_fx.cache.serialize import Reader, Writer
from lrp_fx.capture import Captured, capture, prepare, read_call
from lrp_fx.capture.agreement import TOLERANCE, disagreement
from lrp_fx.capture.containers import structures
from lrp_fx.capture.guards import Shapes
from lrp_fx.capture.model_state import ModelState
from lrp_fx.capture.packed import decided_by_lengths
from lrp_fx.capture.signature import Call
from lrp_fx.capture.size_formulas import Unstorable
from lrp_fx.errors import UnsafeFileError
from lrp_fx.graph.lazy_module import lazy_module


def capture_or_load(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    dynamic: bool = True,
    route: str = "auto",
    refusing: Sequence[Captured] = (),
) -> Captured:
    """:func:`lrp_fx.capture.capture`, with the disk cache if ``LRP_FX_CACHE`` names a folder.

    Raises:
        CaptureError: as :func:`lrp_fx.capture.capture`.
    """
    args, kwargs = prepare(model, args, kwargs)
    call = read_call(model, args, kwargs)
    storable = route != "trace" and not structures((args, kwargs))
    place = entry(model, call, "capture", dynamic, route) if storable else None
    if place is not None and (loaded := load(place, model, call, args, kwargs)) is not None:
        return loaded
    named = {} if place is None else _every_tensor(model)  # before the model runs: it may replace some
    captured = capture(model, args, kwargs, dynamic=dynamic, route=route, refusing=refusing)
    if place is None:
        return captured
    store = functools.partial(save, place, named=named, owner=type(model).__name__)
    others = tuple((store(other), example) for other, example in captured.others)
    return dataclasses.replace(store(captured), others=others)


def entry(model: nn.Module, call: Call, *options: Any) -> Entry | None:
    """The cache entry of this call; None without a cache folder, and for a model without a fingerprint."""
    where = folder()
    if where is None:
        return None
    try:
        return Entry(where, fingerprint(model, call, *options))
    except Unkeyable as reason:
        warnings.warn(f"{VARIABLE}: {type(model).__name__} is captured anew each time: {reason}", stacklevel=2)
        return None


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model by name."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def _every_tensor(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers, and tensors in plain attributes: a graph must share these, not copy them."""
    return ModelState(model).tensors | named_tensors(model)


def write_graph(
    graph_module: fx.GraphModule, named: Mapping[str, Tensor], writer: Writer
) -> tuple[Any, dict[str, Tensor]]:
    """The plain form of a graph; its tensors that are not in ``named``, by path.

    Raises:
        Unstorable: if a part of the graph has no plain form.
    """
    by_id = {id(tensor): name for name, tensor in named.items()}
    names: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for node in graph_module.graph.find_nodes(op="get_attr"):
        path = str(node.target)
        value = operator.attrgetter(path)(graph_module)
        if not isinstance(value, Tensor):
            raise Unstorable(f"{path}, a {type(value).__name__}")
        if id(value) in by_id:
            names[path] = by_id[id(value)]
        elif path in named and _one(value, named[path]):
            names[path] = path
        elif type(value) is Tensor and value.layout is torch.strided and value.grad_fn is None:
            tensors[path] = value
        else:
            raise Unstorable(f"{path}, a {type(value).__name__}")
    return {"nodes": writer.graph(graph_module.graph), "names": names}, tensors


def _one(value: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same view of the same memory."""
    same = (value.dtype, value.shape, value.stride()) == (other.dtype, other.shape, other.stride())
    if isinstance(value, FakeTensor) or value.device != other.device:
        return False
    return same and value.data_ptr() == other.data_ptr() and not value.is_meta


def read_graph(
    plain: Any, tensors: Mapping[str, Tensor], named: Mapping[str, Tensor], reader: Reader, name: str = "CapturedModule"
) -> fx.GraphModule:
    """The graph that :func:`write_graph` wrote, with the tensors of the current model."""
    attributes = {path: named[name_in_model] for path, name_in_model in plain["names"].items()} | dict(tensors)
    return lazy_module(attributes, reader.graph(plain["nodes"]), name)


def save(place: Entry, captured: Captured, named: Mapping[str, Tensor], owner: str) -> Captured:
    """Write a capture to the disk cache.

    Args:
        place: the entry.
        captured: the capture.
        named: the model's tensors by name, as they were before the capture.
        owner: the name of the model's class, for a warning.

    Returns:
        The capture with its ``key``; without one if it is a recorded run, or its graph has no plain form.
    """
    if captured.route != "export":
        return captured
    writer = Writer()
    codegen: Any = captured.graph_module.graph._codegen
    try:
        graph, tensors = write_graph(captured.graph_module, named, writer)
        outputs = pytree.treespec_dumps(captured.out_spec)
        if needs_import(outputs):
            raise Unstorable("outputs in a container that names code")
        document = {
            "graph": graph,
            "symbols": writer.symbols(),
            "table": writer.table,
            "arguments": codegen.pytree_info.orig_args,
            "inputs": str(codegen.pytree_info.in_spec),
            "outputs": outputs,
            "names": captured.names,
            **captured.shapes.plain(),
        }
    except (Unstorable, NotImplementedError) as reason:
        warnings.warn(f"{VARIABLE}: {owner} is captured anew each time: {reason}", stacklevel=2)
        return captured
    place.write(document, tensors, captured.shapes.dims)
    return dataclasses.replace(captured, key=place.key)


def load(place: Entry, model: nn.Module, call: Call, args: Any, kwargs: Any) -> Captured | None:
    """A cached capture that serves this call and agrees with the model: a fingerprint cannot cover all code."""
    start = time.perf_counter()
    for file in place.files():
        try:
            captured = _captured(file.document, file.tensors, model, pytree.tree_structure((args, kwargs)))
            decisions = decided_by_lengths(captured.graph_module)
            captured = dataclasses.replace(captured, decisions=decisions)
            fits = captured.names == call.names and captured.serves(call.leaves)
            if fits and disagreement(model, captured.graph_module, args, kwargs) <= tolerance(model):
                file.touch()
                return dataclasses.replace(captured, seconds=time.perf_counter() - start, key=place.key)
        except UnsafeFileError as reason:
            warnings.warn(f"{VARIABLE}: {str(file.path)!r} is not used: {reason}", stacklevel=2)
        except Exception:  # a cache miss, as for a damaged file
            continue
    return None


def tolerance(model: nn.Module) -> float:
    """Tolerance for a cached graph: that of rounding, stricter than for a new capture."""
    coarsest = max((torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()), default=0.0)
    return min(TOLERANCE, max(1e-4, coarsest**0.5))


def _captured(document: Any, tensors: Mapping[str, Tensor], model: nn.Module, in_spec: pytree.TreeSpec) -> Captured:
    if str(in_spec) != document["inputs"]:
        raise ValueError("captured for a call of another structure")
    out_spec = structure(document["outputs"])
    arguments = [identifier(name) for name in document["arguments"]]
    reader = Reader(document["table"], document["symbols"])
    graph_module = read_graph(document["graph"], tensors, _every_tensor(model), reader)
    graph_module.graph._codegen = _get_codegen(in_spec, out_spec, arguments)
    graph_module.recompile()
    shapes = Shapes.from_plain(document)
    return Captured(graph_module, tuple(document["names"]), out_spec, shapes, 0.0)
