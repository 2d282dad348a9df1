"""lrp_fx.testing.check: what holds passes, and what is broken is told with its node and line."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx import testing


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.value, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.seen = []

    def forward(self, x):
        mixed = torch.sigmoid(self.gate(x)) * self.value(x)
        return self.head(mixed)


def test_a_model_that_holds_passes_and_stays_as_it_is(capfd):
    model, x = Gated(), torch.randn(2, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = testing.check(model, x)
    assert result.passed and result.failures == () and result.model == "Gated" and result.rules == "default"
    measured = result.measured
    assert measured.forward == 0 and measured.conservation < 1e-12 and measured.role_defect < 1e-12
    assert measured.route == "export" and measured.roles["linear"] == 2 and result.seconds > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and next(model.parameters()).dtype is torch.float32
    assert capfd.readouterr() == ("", "")


def test_a_declaration_that_is_wrong_is_told_with_its_node_and_source_line():
    x = torch.randn(2, 6)
    result = testing.check(Gated(), x, ops={"linear": {"aten.mul": {"args": "self other"}}})
    (failure, *_) = [f for f in result.failures if f.place.node]
    line = next(
        n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "mixed = torch.sigmoid" in text
    )
    assert not result.passed and failure.place.node == "mul" and failure.place.source.endswith(f"test_check.py:{line}")
    assert f"test_check.py:{line}" in str(failure)


def test_a_rule_set_that_does_not_conserve_is_told():
    """Under cp_lrp with the natural gradient of nonlinearities, relevance is lost at each."""
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))
    rules = {"base": "cp_lrp", "rules": {"nonlinearity": "gradient"}}
    assert testing.check(model, torch.randn(2, 4), rules=rules).passed  # what is lost is booked: the accounts hold
    broken = testing.measure.Measured()
    testing.measure.measure_sums(broken, model, (torch.randn(2, 4),), {}, outside=rules)
    assert [kind for kind, _ in testing.measure.shortcomings(broken)] == ["conservation"]


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, scale):
        with torch.no_grad():
            held = torch.round(x)
        return self.head(held) * 0 + self.head.bias + 0 * scale.sum()


def test_inputs_that_get_nothing_are_a_failure():
    result = testing.check(Detached(), torch.randn(2, 4), torch.randn(2))
    assert not result.passed and "relevance" in {f.kind for f in result.failures}


def test_errors_become_failures_that_name_the_node():
    class Infinite(nn.Module):
        def forward(self, x):
            return torch.log(x - x) + x

    result = testing.check(Infinite(), torch.randn(2, 4))
    assert [f.kind for f in result.failures] == ["model"] and "not finite" in result.failures[0].text
    wrong = testing.check(nn.Linear(4, 3), torch.randn(2, 5))
    assert wrong.failures[0].kind == "model" and "RuntimeError" in wrong.failures[0].text
    with pytest.raises(lrp_fx.errors.RuleSetError):
        testing.check(nn.Linear(4, 3), torch.randn(2, 4), rules="no_such_rules")


def test_a_model_that_cannot_be_copied_is_checked_in_its_own_precision():
    model = Gated()
    model.seen.append(model.value(torch.randn(1, 6)))  # no leaf: deepcopy refuses it
    result = testing.check(model, torch.randn(2, 6))
    assert result.passed and result.measured.conservation is None
    assert any("cannot be copied" in note for note in result.notes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    result = testing.check(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype), torch.randn(2, 4, dtype=dtype)
    )
    assert result.passed and result.measured.conservation < 1e-6


def test_the_assertion_names_what_does_not_hold():
    assert testing.assert_explainable(Gated(), x=torch.randn(2, 6), target=1).passed
    with pytest.raises(
        AssertionError, match=r"explanations of Gated under default do not hold:\n  error: .*test_check.py:\d+"
    ):
        testing.assert_explainable(Gated(), torch.randn(2, 6), ops={"linear": {"aten.mul": {"args": "self other"}}})


def test_a_check_as_json_and_as_a_page():
    place = lrp_fx.graph.location.Place("mul", "a.b", "x.py:3")
    measured = testing.Measured(route="export", forward=float("inf"), roles={"linear": 2})
    result = testing.Check(
        "Net", "default", (testing.Failure("outputs", "apart | by\n1", place),), ("a note",), 0.5, measured
    )
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["passed"] is False and document["measured"]["forward"] == "inf"
    assert document["failures"][0]["place"] == {"node": "mul", "module": "a.b", "source": "x.py:3"}
    page = result.to_markdown()
    assert page.startswith("### Net: failed") and "- outputs: apart | by 1" in page and "- a note" in page
    assert "| outputs apart | inf |" in page and "conservation" not in page


def test_places_are_read_from_the_words_that_name_them():
    from lrp_fx.graph.location import Place, locate, located

    model = Gated().eval()
    graph = lrp_fx.convert(model, torch.randn(2, 6)).current.captured.graph_module.graph
    for node in graph.nodes:
        place = located(f"something at {locate(node)}. Remedy: look at node 'other'")
        assert place.node == node.name and place.module in ("<root>", "gate", "value", "head")
    assert located("nothing here") == Place()
