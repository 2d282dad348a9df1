"""A graph pass: the backward of a convolution, for its input, as a transposed convolution."""

from __future__ import annotations

import operator

import torch
from torch import fx

from lrp_fx.operators.table import bind

aten = torch.ops.aten


def transpose_convolutions(graph: fx.Graph) -> None:
    """``convolution_backward`` for the input alone -> a transposed convolution, as ONNX has no operator for the former.

    The cotangent of the input is the transposed convolution of the output's cotangent with the same weights. It is
    padded at the end by the remainder of the strides.
    """
    for node in list(graph.nodes):
        if node.target is not aten.convolution_backward.default:
            continue
        bound = bind(node)
        if list(bound["output_mask"])[1:] != [False, False] or any(u.args[1] != 0 for u in node.users):
            continue
        x, g, w = (bound[k].meta["val"].shape[2:] for k in ("input", "grad_output", "weight"))
        stride, padding, dilation = (list(bound[k]) for k in ("stride", "padding", "dilation"))
        if bound["transposed"]:
            remainder: list[int] = [0] * len(stride)
        else:
            remainder = [
                int(n - ((m - 1) * s - 2 * p + d * (k - 1) + 1))
                for n, m, k, s, p, d in zip(x, g, w, stride, padding, dilation, strict=True)
            ]
        with graph.inserting_before(node):
            new = graph.call_function(
                aten.convolution.default,
                (bound["grad_output"], bound["weight"], None, stride, padding, dilation, not bound["transposed"],
                 remainder, bound["groups"]),
            )  # fmt: skip
        for user in list(node.users):
            assert user.target is operator.getitem
            new.meta = dict(user.meta)
            user.replace_all_uses_with(new)
            graph.erase_node(user)
        graph.erase_node(node)
