"""One call for a test: check a model, and fail with every shortcoming."""

from __future__ import annotations

import time
from typing import Any

from torch import nn

from lrp_fx.capture import preserved, unwrapped
from lrp_fx.capture.conventions import copied_inputs, traceable
from lrp_fx.converted import RuleSource
from lrp_fx.errors import LrpError
from lrp_fx.explain import Target
from lrp_fx.rules.ruleset import RuleSet
from lrp_fx.testing.measure import (
    NoCopyError,
    Ops,
    fails,
    measure_outputs,
    measure_sums,
    projection,
    short,
    shortcomings,
)
from lrp_fx.testing.result import Check, Failure, Measured

_VERIFIED = ("node",)  #: shortcomings that a verification reports, too, with their place


def check(
    model: nn.Module, *args: Any, rules: RuleSource = "default", target: Target = None, ops: Ops = None, **inputs: Any
) -> Check:
    """Check that explanations of a model hold, on example inputs.

    It checks outputs in the model's precision; an explanation and its accounts; everything in
    :meth:`lrp_fx.ExplainableModule.verify`, on a copy in float64; and conservation from outside (with all biases at 0,
    inputs, sources and literals have all relevance). The model is not modified, and nothing is printed. Faults of the
    model or its explanation are failures of the result; they raise no error.

    Args:
        model: the model; it runs in evaluation mode.
        *args: example inputs.
        rules: the rule set to check.
        target: as in ``explain``; None for a fixed random linear functional of the whole output, so that every position
            and class takes part.
        ops: further op declarations, as in :func:`lrp_fx.convert`.
        **inputs: example inputs by keyword.

    Raises:
        RuleSetError: for a malformed rule set.
    """
    start, ruleset = time.perf_counter(), RuleSet.load(rules)
    model, measured = unwrapped(model), Measured()
    failures, notes = _checked(model, args, inputs, ruleset, target, ops, measured)
    notes = [*([measured.note] if measured.note else []), *notes, *measured.specialised]
    notes += [f"input {name!r} gets no relevance" for name in measured.silent]
    seconds = round(time.perf_counter() - start, 1)
    return Check(type(model).__name__, ruleset.name, tuple(failures), tuple(notes), seconds, measured)


def _checked(
    model: nn.Module, args: Any, inputs: Any, ruleset: RuleSet, target: Target, ops: Ops, measured: Measured
) -> tuple[list[Failure], list[str]]:
    with preserved(model), traceable(model, experts=None):
        if reason := fails(model, *copied_inputs((args, inputs))):
            return [Failure("model", f"the model itself {reason}")], []
    try:
        xmodel = measure_outputs(measured, model, args, inputs, ruleset, ops)
        aim = projection if target is None else target
        xmodel.explain(*args, target=aim, check="always", **inputs)
        try:
            verification = measure_sums(measured, model, args, inputs, target=target, rules=ruleset, ops=ops)
        except NoCopyError as error:
            measured.note = f"checked in its own precision, without the check with biases at 0: {error}"
            verification = xmodel.verify(*args, target=aim, **inputs)
    except LrpError as error:
        return [Failure.told("error", f"{type(error).__name__}: {error}")], []
    except Exception as error:  # of any library: a failure of the check
        return [Failure.told("error", short(error, 500))], []
    failures = [Failure(kind, text) for kind, text in shortcomings(measured) if kind not in _VERIFIED]
    failures += [Failure.told("verify", text) for text in verification.failures]
    return failures, list(verification.notes)


def assert_explainable(model: nn.Module, *args: Any, **options: Any) -> Check:
    """:func:`check` for a test: returns the result if it passed.

    Raises:
        AssertionError: with every failure, naming node, module path and source line.
    """
    __tracebackhide__ = True  # pytest: the test's own line
    return check(model, *args, **options).assert_passed()
