"""A batch of explained samples: slices, devices, sums, and the context of the samples."""

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
from lrp_fx.viz.viewer.schema import Input, Matrix

#: one sample, or some of a batch
Index = int | slice | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Batch:
    """Relevance of a batch of samples.

    ``len`` is the number of samples, ``result[i]`` and ``result[2:5]`` are results of some of them, and iteration
    yields them one by one. Derived results are of the same type, with the same totals.

    Attributes:
        relevance: input name -> relevance.
        latents: name in ``at=`` -> relevance of that tensor.
        target: explained values.
        ruleset: name of the rule set.
        inputs: input name -> tensor; empty without inputs (``keep_inputs=False``).
        context: tokens, names of classes, and other facts about the samples.
    """

    #: dimension of samples in ``target``, ``relevance`` and ``latents``
    SAMPLES: ClassVar[int] = 0
    #: names of the dimensions of ``relevance`` before those of the input
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
        """The result of some samples.

        Raises:
            IndexError: for a sample out of range.
            InputError: if all samples share an input, whose relevance is summed over them.
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
                f"{what} of shape {tuple(tensor.shape)} is shared by the {len(self)} samples: it has no row for each. "
                "Explain the samples one by one."
            )
        return tensor.index_select(self.SAMPLES, torch.tensor(rows, dtype=torch.long, device=tensor.device))

    def _derived(self, **changes: Any) -> Self:
        """A copy with other fields."""
        return replace(self, **changes)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Relevance, latents and target, each tensor changed by a function."""
        return {
            "relevance": {n: change(r) for n, r in self.relevance.items()},
            "latents": {n: change(r) for n, r in self.latents.items()},
            "target": change(self.target),
        }

    # -- devices, precisions, other libraries

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to another device or precision, as ``torch.Tensor.to``; integers keep their precision."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(*args, **kwargs)
            return moved if tensor.is_floating_point() else moved.to(tensor.dtype)

        return self._derived(**self._mapped(move), inputs={n: move(v) for n, v in self.inputs.items()})

    def cpu(self) -> Self:
        """Move to the CPU."""
        return self.to("cpu")

    def numpy(self) -> dict[str, np.ndarray]:
        """Input name -> relevance as an array (bfloat16, which NumPy lacks, as float32)."""
        tensors = {n: r.detach().cpu() for n, r in self.relevance.items()}
        return {n: (r.float() if r.dtype is torch.bfloat16 else r).numpy() for n, r in tensors.items()}

    def without_inputs(self) -> Self:
        """The same numbers without the inputs, and without parts that would be computed from them."""
        return self._derived(inputs={})

    def with_context(self, context: Context) -> Self:
        """The same result with another context."""
        return self._derived(context=context)

    def knowing(self, **context: Any) -> Self:
        """The same result with further facts about its samples.

        Args:
            **context: fields of :class:`lrp_fx.results.Context`: ``features={"x": ["age", "income"]}``, ``labels``,
                ``answers`` (one for each sample), ``sampling_rate`` (of sound, in Hz), ``tokens``.

        Raises:
            InputError: for an unknown field or input, and another number of answers or tokens than samples.
        """
        if unknown := context.keys() - {f.name for f in fields(Context)}:
            raise InputError(f"a context has no field {', '.join(sorted(unknown))}")
        named = {"tokens", "features"} & context.keys()
        if wrong := {n for part in named for n in context[part]} - self.relevance.keys():
            raise InputError(f"no input is called {', '.join(sorted(wrong))}: there are {', '.join(self.relevance)}")
        counts = [len(listed) for listed in (context.get("tokens") or {}).values()]
        counts += [len(context["answers"])] if context.get("answers") is not None else []
        if any(count != len(self) for count in counts):
            raise InputError(f"give as many answers and tokens as there are samples, {len(self)}")
        lists = {n: tuple(v) for n, v in context.items() if n in ("labels", "answers") and v is not None}
        maps = {n: {name: tuple(v) for name, v in context[n].items()} for n in named}
        return self.with_context(replace(self.context, **{**context, **lists, **maps}))

    # -- sums

    def __add__(self, other: Self) -> Self:
        """The explanation of the sum of both targets, for the same inputs.

        Raises:
            InputError: for results of other inputs or sizes.
        """
        return self._sum(other)

    def __sub__(self, other: Self) -> Self:
        """The explanation of the difference of both targets."""
        return self._sum(other * -1.0)

    def __mul__(self, factor: float | Tensor) -> Self:
        """The explanation of the target times a number, or times (B,) numbers."""
        factors = torch.as_tensor(factor).double().expand(len(self))
        return self._derived(**self._mapped(lambda t: t * self._beside(factors, t).to(t.dtype)))

    __rmul__ = __mul__

    def __neg__(self) -> Self:
        return self * -1.0

    def _beside(self, factors: Tensor, tensor: Tensor) -> Tensor:
        """One factor per sample, shaped to multiply ``tensor``; a shared tensor needs equal factors.

        Raises:
            InputError: for different factors of a shared tensor.
        """
        factors = factors.to(tensor.device)
        if tensor.dim() > self.SAMPLES and tensor.shape[self.SAMPLES] == len(self):
            return factors.reshape([*[1] * self.SAMPLES, -1, *[1] * (tensor.dim() - self.SAMPLES - 1)])
        if len(factors) and bool((factors != factors[0]).any()):
            raise InputError(f"a tensor of shape {tuple(tensor.shape)} is shared by samples with different factors")
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
        """Scale each sample.

        Args:
            by: "target" (the explained value becomes 1), "magnitude" (magnitudes of relevance sum to 1), or "largest"
                (the largest magnitude becomes 1).

        Raises:
            InputError: for another name, and for a sample whose divisor is 0.
        """
        if by not in _SCALES:
            raise InputError(f"by={by!r}: choose one of {', '.join(_SCALES)}")
        scales = torch.stack([_SCALES[by](sample) for sample in self]).double()
        if bool((scales == 0).any()):
            raise InputError(f"sample {int((scales == 0).nonzero()[0])} cannot be scaled by its {by}, which is 0")
        return self * (1 / scales.cpu())

    # -- the context of the samples

    @property
    def total(self) -> Tensor:
        """(B,) sum of the relevance of all inputs (and targets) of each sample, in double precision."""
        return torch.stack([sum(r.double().sum() for r in sample.relevance.values()) for sample in self])  # type: ignore

    @property
    def target_names(self) -> tuple[str, ...] | None:
        """Names of the targets; None for one target per sample."""
        return None

    def amounts(self) -> Mapping[str, float]:
        """Category of the ledger -> amount.

        Raises:
            LatentError: for a result without a ledger.
        """
        raise LatentError("several targets at once have no ledger: use explain(target=...) with one target")

    def start_of(self, name: str) -> int | None:
        """Index of the first generated token in an input; None without one."""
        return None

    def viewer_parts(self) -> tuple[list[Input], list[Matrix]] | None:
        """The data of the only sample for the viewer's page; None for inputs and latents by their shapes."""
        return None

    @property
    def notes(self) -> tuple[Note, ...]:
        """Notes on the model, on the inputs and on weak maps."""
        return self.context.notes

    def tokens(self, name: str | None = None) -> tuple[Tokens, ...]:
        """The tokens of every sample in an input of token ids; without a tokenizer, ids as numbers.

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
        """Names of the inputs with one relevance per token."""
        rank = len(self.LEADING) + 1
        return [n for n, r in self.relevance.items() if r.dim() == rank and self._has_tokens(n)]

    def _has_tokens(self, name: str) -> bool:
        return name in self.context.tokens or (name in self.inputs and not self.inputs[name].is_floating_point())

    def __repr__(self) -> str:
        shapes = {name: tuple(r.shape) for name, r in self.relevance.items()}
        notes = "".join(f"\n  note: {note}" for note in self.notes)
        return f"{type(self).__name__}(relevance={shapes}, {self._told()}, rules={self.ruleset!r}){notes}"

    def _told(self) -> str:
        if self.target.is_meta:
            return "target=meta"
        values = self.target.detach().double().cpu().numpy()
        text = np.array2string(values, precision=4, separator=", ", threshold=20, max_line_width=1000)
        return f"target={' '.join(text.split())}"


def _of_one(result: Batch) -> Mapping[str, Tensor]:
    return {"target": result.target}


#: divisors of a sample by name
_SCALES: dict[str, Callable[[Any], Tensor]] = {
    "target": lambda one: one.target.double().sum(),
    "magnitude": lambda one: sum(r.double().abs().sum() for r in one.relevance.values()),
    "largest": lambda one: torch.stack([r.double().abs().amax() for r in one.relevance.values()]).amax(),
}


def _rows(index: Index, count: int) -> list[int]:
    """Row numbers of an index."""
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
    """Tokens with their ids as texts."""
    ids = result.inputs[name]
    rows = ids.expand(len(result), -1) if ids.dim() == 2 else ids.reshape(len(result), -1)
    return tuple(Tokens.plain([str(i) for i in row]) for row in rows.tolist())
