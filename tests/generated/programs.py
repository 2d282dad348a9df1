"""Random models: a program is a list of steps over values of known form, and a module that interprets it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from generated.part import Form
from generated.parts import PARTS

SIGNALS = {"sequence": Form("sequence", 8), "row": Form("row", 8), "image": Form("image", 4)}
CLASSES = 5
Recipe = tuple[str, str]  #: a part and one of its choices


@dataclass(frozen=True)
class Step:
    """One part, one of its choices, and which values it reads (inputs first, then the results of earlier steps)."""

    part: str
    choice: str
    reads: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.part}({', '.join([*(f'v{r}' for r in self.reads), repr(self.choice)])})"


@dataclass(frozen=True)
class Program:
    """A random model, as data.

    Attributes:
        signals: floating inputs: sequence, row, image.
        steps: in order; each result is a further value.
        head: "classes" (B, 5) from all values that nothing reads, or "tokens" (B, S, 5) of the last sequence.
        seed: of weights and inputs.
    """

    signals: tuple[str, ...]
    steps: tuple[Step, ...]
    head: str = "classes"
    seed: int = 0

    def forms(self) -> list[Form]:
        """The form of every value.

        Raises:
            ValueError: where a step does not take what it reads.
        """
        forms = [SIGNALS[s] for s in self.signals]
        for step in self.steps:
            if any(r >= len(forms) for r in step.reads):
                raise ValueError(f"{step} reads a later value")
            made = fitting(step.part, step.choice, tuple(forms[r] for r in step.reads))
            if made is None:
                raise ValueError(f"{step} does not take these values")
            forms.append(made)
        if not forms or (self.head == "tokens" and not any(f.kind == "sequence" for f in forms)):
            raise ValueError("nothing to answer from")
        return forms

    def inputs(self) -> tuple[str, ...]:
        """Names of the model's inputs."""
        needed = {n for s in self.steps for n in PARTS[s.part].needs(s.choice)}
        return (*self.signals, *sorted(needed))

    def ends(self) -> list[int]:
        """The values that the head reads."""
        forms = self.forms()
        if self.head == "tokens":
            return [max(i for i, form in enumerate(forms) if form.kind == "sequence")]
        read = {r for s in self.steps for r in s.reads}
        return [i for i in range(len(forms)) if i not in read]

    def __str__(self) -> str:
        lines = [f"v{i} = {name}" for i, name in enumerate(self.signals)]
        lines += [f"v{i} = {step}" for i, step in enumerate(self.steps, len(self.signals))]
        return "; ".join([*lines, f"head {self.head} of {', '.join(f'v{i}' for i in self.ends())}, seed {self.seed}"])


def fitting(part: str, choice: str, forms: tuple[Form, ...]) -> Form | None:
    """The form of what a part makes of these values; None where it does not take them."""
    kind = PARTS[part]
    known = {"patches": "sequence"} if not kind.needs(choice) else {}
    fits = len(forms) == len(kind.takes) and all(
        known.get(f.kind, f.kind) in t.split() for f, t in zip(forms, kind.takes, strict=True)
    )
    if not fits or (kind.alike and len(set(forms)) > 1) or choice not in kind.choices:
        return None
    return kind.gives(forms, choice)


class Interpreter(nn.Module):
    """The model of a program: plain PyTorch, whatever runs it."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        forms = program.forms()
        self.program = program
        self.parts = nn.ModuleList(PARTS[s.part](tuple(forms[r] for r in s.reads), s.choice) for s in program.steps)
        self.head = nn.Linear(sum(forms[i].width for i in program.ends()), CLASSES)

    def forward(
        self,
        sequence: Tensor | None = None,
        row: Tensor | None = None,
        image: Tensor | None = None,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        index: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        signals = {"sequence": sequence, "row": row, "image": image}
        given = {"ids": ids, "mask": mask, "index": index, "positions": positions}
        values = [signals[name] for name in self.program.signals]
        for step, part in zip(self.program.steps, self.parts, strict=True):
            values.append(part(given, *[values[r] for r in step.reads]))
        ends = [values[i] for i in self.program.ends()]
        if self.program.head == "classes":
            ends = [v.mean(1) if v.dim() == 3 else v.mean((2, 3)) if v.dim() == 4 else v for v in ends]
        return self.head(torch.cat(ends, -1) if len(ends) > 1 else ends[0])


def build(program: Program) -> nn.Module:
    """The model in float64 and evaluation mode, with weights under which every part counts."""
    generator = torch.Generator().manual_seed(program.seed)
    torch.manual_seed(program.seed)
    model = Interpreter(program).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.3 * torch.randn(buffer.shape, generator=generator, dtype=torch.float64)
    return model


def inputs(program: Program, batch: int = 3, length: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of one size: floats, token ids, a padding mask, an index and three positions per sample."""
    generator = torch.Generator().manual_seed(1000 * program.seed + 10 * length + seed)

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def below(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    lengths = 2 + below(length - 1, batch, 1)
    made: dict[str, Any] = {
        "sequence": floats(batch, length, 8),
        "row": floats(batch, 8),
        "image": floats(batch, 4, 4, 4),
        "ids": below(20, batch, length),
        "mask": (torch.arange(length) < lengths).long(),
        "index": below(length, batch),
        "positions": torch.stack([torch.randperm(length, generator=generator)[:3] for _ in range(batch)]),
    }
    return {name: made[name] for name in program.inputs()}


def random_program(seed: int, most: int = 8) -> Program:
    """A program of up to ``most`` steps; recent values are read more often than old ones."""
    choose = random.Random(seed)
    signals = choose.choice([("sequence",), ("sequence", "row"), ("image",), ("row",), ("image", "sequence"), ()])
    start = (
        ()
        if signals not in ((), ("row",))
        else (Step("TokenEmbedding", choose.choice(PARTS["TokenEmbedding"].choices), ()),)
    )
    program = Program(signals, start, seed=seed)
    wanted = choose.randint(3, most)
    while len(program.steps) < wanted:
        forms = program.forms()
        part = choose.choice(sorted(PARTS))
        choice = choose.choice(PARTS[part].choices)
        possible = list(_readings(part, choice, forms))
        if possible and (part != "TokenEmbedding" or choose.random() < 0.3):
            recent = possible[-4:] if choose.random() < 0.7 else possible
            program = replace(program, steps=(*program.steps, Step(part, choice, choose.choice(recent))))
    if any(f.kind == "sequence" for f in program.forms()) and choose.random() < 0.25:
        program = without_unread(replace(program, head="tokens"))
    return program


def programs() -> st.SearchStrategy[Program]:
    """A strategy: :func:`random_program` of any seed. What fails is made smaller by :func:`smaller`."""
    return st.integers(0, 2**31).map(random_program)


def _readings(part: str, choice: str, forms: list[Form]) -> Iterator[tuple[int, ...]]:
    """Every choice of values that a part takes."""
    count = len(PARTS[part].takes)
    places = range(len(forms))
    choices = [()] if count == 0 else [(i,) for i in places] if count == 1 else [(j, i) for i in places for j in places]
    for reads in choices:
        if fitting(part, choice, tuple(forms[r] for r in reads)) is not None:
            yield reads


def without_unread(program: Program) -> Program:
    """Drop the steps and signals of a "tokens" program that its answer does not depend on."""
    ends, first = program.ends(), len(program.signals)
    used = set(ends)
    for place in range(len(program.forms()) - 1, first - 1, -1):
        if place in used:
            used |= set(program.steps[place - first].reads)
    return _renumbered(program, sorted(used))


def smaller(program: Program) -> Iterator[Program]:
    """Programs with one step less, what it made replaced by an earlier value of the same form; or one signal less."""
    forms = program.forms()
    for place in reversed(range(len(forms))):
        for other in (*[i for i in range(place) if forms[i] == forms[place]][::-1][:2], None):
            if other is None and any(place in s.reads for s in program.steps):
                continue
            steps = tuple(
                replace(s, reads=tuple(other if r == place and other is not None else r for r in s.reads))
                for s in program.steps
            )
            kept = [i for i in range(len(forms)) if i != place]
            try:
                made = _renumbered(replace(program, steps=steps), kept)
                made.forms()
                yield made
            except (ValueError, KeyError):
                continue
    if program.head == "tokens":
        yield replace(program, head="classes")


def _renumbered(program: Program, kept: list[int]) -> Program:
    """The program with only these values."""
    first, place = len(program.signals), {old: new for new, old in enumerate(kept)}
    signals = tuple(program.signals[i] for i in kept if i < first)
    steps = [program.steps[i - first] for i in kept if i >= first]
    return replace(
        program, signals=signals, steps=tuple(replace(s, reads=tuple(place[r] for r in s.reads)) for s in steps)
    )


def parsed(text: str) -> Program:
    """The program that ``str`` wrote, for tests and reports."""
    signals, steps, head, seed = [], [], "classes", 0
    for line in text.split("; "):
        if line.startswith("head "):
            words = line.replace(",", "").split()
            head, seed = words[1], int(words[-1])
        elif "(" not in line:
            signals.append(line.split(" = ")[1])
        else:
            part, _, arguments = line.split(" = ", 1)[1].partition("(")
            reads, _, choice = arguments[:-1].rpartition("'")[0].rpartition("'")
            steps.append(Step(part, choice, tuple(int(r.strip()[1:]) for r in reads.split(",") if r.strip())))
    return Program(tuple(signals), tuple(steps), head, seed)


def described(program: Program) -> Mapping[str, int]:
    """How often each part occurs."""
    counts: dict[str, int] = {}
    for step in program.steps:
        counts[step.part] = counts.get(step.part, 0) + 1
    return counts
