"""Whether an opaque function of rows is a linear layer, and its weight and bias, from trials.

The images of the unit vectors determine a linear layer. Some layers round their operand to a few integers first, with a
scale computed from the operand. Two properties distinguish these from a nonlinear function. On vectors of zeros and
ones of one sign, which every scale represents exactly, the function is linear up to its precision. On other vectors it
differs from the linear layer by no more than the rounding.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Rows = Callable[[Tensor], Tensor]  #: (n, width) -> (n, features)

_LEVELS = 127  #: levels of signed 8 bits: coarser rounding is too large to be left out
_DEVIATIONS = 6  #: standard deviations of a sum of rounding errors that are taken for chance
_FAR = 2.0**5  #: how much larger than others some vectors and columns are


class Linearity(enum.Enum):
    """How far a function is a linear layer."""

    EXACT = "linear"
    ROUNDED = "linear but for the rounding of its operand"
    NONE = "not linear"


@dataclass(frozen=True)
class Affine:
    """The affine function that agrees with a function of rows on zero and the unit vectors.

    Attributes:
        function: takes rows of the dtype and device of ``like``.
        width: length of a row.
        like: any tensor of the operand's dtype and device.
    """

    function: Rows
    width: int
    like: Tensor

    def rows(self, values: Tensor) -> Tensor:
        """Values in the dtype and on the device of the operand."""
        return values.to(self.like.device, self.like.dtype)

    def bias(self) -> Tensor:
        """(features,): the image of zero."""
        return self.function(self.rows(torch.zeros(1, self.width)))[0]

    def weight(self) -> Tensor:
        """(features, width): the images of the unit vectors, minus the bias."""
        return (self.function(self.rows(torch.eye(self.width))) - self.bias()).t()

    def linearity(self, epsilon: float) -> Linearity:
        """Whether the function agrees with weight and bias on other vectors.

        Args:
            epsilon: machine epsilon of the least precise dtype in the function.
        """
        weight, bias, chance = self.weight(), self.bias(), torch.Generator().manual_seed(0)

        def excess(rows: Tensor, actual: Tensor, tolerance: float, allowed: Tensor | float = 0.0) -> bool:
            error = (actual - nn.functional.linear(rows, weight, bias)).abs().double()
            return not bool((error <= allowed + tolerance * actual.abs().max().double()).all())

        some = torch.randn(3, self.width, generator=chance)
        drawn = [self.rows(rows) for rows in (some, self._uneven(some), _FAR * some)]
        samples = [(rows, self.function(rows)) for rows in drawn]
        exact = 8 * torch.finfo(self.like.dtype).eps * self.width**0.5
        if not any(excess(rows, actual, exact) for rows, actual in samples):
            return Linearity.EXACT
        tolerance = max(exact, 8 * max(epsilon, _precision(samples[0][1])))
        zeros_and_ones = (torch.rand(4, self.width, generator=chance) < 0.5).float()
        corners = self.rows(zeros_and_ones * torch.tensor([[1], [-1], [1], [-1]]))
        if excess(corners, self.function(corners), tolerance):
            return Linearity.NONE
        norms = weight.double().norm(dim=1)
        for rows, actual in samples:  # errors in (-step / 2, step / 2) have the deviation step / 12**0.5
            step = float(rows.abs().max()) / _LEVELS
            if excess(rows, actual, tolerance, _DEVIATIONS * step / 12**0.5 * norms):
                return Linearity.NONE
        return Linearity.ROUNDED

    def _uneven(self, rows: Tensor) -> Tensor:
        """Rows with a few much larger columns, which some operators treat separately."""
        far = torch.ones(self.width)
        far[:: max(self.width // 4, 1)] = _FAR
        return rows * far


def _precision(values: Tensor) -> float:
    """Machine epsilon of the coarsest dtype that represents all values: an estimate of the inner precision."""
    coarser = (torch.bfloat16, torch.float16, torch.float32)
    exact = (d for d in coarser if torch.equal(values.to(d).to(values.dtype), values))
    return torch.finfo(next(exact, values.dtype)).eps
