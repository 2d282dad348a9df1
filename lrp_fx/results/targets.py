"""Results of several targets per sample: a list of targets, and the tokens of a generated text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from lrp_fx.results.attribution import Attribution, no_ledger
from lrp_fx.results.context import Tokens
from lrp_fx.results.document import count, text, texts
from lrp_fx.results.merging import Grouping, Joined
from lrp_fx.results.result import Result
from lrp_fx.results.to_inseq import to_inseq
from lrp_fx.results.words import By

_NO_LEDGER = "several targets at once have no ledger: use explain(target=...) with one target"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Several(Result):
    """A result of several targets per sample."""

    #: dimension of targets in ``target``, ``relevance`` and ``latents``
    TARGETS: ClassVar[int] = 0

    @property
    def count(self) -> int:
        """Number of targets."""
        return self.target.shape[self.TARGETS]

    def of(self, number: int) -> Attribution:
        """The explanation of one target (one new token) of every sample.

        Raises:
            IndexError: for a target out of range.
        """
        if not -self.count <= number < self.count:
            raise IndexError(f"there is no target {number}: there are {self.count}")
        return self._single(lambda t: t.select(self.TARGETS, number % self.count), [self.name_of(number % self.count)])

    @property
    def target_names(self) -> tuple[str, ...] | None:
        """Names of the targets."""
        return tuple(map(self.name_of, range(self.count)))

    def each(self) -> Iterator[Attribution]:
        """The explanations of all targets, one by one."""
        return (self.of(i) for i in range(self.count))

    def summed(self) -> Attribution:
        """The explanation of the sum of all targets of every sample."""
        return self._single(lambda t: t.sum(self.TARGETS), None)

    def name_of(self, number: int) -> str:
        """Name of a target."""
        return f"target {number}"

    def _single(self, change: Any, name: list[str] | None) -> Attribution:
        answers = None if name is None else tuple(name * len(self))
        tensors = self._mapped(change)
        return Attribution(
            **tensors,
            ruleset=self.ruleset,
            inputs=self.inputs,
            context=replace(self.context, answers=answers),
            _sources=tensors["relevance"],
            _account=no_ledger(_NO_LEDGER),
        )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Attributions(Several):
    """Relevance of T targets per sample.

    Attributes:
        relevance: input name -> (T, B, ...), each target's relevance as in :class:`lrp_fx.Attribution`.
        latents: module path -> (T, B, ...).
        target: (T, B) explained values.
        names: names of the targets.
    """

    KIND: ClassVar[str] = "Attributions"
    SAMPLES: ClassVar[int] = 1
    LEADING: ClassVar[tuple[str, ...]] = ("target", "sample")

    names: tuple[str, ...] = ()

    def _described(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"names": list(self.names)}, {}

    @classmethod
    def _read(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor], **more: Any) -> Self:
        return super()._read(about, tensors, names=texts(about, "names"), **more)

    def _check(self) -> None:
        super()._check()
        if self.names and len(self.names) != self.count:
            raise ValueError(f"{len(self.names)} names for {self.count} targets")

    def name_of(self, number: int) -> str:
        """Name of a target."""
        return self.names[number] if self.names else super().name_of(number)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Generation(Several):
    """Generated tokens, each with relevance of the tokens before it.

    Attributes:
        sequences: (B, T) all token ids, prompt and generated; of an encoder-decoder model, the decoder's.
        start: index of the first new token in ``sequences``.
        relevance: input name -> (B, T_new, ...); for ``sequences`` (B, T_new, T), zero from the explained token on.
        target: (B, T_new) explained value of each new token: its logit, or another target.
        generated: name of the input of ``sequences``.
    """

    KIND: ClassVar[str] = "Generation"
    TARGETS: ClassVar[int] = 1
    LEADING: ClassVar[tuple[str, ...]] = ("sample", "generated")

    sequences: Tensor
    start: int
    generated: str = "input_ids"

    def _described(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"start": self.start, "generated": self.generated}, {"sequences": self.sequences}

    @classmethod
    def _read(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor], **more: Any) -> Self:
        start, name = count(about, "start"), text(about, "generated")
        return super()._read(about, tensors, sequences=tensors["sequences"], start=start, generated=name, **more)

    def _check(self) -> None:
        super()._check()
        if self.sequences.shape != (len(self), self.start + self.count) or self.generated not in self.relevance:
            raise ValueError(f"sequences of shape {tuple(self.sequences.shape)}, {self.count} new tokens")

    def _of(self, rows: list[int]) -> Self:
        return replace(super()._of(rows), sequences=self.sequences[rows])

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to another device or precision, as ``torch.Tensor.to``; integers keep their precision."""
        sequences = self.sequences.to(*args, **kwargs).to(self.sequences.dtype)
        return replace(super().to(*args, **kwargs), sequences=sequences)

    def merge(self, by: By = "words") -> Self:
        """As :meth:`lrp_fx.results.Result.merge`; generated tokens are merged, too, and their targets summed.

        No group extends over the end of the prompt. ``sequences`` is -1, as words have no ids.
        """
        name = self.generated
        tokens, end = self.tokens(name), self.start + self.count
        prompt, new = (Grouping([t.part(which) for t in tokens], by) for which in _halves(self.start, end))
        both = Joined(prompt, new)
        others = {n: Grouping(self.tokens(n), by) for n in self.token_inputs if n != name}
        groupings: dict[str, Any] = {**others, name: both}
        summed = {n: new.sums(r, 0, 1) for n, r in self.relevance.items()}
        whole = replace(self, relevance=summed, target=new.sums(self.target, 0, 1), latents={})
        return replace(
            whole._merged(groupings), sequences=self.sequences.new_full((len(self), both.width), -1), start=prompt.width
        )

    def to_inseq(self) -> Any:
        """A ``FeatureAttributionOutput`` of inseq: ``.show()``, ``.save(path)``, its aggregations and comparisons.

        Explained values are its step score "target".

        Raises:
            InputError: where several inputs have tokens besides those that were generated.
            MissingExtraError: when inseq is not installed.
        """
        return to_inseq(self)

    def start_of(self, name: str) -> int | None:
        """Index of the first generated token in an input; None without one."""
        return self.start if name == self.generated else None

    def new_tokens(self) -> tuple[Tokens, ...]:
        """The generated tokens of every sample."""
        return tuple(tokens.part(slice(self.start, self.start + self.count)) for tokens in self.tokens(self.generated))

    def name_of(self, number: int) -> str:
        """The new token, if it is the same in all samples; otherwise its number."""
        texts = {tokens.texts[number] for tokens in self.new_tokens()}
        return texts.pop() if len(texts) == 1 else f"new token {number}"


def _halves(start: int, end: int) -> tuple[slice, slice]:
    return slice(0, start), slice(start, end)
