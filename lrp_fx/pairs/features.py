"""Features of one side: relevance of one input, grouped into (B, I)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lrp_fx.errors import InputError
from lrp_fx.explain.target import padding_masks, shown

#: how entries of an input are grouped: None (each token id, each position of vectors, each pixel of images), the side
#: of a square patch of an image, or a function from relevance in the shape of the input to (B, I)
Grouping = int | Callable[[Tensor], Tensor] | None

MOST = 4096  #: largest number of features of one side; the matrix of pairs has its square


@dataclass(frozen=True)
class Features:
    """The features of one side.

    Attributes:
        input: name of the input.
        grouping: how its entries are grouped.
    """

    input: str
    grouping: Grouping

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], names: list[str], chosen: str | None, grouping: Grouping) -> Features:
        """Features of the input ``chosen``; for None, of the first input that can have relevance.

        Raises:
            InputError: for an input without relevance, and for more than :data:`MOST` features.
        """
        if chosen is not None and chosen not in names:
            raise InputError(f"input={chosen!r} can have no relevance: choose one of {', '.join(names)}")
        name = names[0] if chosen is None else chosen
        features = cls(name, grouping)
        count = features.group(torch.zeros(tensors[name].shape)).shape[1]
        if count > MOST:
            raise InputError(
                f"'{name}' has {count} features, which make too many pairs: group them, features=16 (patches of 16 "
                "pixels) or a callable from relevance in the shape of the input to (B, I)"
            )
        return features

    def group(self, relevance: Tensor) -> Tensor:
        """Relevance in the shape of the input -> (B, I).

        Raises:
            InputError: if the grouping does not fit.
        """
        if isinstance(self.grouping, int):
            return self._patches(relevance, self.grouping)
        if self.grouping is not None:
            grouped = self.grouping(relevance)
            if grouped.dim() != 2 or len(grouped) != len(relevance):
                raise InputError(f"features= gave shape {tuple(grouped.shape)} for '{self.input}': return (B, I)")
            return grouped
        if relevance.dim() == 3:
            return relevance.sum(-1)
        return relevance.sum(1).flatten(1) if relevance.dim() == 4 else relevance.flatten(1)

    def grid(self, shape: torch.Size) -> tuple[int, int] | None:
        """Rows and columns of the patches of an image of this shape; None for other features."""
        if len(shape) < 4 or callable(self.grouping):
            return None
        size = self.grouping or 1
        return shape[2] // size, shape[3] // size

    def shown(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(B, I) features that are not padding."""
        value = tensors[self.input]
        count = self.group(torch.zeros(value.shape)).shape[1]
        for mask in padding_masks(tensors).values():
            if mask.shape == (len(value), count) and mask.shape == value.shape[:2]:
                return shown(mask)
        return torch.ones(len(value), count, dtype=torch.bool, device=value.device)

    def _patches(self, relevance: Tensor, size: int) -> Tensor:
        shape = tuple(relevance.shape)
        if len(shape) != 4 or size < 1 or shape[2] % size or shape[3] % size:
            raise InputError(
                f"features={size} means square patches, for (B, C, H, W) images with height and width divisible by it; "
                f"'{self.input}' has the shape {shape}"
            )
        return F.avg_pool2d(relevance.sum(1, keepdim=True), size).flatten(1) * size**2
