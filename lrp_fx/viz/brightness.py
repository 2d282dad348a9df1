"""Numbers as brightness: from 0, black, to 1, white."""

from __future__ import annotations

import numpy as np


def stretched(values: np.ndarray) -> np.ndarray:
    """Values rescaled to 0 (the smallest) to 1 (the largest); non-finite values are replaced first."""
    values = np.nan_to_num(values.astype(float))
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return (values - low) / max(high - low, 1e-12)


def channels_last(image: np.ndarray) -> np.ndarray:
    """(C, H, W) with one or three channels -> (H, W, 3), for matplotlib."""
    return np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))
