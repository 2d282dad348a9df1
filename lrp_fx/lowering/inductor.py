"""Options of Inductor for relevance graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def inductor_options(graph_module: fx.GraphModule, mode: str | None = None) -> dict[str, Any]:
    """Options of Inductor for a relevance graph: those of ``mode``, and on a processor no change of memory layout.

    Inductor prefers channels last for convolutions. Weights are inputs of the graph, so every call would copy them to
    that layout, and ``convolution_backward`` its cotangents: a quarter of the run time of a convolutional network.
    """
    options = dict(torch._inductor.list_mode_options(mode)) if mode else {}
    values = [n.meta.get("val") for n in graph_module.graph.find_nodes(op="placeholder")]
    if any(isinstance(v, torch.Tensor) and v.device.type == "cpu" for v in values):
        options["layout_optimization"] = False
    return options
