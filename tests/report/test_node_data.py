"""Files for Model Explorer: the graph, and role, rule and relevance of its nodes."""

import json

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.viz import colours


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.up, self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids):
        h = self.norm(self.embed(ids))
        return self.head((h + self.up(h) * torch.sigmoid(self.gate(h))).mean(1))


@pytest.fixture(scope="module")
def xmodel():
    torch.manual_seed(0)
    return lrp_fx.convert(Gated().double(), rules="attnlrp")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 20, (2, 5))


def read(path):
    return json.loads(path.read_text())


def test_relevance_of_nodes_is_that_of_latents_and_inputs(xmodel, ids):
    report = xmodel.report(ids, target=1)
    relevance = {row.name: row.relevance for row in report.nodes_of()}
    found = xmodel.explain(ids, target=1, at=["up", "head", "norm"])
    nodes = xmodel.current.sweeper(xmodel.ruleset, ("up", "head", "norm")).latents
    for path, latent in found.latents.items():
        assert relevance[nodes[path].name] == pytest.approx(float(latent.sum()), rel=1e-9), path
    assert relevance["embedding"] == pytest.approx(float(found.relevance["ids"].sum()), rel=1e-9)
    assert next(row for row in report.nodes_of() if row.name == "embedding").collects
    assert all(row.relevance is None for row in xmodel.report().nodes_of())


def test_the_files(xmodel, ids, tmp_path):
    paths = xmodel.report(ids, target=1).to_node_data(tmp_path / "explorer")
    assert [path.name for path in paths] == ["graph.json", "role.json", "rule.json", "relevance.json"]
    (graph,) = read(paths[0])
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert nodes["linear"]["namespace"] == "up" and nodes["ids"]["namespace"] == "inputs"
    sources = {edge["sourceNodeId"] for node in graph["nodes"] for edge in node["incomingEdges"]}
    assert sources <= nodes.keys()
    roles, relevance = read(paths[1])["graph"]["results"], read(paths[3])["graph"]["results"]
    assert (
        roles.keys() <= nodes.keys() and roles["mul"]["value"] == "gate" and roles["embedding"]["value"] == "embedding"
    )
    strongest = max(relevance.values(), key=lambda result: abs(result["value"]))
    ends = {1: colours.SCALES["light"][-1], -1: colours.SCALES["light"][0]}
    assert strongest["bgColor"] == colours.hexadecimal(ends[1 if strongest["value"] > 0 else -1])
    categories = set(map(colours.hexadecimal, colours.CATEGORIES))
    assert {result["bgColor"] for result in roles.values()} <= categories
    assert {path.name for path in xmodel.report().to_node_data(tmp_path / "plain")} == {
        "graph.json",
        "role.json",
        "rule.json",
    }
