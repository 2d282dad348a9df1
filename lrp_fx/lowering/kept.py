"""Relevance graphs kept on disk, beside the captures that they were lowered from (:mod:`lrp_fx.capture.store`).

A file holds the graph before anything in it was computed, the sizes it serves, and the tensors that the captured graph
does not have; weights are those of the captured graph at hand, by name. What it is kept under is all that lowering
depends on: the capture's own key, the rewritten graph as text (which is what the rule set made of it), the form of the
target, the condition, which sizes stay free, PyTorch's switches. Targets that are functions, and rules of a user's own,
are code: their graphs are not kept.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from lrp_fx.capture import Call, Shapes
from lrp_fx.capture.agreement import difference
from lrp_fx.capture.fingerprint import Unkeyable, contents, environment
from lrp_fx.capture.folder import VARIABLE, Entry, Kept, digest, folder
from lrp_fx.capture.formulas import Unstorable, formula, formula_from
from lrp_fx.capture.serial import Reader, Writer
from lrp_fx.capture.store import named_tensors, read_graph, write_graph
from lrp_fx.explain import Attribution, Sweeper
from lrp_fx.explain.conditions import Condition
from lrp_fx.explain.target import padding_masks
from lrp_fx.lowering.forms import Form
from lrp_fx.lowering.sizes import Fakes, Served

_ENOUGH = 16  #: of a dimension that is free, to see whether a graph does what it should


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
        document = {
            "graph": graph,
            "symbols": writer.symbols(),
            "table": writer.table,
            "dims": served.shapes.dims,
            "limits": served.shapes.limits,
            "guards": [formula(g) for g in served.guards],
            "indexed": [formula(size) for size in served.indexed],
        }
    except Unstorable as reason:
        warnings.warn(f"{VARIABLE}: this graph is lowered anew each time: {reason}", stacklevel=2)
        return
    where.write(document, tensors, (served.shapes.dims, [str(g) for g in served.guards]))


def held(where: Entry, sweeper: Sweeper) -> Iterator[Held]:
    """Every graph that is kept in a place; what is damaged is passed over."""
    for file in where.files():
        try:
            yield _read(file, sweeper)
        except Exception:  # as for a file that cannot be read
            continue


def _read(file: Kept, sweeper: Sweeper) -> Held:
    document = file.document
    reader = Reader(document["table"], document["symbols"])
    graph_module = read_graph(
        document["graph"], file.tensors, named_tensors(sweeper.captured.graph_module), reader, "RelevanceGraph"
    )
    known = sweeper.captured.shapes
    limits = {symbol: (low, high) for symbol, (low, high) in document["limits"].items()}
    shapes = Shapes(
        tuple(tuple(d) for d in document["dims"]),
        limits,
        known.reasons,
        inputs=known.inputs,
    )
    guards, indexed = (tuple(formula_from(f, reader.symbols) for f in document[k]) for k in ("guards", "indexed"))
    return Held(graph_module, Served(shapes, guards, indexed, sweeper.captured.shapes), file)


Explain = Callable[[Call], Attribution]


def agrees(found: Explain, expected: Explain, calls: Sequence[Call], most: float, outputs: bool) -> bool:
    """Whether two ways to explain differ by ``most`` or less, on the first of these calls that both can explain.

    What can be explained on none of them does not agree, but for tensors without values.

    Args:
        outputs: compare the model's outputs, too.
    """
    if any(tensor.is_meta for call in calls for tensor in call.tensors.values()):
        return True
    for call in calls:
        with contextlib.suppress(Exception):  # a target that is not among fewer positions, a graph of other operators
            return difference(_tensors(expected(call), outputs), _tensors(found(call), outputs)) <= most
    return False


def _tensors(explained: Attribution, outputs: bool) -> list[Tensor]:
    """All that an explanation consists of."""
    kept = [explained.target, explained.relevance, explained.latents, explained.output if outputs else None]
    return [t for t in pytree.tree_leaves(kept) if isinstance(t, Tensor) and t.is_floating_point()]


def examples(call: Call, served: Served) -> list[Call]:
    """Calls to compare explanations on: few samples and positions of this one, then all of it.

    Where only sizes are known, floating inputs are random, and no position is padding.
    """
    dims = served.shapes.dims
    few = {str(d) for sizes in dims for d in sizes if isinstance(d, str) and d.isidentifier()}
    masks, feed, leaves, part = padding_masks(call.tensors), iter(dims), [], []
    for name, leaf in zip(call.names, call.leaves, strict=True):
        if isinstance(leaf, Tensor):
            leaf = _with_values(leaf, name in masks)
            corner = [slice(_ENOUGH if str(d) in few else None) for d in next(feed)]
            part.append(leaf[tuple(corner)])
        else:
            part.append(leaf)
        leaves.append(leaf)
    calls = [Call(call.names, tuple(found), call.key) for found in (part, leaves)]
    return [c for c in calls if served.mismatch(list(c.tensors.values())) is None]


def _with_values(tensor: Tensor, mask: bool) -> Tensor:
    """The tensor; where it is one value expanded, one that relevance can be seen on."""
    if tensor.is_meta or tensor.numel() < 2 or any(tensor.stride()):
        return tensor
    if tensor.is_floating_point() and not mask:
        drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
        return drawn.to(tensor)
    return torch.ones_like(tensor) if mask else tensor
