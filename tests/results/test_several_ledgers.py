"""Each of several targets, and each new token, has a ledger of its own: that of its explanation alone."""

import pickle

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import LatentError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        scores = (x @ x.transpose(1, 2)).masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -torch.inf)
        return self.head(x + self.mix(scores.softmax(-1) @ x).relu())

    def generate(self, input_ids, max_new_tokens, **options):
        for _ in range(max_new_tokens):
            input_ids = torch.cat([input_ids, self(input_ids)[:, -1:].argmax(-1)], 1)
        return input_ids


@pytest.fixture(scope="module")
def xmodel():
    torch.manual_seed(0)
    return lrp_fx.convert(Model().double().eval())


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def same(a, b):
    assert set(a.ledger) == set(b.ledger) and abs(a.ledger.balance) < 1e-9
    assert {n: a.ledger[n] for n in a.ledger} == pytest.approx({n: b.ledger[n] for n in b.ledger}, abs=1e-9)


def test_each_target_has_its_ledger(xmodel):
    several = xmodel.explain(IDS, targets=[3, lrp_fx.Contrast(1, 2)])
    alone = [xmodel.explain(IDS, target=t) for t in (3, lrp_fx.Contrast(1, 2))]
    for number, one in enumerate(alone):
        same(several.of(number), one)
        same(several[1].of(number), one[1])
        same((several * 2.0).of(number), one * 2.0)
        same((several + several).of(number), one * 2.0)
    same(several.summed(), alone[0] + alone[1])
    rows = several.to_dataframe("category")
    assert set(rows["target"]) == set(several.target_names)
    assert rows["amount"].sum() == pytest.approx(float(several.target.sum()), abs=1e-9)


def test_each_new_token_has_its_ledger(xmodel):
    written = xmodel.explain_generation(IDS, max_new_tokens=3)
    for number in range(3):
        chosen = written.sequences[:, 3 + number]
        alone = xmodel.explain(written.sequences[:, : 3 + number], target=chosen)
        same(written.of(number), alone)
        same(written[0].of(number), alone[0])
    merged = written.merge(lambda tokens: [i // 2 for i in range(len(tokens))])
    for number in range(merged.count):
        assert merged.of(number).ledger.total == pytest.approx(float(merged.target[:, number].sum()), abs=1e-9)


def test_copies_and_results_without_inputs_say_that_they_have_none(xmodel):
    several = xmodel.explain(IDS, targets=[3, 4])
    for other in (pickle.loads(pickle.dumps(several)), several.without_inputs()):
        assert torch.equal(other.target, several.target)
        with pytest.raises(LatentError, match="explain"):
            other.of(0).amounts()
