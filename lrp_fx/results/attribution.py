"""The result of an explanation of one target per sample."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lrp_fx.errors import LatentError
from lrp_fx.results.accounts import (
    Accounting,
    as_computed,
    computed_ledger,
    joined,
    no_ledger,
    of_rows,
    of_the_sum,
    refuse,
    scaled,
)
from lrp_fx.results.document import ledger_data, part_of, read_ledger, text
from lrp_fx.results.ledger import Ledger
from lrp_fx.results.notes import Note, find_notes
from lrp_fx.results.pictures import heading_of, waterfall_parts
from lrp_fx.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNSAVED = "this result was read from a file without this part. Remedy: explain again"
_DROPPED = (
    "this is computed on demand from the inputs, which were dropped (keep_inputs=False). Remedy: explain with "
    "keep_inputs=True, read it, then result.without_inputs()"
)


@dataclass(frozen=True)
class Later:
    """A part of an attribution that is computed on demand.

    Attributes:
        make: function that computes it.
        logits: for an output, the logits (B, classes) at the explained positions, which the explanation computed.
    """

    make: Callable[[], Any]
    logits: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Attribution(Result):
    """Relevance of one target per sample.

    Attributes:
        relevance: input name -> relevance. Token ids: (B, S), summed over features; floating inputs: in their shape.
        latents: name in ``at=`` -> relevance of that tensor, in its shape.
        target: (B,) explained values.
    """

    KIND: ClassVar[str] = "Attribution"

    _output: Any = None
    _sources: dict[str, Tensor] | Later = field(default_factory=dict)
    _account: Accounting

    @cached_property
    def output(self) -> Any:
        """The model's output in its own type, detached.

        It is computed on demand after explanations that do not need it: those of one position of a sequence of logits,
        and those by a compiled graph without outputs.

        Raises:
            StaleResultError: if inputs or weights were changed in place since the explanation.
        """
        return _now(self._output)

    @cached_property
    def ledger(self) -> Ledger:
        """All entries of the explanation (:class:`lrp_fx.Ledger`).

        Computed at first use, by a second sweep; for some samples of a batch by a third sweep, for their targets alone.

        Raises:
            StaleResultError: if inputs or weights were changed in place since the explanation.
        """
        return self._account(None)

    def amounts(self) -> Mapping[str, float]:
        """Category of the ledger -> amount (computed at first use)."""
        return self.ledger.by("category")

    @property
    def notes(self) -> tuple[Note, ...]:
        """Signs of a weak map, each with a remedy (:mod:`lrp_fx.results.notes`); signs in the ledger appear after its
        computation."""
        amounts = self.ledger.by("category") if "ledger" in self.__dict__ else None
        return (*self.context.notes, *find_notes(self.relevance, self.target, amounts, self.ruleset))

    @cached_property
    def sources(self) -> dict[str, Tensor]:
        """Name -> elementwise relevance of every source: embeddings of the inputs, then position, type, class-token and
        latent parameters (from the ledger)."""
        collected = dict(_now(self._sources))
        for entry in self.ledger.entries:
            if entry.category == "source" and entry.relevance is not None:
                earlier = collected.get(entry.name)
                same = earlier is not None and earlier.shape == entry.relevance.shape
                key = entry.name if earlier is None or same else f"{entry.name} ({entry.node})"
                collected[key] = earlier + entry.relevance if same and earlier is not None else entry.relevance
        return collected

    def without_inputs(self) -> Self:
        """The same numbers without the inputs, and without parts that would be computed from them: a ledger that was
        not computed, an output of a compiled graph, sources."""
        dropped = Later(functools.partial(refuse, _DROPPED))
        account = functools.partial(as_computed, self.ledger) if "ledger" in self.__dict__ else no_ledger(_DROPPED)
        output = dropped if isinstance(self._output, Later) and "output" not in self.__dict__ else self.output
        return self._derived(inputs={}, _output=output, _sources=dropped, _account=account)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move relevance, target, inputs and output to another device or precision, as ``torch.Tensor.to``."""

        def move(tree: Any) -> Any:
            return pytree.tree_map_only(Tensor, lambda t: _moved(t, args, kwargs), tree)

        later = isinstance(self._output, Later)
        output = Later(lambda: move(self.output)) if later else move(self._output)
        moved = super().to(*args, **kwargs)
        return moved._derived(_output=output, _sources=Later(lambda: move(_now(self._sources))))

    def _derived(self, **changes: Any) -> Self:
        derived = super()._derived(**changes)
        if "ledger" in self.__dict__ and "_account" not in changes:  # the computed ledger still holds
            derived.__dict__["ledger"] = self.ledger
        return derived

    def _of(self, rows: list[int]) -> Self:
        def some() -> dict[str, Tensor]:
            return {n: self._pick(t, rows, f"the source '{n}'") for n, t in _now(self._sources).items()}

        def rest(output: Any) -> Any:
            count = len(self)
            return pytree.tree_map_only(Tensor, lambda t: t[rows] if t.dim() and len(t) == count else t, output)

        later = isinstance(self._output, Later)
        return replace(
            super()._of(rows),
            _output=Later(lambda: rest(self.output)) if later else rest(self._output),
            _sources=Later(some),
            _account=functools.partial(of_rows, self._accounted, rows, len(self)),
        )

    def __mul__(self, factor: float | Tensor) -> Self:
        factors = torch.as_tensor(factor).double().cpu().expand(len(self))

        def multiplied() -> dict[str, Tensor]:
            return {n: t * self._beside(factors, t).to(t.dtype) for n, t in _now(self._sources).items()}

        account = functools.partial(scaled, self._accounted, factors)
        return replace(super().__mul__(factor), _sources=Later(multiplied), _account=account)

    __rmul__ = __mul__

    def _of_all_samples(self) -> Self:
        def total() -> dict[str, Tensor]:
            count = len(self)
            collected = _now(self._sources).items()
            return {n: t.sum(0, keepdim=True) if t.dim() and len(t) == count else t for n, t in collected}

        account = functools.partial(of_the_sum, self._accounted, len(self))
        return replace(super()._of_all_samples(), _output=None, _sources=Later(total), _account=account)

    def _category_rows(self) -> list[dict[str, Any]]:
        try:
            ledgers = [one.ledger for one in self]
        except LatentError:  # there is only a ledger of all samples together
            return [{"category": c, "amount": a} for c, a in self.ledger.by("category").items()]
        return [
            {"sample": i, "category": category, "amount": amount}
            for i, ledger in enumerate(ledgers)
            for category, amount in ledger.items()
        ]

    def plot(self, kind: str = "auto", *, input: str | None = None) -> Figure:
        """As :meth:`lrp_fx.results.Result.plot`; "waterfall" draws the ledger: other categories first, then the largest
        words or features, then the rest of the inputs, up to the explained value (a batch by category alone)."""
        if kind != "waterfall":
            return super().plot(kind, input=input)
        shares = waterfall_parts(self.merge("words") if self.token_inputs else self) if len(self) == 1 else []
        return self.ledger.plot(shares, title=heading_of(self) if len(self) == 1 else "", notes=self.notes)

    def save(self, path: str | Path, *, inputs: bool = True, output: bool = False) -> Path:
        """As :meth:`lrp_fx.results.Result.save`; computes the ledger if necessary.

        Args:
            path: ``*.safetensors`` or ``*.json.gz``.
            inputs: whether to save the inputs.
            output: whether to save the model's output: a tensor, or the tensors of a mapping by name (a dict after
                loading). For a language model it is large.
        """
        whole = self._derived(_output=self.output if output else None)
        return super(Attribution, whole).save(path, inputs=inputs)

    def _described(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        output = {"": self._output} if isinstance(self._output, Tensor) else dict(self._output or {})
        tensors = {f"output/{name}": value for name, value in output.items() if isinstance(value, Tensor)}
        try:
            return {"ledger": ledger_data(self.ledger)}, tensors
        except LatentError as reason:
            return {"ledger": None, "no_ledger": str(reason)}, tensors

    @classmethod
    def _read(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor], **more: Any) -> Self:
        output: Any = part_of(tensors, "output") or Later(functools.partial(refuse, _UNSAVED))
        if isinstance(output, dict) and output.keys() == {""}:
            output = output[""]
        if about.get("ledger") is None:
            account = no_ledger(text(about, "no_ledger"))
        else:
            account = computed_ledger(read_ledger(about["ledger"]))
        unsaved = Later(functools.partial(refuse, _UNSAVED))
        return super()._read(about, tensors, _output=output, _sources=unsaved, _account=account, **more)

    def _sum(self, other: Self) -> Self:
        def both() -> dict[str, Tensor]:
            mine, theirs = _now(self._sources), _now(other._sources)
            return {n: mine.get(n, 0.0) + theirs.get(n, 0.0) for n in {**mine, **theirs}}

        total = super()._sum(other)
        return replace(
            total, _sources=Later(both), _account=functools.partial(joined, self._accounted, other._accounted)
        )

    def _accounted(self, weights: Tensor | None) -> Ledger:
        """The ledger of a weighted sum of targets; for equal weights of 1, the cached one."""
        return self.ledger if weights is None or bool((weights == 1).all()) else self._account(weights)

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process: all lazy parts are computed, including the ledger; those that cannot be (their
        inputs were dropped) keep the reason."""
        try:
            account: Accounting = functools.partial(as_computed, self.ledger)
        except LatentError as reason:  # there is no ledger, for this reason
            account = no_ledger(str(reason))
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = {"_output": lambda: self.output, "_sources": lambda: _now(self._sources)}
        return state | {name: _final(make) for name, make in parts.items()} | {"_account": account}


def _moved(tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    moved = tensor.to(*args, **kwargs)
    return moved if tensor.is_floating_point() else moved.to(tensor.dtype)


def _final(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except LatentError as reason:
        return Later(functools.partial(refuse, str(reason)))


def _now(value: Any) -> Any:
    return value.make() if isinstance(value, Later) else value
