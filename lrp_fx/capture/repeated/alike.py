"""Calls of blocks that are alike, found before a model is traced.

The model runs once without tracing and without values, at the sizes of the example, and every call of a block has its
part of the log (:mod:`run_log`). A call is alike an earlier one if both have the same log, of their own inputs,
parameters and buffers, and take nothing else. In the trace it is a copy of the earlier call, so its code is not run.

A second run leaves the copies out, too. What else the model does has to be the same; otherwise a block has handed on
something that its outputs do not show, such as a count.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lrp_fx.capture.repeated.logged_numbers import NotLogged
from lrp_fx.capture.repeated.results import HistoryRead, Results, memory_of
from lrp_fx.capture.repeated.run_log import Entry, RunLog, settings
from lrp_fx.capture.snapshot import Snapshot

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_LEAST = 4  #: smallest number of entries that is worth a copy
_MOST = 2000  #: largest number of entries for each call of a block: a longer one is a loop

Forward = Callable[..., Any]


class Unlike(Exception):
    """A call is not what it was in another run."""


@dataclass(eq=False)
class LoggedCall:
    """A call of a block in a run without values.

    Attributes:
        module: the block.
        kind: number of the kind of the block.
        first: place of its first entry.
        form: the form of its inputs, parameters and buffers, and the settings of PyTorch.
        inputs: leaves of its arguments.
        numbers: the numbers of the tensors and sizes in ``form``.
        count_before: number of tensors and sizes that the run knows at its beginning.
        end: place behind its last entry.
        within: number of calls of blocks inside of it.
        outputs: leaves of its output.
        returned: the form of the output.
        returned_numbers: the numbers of tensors and sizes in it.
    """

    module: nn.Module
    kind: int
    first: int
    form: Any
    inputs: list[Any]
    numbers: list[int]
    count_before: int
    end: int = 0
    within: int = 0
    outputs: list[Any] = field(default_factory=list)
    spec: pytree.TreeSpec | None = None
    returned: Any = None
    returned_numbers: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Plan:
    """Which calls of blocks are copies.

    Attributes:
        calls: the calls, in the order of their beginnings.
        copies: number of a call -> that of the earlier call that it is alike. Calls inside of copies are not run.
    """

    calls: list[LoggedCall]
    copies: dict[int, int]

    @cached_property
    def sources(self) -> set[int]:
        """The numbers of calls that others are copies of."""
        return set(self.copies.values())


class Run:
    """A run of a model, whose calls of blocks are logged.

    Args:
        kinds: id of the namespace of a block -> number of its kind.
        without: number of a call -> the call in an earlier run. These are left out; their outputs are new tensors.
        results: results of functions, in the place of which further calls get new tensors.
    """

    def __init__(
        self, kinds: dict[int, int], without: dict[int, LoggedCall] | None = None, results: Results | None = None
    ) -> None:
        self.log = RunLog(results=results)
        self.calls: list[LoggedCall] = []
        self._kinds, self._without = kinds, without or {}
        self._number = 0

    def of(self, module: nn.Module, forward: Forward, args: Any, kwargs: dict[str, Any]) -> None:
        """Run a model."""
        with self.log.written():
            self.answer(module, forward, args, kwargs)

    def answer(self, module: nn.Module, forward: Forward, args: Any, kwargs: dict[str, Any]) -> Any:
        """Answer a call of a block."""
        number, call = self._number, self._opened(module, args, kwargs)
        self.calls.append(call)
        self._number += 1
        self.log.most += _MOST
        if number in self._without:
            earlier = self._without[number]
            self._number += earlier.within
            output = self._left_out(earlier, call)
        else:
            output = forward(module, *args, **kwargs)
        self._closed(call, output)
        call.within = self._number - number - 1
        if number in self._without:
            self.log.entries.append(as_entry(call))
        return output

    def _opened(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> LoggedCall:
        with self.log.paused(), torch._C.DisableTorchFunction():
            numbers: list[int] = []
            leaves, spec = pytree.tree_flatten((args, dict(sorted(kwargs.items()))))
            stored = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
            tensors = [leaf for leaf in [*leaves, *(tensor for _, tensor in stored)] if isinstance(leaf, Tensor)]
            types = [(type(t), t.is_conj(), t.is_neg()) for t in tensors]
            described = self.log.described((leaves, stored), numbers)
            kind = self._kinds[id(vars(module))]
            form = (described, spec, settings(), types)
            return LoggedCall(module, kind, len(self.log.entries), form, leaves, numbers, self.log.count)

    def _closed(self, call: LoggedCall, output: Any) -> None:
        with self.log.paused(), torch._C.DisableTorchFunction():
            call.outputs, call.spec = pytree.tree_flatten(output)
            call.returned = self.log.described(call.outputs, call.returned_numbers)
        call.end = len(self.log.entries)

    def _left_out(self, earlier: LoggedCall, call: LoggedCall) -> Any:
        """New outputs like those of a call in an earlier run; one that shares memory with an input does so, too."""
        outputs = {id(old): new for old, new in zip(earlier.inputs, call.inputs, strict=True)}
        by_memory: dict[int, Tensor] = {}

        def new(leaf: Any) -> Any:
            if isinstance(leaf, torch.SymInt):
                return self.log.new_size(leaf.node.value)
            if not isinstance(leaf, Tensor):
                return leaf
            place = (leaf.shape, leaf.stride())
            if (shared := by_memory.get(memory_of(leaf))) is not None:
                return torch.as_strided(shared, *place, leaf.storage_offset())
            fresh = torch.empty_strided(*place, dtype=leaf.dtype, device=leaf.device)
            return fresh.requires_grad_().clone() if leaf.requires_grad else fresh

        with self.log.paused():
            for old, tensor in zip(earlier.inputs, call.inputs, strict=True):
                if isinstance(old, Tensor):
                    by_memory[memory_of(old)] = tensor
            for leaf in earlier.outputs:
                if id(leaf) not in outputs:
                    outputs[id(leaf)] = new(leaf)
        assert earlier.spec is not None
        return pytree.tree_unflatten([outputs[id(leaf)] for leaf in earlier.outputs], earlier.spec)


def as_entry(call: LoggedCall) -> Entry:
    """A call that is left out, as one entry."""
    return Entry((call.kind, call.form, call.returned), tuple(call.numbers), tuple(call.returned_numbers))


def plan(
    module: nn.Module, forward: Forward, args: Any, kwargs: dict[str, Any], kinds: dict[int, int],
    running: Callable[[Run | None], None],
) -> Plan | None:  # fmt: skip
    """Which calls of blocks are copies of earlier ones; None if there are none, or if it cannot be told.

    Args:
        module: the model.
        forward: the forward of its class.
        args: its positional arguments, without values.
        kwargs: its keyword arguments.
        kinds: id of the namespace of a block -> number of its kind.
        running: is told which run answers the calls of blocks from now on.
    """

    def ran(without: dict[int, LoggedCall] | None, results: Results | None) -> Run:
        run = Run(kinds, without, results)
        running(run)
        contents = Snapshot(module)
        try:
            run.of(module, forward, args, kwargs)
        finally:
            contents.restore()
        return run

    def planned(results: Results | None) -> Plan | None:
        whole = ran(None, results)
        copies = alike(whole)
        if not copies:
            return None
        rest = ran({number: whole.calls[number] for number in copies}, results)
        same = _rest(whole, copies) == _signature(rest.calls[0], rest.log.entries, rest.log)
        return Plan(whole.calls, copies) if same else None

    try:
        try:
            return planned(Results())
        except HistoryRead:
            return planned(None)
    except (Exception, NotLogged):  # code that a run without values cannot take
        return None
    finally:
        running(None)


def alike(run: Run) -> dict[int, int]:
    """Number of a call -> number of the first call that it is alike, for the outermost such calls."""
    counts = collections.Counter(map(_size, run.calls))
    first: dict[Any, list[tuple[Any, int]]] = {}
    copies: dict[int, int] = {}
    number = 1
    while number < len(run.calls):
        call = run.calls[number]
        number += 1
        if counts[_size(call)] == 1 or call.end - call.first < _LEAST or not _is_plain(call):
            continue
        signature = _signature(call, run.log.entries[call.first : call.end], run.log)
        if signature is None:
            continue
        others = first.setdefault(_size(call), [])
        earlier = next((place for other, place in others if other == signature), None)
        if earlier is None:
            others.append((signature, number - 1))
        else:
            copies[number - 1] = earlier
            number += call.within
    return copies


def _size(call: LoggedCall) -> tuple[int, int]:
    """Kind and number of entries of a call, which alike calls have in common."""
    return (call.kind, call.end - call.first)


def _is_plain(call: LoggedCall) -> bool:
    """Whether inputs and outputs are tensors, sizes and plain values."""
    return all(isinstance(leaf, (Tensor, torch.SymInt, *PLAIN)) for leaf in (*call.inputs, *call.outputs))


def _signature(call: LoggedCall, entries: Sequence[Entry], log: RunLog) -> Any:
    """The log of a call with tensors and sizes numbered from its inputs on; None if it takes any other ones."""
    names: dict[int, Any] = {}
    for number in call.numbers:
        names.setdefault(number, len(names))
    data_flow = [names[number] for number in call.numbers]

    def name(number: int, new: bool = False) -> Any:
        if number not in names:
            names[number] = len(names) if new and number > call.count_before else log.meaning(number)
        return names[number]

    for entry in entries:
        data_flow += map(name, entry.operands)
        data_flow += [name(number, new=True) for number in entry.results]
    data_flow += map(name, call.returned_numbers)
    if call.first and any(isinstance(name, tuple) and name[0] in ("memory", "size") for name in data_flow):
        return None
    return (call.kind, call.form, [entry.what for entry in entries], data_flow, call.spec, call.returned)


def _rest(run: Run, copies: dict[int, int]) -> Any:
    """The log of a run with every copy as one entry."""
    entries: list[Entry] = []
    place = 0
    for number in sorted(copies):
        call = run.calls[number]
        entries += run.log.entries[place : call.first]
        entries.append(as_entry(call))
        place = call.end
    return _signature(run.calls[0], entries + run.log.entries[place:], run.log)
