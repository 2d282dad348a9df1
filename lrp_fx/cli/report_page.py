"""`lrp-fx report --html`: a page of every node of the graph, by module, with its role and rule."""

from __future__ import annotations

from pathlib import Path

from lrp_fx.report import Report
from lrp_fx.viz.pages import template, write_page


def report_page(report: Report, path: str | Path, model: str) -> Path:
    """Write the page, and return its path.

    Raises:
        MissingExtraError: if jinja2 is not installed.
    """
    modules: dict[str, list[dict[str, str]]] = {}
    for node in report.nodes_of():
        modules.setdefault(node.module, []).append(vars(node))
    page = template("report.html.jinja", "lrp_fx.cli").render(
        title=f"{model} under the rules {report.ruleset}", report=report, modules=modules
    )
    return write_page(path, page)
