"""Relevance graphs kept on disk, beside the captures that they were lowered from (:mod:`lrp_fx.cache.store`).

A file holds the graph before anything in it was computed, the sizes it serves, and the tensors that the captured graph
does not have; weights are those of the captured graph at hand, by name. What it is kept under is all that lowering
depends on: the capture's own key, the rewritten graph as text (which is what the rule set made of it), the form of the
target, the condition, which sizes stay free, PyTorch's switches. Targets that are functions, and rules of a user's own,
are code: their graphs are not kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lrp_fx.cache.fingerprint import Unkeyable, contents, environment
from lrp_fx.cache.folder import VARIABLE, Entry, Kept, digest, folder
from lrp_fx.cache.serialize import Reader, Writer
from lrp_fx.cache.store import named_tensors, read_graph, write_graph
from lrp_fx.capture.formulas import Unstorable
from lrp_fx.errors import UnsafeFileError
from lrp_fx.explain import Sweeper
from lrp_fx.explain.conditions import Condition
from lrp_fx.lowering.dynamic_shapes import Fakes, Served
from lrp_fx.lowering.targets.spec import Form


@dataclass(frozen=True)
class Held:
    """A graph that was read.

    Attributes:
        graph_module: as it was written, with the tensors of the capture at hand; nothing in it is computed yet.
        served: the sizes it serves.
        file: where it is from.
    """

    graph_module: fx.GraphModule
    served: Served
    file: Kept


def place(
    sweeper: Sweeper, form: Form, fakes: Fakes, condition: Condition, outputs: bool, dynamic: bool
) -> Entry | None:
    """Where the graph of a tapped graph is kept; None without a folder, and for what has no plain form."""
    captured, plan, where = sweeper.captured, sweeper.rewritten.plan, folder()
    own = any(decision.rule.own for decision in plan.decisions.values())
    if where is None or captured.key is None or own or form.kind == "callable":
        return None
    try:
        conditions = [(path, _described(wanted)) for path, wanted in condition.items()]
    except Unkeyable:
        return None
    held = (
        captured.shapes.dims,
        captured.shapes.limits,
        captured.shapes.guards,
        _text(sweeper.tapped.graph),
        plan.sources,
        sweeper.latents,
    )
    rules = (plan.ruleset.key, plan.blind, sorted(plan.facts.ops.specs.items()))
    asked = (form.kind, form.names, _pattern(fakes), conditions, outputs, dynamic)
    devices = sorted({_device(leaf.device) for leaf in fakes.leaves if isinstance(leaf, Tensor)})
    return Entry(where, digest("lowered", captured.key, held, rules, asked, devices, environment()))


def _described(wanted: int | Sequence[int] | Tensor) -> Any:
    if isinstance(wanted, Tensor):
        return (str(wanted.dtype), tuple(wanted.shape), contents(wanted))
    return torch.as_tensor(wanted).tolist()


def _text(graph: fx.Graph) -> list[Any]:
    """Every node with its arguments; nodes are their names."""
    return [(n.op, n.name, getattr(n.target, "__qualname__", str(n.target)), n.args, n.kwargs) for n in graph.nodes]


def _pattern(fakes: Fakes) -> list[Any]:
    """Sizes of the inputs, those that are free numbered."""
    free: dict[str, str] = {}
    sizes = [leaf.shape for leaf in fakes.leaves if isinstance(leaf, Tensor)]
    return [[n if isinstance(n, int) else free.setdefault(str(n), f"free {len(free)}") for n in s] for s in sizes]


def _device(device: torch.device) -> str:
    """A device and what it can do: kernels, attention's above all, are chosen by it."""
    return f"{device} {torch.cuda.get_device_capability(device)}" if device.type == "cuda" else str(device)


def keep(where: Entry, graph_module: fx.GraphModule, served: Served, sweeper: Sweeper) -> None:
    """Write a graph in which nothing is computed yet: what buffers say may be another thing in the next process."""
    writer = Writer()
    try:
        graph, tensors = write_graph(graph_module, named_tensors(sweeper.captured.graph_module), writer)
        document = {"graph": graph, "symbols": writer.symbols(), "table": writer.table, **served.plain()}
    except Unstorable as reason:
        warnings.warn(f"{VARIABLE}: this graph is lowered anew each time: {reason}", stacklevel=2)
        return
    where.write(document, tensors, (served.shapes.dims, [str(g) for g in served.guards]))


def held(where: Entry, sweeper: Sweeper) -> Iterator[Held]:
    """Every graph that is kept in a place; what is damaged is passed over."""
    for file in where.files():
        try:
            yield _read(file, sweeper)
        except UnsafeFileError as reason:
            warnings.warn(f"{VARIABLE}: {str(file.path)!r} is not used: {reason}", stacklevel=2)
        except Exception:  # as for a file that cannot be read
            continue


def _read(file: Kept, sweeper: Sweeper) -> Held:
    document = file.document
    reader = Reader(document["table"], document["symbols"])
    graph_module = read_graph(
        document["graph"], file.tensors, named_tensors(sweeper.captured.graph_module), reader, "RelevanceGraph"
    )
    return Held(graph_module, Served.from_plain(document, reader.symbols, sweeper.captured.shapes), file)
