"""Thirty random models, the same ones every time but under ``--hypothesis-seed``, and the smallest ones that once failed (``tools/fuzz`` runs more)."""

import pytest
import torch
from generated.checks import CHECKS, RULE_SETS, Case
from generated.parts import PARTS
from generated.programs import build, inputs, parsed, random_program, smaller
from torch import nn

import lrp_fx
from lrp_fx.lowering.targets.spec import distinct

SLOW = ("sizes", "lowered", "routes")  # one of them per model here; all of them in tools/fuzz


def test_a_random_model(drawn):
    case = Case(random_program(drawn), RULE_SETS[drawn % len(RULE_SETS)])
    for name, check in CHECKS.items():
        if name not in SLOW or name == SLOW[drawn % 3]:
            check(case)


#: (what once failed, under which rule set, the smallest program)
ONCE_FAILED = [
    ("singles", "gradient", "v0 = image; v1 = ImageNorm(v0, 'instance'); v2 = ImageNorm(v1, 'channels last'); "
     "head classes of v2, seed 131"),
    ("routes", "vit_gamma", "v0 = image; v1 = sequence; v2 = Rearrange(v1, 'narrow'); v3 = Residual(v2, 'in place'); "
     "v4 = ImageNorm(v0, 'batch'); head classes of v3, v4, seed 58"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "rules", "program"), ONCE_FAILED)
def test_what_once_failed(check, rules, program):
    CHECKS[check](Case(parsed(program), rules))


def test_every_part_occurs():
    used = {(s.part, s.choice) for seed in range(3000) for s in random_program(seed).steps}
    assert used == {(name, choice) for name, kind in PARTS.items() for choice in kind.choices}


@pytest.mark.parametrize("seed", range(40, 60))
def test_programs_are_written_read_and_made_smaller(seed):
    program = random_program(seed)
    assert parsed(str(program)) == program
    for other in smaller(program):
        assert len(other.steps) + len(other.signals) + (other.head == "tokens") < (
            len(program.steps) + len(program.signals) + (program.head == "tokens")
        )
        assert bool(build(other)(**inputs(other)).isfinite().all())


class Gathered(nn.Module):
    """Its inputs are called as those of targets are."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 5)

    def forward(self, position, index):
        return self.head(position.gather(1, index[:, None, None].expand(-1, 1, 8)).squeeze(1))


def test_inputs_called_as_those_of_targets():
    torch.manual_seed(0)
    model, given = (
        Gathered().double().eval(),
        {"position": torch.randn(3, 6, 8).double(), "index": torch.tensor([0, 3, 5])},
    )
    xmodel = lrp_fx.convert(model, **given)
    many = xmodel.explain(**given, targets=[0, 1]).relevance["position"]
    lowered = xmodel.lower(**given, target=1)
    for found in (many[1], lowered(**given, target=1).relevance["position"]):
        assert torch.allclose(found, xmodel.explain(**given, target=1).relevance["position"], atol=1e-12)
    assert distinct(["a.b", "a_b", "target"], ["target"]) == ["a_b", "a_b_", "target_"]
