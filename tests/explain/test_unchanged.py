"""Parts of a result that are computed on demand are those of the explanation, or an error."""

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import StaleResultError


class Tokens(nn.Module):
    """A sequence of logits: explanations of one position compute no others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.mix, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)

    def forward(self, ids):
        h = self.table(ids)
        return self.head(torch.tanh(self.mix(h)).cumsum(1) + h)


IDS = torch.tensor([[1, 5, 3, 2], [4, 4, 0, 8]])


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(IDS).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("part", ["ledger", "output"])
@pytest.mark.parametrize("change", ["weights", "inputs"])
def test_a_change_in_place_is_an_error(part, change):
    model, ids = Tokens(), IDS.clone()
    attribution = lrp_fx.convert(model).explain(ids, target=3)
    if change == "weights":
        step(model)
    else:
        ids[0, 0] = 7
    with pytest.raises(StaleResultError, match=rf"Read \.{part} before the change"):
        getattr(attribution, part)


def test_parts_that_were_read_stay():
    model = Tokens()
    xmodel = lrp_fx.convert(model)
    attribution = xmodel.explain(IDS, target=3)
    ledger, output = attribution.ledger, attribution.output
    step(model)
    assert attribution.ledger is ledger and attribution.output is output
    assert xmodel.explain(IDS, target=3).ledger.target != ledger.target


def test_explanations_in_between_change_nothing():
    xmodel = lrp_fx.convert(Tokens())
    first = xmodel.explain(IDS, target=3)
    xmodel.explain(IDS, target=1, rules="attnlrp", memory="low").ledger  # noqa: B018
    assert first.ledger.balance < 1e-6 and torch.equal(first.output, xmodel(IDS))


def test_a_lowered_explanation_too():
    model = Tokens()
    lowered = lrp_fx.convert(model).lower(IDS, target=3)
    attribution = lowered(IDS, target=3)
    step(model)
    with pytest.raises(StaleResultError):
        attribution.ledger  # noqa: B018
