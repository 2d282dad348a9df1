"""Results of several targets per sample: a list of targets, and the tokens of a generated text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lrp_fx.results.accounts import Accounting, Accounts, in_groups, joined, no_ledger, of_rows, of_the_sum, scaled
from lrp_fx.results.attribution import Attribution
from lrp_fx.results.context import Tokens
from lrp_fx.results.document import count, text, texts
from lrp_fx.results.merging import Grouping, Joined
from lrp_fx.results.result import Result
from lrp_fx.results.to_inseq import to_inseq
from lrp_fx.results.words import By

_NO_LEDGER = (
    "several targets that were copied, saved or stripped of their inputs have no ledger: use explain(target=...) "
    "with one target"
)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Several(Result):
    """A result of several targets per sample."""

    #: dimension of targets in ``target``, ``relevance`` and ``latents``
    TARGETS: ClassVar[int] = 0

    _accounts: Accounts | None = None

    @property
    def count(self) -> int:
        """Number of targets."""
        return self.target.shape[self.TARGETS]

    def of(self, number: int) -> Attribution:
        """The explanation of one target (one new token) of every sample.

        Its ledger is computed on demand, by a sweep for that target.

        Raises:
            IndexError: for a target out of range.
        """
        if not -self.count <= number < self.count:
            raise IndexError(f"there is no target {number}: there are {self.count}")
        number %= self.count
        name = [self.name_of(number)]
        return self._single(lambda t: t.select(self.TARGETS, number), name, self._account_of(number))

    @property
    def target_names(self) -> tuple[str, ...] | None:
        """Names of the targets."""
        return tuple(map(self.name_of, range(self.count)))

    def each(self) -> Iterator[Attribution]:
        """The explanations of all targets, one by one."""
        return (self.of(i) for i in range(self.count))

    def summed(self) -> Attribution:
        """The explanation of the sum of all targets of every sample; its ledger takes a sweep for each of them."""
        account = functools.reduce(
            lambda first, second: functools.partial(joined, first, second), map(self._account_of, range(self.count))
        )
        return self._single(lambda t: t.sum(self.TARGETS), None, account)

    def name_of(self, number: int) -> str:
        """Name of a target."""
        return f"target {number}"

    def without_inputs(self) -> Self:
        """The same result without the inputs, and without the ledgers, which need them."""
        return replace(super().without_inputs(), _accounts=None)

    def _account_of(self, number: int) -> Accounting:
        return no_ledger(_NO_LEDGER) if self._accounts is None else self._accounts(number)

    def _accounted(self, change: Callable[[Accounting], Accounting]) -> Accounts | None:
        """The accounts of all targets, each changed by ``change``."""
        accounts = self._accounts
        return None if accounts is None else lambda number: change(accounts(number))

    def _of(self, rows: list[int]) -> Self:
        count = len(self)
        accounts = self._accounted(lambda account: functools.partial(of_rows, account, rows, count))
        return replace(super()._of(rows), _accounts=accounts)

    def __mul__(self, factor: float | Tensor) -> Self:
        factors = torch.as_tensor(factor).double().cpu().expand(len(self))
        accounts = self._accounted(lambda account: functools.partial(scaled, account, factors))
        return replace(super().__mul__(factor), _accounts=accounts)

    __rmul__ = __mul__

    def _sum(self, other: Self) -> Self:
        mine, theirs = self._accounts, other._accounts
        both = None
        if mine is not None and theirs is not None:

            def both(number: int) -> Accounting:
                return functools.partial(joined, mine(number), theirs(number))

        return replace(super()._sum(other), _accounts=both)

    def _of_all_samples(self) -> Self:
        count = len(self)
        accounts = self._accounted(lambda account: functools.partial(of_the_sum, account, count))
        return replace(super()._of_all_samples(), _accounts=accounts)

    def _category_rows(self) -> list[dict[str, Any]]:
        return [{"target": one.context.answers[0], **row} for one in self.each() for row in one._category_rows()]  # type: ignore[index]

    def __getstate__(self) -> dict[str, Any]:
        """State for another process, without ledgers, which would take a sweep for each target."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"_accounts": None}

    def _single(self, change: Any, name: list[str] | None, account: Accounting) -> Attribution:
        answers = None if name is None else tuple(name * len(self))
        tensors = self._mapped(change)
        return Attribution(
            **tensors,
            ruleset=self.ruleset,
            inputs=self.inputs,
            context=replace(self.context, answers=answers),
            _sources=tensors["relevance"],
            _account=account,
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
        latents: name in ``at=`` -> (B, T_new, ...), with T positions, zero from the explained token on.
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
        latents = {n: new.sums(v, 0, 1) for n, v in self.latents.items()}
        accounts, groups = self._accounts, new.index
        merged = None if accounts is None else lambda number: functools.partial(in_groups, accounts, groups, number)
        whole = replace(self, relevance=summed, target=new.sums(self.target, 0, 1), latents=latents, _accounts=merged)
        return replace(
            whole._merged(groupings), sequences=self.sequences.new_full((len(self), both.width), -1), start=prompt.width
        )

    def to_inseq(self) -> Any:
        """A ``FeatureAttributionOutput`` of inseq, with ``.show()``, ``.save(path)``, aggregations and comparisons.

        The explained values are the step score "target".

        Raises:
            InputError: for more than one input of tokens besides the generated sequence.
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
