"""The accounting sweep: a relevance sweep that records, at every node, the relevance that arrives and is passed on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from lrp_fx.errors import NumericalError, first_line
from lrp_fx.explain.account import Account, LayerRun, safe_dot
from lrp_fx.explain.step_accounts import StepAccount, of_all_steps
from lrp_fx.explain.sweep import cotangents
from lrp_fx.graph.location import locate
from lrp_fx.graph.loop import Body, Loop
from lrp_fx.rewrite import OWNER, Rewritten
from lrp_fx.rewrite.layer_runs import RUN
from lrp_fx.rules.functions import favour_sign, identity_rule, share_relevance, source


class Accountant(fx.Interpreter):
    """Runs a rewritten graph and opens an account for every planned node.

    Each node reads its operands through aliases of its own: the cotangent of an alias comes from this node alone, not
    from the operand's other users.

    Args:
        rewritten: the rewritten graph.
        graph_module: the graph of a loop's step; None for the rewritten graph itself.

    Attributes:
        hooks: hooks on tensors. They hold accounts, which hold these tensors: a circle through autograd's graph that
            is never collected, so that they have to be removed after the sweep.
    """

    def __init__(self, rewritten: Rewritten, graph_module: fx.GraphModule | None = None) -> None:
        super().__init__(graph_module or rewritten.graph_module)
        self.rewritten = rewritten
        self.accounts: dict[Node, Account] = {}
        self.steps: dict[Node, list[StepAccount]] = {}
        self.sources: dict[Node, Tensor] = {}
        self.nonfinite: dict[Node, str] = {}
        self.lost: list[Node] = []
        self.last: Node | None = None
        self.hooks: list[RemovableHandle] = []
        self._captured = {copy: node for node, copy in reversed(rewritten.copies.items())}  # equal steps share copies
        self._source_of = {rewritten.copies[s.node]: s.node for s in rewritten.plan.sources}
        self._feeds_zeros = rewritten.plan.feeds_zeros
        self._aliases: dict[tuple[Node, Node], Any] = {}

    def run_node(self, n: Node) -> Any:
        """Evaluate one node, through aliases if it belongs to an account."""
        owner = n.meta.get(OWNER)
        if isinstance(n.target, Loop):
            result = self._run_loop(n.target, *fx.map_arg(n.args, self.env.__getitem__))
        else:
            result = super().run_node(n) if owner is None else self._run_owned(n, owner)
        if n in self._source_of:
            result = source(result)
            self.sources[self._source_of[n]] = result
        if n.op in ("call_function", "placeholder") and n in self._captured and (kind := kind_of(result)) != "finite":
            self.nonfinite[self._captured[n]] = kind
        return result

    def _run_loop(self, loop: Loop, *operands: Any) -> Any:
        """Run the steps of a loop, each with separate accounts."""
        runs = {body: _StepAccountant(self, body) for body in loop.bodies}
        return loop.run(lambda body, _, inputs: runs[body].step(inputs), *operands)

    def _account(self, owner: Node) -> Account:
        return Account(owner, feeds_zeros=self._feeds_zeros)

    def _run_owned(self, n: Node, owner: Node) -> Any:
        account = self.accounts.get(owner)
        if account is None:
            account = self.accounts[owner] = self._account(owner)

        def fetch(operand: Node) -> Any:
            val = self.env[operand]
            return val if operand.meta.get(OWNER) is owner else self._alias(account, operand, val)

        args, kwargs = fx.map_arg(n.args, fetch), fx.map_arg(dict(n.kwargs), fetch)
        result = n.target(*args, **kwargs)  # type: ignore[operator]
        if n is self.rewritten.copies[owner]:
            account.arguments = (args, kwargs)
        elif n.target is identity_rule or n.target is favour_sign:
            account.post = args
        elif n.target is share_relevance:
            account.shares.append(args)
        elif RUN in n.meta:
            account.runs.append(LayerRun(n, args, kwargs, *n.meta[RUN]))
        if n is self.rewritten.results[owner]:
            self._open(account, pytree.tree_leaves(result))
        return result

    def _open(self, account: Account, outputs: list[Any]) -> None:
        """Record cotangents of a node's outputs; a node whose outputs have no derivative is lost."""
        signals = [(position, leaf) for position, leaf in enumerate(outputs) if _is_signal(leaf)]
        live = [(position, leaf) for position, leaf in signals if leaf.requires_grad]
        for position, leaf in live:
            account.watch(leaf.detach(), position)
            self.hook(leaf, functools.partial(account.arrive, leaf.detach(), position))
            self.hook(leaf, functools.partial(self._reached, account.node))
        if signals and not live and self._expects(account.node):
            self.lost.append(account.node)

    def hook(self, tensor: Tensor, call: Callable[[Tensor], None]) -> None:
        """Call a function with the cotangent of a tensor."""
        self.hooks.append(tensor.register_hook(call))

    def _reached(self, node: Node, _: Tensor) -> None:
        self.last = node

    def _expects(self, owner: Node) -> bool:
        """Whether an operand that should receive relevance could pass it on."""
        decision = self.rewritten.plan.decisions[owner]
        operands = [n for slot, n in decision.live.items() if decision.factors.get(slot, 1.0) != 0]
        values = [self.env.get(self.rewritten.results[n]) for n in operands]
        return any(_is_signal(leaf) and leaf.requires_grad for leaf in pytree.tree_leaves(values))

    def _alias(self, account: Account, operand: Node, val: Any) -> Any:
        """An alias of ``val`` (a tensor, or a tuple of tensors), whose cotangents are recorded as passed."""
        key = (account.node, operand)
        if key not in self._aliases:

            def alias(tensor: Any) -> Any:
                if not isinstance(tensor, Tensor) or not tensor.requires_grad:
                    return tensor
                named = tensor.view_as(tensor)
                self.hook(named, lambda g: account.receive(tensor, g))
                return named

            self._aliases[key] = type(val)(map(alias, val)) if isinstance(val, (tuple, list)) else alias(val)
        return self._aliases[key]


class _StepAccountant(Accountant):
    """Runs a step of a loop and stores the accounts of its nodes for :func:`of_all_steps`."""

    def __init__(self, around: Accountant, body: Body) -> None:
        super().__init__(around.rewritten, body.graph_module)
        self.around = around
        self.steps, self.nonfinite, self.lost, self.hooks = around.steps, around.nonfinite, around.lost, around.hooks

    def step(self, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Run one step."""
        self.accounts, self._aliases = {}, {}
        state: tuple[Tensor, ...] = self.run(*inputs)
        for owner, account in self.accounts.items():
            self.steps.setdefault(owner, []).append(account)  # type: ignore[arg-type]
            self.around.accounts.setdefault(owner, account)  # a placeholder, for the order of nodes
        return state

    def _account(self, owner: Node) -> Account:
        return StepAccount(owner, feeds_zeros=self._feeds_zeros)

    def _reached(self, node: Node, _: Tensor) -> None:
        self.around.last = node

    def _expects(self, owner: Node) -> bool:
        decision = self.rewritten.plan.decisions[owner]
        aliases = [value for (node, _), value in self._aliases.items() if node is owner]
        receives = any(decision.factors.get(slot, 1.0) != 0 for slot in decision.live)
        return receives and any(_is_signal(leaf) and leaf.requires_grad for leaf in pytree.tree_leaves(aliases))


def _is_signal(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def kind_of(value: Any) -> str:
    """Whether the tensors in a value are "finite", "infinite" or "nan"."""
    tensors = [
        t
        for t in pytree.tree_leaves(value)
        if _is_signal(t) and not t.is_meta and t.layout is torch.strided
        if not is_traceable_wrapper_subclass(t)  # a quantized weight, which may have no isnan
    ]
    if all(bool(t.isfinite().all()) for t in tensors):
        return "finite"
    return "nan" if any(bool(t.isnan().any()) for t in tensors) else "infinite"


@dataclass(frozen=True)
class Sweep:
    """Result of an accounting sweep.

    Attributes:
        accounts: by captured node, in graph order.
        sources: source node -> (value, cotangent).
        outputs: the leaves of the model's output.
        target: (B,) explained values.
        target_defect: target minus relevance of the outputs: not 0 for a target that is not linear in them.
        nonfinite: captured nodes with a value that is not finite: "nan" or "infinite".
        lost: nodes that should pass relevance on and have no derivative.
    """

    accounts: dict[Node, Account]
    sources: dict[Node, tuple[Tensor, Tensor]]
    outputs: list[Any]
    target: Tensor
    target_defect: float
    nonfinite: dict[Node, str]
    lost: tuple[Node, ...]


def account(rewritten: Rewritten, leaves: tuple[Any, ...], select: Callable[[Any], Tensor], out_spec: Any) -> Sweep:
    """Run the accounting sweep on flat inputs; ``select`` maps the model's output to the (B,) target.

    Raises:
        NumericalError: where the backward of an operator fails.
    """
    accountant = Accountant(rewritten)
    seen: list[float] = []
    try:
        with torch.inference_mode(False), torch.enable_grad():
            outputs = accountant.run(*leaves, enable_io_processing=False)
            flat = pytree.tree_leaves(outputs)
            handles = [o.view_as(o) if isinstance(o, Tensor) and o.requires_grad else o for o in flat]
            target = select(pytree.tree_unflatten(handles, out_spec))
            nodes, tensors = list(accountant.sources), list(accountant.sources.values())
            for handle in handles:
                if isinstance(handle, Tensor) and handle.requires_grad:
                    accountant.hook(handle, lambda g, h=handle: seen.append(safe_dot(h.detach(), g)))  # type: ignore[misc]
            grads = _cotangents(accountant, target, tensors)
    finally:
        for hook in accountant.hooks:
            hook.remove()
    sources = {
        n: (t.detach(), torch.zeros_like(t) if g is None else g) for n, t, g in zip(nodes, tensors, grads, strict=True)
    }
    defect = float(target.detach().double().sum()) - sum(seen)
    if abs(defect) <= 8 * torch.finfo(target.dtype).eps * float(target.detach().double().abs().sum()):
        defect = 0.0  # the rounding error of a linear target
    flat = [o.detach() if isinstance(o, Tensor) else o for o in flat]
    lost = tuple(accountant.lost)
    accounts = accountant.accounts | {owner: of_all_steps(steps) for owner, steps in accountant.steps.items()}
    return Sweep(accounts, sources, flat, target.detach(), defect, accountant.nonfinite, lost)


def _cotangents(accountant: Accountant, target: Tensor, sources: list[Tensor]) -> list[Tensor | None]:
    try:
        return cotangents(target, sources)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if accountant.last is None:
            raise
        reason = first_line(error)
        raise NumericalError(
            f"relevance ends where the backward of an operator fails: {reason}, at {locate(accountant.last)}. "
            "Remedy: give the operator a derivative (register_autograd), or stop relevance there by declaring it "
            'constant: convert(ops={"constant": {"ops": [...]}}).'
        ) from error
