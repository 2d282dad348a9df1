"""Nodes know the line of the model that made them, on both routes, and graphs their signature."""

import inspect

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.graph.location import source_line


def double(x):
    return x * 2


class Inner(nn.Module):
    def forward(self, x):
        return torch.tanh(double(x))  # inner


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.layer = Inner(), nn.Linear(3, 2)

    def forward(self, x):
        x = self.inner(x)
        return self.layer(
            x + 1,  # outer
        )


@pytest.mark.parametrize("route", ["export", "trace"])
def test_a_node_has_the_line_of_the_innermost_forward(route):
    xmodel = lrp_fx.convert(Outer(), torch.randn(2, 3), capture=route)
    graph = xmodel.current.captured.graph_module.graph
    lines = {str(node.target): source_line(node) for node in graph.nodes if node.op == "call_function"}
    assert lines["aten.mul.Tensor"] == lines["aten.tanh.default"]
    assert (
        lines["aten.tanh.default"].endswith("return torch.tanh(double(x))  # inner")
        and __file__ in lines["aten.tanh.default"]
    )
    assert "# outer" in lines["aten.add.Tensor"] and "modules/linear.py" in lines["aten.linear.default"]


def test_the_graph_has_the_signature_of_the_model():
    xmodel = lrp_fx.convert(Outer(), torch.randn(2, 3))
    assert list(inspect.signature(xmodel.graph_module.forward).parameters) == ["x"]
    torch.export.export(xmodel.graph_module, (torch.randn(2, 3),))
