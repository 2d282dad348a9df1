"""The result of :func:`lrp_fx.concepts.explain_features`: relevance of the features of a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from lrp_fx.errors import LatentError, LrpError
from lrp_fx.extras import require
from lrp_fx.results import Context, Stored, document
from lrp_fx.viz.amount_plots import draw_bars
from lrp_fx.viz.terminal import amounts_table, printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

_PARTS = ("features", "error", "bias", "latent", "activations", "reconstruction", "target")
_UNSAVED = "this result was read from a file without the model. Remedy: explain again"


class DictionaryError(LrpError, ValueError):
    """A dictionary does not fit its latent, or its decoder is not affine."""


@dataclass(frozen=True, eq=False)
class FeatureAttribution(Stored):
    """Relevance of the features of a dictionary, for one target per sample.

    Latents of images, (B, C, H, W), are given to the dictionary with channels last: (B, H, W, C).

    Attributes:
        features: (..., N) relevance of every feature.
        error: (..., D) relevance of the reconstruction error, elementwise.
        bias: (..., D) relevance of the decoder's bias, elementwise.
        latent: (..., D) relevance of the latent; its sum is the sum of the three above.
        activations: (..., N) the features.
        reconstruction: (..., D) the decoded features.
        target: (B,) the explained values.
        output: the model's output, detached; not saved.
        ruleset: name of the rule set.
    """

    KIND = "FeatureAttribution"

    features: Tensor
    error: Tensor
    bias: Tensor
    latent: Tensor
    activations: Tensor
    reconstruction: Tensor
    target: Tensor
    output: Any = field(repr=False)
    _pull: Callable[[Tensor | None], dict[str, Tensor]] = field(repr=False)
    ruleset: str = ""

    def __len__(self) -> int:
        return len(self.features)

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
        """Relevance of features, error and bias, summed; together that of the latent."""
        return {name: float(getattr(self, name).double().sum()) for name in ("features", "error", "bias")}

    def top(self, k: int = 10) -> list[tuple[int, float]]:
        """(feature, relevance) of the k features with the largest magnitude, summed over samples and positions."""
        sums = self.features.double().reshape(-1, self.features.shape[-1]).sum(0)
        order = sums.abs().argsort(descending=True, stable=True)[:k]
        return list(zip(order.tolist(), sums[order].tolist(), strict=True))

    def plot(self, k: int = 10) -> Figure:
        """Bars of the k features with the largest magnitude, of all others together, of error and bias.

        Raises:
            MissingExtraError: if matplotlib is not installed.
        """
        return draw_bars(self._ranked(k), total=f"latent {float(self.latent.double().sum()):.4g}")

    def _ranked(self, k: int) -> list[tuple[str, float]]:
        largest, amounts = self.top(k), self.amounts()
        others = amounts.pop("features") - sum(amount for _, amount in largest)
        named = [(f"feature {number}", amount) for number, amount in largest]
        return [*named, ("other features", others), *amounts.items()]

    def show(self, k: int = 10, *, console: Console | None = None) -> None:
        """Print the k features with the largest magnitude, the others together, error and bias."""
        printed(amounts_table("relevance of the latent", self._ranked(k)), console=console)

    def to_dataframe(self) -> Any:
        """A pandas data frame with a row for every feature that is active or has relevance, at every position.

        Raises:
            MissingExtraError: if pandas is not installed.
        """
        pandas: Any = require("pandas", "results")
        places = ((self.features != 0) | (self.activations != 0)).nonzero()
        values = {
            "relevance": self.features[tuple(places.T)].tolist(),
            "activation": self.activations[tuple(places.T)].tolist(),
        }
        names = ["sample", *(f"position {i}" for i in range(places.shape[1] - 2)), "feature"]
        return pandas.DataFrame({name: places[:, i].tolist() for i, name in enumerate(names)} | values)

    def _document(self, inputs: bool) -> document.Document:
        tensors = {name: getattr(self, name) for name in _PARTS}
        return document.Document(document.head(self.KIND, self.ruleset, Context()), tensors)

    @classmethod
    def _read(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        values = {name: tensors[name] for name in _PARTS}
        return cls(**values, output=None, _pull=partial(_refuse, _UNSAVED), ruleset=document.text(about, "rules"))

    def _check(self) -> None:
        if self.features.shape != self.activations.shape or self.latent.shape != self.reconstruction.shape:
            raise ValueError("the shapes of features and latents do not fit")
        if not {self.error.shape, self.bias.shape} <= {self.latent.shape}:
            raise ValueError("relevance of error or bias does not have the latent's shape")


def _refuse(why: str, mask: Tensor | None) -> dict[str, Tensor]:
    raise LatentError(why)
