"""Dynamic shapes: fake inputs of a captured graph, with one symbol per free dimension, and the guards of a trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import sympy
import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from lrp_fx.capture import Shapes
from lrp_fx.capture.size_formulas import formula, formula_from
from lrp_fx.errors import LrpError

_log = logging.getLogger(__name__)
_MANY = 8191  #: number of targets in the trace; a size that no input has


@dataclass(frozen=True)
class Fakes:
    """Fake tensors of one mode.

    Attributes:
        mode: the mode they belong to.
        leaves: the flat inputs: fake tensors, and constants unchanged.
    """

    mode: FakeTensorMode
    leaves: tuple[Any, ...]

    def constant(self, value: Tensor) -> Tensor:
        """A fake of a parameter, buffer or constant: its sizes are static."""
        return self.mode.from_tensor(value.detach(), static_shapes=True)

    def indices(self, name: str, batch: Any, device: torch.device) -> Tensor:
        """(batch, n) indices with one dynamic n, shared by all names."""
        free = isinstance(batch, torch.SymInt)
        dims = [DimDynamic.DUCK if free else DimDynamic.STATIC, DimDynamic.DUCK]
        return self.mode.from_tensor(
            torch.zeros(int(batch.node.hint) if free else batch, _MANY, dtype=torch.int64, device=device),
            source=ConstantSource(name),
            symbolic_context=StatelessSymbolicContext(dims),
        )


def fake_inputs(leaves: Sequence[Any], names: Sequence[str], shapes: Shapes, dynamic: bool) -> Fakes:
    """Fake inputs, dynamic in every dimension that the capture leaves free; all static unless ``dynamic``.

    Tracing gives equal sizes one symbol. So every symbol of the capture gets a size of its own: the example's, if that
    is at least 2 (a size of 1 is always specialized).
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    mode.cache_enabled = False  # with symbolic sizes a cached result costs more than a computed one
    hints = _hints(leaves, shapes) if dynamic else {}
    dims = iter(shapes.dims)
    fakes: list[Any] = []
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            fakes.append(leaf)
            continue
        symbols = next(dims)
        sizes = [hints.get(str(d), int(n)) for d, n in zip(symbols, leaf.shape, strict=True)]
        free = [DimDynamic.DUCK if str(d) in hints else DimDynamic.STATIC for d in symbols]
        fakes.append(
            mode.from_tensor(
                torch.empty(sizes, dtype=leaf.dtype, device=leaf.device),
                source=ConstantSource(name),
                symbolic_context=StatelessSymbolicContext(free),
            )
        )
    return Fakes(mode, tuple(fakes))


def _hints(leaves: Sequence[Any], shapes: Shapes) -> dict[str, int]:
    """A distinct size for each symbol, within its limits. Dimensions that are formulas keep the example's size.

    Inputs with equally many samples share one batch symbol, even if the capture has several: a mask that only the
    choice of the target reads belongs to the same batch.
    """
    hints: dict[str, int] = {}
    batches: dict[int, int] = {}
    fixed = {d for dims in shapes.dims for d in dims if isinstance(d, int)}
    for leaf, dims in zip([v for v in leaves if isinstance(v, Tensor)], shapes.dims, strict=True):
        for axis, (size, dim) in enumerate(zip(leaf.shape, dims, strict=True)):
            if not isinstance(dim, str) or dim in hints or not dim.isidentifier():
                continue
            if axis == 0 and int(size) in batches:
                hints[dim] = batches[int(size)]
                continue
            low, high = shapes.limits.get(dim, (2, 2**63))
            candidates = [int(size), *range(max(low, 2), max(low, 2) + 64)]
            fitting = [c for c in candidates if c not in fixed and max(low, 2) <= c <= high]
            if fitting:
                hints[dim] = fitting[0]
                fixed.add(fitting[0])
                if axis == 0:
                    batches.setdefault(int(size), fitting[0])
    return hints


@dataclass(frozen=True)
class ShapeGuards:
    """Shape guards of a lowered graph.

    Attributes:
        shapes: sizes of its inputs.
        relations: conditions on their symbols, as formulas.
        indexed: shape of the logits that the target indexes, as formulas; the batch first.
        captured: shape guards of the captured graph.
    """

    shapes: Shapes
    relations: tuple[Any, ...]
    indexed: tuple[Any, ...]
    captured: Shapes

    @classmethod
    def of(cls, captured: Shapes, fakes: Fakes, indexed: Sequence[Any]) -> ShapeGuards:
        """The guards after tracing with these fakes."""
        environment = fakes.mode.shape_env
        assert environment is not None

        def expression(size: Any) -> Any:
            return environment.replace(size.node.expr) if isinstance(size, torch.SymInt) else sympy.Integer(int(size))

        dims, limits = [], {}
        for leaf, old in zip([v for v in fakes.leaves if isinstance(v, Tensor)], captured.dims, strict=True):
            sizes = [expression(size) for size in leaf.shape]
            dims.append(tuple(int(e) if e.is_number else str(e) for e in sizes))
            for size, symbol in zip(sizes, old, strict=True):
                if isinstance(symbol, str) and symbol in captured.limits and not size.is_number:
                    limits[str(size)] = captured.limits[symbol]
        relations = tuple(environment.replace(g.expr) for g in environment.guards)
        return cls(
            Shapes(tuple(dims), limits, captured.reasons, inputs=captured.inputs),
            relations,
            tuple(expression(s) for s in indexed),
            captured,
        )

    def plain(self) -> dict[str, Any]:
        """As plain data.

        Raises:
            Unstorable: for a formula of sizes that has no plain form.
        """
        return {
            "dims": self.shapes.dims,
            "limits": self.shapes.limits,
            "guards": [formula(g) for g in self.relations],
            "indexed": [formula(size) for size in self.indexed],
        }

    @classmethod
    def from_plain(cls, document: Mapping[str, Any], symbols: Mapping[str, Any], captured: Shapes) -> ShapeGuards:
        """Read the result of :meth:`plain`, with these symbols, for a capture of these sizes."""
        limits = {symbol: (low, high) for symbol, (low, high) in document["limits"].items()}
        dims = tuple(tuple(int(d) if isinstance(d, int) else str(d) for d in sizes) for sizes in document["dims"])
        relations, indexed = (tuple(formula_from(f, symbols) for f in document[k]) for k in ("guards", "indexed"))
        return cls(Shapes(dims, limits, captured.reasons, inputs=captured.inputs), relations, indexed, captured)

    def mismatch(self, tensors: Sequence[Tensor]) -> str | None:
        """None when the guards hold for these inputs, otherwise the reason why not."""
        if (reason := self.captured.mismatch(tensors) or self.shapes.mismatch(tensors)) is not None:
            return reason
        bound = {k: max(v, 2) for k, v in self._bound(tensors).items()}  # a size of 1 passes where 2 does
        broken = [g for g in self.relations if _at(g, bound) == sympy.false]
        return f"{broken[0]} does not hold" if broken else None

    def limits(self, tensors: Sequence[Tensor]) -> tuple[int | None, ...]:
        """Shape of the logits that the target indexes on these inputs; None for unknown sizes."""
        bound = self._bound(tensors)
        sizes = [_at(size, bound) for size in self.indexed]
        return tuple(int(s) if s.is_number else None for s in sizes)

    def _bound(self, tensors: Sequence[Tensor]) -> dict[str, int]:
        return {
            dim: int(size)
            for tensor, dims in zip(tensors, self.shapes.dims, strict=True)
            for size, dim in zip(tensor.shape, dims, strict=True)
            if isinstance(dim, str)
        }


class _Guarded(Protocol):
    @property
    def guards(self) -> ShapeGuards: ...


_Graph = TypeVar("_Graph", bound=_Guarded)


def dynamic_if_possible(make: Callable[[bool], _Graph], tensors: Sequence[Tensor]) -> _Graph:
    """A graph with dynamic shapes; with the example's static shapes where tracing with dynamic ones fails.

    Export may report two dimensions as independent although they must match, or merge two that merely coincide in the
    example.

    Args:
        make: traces the graph, with dynamic shapes or with static ones.
        tensors: the example inputs, for which the guards have to hold.

    Raises:
        LrpError: what ``make`` raises.
    """
    try:
        graph = make(True)
    except LrpError:
        raise
    except Exception as error:
        _log.info("traced with fixed sizes: %s", error)
    else:
        if graph.guards.mismatch(tensors) is None:
            return graph
    return make(False)


def _at(formula: Any, bound: dict[str, int]) -> Any:
    return formula.subs({s: bound[s.name] for s in formula.free_symbols if s.name in bound})
