"""Packed sequences, the samples of a batch with a step each in as many rows as are that long, without their lengths.

How many rows there are depends on values, which an exported graph would have to fix. While a model is exported, a
packed sequence therefore keeps a row for every sample at every step, and says by its sizes which of them count. That is
the same to whatever treats rows alike, and to recurrent layers; that nothing else reads them is looked at afterwards
(:func:`unlike_rows`), and what lengths have to be is a decision of the capture (:func:`decided_by_lengths`).

Operators mark the places: ``lrp_fx::packed_sizes``, ``packed_rows`` and ``packed_steps`` are where a sequence is packed
and read again, ``packed_whole`` where its longest sample has to be as long as the padding.
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
    """(T,) how many samples have each step."""
    return (lengths > torch.arange(steps, device=lengths.device)[:, None]).sum(1)


def _fits(lengths: Tensor, steps: int) -> Tensor:
    """Whether lengths are those of a packed sequence: descending, none of 0, none longer than the padding."""
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
    """The packed sequences of a model while it is exported."""

    def __init__(self) -> None:
        self._made: list[tuple[Tensor, int, int]] = []

    def of(self, sizes: Any) -> tuple[int, int] | None:
        """(steps, samples) of a packed sequence with these sizes, if it was made here."""
        return next(((steps, samples) for made, steps, samples in self._made if made is sizes), None)

    def pack(self, x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        """(rows, sizes) of a padded sequence."""
        x = x.transpose(0, 1) if batch_first else x
        sizes = SIZES(lengths, x.shape[0])
        self._made.append((sizes, x.shape[0], x.shape[1]))
        return ROWS(x), sizes

    def pad(self, rows: Tensor, sizes: Tensor, batch_first: bool, padding: Any, total: int) -> tuple[Tensor, Tensor]:
        """(padded sequence, lengths) of rows."""
        steps, samples = self.of(sizes) or (0, 0)
        there = present(WHOLE(sizes) if total == steps else sizes, samples, rows.device)
        y = STEPS(rows, steps)
        y = torch.where(there.reshape(steps, samples, *[1] * (y.dim() - 2)), y, padding)
        if total != steps:
            y = torch.cat([y, y.new_full((total - steps, *y.shape[1:]), padding)])
        return y.transpose(0, 1) if batch_first else y, there.sum(0)


def spread(rows: Tensor, sizes: Tensor, samples: int) -> Tensor:
    """Rows of a packed sequence -> (T, B, F); rows that do not count are those of others."""
    first = sizes.cumsum(0) - sizes
    places = first[:, None] + torch.arange(samples, device=sizes.device)
    return rows[places.clamp(max=rows.shape[0] - 1).to(rows.device)]


def gathered(y: Tensor, sizes: Tensor, count: int) -> Tensor:
    """(T, B, H) -> the rows of a packed sequence."""
    there = present(sizes, y.shape[1], y.device).flatten()
    places = torch.arange(there.numel(), device=y.device)
    return y.flatten(0, 1)[torch.where(there, places, there.numel()).sort().values[:count]]


def unlike_rows(graph: fx.Graph) -> Node | None:
    """The first node that does not treat the rows of a packed sequence alike; None where all do."""
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
    """What lengths have to be for an exported graph to be the model's; None where it packs nothing."""
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
    if not decisive:
        return None
    graph.output_node().args = (decisive,)
    graph._codegen = CodeGen()
    graph.eliminate_dead_code()
    decided = fx.GraphModule(graph_module, graph, class_name="Decisions")
    return Decisions(decided, (torch.tensor(True),) * len(decisive))
