"""inseq: our relevance as methods that it knows by name, ``inseq.load_model(model, "attnlrp", tokenizer=tokenizer)``.

Importing this module registers "lrp" (the default rules) and "attnlrp". What inseq explains by default is the
probability of a token; ``attributed_fn="logit"`` or a contrast of its own are others.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.extras import require

registry: Any = require("inseq.attr.feat.gradient_attribution", "inseq")
decorators: Any = require("inseq.attr.attribution_decorators", "inseq")
data: Any = require("inseq.data", "inseq")
captum: Any = require("captum.attr", "inseq")


class LRP(registry.GradientAttributionRegistry):  # type: ignore[misc]
    """Layer-wise relevance propagation under the default rules.

    While the method is hooked, inseq's model is the converted one; its own model is left as it is, and is back for
    generation and afterwards. Scores are summed over features, so that they add up; where inseq would take norms.
    """

    method_name: ClassVar[str] = "lrp"
    default_rules: ClassVar[RuleSource] = "default"

    def __init__(self, attribution_model: Any, rules: RuleSource | None = None, **kwargs: Any) -> None:
        """Convert the model.

        Args:
            attribution_model: inseq's model.
            rules: another rule set.
            **kwargs: of inseq's methods.
        """
        self.own = attribution_model.model
        self.converted = convert(self.own, rules=self.default_rules if rules is None else rules)
        super().__init__(attribution_model, **kwargs)
        self.method = captum.InputXGradient(attribution_model)

    @decorators.set_hook
    def hook(self, **kwargs: Any) -> None:
        """Let the converted model run."""
        super().hook(**kwargs)
        self.attribution_model.model = self.converted

    @decorators.unset_hook
    def unhook(self, **kwargs: Any) -> None:
        """Let the model itself run."""
        super().unhook(**kwargs)
        self.attribution_model.model = self.own

    def attribute_step(self, attribute_fn_main_args: dict[str, Any], attribution_args: dict[str, Any] = {}) -> Any:  # noqa: B006
        """(B, tokens) relevance of source and target for one step, summed over features."""
        found = super().attribute_step(attribute_fn_main_args, attribution_args)
        return data.CoarseFeatureAttributionStepOutput(
            source_attributions=_summed(found.source_attributions),
            target_attributions=_summed(found.target_attributions),
            step_scores=found.step_scores,
        )


class AttnLRP(LRP):
    """AttnLRP, by its own rule set."""

    method_name: ClassVar[str] = "attnlrp"
    default_rules: ClassVar[RuleSource] = "attnlrp"


def _summed(scores: Tensor | None) -> Tensor | None:
    return None if scores is None else scores.sum(-1).to(torch.float32)
