"""One node of a report."""

from __future__ import annotations

from dataclasses import dataclass

_KINDS = {"stop": "stop", "constant": "constant", "": "constant"}  #: rule -> kind of a node, for a drawing


@dataclass(frozen=True)
class NodeRow:
    """One node of the graph.

    Attributes:
        name: its name.
        op: its operator.
        module: path of its module.
        role: its role.
        rule: its rule; "stop" or "constant" where relevance ends.
        takes: names of its operands.
        source: the line of the model's code, ``file:line: code``.
        collects: whether relevance of an input is collected here.
        relevance: relevance that arrives here, or is collected here, summed; None where none does, and in a report
            without inputs.
    """

    name: str
    op: str
    module: str
    role: str
    rule: str
    takes: tuple[str, ...]
    source: str = ""
    collects: bool = False
    relevance: float | None = None

    @property
    def kind(self) -> str:
        """ "source", "rule", "stop" or "constant", for a drawing."""
        if self.collects:
            return "source"
        return _KINDS.get(self.rule, "rule")
