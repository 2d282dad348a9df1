"""Try ordinary functionals one by one; write docs/operators.md: the number that work, and the failures with reasons."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from operator_survey.check import problems
from operator_survey.functionals import FUNCTIONALS, FURTHER, NOT_YET, OUT_OF_REACH, X

PAGE = """# Operators

Written by `tools/operators` on {date}: {count} ordinary functionals one by one, each behind a linear layer, in float64. One works if the model converts, the ledger
balances and `verify` passes, outputs are the model's to 1e-12, and `rules="gradient"` is input times the gradient by autograd to 1e-9 (where autograd has no
derivative of the model, by central differences).

**{working} of {count} work**, {survey} of the {surveyed} that were tried first. An operator works because `rules/ops.toml` declares it, or because it is
written out as operators that are declared there: a composite one by its own kernel, others by PyTorch's table of decompositions or by
`lrp_fx/capture/passes/spellings.py`. What you declare yourself comes first.

{failing}
What a model detaches, or computes under `no_grad`, is a constant, as it is to autograd.

## Kinds, for operators of your own

| kind | what it says | relevance under `attnlrp` |
|---|---|---|
| movement | entries are moved, copied, dropped, chosen by constants | goes with them |
| linear | linear in its operands together; more generally f(tx) = t f(x) | x times gradient; what is constant keeps its part |
| product | linear in each of its operands | shared evenly |
| quotient | linear in the first operand, of degree -1 in the second | shared evenly |
| homogeneous | f(tx) = t^degree f(x); with `count`, a product of so many factors | gradient divided by the degree |
| nonlinearity | a function of one operand, entry by entry | slope f(x)/x |
| selection | picks entries (maximum, sort) | the winner takes all |
| softmax, function | any other that has a derivative | first-order Taylor; the rest is in the ledger |
| normalization, attention, lookup | see the lines in `rules/ops.toml` | |
| constant | integers, comparisons, random numbers | none |

Further columns say what an operator does, whatever a rule makes of it; passes read them of your operators, too (`register_op(..., form="copy")`):

| column | of kinds | what it says |
|---|---|---|
| `form` | movement | how entries are moved: `copy`, `detach`, `cast`, `reshape`, `insert`, `permute`, `pieces` |
| `inert` | movement | the argument that, if False, makes the operator the identity (`train` of dropout) |
| `literals` | movement, linear | arguments that become entries of the result (the fill value of padding) |
| `coefficients` | linear | what each operand is multiplied by, a number or the name of an argument: `1 -alpha` |
| `cumulative` | linear | a running sum |
| `elementwise`, `reduces` | any | computed entry by entry; depends on the operand through a reduction only |
| `positive`, `decay` | any | the values have no sign, or the operand's (`"operand"`); an exponential |
| `picks`, `entrywise` | any | the argument that says which entries are read; one entry an index |
| `features`, `channels`, `matrices` | product | where the result counts features, and the weight output channels; rows times columns |
| `distribution` | softmax | the argument that names the dimension along which the result, or its exponential, adds up to one |

An operator without a derivative can carry relevance under no kind but "nonlinearity" (whose slope needs none): give it one with
`torch.library.register_autograd`.
"""


def survey(names: list[str]) -> dict[str, str]:
    """Name -> failure, "" if there is none."""
    verdicts = {}
    for name, function in (FUNCTIONALS | FURTHER).items():
        if names and name not in names:
            continue
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                verdicts[name] = "; ".join(problems(name, function, X))
            except Exception as error:
                verdicts[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        print(f"{name:24} {time.perf_counter() - start:5.1f} s  {verdicts[name] or 'ok'}", flush=True)
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these, and no page")
    names = parser.parse_args().names
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    verdicts = survey(names)
    failing = {name: (OUT_OF_REACH | NOT_YET).get(name, why) for name, why in verdicts.items() if why}
    print(f"{len(verdicts) - len(failing)} of {len(verdicts)} work")
    if names:
        return
    rows = "".join(f"- `{name}`: {why}\n" for name, why in failing.items())
    page = PAGE.format(
        date=time.strftime("%Y-%m-%d"), count=len(verdicts), working=len(verdicts) - len(failing), surveyed=len(FUNCTIONALS),
        survey=sum(name not in failing for name in FUNCTIONALS),
        failing=f"Those that do not:\n\n{rows}" if rows else "",
    )  # fmt: skip
    (ROOT / "docs" / "operators.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
