"""One explanation by several processes, each with a stage of the model (``torch.distributed.pipelining``).

The forward pass runs from the first stage to the last, relevance (as modified gradients) back, for several
micro-batches at a time (PyTorch's GPipe schedule). Every process collects relevance of the sources in its stage; at the
end all processes exchange it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.utils import _pytree as pytree

from lrp_fx.capture import Call
from lrp_fx.capture.offload import Offloaded, put
from lrp_fx.errors import InputError, LrpError
from lrp_fx.explain import Pixels, Sweeper, Target
from lrp_fx.explain.model_notes import context_of
from lrp_fx.explain.reading import Reading
from lrp_fx.explain.sweep import TapPoints, check_reached
from lrp_fx.explain.target import at_pixels, beside, check_won, select
from lrp_fx.explain.target_types import INDICES, indices_of, normal
from lrp_fx.lowering.distributed.stages import Stage, split
from lrp_fx.lowering.dynamic_shapes import fake_inputs
from lrp_fx.lowering.joint_graph import Lifted, attributes_of, check_finite
from lrp_fx.results import Attribution, no_ledger

_UNACCOUNTED = "an explanation by several processes has no ledger: explain() in one process makes one."


@dataclass
class StageResult:
    """Result of one process: relevance by input and by latent, the explained values, or the error."""

    relevance: dict[str, Tensor] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)
    target: Tensor | None = None
    failure: LrpError | None = None


@dataclass(frozen=True)
class Pipeline:
    """This process's stage of a model; explains together with the other processes.

    Attributes:
        sweeper: the tapped graph of the whole model.
        stage: this process's stage; its weights are in memory, even if the model's are offloaded.
        group: the processes, one per stage, in order.
        read: flattens the arguments of a call.
    """

    sweeper: Sweeper
    stage: Stage
    group: dist.ProcessGroup | None
    read: Callable[[tuple[Any, ...], dict[str, Any]], Call] = field(repr=False)
    _exchanged: dict[Any, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls,
        sweeper: Sweeper,
        group: dist.ProcessGroup | None,
        read: Callable[[tuple[Any, ...], dict[str, Any]], Call],
    ) -> Pipeline:
        """The stage of this process; every process of the group has to call it.

        Raises:
            InputError: without a process group, or when the model cannot be cut into as many stages.
        """
        if not dist.is_initialized():
            raise InputError("a pipeline needs processes: call torch.distributed.init_process_group first")
        stage = split(sweeper, dist.get_world_size(group))[dist.get_rank(group)]
        _read_weights(stage.graph_module)
        return cls(sweeper, stage, group, read)

    @property
    def rank(self) -> int:
        """The number of this stage."""
        return dist.get_rank(self.group)

    @property
    def count(self) -> int:
        """How many stages there are."""
        return dist.get_world_size(self.group)

    @cached_property
    def device(self) -> torch.device:
        """Device of this stage's weights."""
        return next(iter(attributes_of(self.stage.graph_module).values()), torch.empty(0)).device

    def explain(self, *args: Any, target: Target = None, microbatches: int = 1, **kwargs: Any) -> Attribution:
        """Explain one call: all processes of the group call this with the same arguments and get the same relevance.

        The model's output is part of the attribution in the last process only; there is no ledger.

        Args:
            *args: the model's inputs.
            target: as in ``ExplainableModule.explain``.
            microbatches: number of equal parts of the batch that follow each other through the stages.
            **kwargs: the model's inputs.

        Raises:
            InputError, TargetError, NumericalError: in all processes alike.
        """
        runs = _Microbatches.of(self.sweeper, self.read(args, kwargs), target, microbatches)
        module = _Running(self, runs)
        rows = torch.arange(runs.size, device=self.device)
        last = self.rank == self.count - 1
        with torch.inference_mode(False), torch.enable_grad():
            key = (microbatches, *(v.shape for v in runs.call.tensors.values()))
            if key not in self._exchanged:
                self._exchanged[key] = self._sizes(runs)
            arrives, departs = self._exchanged[key]
            stage = PipelineStage(
                module, self.rank, self.count, self.device, input_args=arrives, output_args=departs, group=self.group
            )
            schedule = ScheduleGPipe(stage, microbatches, loss_fn=module.chosen, scale_grads=False)
            schedule.step(rows=rows, target=rows if last else None, return_outputs=False)
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, module.result(), group=self.group)
        attribution = self._attribution(gathered, module.output() if last else None)
        check_won(runs.target, attribution.target)
        return attribution

    def _sizes(self, runs: _Microbatches) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Meta tensors in the shapes of the values from the stage before, and for the next one."""
        leaves = runs.leaves(torch.arange(runs.size // runs.chunks))
        tapped, captured = self.sweeper.tapped, self.sweeper.captured
        fakes = fake_inputs(leaves, captured.names, captured.shapes, dynamic=False)
        whole = Lifted(tapped, {name: fakes.constant(value) for name, value in attributes_of(tapped).items()})
        with fakes.mode:
            results = pytree.tree_leaves(whole.run(*fakes.leaves, enable_io_processing=False)[0])

        def sized(value: Tensor) -> Tensor:
            empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
            return empty.requires_grad_(value.requires_grad)

        departs = [whole.env[n] for n in self.stage.departs] or [v for v in results if isinstance(v, Tensor)]
        return tuple(sized(whole.env[n]) for n in self.stage.arrives), tuple(map(sized, departs))

    def _attribution(self, gathered: list[StageResult], output: Any) -> Attribution:
        for result in gathered:
            if result.failure is not None:
                raise result.failure
        relevance: dict[str, Tensor] = {}
        latents: dict[str, Tensor] = {}
        for result in gathered:
            for name, value in result.relevance.items():
                value = value.to(self.device)
                relevance[name] = relevance[name] + value if name in relevance else value
            latents |= {path: value.to(self.device) for path, value in result.latents.items()}
        target = gathered[-1].target
        assert target is not None
        check_finite((target, *relevance.values()))
        name = self.sweeper.rewritten.plan.ruleset.name
        order = {path: latents[path] for path in self.sweeper.latents}
        return Attribution(
            relevance=relevance,
            latents=order,
            target=target.to(self.device),
            ruleset=name,
            context=context_of(self.sweeper.rewritten.plan.facts),
            _output=output,
            _sources=dict(relevance),
            _account=no_ledger(_UNACCOUNTED),
        )


def _read_weights(module: nn.Module) -> None:
    """Read offloaded weights into memory."""
    for name, value in list(attributes_of(module).items()):  # type: ignore[arg-type]
        if isinstance(value, Offloaded):
            put(module, name, value.read())


@dataclass(frozen=True)
class _Microbatches:
    """A call in micro-batches of equally many samples.

    Attributes:
        call: the whole call.
        target: the target of the whole call.
        batched: whether each leaf has a row per sample.
        size: number of samples.
        chunks: number of micro-batches.
        reading: where the output has its logits.
    """

    call: Call
    target: Target
    batched: tuple[bool, ...]
    size: int
    chunks: int
    reading: Reading

    @classmethod
    def of(cls, sweeper: Sweeper, call: Call, target: Target, chunks: int) -> _Microbatches:
        """Split a call.

        Raises:
            InputError: when the batch is not divisible, or the capture does not serve the size of a micro-batch.
        """
        if call.names != sweeper.captured.names:
            raise InputError(f"the pipeline takes {', '.join(sweeper.captured.names)}, not {', '.join(call.names)}")
        sizes = [int(v.shape[0]) for v in call.leaves if isinstance(v, Tensor) and v.dim()]
        size = max(sizes[:1], default=1)
        batched = tuple(isinstance(v, Tensor) and v.dim() > 0 and v.shape[0] == size for v in call.leaves)
        runs = cls(call, normal(target), batched, size, chunks, sweeper.reading)
        if chunks < 1 or size % chunks:
            raise InputError(
                f"{size} samples cannot be split into {chunks} equal micro-batches: choose a divisor of {size}"
            )
        if not sweeper.captured.serves(runs.leaves(torch.arange(size // chunks))):
            raise InputError(
                f"the capture of this pipeline does not serve {size // chunks} samples: explain them as one "
                "micro-batch, or make the pipeline with such an example"
            )
        return runs

    def leaves(self, rows: Tensor) -> tuple[Any, ...]:
        """The call's leaves for some of its samples."""
        pairs = zip(self.call.leaves, self.batched, strict=True)
        return tuple(v[rows.to(v.device)] if of_samples else v for v, of_samples in pairs)

    def chosen(self, output: Any, rows: Tensor, leaves: tuple[Any, ...]) -> Tensor:
        """The explained scalars of some samples."""

        def mine(value: Any) -> Any:
            per_sample = isinstance(value, Tensor) and value.dim() == 1 and len(value) == self.size
            return value[rows.to(value.device)] if per_sample else value

        target: Any = self.target
        if type(target) in INDICES:
            target = replace(target, **{name: mine(index) for name, index in indices_of(target).items()})
        elif isinstance(target, tuple):
            target = tuple(mine(index) for index in target)
        else:
            target = mine(target)
        inputs = beside(dict(zip(self.call.names, leaves, strict=True)))
        if isinstance(target, Pixels):  # without a check: its class may win in another micro-batch
            return at_pixels(self.reading.logits(output), target, inputs, self.reading)
        return select(output, target, inputs, self.reading)


class _Running(nn.Module):
    """A stage while it explains one call: runs micro-batches and stores their tap points."""

    def __init__(self, pipeline: Pipeline, runs: _Microbatches) -> None:
        super().__init__()
        self.pipeline, self.runs = pipeline, runs
        self.graph_module = pipeline.stage.graph_module
        self.rows: list[Tensor] = []
        self.points: list[TapPoints] = []
        self.results: list[list[Any]] = []
        self.targets: list[Tensor] = []
        self.failure: LrpError | None = None

    def forward(self, *arriving: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """One micro-batch: values for the next stage; in the last stage, the output's tensors."""
        departing, sources, latents, results = self.graph_module(*arriving, *self.runs.leaves(rows))
        sweeper = self.pipeline.sweeper
        paths = list(sweeper.latents)
        here = [paths[index] for index in self.pipeline.stage.latents]
        for latent in latents:
            if latent.requires_grad:
                latent.retain_grad()
        self.rows.append(rows)
        self.points.append(TapPoints.of(sources, here, latents, sweeper.rewritten.plan.feeds_zeros))
        self.results.append(pytree.tree_leaves(results))
        return tuple(departing) or tuple(v for v in self.results[-1] if isinstance(v, Tensor))

    def chosen(self, output: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        """The sum of the explained scalars; an error is stored, so that all processes raise it."""
        try:
            whole = pytree.tree_unflatten(self.results[len(self.targets)], self.pipeline.sweeper.captured.out_spec)
            chosen = self.runs.chosen(whole, rows, self.runs.leaves(rows))
            check_reached(chosen)
        except LrpError as failure:
            self.failure = self.failure or failure
            chosen = sum(v.sum() * 0 for v in output if v.requires_grad).reshape(1)  # type: ignore[union-attr]
        self.targets.append(chosen.detach())
        return chosen.sum()

    def result(self) -> StageResult:
        """This stage's part of the explanation."""
        if self.failure is not None:
            return StageResult(failure=self.failure)
        swept = [points.relevance([t.grad for t in points.all]) for points in self.points]
        pieces = [self._per_input(rows, piece.sources) for rows, piece in zip(self.rows, swept, strict=True)]
        batched = dict(zip(self.runs.call.names, self.runs.batched, strict=True))
        relevance = {name: _joined([p[name] for p in pieces], batched[name]) for name in pieces[0]}
        latents: dict[str, Tensor] = {}
        for path in swept[0].latents:
            chunks = [piece.latents[path] for piece in swept]
            size = self.runs.size // self.runs.chunks
            latents[path] = _joined(chunks, chunks[0].dim() > 0 and chunks[0].shape[0] == size)
        return StageResult(relevance, latents, torch.cat(self.targets) if self.targets else None)

    def _per_input(self, rows: Tensor, relevance: list[Tensor]) -> Mapping[str, Tensor]:
        inputs = self.pipeline.sweeper.inputs
        sources = inputs.facts.sources
        here = [(i, r) for i, r in zip(self.pipeline.stage.sources, relevance, strict=True) if i < len(sources)]
        values = inputs.values(self.runs.leaves(rows))
        return inputs.per_input([sources[i] for i, _ in here], [r for _, r in here], values)

    def output(self) -> Any:
        """The model's output, of its own type: the micro-batches' outputs one after the other."""
        size = self.runs.size // self.runs.chunks
        leaves = []
        for chunks in zip(*self.results, strict=True):
            of_samples = isinstance(chunks[0], Tensor) and chunks[0].dim() > 0 and chunks[0].shape[0] == size
            leaves.append(torch.cat([c.detach() for c in chunks]) if of_samples else chunks[0])
        return pytree.tree_unflatten(leaves, self.pipeline.sweeper.captured.out_spec)


def _joined(chunks: list[Tensor], of_samples: bool) -> Tensor:
    """Relevance over micro-batches: concatenated where it is per sample, summed where samples share a tensor."""
    return torch.cat(chunks) if of_samples else torch.stack(chunks).sum(0)
