"""An independent oracle: AttnLRP in the gradient-times-input form, as hand-written forwards of six families.

The formulas are those published with the paper's reference implementation (detached statistics; cotangents halved at
gates and values, quartered at queries and keys; slope f(x)/x at activations); the code is our own and patches one
model instance, never a class.
"""

from __future__ import annotations

import types

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.factor, None


def identity(function, x: Tensor) -> Tensor:
    """f(x) with slope f(x) / x."""
    y = function(x).detach()
    return y + (x * (y / x).detach() - (x * (y / x)).detach())


def root_mean_square(self, x: Tensor, wide: torch.dtype, constant: bool) -> Tensor:
    eps = getattr(self, "variance_epsilon", None) or self.eps
    inner = x.to(wide)
    statistic = torch.rsqrt(inner.pow(2).mean(-1, keepdim=True) + eps)
    normed = inner * (statistic.detach() if constant else statistic)
    if type(self).__name__.startswith("Gemma"):
        return (normed * (1.0 + self.weight.to(wide))).type_as(x)
    return self.weight * normed.to(x.dtype)


def rms(self, x: Tensor) -> Tensor:
    """As published: the norm in float32, whatever the model's precision."""
    return root_mean_square(self, x, torch.float32, constant=True)


def exact_rms(self, x: Tensor) -> Tensor:
    """In the model's own precision."""
    return root_mean_square(self, x, x.dtype, constant=True)


def natural_rms(self, x: Tensor) -> Tensor:
    """The norm as the model has it, in its own precision, without a rule."""
    return root_mean_square(self, x, x.dtype, constant=False)


def layer(self, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt().detach() * self.weight + self.bias


def gated(self, x: Tensor) -> Tensor:
    return self.down_proj(_Half.apply(identity(self.act_fn, self.gate_proj(x)) * self.up_proj(x), 0.5))


def plain(self, x: Tensor) -> Tensor:
    return self.c_proj(identity(self.act, self.c_fc(x)))


def experts(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    result = torch.zeros_like(x)
    for expert in range(self.num_experts):
        token, slot = torch.where(index == expert)
        gate, up = nn.functional.linear(x[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
        hidden = _Half.apply(identity(self.act_fn, gate) * up, 0.5)
        hidden = nn.functional.linear(hidden, self.down_proj[expert])
        result = result.index_add(0, token, _Half.apply(hidden * weights[token, slot, None], 0.5))
    return result


def attention(module, query, key, value, *args, **kwargs):
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return sdpa(module, _Half.apply(query, 0.25), _Half.apply(key, 0.25), _Half.apply(value, 0.5), *args, **kwargs)


def patch_norms(model: nn.Module, forward) -> None:
    """Give every RMSNorm instance of ``model`` another forward."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(forward, module)


def relevance(model: nn.Module, embeddings: Tensor, norm=rms) -> tuple[Tensor, Tensor]:
    """(logits, relevance per token) of the largest last logit under the oracle's formulas."""
    for module in model.modules():
        name = type(module).__name__
        forward = (
            norm if name.endswith("RMSNorm")
            else layer if isinstance(module, nn.LayerNorm)
            else experts if name.endswith("Experts")
            else gated if hasattr(module, "gate_proj") and hasattr(module, "down_proj")
            else plain if hasattr(module, "c_fc")
            else None
        )  # fmt: skip
        if forward is not None:
            module.forward = types.MethodType(forward, module)
    ALL_ATTENTION_FUNCTIONS.register("oracle", attention)
    model.config._attn_implementation = "oracle"
    try:
        leaf = embeddings.clone().requires_grad_()
        logits = model(inputs_embeds=leaf, use_cache=False).logits
        logits[:, -1].amax(-1).sum().backward()
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("oracle", None)
    return logits.detach(), (leaf * leaf.grad).sum(-1).detach()
