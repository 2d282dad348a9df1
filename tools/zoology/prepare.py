"""Last steps of every build in the vision and PyPI suites: randomise constants, calibrate norms, run forward once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from case import Built, NotBuildable
from torch import Tensor, nn


def tensors(output: Any) -> list[Tensor]:
    """The tensors in nested containers, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [leaf for item in output for leaf in tensors(item)]
    return []


def pooled(output: Any) -> Tensor:
    """A target for outputs that are not logits: one channel, averaged over tokens (B, N, C) or the map (B, C, ...)."""
    first = tensors(output)[0]
    if first.dim() == 2:
        return first[:, 1]
    return first[:, :, 1].mean(1) if first.dim() == 3 else first[:, 1].flatten(1).mean(1)


def randomise_constants(model: nn.Module) -> None:
    """Add noise to parameters whose entries are all equal.

    Fresh models have zero biases, unit norm weights and zero-initialised heads, gates and residual branches: relevance
    through those is trivially right, or the whole logit is zero. Trained models have none of these.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
            axes = sum(size > 1 for size in parameter.shape)
            parameter.add_(torch.randn_like(parameter) * (0.1 if axes <= 1 else 0.02))


def calibrate(model: nn.Module, run: Callable[[], Any]) -> None:
    """Set every batch norm's running statistics to its input's in one pass.

    With a fresh model's statistics, the signal of deep nets vanishes or explodes. Norms are recognised by their buffers,
    since torchvision's frozen batch norm is not a class of torch. The model is in evaluation mode.
    """

    def measure(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        values = args[0].transpose(0, 1).flatten(1)
        variance = values.var(1, correction=0)
        norm.running_mean.copy_(values.mean(1))
        norm.running_var.copy_(torch.where(variance > 1e-8, variance, 1.0))  # dead channels stay dead

    norms = [m for m in model.modules() if {"running_mean", "running_var"} <= m._buffers.keys()]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms if norm.running_mean is not None]
    try:
        if hooks:
            run()
    finally:
        for hook in hooks:
            hook.remove()


def prepare(
    model: nn.Module,
    *args: Any,
    inputs: dict[str, Any] | None = None,
    target: Callable[[Any], Tensor] | None = None,
) -> Built:
    """The model in evaluation mode with its example inputs, after forwards whose outputs are finite and agree."""
    inputs = inputs or {}
    model = model.eval().float()
    with torch.no_grad():
        randomise_constants(model)
        calibrate(model, lambda: model(*args, **inputs))
        output, again = (model(*args, **inputs) for _ in range(2))
    leaves = [leaf for leaf in tensors(output) if leaf.is_floating_point()]
    if not leaves:
        raise NotBuildable("no floating-point output")
    if not bool(torch.isfinite(leaves[0]).any()):
        raise NotBuildable("the output of the randomly initialised model is not finite")
    if not torch.allclose(leaves[0], tensors(again)[0], rtol=1e-3, atol=1e-4, equal_nan=True):
        raise NotBuildable("its forward draws random numbers in evaluation mode")
    return Built(model, inputs, args, target)
