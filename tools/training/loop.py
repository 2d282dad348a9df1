"""The training loop that all models share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn


def train(
    model: nn.Module,
    loss: Callable[[float], Tensor],
    *,
    steps: int,
    rate: float,
    decay: float = 0.01,
    rates: Mapping[str, float] = MappingProxyType({}),
    report: Callable[[int, float], None] = lambda step, value: None,
) -> float:
    """Minimise ``loss(progress)``, progress running from 0 to 1, by AdamW under a one-cycle schedule; (CPU) seconds.

    ``rates`` maps parts of parameter names to learning rates; all other parameters have ``rate``. The model ends in evaluation mode. ``report`` is called with the number of steps done and a running mean of the loss.
    """
    start = time.process_time()
    by_name = {n: next((r for key, r in rates.items() if key in n), rate) for n, _ in model.named_parameters()}
    groups = [{"params": [p], "lr": by_name[n]} for n, p in model.named_parameters()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, list(by_name.values()), total_steps=steps, pct_start=0.1)
    model.train()
    mean = None
    for step in range(steps):
        value = loss(step / steps)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = value.item() if mean is None else 0.98 * mean + 0.02 * value.item()
        report(step + 1, mean)
    model.eval()
    return time.process_time() - start
