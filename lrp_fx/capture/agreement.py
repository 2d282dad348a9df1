"""Agreement of a captured graph with its model: an export can go wrong silently.

Models may branch on ``is_compiling()`` and take a shortcut that is wrong for the example inputs. Therefore the model
and the captured graph are both run once on the example inputs, and their outputs are compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lrp_fx.capture.containers import closed
from lrp_fx.capture.conventions import copied_inputs, preserved, traceable
from lrp_fx.graph.values import tensors_in

TOLERANCE = 1e-2  #: relative; far above rounding in a model that is not chaotic, far below the effect of a wrong mask
_CARRIED = 1e-6  #: relative; two runs on the same numbers are equal, but for sums in another order on an accelerator
_SEEDS = (0, 1)


def disagreement(
    model: torch.nn.Module,
    graph_module: torch.nn.Module,
    args: Any,
    kwargs: Any,
    undone: Callable[[], AbstractContextManager[Any]] | None = None,
) -> float:
    """Largest difference of outputs, relative to the largest output (:func:`difference`).

    Both draw the same random numbers. If they differ, and the model differs from itself about as much with another
    seed, the model is random and draws in another order than the graph: this is no disagreement.

    The result is 0 for meta tensors, and for inputs on which the model itself fails; the graph then fails at the call,
    with a better message. In ``undone`` the model may run; what it writes there is undone, by default as ``preserved``
    does it.
    """
    undone = undone or functools.partial(preserved, model)
    tensors = [t for t in (*model.parameters(), *pytree.tree_leaves((args, kwargs))) if isinstance(t, Tensor)]
    if any(t.device.type == "meta" for t in tensors):
        return 0.0
    with torch.no_grad():
        try:
            with undone(), traceable(model, experts=None):
                expected = _run(model, args, kwargs, _SEEDS[0])
        except Exception:
            return 0.0
        differ = difference(expected, _outputs(graph_module, (args, kwargs), _SEEDS[0]))
        if differ <= TOLERANCE:
            return differ
        runs = []
        for seed in _SEEDS:
            with undone(), traceable(model, experts=None):  # from the same state
                runs.append(_run(model, args, kwargs, seed))
    by_itself = difference(*runs)
    return 0.0 if by_itself > TOLERANCE and differ <= 2 * by_itself else differ


def carries_state(model: torch.nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether a run of a model changes what its next run returns, by attributes that it writes and reads again.

    The model is run twice, on the same random numbers; objects that it writes into stay changed. A model that
    writes into its parameters carries state: an attribute may say that it has. False where it does not run.
    """
    with torch.no_grad(), preserved(model) as writes, traceable(model, experts=None):
        try:
            runs = [_run(model, args, kwargs, _SEEDS[0]) for _ in range(2)]
        except Exception:  # the capture says so
            return False
        if writes.saved:
            return True
    return difference(*runs) > _CARRIED


def _run(model: torch.nn.Module, args: Any, kwargs: Any, seed: int) -> list[Tensor]:
    return _outputs(model, (closed(args), closed(kwargs)), seed)


def _outputs(of: torch.nn.Module, arguments: tuple[Any, Any], seed: int) -> list[Tensor]:
    """Tensors that a model or a graph returns, with random numbers of a seed; its inputs are copied."""
    positional, keyword = copied_inputs(arguments)
    tensors = [t for t in (*of.parameters(), *pytree.tree_leaves(arguments)) if isinstance(t, Tensor)]
    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return tensors_in(of(*positional, **keyword))


def difference(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Largest difference of tensors, relative to the largest entry of each.

    Infinite if shapes differ, NaN or infinities are in other places, or integers differ.
    """
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf")
    return max((_relative(a, b) for a, b in zip(expected, actual, strict=True)), default=0.0)


def _relative(expected: Tensor, actual: Tensor) -> float:
    """Largest difference of two tensors, relative to the largest finite entry."""
    if expected.layout is not torch.strided or actual.layout is not torch.strided:
        expected, actual = expected.to_dense(), actual.to_dense()
    if expected.is_complex() and actual.is_complex():
        expected, actual = torch.view_as_real(expected.resolve_conj()), torch.view_as_real(actual.resolve_conj())
    if not expected.is_floating_point() or not actual.is_floating_point():
        return 0.0 if torch.equal(expected, actual) else float("inf")
    finite = expected.isfinite()
    same = torch.equal(finite, actual.isfinite()) and torch.equal(
        expected[~finite].nan_to_num(0.0), actual[~finite].to(expected.dtype).nan_to_num(0.0)
    )
    if not same:
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    scale = expected[finite].abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((expected[finite] - actual[finite]).abs().max() / scale)
