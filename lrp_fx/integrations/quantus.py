"""An explanation function for quantus: ``metric(model, x_batch, y_batch, explain_func=explain_func("attnlrp"))``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.errors import InputError
from lrp_fx.module import ExplainableModule
from lrp_fx.recent import Recent

#: most conversions in memory: metrics that randomise a model pass a new model for each layer
_MODELS = 4


def explain_func(rules: RuleSource = "default", *, channels: str = "keep", **options: Any) -> Callable[..., np.ndarray]:
    """An explanation function for quantus: (model, inputs, targets) -> relevance, an array.

    Each model is converted once; weights that a metric changes in place take effect without another conversion.

    Args:
        rules: the rule set.
        channels: "keep" for relevance in the shape of the inputs; "sum" to sum dimension 1 to size 1.
        **options: of :func:`lrp_fx.convert`.

    Raises:
        ValueError: for another value of ``channels``.
    """
    if channels not in ("keep", "sum"):
        raise ValueError(f'channels={channels!r}: choose "keep" or "sum"')
    conversions: Recent[int, ExplainableModule] = Recent(_MODELS)

    def explain(
        model: nn.Module, inputs: Any, targets: Any, device: str | torch.device | None = None, **unknown: Any
    ) -> np.ndarray:
        if unknown:
            raise InputError(f"explain_func knows no {', '.join(unknown)}: give options to explain_func(...) itself")
        # the conversion refers to its model: while it is in memory, no other model has this id
        xmodel = conversions.recall(id(model), lambda: convert(model, rules=rules, **options))
        parameter = next(model.parameters(), None)
        x = torch.as_tensor(np.asarray(inputs))
        if x.is_floating_point() and parameter is not None:
            x = x.to(parameter.dtype)
        x = x.to(device if device is not None else "cpu" if parameter is None else parameter.device)
        classes = torch.as_tensor(np.asarray(targets)).reshape(-1).long().to(x.device)
        (relevance,) = list(xmodel.explain(x, target=classes).relevance.values())[:1]
        summed = relevance.sum(1, keepdim=True) if channels == "sum" and relevance.dim() > 2 else relevance
        return summed.detach().cpu().numpy()

    return explain
