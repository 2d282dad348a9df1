"""Conditions on linear systems whose matrix is a constant diagonal plus a signal in one triangle."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from lrp_fx.analysis.facts import System
from lrp_fx.analysis.matching import Candidate, condition
from lrp_fx.analysis.triangles import bands
from lrp_fx.graph.operands import Slot
from lrp_fx.operators.table import bind


@condition
def solves_a_system(candidate: Candidate) -> bool:
    """It solves a linear system, or inverts a matrix."""
    return "solves" in candidate.spec.extra and isinstance(candidate.node.meta.get("val"), Tensor)


@condition
def reads_a_signal(candidate: Candidate) -> bool:
    """Relevance can reach its matrix."""
    return _matrix(candidate) in candidate.carrying


@condition
def has_a_constant_diagonal(candidate: Candidate) -> bool:
    """Its matrix is a constant diagonal plus a signal in one triangle."""
    return _is_unit(candidate) or _triangle(candidate) is not None


@condition
def multiplies_matrices(candidate: Candidate) -> bool:
    """It multiplies two matrices that relevance can reach, without an added term."""
    return bool(candidate.spec.extra.get("matrices")) and not candidate.spec.terms and len(candidate.carrying) == 2


@condition
def multiplies_an_inverse(candidate: Candidate) -> bool:
    """One of them is the inverse of a constant diagonal plus a signal in one triangle."""
    return _inverse(candidate) is not None


def system(candidate: Candidate) -> System:
    """The system that a node solves."""
    node, bound = candidate.node, bind(candidate.node)
    if "solves" not in candidate.spec.extra:
        inverse: Slot = _inverse(candidate)  # type: ignore[assignment]
        (right,) = candidate.carrying.keys() - {inverse}
        of = candidate.facts.systems[candidate.carrying[inverse]]
        vector = bound[right.name].meta["val"].dim() == 1
        return System(of.reader, of.matrix, right, inverse.name == candidate.spec.args[0], of.upper, False, vector)
    matrix, unit = _matrix(candidate), _is_unit(candidate)
    upper = bool(bound["upper"] if unit else _triangle(candidate))
    if candidate.spec.kind != "quotient":
        return System(node, matrix, None, True, upper, unit)
    right = Slot(candidate.spec.args[0])
    vector = "upper" not in bound and _is_vector(bound[right.name], bound[matrix.name])
    return System(node, matrix, right, bound["left"], upper, unit, vector)


def _matrix(candidate: Candidate) -> Slot:
    return Slot(str(candidate.spec.extra["solves"]))


def _is_unit(candidate: Candidate) -> bool:
    return bool(bind(candidate.node).get("unitriangular"))


def _triangle(candidate: Candidate) -> bool | None:
    """Whether the signal in the matrix is its upper triangle; None if it is in neither, or C is not diagonal.

    An operator with an argument ``upper`` does not read the other triangle.
    """
    signals, constants = bands(candidate.facts, candidate.carrying[_matrix(candidate)])
    read = bind(candidate.node).get("upper")
    for upper in (False, True) if read is None else (read,):
        one, other = (signals, constants) if upper else (signals.flipped, constants.flipped)
        strict = one.lowest > 0 or (read is not None and one.highest < 0)
        if strict and other.highest <= 0 and (read is not None or other.lowest >= 0):
            return bool(upper)
    return None


def _inverse(candidate: Candidate) -> Slot | None:
    systems = candidate.facts.systems
    inverses = (s for s, n in candidate.carrying.items() if n in systems and systems[n].right is None)
    return next(inverses, None)


def _is_vector(right: Node, matrix: Node) -> bool:
    """Whether ``torch.linalg.solve`` treats the right-hand side as a vector or a batch of vectors."""
    one, other = right.meta["val"].shape, matrix.meta["val"].shape
    return len(one) == 1 or (len(one) == len(other) - 1 and [str(n) for n in one] == [str(n) for n in other[:-1]])
