"""What must hold of every model: different ways to the same outputs and the same relevance, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import lrp_fx
from generated.programs import Program, build, inputs

SAME_OUTPUT, SAME_RELEVANCE = 1e-12, 1e-9
RULE_SETS = ("attnlrp", "cp_lrp", "vit_gamma", "gradient")


class Disagreement(AssertionError):
    """Two ways that should agree do not."""


@dataclass
class Case:
    """A random model with its conversion, captured at three samples of six positions.

    Attributes:
        program: the model.
        rules: the rule set under which relevance is compared.
    """

    program: Program
    rules: str = "attnlrp"

    @cached_property
    def model(self) -> nn.Module:
        return build(self.program)

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return inputs(self.program)

    @cached_property
    def target(self) -> Any:
        """A class; of tokens, of the third position."""
        return 1 if self.program.head == "classes" else (2, 1)

    @cached_property
    def xmodel(self) -> lrp_fx.ExplainableModule:
        return lrp_fx.convert(self.model, **self.inputs, rules=self.rules)

    @cached_property
    def relevance(self) -> Mapping[str, Tensor]:
        return self.xmodel.explain(**self.inputs, target=self.target).relevance


def apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, of the largest value wanted (or of 1e-3, where all are smaller: rounding of zeros)."""
    if found.shape != wanted.shape:
        raise Disagreement(f"shape {tuple(found.shape)} instead of {tuple(wanted.shape)}")
    if not wanted.numel():
        return 0.0
    difference = (found.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=1e-3)
    return float(difference.nan_to_num(torch.inf))


def agree(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str, bound: float = SAME_RELEVANCE) -> None:
    if found.keys() != wanted.keys():
        raise Disagreement(f"{what}: relevance of {sorted(found)} instead of {sorted(wanted)}")
    for name, value in wanted.items():
        if not (difference := apart(found[name], value)) <= bound:
            raise Disagreement(f"{what}: relevance of '{name}' is {difference:.1e} apart")


def same_output(case: Case, xmodel: nn.Module, given: dict[str, Tensor], what: str) -> None:
    with torch.no_grad():
        wanted = case.model(**given)
    found = xmodel(**given)
    if not (difference := apart(found.detach(), wanted)) <= SAME_OUTPUT:
        raise Disagreement(f"{what}: outputs are {difference:.1e} apart")


def forward(case: Case) -> None:
    """The model's own outputs."""
    same_output(case, case.xmodel, case.inputs, "same inputs")


def verified(case: Case) -> None:
    """``verify`` passes under every rule set."""
    for rules in RULE_SETS:
        result = case.xmodel.verify(**case.inputs, target=case.target, rules=rules)
        if not result.passed:
            raise Disagreement(
                f"verify under {rules}: {'; '.join(result.failures[:2]) or f'balance {result.balance:.1e}'}"
            )


def ledger(case: Case) -> None:
    """The ledger's entries are the target, and its inputs are the relevance that was returned."""
    for rules in RULE_SETS:
        attribution = case.xmodel.explain(**case.inputs, target=case.target, rules=rules)
        account = attribution.ledger
        if not account.balance <= SAME_RELEVANCE:
            raise Disagreement(f"ledger under {rules}: off by {account.balance:.1e}")
        returned = sum(float(r.double().sum()) for r in attribution.relevance.values())
        scale = max(sum(float(r.double().abs().sum()) for r in attribution.relevance.values()), 1e-3)
        if not abs(returned - account["input"]) <= SAME_RELEVANCE * scale:
            raise Disagreement(f"ledger under {rules}: input {account['input']:.6g}, relevance {returned:.6g}")


def input_times_gradient(model: nn.Module, given: dict[str, Tensor], target: Any) -> dict[str, Tensor]:
    """Input x gradient by autograd; of token ids, summed over the features of the rows they picked.

    Args:
        model: tables named ``table`` inside TokenEmbedding parts are those that token ids pick from.
        given: the inputs.
        target: class, or (position, class).
    """
    leaves = {n: t.clone().requires_grad_() for n, t in given.items() if t.is_floating_point()}
    tables = {m.table.weight for m in model.modules() if type(m).__name__ == "TokenEmbedding"}
    rows: list[Tensor] = []
    plain = nn.functional.embedding

    def embedding(ids: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        picked = plain(ids, weight, *args, **kwargs)
        if any(weight is t for t in tables):
            picked = picked.detach().requires_grad_()
            rows.append(picked)
        return picked

    nn.functional.embedding = embedding
    try:
        output = model(**{**given, **leaves})
    finally:
        nn.functional.embedding = plain
    chosen = output[:, target] if isinstance(target, int) else output[:, target[0], target[1]]
    wanted = [*leaves.values(), *rows]
    grads = (
        torch.autograd.grad(chosen.sum(), wanted, allow_unused=True) if chosen.requires_grad else [None] * len(wanted)
    )
    products = [x.detach() * (torch.zeros_like(x) if g is None else g) for x, g in zip(wanted, grads, strict=True)]
    relevance = dict(zip(leaves, products, strict=False))
    if rows:
        relevance["ids"] = torch.stack([p.sum(-1) for p in products[len(leaves) :]]).sum(0)
    return relevance


def gradient(case: Case) -> None:
    """``rules="gradient"`` is input x gradient; integer inputs that pick no token rows get nothing."""
    wanted = input_times_gradient(case.model, case.inputs, case.target)
    found = case.xmodel.explain(**case.inputs, target=case.target, rules="gradient").relevance
    for name in found.keys() - wanted.keys():
        if bool(found[name].any()):
            raise Disagreement(f"gradient: '{name}' carries no signal and gets {float(found[name].abs().sum()):.3g}")
    agree({n: r for n, r in found.items() if n in wanted}, wanted, "gradient")


def singles(case: Case) -> None:
    """A batch explained at once is its samples explained one by one."""
    for sample in range(2):
        given = {n: t[sample : sample + 1] for n, t in case.inputs.items()}
        found = case.xmodel.explain(**given, target=case.target).relevance
        agree(found, {n: r[sample : sample + 1] for n, r in case.relevance.items()}, f"sample {sample} by itself")


def sizes(case: Case) -> None:
    """Other sizes agree with the model and with a fresh conversion."""
    _ = case.xmodel
    for batch, length in ((1, 6), (2, 11)):
        given = inputs(case.program, batch, length, seed=1)
        same_output(case, case.xmodel, given, f"{batch} samples of {length}")
        fresh = lrp_fx.convert(case.model, **given, rules=case.rules).explain(**given, target=case.target).relevance
        agree(case.xmodel.explain(**given, target=case.target).relevance, fresh, f"{batch} samples of {length}")


def routes(case: Case) -> None:
    """A recorded run has the relevance of an exported graph, also for other values."""
    traced = lrp_fx.convert(case.model, **case.inputs, rules=case.rules, capture="trace")
    agree(traced.explain(**case.inputs, target=case.target).relevance, case.relevance, "recorded")
    other = inputs(case.program, seed=2)
    same_output(case, traced, other, "recorded, other values")
    wanted = case.xmodel.explain(**other, target=case.target).relevance
    agree(traced.explain(**other, target=case.target).relevance, wanted, "recorded, other values")


def lowered(case: Case) -> None:
    """The lowered graph has the relevance of the eager sweep, also for other values."""
    graph = case.xmodel.lower(**case.inputs, target=case.target)
    agree(graph(**case.inputs, target=case.target).relevance, case.relevance, "lowered")
    other = inputs(case.program, seed=3)
    wanted = case.xmodel.explain(**other, target=case.target).relevance
    agree(graph(**other, target=case.target).relevance, wanted, "lowered, other values")


def low_memory(case: Case) -> None:
    """``memory="low"`` changes no relevance."""
    agree(case.xmodel.explain(**case.inputs, target=case.target, memory="low").relevance, case.relevance, "low memory")


def many_targets(case: Case) -> None:
    """Many targets at once are these targets one by one."""
    targets = [case.target, 3] if case.program.head == "classes" else [case.target, (0, 3)]
    found = case.xmodel.explain(**case.inputs, targets=targets).relevance
    for i, target in enumerate(targets):
        wanted = case.xmodel.explain(**case.inputs, target=target).relevance
        agree({n: r[i] for n, r in found.items()}, wanted, f"target {target} among many")


CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__: check
    for check in (forward, verified, ledger, gradient, singles, sizes, routes, lowered, low_memory, many_targets)
}
