"""Segments of models whose masks belong to queries: each query has logits of classes, and logits of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Queries:
    """The queries of an output.

    Attributes:
        classes: (B, Q, classes) logits; there may be one more than the model has names for: no object.
        masks: (B, Q, H, W) logits.
    """

    classes: Tensor
    masks: Tensor

    @classmethod
    def of(cls, output: Any, classes: int) -> Queries | None:
        """The queries of an output: its first (B, Q, classes) and (B, Q, H, W) tensors; None without both.

        Args:
            output: the model's output.
            classes: number of the model's classes.
        """
        values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
        tensors = [value for value in values if isinstance(value, Tensor)]
        logits = next((t for t in tensors if t.dim() == 3 and t.shape[2] in (classes, classes + 1)), None)
        if logits is None:
            return None
        masks = next((t for t in tensors if t.dim() == 4 and t.shape[:2] == logits.shape[:2]), None)
        return None if masks is None else cls(logits, masks)

    def target_of(self, label: int, mask: Any) -> QueryMask:
        """The target of a segment: the query of this class whose mask overlaps most with the segment.

        Args:
            label: the segment's class.
            mask: the segment's pixels, as an image of any size: all that are not 0.
        """
        size = self.masks.shape[-2:]
        pixels = torch.as_tensor(np.asarray(mask) != 0, dtype=torch.float32, device=self.masks.device)[None, None]
        share = F.interpolate(pixels, size=size, mode="area")[0, 0]
        inside = share > 0.5 if bool((share > 0.5).any()) else share > 0
        mask = self.masks[0] > 0
        overlap = (mask & inside).flatten(1).sum(1) / (mask | inside).flatten(1).sum(1).clamp(min=1)
        of_class = self.classes[0].argmax(-1) == label
        overlap = overlap.where(of_class, overlap - 1) if bool(of_class.any()) else self.classes[0, :, label]
        return QueryMask(int(overlap.argmax()), label, self.classes.shape[-1], inside)


@dataclass(frozen=True, eq=False)
class QueryMask:
    """The target of a segment: the logit of its class at its query, plus the mean of the query's mask logits on it.

    Attributes:
        query: number of the query.
        label: the class.
        classes: number of class logits of each query.
        pixels: (H, W) the segment's pixels, in the size of the model's masks.
    """

    query: int
    label: int
    classes: int
    pixels: Tensor = field(repr=False)

    def __call__(self, output: Any) -> Tensor:
        """(B,) the explained values."""
        queries = Queries.of(output, self.classes)
        assert queries is not None
        mask = queries.masks[:, self.query]
        inside = self.pixels.to(device=mask.device, dtype=mask.dtype)
        return queries.classes[:, self.query, self.label] + (mask * inside).sum((1, 2)) / inside.sum()
