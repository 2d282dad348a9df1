"""Attribution methods for inseq, chosen by name: ``inseq.load_model(model, "attnlrp", tokenizer=tokenizer)``.

Importing this module registers "lrp" (the default rules) and "attnlrp". inseq explains the probability of a token
unless ``attributed_fn`` names another value: "logit", or one of inseq's contrasts.
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

    While the method is hooked, the converted model replaces the model of inseq, which is not modified and is put back
    for generation and at the end. Scores are summed over features, for conservation; inseq's default is their norm.
    """

    method_name: ClassVar[str] = "lrp"
    default_rules: ClassVar[RuleSource] = "default"

    def __init__(self, attribution_model: Any, rules: RuleSource | None = None, **kwargs: Any) -> None:
        """Convert the model.

        Args:
            attribution_model: inseq's model.
            rules: another rule set.
            **kwargs: arguments of inseq's base class.
        """
        self.original = attribution_model.model
        self.converted = convert(self.original, rules=self.default_rules if rules is None else rules)
        super().__init__(attribution_model, **kwargs)
        self.method = captum.InputXGradient(attribution_model)

    @decorators.set_hook
    def hook(self, **kwargs: Any) -> None:
        """Put the converted model in place of the original."""
        super().hook(**kwargs)
        self.attribution_model.model = self.converted

    @decorators.unset_hook
    def unhook(self, **kwargs: Any) -> None:
        """Put the original model back."""
        super().unhook(**kwargs)
        self.attribution_model.model = self.original

    def attribute_step(self, attribute_fn_main_args: dict[str, Any], attribution_args: dict[str, Any] = {}) -> Any:  # noqa: B006
        """Relevance of source and target for one step, (B, tokens), summed over features."""
        step = super().attribute_step(attribute_fn_main_args, attribution_args)
        return data.CoarseFeatureAttributionStepOutput(
            source_attributions=_summed(step.source_attributions),
            target_attributions=_summed(step.target_attributions),
            step_scores=step.step_scores,
        )


class AttnLRP(LRP):
    """AttnLRP: the same under the rule set "attnlrp"."""

    method_name: ClassVar[str] = "attnlrp"
    default_rules: ClassVar[RuleSource] = "attnlrp"


def _summed(scores: Tensor | None) -> Tensor | None:
    return None if scores is None else scores.sum(-1).to(torch.float32)
