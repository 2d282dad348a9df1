"""Verification: a conversion compared with the model on the user's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.capture import Call, opened
from lrp_fx.capture.containers import closed, returned
from lrp_fx.capture.conventions import copied_inputs, preserved, traceable
from lrp_fx.errors import first_line
from lrp_fx.explain import Sweeper, Target, usable
from lrp_fx.explain.accounts import Sweep
from lrp_fx.explain.check import (
    Defect,
    coarsest_precision,
    defects,
    difference,
    first_broken,
    first_changed,
    largest,
    no_derivative,
)
from lrp_fx.explain.latents import module_outputs
from lrp_fx.explain.ledger import all_absorbed, make_ledger
from lrp_fx.explain.target import beside, select
from lrp_fx.graph.attribute_paths import attribute
from lrp_fx.graph.location import locate
from lrp_fx.graph.values import tensors_in
from lrp_fx.rules.functions import relevance_of
from lrp_fx.verify.gradients import first_apart, of_graph, of_model
from lrp_fx.verify.result import RoleCheck, Verification

__all__ = ["RoleCheck", "Verification", "verify"]

#: tolerances by precision: of outputs, defects and sums; and of relevance maps (mean absolute difference, relative)
_TOLERANCES = {torch.float64: (1e-9, 1e-6), torch.float32: (1e-4, 1e-2)}
_COARSE = (5e-2, 0.5)
_STEP = 1e-2  #: size of the change of an input, relative to its mean absolute value


@dataclass
class _Findings:
    """Failures and notes of a verification, line by line."""

    failures: list[str]
    notes: list[str]


@dataclass(frozen=True)
class _Subject:
    """A model, a call of it, its tapped graph, and its tapped graph under the gradient rules (``plain``)."""

    model: torch.nn.Module
    sweeper: Sweeper
    plain: Sweeper
    call: Call
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Target

    def choose(self, output: Any) -> Tensor:
        """(B,) explained values of an output of the captured graph, or of the model."""
        reading = self.sweeper.reading
        if len(pytree.tree_leaves(output)) != self.sweeper.captured.out_spec.num_leaves:
            reading = replace(reading, leaf=None)
        return select(output, self.target, beside(self.call.tensors), reading)

    def run(self, leaves: Sequence[Any] | None = None) -> tuple[Any, bool]:
        """(the model's output in evaluation mode, without caches; whether it drew random numbers).

        ``leaves`` replace the leaves of the call, if given.
        """
        args, kwargs = self.args, self.kwargs
        if leaves is not None:
            new = {id(a): b for a, b in zip(self.call.leaves, leaves, strict=True)}
            args, kwargs = pytree.tree_map(lambda v: new.get(id(v), v), (args, kwargs))
        with torch.no_grad(), preserved(self.model), traceable(self.model, experts=None):
            state = torch.get_rng_state()
            positional, keyword = copied_inputs((closed(args), closed(kwargs)))
            output = returned(self.model(*positional, **keyword))
            return output, not torch.equal(state, torch.get_rng_state())

    def graph(self, leaves: Sequence[Any]) -> Any:
        """The captured graph's output."""
        captured = self.sweeper.captured
        with torch.no_grad():
            flat = torch.fx.Interpreter(captured.graph_module).run(*leaves, enable_io_processing=False)
        return pytree.tree_unflatten(pytree.tree_leaves(flat), captured.out_spec)


def verify(
    model: torch.nn.Module,
    sweeper: Sweeper,
    plain: Sweeper,
    call: Call,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    target: Target,
) -> Verification:
    """Run the model, an accounting sweep and plain autograd, and compare.

    Failures: outputs differ; a node or the ledger does not conserve relevance; a conserving rule set has a rule that
    does not conserve; a cotangent is not finite; ``rules="gradient"`` differs from autograd's input times gradient; the
    graph does not follow the model when an input changes; an input that changes the explained value has no gradient.
    The tolerance depends on the precision: 1e-9 in float64, 1e-4 in float32, 5e-2 below.

    Args:
        model: the user's model; it is not modified.
        sweeper: its tapped graph.
        plain: its tapped graph under ``rules="gradient"``.
        call: the call.
        args: its arguments.
        kwargs: its keyword arguments.
        target: the target.
    """
    args, kwargs = opened((args, kwargs))
    subject, findings = _Subject(model, sweeper, plain, call, args, kwargs, target), _Findings([], [])
    plan, rewritten = sweeper.rewritten.plan, sweeper.rewritten
    leaves = usable(call.leaves)
    sweep = sweeper.account(leaves, subject.choose)
    tolerance, maps = _tolerances(sweep)
    drawn, apart, equal = _forward(subject, sweep, findings, tolerance)
    stays = all_absorbed(plan, sweep)
    roles = _roles(defects(rewritten, sweep, stays), findings, tolerance)
    ledger = make_ledger(plan, sweep, stays=stays)
    finite = first_broken(sweep) is None
    if not finite:
        findings.failures.append(f"relevance is not finite, first at {locate(first_broken(sweep))}")  # type: ignore[arg-type]
    if not ledger.balance <= tolerance:
        findings.failures.append(f"the ledger adds up to {ledger.total:.6g}, the target is {ledger.target:.6g}")
    if sweep.lost:
        findings.failures.append(no_derivative(sweep.lost[-1]))
    scale = max(largest(sweep.accounts.values()), abs(ledger.target))
    for node, entries in stays.items() if plan.ruleset.conserves else ():
        amount = sum(e.amount for e in entries if e.category == "rule")
        if not abs(amount) <= tolerance * scale:
            findings.failures.append(
                f"{plan.ruleset.name} conserves, but {amount:.3g} is lost to the rule of {locate(node)}"
            )
    gradient = _gradients(subject, leaves, findings, maps, drawn)
    if not drawn:
        _moved(subject, leaves, sweep, findings, tolerance)
    failures, notes = tuple(dict.fromkeys(findings.failures)), tuple(dict.fromkeys(findings.notes))
    return Verification(apart, equal, roles, ledger.balance, finite, failures, notes, tolerance, gradient, ledger)


def _tolerances(sweep: Sweep) -> tuple[float, float]:
    return _TOLERANCES.get(coarsest_precision(sweep), _COARSE)


def _roles(all_defects: Sequence[Defect], findings: _Findings, tolerance: float) -> tuple[RoleCheck, ...]:
    worst: dict[str, RoleCheck] = {}
    for d in reversed(all_defects):  # in the order of the backward pass
        if not d.size <= tolerance:
            findings.failures.append(f"{d.role}: defect {d.size:.2e} at {locate(d.node)}")
        previous = worst.get(d.role, RoleCheck(d.role, 0, 0.0, -1.0, ""))
        size, where = (previous.defect, previous.worst) if d.size <= previous.defect else (d.size, locate(d.node))
        worst[d.role] = RoleCheck(d.role, previous.nodes + 1, previous.absorbed + d.stays, size, where)
    return tuple(worst[role] for role in sorted(worst))


def _forward(subject: _Subject, sweep: Sweep, findings: _Findings, tolerance: float) -> tuple[bool, float, bool]:
    """(whether the model draws random numbers, largest difference of outputs, whether they are bit-equal)."""
    output, drawn = subject.run()
    expected = tensors_in(output)
    if drawn:
        findings.notes.append("the model draws random numbers: outputs differ from run to run and are not compared")
    pairs = list(zip(expected, tensors_in(sweep.outputs), strict=False))
    if len(expected) != len(tensors_in(sweep.outputs)):
        findings.failures.append(f"the model has {len(expected)} outputs, its graph {len(tensors_in(sweep.outputs))}")
        return drawn, float("inf"), False
    equal = all(torch.equal(a, b) for a, b in pairs)
    apart = max([_apart(a, b) for a, b in pairs] + [0.0])
    if not drawn and any(difference(_real(a), _real(b)) > tolerance for a, b in pairs):
        findings.failures.append(_where_outputs_differ(subject, apart, tolerance))
    return drawn, apart, equal


def _where_outputs_differ(subject: _Subject, apart: float, tolerance: float) -> str:
    sweeper, leaves = subject.sweeper, usable(subject.call.leaves)
    node = first_changed(sweeper.captured, sweeper.rewritten, leaves, tolerance)
    if node is not None:
        return f"outputs differ by {apart:.2e}: a rule changed the value of {locate(node)}"
    node = _first_module_apart(subject, leaves, tolerance)
    where = "" if node is None else f", first at {locate(node)}"
    return (
        f"outputs differ by {apart:.2e} between the captured graph and the model{where}. Convert the model again if it "
        "has changed since; if it has not, report it."
    )


def _first_module_apart(subject: _Subject, leaves: Sequence[Any], tolerance: float) -> Node | None:
    """The output of the first (innermost) module that differs in the captured graph."""
    captured = subject.sweeper.captured
    named = {id(module): path for path, module in subject.model.named_modules()}
    seen: dict[str, Tensor] = {}

    def note(module: torch.nn.Module, _: Any, output: Any) -> None:
        first = next(iter(tensors_in(output)), None)
        if id(module) in named and first is not None:
            seen[named[id(module)]] = first.detach()

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        subject.run()
    finally:
        handle.remove()
    run = torch.fx.Interpreter(captured.graph_module, garbage_collect_values=False)
    with torch.no_grad():
        run.run(*leaves, enable_io_processing=False)
    for path, node in sorted(
        module_outputs(captured.graph_module.graph, subject.sweeper.rewritten.plan.facts).items(),
        key=lambda item: -item[0].count("."),
    ):
        value = run.env.get(node)
        if path in seen and isinstance(value, Tensor) and difference(_real(seen[path]), _real(value)) > tolerance:
            return node
    return None


def _gradients(
    subject: _Subject, leaves: tuple[Any, ...], findings: _Findings, tolerance: float, drawn: bool
) -> float | None:
    """Compare ``rules="gradient"`` with autograd: in the captured graph at all sources, in the model at inputs."""
    plain = subject.plain
    captured, sources = plain.captured, plain.rewritten.plan.sources
    swept = plain.account(leaves, subject.choose)
    ours = {s.node: relevance_of(*swept.sources[s.node]) for s in sources if s.node in swept.sources}
    try:
        graph = of_graph(captured, list(ours), leaves, subject.choose)
    except RuntimeError as error:
        findings.notes.append(f"the captured graph cannot be differentiated: {first_line(error)[:200]}")
        return None
    worst = 0.0
    for node, relevance in ours.items():
        apart = _share(graph.sources[node], relevance)
        worst = max(worst, apart)
        if not apart <= tolerance:
            place = first_apart(captured, swept, graph, tolerance) or node
            findings.failures.append(
                f'rules="gradient" is not input times gradient (by {apart:.1e} at {node.name!r}), first at '
                f"{locate(place)}"
            )
    floats = {
        name: (value, placeholder)
        for name, value, placeholder in zip(subject.call.names, subject.call.leaves, captured.placeholders, strict=True)
        if placeholder in ours and isinstance(value, Tensor)
    }
    if not floats or drawn:
        return worst
    inputs = {name: value for name, (value, _) in floats.items()}
    try:
        by_autograd = of_model(subject.model, subject.args, subject.kwargs, inputs, subject.choose)
    except Exception as error:
        findings.notes.append(f"the model itself cannot be differentiated: {first_line(error)[:200]}")
        return worst
    for name, (_, placeholder) in floats.items():
        apart = _share(by_autograd[name], ours[placeholder])
        if not apart <= tolerance and _share(by_autograd[name], graph.sources[placeholder]) > tolerance:
            findings.notes.append(
                f"the model's gradient at {name!r} differs from that of its captured operators (by {apart:.1e}): it "
                "detaches values that the conversion sees through, mutates tensors without gradients, or has a custom "
                "backward"
            )
    return worst


def _moved(subject: _Subject, leaves: tuple[Any, ...], ruled: Sweep, findings: _Findings, tolerance: float) -> None:
    """Change every floating input a little: the graph has to follow the model, and an input that changes the target
    needs relevance (in the sweep ``ruled``) or a gradient: a rule may stop relevance, and a rounded value has no slope.
    """
    captured = subject.sweeper.captured
    before = subject.graph(leaves)
    start = subject.choose(before)
    ours = {s.input: s.node for s in subject.plain.rewritten.plan.sources if s.indices is None}
    swept = subject.plain.account(leaves, subject.choose)
    for number, (name, value) in enumerate(zip(subject.call.names, leaves, strict=True)):
        if not isinstance(value, Tensor) or not value.is_floating_point() or not bool(value.isfinite().all()):
            continue
        if number in subject.call.numbers:
            continue
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(number)).to(value)
        other = value + _STEP * (float(value.abs().mean()) or 1.0) * noise
        moved = (*leaves[:number], other, *leaves[number + 1 :])
        if not captured.decides(moved):
            continue
        after = subject.graph(moved)
        try:
            model, _ = subject.run(moved)
        except Exception as error:
            findings.notes.append(
                f"the model does not run on a slightly changed input {name!r}: {first_line(error)[:200]}"
            )
            continue
        if not _follows(before, after, model, tolerance):
            findings.failures.append(_does_not_follow(subject, name))
        placeholder = captured.placeholders[number]
        changed = float((subject.choose(after) - start).double().abs().max())
        if changed <= 100 * tolerance * (float(start.double().abs().max()) or 1.0):
            continue
        if placeholder not in ours:
            mask = placeholder in subject.sweeper.rewritten.plan.facts.masks
            why = "is a mask, which has no relevance" if mask else "is no source of relevance"
            findings.notes.append(f"input {name!r} changes the explained value, and {why}")
        elif bool(value.any()):
            pairs = [sweep.sources[ours[placeholder]] for sweep in (swept, ruled)]
            _lost(name, placeholder, pairs, changed, findings)


def _lost(
    name: str, placeholder: Node, pairs: list[tuple[Tensor, Tensor]], changed: float, findings: _Findings
) -> None:
    """Report an input that changes the explained value and has no relevance in any pair (value, cotangent)."""
    if any(bool(relevance_of(*pair).any()) for pair in pairs):
        return
    if any(bool(cotangent.any()) for _, cotangent in pairs):  # such as an additive mask: 0 at visible positions
        findings.notes.append(
            f"input {name!r} changes the explained value, and has no relevance: it is 0 wherever it has a gradient"
        )
        return
    reader = next(iter(placeholder.users), placeholder)
    findings.failures.append(
        f"input {name!r} changes the explained value (by {changed:.2g}) and has a gradient of exactly 0: it is "
        f"lost behind {locate(reader)}"
    )


def _follows(before: Any, after: Any, model: Any, tolerance: float) -> bool:
    """Whether the graph's outputs follow the model's when an input changes."""
    for old, new, expected in zip(tensors_in(before), tensors_in(after), tensors_in(model), strict=False):
        if not expected.is_floating_point() or new.shape != expected.shape:
            continue
        apart, step = _apart(expected, new), _apart(expected, old)
        scale = float(expected.double().nan_to_num(0, 0, 0).abs().max())
        if apart > 0.1 * step and apart > 10 * tolerance * scale:
            return False
    return True


def _does_not_follow(subject: _Subject, name: str) -> str:
    """Failure message for a graph with a constant in place of a computation of the model."""
    captured = subject.sweeper.captured
    model_tensors = {id(v) for v in (*subject.model.parameters(), *subject.model.buffers())}
    nodes = [n for n in captured.graph_module.graph.nodes if n.op == "get_attr"]
    strange = [n for n in nodes if id(attribute(captured.graph_module, n)) not in model_tensors]
    readers = [user for n in strange for user in n.users]
    where = f"; constants of the capture are read at {locate(readers[0])}" if readers else ""
    return (
        f"the captured graph does not follow the model when input {name!r} changes: it has a constant where the model "
        f"computes a value{where}"
    )


def _share(expected: Tensor, actual: Tensor) -> float:
    """Mean absolute difference of two maps, relative to the mean absolute value of the first."""
    apart = float((expected.double() - actual.double()).abs().sum())
    return apart / max(float(expected.double().abs().sum()), 1e-300) if apart else 0.0


def _apart(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    same = (a == b) | ((a != a) & (b != b))
    if not a.numel() or bool(same.all()):
        return 0.0
    a, b = _real(a), _real(b)
    same = (a == b) | ((a != a) & (b != b))
    return float(torch.where(same, 0.0, (a.double() - b.double()).abs()).nan_to_num(float("inf")).max())


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
