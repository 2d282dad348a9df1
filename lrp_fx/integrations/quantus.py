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

#: conversions that are kept: metrics that randomise a model pass a fresh one for every layer
_MODELS = 4


def explain_func(rules: RuleSource = "default", *, channels: str = "keep", **options: Any) -> Callable[..., np.ndarray]:
    """An explanation function of the kind that quantus calls: (model, inputs, targets) -> relevance, an array.

    A model is converted once, however often it is explained; weights that a metric changes in place count at once.

    Args:
        rules: the rule set.
        channels: "keep" gives relevance in the shape of the inputs; "sum" sums dimension 1, and keeps it with size 1.
        **options: of :func:`lrp_fx.convert`.

    Raises:
        ValueError: for another word in ``channels``.
    """
    if channels not in ("keep", "sum"):
        raise ValueError(f'channels={channels!r}: choose "keep" or "sum"')
    conversions: Recent[int, ExplainableModule] = Recent(_MODELS)

    def explain(
        model: nn.Module, inputs: Any, targets: Any, device: str | torch.device | None = None, **unknown: Any
    ) -> np.ndarray:
        if unknown:
            raise InputError(f"explain_func knows no {', '.join(unknown)}: give options to explain_func(...) itself")
        xmodel = conversions.recall(id(model), lambda: convert(model, rules=rules, **options))  # which holds the model
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
