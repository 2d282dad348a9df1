"""Higher-order operators (control flow of export), carried out as plain Python while a run is recorded.

``torch.cond`` takes the branch of its predicate, ``while_loop`` runs as long as its condition holds, ``scan`` and
``map`` run step by step, and flexible attention computes its scores. Predicates and conditions are decisions of the
recorded run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

_TRANSFORMS = "torch._functorch.predispatch"  #: where the calls stand that open and close levels


def holds_control(graph_module: fx.GraphModule) -> bool:
    """Whether a graph calls a higher-order operator other than a region to inline."""
    called = [n.target for n in graph_module.graph.nodes if isinstance(n.target, torch._ops.HigherOrderOperator)]
    return any(not target.name().startswith("wrap_with") for target in called)


def holds_transform(graph_module: fx.GraphModule) -> bool:
    """Whether a graph opens and closes levels of ``vmap`` or of forward-mode derivatives.

    No graph pass may drop or move these calls. Those of the block mask of flexible attention do not count:
    :func:`drop_block_masks` removes them.
    """
    called = [n.target for n in graph_module.graph.nodes if n.op == "call_function"]
    flexible = any("flex_attention" in str(target) for target in called)
    return not flexible and any(getattr(target, "__module__", "") == _TRANSFORMS for target in called)


def drop_block_masks(graph_module: fx.GraphModule) -> None:
    """Reduce the block masks of flexible attention to their mask functions; kernels alone need the table of blocks."""
    for node in graph_module.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator) and node.target.name() == "flex_attention":
            node.update_arg(4, (node.args[4][-1],))
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


class Unrolled(fx.Interpreter):
    """Runs a graph; higher-order operators are carried out by ordinary ones."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of a graph."""
        if not isinstance(target, torch._ops.HigherOrderOperator):
            return super().call_function(target, args, kwargs)
        carry_out = self.meaning(target)
        if carry_out is None:
            raise NotImplementedError(f"the higher-order operator {target.name()} is not supported")
        return carry_out(*args, **kwargs)

    def meaning(self, target: torch._ops.HigherOrderOperator) -> Callable[..., Any] | None:
        """The implementation of a higher-order operator; None if it is unknown."""
        return getattr(self, "_" + target.name(), None)

    @staticmethod
    def _body(body: Any) -> Any:
        return (lambda *leaves: Unrolled(body).run(*leaves)) if isinstance(body, fx.GraphModule) else body

    def _cond(self, predicate: Any, true: Any, false: Any, operands: Any = ()) -> Any:
        return self._body(true if bool(predicate) else false)(*operands)

    def _while_loop(self, condition: Any, body: Any, carried: Any, further: Any = ()) -> Any:
        condition, body = self._body(condition), self._body(body)
        while bool(condition(*carried, *further)):
            carried = tuple(body(*carried, *further))
        return tuple(carried)

    def _scan(self, combine: Any, init: Any, xs: Any, further: Any = ()) -> Any:
        step, carry, outputs = self._body(combine), list(init), []
        for t in range(xs[0].shape[0]):
            result = list(step(*carry, *(x[t] for x in xs), *further))
            carry, output = result[: len(carry)], result[len(carry) :]
            outputs.append(output)
        return [*carry, *(torch.stack(column) for column in zip(*outputs, strict=True))]

    def _associative_scan(self, combine: Any, xs: Any, further: Any = ()) -> Any:
        step, states = self._body(combine), [[x[0] for x in xs]]
        for t in range(1, xs[0].shape[0]):
            states.append(list(step(*states[-1], *(x[t] for x in xs), *further)))
        return [torch.stack(column) for column in zip(*states, strict=True)]

    def _map_impl(self, body: Any, xs: Any, further: Any = ()) -> Any:
        results = [list(self._body(body)(*(x[t] for x in xs), *further)) for t in range(xs[0].shape[0])]
        return [torch.stack(column) for column in zip(*results, strict=True)]

    def _wrap_with_set_grad_enabled(self, enabled: bool, body: Any, *operands: Any) -> Any:
        with torch.set_grad_enabled(enabled):
            return self._body(body)(*operands)

    def _wrap_with_autocast(self, device: str, dtype: Any, enabled: bool, cache: Any, body: Any, *operands: Any) -> Any:
        with torch.autocast(device, dtype, enabled, cache):
            return self._body(body)(*operands)

    def _flex_attention(
        self, query: Tensor, key: Tensor, value: Tensor, score_mod: Any, block_mask: Any, scale: Any, options: Any,
        score_further: Any = (), mask_further: Any = (),
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """softmax(score_mod(scale Q K^T) where mask_mod) V, over all positions at once."""
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (key, value))
        scores = (query @ key.transpose(-2, -1)) * scale
        b, h, q, k = (torch.arange(n, device=query.device) for n in scores.shape)
        places = (b[:, None, None, None], h[:, None, None], q[:, None], k)
        if score_mod is not None:
            scores = self._body(score_mod)(scores, *places, *score_further)
        mask = self._body(block_mask[-1])(*places, *mask_further)
        scores = torch.where(mask, scores, -float("inf"))
        logsumexp = torch.logsumexp(scores, -1)
        weights = torch.softmax(scores, -1)
        return weights @ value, logsumexp, scores.amax(-1)


class CarriedOut(TorchFunctionMode):
    """In this context higher-order operators called from Python are carried out by ordinary ones."""

    def __init__(self) -> None:
        super().__init__()
        self._unrolled = Unrolled(fx.GraphModule({}, fx.Graph()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer one call."""
        carry_out = self._unrolled.meaning(func) if isinstance(func, torch._ops.HigherOrderOperator) else None
        return (carry_out or func)(*args, **(kwargs or {}))
