"""The report: what every node group is, which rule it got, and where it is."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.fx import Node

from lrp_fx.capture import Captured
from lrp_fx.graph.location import module_path
from lrp_fx.operators.table import op_name
from lrp_fx.plan import Plan


@dataclass(frozen=True)
class Row:
    """Nodes of one role, rule and operator."""

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
        sources: where relevance of the inputs is collected.
        nodes: number of nodes in the graph.
        unknown: nodes that relevance reaches without a declaration (always 0: they are an error at conversion).
        dimensions: sizes of every tensor input, a symbol where free.
        specialised: one line per input dimension that is fixed: which, and why. A new size is captured anew.
        route: how the model was captured: "export", or "trace" with why export refused.
        seconds: what the capture took.
    """

    rows: tuple[Row, ...]
    ruleset: str
    sources: tuple[str, ...]
    nodes: int
    unknown: int
    dimensions: tuple[tuple[int | str, ...], ...]
    specialised: tuple[str, ...]
    route: str
    seconds: float

    def table(self) -> Table:
        """As a rich table."""
        title = f"{self.nodes} nodes, rules {self.ruleset}, relevance collected at {', '.join(self.sources)}"
        table = Table(
            title=title,
            caption="\n".join(
                [
                    f"{self.unknown} unknown; input sizes {self.dimensions}; {self.route} in {self.seconds:.1f} s",
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
        text = io.StringIO()
        Console(width=140, file=text).print(self.table())
        return text.getvalue()

    def print(self) -> None:
        """Print the table to the terminal."""
        Console().print(self.table())


def make_report(captured: Captured, plan: Plan) -> Report:
    """Group the decisions of a plan by role, rule and operator."""
    counts: Counter[tuple[str, str, str]] = Counter()
    modules: dict[tuple[str, str, str], dict[str, None]] = {}
    for node in captured.graph_module.graph.nodes:
        decision = plan.decisions.get(node)
        if decision is not None:
            key = (decision.role, str(decision.rule), op_name(node))
        elif node in plan.stopped:
            key = (plan.stopped[node], "stop", op_name(node))
        elif node in plan.differentiable and node in plan.facts.specs:
            key = ("statistic", "constant", op_name(node))
        else:
            continue
        counts[key] += 1
        modules.setdefault(key, {})[module_path(node) or "<root>"] = None
    rows = tuple(Row(*key, count, tuple(modules[key])) for key, count in counts.most_common())
    sources = tuple(f"{s.name} <- {s.input.name}" if s.indices is not None else s.name for s in plan.facts.sources)
    nodes = len(captured.graph_module.graph.nodes)
    tensors = [n for n, p in zip(captured.names, captured.placeholders, strict=True) if _is_tensor(p)]
    specialised = tuple(captured.shapes.explained(tensors))
    route = f"{captured.route} ({captured.refusal})" if captured.refusal else captured.route
    return Report(
        rows, plan.ruleset.name, sources, nodes, 0, captured.shapes.dims, specialised, route, captured.seconds
    )


def _is_tensor(placeholder: Node) -> bool:
    return isinstance(placeholder.meta.get("val"), Tensor)
