"""`lrp-fx ops`: the op table."""

from __future__ import annotations

from fnmatch import fnmatchcase

from rich.table import Table

from lrp_fx.errors import InputError
from lrp_fx.operators.table import OpSpec, OpTable

_FIELDS = ("degree", "slope", "at_zero")  #: fields of some kinds of operators


def ops_table(pattern: str) -> Table:
    """The operators with matching names, one per row.

    Raises:
        InputError: if no name matches.
    """
    specs = [spec for name, spec in sorted(OpTable.load().specs.items()) if fnmatchcase(name, pattern)]
    if not specs:
        raise InputError(f"no operator is called {pattern!r}: lrp-fx ops 'aten.*' lists those of torch")
    table = Table(title=f"{len(specs)} operators", box=None, pad_edge=False)
    for column in ("operator", "kind", "operands", "added", "further"):
        table.add_column(column, overflow="fold")
    for spec in specs:
        table.add_row(spec.name, spec.kind, " ".join(spec.args), " ".join(spec.terms), _further(spec))
    return table


def _further(spec: OpSpec) -> str:
    marks = [name for name in ("reduces", "elementwise") if getattr(spec, name)]
    fields = {name: getattr(spec, name) for name in _FIELDS if getattr(spec, name) is not None} | dict(spec.extra)
    return ", ".join([*marks, *(f"{name}={value}" for name, value in fields.items())])
