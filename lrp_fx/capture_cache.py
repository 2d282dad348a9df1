"""The capture cache of one model: lookup by guards, capture on a miss, and a limit on the number of entries.

A capture serves a call if four guards hold: the call has the structure, precisions, devices and constants of the
captured call; PyTorch's switches (default precision, autocast) are the same; the model has not changed
(:class:`lrp_fx.capture.ModelState`); and the guards of the capture hold for the inputs
(:meth:`lrp_fx.capture.Captured.why_not`). A failed guard is the reason of a new capture, and is recorded in words.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import re
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from lrp_fx.analysis.detached import HONOUR, analyse_detached
from lrp_fx.cache.store import capture_or_load
from lrp_fx.capture import TRACING, Call, Captured, ModelState, copied_inputs, free_numbers, read_call
from lrp_fx.capture.agreement import carries_state
from lrp_fx.capture.containers import closed
from lrp_fx.capture.conventions import initialise_lazy
from lrp_fx.capture.equivalence import covers
from lrp_fx.capture.garbage import uncollected
from lrp_fx.capture.model_state import switches
from lrp_fx.capture.passes.decompose import decompose
from lrp_fx.capture.passes.merge_equal import merge_equal
from lrp_fx.capture.passes.show_steps import show_steps
from lrp_fx.capture.record import CaptureRecord, Captures
from lrp_fx.contracts import Stage, check_stage
from lrp_fx.errors import CaptureError, LrpError, RecaptureWarning
from lrp_fx.explain.check import WHEN
from lrp_fx.graph.module_calls import paths_of_attribute
from lrp_fx.operators.table import OpTable
from lrp_fx.specialization import Specialization
from lrp_fx.status import converting, stage

_log = logging.getLogger("lrp_fx.captures")

MANY = 16  #: number of captures from which on a warning names the most frequent reason


@dataclass(frozen=True)
class Options:
    """How models are captured.

    Attributes:
        dynamic: capture with dynamic shapes where the model allows them.
        route: "export", "trace" or "auto" (:func:`lrp_fx.capture.capture`).
        limit: largest number of captures in the cache.
        check: when explanations are checked (``lrp_fx.explain.check``).
        detach: whether detached values are constants (:mod:`lrp_fx.analysis.detached`).
    """

    dynamic: bool = True
    route: str = "auto"
    limit: int = 32
    check: str | bool = "first"
    detach: str = HONOUR

    def when(self, check: str | bool | None) -> str | bool:
        """When one explanation is checked: as ``check`` says, or for None as these options say.

        Raises:
            ValueError: for another value.
        """
        when = self.check if check is None else check
        if when not in WHEN:
            raise ValueError(f'check={when!r}: choose "first", "always" or False')
        return when


@dataclass(frozen=True, eq=False)
class Entry:
    """One entry of the cache.

    Attributes:
        key: structure and constants of the call, and PyTorch's switches.
        state: the state of the captured model.
        specialization: the capture with its derived graphs.
        reason: the reason of the capture.
    """

    key: tuple[Any, ...]
    state: ModelState
    specialization: Specialization
    reason: str

    def alike(self, other: Entry) -> bool:
        """Whether both have the same model state and the same key."""
        return self.state is other.state and self.key == other.key

    def agrees(self, leaves: Sequence[Any]) -> bool:
        """Whether the capture's loops over time agree with the model at these sizes."""
        return self.specialization.captured.agrees(lambda: self.state.stand_in().module, leaves)

    def covers(self, other: Entry, leaves: Sequence[Any]) -> bool:
        """Whether this graph equals the other one at all sizes of the other; both run on one example."""
        owned = frozenset(map(id, self.state.tensors.values()))
        return covers(self.specialization.captured, other.specialization.captured, owned, leaves)


class CaptureCache:
    """The captures of one model, most recently used first.

    Threads may look up and explain at the same time; one thread captures at a time.

    Args:
        model: the model.
        ops: the op table.
        options: how to capture.

    Attributes:
        reasons: the reason of each capture, in order.
        options: how to capture.
    """

    def __init__(self, model: torch.nn.Module, ops: OpTable, options: Options) -> None:
        self.model, self.options = model, options
        self.reasons: list[str] = []
        self.ops = ops
        self._entries: tuple[Entry, ...] = ()
        self._records: list[CaptureRecord] = []
        self._constant: set[tuple[Any, ...]] = set()  # keys of calls whose floats cannot be tensor inputs
        self._order = threading.Lock()

    def __call__(self) -> Captures:
        """What was captured, for which sizes, how long it took, and why."""
        return Captures(self._records)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Specialization]:
        return (entry.specialization for entry in self._entries)

    @property
    def latest(self) -> Specialization | None:
        """The specialization that served the last call."""
        return self._entries[0].specialization if self._entries else None

    def serving(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, Call]:
        """The specialization that serves a call, captured on a cache miss, and the flat call.

        Raises:
            InputError, CaptureError, UnknownOpError: see ``lrp_fx.errors``.
        """
        call = read_call(self.model, args, kwargs)
        freed = self._freed(call, args, kwargs)
        entry, used = self._look_up(call, freed)
        if entry is None:
            with TRACING:
                entry, used = self._look_up(call, freed)  # another thread may have captured it meanwhile
                if entry is None:
                    entry, used = self._capture_either(call, freed, args, kwargs)
        self._to_front(entry)
        return entry.specialization, used

    def show_one_sample(self, captured: Captured, call: Call) -> None:
        """Capture the first sample of a call, if the guards of ``captured`` reject a batch of one. If both graphs are
        equal, ``captured`` (and every graph lowered from it) serves one sample from then on.
        """
        shapes, tensors = captured.shapes, list(call.tensors.values())
        first = [t[:1] if i in shapes.samples else t for i, t in enumerate(tensors)]
        if not shapes.samples or shapes.mismatch(first) is None:
            return
        feed = iter(first)
        leaves = [next(feed) if isinstance(leaf, torch.Tensor) else leaf for leaf in call.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, captured.in_spec)
        with contextlib.suppress(LrpError):
            self.serving(args, kwargs)

    def _freed(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """The call with its Python floats as tensors; None without floats, or where they have to be constants."""
        if not any(type(leaf) is float for leaf in call.leaves):
            return None
        freed = read_call(self.model, args, kwargs, free=self._precision(call))
        return None if freed.key in self._constant else freed

    def _precision(self, call: Call) -> torch.dtype:
        """Precision of floats as tensors: double if the model or the call computes in double."""
        tensors = (*self.model.parameters(), *call.tensors.values())
        return torch.float64 if any(t.dtype is torch.float64 for t in tensors) else torch.float32

    def _look_up(self, call: Call, freed: Call | None) -> tuple[Entry | None, Call]:
        """The entry that serves a call, with its floats as inputs or as constants."""
        if freed is not None and (entry := self._find(freed)) is not None:
            return entry, freed
        return self._find(call), call

    def _capture_either(
        self, call: Call, freed: Call | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Entry, Call]:
        """Capture a call. If it differs from an earlier call in the value of a float alone, floats become inputs."""
        if freed is not None and any(_form(entry.specialization.example) == _form(call) for entry in self._entries):
            positional, keywords = free_numbers((args, kwargs), self._precision(call))
            with contextlib.suppress(CaptureError):
                return self._capture(freed, positional, keywords, "export"), freed
            self._constant.add(freed.key)
        return self._capture(call, args, kwargs, self.options.route), call

    def _find(self, call: Call) -> Entry | None:
        key = (*call.key, *switches())
        unchanged: dict[int, bool] = {}
        for entry in self._entries:
            if entry.key != key:
                continue
            state = entry.state
            if id(state) not in unchanged:
                unchanged[id(state)] = state.unchanged()
            captured = entry.specialization.captured
            if not unchanged[id(state)] or captured.why_not(call.leaves) is not None:
                continue
            if entry.agrees(call.leaves):
                return entry
        return None

    def _capture(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], route: str) -> Entry:
        start, reason = time.perf_counter(), self._why(call)
        with converting(type(self.model).__name__), uncollected():
            entry = self._make(call, args, kwargs, route, reason)
        record = CaptureRecord(reason, time.perf_counter() - start, entry.specialization.captured)
        self._records.append(record)
        self.reasons.append(reason)
        _log.info("%s, capture %d: %s", type(self.model).__name__, len(self._records), record)
        self._warn()
        return entry

    def _make(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], route: str, reason: str) -> Entry:
        initialise_lazy(self.model, closed(args), closed(kwargs))
        state = next((e.state for e in self._entries if e.state.unchanged()), None) or ModelState(self.model)
        stand_in = state.stand_in()
        key = (*call.key, *switches())
        captures = [e.specialization.captured for e in self._entries if e.key == key and e.state is state]
        captures = [c for c in captures if not c.over_time]  # those may serve sizes at which they differ from the model
        args, kwargs = copied_inputs((args, kwargs))
        captured = capture_or_load(
            stand_in.module, args, kwargs, dynamic=self.options.dynamic, route=route, refusing=captures
        )
        if captured.written and not self._carries_state(state, args, kwargs):
            state.ignore(captured.written)
        for graph in (captured, *(other for other, _ in captured.others)):
            stand_in.give_back(graph.graph_module)
            if graph.decisions is not None:
                stand_in.give_back(graph.decisions.graph_module)
        alike = [(c, replace(e, key=call.key, numbers=call.numbers)) for c, e in captured.others]
        entry, *further = [self._entry(c, e, state, reason) for c, e in ((captured, call), *alike)]
        replaced = self._merge([entry, *further], call)
        with self._order:
            self._entries = tuple(e for e in (*self._entries, *further) if e not in replaced)
        while entry in replaced:
            entry = replaced[entry]
        return entry

    def _carries_state(self, state: ModelState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether runs of the model depend on what earlier runs wrote; False if it has no copy that may run."""
        another = state.stand_in().module
        return another is not self.model and carries_state(another, args, kwargs)

    def _merge(self, new: Sequence[Entry], call: Call) -> dict[Entry, Entry]:
        """Merge entries of equal graphs; returns superfluous entry -> the entry that covers it.

        An entry with compiled graphs is never superfluous.

        Args:
            new: the new entries, the one of this call first.
            call: the call.
        """
        replaced: dict[Entry, Entry] = {}
        for special, general in itertools.permutations((*new, *self._entries), 2):
            fresh, alike = {special, general} & {*new}, special.alike(general)
            if not fresh or not alike or replaced.keys() & {special, general} or special.specialization.compiled:
                continue
            leaves = call.leaves if special is new[0] else special.specialization.example.leaves
            if not general.covers(special, leaves):
                continue
            general.specialization.captured.shapes.also.append(special.specialization.captured.shapes)
            if general.specialization.captured.why_not(leaves) is None:
                replaced[special] = general
        return replaced

    def _entry(self, captured: Captured, example: Call, state: ModelState, reason: str) -> Entry:
        for place in example.numbers:
            captured.placeholders[place].meta["number"] = True  # a float parameter is no source of relevance
        stage("analysis")
        show_steps(captured.graph_module)
        decompose(captured.graph_module, self.ops)
        merge_equal(captured.graph_module, self.ops)
        check_stage("capture", Stage(captured.graph_module, self.ops))
        facts = analyse_detached(captured.graph_module, self.ops, self.options.detach)
        check_stage("analysis", Stage(captured.graph_module, self.ops, facts))
        aliases = functools.partial(paths_of_attribute, self.model)
        specialization = Specialization(captured, facts, example.sizes_only(), aliases=aliases)
        return Entry((*example.key, *switches()), state, specialization, reason)

    def _to_front(self, entry: Entry) -> None:
        entries = self._entries
        if entries and entries[0] is entry:
            return
        with self._order:
            others = tuple(e for e in self._entries if e is not entry)
            self._entries = (entry, *others)[: self.options.limit]

    def _why(self, call: Call) -> str:
        """The failed guard of the nearest entry, in words."""
        if not self._entries:
            return "the first call"
        alike = [e for e in self._entries if e.state.unchanged()]
        if not alike:
            return f"the model changed: {self._entries[0].state.change()}"
        key = (*call.key, *switches())
        same = [e for e in alike if e.key == key]
        if same:
            captured = same[0].specialization.captured
            refusal = captured.why_not(call.leaves)
            differs = refusal is None and not same[0].agrees(call.leaves)
            return refusal or ("its loop over time differs at this length" if differs else "another thread")
        return _difference(alike[0], call)

    def _warn(self) -> None:
        if len(self.reasons) < MANY or (len(self.reasons) != MANY and len(self.reasons) % 100):
            return
        kinds = Counter(re.sub(r"\d+(\.\d+)?", "N", reason) for reason in self.reasons[1:])
        kind, times = kinds.most_common(1)[0]
        example = next(r for r in reversed(self.reasons) if re.sub(r"\d+(\.\d+)?", "N", r) == kind)
        warnings.warn(
            f"{type(self.model).__name__} was captured {len(self.reasons)} times, {times} of them because of this kind "
            f"of change: {example}.\nEach capture takes seconds; the cache has {self.options.limit} entries. Remedy: "
            "give inputs of few different sizes (pad them), and change the model or its arguments less often.",
            RecaptureWarning,
            stacklevel=6,
        )


def _form(call: Call) -> list[Any]:
    """The key of a call without the values of its floats."""
    count = len(call.names)
    leaves = [float if type(v) is float else k for k, v in zip(call.key[-count:], call.leaves, strict=True)]
    return [call.key[:-count], leaves]


def _difference(entry: Entry, call: Call) -> str:
    """The difference between an entry's call and another call, in words."""
    example, count = entry.specialization.example, len(call.names)
    if example.key[0] != call.key[0] or example.names != call.names:
        return f"other arguments: {', '.join(call.names)} (were {', '.join(example.names)})"
    for name, before, now in zip(call.names, example.key[-count:], call.key[-count:], strict=True):
        if before != now:
            return f"'{name}' is {_said(now)} (was {_said(before)})"
    if example.key != call.key:
        return "an object among the inputs changed in a value that is not a tensor"
    return "PyTorch's default precision, autocast or other switches changed"


def _said(described: Any) -> str:
    """A leaf of a call's key in words: precision, rank and device of a tensor, or the value of a constant."""
    if isinstance(described, tuple) and isinstance(described[0], torch.dtype):
        return f"{described[0]} of {described[1]} dimensions on {described[2]}"
    return str(described[-1] if isinstance(described, tuple) else described)
