"""Grad-CAM at the last feature map of a convolutional network, found by structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from lrp_fx.analysis import Facts
from lrp_fx.evaluate.embedded import Embedder
from lrp_fx.evaluate.methods import Explainer, Method
from lrp_fx.evaluate.task import Batch, Task
from lrp_fx.extras import require
from lrp_fx.specialization import Specialization


def grad_cam() -> Method:
    """Grad-CAM (Selvaraju et al., arXiv:1610.02391) at the last feature map, bilinearly enlarged to the image.

    It needs images as inputs, and a model with convolutions. The only feature map of a vision transformer is its patch
    embedding.
    """

    def prepare(task: Task) -> Explainer | None:
        embedder = Embedder(task, _last_map)
        if task.inputs[task.features.input].dim() != 4 or not embedder.applies():
            return None
        method: Any = require("captum.attr", "evaluate")

        def explain(batch: Batch) -> Tensor:
            point = embedder.point(batch)
            leaves = tuple(v.clone().requires_grad_() for v in point.values)
            cam = method.LayerGradCam(point.embedded.explained, point.embedded.cut.get_submodule("feature_map"))
            attributed = cam.attribute(leaves, additional_forward_args=point.rest, relu_attributions=True)
            return pool_map(task, batch, attributed.detach())

        return explain

    return Method("grad_cam", prepare)


def pool_map(task: Task, batch: Batch, relevance: Tensor) -> Tensor:
    """A (B, 1, h, w) map, enlarged to the image -> (B, F)."""
    size = batch.inputs[task.features.input].shape[2:]
    return task.features.pool(F.interpolate(relevance, tuple(size), mode="bilinear", align_corners=False))


def _last_map(specialization: Specialization) -> tuple[Specialization, Mapping[str, Node]] | None:
    maps = feature_maps(specialization.facts)
    return (specialization, {"feature_map": maps[-1]}) if maps else None


def feature_maps(facts: Facts) -> list[Node]:
    """Feature maps of a graph, (B, C, h, w) with more than one position: outputs of convolutions, and of pointwise
    operators on these (activations, batch norms, residual sums)."""
    maps: dict[Node, None] = {}
    for node, operands in facts.operands.items():
        val = node.meta.get("val")
        if not isinstance(val, torch.Tensor) or val.dim() != 4 or val.shape[2] * val.shape[3] == 1:
            continue
        layer, spec = facts.layers.get(node), facts.specs.get(node)
        convolves = layer is not None and "convolution" in layer.roles
        pointwise = spec is not None and (spec.elementwise or node in facts.folded)
        if convolves or (pointwise and any(n in maps for n in operands.values())):
            maps[node] = None
    return list(maps)
