"""A saved graph says of its nodes which captured node, module, role and rule they come from, forward and backward."""

import torch
from torch import nn

import lrp_fx


def test_a_saved_graph_says_where_its_nodes_come_from(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Softmax(-1), nn.Linear(6, 3)).eval()
    x = torch.randn(2, 4)
    xmodel = lrp_fx.convert(model, rules={"base": "attnlrp", "rules": {"softmax": {"rule": "taylor"}}})
    xmodel.lower(x, target=1).save(tmp_path / "graph.pt2")
    program = torch.export.load(tmp_path / "graph.pt2")
    shown = [n.meta["custom"]["lrp_fx"] for n in program.graph.nodes if "lrp_fx" in n.meta.get("custom", {})]
    decided = {row.name: (row.module, row.role, row.rule) for row in xmodel.report().nodes_of() if row.rule}
    of_nodes = {(o["node"], o["step"]): (o["module"], o["role"], o["rule"]) for o in shown if o["role"]}
    assert {step for _, step in of_nodes} == {"forward", "relevance"} and {n for n, _ in of_nodes} <= decided.keys()
    assert all(origin == decided[node] for (node, _), origin in of_nodes.items())
    assert ("softmax", "relevance") in of_nodes and ("linear", "relevance") in of_nodes
    # spelled out for viewers, and still the relevance
    assert not program.graph.find_nodes(op="call_function", target=torch.ops.aten._softmax_backward_data.default)
    found = program.module()(x, torch.tensor([1, 1]))
    torch.testing.assert_close(found["relevance"]["input"], xmodel.explain(x, target=1).relevance["input"])
    assert torch.equal(
        lrp_fx.load(tmp_path / "graph.pt2")(x, target=1).relevance["input"],
        xmodel.lower(x, target=1)(x).relevance["input"],
    )
