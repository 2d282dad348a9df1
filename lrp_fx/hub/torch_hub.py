"""Entry points of ``torch.hub``: what a maintainer of models writes in his ``hubconf.py``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.module import ExplainableModule


def explainable(
    entry: Callable[..., nn.Module], *, rules: RuleSource = "default", **options: Any
) -> Callable[..., ExplainableModule]:
    """An entry point of ``torch.hub`` that returns the model of another entry point, converted.

    In a ``hubconf.py``::

        dependencies = ["torch", "lrp_fx"]
        from my_models import small_net
        small_net_explained = lrp_fx.hub.explainable(small_net, rules="attnlrp")

    Users call ``torch.hub.load("owner/repository", "small_net_explained", pretrained=True)``.

    Args:
        entry: the entry point that returns the model.
        rules: the rule set; a user's ``explain_rules=`` replaces it.
        **options: of :func:`lrp_fx.convert`.
    """

    @functools.wraps(entry)
    def load(*args: Any, explain_rules: RuleSource | None = None, **kwargs: Any) -> ExplainableModule:
        chosen = rules if explain_rules is None else explain_rules
        return convert(entry(*args, **kwargs).eval(), rules=chosen, **options)

    load.__doc__ = f"{entry.__doc__ or entry.__name__}\n\nConverted by lrp_fx: call its explain()."
    return load
