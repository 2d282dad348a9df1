"""captum's interface for any model and rule set: ``LRP`` and ``LayerLRP`` replace captum's classes of these names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrp_fx.capture.signature import positional_names
from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.errors import LatentError, TargetError
from lrp_fx.explain import Target
from lrp_fx.extras import require
from lrp_fx.module import ExplainableModule
from lrp_fx.results import Attribution

attr: Any = require("captum.attr", "captum")
log: Any = require("captum.log", "captum")  # captum's smoothing looks for the attribute that its decorator sets

#: one input, or a tuple of several, as in captum
Tensors = Tensor | tuple[Tensor, ...]


class LRP(attr.GradientAttribution):  # type: ignore[misc]
    """Layer-wise relevance propagation with captum's methods; NoiseTunnel, captum's metrics and plots accept it.

    For token ids, relevance is (B, S): one number per token.
    """

    def __init__(self, model: nn.Module, rules: RuleSource = "default", **options: Any) -> None:
        """Convert a model unless it is converted.

        Args:
            model: any module, or a result of :func:`lrp_fx.convert`.
            rules: the rule set.
            **options: of :func:`lrp_fx.convert`.
        """
        xmodel = model if isinstance(model, ExplainableModule) else convert(model, rules=rules, **options)
        super().__init__(xmodel)
        self.model, self.rules = xmodel, rules

    @property
    def multiplies_by_inputs(self) -> bool:
        """Relevance is input times (modified) gradient."""
        return True

    def has_convergence_delta(self) -> bool:
        """Whether :meth:`attribute` can return a delta."""
        return True

    @log.log_usage()
    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        verbose: bool = False,
    ) -> Any:
        """Relevance of every input, in its shape.

        Args:
            inputs: the model's first positional arguments.
            target: as in captum: an index, one index per sample, a tuple of indices, or a list of tuples; None for the
                model's own answer.
            additional_forward_args: further positional arguments, which get no relevance.
            return_convergence_delta: also return the delta (B,): the explained value less the relevance of ``inputs``.
                The ledger lists it by cause: biases, softmax, ...
            verbose: ignored; captum's method has this argument.

        Returns:
            A tensor or a tuple, as ``inputs``; with ``return_convergence_delta`` the pair (relevance, delta).
        """
        explained, relevance = self._explained(inputs, target, additional_forward_args)
        attributions = relevance if isinstance(inputs, tuple) else relevance[0]
        return (attributions, _delta(explained, relevance)) if return_convergence_delta else attributions

    def compute_convergence_delta(self, attributions: Tensors, output: Tensor) -> Tensor:  # type: ignore[override]
        """The explained value less the sum of attributions, (B,)."""
        several = attributions if isinstance(attributions, tuple) else (attributions,)
        return output.flatten() - sum(a.flatten(1).sum(1) for a in several)

    def _explained(
        self, inputs: Tensors, target: Any, additional: Any, at: Sequence[str] = ()
    ) -> tuple[Attribution, tuple[Tensor, ...]]:
        tensors = inputs if isinstance(inputs, tuple) else (inputs,)
        further = () if additional is None else additional if isinstance(additional, tuple) else (additional,)
        explained = self.model.explain(*tensors, *further, target=_target(target), at=at, rules=self.rules)
        parameters = positional_names(self.model.model)
        names = [parameters[i] if i < len(parameters) else f"args[{i}]" for i in range(len(tensors))]
        zeros = (torch.zeros_like(t, dtype=explained.target.dtype) for t in tensors)
        relevance = (explained.relevance.get(name, zero) for name, zero in zip(names, zeros, strict=True))
        return explained, tuple(relevance)


class LayerLRP(LRP, attr.LayerAttribution):  # type: ignore[misc]
    """Relevance of outputs or inputs of modules inside the model, with captum's methods."""

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | Sequence[str | nn.Module],
        rules: RuleSource = "default",
        **options: Any,
    ) -> None:
        """Convert a model unless it is converted.

        Args:
            model: as in :class:`LRP`.
            layer: path of a module, the module itself, or several of either.
            rules: as in :class:`LRP`.
            **options: of :func:`lrp_fx.convert`.

        Raises:
            LatentError: for a module outside the model.
        """
        LRP.__init__(self, model, rules, **options)
        self.layer = layer
        listed = [layer] if isinstance(layer, (str, nn.Module)) else list(layer)
        self.paths = [self._path(one) for one in listed]

    def _path(self, layer: str | nn.Module) -> str:
        if isinstance(layer, str):
            return layer
        path = next((path for path, module in self.model.model.named_modules() if module is layer), None)
        if path is None:
            raise LatentError(f"{type(layer).__name__} is no module of {type(self.model.model).__name__}")
        return path

    @log.log_usage()
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        verbose: bool = False,
    ) -> Any:
        """Relevance of the layer's output, in its shape; if the layer is called several times, of the last call.

        Args:
            inputs: as in :meth:`LRP.attribute`.
            target: as in :meth:`LRP.attribute`.
            additional_forward_args: as in :meth:`LRP.attribute`.
            return_convergence_delta: also return the delta (B,): the explained value less the relevance of the layer;
                a list for several layers.
            attribute_to_layer_input: explain the layer's input in place of its output.
            verbose: ignored.
        """
        names = [f"{path}@input" if attribute_to_layer_input else path for path in self.paths]
        explained, _ = self._explained(inputs, target, additional_forward_args, names)
        relevance = [explained.latents[name] for name in names]
        deltas = [_delta(explained, (one,)) for one in relevance]
        if isinstance(self.layer, (str, nn.Module)):
            return (relevance[0], deltas[0]) if return_convergence_delta else relevance[0]
        return (relevance, deltas) if return_convergence_delta else relevance


def _delta(explained: Attribution, relevance: tuple[Tensor, ...]) -> Tensor:
    return explained.target - sum(r.flatten(1).sum(1) for r in relevance)


def _target(target: Any) -> Target:
    """A target of captum as one of ours, which have no list of tuples (one per sample)."""
    if isinstance(target, Tensor) and target.numel() == 1:
        return int(target)
    if not isinstance(target, list):
        return target
    if not any(isinstance(one, tuple) for one in target):
        return torch.tensor(target)
    columns = [torch.tensor(column) for column in zip(*target, strict=True)]

    def choose(output: Any) -> Tensor:
        if not isinstance(output, Tensor) or len(output) != len(target):
            raise TargetError(f"{len(target)} targets need an output tensor of {len(target)} samples")
        return output[(torch.arange(len(target)), *columns)]

    return choose
