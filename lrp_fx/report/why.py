"""Why nodes have their roles, as tables."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lrp_fx.plan import NodeReason


@dataclass(frozen=True)
class Reasons:
    """Why nodes have their roles.

    Attributes:
        nodes: one reason for each node, in graph order.
    """

    nodes: tuple[NodeReason, ...]

    def tables(self) -> Group:
        """For rich: of each node its location, a table of patterns, and the law of the pattern that decides."""
        return Group(*(part for reason in self.nodes for part in _shown(reason)))

    def __str__(self) -> str:
        return as_text(self.tables())

    __repr__ = __str__

    def print(self) -> None:
        """Print the tables to the terminal."""
        Console().print(self.tables())


def _shown(reason: NodeReason) -> Iterator[Text | Table]:
    what = f"{reason.role}, rule {reason.rule}" if reason.rule else reason.role or "no relevance"
    yield Text(f"{reason.node} ({reason.op}) in {reason.module}: {what}", style="bold")
    if reason.verdicts:
        table = Table("pattern", "matches", "why", box=None, pad_edge=False)
        for verdict in reason.verdicts:
            name = f"{verdict.pattern} ({verdict.variant})" if verdict.matches else verdict.pattern
            matches = "decides" if verdict.decides else "yes" if verdict.matches else "no"
            table.add_row(name, matches, " ".join(verdict.holds) if verdict.matches else f"Not so: {verdict.fails}")
        yield table
    yield Text("\n".join([*filter(None, [reason.remark, reason.law, reason.source]), ""]))


def as_text(shown: Table | Group) -> str:
    """A table of rich as plain text."""
    text = io.StringIO()
    Console(width=140, file=text).print(shown)
    return text.getvalue()
