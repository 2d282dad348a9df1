"""The page of a model's graph: every node and edge, layers from top to bottom, tables, nothing but itself."""

import json
import re

import pytest
import torch
from torch import nn

import lrp_fx


class Block(nn.Module):
    """Two branches and a skip connection."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(x + self.left(x).relu() * torch.sigmoid(self.right(x)))


@pytest.fixture(scope="module")
def report():
    xmodel = lrp_fx.convert(Block(), rules="attnlrp")
    xmodel.explain(torch.ones(1, 4))
    return xmodel.report()


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    return report.save_html(tmp_path_factory.mktemp("report") / "graph.html", "A block </script>").read_text()


def data_of(page):
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def test_every_node_is_drawn_below_what_it_takes(report, page):
    drawn = data_of(page)
    nodes, rows = drawn["nodes"], report.nodes_of()
    assert [(n["name"], n["role"], n["rule"]) for n in nodes] == [(r.name, r.role, r.rule) for r in rows]
    assert all(nodes[a]["x"] < nodes[b]["x"] for a, b, _ in drawn["edges"])
    assert len({(n["x"], n["y"]) for n in nodes}) == len(nodes)
    names = {r.name for r in rows}
    assert {(nodes[a]["name"], nodes[b]["name"]) for a, b, _ in drawn["edges"]} == {
        (taken, r.name) for r in rows for taken in r.takes if taken in names
    }
    skip = next(way for a, b, way in drawn["edges"] if nodes[b]["x"] - nodes[a]["x"] > 1)
    assert len(skip) > 2 and not {tuple(p) for p in skip[1:-1]} & {(n["x"], n["y"]) for n in nodes}  # around boxes


def test_kinds_say_where_relevance_goes(report, page):
    kinds = {n["name"]: n["kind"] for n in data_of(page)["nodes"]}
    assert kinds["x"] == "source" and kinds["linear"] == "rule"
    assert "test_structure.py" in next(n["source"] for n in data_of(page)["nodes"] if n["name"] == "mul")


def test_tables_have_every_node_and_the_page_asks_for_nothing(report, page):
    assert page.count('data-node="') == len(report.nodes_of())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    assert page.count("</script>") == 2 and not re.search(r'(src|href)="(?!data:)|@import|url\(', page)
    assert "A block &lt;/script&gt;" in page


def test_long_edges_are_one_curve():
    deep = nn.Sequential(*[nn.Linear(2, 2) for _ in range(40)])

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.deep = deep

        def forward(self, x):
            return x + self.deep(x)

    xmodel = lrp_fx.convert(Skip())
    xmodel.explain(torch.ones(1, 2))
    assert {len(way) for *_, way in data_of(xmodel.report().to_html())["edges"]} == {2}
