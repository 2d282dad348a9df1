"""Relevance graphs on disk, beside the captures that they were lowered from (:mod:`lrp_fx.cache.store`).

A cache file stores the graph before constant folding, its shape guards, and the tensors that are not parameters or
buffers of the model; those come by name from the captured graph in memory. The key contains everything that lowering
depends on: the capture's key, the rewritten graph as text (with the effect of the rule set), the kind of target, the
condition, the dynamic dimensions, PyTorch's switches. Callable targets and registered rules are code: their graphs are
not cached.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lrp_fx.cache.fingerprint import Unkeyable, contents, environment
from lrp_fx.cache.folder import VARIABLE, CacheFile, Entry, digest, folder
from lrp_fx.cache.serialize import Reader, Writer
from lrp_fx.cache.store import named_tensors, read_graph, write_graph
from lrp_fx.capture.size_formulas import Unstorable
from lrp_fx.errors import UnsafeFileError
from lrp_fx.explain import Sweeper
from lrp_fx.explain.conditions import Condition
from lrp_fx.lowering.dynamic_shapes import Fakes, ShapeGuards
from lrp_fx.lowering.targets.spec import TargetSpec


@dataclass(frozen=True)
class CachedGraph:
    """A graph read from the cache.

    Attributes:
        graph_module: the graph before constant folding, with the tensors of the capture in memory.
        guards: its shape guards.
        file: its file.
    """

    graph_module: fx.GraphModule
    guards: ShapeGuards
    file: CacheFile


def entry_of(
    sweeper: Sweeper, spec: TargetSpec, fakes: Fakes, condition: Condition, outputs: bool, dynamic: bool
) -> Entry | None:
    """The cache entry of a tapped graph; None without a cache folder, and for a graph that has no key."""
    captured, plan, where = sweeper.captured, sweeper.rewritten.plan, folder()
    registered = any(decision.rule.custom for decision in plan.decisions.values())
    if where is None or captured.key is None or registered or spec.kind == "callable":
        return None
    try:
        conditions = [(path, _described(features)) for path, features in condition.items()]
    except Unkeyable:
        return None
    graph = (
        captured.shapes.dims,
        captured.shapes.limits,
        captured.shapes.guards,
        _text(sweeper.tapped.graph),
        plan.sources,
        sweeper.latents,
    )
    rules = (plan.ruleset.key, plan.feeds_zeros, sorted(plan.facts.ops.specs.items()))
    described = (spec.kind, spec.names, _pattern(fakes), conditions, outputs, dynamic)
    devices = sorted({_device(leaf.device) for leaf in fakes.leaves if isinstance(leaf, Tensor)})
    return Entry(where, digest("lowered", captured.key, graph, rules, described, devices, environment()))


def _described(features: int | Sequence[int] | Tensor) -> Any:
    if isinstance(features, Tensor):
        return (str(features.dtype), tuple(features.shape), contents(features))
    return torch.as_tensor(features).tolist()


def _text(graph: fx.Graph) -> list[Any]:
    """Every node with its arguments, as text."""
    return [(n.op, n.name, getattr(n.target, "__qualname__", str(n.target)), n.args, n.kwargs) for n in graph.nodes]


def _pattern(fakes: Fakes) -> list[Any]:
    """Sizes of the inputs, with numbered symbols for dynamic ones."""
    free: dict[str, str] = {}
    sizes = [leaf.shape for leaf in fakes.leaves if isinstance(leaf, Tensor)]
    return [[n if isinstance(n, int) else free.setdefault(str(n), f"free {len(free)}") for n in s] for s in sizes]


def _device(device: torch.device) -> str:
    """A device with its compute capability, by which kernels (above all of attention) are chosen."""
    return f"{device} {torch.cuda.get_device_capability(device)}" if device.type == "cuda" else str(device)


def write(entry: Entry, graph_module: fx.GraphModule, guards: ShapeGuards, sweeper: Sweeper) -> None:
    """Write a graph before constant folding: buffers may have other values in the next process."""
    writer = Writer()
    try:
        graph, tensors = write_graph(graph_module, _named(sweeper.captured.graph_module), writer)
        document = {"graph": graph, "symbols": writer.symbols(), "table": writer.table, **guards.plain()}
    except Unstorable as reason:
        warnings.warn(f"{VARIABLE}: this graph is lowered anew each time: {reason}", stacklevel=2)
        return
    entry.write(document, tensors, (guards.shapes.dims, [str(g) for g in guards.relations]))


def _named(captured: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors of a capture by name. Of tied ones, the name that the graph reads is the last: one that is read from
    the disk has no other."""
    read = {str(node.target) for node in captured.graph.find_nodes(op="get_attr")}
    named = named_tensors(captured)
    return {name: named[name] for name in sorted(named, key=read.__contains__)}


def cached(entry: Entry, sweeper: Sweeper) -> Iterator[CachedGraph]:
    """Every graph of a cache entry; damaged files are skipped."""
    for file in entry.files():
        try:
            yield _read(file, sweeper)
        except UnsafeFileError as reason:
            warnings.warn(f"{VARIABLE}: {str(file.path)!r} is not used: {reason}", stacklevel=2)
        except Exception:  # a damaged file fails in one of many ways: a cache miss
            continue


def _read(file: CacheFile, sweeper: Sweeper) -> CachedGraph:
    document = file.document
    reader = Reader(document["table"], document["symbols"])
    graph_module = read_graph(
        document["graph"], file.tensors, named_tensors(sweeper.captured.graph_module), reader, "RelevanceGraph"
    )
    return CachedGraph(graph_module, ShapeGuards.from_plain(document, reader.symbols, sweeper.captured.shapes), file)
