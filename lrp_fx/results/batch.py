"""A batch of explained samples: slices, devices, sums, and what is known of the samples."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from lrp_fx.errors import InputError, LatentError
from lrp_fx.results.context import Context, Tokens
from lrp_fx.results.notes import Note

#: one sample, or some of a batch
Index = int | slice | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Batch:
    """Relevance of explained values of a batch of samples.

    ``len`` is the number of samples, ``result[i]`` and ``result[2:5]`` are results of some of them, and a loop visits
    them one by one. All that is derived from a result is again one: sums stay what they were.

    Attributes:
        relevance: input name -> relevance.
        latents: module path -> relevance of that module's output.
        target: the explained values.
        ruleset: name of the rule set.
        inputs: input name -> what was explained; empty where inputs were not kept.
        context: tokens, names of classes, and what else is known of the samples.
    """

    #: dimension of ``target``, ``relevance`` and ``latents`` that counts samples
    SAMPLES: ClassVar[int] = 0
    #: what dimensions of ``relevance`` before those of the input are called
    LEADING: ClassVar[tuple[str, ...]] = ("sample",)

    relevance: dict[str, Tensor]
    latents: dict[str, Tensor]
    target: Tensor
    ruleset: str
    inputs: dict[str, Tensor] = field(default_factory=dict)
    context: Context = field(default_factory=Context)

    def __len__(self) -> int:
        return self.target.shape[self.SAMPLES]

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Index) -> Self:
        """Some samples, as a result of their own.

        Raises:
            IndexError: for a sample that is not there.
            InputError: where all samples share an input: what it got from each is not known apart.
        """
        rows = _rows(index, len(self))
        return self if rows == list(range(len(self))) else self._of(rows)

    def _of(self, rows: list[int]) -> Self:
        """The samples ``rows``."""
        return self._derived(
            relevance={n: self._pick(r, rows, f"the input '{n}'") for n, r in self.relevance.items()},
            latents={n: self._pick(r, rows, f"the latent '{n}'") for n, r in self.latents.items()},
            target=self._pick(self.target, rows, "the target"),
            inputs={n: v[rows] if v.dim() and len(v) == len(self) else v for n, v in self.inputs.items()},
            context=self.context.of(rows),
        )

    def _pick(self, tensor: Tensor, rows: list[int], what: str) -> Tensor:
        if tensor.dim() <= self.SAMPLES or tensor.shape[self.SAMPLES] != len(self):
            raise InputError(
                f"{what} of shape {tuple(tensor.shape)} has no row for each of the {len(self)} samples: they share it. "
                "Explain the samples one by one."
            )
        return tensor.index_select(self.SAMPLES, torch.tensor(rows, dtype=torch.long, device=tensor.device))

    def _derived(self, **changes: Any) -> Self:
        """A copy with other contents."""
        return replace(self, **changes)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Relevance, latents and target, changed."""
        return {
            "relevance": {n: change(r) for n, r in self.relevance.items()},
            "latents": {n: change(r) for n, r in self.latents.items()},
            "target": change(self.target),
        }

    # -- devices, precisions, other libraries

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """On another device or in another precision, as ``torch.Tensor.to``; integers keep theirs."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(*args, **kwargs)
            return moved if tensor.is_floating_point() else moved.to(tensor.dtype)

        return self._derived(**self._mapped(move), inputs={n: move(v) for n, v in self.inputs.items()})

    def cpu(self) -> Self:
        """On the CPU."""
        return self.to("cpu")

    def numpy(self) -> dict[str, np.ndarray]:
        """Input name -> relevance as an array (bfloat16, which NumPy lacks, as float32)."""
        tensors = {n: r.detach().cpu() for n, r in self.relevance.items()}
        return {n: (r.float() if r.dtype is torch.bfloat16 else r).numpy() for n, r in tensors.items()}

    def without_inputs(self) -> Self:
        """The same numbers without the inputs, and without what would be computed from them later."""
        return self._derived(inputs={})

    def with_context(self, context: Context) -> Self:
        """The same result that knows more of its samples."""
        return self._derived(context=context)

    def knowing(self, **known: Any) -> Self:
        """The same result that is told more of its samples.

        Args:
            **known: fields of :class:`lrp_fx.results.Context`: ``features={"x": ["age", "income"]}``, ``labels``,
                ``answers`` (one for each sample), ``sampling_rate`` (of sound, in Hz), ``tokens``.

        Raises:
            InputError: for what is no field, names of inputs that are not there, another number of answers or tokens.
        """
        if unknown := known.keys() - {f.name for f in fields(Context)}:
            raise InputError(f"a result knows nothing called {', '.join(sorted(unknown))}")
        named = {"tokens", "features"} & known.keys()
        if wrong := {n for part in named for n in known[part]} - self.relevance.keys():
            raise InputError(f"no input is called {', '.join(sorted(wrong))}: there are {', '.join(self.relevance)}")
        counts = [len(listed) for listed in (known.get("tokens") or {}).values()]
        counts += [len(known["answers"])] if known.get("answers") is not None else []
        if any(count != len(self) for count in counts):
            raise InputError(f"give as many answers and tokens as there are samples, {len(self)}")
        lists = {n: tuple(v) for n, v in known.items() if n in ("labels", "answers") and v is not None}
        maps = {n: {name: tuple(v) for name, v in known[n].items()} for n in named}
        return self.with_context(replace(self.context, **{**known, **lists, **maps}))

    # -- sums

    def __add__(self, other: Self) -> Self:
        """The explanation of the sum of both targets: of the same inputs, entry by entry.

        Raises:
            InputError: for results of other inputs or sizes.
        """
        return self._sum(other)

    def __sub__(self, other: Self) -> Self:
        """The explanation of the difference of both targets."""
        return self._sum(other * -1.0)

    def __mul__(self, factor: float | Tensor) -> Self:
        """The explanation of the target times a number, or times a number per sample, (B,)."""
        factors = torch.as_tensor(factor).double().expand(len(self))
        return self._derived(**self._mapped(lambda t: t * self._beside(factors, t).to(t.dtype)))

    __rmul__ = __mul__

    def __neg__(self) -> Self:
        return self * -1.0

    def _beside(self, factors: Tensor, tensor: Tensor) -> Tensor:
        """One factor per sample, shaped to multiply ``tensor``; where samples share it, they must share the factor.

        Raises:
            InputError: where they do not.
        """
        factors = factors.to(tensor.device)
        if tensor.dim() > self.SAMPLES and tensor.shape[self.SAMPLES] == len(self):
            return factors.reshape([*[1] * self.SAMPLES, -1, *[1] * (tensor.dim() - self.SAMPLES - 1)])
        if len(factors) and bool((factors != factors[0]).any()):
            raise InputError(f"a tensor of shape {tuple(tensor.shape)} is shared by samples that get different factors")
        return factors[:1].reshape([1] * tensor.dim())

    def _sum(self, other: Self) -> Self:
        if type(other) is not type(self):
            raise InputError(f"a {type(self).__name__} does not add to a {type(other).__name__}")
        pairs = ((self.relevance, other.relevance), (self.latents, other.latents), (_of_one(self), _of_one(other)))
        shapes = [[{n: tuple(t.shape) for n, t in part.items()} for part in pair] for pair in pairs]
        if any(a != b for a, b in shapes):
            raise InputError(f"results of other sizes do not add: {shapes[0][0]} and {shapes[0][1]}")
        rules = self.ruleset if self.ruleset == other.ruleset else f"{self.ruleset}, {other.ruleset}"
        relevance, latents, target = ({n: a[n] + b[n] for n in a} for a, b in pairs)
        same = self.context.answers == other.context.answers
        context = self.context if same else replace(self.context, answers=None, question="")
        return self._derived(
            relevance=relevance, latents=latents, target=target["target"], ruleset=rules, context=context
        )

    def normalize(self, by: str = "target") -> Self:
        """Scaled per sample.

        Args:
            by: "target" (the explained value becomes 1: shares of it), "magnitude" (magnitudes of relevance add up
                to 1), or "largest" (the largest magnitude becomes 1).

        Raises:
            InputError: for another name, and where what a sample is divided by is 0.
        """
        if by not in _SCALES:
            raise InputError(f"by={by!r}: choose one of {', '.join(_SCALES)}")
        scales = torch.stack([_SCALES[by](sample) for sample in self]).double()
        if bool((scales == 0).any()):
            raise InputError(f"sample {int((scales == 0).nonzero()[0])} cannot be scaled by its {by}, which is 0")
        return self * (1 / scales.cpu())

    # -- what is known of the samples

    @property
    def total(self) -> Tensor:
        """(B,) relevance of all inputs of each sample, in double precision; of several targets summed over them."""
        return torch.stack([sum(r.double().sum() for r in sample.relevance.values()) for sample in self])  # type: ignore

    @property
    def target_names(self) -> tuple[str, ...] | None:
        """What the targets of each sample are called; None where each has one."""
        return None

    def amounts(self) -> Mapping[str, float]:
        """Where the explained value went, by category of the ledger.

        Raises:
            LatentError: where there is no ledger.
        """
        raise LatentError("several targets at once have no ledger: explain(target=...) of one for the whole account")

    def start_of(self, name: str) -> int | None:
        """Where generated tokens begin in an input: None where it has none."""
        return None

    @property
    def notes(self) -> tuple[Note, ...]:
        """What should be known before the picture is trusted."""
        return self.context.notes

    def tokens(self, name: str | None = None) -> tuple[Tokens, ...]:
        """The tokens of every sample in an input of token ids; ids as numbers where no tokenizer told more.

        Args:
            name: the input; None for the first.

        Raises:
            InputError: for an input without tokens.
        """
        names = self.token_inputs
        name = names[0] if name is None and names else name
        if name not in names:
            raise InputError(f"{name!r} has no tokens: there are {', '.join(names) or 'no inputs of token ids'}")
        return self.context.tokens.get(name) or _numbered(self, name)

    @property
    def token_inputs(self) -> list[str]:
        """Names of the inputs whose relevance is one number per token."""
        rank = len(self.LEADING) + 1
        return [n for n, r in self.relevance.items() if r.dim() == rank and self._has_tokens(n)]

    def _has_tokens(self, name: str) -> bool:
        return name in self.context.tokens or (name in self.inputs and not self.inputs[name].is_floating_point())

    def __repr__(self) -> str:
        shapes = {name: tuple(r.shape) for name, r in self.relevance.items()}
        notes = "".join(f"\n  note: {note}" for note in self.notes)
        return f"{type(self).__name__}(relevance={shapes}, {self._told()}, rules={self.ruleset!r}){notes}"

    def _told(self) -> str:
        return f"target={self.target.tolist()}"


def _of_one(result: Batch) -> Mapping[str, Tensor]:
    return {"target": result.target}


#: what samples may be divided by
_SCALES: dict[str, Callable[[Any], Tensor]] = {
    "target": lambda one: one.target.double().sum(),
    "magnitude": lambda one: sum(r.double().abs().sum() for r in one.relevance.values()),
    "largest": lambda one: torch.stack([r.double().abs().amax() for r in one.relevance.values()]).amax(),
}


def _rows(index: Index, count: int) -> list[int]:
    """Numbers of the samples that an index names."""
    if isinstance(index, slice):
        return list(range(count))[index]
    if isinstance(index, (Sequence, Tensor, np.ndarray)) and not (isinstance(index, Tensor) and index.dim() == 0):
        listed = list(index)
        if listed and all(isinstance(i, bool) or getattr(i, "dtype", None) in (torch.bool, np.bool_) for i in listed):
            if len(listed) != count:
                raise IndexError(f"{len(listed)} booleans for {count} samples")
            return [i for i, chosen in enumerate(listed) if chosen]
        return [_row(i, count) for i in listed]
    return [_row(index, count)]


def _row(index: Any, count: int) -> int:
    row = operator.index(index)
    if not -count <= row < count:
        raise IndexError(f"there is no sample {row}: there are {count}")
    return row % count


def _numbered(result: Batch, name: str) -> tuple[Tokens, ...]:
    """Tokens that show their ids."""
    ids = result.inputs[name]
    rows = ids.expand(len(result), -1) if ids.dim() == 2 else ids.reshape(len(result), -1)
    return tuple(Tokens.plain([str(i) for i in row]) for row in rows.tolist())
