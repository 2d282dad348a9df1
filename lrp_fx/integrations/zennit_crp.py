"""zennit-crp's interface for any model and rule set: ``CondAttribution`` replaces its class of this name.

Conditional relevance (CRP, Achtibat et al. 2023, arXiv:2206.03208): relevance through chosen channels of chosen layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrp_fx.concepts.cut import Cut, CutRun, cut_forward
from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.errors import InputError, TargetError
from lrp_fx.extras import require
from lrp_fx.module import ExplainableModule
from lrp_fx.rules.ruleset import RuleSet

attribution: Any = require("crp.attribution", "crp")
_concepts: Any = require("crp.concepts", "crp")

#: layer -> channels; "y" -> indices of the output
Conditions = Sequence[Mapping[str, Any]]


class CondAttribution(attribution.CondAttribution):  # type: ignore[misc]
    """Conditional attributions with zennit-crp's methods and results; its ``AttributionGraph`` takes it.

    Layers are named as in ``explain(at=...)``. Masks are zennit-crp's: they act on what arrives at a layer's output.
    """

    def __init__(self, model: nn.Module, rules: RuleSource = "default", **options: Any) -> None:
        """Convert a model unless it is converted.

        Args:
            model: a module of one input whose output is (B, classes), or a result of :func:`lrp_fx.convert`.
            rules: the rule set.
            **options: of :func:`lrp_fx.convert`.
        """
        self.xmodel = model if isinstance(model, ExplainableModule) else convert(model, rules=rules, **options)
        self.rules: RuleSource = self.xmodel.ruleset if isinstance(model, ExplainableModule) else rules
        super().__init__(self.xmodel.model, no_param_grad=False)

    def __call__(
        self,
        data: Tensor,
        conditions: Conditions,
        composite: Any = None,
        record_layer: Sequence[str] = (),
        mask_map: Any = _concepts.ChannelConcept.mask,
        start_layer: str | None = None,
        init_rel: Any = None,
        on_device: Any = None,
        exclude_parallel: bool = True,
    ) -> Any:
        """Conditional relevance of each sample under its condition, or of each under every condition.

        Args:
            data: the inputs (B, channels, ...).
            conditions: one for each sample, or for all samples, one after the other.
            composite: rules of zennit for this call (:meth:`lrp_fx.RuleSet.from_zennit`); None for those of the
                conversion.
            record_layer: layers whose activations and relevance are returned, beside those of the conditions.
            mask_map: as in zennit-crp: makes the mask of a sample, or a mapping by layer.
            start_layer: where relevance starts, in place of the output.
            init_rel: relevance there: a tensor, a number, or a function of its values; None for its values.
            on_device: device of what is returned; None for that of the model.
            exclude_parallel: relevance passes the layers of a condition one after the other, and by no other way.

        Returns:
            zennit-crp's result: heatmap (B, ...), activations, relevances, prediction; samples in the order of the
            data and conditions.

        Raises:
            InputError: for conditions without "y", ``start_layer`` or ``init_rel``.
            LatentError: for an unknown layer.
        """
        if any(self.MODEL_OUTPUT_NAME not in c for c in conditions) and start_layer is None and init_rel is None:
            raise InputError(f"give {self.MODEL_OUTPUT_NAME!r} in every condition, start_layer= or init_rel=")
        data, conditions = _paired(data.detach(), conditions)
        rules = self.rules if composite is None else RuleSet.from_zennit(composite)
        layers = list(dict.fromkeys(n for c in conditions for n in c if n != self.MODEL_OUTPUT_NAME))
        start = [] if start_layer is None else [start_layer]
        names = tuple(dict.fromkeys([*layers, *record_layer, *start]))
        run = cut_forward(self.xmodel, (data,), {}, names, self._target(conditions, init_rel), rules)
        rows = {layer: [row for row, c in enumerate(conditions) if layer in c] for layer in layers}
        flow = _Flow(run, _masks(conditions, mask_map, rows), rows, exclude_parallel)
        if start_layer is None:
            flow.start(run.chosen, torch.ones_like(run.chosen))
        else:
            cut = run.latent(start_layer)
            relevance = _initial(cut.after.detach(), init_rel)
            flow.start(cut.before, _over(relevance, cut.after.detach()), before=cut)
        heatmap = flow.inputs()
        sent = {name: run.latent(name) for name in names}
        activations = {name: cut.after.detach() for name, cut in sent.items()}
        relevances = {name: cut.relevance(flow.arrived.get(name)) for name, cut in sent.items()}
        prediction = run.output if start_layer is None else activations[start_layer]
        placed = [_on(on_device, value) for value in (heatmap, activations, relevances)]
        return attribution.attrResult(*placed, prediction.detach())

    def generate(
        self,
        data: Tensor,
        conditions: Conditions,
        composite: Any = None,
        record_layer: Sequence[str] = (),
        mask_map: Any = _concepts.ChannelConcept.mask,
        start_layer: str | None = None,
        init_rel: Any = None,
        batch_size: int = 10,
        on_device: Any = None,
        exclude_parallel: bool = True,
        verbose: bool = True,
    ) -> Iterator[Any]:
        """Results for one sample under many conditions, ``batch_size`` at a time; arguments as in a call."""
        for first in range(0, len(conditions), batch_size):
            some = conditions[first : first + batch_size]
            yield self(
                data, some, composite, record_layer, mask_map, start_layer, init_rel, on_device, exclude_parallel
            )

    def _target(self, conditions: Conditions, init_rel: Any) -> Callable[[Any], Tensor]:
        """The sum of initial relevance at the chosen outputs of each sample."""

        def choose(output: Any) -> Tensor:
            if not isinstance(output, Tensor) or output.dim() != 2:
                raise TargetError("conditional attribution needs an output of (B, classes)")
            chosen = torch.zeros_like(output)
            for row, condition in enumerate(conditions):
                chosen[row, condition.get(self.MODEL_OUTPUT_NAME, slice(None))] = 1
            weights = _over(_initial(output.detach(), init_rel), output.detach()) * chosen
            return (output * weights).sum(1)

        return choose


class _Flow:
    """Cotangents at cuts, sent backwards from one to the next, with the masks of the conditions in between.

    Attributes:
        arrived: name of a latent -> its cotangent, behind its mask.
    """

    def __init__(
        self, run: CutRun, masks: Mapping[str, Callable[[Tensor], Tensor]], rows: Mapping[str, list[int]], alone: bool
    ) -> None:
        self.run, self.masks, self.rows, self.alone = run, masks, rows, alone
        self.latents = [cut for cut in run.cuts if cut.kind == "latent"]
        self.arrived: dict[str, Tensor] = {}
        self._ends: list[tuple[Tensor, Tensor]] = []

    def start(self, value: Tensor, cotangent: Tensor, before: Cut | None = None) -> None:
        """Send from a value, or from the latent ``before``, to all latents in front of it, and from these on."""
        earlier = self.latents if before is None else self.latents[: self.latents.index(before)]
        if before is not None:
            cotangent = self.masks[before.name](cotangent.clone()) if before.name in self.masks else cotangent
            self.arrived[before.name] = cotangent
        self._ends = [(value, cotangent)]
        self._send(value, cotangent, earlier)
        for index in reversed(range(len(earlier))):
            cut = earlier[index]
            whole = self.arrived.get(cut.name)
            if whole is None:
                continue
            if cut.name in self.masks:
                whole = self.arrived[cut.name] = self.masks[cut.name](whole.clone())
                if self.alone:  # of these samples, all other ways from behind this latent end here
                    rows = self.rows[cut.name]
                    self._ends = [(value, _without(g, rows)) for value, g in self._ends]
                    for other in (c.name for c in earlier[:index] if c.name in self.arrived):
                        self.arrived[other] = _without(self.arrived[other], rows)
            self._ends.append((cut.before, whole))
            self._send(cut.before, whole, earlier[:index])

    def _send(self, value: Tensor, cotangent: Tensor, to: Sequence[Cut]) -> None:
        for cut, g in zip(to, self.run.send(value, cotangent, to), strict=True):
            if g is not None:
                earlier = self.arrived.get(cut.name)
                self.arrived[cut.name] = g if earlier is None else earlier + g

    def inputs(self) -> Tensor:
        """Relevance of the first input, summed over channels."""
        parts = [next(iter(self.run.to_inputs(value, g).values())) for value, g in self._ends]
        total = sum(parts[1:], parts[0])
        return total.sum(1) if total.dim() > 1 else total


def _paired(data: Tensor, conditions: Conditions) -> tuple[Tensor, Conditions]:
    """Data and conditions of one length, as zennit-crp pairs them."""
    if len(data) == len(conditions):
        return data, conditions
    return data.repeat_interleave(len(conditions), 0), list(conditions) * len(data)


def _masks(
    conditions: Conditions, mask_map: Any, rows: Mapping[str, list[int]]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Layer -> the masks of the samples with a condition there, as a function of the cotangent."""

    def mask(layer: str) -> Callable[[Tensor], Tensor]:
        make = mask_map[layer] if isinstance(mask_map, Mapping) else mask_map
        masks = [make(row, conditions[row][layer], layer) for row in rows[layer]]
        return lambda cotangent: functools.reduce(lambda g, one: one(g), masks, cotangent)

    return {layer: mask(layer) for layer in rows}


def _without(cotangent: Tensor, rows: Sequence[int]) -> Tensor:
    """A cotangent with 0 in some rows."""
    cotangent = cotangent.clone()
    cotangent[list(rows)] = 0
    return cotangent


def _initial(values: Tensor, start: Any) -> Tensor:
    """Relevance at the start: the values, or what is start."""
    if callable(start):
        return start(values)
    return values if start is None else torch.as_tensor(start, dtype=values.dtype).expand_as(values)


def _over(relevance: Tensor, values: Tensor) -> Tensor:
    """The cotangent whose product with the values is the relevance; 0 where a value is 0."""
    return torch.where(values == 0, 0.0, relevance / torch.where(values == 0, 1.0, values))


def _on(device: Any, value: Any) -> Any:
    if device is None:
        return value
    return {k: v.to(device) for k, v in value.items()} if isinstance(value, dict) else value.to(device)
