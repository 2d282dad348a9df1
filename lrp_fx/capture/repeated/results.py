"""Results of functions that have been called before on tensors of the same form: new tensors, without a run.

An operator on tensors without values costs PyTorch sixty microseconds, five times as much as the tensor that it makes.
The tensors that are made here have no history of gradients: a run that asks for one (:data:`HISTORY`), or in which a
function fails, has to be run again without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_READ = ("is_leaf", "grad_fn", "grad", "_grad", "_version", "_base", "output_nr", "retains_grad")
_WRITTEN = ("grad", "_grad", "requires_grad")
#: what asks a tensor where it comes from, or decides what becomes of its gradient
HISTORY: frozenset[Any] = frozenset(
    [getattr(Tensor, name).__get__ for name in _READ] + [getattr(Tensor, name).__set__ for name in _WRITTEN]
) | {
    Tensor._is_view, Tensor.requires_grad_, Tensor.detach_, Tensor.retain_grad, Tensor.register_hook, Tensor.backward,
    Tensor.register_post_accumulate_grad_hook, torch.autograd.grad, torch.autograd.backward,
}  # fmt: skip


class HistoryRead(BaseException):
    """A run depends on the history of tensors. Code that catches exceptions does not catch this one."""


@dataclass(frozen=True)
class _Like:
    """How a result is made.

    Attributes:
        operand: place of the operand whose memory it has; None for new memory.
        itself: whether it is that operand.
        place: shape, strides, offset.
        dtype: precision.
        device: device.
        differentiable: whether it requires gradients.
        mode: the mode that it is made in.
    """

    operand: int | None
    itself: bool
    place: tuple[Any, Any, int]
    dtype: torch.dtype
    device: torch.device
    differentiable: bool
    mode: FakeTensorMode

    def new(self, operands: Sequence[Tensor]) -> Tensor:
        """The result of a call on ``operands``."""
        if self.operand is None:
            tensor = _empty(self.mode, *self.place[:2], self.dtype, self.device)
            return tensor.requires_grad_(self.differentiable)
        if self.itself:
            return operands[self.operand]
        with torch._C._DisableTorchDispatch():
            tensor = torch.as_strided(operands[self.operand].detach(), *self.place)
            return FakeTensor(self.mode, tensor.requires_grad_(self.differentiable), self.device)


@dataclass
class Results:
    """The results of a run so far."""

    _earlier: dict[Any, tuple[type, list[_Like]]] = field(default_factory=dict)

    def again(self, call: Any, operands: Sequence[Tensor]) -> tuple[Any] | None:
        """A new result like that of an earlier call that was alike; None if there was none.

        Args:
            call: the function, and what its result depends on besides the devices of ``operands``.
            operands: the tensors among the arguments, in order.
        """
        earlier = self._earlier.get((call, *[t.device for t in operands]))
        if earlier is None or not _without_constants(operands):
            return None
        kind, likes = earlier
        if kind is type(None):
            return (None,)
        tensors = [like.new(operands) for like in likes]
        return (tensors[0] if kind is FakeTensor else kind(tensors),)

    def remember(self, call: Any, operands: Sequence[Tensor], result: Any) -> bool:
        """Keep how the result of a call is made; whether that is known."""
        leaves: Any = [result] if isinstance(result, Tensor) else result
        if call[0] is Tensor.__setitem__:  # of the functions without a result, this one does nothing else
            leaves = []
        elif not isinstance(leaves, (list, tuple)) or not leaves or not all(type(t) is FakeTensor for t in leaves):
            return False
        if not _without_constants([*operands, *leaves]):
            return False
        likes = [_like(leaf, operands) for leaf in leaves]
        new = [memory_of(leaf) for leaf, like in zip(leaves, likes, strict=True) if like.operand is None]
        if len({*new}) < len(new) or any(like.operand is None and like.place[2] for like in likes):
            return False
        if any(_passes_on_gradients(like, operands) for like in likes):
            return False
        key = (call, *[t.device for t in operands])
        self._earlier[key] = type(result), likes
        return True


class _Fresh(torch.autograd.Function):
    """A new tensor like another one, as a function of it."""

    @staticmethod
    def forward(ctx: Any, like: FakeTensor) -> Tensor:
        return _empty(like.fake_mode, like.shape, like.stride(), like.dtype, like.device)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:  # type: ignore[override]
        return cotangent


def fresh_like(tensor: FakeTensor) -> Tensor:
    """A new tensor of the form of another one, with a history: one that was computed from it."""
    return _Fresh.apply(tensor)  # type: ignore[no-any-return, no-untyped-call]


def _empty(mode: FakeTensorMode, shape: Any, strides: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor without values in new memory."""
    with torch._C._DisableTorchDispatch():
        return FakeTensor(mode, torch.empty_strided(shape, strides, dtype=dtype, device="meta"), device)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in lists, tuples and dicts of arguments, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(value, dict):
        yield from tensors_of([*value.values()])


def memory_of(tensor: Tensor) -> int:
    """The identity of a tensor's memory; tensors of fake and meta devices have one, too."""
    return int(tensor.untyped_storage()._cdata)


def _like(result: FakeTensor, operands: Sequence[Tensor]) -> _Like:
    same = next((place for place, t in enumerate(operands) if t is result), None)
    memory = memory_of(result)
    shared = next((place for place, t in enumerate(operands) if memory_of(t) == memory), None) if same is None else same
    place = (result.shape, result.stride(), int(result.storage_offset()))
    return _Like(shared, same is not None, place, result.dtype, result.device, result.requires_grad, result.fake_mode)


def _passes_on_gradients(like: _Like, operands: Sequence[Tensor]) -> bool:
    """Whether a write into a view, of values with gradients, is one into a tensor that had none."""
    if like.operand is None or like.itself:
        return False
    return operands[like.operand].is_floating_point() and not operands[like.operand].requires_grad


def _without_constants(tensors: Sequence[Tensor]) -> bool:
    """Whether all that is known of tensors is their form: neither values nor a conjugation that is pending."""
    return all(type(t) is FakeTensor and t.constant is None and not (t.is_complex() or t.is_neg()) for t in tensors)
