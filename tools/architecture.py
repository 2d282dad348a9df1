"""The tables of docs/architecture.md: one small model in all stages, and the tables that the stages read.

``python tools/architecture.py`` writes them; ``--check`` tells whether the page is up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

import lrp_fx
from lrp_fx.analysis.patterns import PATTERNS
from lrp_fx.contracts import CONTRACTS
from lrp_fx.explain.target import select
from lrp_fx.operators.table import op_name
from lrp_fx.rules.table import RULES

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


class GatedMLP(nn.Module):
    """A gated multilayer perceptron behind an RMSNorm, with a residual connection: ten operators."""

    def __init__(self, width: int = 4, inner: int = 6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.8, 1.2, width))
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


class Example:
    """The model, its conversion, and one accounting sweep of the first output."""

    def __init__(self) -> None:
        model = GatedMLP().double().eval()
        for index, parameter in enumerate(model.parameters()):  # fixed numbers, independent of the random generator
            steps = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            parameter.data = torch.cos(1.7 * steps + index) / 2 if parameter.dim() > 1 else 0.5 + 0.1 * steps
        self.x = torch.tensor([[1.0, -0.5, 2.0, 0.25]], dtype=torch.float64)
        self.xmodel = lrp_fx.convert(model, self.x)
        specialization, call = self.xmodel.specialization((self.x,), {})
        self.captured, self.facts = specialization.captured, specialization.facts
        self.sweeper = specialization.sweeper(self.xmodel.ruleset, ())
        self.plan = self.sweeper.rewritten.plan
        self.sweep = self.sweeper.account(call.leaves, lambda output: select(output, 0, {}, self.sweeper.reading))
        self.attribution = self.xmodel.explain(self.x, target=0)

    @property
    def nodes(self) -> list[Node]:
        """The operators of the captured graph."""
        return [n for n in self.captured.graph_module.graph.nodes if n.op == "call_function"]


def markdown(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table in Markdown."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *[[str(cell).replace("|", "\\|") for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def code(value: Any) -> str:
    """A code span; "" for an empty text."""
    return f"`{value}`" if value not in (None, "") else ""


def shown(number: float) -> str:
    """Four digits; rounding errors are 0."""
    return "0" if abs(number) < 1e-12 else f"{number:.4g}"


def size(node: Node) -> str:
    """The shape of a node's value; B is the number of samples, which is dynamic."""
    return ", ".join(str(n) if isinstance(n, int) else "B" for n in node.meta["val"].shape)


def capture(example: Example) -> str:
    rows = [(code(n.name), code(op_name(n)), code(", ".join(map(str, n.args))), size(n)) for n in example.nodes]
    return markdown(("node", "operator", "arguments", "size"), rows)


def facts(example: Example) -> str:
    rows = []
    for node in example.nodes:
        carrying = ", ".join(n.name for n in example.facts.operands.get(node, {}).values())
        origin, reduced = example.facts.origin.get(node), example.facts.reduced_from.get(node)
        kind = example.facts.specs[node].kind if node in example.facts.specs else ""
        rows.append(
            (code(node.name), kind, code(carrying), code(origin and origin.name), code(reduced and reduced.name))
        )
    return markdown(("node", "kind", "carries relevance from", "elementwise function of", "statistic of"), rows)


def plan(example: Example) -> str:
    rows = []
    for node in example.nodes:
        decision = example.plan.decisions.get(node)
        if decision is None:
            rows.append((code(node.name), "", "", "held constant: relevance does not go through it", ""))
            continue
        form = decision.form(node, example.facts.specs[node])
        factors = ", ".join(f"{slot.name} {factor:g}" for slot, factor in decision.factors.items())
        rows.append((code(node.name), decision.role, str(decision.rule), f"{form.name}: {form.says}", factors))
    return markdown(("node", "role", "rule", "form", "factors"), rows)


def rewrite(example: Example) -> str:
    rewritten = example.sweeper.rewritten
    originals = set(rewritten.copies.values())
    results = {new: old for old, new in rewritten.results.items()}
    rows = []
    for node in rewritten.graph_module.graph.nodes:
        if node in originals or node.op != "call_function" or node.args[0].op == "get_attr":
            continue
        stands = results.get(node)
        arguments = ", ".join(map(str, node.args))
        rows.append(
            (
                code(op_name(node).rpartition(".")[2] if "lrp" in op_name(node) else op_name(node)),
                code(arguments),
                code(stands and stands.name),
            )
        )
    return markdown(("inserted", "arguments", "its users read it in place of"), rows)


def sweep(example: Example) -> str:
    rows = []
    for node, account in reversed(example.sweep.accounts.items()):
        if account.outputs:
            stays = account.arrived - account.passed
            rows.append((code(node.name), shown(account.arrived), shown(account.passed), shown(stays)))
    return markdown(("node", "arrives", "is handed on", "stays"), rows)


def ledger(example: Example) -> str:
    booked = example.attribution.ledger
    rows = [(e.category, code(e.name), code(e.node), shown(e.amount)) for e in booked.entries]
    return markdown(
        ("category", "name", "node", "amount"),
        [*rows, ("sum", "", "", shown(booked.total)), ("target", "", "", shown(booked.target))],
    )


def rules(_: Example) -> str:
    rows = []
    for entry in RULES:
        form_names = {form.name for form in entry.forms.values()}
        rows.append(
            (
                code(entry.rule),
                ", ".join(entry.roles),
                entry.equation,
                ", ".join(sorted(form_names)),
                ", ".join(entry.books),
                entry.source,
            )
        )
    return markdown(("rule", "roles", "equation", "forms", "books", "source"), rows)


def patterns(_: Example) -> str:
    rows = [(p.name, p.role, "; ".join(p.variants), p.law, p.source) for p in PATTERNS]
    return markdown(("pattern", "role", "ways to write it", "law", "source"), rows)


def contracts(_: Example) -> str:
    rows = []
    for stage, holding in CONTRACTS.items():
        for contract in holding:
            why = " ".join((contract.__doc__ or "").replace("``", "`").replace(":func:", "").split())
            rows.append((stage, contract.__name__.replace("_", " "), why))
    return markdown(("after", "holds", "why"), rows)


TABLES: dict[str, Callable[[Example], str]] = {
    "contracts": contracts,
    "capture": capture, "facts": facts, "plan": plan, "rewrite": rewrite, "sweep": sweep, "ledger": ledger,
    "rules": rules, "patterns": patterns,
}  # fmt: skip


def written(page: str) -> str:
    """The page with up-to-date tables."""
    example = Example()
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m['name']](example)}{m[3]}", page)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/architecture", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page is not up to date")
    asked = parser.parse_args()
    page = PAGE.read_text()
    new = written(page)
    if not asked.check:
        PAGE.write_text(new)
        print(f"{PAGE.name}: {len(BLOCK.findall(page))} tables written")
        return 0
    return int(new != page)


if __name__ == "__main__":
    sys.exit(main())
