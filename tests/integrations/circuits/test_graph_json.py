"""Circuits as circuit-tracer's and Neuronpedia's viewers read them."""

import json
from collections import Counter

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx import concepts
from lrp_fx.errors import InputError

TOKENS = ["The", " cat", " in", " the", " hat"]

#: what Neuronpedia's schema asks of each part, and of which types
REQUIRED = {
    "metadata": {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str},
    "nodes": {"node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "jsNodeId": str, "clerp": str},
    "links": {"source": str, "target": str, "weight": float},
}  # fmt: skip


def circuit(batch=1, detail="position"):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Embedding(50, 16), layer, nn.Linear(16, 7)).double().eval()
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    ids = torch.randint(0, 50, (batch, 5))
    places = ["1.self_attn", "1.linear1", "1.linear2"]
    return concepts.relevance_flow(xmodel, ids, at=places, target=lambda y: y[:, -1, 3], detail=detail)


def test_links_into_a_node_are_its_relevance_and_all_begins_at_tokens_and_biases(tmp_path):
    graph = circuit()
    document = concepts.to_graph_json(graph, tokens=TOKENS, path=tmp_path / "graph.json", answer="hat")
    assert json.loads((tmp_path / "graph.json").read_text()) == document
    for part, fields in REQUIRED.items():
        for item in [document[part]] if part == "metadata" else document[part]:
            assert all(isinstance(item[name], kind) for name, kind in fields.items())
    nodes = {node["node_id"]: node for node in document["nodes"]}
    assert len(nodes) == len(document["nodes"])
    kinds = Counter(node["feature_type"] for node in nodes.values())
    assert (
        kinds["logit"] == 1 and kinds["embedding"] == 5 and kinds["cross layer transcoder"] == 3 and kinds["bias"] >= 3
    )
    incoming = Counter()
    for link in document["links"]:
        assert {link["source"], link["target"]} <= nodes.keys()
        incoming[link["target"]] += link["weight"]
    for name, amount in incoming.items():
        assert amount == pytest.approx(nodes[name]["activation"], rel=1e-9, abs=1e-12)
    (target,) = (n for n in nodes.values() if n.get("is_target_logit"))
    begun = sum(n["activation"] for n in nodes.values() if n["feature_type"] in ("embedding", "bias"))
    assert begun == pytest.approx(target["activation"], rel=1e-9) and target["clerp"] == 'Output "hat"'
    layers = [int(nodes[link["source"]]["layer"]) < int(nodes[link["target"]]["layer"]) for link in document["links"]
              if nodes[link["source"]]["layer"].isdigit() and nodes[link["source"]]["feature_type"] != "bias"]  # fmt: skip
    assert layers and all(layers)


def test_a_pruned_graph(tmp_path):
    document = concepts.to_graph_json(concepts.prune(circuit(), 0.5), tokens=TOKENS)
    ids = {node["node_id"] for node in document["nodes"]}
    assert all(link["source"] in ids and link["target"] in ids for link in document["links"])


@pytest.mark.parametrize(
    ("graph", "tokens", "said"),
    [
        ({"detail": "sum"}, TOKENS, 'detail="position"'),
        ({"batch": 2}, TOKENS, "one sample"),
        ({}, TOKENS[:4], "5 positions, and there are 4 tokens"),
    ],
)
def test_what_cannot_be_written(graph, tokens, said):
    with pytest.raises(InputError, match=said):
        concepts.to_graph_json(circuit(**graph), tokens=tokens)
