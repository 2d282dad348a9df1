"""Check of rules="gradient": it has to equal autograd's input x gradient on the model itself.

Sums cannot tell this: a graph that differs from the model, or follows values that the model detaches, conserves, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from case import Built
from check import in_float64, judged, projection, short
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import lrp_fx
from lrp_fx.capture.conventions import traceable
from lrp_fx.errors import LrpError

GRADIENT = 1e-5  #: models that compute norms in float32 differ from their double-precision twin by that much
COLUMNS = 4  #: of a floating-point input, the columns that may hold whole numbers to look up
ROUNDING = 1e-7  #: of the explained value: rounding error of a head in float32, for maps of any size


@dataclass
class GradientRow:
    """One row.

    Attributes:
        gradient: largest difference of relevance under rules="gradient" to autograd's input x gradient.
        inputs: number of compared inputs.
        detached: number of places where the model detaches a signal.
        seen_through: number of these places that relevance passes, since otherwise no output would have a gradient.
    """

    verdict: str
    reason: str = ""
    gradient: float | None = None
    inputs: int = 0
    detached: int = 0
    seen_through: int = 0
    note: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_gradient(build: Callable[[], Built]) -> GradientRow:
    """Build a model and compare."""
    return judged(build, GradientRow, _check)


def _check(built: Built, row: GradientRow) -> None:
    model, args, kwargs, _, row.note = in_float64(built)
    xmodel = lrp_fx.convert(model, *args, **kwargs, rules="gradient")
    facts = xmodel.current.facts
    row.detached, row.seen_through = len(facts.detached), len(facts.seen_through)
    try:
        row.gradient, row.reason = against_autograd(xmodel, model, args, kwargs, built.target or projection, row)
    except Undifferentiable as error:
        row.verdict, row.reason = "not tried", str(error)
        return
    row.verdict = "fail" if row.reason else "pass"


class Undifferentiable(Exception):
    """The reason why there is no reference."""


class _Moved(Undifferentiable):
    """The model may move ids before it looks them up: there is a reference if they are followed."""


def against_autograd(
    xmodel: Any,
    model: nn.Module,
    args: Any,
    kwargs: Any,
    target: Any,
    row: GradientRow | None = None,
    tolerance: float = GRADIENT,
) -> tuple[float, str]:
    """(largest difference, failure)."""
    attribution = xmodel.explain(*args, target=target, rules="gradient", **kwargs)
    relevance, rounding = attribution.relevance, ROUNDING * float(attribution.target.abs().max())
    try:
        wanted = _reference(model, args, kwargs, target)
        difference, told = _compared(relevance, wanted, rounding, tolerance, args, row)
        if not told:
            return difference, told
    except _Moved:
        pass
    wanted = _reference(model, args, kwargs, target, follow=True)
    return _compared(relevance, wanted, rounding, tolerance, args, row)


def _reference(model: nn.Module, args: Any, kwargs: Any, target: Any, follow: bool = False) -> dict[str, Tensor]:
    try:
        return input_times_gradient(model, args, kwargs, target, follow)
    except (LrpError, Undifferentiable):
        raise
    except Exception as error:
        raise Undifferentiable(f"autograd on the model itself: {short(error, 80)}") from error


def _compared(
    relevance: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    rounding: float,
    tolerance: float,
    args: Any,
    row: GradientRow | None,
) -> tuple[float, str]:
    """(largest difference, failure)."""
    if args:  # positional inputs, in order
        names = iter([name for name in relevance if name not in wanted])
        wanted = {(next(names, n) if n.startswith("#") else n): t for n, t in wanted.items()}
    shared = {n: t for n, t in wanted.items() if n in relevance}
    if row is not None:
        row.inputs = len(shared)
    if not shared:
        raise _Moved("no input of the model is itself looked up in a table, or floating")
    difference = apart({n: relevance[n] for n in shared}, shared)
    largest = max(float((relevance[n] - shared[n]).abs().max()) for n in shared)
    if difference <= tolerance or largest <= rounding:
        return difference, ""
    worst = max(shared, key=lambda n: apart({n: relevance[n]}, {n: shared[n]}))
    return difference, f"'{worst}' is {difference:.1e} from autograd's input x gradient"


def apart(found: Mapping[Any, Tensor], wanted: Mapping[Any, Tensor]) -> float:
    """Largest difference, relative to the largest expected value; infinite where shapes or non-finite entries differ."""
    worst = 0.0
    if found.keys() != wanted.keys():
        return float("inf")
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            return float("inf")
        if not value.numel() or value.is_complex():
            continue
        a, b = found[name].detach().double(), value.detach().double()
        finite = b.isfinite()
        if not torch.equal(finite, a.isfinite()):
            return float("inf")
        if bool(finite.any()):
            worst = max(worst, float((a - b)[finite].abs().max() / b[finite].abs().max().clamp(min=1e-9)))
    return worst


@dataclass(frozen=True)
class _Ids:
    """Integers that an embedding may look up.

    Attributes:
        name: the input that they are, or are part of.
        values: the integers.
        column: of a floating-point input, the column of the last dimension that holds them; None for an integer input.
    """

    name: str
    values: Tensor
    column: int | None = None


@dataclass(frozen=True)
class _Origin:
    """Where the integers of a lookup come from that are no input as it is.

    Attributes:
        name: an integer input.
        places: of each integer, its place in the flattened input; -1 if it is from none.
    """

    name: str
    places: Tensor


@dataclass(frozen=True)
class _Rows:
    """Rows of a table, a leaf of autograd, and the input to which their relevance belongs.

    Attributes:
        rows: the rows.
        depth: number of dimensions of the integers.
        ids: the inputs that are looked up; more than one if they are equal.
        origin: where integers come from that are no input as it is.
    """

    rows: Tensor
    depth: int
    ids: tuple[_Ids, ...] = ()
    origin: _Origin | None = None

    def credit(self, product: Tensor, relevance: dict[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
        """Add the relevance of the rows to that of their input."""
        of_each = product.flatten(self.depth).sum(-1)
        if self.origin is not None:
            name, places = self.origin.name, self.origin.places
            whole = relevance.setdefault(name, of_each.new_zeros(inputs[name].shape))
            whole.view(-1).index_add_(0, places[places >= 0], of_each[places >= 0])
        elif self.ids[0].column is not None:
            relevance[self.ids[0].name][..., self.ids[0].column] += of_each
        else:
            name = "/".join(ids.name for ids in self.ids)
            relevance[name] = relevance.get(name, 0) + of_each


class _Lookups(TorchFunctionMode):
    """Makes the table rows of integer inputs leaves of autograd.

    Attributes:
        indices: the integers of every lookup, in order.
        rows: the leaves.
        tables: data pointers of tables that ids of an input index.
        others: those of tables that other integers index.
    """

    def __init__(self, named: Sequence[_Ids], origins: Mapping[int, _Origin] | None = None) -> None:
        super().__init__()
        self.named, self.origins = named, origins or {}
        self.indices: list[Tensor] = []
        self.rows: list[_Rows] = []
        self.tables: set[int] = set()
        self.others: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        of_parameter = func is Tensor.__getitem__ and isinstance(args[0], nn.Parameter)
        if not of_parameter and func is not nn.functional.embedding and func is not torch.embedding:
            return result
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        indices = next((t for t in tensors if not t.is_floating_point()), None)
        if indices is None:
            return result
        equal = [ids for ids in self.named if ids.values.shape == indices.shape and torch.equal(ids.values, indices)]
        whole = tuple(ids for ids in equal if ids.column is None)
        origin = self.origins.get(len(self.indices))
        self.indices.append(indices.detach().clone())
        table = next(t for t in tensors if t.is_floating_point())
        (self.tables if equal or origin else self.others).add(table.data_ptr())
        if not equal and origin is None:
            return result
        rows = result.detach().clone().requires_grad_()
        self.rows.append(_Rows(rows, indices.dim(), whole or tuple(equal), None if equal else origin))
        return rows


def _ids(named: Mapping[str, Tensor]) -> list[_Ids]:
    """The integers in inputs: integer inputs, and columns of floating-point ones that hold whole numbers."""
    whole = [_Ids(n, t) for n, t in named.items() if not t.is_floating_point()]
    for name, value in named.items():
        if value.is_floating_point() and value.dim() > 1:
            columns = [(c, value[..., c]) for c in range(min(value.shape[-1], COLUMNS))]
            whole += [_Ids(name, v.long(), c) for c, v in columns if bool((v == v.long()).all())]
    return whole


def _follow(run: Callable[[Mapping[str, Tensor]], None], inputs: Mapping[str, Tensor]) -> dict[int, _Origin]:
    """Number of a lookup -> where its integers come from: the model runs again with each id replaced by another one.

    Raises:
        Undifferentiable: if integers come from several ids, or other ids make the model look up something else.
    """
    named = _ids(inputs)
    with _Lookups(named) as before:
        run(inputs)
    found: dict[int, _Origin] = {}
    for name, ids in ((i.name, i.values) for i in named if i.column is None and i.values.dtype != torch.bool):
        for place, value in enumerate(ids.flatten().tolist()):
            other = next((v for v in ids.flatten().tolist() if v != value), value)
            changed = ids.clone()
            changed.view(-1)[place] = other
            with _Lookups(named) as after, contextlib.suppress(Exception):  # it may fail behind its lookups
                run({**inputs, name: changed})
            if len(after.indices) != len(before.indices):
                raise Undifferentiable("the model looks up something else for other ids")
            for number, (one, another) in enumerate(zip(before.indices, after.indices, strict=True)):
                if one.shape != another.shape:
                    raise Undifferentiable("the model looks up something else for other ids")
                origin = found.setdefault(number, _Origin(name, torch.full_like(one, -1, dtype=torch.long)))
                moved = one != another
                if bool(moved.any()) and (origin.name != name or bool((origin.places[moved] >= 0).any())):
                    raise Undifferentiable("the model makes an id out of several")
                origin.places[moved] = place
    return {number: origin for number, origin in found.items() if bool((origin.places >= 0).any())}


def input_times_gradient(
    model: nn.Module, args: Any, kwargs: Any, target: Any, follow: bool = False
) -> dict[str, Tensor]:
    """Input x gradient by autograd, by input.

    For integer inputs, of their table rows, summed over features; inputs with the same integers are under one name,
    joined by "/".

    Args:
        model, args, kwargs, target: what is explained.
        follow: also follow ids that the model moves before it looks them up (:func:`_follow`).
    """
    given = {n: t for n, t in kwargs.items() if isinstance(t, Tensor)}
    given |= {f"#{i}": t for i, t in enumerate(args) if isinstance(t, Tensor)}
    leaves = {n: t.clone().requires_grad_() for n, t in given.items() if t.is_floating_point()}

    def run(values: Mapping[str, Tensor]) -> Any:
        positional = [values.get(f"#{i}", value) for i, value in enumerate(args)]
        return model(*positional, **{**kwargs, **{n: t for n, t in values.items() if not n.startswith("#")}})

    with traceable(model, experts=None):
        if follow:
            with torch.no_grad():
                origins = _follow(run, given)
        with torch.enable_grad(), _Lookups(_ids(given), origins if follow else None) as lookups:
            chosen = target(run({**given, **leaves}))
    if lookups.tables & lookups.others and not follow:
        raise _Moved("the model changes ids before it looks them up")
    wanted = [*leaves.values(), *(looked_up.rows for looked_up in lookups.rows)]
    grads = torch.autograd.grad(chosen.sum(), wanted, allow_unused=True) if wanted else ()
    products = [(x * (torch.zeros_like(x) if g is None else g)).detach() for x, g in zip(wanted, grads, strict=True)]
    relevance = dict(zip(leaves, products, strict=False))
    for looked_up, product in zip(lookups.rows, products[len(leaves) :], strict=True):
        looked_up.credit(product, relevance, given)
    return relevance
