"""Many targets from one forward pass: their backward sweeps run as one, batched.

The target is chosen inside the graph, as far up as it goes (:mod:`lrp_fx.rewrite.positions`): with 64 targets the
head of a language model runs at 64 positions, and no cotangent of the size of all its logits exists.
"""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lrp_fx.capture import Call
from lrp_fx.errors import InputError, NumericalError, TargetError
from lrp_fx.explain import Sweeper, Target, usable
from lrp_fx.explain.target import at_positions, find_logits, last_positions
from lrp_fx.lowering.attention import fold_targets
from lrp_fx.lowering.forms import Form
from lrp_fx.lowering.sizes import Served, fake_inputs, freest
from lrp_fx.lowering.trace import Targeted, with_target
from lrp_fx.optable import bind, set_arg
from lrp_fx.rewrite.ops import nonzero

#: rows of features in one backward sweep of all targets: fewer leave a processor's matrix products below their peak,
#: with more the values between them leave its caches (measured at 100 and at 512 tokens; accelerators are untested)
_ROWS, _MOST = {"cpu": 1024}, 16
_LAST, _LARGEST = -(2**40), -(2**40)  #: of a target that leaves its position or its class open


@dataclass(frozen=True)
class Attributions:
    """Relevance of T targets per sample.

    Attributes:
        relevance: input name -> (T, B, ...), each target's relevance as in :class:`lrp_fx.Attribution`.
        latents: module path -> (T, B, ...).
        target: (T, B) the explained values.
        ruleset: name of the rule set.
    """

    relevance: dict[str, Tensor]
    latents: dict[str, Tensor]
    target: Tensor
    ruleset: str

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class ManyTargets:
    """A tapped graph that explains any number of targets.

    Attributes:
        sweeper: what it was made from.
        targeted: its graph is (flat inputs, positions, classes) -> (no outputs, places, latents, chosen values).
        served: the sizes it serves.
    """

    sweeper: Sweeper
    targeted: Targeted
    served: Served

    @classmethod
    def build(cls, sweeper: Sweeper, call: Call) -> ManyTargets:
        """Move the choice of the targets into the tapped graph; the call is an example.

        Sizes stay free where the capture leaves them free, but for those that turn out to depend on one another.
        """
        if not sweeper.rewritten.plan.facts.sources:
            raise InputError("no input can carry relevance: there is no floating input and no token id")
        return freest(functools.partial(cls._build, sweeper, call), list(call.tensors.values()))

    @classmethod
    def _build(cls, sweeper: Sweeper, call: Call, dynamic: bool) -> ManyTargets:
        fakes = fake_inputs(call.leaves, call.names, sweeper.captured.shapes, dynamic)
        targeted = with_target(sweeper, _FORM, call.names, fakes, report=False)
        fold_targets(targeted.graph_module.graph)
        _plain_bounds(targeted.graph_module.graph)
        targeted.graph_module.recompile()
        served = Served.of(sweeper.captured.shapes, fakes, targeted.sizes)
        return cls(sweeper, targeted, served)

    def explain(self, call: Call, targets: Sequence[Target], chunk: int | None) -> Attributions:
        """Explain one call.

        Args:
            call: the inputs.
            targets: None, class indices, (B,) tensors of them, or tuples (position, class).
            chunk: how many of the backward sweeps run at once: memory grows with it. None: what is fastest.

        Raises:
            TargetError: for a target that selects no single value per sample, or is out of range.
            NumericalError: when a relevance is not finite.
        """
        plan = self.sweeper.rewritten.plan
        tensors = list(call.tensors.values())
        if (reason := self.served.mismatch(tensors)) is not None:
            raise InputError(f"prepared for other sizes: {reason}")
        sizes = self.served.limits(tensors)
        batch, device = sizes[0] or tensors[0].shape[0], tensors[0].device
        picks = torch.stack([_pick(t, sizes, batch, device) for t in targets])  # (T, 2, B)
        count = len(picks)
        leaves = usable(call.leaves)
        with torch.inference_mode(False), torch.enable_grad():
            _, taps, held, chosen = self.targeted.graph_module(*leaves, picks[:, 0].T, picks[:, 1].T)
            if not chosen.requires_grad:
                raise TargetError("the targets do not depend on any input that can carry relevance under these rules")
            read = [*taps, *(t for t in held if t.requires_grad)]

            def back(cotangent: Tensor) -> tuple[Tensor, ...]:
                return torch.autograd.grad(chosen, read, cotangent, retain_graph=True, materialize_grads=True)

            picked = _one_per_target(count, batch, chosen)
            with warnings.catch_warnings():  # kernels without a batching rule (attention) run target by target
                warnings.filterwarnings("ignore", message="There is a performance drop")
                grads = torch.func.vmap(back, chunk_size=chunk or _at_once(tensors))(picked)
        later = iter(grads[len(taps) :])
        latents = {
            path: z.detach() * next(later) if z.requires_grad else z.new_zeros((count, *z.shape))
            for path, z in zip(self.sweeper.latents, held, strict=True)
        }
        values = self.sweeper.values(leaves)
        each = [(nonzero(x) if plan.blind else x).detach() * g for x, g in zip(taps, grads, strict=False)]
        relevance = [
            self.sweeper.per_input(plan.facts.sources, self.targeted.per_source([r[i] for r in each]), values)
            for i in range(count)
        ]
        if any(not bool(r.isfinite().all()) for r in each):
            raise NumericalError("a relevance is not finite. Remedy: explain() its target names where it begins.")
        return Attributions(
            {name: torch.stack([r[name] for r in relevance]) for name in relevance[0]},
            latents,
            chosen.detach().T,
            plan.ruleset.name,
        )


def _plain_bounds(graph: fx.Graph) -> None:
    """Bounds of a part that is written, from the front and inside: a batching rule takes them at their word."""
    aten = torch.ops.aten
    for node in graph.find_nodes(op="call_function", target=aten.slice_scatter.default):
        bound = bind(node)
        size = bound["self"].meta["val"].shape[bound["dim"]]
        for name in ("start", "end"):
            at = bound[name]
            if not isinstance(at, int):
                continue
            if at >= (size if isinstance(size, int) else 2**31):
                set_arg(node, name, None if name == "end" else size)
            elif at < 0 and isinstance(size, int):
                set_arg(node, name, max(at + size, 0))
            elif at < 0:
                with graph.inserting_before(node):
                    length = graph.call_function(aten.sym_size.int, (bound["self"], bound["dim"]))
                    set_arg(node, name, graph.call_function(operator.add, (length, at)))


def _at_once(inputs: Sequence[Tensor]) -> int:
    """How many targets of token ids make a sweep of a good size; four of what has no token ids."""
    tokens = [t for t in inputs if not t.is_floating_point() and t.dtype is not torch.bool and t.dim() == 2]
    if not tokens:
        return 4
    rows = _ROWS.get(tokens[0].device.type, 8 * 1024)
    return min(max(rows // max(t.numel() for t in tokens), 1), _MOST)


def _choose(output: Any, masks: Mapping[str, Tensor], position: Tensor, index: Tensor) -> Tensor:
    """(B, T) values at (B, T) positions and classes."""
    logits = find_logits(output)
    if logits.dim() > 3:
        raise TargetError(f"many targets of an output of shape {tuple(logits.shape)}: explain them one by one")
    if logits.dim() < 2:
        return logits.reshape(-1, 1).expand_as(index)
    if logits.dim() == 3:
        last = last_positions(logits.shape[1], logits.shape[0], masks).to(logits.device)
        logits = at_positions(logits, torch.where(position == _LAST, last[:, None], position % logits.shape[1]))
    else:
        logits = logits[:, None].expand(-1, index.shape[1], -1)
    chosen = torch.where(index == _LARGEST, logits.detach().argmax(-1), index % logits.shape[2])
    return logits.gather(2, chosen[..., None]).squeeze(2)


_FORM = Form("many", ("position", "index"), _choose)


def _pick(target: Target, sizes: Sequence[int | None], batch: int, device: torch.device) -> Tensor:
    """(2, B): position and class of one target."""
    if not isinstance(target, (int, Tensor, tuple, type(None))):
        raise TargetError("many targets are classes, or tuples (position, class): explain any other target by itself")
    parts = list(target) if isinstance(target, tuple) else [target]
    if len(parts) > max(len(sizes) - 1, 1):
        raise TargetError(f"target {target} has {len(parts)} indices, the output {len(sizes) - 1} besides the batch")
    open_ones: list[Any] = [_LAST] if len(parts) == 1 else []
    limits = [None, sizes[-1]] if len(parts) == 1 else list(sizes[1:])
    given = [*open_ones, *(_LARGEST if p is None else p for p in parts)]
    return torch.stack([_index(v, n, batch, device) for v, n in zip(given, limits, strict=True)])


def _index(value: Any, limit: int | None, batch: int, device: torch.device) -> Tensor:
    index = torch.as_tensor(value, device=device)
    if index.is_floating_point() or index.dtype is torch.bool or index.dim() > 1 or index.numel() not in (1, batch):
        raise TargetError(f"a target must be an int or a ({batch},) integer tensor, not {value!r}")
    if limit is not None and bool(((index >= limit) | ((index < -limit) & (index != _LARGEST))).any()):
        raise TargetError(f"target {index.tolist()} is out of range: there are {limit} (0 to {limit - 1})")
    return index.long().expand(batch)


def _one_per_target(count: int, batch: int, like: Tensor) -> Tensor:
    """(T, B, T): cotangents that pick the values of one target each."""
    return torch.eye(count, dtype=like.dtype, device=like.device)[:, None].expand(-1, batch, -1)
