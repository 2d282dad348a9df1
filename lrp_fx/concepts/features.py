"""The result of :func:`lrp_fx.concepts.explain_features`: relevance of the features of a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from lrp_fx.errors import InputError, LatentError, LrpError
from lrp_fx.extras import require
from lrp_fx.results import Note, Result, views
from lrp_fx.results.pictures import heading_of, largest_shares
from lrp_fx.results.tables import Row, Share, with_sign
from lrp_fx.viz import Word
from lrp_fx.viz.amount_plots import draw_bars, draw_waterfall
from lrp_fx.viz.viewer import encode
from lrp_fx.viz.viewer.schema import Input, Matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARTS = ("features", "error", "bias")
_ELSEWHERE = "beside the latent"  #: the part of the explained value that does not flow through the latent
_SHOWN = 10  #: number of features in tables and figures
_LISTED = 100  #: number of features in the viewer
_COPIED = "this result was copied without the model. Remedy: explain again"
_UNSAVED = "this result was read from a file without the model. Remedy: explain again"

#: name of a tensor in files of the first version -> its name today
_FIRST_VERSION = {part: f"relevance/{part}" for part in _PARTS} | {
    "activations": "inputs/features", "reconstruction": "inputs/reconstruction", "latent": "latents/latent",
}  # fmt: skip

#: relevance of the inputs for a mask of features; for None, for the reconstruction error
Pull = Callable[[Tensor | None], dict[str, Tensor]]


class DictionaryError(LrpError, ValueError):
    """A dictionary does not fit its latent, or its decoder is not affine."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class FeatureAttribution(Result):
    """Relevance of the features of a dictionary, for one target per sample.

    Latents of images, (B, C, H, W), are given to the dictionary with channels last: (B, H, W, C).

    Attributes:
        relevance: "features", (..., N); "error", (..., D), of the reconstruction error, elementwise; "bias", (..., D),
            of the decoder's bias. They sum to the relevance of the latent.
        latents: name of the latent -> its relevance, (..., D).
        inputs: "features", (..., N) activations; "reconstruction", (..., D) the decoded features.
        target: (B,) the explained values.
        context: ``features["features"]``: names of the features (``knowing(features={"features": [...]})``);
            ``tokens["features"]``: tokens of the positions, for a latent (B, S, D) of a model of token ids.
        output: the model's output, detached; not saved.
    """

    KIND: ClassVar[str] = "FeatureAttribution"

    output: Any = None
    _pull: Pull

    @property
    def features(self) -> Tensor:
        """(..., N) relevance of every feature."""
        return self.relevance["features"]

    @property
    def error(self) -> Tensor:
        """(..., D) relevance of the reconstruction error."""
        return self.relevance["error"]

    @property
    def bias(self) -> Tensor:
        """(..., D) relevance of the decoder's bias."""
        return self.relevance["bias"]

    @property
    def latent(self) -> Tensor:
        """(..., D) relevance of the latent: its sum is that of features, error and bias."""
        return next(iter(self.latents.values()))

    @property
    def activations(self) -> Tensor:
        """(..., N) the features.

        Raises:
            LatentError: for a result without inputs.
        """
        return self._input("features")

    @property
    def reconstruction(self) -> Tensor:
        """(..., D) the decoded features.

        Raises:
            LatentError: for a result without inputs.
        """
        return self._input("reconstruction")

    def _input(self, name: str) -> Tensor:
        if name not in self.inputs:
            raise LatentError(f"this result has no {name}: its inputs were dropped. Remedy: explain again")
        return self.inputs[name]

    def to_inputs(self, features: int | Iterable[int] | Tensor) -> dict[str, Tensor]:
        """Relevance of every input that flows through some features of the dictionary.

        A feature's relevance goes through the converted encoder to the latent, and from there to the inputs. The sum
        over all features, with :meth:`error_to_inputs`, is all relevance that flows through the latent, up to the part
        absorbed by the encoder's biases.

        Args:
            features: one feature, several (their relevance is summed), or a mask that broadcasts to (..., N).

        Raises:
            DictionaryError: for a feature out of range.
            LatentError: for a result that was read from a file.
        """
        if isinstance(features, Tensor) and (features.is_floating_point() or features.dtype is torch.bool):
            return self._pull(features)
        width = self.features.shape[-1]
        ids = torch.as_tensor(features if isinstance(features, (int, Tensor)) else list(features)).reshape(-1)
        if ids.numel() == 0 or bool((ids >= width).any()) or bool((ids < -width).any()):
            raise DictionaryError(f"features {ids.tolist()}: give some of 0 to {width - 1}")
        mask = torch.zeros(width, dtype=torch.bool, device=self.features.device)
        mask[ids.to(mask.device)] = True
        return self._pull(mask)

    def error_to_inputs(self) -> dict[str, Tensor]:
        """Relevance of every input that flows through the latent, but not through the dictionary's features.

        The error is x - decode(encode(x)): x receives its cotangent minus the one through decode(encode(x)).
        """
        return self._pull(None)

    def amounts(self) -> dict[str, float]:
        """Features, error, bias, and what does not flow through the latent: together the explained value."""
        parts = {name: float(self.relevance[name].double().sum()) for name in _PARTS}
        return {**parts, _ELSEWHERE: float(self.target.double().sum()) - sum(parts.values())}

    @property
    def notes(self) -> tuple[Note, ...]:
        """Notes on the model and on the inputs."""
        return self.context.notes

    def top(  # type: ignore[override]
        self, k: int = _SHOWN, sign: str | int = "both"
    ) -> list[Share]:
        """The k features with the largest magnitude of every sample, summed over positions, the largest first.

        Args:
            k: number of features.
            sign: "positive", "negative" or "both"; also 1, -1, 0.
        """
        has_sign = with_sign(sign)
        shares = ([s for s in self._ranked(sample) if has_sign(s.relevance)] for sample in range(len(self)))
        return [share for listed in shares for share in listed[:k]]

    def _ranked(self, sample: int | None) -> list[Share]:
        """All features by magnitude, of one sample or (None) of all together."""
        values = self.features.detach().double() if sample is None else self.features[sample].detach().double()
        sums = values.reshape(-1, values.shape[-1]).sum(0).cpu()
        order = sums.abs().argsort(descending=True, stable=True)
        named = zip(order.tolist(), sums[order].tolist(), strict=True)
        return [Share(self.name_of(number), amount, "features", number, sample or 0) for number, amount in named]

    def name_of(self, feature: int) -> str:
        """The name of a feature."""
        names = self.context.features.get("features", ())
        return names[feature] if len(names) == self.features.shape[-1] else f"feature {feature}"

    def plot(  # type: ignore[override]
        self, kind: str = "auto", *, input: str | None = None, k: int = _SHOWN
    ) -> Figure:
        """A figure of all samples together.

        Args:
            kind: "bar" (also "auto"): the k features with the largest magnitude, all others, error and bias, which sum
                to the latent; "waterfall": from what does not flow through the latent, over these, to the explained
                value.
            input: "features" or None.
            k: number of features.

        Raises:
            InputError: for another kind or input.
            MissingExtraError: if matplotlib is not installed.
        """
        if kind not in ("auto", "bar", "waterfall") or input not in (None, "features"):
            raise InputError(f"kind={kind!r}, input={input!r}: choose one of auto, bar, waterfall")
        title = heading_of(self) if len(self) == 1 else ""
        if kind != "waterfall":
            total = f"latent {float(self.latent.double().sum()):.4g}"
            return draw_bars(self._amounts_of_largest(k), title=title, total=total)
        elsewhere = [(_ELSEWHERE, self.amounts()[_ELSEWHERE])]
        return draw_waterfall(elsewhere, self._amounts_of_largest(k), float(self.target.double().sum()), title=title)

    def _amounts_of_largest(self, k: int) -> list[tuple[str, float]]:
        named = [(share.text, share.relevance) for share in self._ranked(None)]
        amounts = self.amounts()
        return [*largest_shares(named, k), *((part, amounts[part]) for part in ("error", "bias"))]

    def to_dataframe(self, by: str = "token") -> Any:
        """A pandas data frame with a row for every feature that is active or has relevance, at every position.

        Args:
            by: "category" has a row for features, error, bias and the rest instead; "layer" the latent.

        Raises:
            MissingExtraError: if pandas is not installed.
            InputError: for another name.
        """
        if by != "token":
            return super().to_dataframe(by)
        pandas: Any = require("pandas", "results")
        activations = self.inputs.get("features", self.features)
        places = ((self.features != 0) | (activations != 0)).nonzero()
        values = {"relevance": self.features[tuple(places.T)].tolist()}
        if "features" in self.inputs:
            values["activation"] = activations[tuple(places.T)].tolist()
        names = ["sample", *(f"position {i}" for i in range(places.shape[1] - 2)), "feature"]
        columns = {name: places[:, i].tolist() for i, name in enumerate(names)}
        if tokens := self.context.tokens.get("features"):
            columns["token"] = [tokens[sample].texts[position] for sample, position in places[:, :2].tolist()]
        return pandas.DataFrame(columns | values)

    def viewer_parts(self) -> tuple[list[Input], list[Matrix]]:
        """The largest features, all others, error and bias as numbers; the largest ones by position as a matrix."""
        amounts = self._amounts_of_largest(_LISTED)
        listed: Input = {
            "kind": "values", "name": "features", "names": [name for name, _ in amounts], "values": None,
            "relevance": encode.pack(np.array([[amount for _, amount in amounts]])),
        }  # fmt: skip
        ids = [int(share.position) for share in self._ranked(0)[:_LISTED]]  # type: ignore[arg-type]
        rows = self.features[0].detach().double().cpu().reshape(-1, self.features.shape[-1])[:, ids].T
        columns = self._columns(rows.shape[1])
        rows = rows[:, list(columns)]
        matrix: Matrix = {
            "name": "features by position", "rows": [self.name_of(i) for i in ids], "summed": False,
            "columns": list(columns.values()), "relevance": encode.pack(rows[None].numpy()),
        }  # fmt: skip
        return [listed], [matrix] if rows.shape[1] > 1 else []

    def _columns(self, count: int) -> dict[int, str]:
        """Position -> token (or number) of the first sample, without padding."""
        if "features" not in self.context.tokens:
            return {i: str(i) for i in range(count)}
        tokens = self.context.tokens["features"][0]
        return {i: text for i, text in enumerate(tokens.texts) if not tokens.padding[i]}

    def aggregate(self, over: str) -> Self:
        """Sum over "samples"; as :meth:`lrp_fx.results.Result.aggregate`.

        Raises:
            InputError: for another name.
        """
        if over != "samples":
            raise InputError(f'over={over!r}: relevance of features can be summed over "samples"')
        return self._of_all_samples()

    def to_shap(self, *, input: str | None = None) -> Any:
        """A ``shap.Explanation`` of the features (:meth:`lrp_fx.results.Result.to_shap`)."""
        return super().to_shap(input=input or "features")

    def _sample(self, ledger: bool | None) -> views.Sample:
        strongest = [Word(share.text, share.relevance) for share in self._ranked(0)[:_SHOWN]]
        return views.Sample(
            [], lambda: strongest, [("", self.plot)], {} if ledger is False else self.amounts(),
            [str(note) for note in self.notes], heading_of(self), {"rules": self.ruleset}, strongest,
        )  # fmt: skip

    def _category_rows(self) -> list[Row]:
        return [
            {"sample": i, "category": category, "amount": amount}
            for i, one in enumerate(self)
            for category, amount in one.amounts().items()
        ]

    # -- relevance at the inputs, of samples, sums and multiples

    def _of(self, rows: list[int]) -> Self:
        count = len(self)

        def pull(mask: Tensor | None) -> dict[str, Tensor]:
            if mask is not None and mask.dim() == self.features.dim() and len(mask) == len(rows):
                whole = mask.new_zeros((count, *mask.shape[1:]))
                mask = whole.index_copy(0, torch.tensor(rows, device=mask.device), mask)
            return {n: r[rows] for n, r in self._pull(mask).items()}

        return replace(super()._of(rows), _pull=pull)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to another device or precision, as ``torch.Tensor.to``; integers keep their precision."""
        return replace(super().to(*args, **kwargs), _pull=lambda mask: {
            n: r.to(*args, **kwargs) for n, r in self._pull(mask).items()
        })  # fmt: skip

    def __mul__(self, factor: float | Tensor) -> Self:
        factors = torch.as_tensor(factor).double().expand(len(self))
        return replace(super().__mul__(factor), _pull=lambda mask: {
            n: r * self._beside(factors, r).to(r.dtype) for n, r in self._pull(mask).items()
        })  # fmt: skip

    __rmul__ = __mul__

    def _sum(self, other: Self) -> Self:
        def pull(mask: Tensor | None) -> dict[str, Tensor]:
            theirs = other._pull(mask)
            return {n: r + theirs[n] for n, r in self._pull(mask).items()}

        return replace(super()._sum(other), _pull=pull)

    def _of_all_samples(self) -> Self:
        summed = replace(super()._of_all_samples(), output=None)
        return replace(summed, _pull=lambda mask: {n: r.sum(0, keepdim=True) for n, r in self._pull(mask).items()})

    def __getstate__(self) -> dict[str, Any]:
        """State for another process, without :meth:`to_inputs`, which needs the model."""
        return {**vars(self), "_pull": partial(_refuse, _COPIED)}

    @classmethod
    def _read(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor], **more: Any) -> Self:
        if "features" in tensors:  # a file of the first version
            tensors = {_FIRST_VERSION.get(name, name): tensor for name, tensor in tensors.items()}
        return super()._read(about, tensors, _pull=partial(_refuse, _UNSAVED), **more)

    def _positions(self, name: str) -> int:
        return self.relevance[name].shape[1]

    def _check(self) -> None:
        super()._check()
        if self.relevance.keys() != set(_PARTS) or len(self.latents) != 1:
            raise ValueError(f"parts {', '.join(self.relevance)} are no relevance of a dictionary")
        if self.inputs and self.features.shape != self.activations.shape:
            raise ValueError("the shapes of features and activations do not fit")
        if not {self.error.shape, self.bias.shape} <= {self.latent.shape}:
            raise ValueError("relevance of error or bias does not have the latent's shape")


def _refuse(why: str, mask: Tensor | None) -> dict[str, Tensor]:
    raise LatentError(why)
