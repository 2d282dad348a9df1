"""Repeated blocks are traced once: the graph is that of an export that traces all of them, and nothing unlike is merged."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import lrp_fx
from lrp_fx.capture.repeated.answering import answered, class_of
from lrp_fx.capture.repeated.results import Results, fresh_like, memory_of
from lrp_fx.capture.repeated.run_log import RunLog
from lrp_fx.capture.repeated.trace_once import RepeatedBlocks
from lrp_fx.graph.module_calls import noting_calls


class Block(nn.Module):
    """A block with an index that no operator depends on; the other attributes do matter."""

    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.index, self.scale = index, 0.5
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("table", torch.full((4,), float(index)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.down(torch.tanh(self.up(self.norm(x) * self.scale + self.table)))
        return x + (y if mask is None else y * mask)


class Stack(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.blocks = nn.Linear(4, 4), nn.ModuleList(blocks)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x.sum(1)


def blocks(count: int = 3, kind: Callable[[int], nn.Module] = Block) -> Stack:
    return Stack(*(kind(i) for i in range(count)))


def exported(model: nn.Module, once: bool = True, free: bool = False) -> tuple[Any, list[str]]:
    """The exported program, with the places of module calls noted, and the paths of the blocks that were copied.

    Args:
        model: the model.
        once: whether to trace repeated blocks once.
        free: whether batch and length are free, which takes four times as long.
    """
    sizes = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},) if free else None
    with noting_calls(model) as notes:
        repeated = RepeatedBlocks(model, notes, least=1)
        with repeated.copying() if once else nullcontext():
            program = torch.export.export(model, (torch.randn(2, 5, 4),), dynamic_shapes=sizes)
    paths = {id(vars(module)): path for path, module in model.named_modules()}
    return program, [paths[id(vars(module))].removeprefix("blocks.") for module in repeated.copied]


def listing(program: Any) -> list[Any]:
    """Every node with its operands, its place in the model and in the code, and the form of its value."""
    keys = ("nn_module_stack", "custom", "val", "stack_trace")
    number = {node: f"%{index}" for index, node in enumerate(program.graph.nodes)}
    nodes = [
        (str(n.target), str(fx.map_arg((n.args, n.kwargs), number.get)), *(_last_line(n.meta.get(k)) for k in keys))
        for n in program.graph.nodes
    ]
    return [*nodes, str(program.range_constraints), str(program.graph_signature)]


def _last_line(value: Any) -> str:
    return str(value).split("\n  File ")[-1]


def copied(model: nn.Module, free: bool = False) -> str:
    """The copied blocks; the graph has to be that of an export of all blocks, and its output that of the model."""
    program, paths = exported(model, free=free)
    assert listing(program) == listing(exported(model, once=False, free=free)[0])
    x = torch.randn(3, 6, 4) if free else torch.randn(2, 5, 4)
    with torch.no_grad():
        assert torch.equal(program.module()(x), model(x))
    return " ".join(paths)


def test_blocks_that_differ_in_their_weights_are_traced_once() -> None:
    model = blocks(4)
    assert copied(model, free=True) == "1 2 3"
    assert type(model.blocks[0]) is Block  # the classes are the model's own again


def test_conversions_agree_with_those_of_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = blocks(4).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    counts: list[int] = []
    whole = RepeatedBlocks._copy

    def counted(self: Any, block: Any, call: Any) -> Any:
        counts.append(1)
        return whole(self, block, call)

    monkeypatch.setattr(RepeatedBlocks, "_copy", counted)
    once = lrp_fx.convert(model, x)
    assert len(counts) == 3
    monkeypatch.setattr(RepeatedBlocks, "copying", lambda self: nullcontext())
    every = lrp_fx.convert(model, x)
    assert len(counts) == 3
    at = ["blocks.1", "blocks.2.norm", "blocks.0.up"]
    a, b = (c.explain(x, target=1, at=at) for c in (once, every))
    assert torch.equal(once(x), model(x))
    torch.testing.assert_close(a.relevance["x"], b.relevance["x"], rtol=1e-12, atol=0)
    for name in at:
        torch.testing.assert_close(a.latents[name], b.latents[name], rtol=1e-12, atol=0)


class Hooking(Block):
    """Hooks its layer at its first call, and knows itself by a weak reference, as a stand-in of a tracer is no owner."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not vars(self).get("hooked"):
            self.hooked, itself = True, weakref.proxy(self)
            self.up.register_forward_pre_hook(lambda module, args: (args[0] * itself.scale,))
        return super().forward(x, mask)


def test_hooks_of_a_run_aside_are_taken_off() -> None:
    model, x = blocks(4, Hooking).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x)
    assert xmodel.report().route == "export" and not any(block.up._forward_pre_hooks for block in model.blocks)
    torch.testing.assert_close(xmodel(x), model(x))


def tied(block: Block) -> None:
    block.norm.weight = block.norm.bias


def hooked(block: Block) -> None:
    block.up.register_forward_hook(lambda module, args, output: output * 2)


def hooked_itself(block: Block) -> None:
    block.register_forward_hook(lambda module, args, output: output * 2)


def of_its_own(block: Block) -> None:
    block.up.forward = lambda x: torch.relu(F.linear(x, block.up.weight, block.up.bias))  # type: ignore[method-assign]


def other(name: str, value: Any) -> Callable[[Block], None]:
    return lambda block: setattr(block, name, value)


class Attending(Block):
    """A block with attention and dropout."""

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.window, self.rate, self.causal = 100, 0.1, False

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        keys = x[:, -self.window :]
        y = F.scaled_dot_product_attention(x, keys, keys, is_causal=self.causal)
        return super().forward(F.dropout(y, self.rate, self.training), mask)


CHANGES: dict[str, Callable[[Block], Any]] = {
    "no": lambda block: None,
    "index": other("index", 77),
    "scale": other("scale", 0.25),
    "window": other("window", 3),
    "rate": other("rate", 0.2),
    "causal": other("causal", True),
    "training": lambda block: block.train(),
    "shape of a buffer": other("table", torch.ones(1, 4)),
    "precision of a buffer": other("table", torch.ones(4, dtype=torch.bfloat16)),
    "bias": other("up", nn.Linear(4, 4, False)),
    "eps": other("norm", nn.LayerNorm(4, eps=0.1)),
    "class": other("norm", nn.Identity()),
    "tied": tied,
    "hook": hooked,
    "hook of the block": hooked_itself,
    "forward": of_its_own,
    "frozen": lambda block: block.up.requires_grad_(False),
}


def test_blocks_that_differ_are_traced() -> None:
    """Of all these blocks only those are copied that differ from the first one in their index."""
    model = Stack(*(Attending(i) for i in range(len(CHANGES) + 1)))
    for block, change in zip(model.blocks[1:], CHANGES.values(), strict=True):
        change(block)  # type: ignore[arg-type]
    program, paths = exported(model)
    assert [list(CHANGES)[int(path) - 1] for path in paths] == ["no", "index"]
    assert listing(program) == listing(exported(model, once=False)[0])


#: ways to ask whether an input is longer than a limit
ASKING: dict[str, Callable[[Any, Tensor, Any], bool]] = {
    "attribute": lambda block, x, limits: x.shape[1] > block.window,
    "namespace": lambda block, x, limits: x.size(1) > vars(block)["window"],
    "changed object": lambda block, x, limits: limits[0] < x.shape[1],
    "maximum": lambda block, x, limits: max(x.shape[1], limits[0]) != limits[0],
    "symbolic maximum": lambda block, x, limits: torch.sym_max(x.shape[1], limits[0]) != limits[0],
    "quotient": lambda block, x, limits: (x.shape[1] + limits[0] - 1) // limits[0] > 1,
    "half": lambda block, x, limits: x.shape[1] / 2 > limits[0] / 2,
    "list": lambda block, x, limits: limits[0] == 6 and len([*range(x.shape[1])]) > 6,
}


class Limited(nn.Module):
    """Cuts its input to six positions if it finds it too long."""

    def __init__(self, window: int, asking: str, limits: list[int]) -> None:
        super().__init__()
        self.window, self.asking, self.limits, self.up = window, asking, limits, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.limits[0] = self.window
        if ASKING[self.asking](self, x, self.limits):
            x = x[:, -6:]
        return torch.tanh(self.up(x)) * 0.5 + [*ASKING].index(self.asking)


def test_a_limit_is_told_apart_where_no_operator_shows_it() -> None:
    """At five positions a limit of six has no effect, at seven it has."""
    limits = [0]
    model = Stack(*(Limited(window, asking, limits) for asking in [*ASKING][:-1] for window in (100, 6)))
    assert exported(model, free=True)[1] == []
    model = Stack(*(Limited(100, "list", limits) for window in (100, 100, 6)))
    model.blocks[2].window = 6
    program, paths = exported(model, free=True)
    assert paths == ["1"]
    assert listing(program) == listing(exported(model, once=False, free=True)[0])


def test_two_kinds_in_turn_are_traced_once_each() -> None:
    model = blocks(6)
    for block in model.blocks[1::2]:
        block.scale = 0.25
    model.blocks[4].up.weight = model.blocks[0].up.weight  # shared weights: each call has its own path
    assert copied(model, free=True) == "2 3 4 5"


def test_a_block_that_is_called_again_is_copied_from_itself() -> None:
    block = Block()
    assert copied(Stack(block, block, block)) == "0 0"


COUNT = [0]


class Counting(Block):
    """Scales by the number of its call, which is in a global."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        COUNT[0] += 1
        return super().forward(x) * (1 + COUNT[0] / 1000)


class Namespace(Block):
    """Reads its index where no read is noted."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x) * (1 + vars(self)["index"] / 1000)


class Drawing(Block):
    """Takes another constant tensor of its own, which is no buffer."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.offset = torch.full((4,), float(index))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x) + self.offset


class FromZero(Stack):
    """Counts the calls of its blocks from zero, in a global."""

    def forward(self, x: Tensor) -> Tensor:
        COUNT[0] = 0
        return super().forward(x)


def test_what_a_block_reads_elsewhere_is_noticed() -> None:
    model = FromZero(*(kind(i) for kind in (Counting, Namespace, Drawing) for i in range(2)))
    assert copied(model) == ""


def test_constants_of_two_blocks_stay_two() -> None:
    """They are equal now, and one of them may be written in place later."""
    model = Stack(*(Drawing(1) for _ in range(4)))
    assert copied(model) == ""


class Literal(Block):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x) + torch.tensor([1.0, 2.0, 3.0, 4.0])
        y[..., 0] = 0.5
        return y


def test_literals_are_copied() -> None:
    """A copy takes the literals of the first block, which nothing can change."""
    _, paths = exported(Stack(Literal(0), Literal(1)))
    assert paths == ["1"]


class CountingQuietly(Block):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        COUNT[0] += 1
        self.seen = x.shape[1]
        return super().forward(x)


class Average(FromZero):
    """Divides by the number of calls that blocks have counted."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / COUNT[0]


def test_a_count_that_only_the_model_around_reads() -> None:
    assert copied(FromZero(*(CountingQuietly(i) for i in range(3)))) == "1 2"
    assert copied(Average(*(CountingQuietly(i) for i in range(3)))) == ""


class Inplace(Block):
    """Writes into its argument, and into a buffer; returns a view of the argument."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x *= 0.5
        x[:, 0] += 1
        x.add_(self.up(x)).add_(self.table)
        self.table.mul_(0.5)
        return x.view(x.shape[0], -1, 4).to(x.dtype)


def test_writes_in_place_are_copied() -> None:
    class First(Stack):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            z = super().forward(y)
            return z[:, None] + y

    model = First(*(Inplace(i) for i in range(3)))
    before = [b.table.clone() for b in model.blocks]
    program, paths = exported(model)
    for block, table in zip(model.blocks, before, strict=True):
        assert torch.equal(block.table, table)
    assert paths in (["1", "2"], [])
    assert listing(program) == listing(exported(model, once=False)[0])


class Regions(Block):
    """Computes a part without gradients, and a part under autocast."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            scale = x.abs().amax(-1, keepdim=True)
        with torch.autocast("cpu", torch.bfloat16):
            return x + self.down(self.up(x / scale)).float()


class Branching(Block):
    """Takes a branch that depends on values."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (super().forward(x),))


def test_regions_without_gradients_and_under_autocast_are_copied() -> None:
    assert copied(blocks(3, Regions)) == "1 2"


@pytest.mark.slow
def test_branches_on_values_are_traced() -> None:
    model, x = blocks(4, Branching), torch.randn(2, 5, 4)
    converted = lrp_fx.convert(model, x)
    for example in (x, -x):
        torch.testing.assert_close(converted(example), model(example))


class Sharing(nn.Module):
    """Blocks that hand values on in a dict, or take those of the first block."""

    def __init__(self, write: bool) -> None:
        super().__init__()
        self.first, self.blocks, self.write = nn.Linear(4, 4), nn.ModuleList(Handing(i) for i in range(3)), write

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        shared: dict[str, Tensor] = {} if self.write else {"first": x}
        for block in self.blocks:
            x = block(x, shared)
        return (x + sum(shared.values())).sum(1)


class Handing(Block):
    def forward(self, x: Tensor, shared: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        if "first" not in shared or "again" in shared:
            shared[f"{len(shared)}"] = self.up(x)
        return super().forward(x) * next(iter(shared.values()))


@pytest.mark.parametrize(("write", "paths"), [(True, ""), (False, "2")])
def test_values_of_other_blocks(write: bool, paths: str) -> None:
    """(The first block has one tensor for two of its inputs.)"""
    assert copied(Sharing(write).eval()) == paths


LEAKS: list[Tensor] = []


class Leaking(Stack):
    """Blocks that append a value of theirs to a global list."""

    def forward(self, x: Tensor) -> Tensor:
        LEAKS.clear()
        x = super().forward(x) + torch.stack(LEAKS).sum((0, 2))
        LEAKS.clear()
        return x


class Leak(Block):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        LEAKS.append(y * 2)
        return y


class Keeping(Stack):
    """Keeps a mask in a dict, and adds what its blocks have kept in attributes."""

    def __init__(self, *blocks: nn.Module, loss: bool) -> None:
        super().__init__(*blocks)
        self.loss, self.masks = loss, {}  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        self.masks.setdefault("mask", torch.ones(4) * 2)
        x = self.first(x)
        for block in self.blocks:
            x = block(x * self.masks["mask"])
        return x.sum(1) + sum(block.kept for block in self.blocks) if self.loss else x.sum(1)


class Kept(Block):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        self.kept = y.mean()
        return y


def test_values_that_leave_a_block_by_the_back_door() -> None:
    assert copied(Leaking(*(Leak(i) for i in range(3)))) == ""
    program, paths = exported(model := Keeping(*(Kept(i) for i in range(3)), loss=True))
    assert not paths
    model.masks.clear()
    assert listing(program) == listing(exported(model, once=False)[0])
    program, paths = exported(model := Keeping(*(Kept(i) for i in range(3)), loss=False))
    assert paths == ["1", "2"]
    model.masks.clear()
    assert listing(program) == listing(exported(model, once=False)[0])


def test_masks_and_sizes_are_inputs_of_blocks() -> None:
    class Masked(Stack):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(x.shape[1], 1).tril()
            for index, block in enumerate(self.blocks):
                x = block(x, mask if index else None)
            return x.sum(1)

    assert copied(Masked(*(Block(i) for i in range(4))), free=True) == "2 3"


class Rows(nn.Module):
    """Runs a loop over rows if it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return torch.stack([torch.sin(row) for row in x.new_ones(20, 1) * x.sum()]).sum() + x
        return x * 2


@pytest.mark.parametrize("shared", [False, True])
def test_modules_that_run_a_loop_because_they_are_exported(shared: bool) -> None:
    """Such a module is told by its class, which is neither that of an export's stand-in nor one that answers calls."""
    rows = Rows()
    model = Stack(*(nn.Sequential(Block(i), rows if shared else Rows()) for i in range(4)))
    converted = lrp_fx.convert(model, torch.randn(2, 5, 4), capture="export")
    x = torch.randn(3, 6, 4)
    torch.testing.assert_close(converted(x), model(x))


class Numbered(Rows):
    """Does the same in all blocks if it is exported, and not otherwise."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.compiler.is_exporting() else x * (2 + self.index)


def test_blocks_are_compared_by_the_code_that_is_traced() -> None:
    model = Stack(*(nn.Sequential(Block(i), Numbered(i)) for i in range(4)))
    converted = lrp_fx.convert(model, torch.randn(2, 5, 4), capture="export")  # (refused, if blocks were mixed up)
    x = torch.randn(3, 6, 4)
    torch.testing.assert_close(converted(x), model(x))


def test_calls_of_other_threads_are_not_answered() -> None:
    block, answers = Block(), []
    x = torch.randn(2, 5, 4)
    expected = block.eval()(x)
    with answered([block], lambda *call: "answer"):
        assert block(x) == "answer"
        assert class_of(block) is Block
        thread = threading.Thread(target=lambda: answers.append(block(x)))
        thread.start()
        thread.join()
    assert torch.equal(answers[0], expected)


class _Attention(nn.Module):
    """Attention, which PyTorch computes by many operators, and a write into its result."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.project, self.index = nn.Linear(4, 12), index

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(*self.project(x).chunk(3, -1))
        y.add_(x)
        return y * (y.requires_grad + 1)


def logged(run: Callable[[], Any], results: Results | None = None) -> tuple[list[Any], Any]:
    """The functions in the log of a run, and what it returns."""
    log = RunLog(most=100, results=results)
    with log.written():
        returned = run()
    assert all(number <= log.count for entry in log.entries for number in entry.results)
    return [entry.what[0] for entry in log.entries], returned


def test_functions_of_pytorch_are_run_once_for_each_form() -> None:
    log = RunLog(most=100, results=Results())
    with FakeTensorMode():
        x = torch.randn(2, 5, 4)
        layers = [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)]
        with log.written():
            first, second, frozen = (layer(x) for layer in layers)
        with torch.no_grad(), log.written():
            without = layers[0](x)
    assert [entry.what[0] for entry in log.entries] == [F.linear] * 4
    assert len({number for entry in log.entries for number in entry.results}) == 4
    assert [t.requires_grad for t in (first, second, frozen, without)] == [True, True, False, False]
    assert not first.is_leaf and second.is_leaf  # made without a run
    assert second.stride() == first.stride() and second.device == first.device


#: functions whose result is no new tensor alone
RETURNING: dict[str, Callable[[Tensor], Any]] = {
    "view": lambda x: x[:, 1:].transpose(1, 2),
    "operand": lambda x: x.contiguous(),
    "views": lambda x: x.chunk(2, -1),
    "named": lambda x: x.max(-1),
    "written": lambda x: x.mul(2).mul_(x),
    "written in part": lambda x: x.mul(2)[:, 1:].mul_(x[:, 1:]),
    "filled in part": lambda x: (y := torch.zeros(2, 5, 4), y[:, 1:].copy_(x[:, 1:]), y)[0],
    "written by a function in Python": lambda x: F.relu(x.mul(2), inplace=True),
    "function in Python": lambda x: F.softmax(x, -1).split(2, 1),
    "difference": lambda x: 1 - x,
    "entries": lambda x: (y := x * 2, y.__setitem__(slice(1), x[1:]), y)[0],
    "literal": lambda x: (y := x * 2, y.__setitem__((slice(None), 0), 0.0), y)[0],
}


@pytest.mark.parametrize("case", RETURNING)
def test_tensors_that_are_made_without_a_run_are_like_those_of_a_run(case: str) -> None:
    with FakeTensorMode():
        operands = [torch.randn(2, 5, 4).requires_grad_() for _ in range(3)]
        results = Results()
        runs = [logged(lambda x=x: RETURNING[case](x), results) for x in operands * 2]
        plain = [RETURNING[case](x) for x in operands]
    assert all(functions == runs[0][0] for functions, _ in runs)

    def form(returned: Any, operand: Tensor) -> Any:
        tensors = [returned] if isinstance(returned, Tensor) else returned
        places = [(t is operand, memory_of(t) == memory_of(operand), t.storage_offset()) for t in tensors]
        return type(returned), places, [(t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in tensors]

    for (_, returned), expected, x in zip(runs, plain * 2, operands * 2, strict=True):
        assert form(returned, x) == form(expected, x)


def test_new_outputs_of_a_copy_have_a_history_and_memory_of_their_own() -> None:
    with FakeTensorMode():
        like = (torch.randn(2, 5, 4).requires_grad_() * 2).transpose(1, 2)
        new = fresh_like(like)
        constant = fresh_like(like.detach())
        new[:, 0].add_(1)  # into a leaf, nothing is written
    assert (new.shape, new.stride(), new.dtype, new.device) == (like.shape, like.stride(), like.dtype, like.device)
    assert new.requires_grad and not new.is_leaf and not constant.requires_grad
    assert memory_of(new) != memory_of(like)


def test_values_and_objects_keep_a_function_from_being_left_out() -> None:
    results = Results()
    with FakeTensorMode():
        x = torch.randn(2, 6)
        assert [logged(lambda n=n: (torch.tensor(n) * 1).item(), results)[1] for n in (2, 3)] == [2, 3]
        rows = [logged(lambda n=n: x.view(np.int64(n), -1), results)[1].shape[0] for n in (3, 4)]  # type: ignore[arg-type]
    assert rows == [3, 4]


#: ways to ask a tensor for its history; the answers are those of a tensor that was made without a run
HISTORIES: dict[str, Callable[[Tensor, Tensor], bool]] = {
    "leaf": lambda x, y: y.is_leaf,
    "function": lambda x, y: y.grad_fn is None,
    "base": lambda x, y: y[:, 1:]._base is not y,
    "version": lambda x, y: y._version > 0,
    "write": lambda x, y: _fails(lambda: y.add_(1)),
    "write into a view": lambda x, y: _fails(lambda: y[:, 1:].add_(1)),
}


def _fails(function: Callable[[], Any]) -> bool:
    try:
        function()
    except RuntimeError:
        return True
    return False


class Historic(nn.Module):
    def __init__(self, asking: str) -> None:
        super().__init__()
        self.up, self.asking = nn.Linear(4, 4), asking

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x) * 2
        return torch.tanh(y) if HISTORIES[self.asking](x, y) else torch.sigmoid(y) * 2


@pytest.mark.parametrize("asking", HISTORIES)
def test_history_is_that_of_a_run(asking: str) -> None:
    model = blocks(3, lambda _: Historic(asking))
    program, paths = exported(model)
    assert paths == ["1", "2"]
    assert listing(program) == listing(exported(model, once=False)[0])


def test_a_write_into_the_result_of_such_a_function() -> None:
    stack = blocks(4, _Attention)
    program, copied = exported(stack)
    assert copied == ["1", "2", "3"]
    assert listing(program) == listing(exported(stack, once=False)[0])
    frozen = blocks(4, _Attention)
    frozen.blocks[2].requires_grad_(False)
    assert exported(frozen)[1] == ["1", "3"]
