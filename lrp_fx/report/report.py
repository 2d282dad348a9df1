"""The report: role, rule and modules of every group of nodes; and the patterns of a node with their conditions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.fx import Graph, Node

from lrp_fx.capture import Captured
from lrp_fx.graph.location import module_path, source_line
from lrp_fx.operators.table import op_name
from lrp_fx.plan import Plan, why
from lrp_fx.report.node_data import write_node_data
from lrp_fx.report.node_rows import NodeRow
from lrp_fx.report.why import Reasons, as_text
from lrp_fx.viz import write_page
from lrp_fx.viz.viewer.structure import StructureNode, structure_page


@dataclass(frozen=True)
class Row:
    """The nodes of one role, rule and operator."""

    role: str
    rule: str
    op: str
    count: int
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A table of node groups.

    Attributes:
        rows: groups, most frequent first.
        ruleset: name of the rule set.
        sources: names of the sources, where relevance of the inputs is collected.
        nodes: number of nodes in the graph.
        dimensions: sizes of every tensor input, symbols for dynamic ones.
        specialised: one line per specialized dimension, with the reason. Another size there is captured anew.
        route: how the model was captured: "export", or "trace" with export's error.
        seconds: duration of the capture.
    """

    rows: tuple[Row, ...]
    ruleset: str
    sources: tuple[str, ...]
    nodes: int
    dimensions: tuple[tuple[int | str, ...], ...]
    specialised: tuple[str, ...]
    route: str
    seconds: float
    _graph: Graph = field(repr=False, compare=False)
    _plan: Plan = field(repr=False, compare=False)
    _relevance: Mapping[str, float] | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the graph: a pickled report has no :meth:`why`."""
        return {**self.__dict__, "_graph": None, "_plan": None}

    def table(self) -> Table:
        """As a rich table."""
        title = f"{self.nodes} nodes, rules {self.ruleset}, relevance collected at {', '.join(self.sources)}"
        table = Table(
            title=title,
            caption="\n".join(
                [
                    f"input sizes {self.dimensions}; {self.route} in {self.seconds:.1f} s",
                    *self.specialised,
                ]
            ),
        )
        for column in ("role", "rule", "operator", "nodes", "modules"):
            table.add_column(column, justify="right" if column == "nodes" else "left")
        for row in self.rows:
            shown = ", ".join(row.modules[:2]) + (f", ... ({len(row.modules)})" if len(row.modules) > 2 else "")
            table.add_row(row.role, row.rule, row.op, str(row.count), shown)
        return table

    def __str__(self) -> str:
        return as_text(self.table())

    __repr__ = __str__

    def print(self) -> None:
        """Print the table to the terminal."""
        Console().print(self.table())

    def nodes_of(self) -> list[NodeRow]:
        """Every node that computes something of relevance, and the inputs they read, in the graph's order."""
        rows = []
        collecting = {source.node for source in self._plan.facts.sources}
        for node in self._graph.nodes:
            decided = _decided(node, self._plan)
            if decided is None and (node.op == "placeholder" or node in collecting):
                decided = ("input" if node.op == "placeholder" else "embedding", "")
            if decided is not None:
                takes = tuple(n.name for n in node.all_input_nodes)
                line = source_line(node) if node.op == "call_function" else ""
                place = (node.name, op_name(node), module_path(node) or "<root>")
                relevance = None if self._relevance is None else self._relevance.get(node.name)
                rows.append(NodeRow(*place, *decided, takes, line, node in collecting, relevance))
        return rows

    def to_html(self, title: str = "Roles and rules") -> str:
        """A self-contained page: the graph with the role and rule of every node, to zoom, walk through and search; and
        tables of all nodes.

        Raises:
            MissingExtraError: if jinja2, networkx, fast-sugiyama or scipy is not installed.
        """
        rows = self.nodes_of()
        nodes: list[StructureNode] = [
            {"name": r.name, "op": r.op, "module": r.module, "role": r.role, "rule": r.rule, "kind": r.kind,
             "source": r.source, "takes": r.takes}
            for r in rows
        ]  # fmt: skip
        caption = f"{len(rows)} of {self.nodes} nodes, rules {self.ruleset}; relevance is collected at"
        return structure_page(nodes, title, f"{caption} {', '.join(self.sources)}.", self.rows, self.specialised)

    def save_html(self, path: str | Path, title: str = "Roles and rules") -> Path:
        """Write :meth:`to_html` to a file, and return its path."""
        return write_page(path, self.to_html(title))

    def to_node_data(self, folder: str | Path) -> list[Path]:
        """Write role, rule and relevance of every node for Model Explorer (github.com/google-ai-edge/model-explorer).

        ``graph.json`` is the captured graph, to be opened as a model; ``role.json``, ``rule.json`` and
        ``relevance.json`` are node data to be loaded on it. Node ids are those of the captured graph, so that node data
        also fits an exported program of the model with the same names. Relevance is there if the report was made for
        inputs: ``xmodel.report(*inputs)``.

        Returns:
            The files.
        """
        return write_node_data(self._graph, self.nodes_of(), self.ruleset, Path(folder))

    def why(self, where: str) -> Reasons:
        """The pattern that nodes match, and for every other pattern the condition that fails.

        Args:
            where: name of a node, path of a module (for all nodes in it and its submodules), or a glob.

        Raises:
            LatentError: for a node or module that the graph does not have.
        """
        return Reasons(tuple(why(self._graph, self._plan, where)))


def make_report(captured: Captured, plan: Plan, relevance: Mapping[str, float] | None = None) -> Report:
    """Group the decisions of a plan by role, rule and operator; ``relevance``: name of a node -> its relevance."""
    counts: Counter[tuple[str, str, str]] = Counter()
    modules: dict[tuple[str, str, str], dict[str, None]] = {}
    for node in captured.graph_module.graph.nodes:
        decided = _decided(node, plan)
        if decided is None:
            continue
        key = (*decided, op_name(node))
        counts[key] += 1
        modules.setdefault(key, {})[module_path(node) or "<root>"] = None
    rows = tuple(Row(*key, count, tuple(modules[key])) for key, count in counts.most_common())
    sources = tuple(f"{s.name} <- {s.input.name}" if s.indices is not None else s.name for s in plan.facts.sources)
    graph = captured.graph_module.graph
    tensors = [n for n, p in zip(captured.names, captured.placeholders, strict=True) if _is_tensor(p)]
    specialised = tuple(captured.shapes.explained(tensors))
    route = f"{captured.route} ({captured.refusal})" if captured.refusal else captured.route
    return Report(
        rows, plan.ruleset.name, sources, len(graph.nodes), captured.shapes.dims, specialised, route,
        captured.seconds, graph, plan, relevance,
    )  # fmt: skip


def _decided(node: Node, plan: Plan) -> tuple[str, str] | None:
    """Role and rule of a node; None where relevance has nothing to do with it."""
    decision = plan.decisions.get(node)
    if decision is not None:
        return decision.role, str(decision.rule)
    if node in plan.stopped:
        return plan.stopped[node], "stop"
    return ("statistic", "constant") if node in plan.differentiable and node in plan.facts.specs else None


def _is_tensor(placeholder: Node) -> bool:
    return isinstance(placeholder.meta.get("val"), Tensor)
