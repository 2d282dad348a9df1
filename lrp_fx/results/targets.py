"""Results of several targets per sample: those that were asked for, and the tokens of a generated text."""

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
from lrp_fx.results.words import By

_NO_LEDGER = "several targets at once have no ledger: explain(target=...) of one for the whole account"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Several(Result):
    """What has several targets per sample."""

    #: dimension of ``target``, ``relevance`` and ``latents`` that counts targets
    TARGETS: ClassVar[int] = 0

    @property
    def count(self) -> int:
        """How many targets there are."""
        return self.target.shape[self.TARGETS]

    def of(self, number: int) -> Attribution:
        """The explanation of one target (of one new token) of every sample.

        Raises:
            IndexError: for one that is not there.
        """
        if not -self.count <= number < self.count:
            raise IndexError(f"there is no target {number}: there are {self.count}")
        return self._single(lambda t: t.select(self.TARGETS, number % self.count), [self.name_of(number % self.count)])

    @property
    def target_names(self) -> tuple[str, ...] | None:
        """What the targets are called."""
        return tuple(map(self.name_of, range(self.count)))

    def each(self) -> Iterator[Attribution]:
        """The explanations of all targets, one by one."""
        return (self.of(i) for i in range(self.count))

    def summed(self) -> Attribution:
        """The explanation of the sum of all targets of every sample."""
        return self._single(lambda t: t.sum(self.TARGETS), None)

    def name_of(self, number: int) -> str:
        """What a target is called."""
        return f"target {number}"

    def _single(self, change: Any, name: list[str] | None) -> Attribution:
        answers = None if name is None else tuple(name * len(self))
        parts = self._mapped(change)
        return Attribution(
            **parts,
            ruleset=self.ruleset,
            inputs=self.inputs,
            context=replace(self.context, answers=answers),
            _sources=parts["relevance"],
            _account=no_ledger(_NO_LEDGER),
        )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Attributions(Several):
    """Relevance of T targets per sample.

    Attributes:
        relevance: input name -> (T, B, ...), each target's relevance as in :class:`lrp_fx.Attribution`.
        latents: module path -> (T, B, ...).
        target: (T, B) the explained values.
        names: what each target is called.
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
        """What a target is called."""
        return self.names[number] if self.names else super().name_of(number)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Generation(Several):
    """Generated tokens and where each of them comes from.

    Attributes:
        sequences: (B, T) all token ids: the prompt and what was generated; of an encoder-decoder, the decoder's.
        start: index of the first new token in ``sequences``.
        relevance: input name -> (B, T_new, ...): of the tokens in ``sequences``, (B, T_new, T), zero from the token
            itself on.
        target: (B, T_new) explained value of each new token: its logit, or what else was asked for.
        generated: name of the input that ``sequences`` are.
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
        """On another device or in another precision, as ``torch.Tensor.to``; integers keep theirs."""
        sequences = self.sequences.to(*args, **kwargs).to(self.sequences.dtype)
        return replace(super().to(*args, **kwargs), sequences=sequences)

    def merge(self, by: By = "words") -> Self:
        """As :meth:`lrp_fx.results.Result.merge`: generated tokens are merged, too, and their targets summed.

        No group reaches over the end of the prompt. ``sequences`` holds -1: a word has no id.
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

    def start_of(self, name: str) -> int | None:
        """Where generated tokens begin in an input: None where it has none."""
        return self.start if name == self.generated else None

    def new_tokens(self) -> tuple[Tokens, ...]:
        """The tokens that were generated, of every sample."""
        return tuple(tokens.part(slice(self.start, self.start + self.count)) for tokens in self.tokens(self.generated))

    def name_of(self, number: int) -> str:
        """The new token, where all samples have the same one."""
        texts = {tokens.texts[number] for tokens in self.new_tokens()}
        return texts.pop() if len(texts) == 1 else f"new token {number}"


def _halves(start: int, end: int) -> tuple[slice, slice]:
    return slice(0, start), slice(start, end)
