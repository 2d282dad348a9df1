"""Lazily computed ledgers: of a batch, of some of its samples, of sums and multiples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import LatentError
from lrp_fx.results.ledger import Ledger

#: computes the ledger of the sum of all samples' targets (None), or of a weighted sum, with (B,) weights
Accounting = Callable[[Tensor | None], Ledger]
#: number of a target -> its account
Accounts = Callable[[int], Accounting]


def no_ledger(why: str) -> Accounting:
    """An account that raises :class:`LatentError` with this reason."""
    return partial(refuse, why)


def computed_ledger(ledger: Ledger) -> Accounting:
    """The account of a ledger that is already computed."""
    return partial(as_computed, ledger)


def refuse(why: str, weights: Tensor | None = None) -> Any:
    """Raise a :class:`LatentError` with this reason.

    Raises:
        LatentError: always.
    """
    raise LatentError(why)


def as_computed(ledger: Ledger, weights: Tensor | None) -> Ledger:
    """The ledger times the common weight of all samples.

    Raises:
        LatentError: for samples of different weights.
    """
    if weights is None:
        return ledger
    if bool((weights == weights[0]).all()):
        return ledger * float(weights[0])
    raise LatentError(
        "a result that was copied, saved or stripped of its inputs has one ledger for all its samples: explain the "
        "samples one by one for a ledger of each"
    )


def of_rows(account: Accounting, rows: list[int], count: int, weights: Tensor | None) -> Ledger:
    """The ledger of some samples: that of the batch, with weight 0 for all others."""
    chosen = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights.double().cpu()
    return account(torch.zeros(count, dtype=torch.float64).index_add(0, torch.tensor(rows, dtype=torch.long), chosen))


def of_the_sum(account: Accounting, count: int, weights: Tensor | None) -> Ledger:
    """The ledger of the sum of all samples."""
    return account(None if weights is None else weights.expand(count))


def scaled(account: Accounting, factors: Tensor, weights: Tensor | None) -> Ledger:
    """The ledger of targets times a factor each, (B,)."""
    if bool((factors == factors[0]).all()):
        return account(weights) * float(factors[0])
    return account(factors if weights is None else factors * weights.double().cpu())


def joined(first: Accounting, second: Accounting, weights: Tensor | None) -> Ledger:
    """The ledger of a sum of targets."""
    return first(weights) + second(weights)


def in_groups(accounts: Accounts, groups: Tensor, number: int, weights: Tensor | None) -> Ledger:
    """The ledger of a sum over some of several targets.

    Args:
        accounts: accounts of the targets.
        groups: (B, T) group of each sample's targets.
        number: the group.
        weights: (B,) weights of samples; None for 1.
    """
    of_each = torch.ones(len(groups), dtype=torch.float64) if weights is None else weights.double().cpu()
    shares = (groups == number).double() * of_each[:, None]
    ledgers = [accounts(t)(shares[:, t]) for t in range(groups.shape[1]) if bool(shares[:, t].any())]
    return reduce(lambda a, b: a + b, ledgers)
