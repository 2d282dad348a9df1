"""Model Explorer's own classes read the graph and the node data; node data fits the graph of its PyTorch adapter."""

import dataclasses
import json

import torch
from dacite import Config, from_dict
from model_explorer import graph_builder, node_data_builder
from model_explorer.pytorch_exported_program_adapter_impl import PytorchExportedProgramAdapterImpl
from torch import nn

import lrp_fx

STRICT = Config(strict=True)


def test_graph_and_node_data_are_read(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.randn(2, 3, 4, 4)
    xmodel = lrp_fx.convert(model)
    graph_file, *data_files = xmodel.report(x, target=1).to_node_data(tmp_path)
    (document,) = json.loads(graph_file.read_text())
    graph = from_dict(graph_builder.Graph, document, STRICT)
    exported = PytorchExportedProgramAdapterImpl(torch.export.export(model, (x,)), {"const_element_count_limit": 4})
    (theirs,) = exported.convert()["graphs"]
    assert graph.id == theirs.id
    for file in data_files:
        ((name, data),) = json.loads(file.read_text()).items()
        for result in data["results"].values():
            value = result.pop("value")  # (declared as a number, while text is allowed)
            from_dict(node_data_builder.NodeDataResult, {**result, "value": 0}, STRICT)
            result["value"] = value
        known = {field.name for field in dataclasses.fields(node_data_builder.GraphNodeData)}
        assert name == graph.id and data.keys() <= known
        assert data["results"].keys() <= {node.id for node in graph.nodes}
        assert data["results"].keys() & {node.id for node in theirs.nodes}
