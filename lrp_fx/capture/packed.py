"""Packed sequences in an exported graph, with dynamic lengths.

The number of rows of a packed sequence is data-dependent, so an export would fix it. During an export a packed sequence
therefore has a row for every sample at every step, and its sizes tell which rows count. Operators that treat rows
alike, and recurrent layers, compute the same. :func:`unlike_rows` checks that there are no other readers;
the conditions on lengths are decisions of the capture (:func:`decided_by_lengths`).

Operators mark the places: ``lrp_fx::packed_sizes``, ``packed_rows`` and ``packed_steps`` where a sequence is packed and
padded again, ``packed_whole`` where the longest sample must be as long as the padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.fx.graph import CodeGen

from lrp_fx.capture.captured import Decisions
from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.steps import present
from lrp_fx.operators.schema import has_tag

aten = torch.ops.aten

_LIBRARY = torch.library.Library("lrp_fx", "FRAGMENT")
for _schema in (
    "packed_sizes(Tensor lengths, SymInt steps) -> Tensor",
    "packed_fits(Tensor lengths, SymInt steps) -> Tensor",
    "packed_whole(Tensor sizes) -> Tensor",
    "packed_rows(Tensor x) -> Tensor",
    "packed_steps(Tensor rows, SymInt steps) -> Tensor",
):
    _LIBRARY.define(_schema)


def _sizes(lengths: Tensor, steps: int) -> Tensor:
    """(T,): the number of samples with each step."""
    return (lengths > torch.arange(steps, device=lengths.device)[:, None]).sum(1)


def _fits(lengths: Tensor, steps: int) -> Tensor:
    """Whether lengths are valid for a packed sequence: descending, positive, at most the padded length."""
    return (lengths[-1] > 0) & (lengths[0] <= steps) & (lengths[:-1] >= lengths[1:]).all()


def _rows(x: Tensor) -> Tensor:
    """(T, B, ...) -> (T B, ...)."""
    return x.flatten(0, 1).clone()


def _steps(rows: Tensor, steps: int) -> Tensor:
    """(T B, ...) -> (T, B, ...)."""
    return rows.reshape(steps, rows.shape[0] // steps, *rows.shape[1:]).clone()


for _name, _function in {
    "packed_sizes": _sizes, "packed_fits": _fits, "packed_whole": torch.clone, "packed_rows": _rows,
    "packed_steps": _steps,
}.items():  # fmt: skip
    _LIBRARY.impl(_name, _function, "CompositeImplicitAutograd")
SIZES, FITS, WHOLE, ROWS, STEPS = (
    getattr(torch.ops.lrp_fx, f"packed_{name}").default for name in ("sizes", "fits", "whole", "rows", "steps")
)


class PackedSequences:
    """The packed sequences of a model during its export."""

    def __init__(self) -> None:
        self._sequences: list[tuple[Tensor, int, int]] = []

    def of(self, sizes: Any) -> tuple[int, int] | None:
        """(steps, samples) of the packed sequence with this tensor of sizes; None if it was not packed here."""
        return next(((steps, samples) for recorded, steps, samples in self._sequences if recorded is sizes), None)

    def pack(self, x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        """(rows, sizes) of a padded sequence."""
        x = x.transpose(0, 1) if batch_first else x
        sizes = SIZES(lengths, x.shape[0])
        self._sequences.append((sizes, x.shape[0], x.shape[1]))
        return ROWS(x), sizes

    def pad(self, rows: Tensor, sizes: Tensor, batch_first: bool, padding: Any, total: int) -> tuple[Tensor, Tensor]:
        """(padded sequence, lengths) of rows."""
        steps, samples = self.of(sizes) or (0, 0)
        valid = present(WHOLE(sizes) if total == steps else sizes, samples, rows.device)
        y = STEPS(rows, steps)
        y = torch.where(valid.reshape(steps, samples, *[1] * (y.dim() - 2)), y, padding)
        if total != steps:
            y = torch.cat([y, y.new_full((total - steps, *y.shape[1:]), padding)])
        return y.transpose(0, 1) if batch_first else y, valid.sum(0)


def spread(rows: Tensor, sizes: Tensor, samples: int) -> Tensor:
    """Rows of a packed sequence -> (T, B, F); rows beyond a sample's length have arbitrary values."""
    first = sizes.cumsum(0) - sizes
    places = first[:, None] + torch.arange(samples, device=sizes.device)
    return rows[places.clamp(max=rows.shape[0] - 1).to(rows.device)]


def gathered(y: Tensor, sizes: Tensor, count: int) -> Tensor:
    """(T, B, H) -> the rows of a packed sequence."""
    valid = present(sizes, y.shape[1], y.device).flatten()
    places = torch.arange(valid.numel(), device=y.device)
    return y.flatten(0, 1)[torch.where(valid, places, valid.numel()).sort().values[:count]]


def unlike_rows(graph: fx.Graph) -> Node | None:
    """The first node that does not treat the rows of a packed sequence alike; None if all do."""
    rows = set()
    for node in graph.nodes:
        if node.target is ROWS:
            rows.add(node)
        elif node.target is not STEPS and any(n in rows for n in node.all_input_nodes):
            if not _treats_rows_alike(node, rows):
                return node
            rows.add(node)
    return None


def _treats_rows_alike(node: Node, rows: set[Node]) -> bool:
    value = node.meta.get("val")
    if node.target is aten.linear.default:
        return node.args[0] in rows and not any(n in rows for n in node.all_input_nodes if n is not node.args[0])
    if node.target is aten.cat.default:
        return all(n in rows for n in node.args[0]) and node.args[1:] in ((-1,), (1,))  # type: ignore[union-attr]
    if node.target is aten.embedding.default:
        return node.args[1] in rows and node.args[0] not in rows
    alone = has_tag(node, torch.Tag.pointwise) or node.target in (aten.dropout.default, aten.clone.default)
    others = [n.meta.get("val") for n in node.all_input_nodes if n not in rows]
    constant = all(isinstance(v, Tensor) and isinstance(value, Tensor) and v.dim() < value.dim() for v in others)
    return alone and constant


def decided_by_lengths(graph_module: fx.GraphModule) -> Decisions | None:
    """The conditions on lengths under which the model runs this graph; None if it packs nothing."""
    if not any(node.target in (SIZES, WHOLE) for node in graph_module.graph.nodes):
        return None
    graph, _ = copy_graph(graph_module.graph)
    decisive: list[Node] = []
    for node in list(graph.nodes):
        if node.target not in (SIZES, WHOLE):
            continue
        with graph.inserting_after(node):
            if node.target is SIZES:
                decisive.append(graph.call_function(FITS, node.args))
            else:
                last = graph.call_function(aten.select.int, (node.args[0], 0, -1))
        if node.target is WHOLE:
            with graph.inserting_after(last):
                decisive.append(graph.call_function(aten.gt.Scalar, (last, 0)))
    graph.output_node().args = (decisive,)
    graph._codegen = CodeGen()
    graph.eliminate_dead_code()
    decided = fx.GraphModule(graph_module, graph, class_name="Decisions")
    return Decisions(decided, (torch.tensor(True),) * len(decisive))
