"""The digits of scikit-learn, enlarged."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

TRAIN = 1397  # of 1,797; the last 400 are held out


def digits() -> tuple[Tensor, Tensor]:
    """(N, 1, 32, 32) images from 0 (background) to 1, and (N,) labels; the last 400 are held out."""
    data = load_digits()
    small = torch.from_numpy(data.images / 16.0).float()[:, None]
    grown = F.interpolate(small, (26, 26), mode="bilinear", align_corners=False)
    return F.pad(grown, (3, 3, 3, 3)), torch.from_numpy(data.target).long()


def shifted(images: Tensor, generator: torch.Generator, most: int = 3) -> Tensor:
    """Each image moved by up to ``most`` pixels up or down and left or right."""
    count, size = images.shape[0], images.shape[-1]
    padded = F.pad(images, (most,) * 4)
    moves = torch.randint(2 * most + 1, (2, count, 1), generator=generator)
    rows, columns = torch.arange(size) + moves[0], torch.arange(size) + moves[1]
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]
