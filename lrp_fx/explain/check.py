"""Checks of an explanation: conservation at every node, ledger, outputs, and agreement with the accounting sweep.

They run on the first explanation of every capture and rule set (``convert(check=...)``); ``verify`` reports more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lrp_fx.capture import Captured
from lrp_fx.errors import NumericalError, TargetError
from lrp_fx.explain.account import Account
from lrp_fx.explain.accounts import Sweep, kind_of
from lrp_fx.explain.ledger import all_absorbed, make_ledger
from lrp_fx.explain.sweep import UNREACHED
from lrp_fx.graph.attribute_paths import attribute
from lrp_fx.graph.location import locate
from lrp_fx.graph.operands import is_float
from lrp_fx.graph.reach import upstream
from lrp_fx.plan import Plan
from lrp_fx.results import Entry, Ledger
from lrp_fx.rewrite import Rewritten
from lrp_fx.rules.functions import relevance_of

WHEN = ("first", "always", False)  #: values of ``check=``

#: tolerances by the coarsest precision in the graph, wide enough that rounding alone never fails: of values and sums
#: (relative to the largest), and of relevance maps (sum of absolute differences, relative to that of the map)
_SUMS = {torch.float64: 1e-6, torch.float32: 1e-3}
_MAPS = {torch.float64: 1e-5, torch.float32: 2e-2}
_COARSE = (0.1, 0.5)


@dataclass(frozen=True)
class Defect:
    """Conservation at one node.

    Attributes:
        node: the captured node.
        role: its role.
        stays: relevance that its rule absorbs.
        size: |arrived - passed on - absorbed|, relative to the largest magnitude in the sweep.
    """

    node: Node
    role: str
    stays: float
    size: float


def defects(rewritten: Rewritten, sweep: Sweep, stays: Mapping[Node, Sequence[Entry]]) -> list[Defect]:
    """Conservation at every node that relevance reached, in graph order; ``stays``: node -> its absorbed entries."""
    plan = rewritten.plan
    reached = [a for a in sweep.accounts.values() if a.outputs]
    scale = largest(reached)
    listed = []
    for account in reached:
        staying = sum(entry.amount for entry in stays[account.node])
        size = abs(account.arrived - account.passed - staying) / scale
        listed.append(Defect(account.node, plan.decisions[account.node].role, staying, size))
    return listed


def largest(accounts: Iterable[Account]) -> float:
    """Largest magnitude of relevance that arrived at a node: the scale for defects."""
    return max([a.magnitude for a in accounts] + [1e-300])


def check(
    captured: Captured,
    rewritten: Rewritten,
    leaves: tuple[Any, ...],
    sweep: Sweep,
    explained: tuple[Tensor, Sequence[Tensor]] | None = None,
) -> None:
    """Check a sweep: derivatives, outputs, conservation at every node, the ledger.

    Args:
        captured: the capture.
        rewritten: its graph under a rule set.
        leaves: flat inputs.
        sweep: the accounting sweep on them.
        explained: target and relevance of every source from an explanation, compared with the sweep's.

    Raises:
        TargetError: when no relevance reaches any node.
        NumericalError: naming the node, for an operator without a derivative, outputs that differ from the captured
            graph's, a node that loses or invents relevance, a ledger that does not add up to the target, and an
            explanation that differs from the sweep.
    """
    if sweep.lost:
        raise NumericalError(no_derivative(sweep.lost[-1]))
    if not any(a.outputs for a in sweep.accounts.values()) and not any(
        bool(g.any()) for _, g in sweep.sources.values()
    ):
        raise TargetError(UNREACHED)
    sums, maps = tolerances(sweep)
    if (text := _outputs_differ(captured, rewritten, leaves, sweep, sums)) is not None:
        raise NumericalError(text)
    stays = all_absorbed(rewritten.plan, sweep)
    bad = [d for d in defects(rewritten, sweep, stays) if not d.size <= sums]
    if bad:
        raise NumericalError(
            f"relevance is lost or invented, by {bad[-1].size:.1e} of the largest, under the {bad[-1].role} rule of "
            f"{locate(bad[-1].node)}. {_remedy(rewritten.plan, sweep.accounts[bad[-1].node])}"
        )
    ledger = make_ledger(rewritten.plan, sweep, stays=stays)
    if not imbalance(ledger, sweep) <= sums:
        raise NumericalError(
            f"the ledger adds up to {ledger.total:.6g}, the target is {ledger.target:.6g}, although every node "
            "conserves relevance. verify() reports more. Remedy: report it, with the model."
        )
    if explained is not None:
        _compare(rewritten, sweep, explained, sums, maps)


def _remedy(plan: Plan, account: Account) -> str:
    """The remedy for a node that loses relevance: an output of 0 cannot pass it on."""
    if any(bool(((y == 0) & (g != 0)).any()) for y, g in account.outputs):
        order = {node: index for index, node in enumerate(account.node.graph.nodes)}
        behind = [n for n, d in plan.decisions.items() if d.entry.feeds_zeros and order[n] > order[account.node]]
        if behind:
            layer = min(behind, key=order.__getitem__)
            return (
                f"Rule {plan.decisions[layer].rule.name!r} of {locate(layer)} gives relevance to zeros, and here zeros "
                "come from an operator that passes nothing on where its output is 0, as a ReLU. Remedy: keep flat, "
                'w-square and z-box for layers that read the inputs of the model (role "first-layer"), and use z-plus '
                "or generalised-gamma in other layers."
            )
    return "Remedy: correct the rule or the declaration of that operator, or report it."


def no_derivative(node: Node) -> str:
    """Error message for an operator without a derivative."""
    return (
        f"relevance ends at an operator that has no derivative: {locate(node)}. Its declared rule needs one. Remedy: "
        "give it a derivative (register_autograd), use the operator's differentiable form (a quantized layer "
        'dequantized), or declare it constant: convert(ops={"constant": {"ops": [...]}}).'
    )


def tolerances(sweep: Sweep) -> tuple[float, float]:
    """Tolerances (of values and sums, of relevance maps), by the coarsest precision on the path of relevance."""
    coarsest = coarsest_precision(sweep)
    return _SUMS.get(coarsest, _COARSE[0]), _MAPS.get(coarsest, _COARSE[1])


def coarsest_precision(sweep: Sweep) -> torch.dtype:
    """The coarsest precision that relevance passes; a target may be summed up in a finer one."""
    dtypes = {y.dtype for a in sweep.accounts.values() for y, _ in a.outputs} | {sweep.target.dtype}
    return max((d for d in dtypes if d.is_floating_point), key=lambda d: torch.finfo(d).eps)


def imbalance(ledger: Ledger, sweep: Sweep) -> float:
    """Residual of the ledger, relative to the largest magnitude in it or in the sweep."""
    amounts = sum(abs(e.amount) for e in ledger.entries)
    return abs(ledger.residual) / max(abs(ledger.target), amounts, largest(sweep.accounts.values()))


def difference(expected: Tensor, actual: Tensor) -> float:
    """Largest difference of two tensors, relative to the largest expected entry; equal infinities and NaN agree."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    if is_traceable_wrapper_subclass(expected) or is_traceable_wrapper_subclass(actual):
        return 0.0
    same = (expected == actual) | ((expected != expected) & (actual != actual))
    if bool(same.all()):
        return 0.0
    if not expected.is_floating_point():
        return float("inf")
    apart = torch.where(same, 0.0, (expected.double() - actual.double()).abs()).nan_to_num(float("inf"))
    scale = expected.double()[expected.isfinite()].abs()
    return float(apart.max()) / max(float(scale.max()) if scale.numel() else 0.0, 1e-300)


def _outputs_differ(
    captured: Captured, rewritten: Rewritten, leaves: tuple[Any, ...], sweep: Sweep, tolerance: float
) -> str | None:
    """Error message if the rewritten graph changes the outputs, naming the first changed node; otherwise None."""
    with torch.no_grad():
        run = fx.Interpreter(captured.graph_module)
        expected = pytree.tree_leaves(run.run(*leaves, enable_io_processing=False))
    if all(
        difference(a, b) <= tolerance
        for a, b in zip(expected, sweep.outputs, strict=True)
        if isinstance(a, Tensor) and isinstance(b, Tensor) and not a.is_complex()
    ):
        return None
    node = first_changed(captured, rewritten, leaves, tolerance)
    where = "in its outputs" if node is None else f"first at {locate(node)}"
    return f"the rewritten graph differs from the captured graph, {where}. Remedy: report it, with the model."


def first_changed(captured: Captured, rewritten: Rewritten, leaves: tuple[Any, ...], tolerance: float) -> Node | None:
    """The first captured node with another value in the rewritten graph."""
    one = fx.Interpreter(captured.graph_module, garbage_collect_values=False)
    other = fx.Interpreter(rewritten.graph_module, garbage_collect_values=False)
    with torch.no_grad():
        one.run(*leaves, enable_io_processing=False)
        other.run(*leaves, enable_io_processing=False)
    for node in captured.graph_module.graph.nodes:
        twin = rewritten.results.get(node)
        if node.op != "call_function" or twin is None or twin not in other.env:
            continue
        pairs = zip(pytree.tree_leaves(one.env[node]), pytree.tree_leaves(other.env[twin]), strict=False)
        if any(isinstance(a, Tensor) and isinstance(b, Tensor) and difference(a, b) > tolerance for a, b in pairs):
            return node
    return None


def _compare(
    rewritten: Rewritten, sweep: Sweep, explained: tuple[Tensor, Sequence[Tensor]], sums: float, maps: float
) -> None:
    target, collected = explained
    if difference(sweep.target, target) > sums:
        raise NumericalError(
            f"the explained value is {target.tolist()}, but {sweep.target.tolist()} in a run of the whole graph. "
            "Remedy: report it, with the model."
        )
    for source, relevance in zip(rewritten.plan.sources, collected, strict=False):
        if source.node not in sweep.sources:
            continue
        value, cotangent = sweep.sources[source.node]
        reference = relevance_of(value.double(), cotangent.double())
        scale = float(reference.abs().sum())
        if (
            not rewritten.plan.feeds_zeros
            and float((reference - relevance.double()).abs().sum()) > maps * scale + 1e-300
        ):
            raise NumericalError(
                f"relevance of {source.name!r} differs between the sweep and a run node by node: "
                f"{locate(source.node)}. Remedy: report it, with the model."
            )


def check_finite(
    captured: Captured,
    rewritten: Rewritten,
    explained: Tensor,
    relevance: Iterable[Tensor],
    account: Callable[[], Sweep],
) -> None:
    """Check that explained values and relevance are finite; if not, ``account`` runs an accounting sweep to locate it.

    Raises:
        NumericalError: naming the first node with a value, or a cotangent, that is not finite.
    """
    finite = explained.is_meta or bool(explained.isfinite().all())
    if finite and (explained.is_meta or all(bool(r.isfinite().all()) for r in relevance)):
        return
    sweep = account()
    if not finite:
        first = first_nonfinite(captured, rewritten, sweep)
        where = f", first at {locate(first)}" if first is not None else ""
        raise NumericalError(f"the explained output is not finite{where}. Remedy: check the inputs, or use float32.")
    broken = first_broken(sweep)
    where = locate(broken) if broken is not None else "an input"
    raise NumericalError(
        f"relevance is not finite, first at {where}. Remedy: explain in float32 or float64, or override the rule of "
        "that module in the rule set (a larger epsilon, or a rule that does not divide)."
    )


def first_nonfinite(captured: Captured, rewritten: Rewritten, sweep: Sweep) -> Node | None:
    """The node at which a non-finite value of the outputs arises.

    Its operands are finite and its result is not: the logarithm of 0, a division by 0, a parameter that is NaN. The
    infinities of a mask (a literal, or an added constant) are intended and do not count.
    """
    facts, owner = rewritten.plan.facts, captured.graph_module

    def state(node: Node) -> str:
        if node.op != "get_attr" or not is_float(node):
            return sweep.nonfinite.get(node, "finite")
        return kind_of(attribute(owner, node))

    def nonfinite(node: Node) -> list[Node]:
        return [n for n in node.all_input_nodes if state(n) != "finite"]

    reached = set(upstream(nonfinite(owner.graph.output_node()), nonfinite))
    ordered = [n for n in owner.graph.nodes if n in reached]

    def arises(node: Node) -> bool:
        if node.op == "get_attr":
            return state(node) == "nan"
        if node.op == "placeholder":
            return facts.carries(node)
        return all(state(n) == "finite" for n in node.all_input_nodes) and not _has_infinite_literal(node)

    first = next((n for n in ordered if arises(n)), None)
    return first or next((n for n in ordered if state(n) == "nan"), None)


def _has_infinite_literal(node: Node) -> bool:
    literals = pytree.tree_leaves((node.args, dict(node.kwargs)))
    return any(isinstance(v, float) and abs(v) >= 3e38 for v in literals)


def first_broken(sweep: Sweep) -> Node | None:
    """The first node of the backward pass whose rule passes on a cotangent that is not finite."""
    broken = [n for n, a in sweep.accounts.items() if a.finite and a.breaks]
    return broken[-1] if broken else next((n for n, a in sweep.accounts.items() if not a.finite), None)
