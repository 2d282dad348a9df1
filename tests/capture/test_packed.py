"""Packed sequences: other lengths need no other capture, and what reads more of them than recurrent layers do is told."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lrp_fx
from lrp_fx.graph.loop import Loop

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


class Packed(nn.Module):
    """The mean over the steps that a sample has, or the last states."""

    def __init__(self, kind=nn.LSTM, read="outputs", ordered=False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.core, self.read, self.ordered = kind(4, 3, batch_first=True, **options), read, ordered
        self.head = nn.Linear(6 if self.core.bidirectional else 3, 2)

    def forward(self, x, lengths):
        rows = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.ordered)
        if self.read == "rows":
            rows = rows._replace(data=rows.data - rows.data.mean(0))
        y, state = self.core(rows)
        if self.read == "state":
            return self.head(state[-1])
        total = 12 if self.read == "longer" else None
        y, lengths = pad_packed_sequence(y, batch_first=True, total_length=total)
        return self.head(y.sum(1) / lengths[:, None])


def given(lengths, longest=None):
    generator = torch.Generator().manual_seed(sum(lengths))
    x = torch.randn(len(lengths), longest or max(lengths), 4, dtype=torch.float64, generator=generator)
    return x, torch.tensor(lengths)


def agree(xmodel, model, call, rules="default"):
    """Hold an explanation to that of every step written out for these lengths."""
    torch.testing.assert_close(xmodel(*call), model(*call), rtol=1e-12, atol=1e-12)
    found = xmodel.explain(*call, target=1, rules=rules)
    expected = lrp_fx.convert(model, dynamic=False).explain(*call, target=1, rules=rules)
    torch.testing.assert_close(found.relevance["x"], expected.relevance["x"], **CLOSE)
    for category in {*found.ledger, *expected.ledger}:
        assert found.ledger[category] == pytest.approx(expected.ledger[category], rel=1e-9, abs=1e-11), category
    assert found.ledger.balance < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_other_lengths_need_no_capture(kind):
    model = Packed(kind, num_layers=2, bidirectional=True).double().eval()
    xmodel = lrp_fx.convert(model)
    for lengths in ([5, 7, 6], [1, 6, 3], [4, 4, 4]):
        agree(xmodel, model, given(lengths))
    agree(xmodel, model, given([2, 5, 4]), rules="gradient")
    assert len(xmodel.captures) == 1 and xmodel.current.captured.route == "export"
    assert sum(isinstance(n.target, Loop) for n in xmodel.graph_module.graph.nodes) == 4
    assert xmodel.verify(*given([2, 5, 4])).failures == ()


@pytest.mark.parametrize("read", ["state", "longer"])
def test_what_does_not_read_the_longest_length(read):
    """Only a sequence that is padded to its longest sample has a size that lengths decide."""
    model = Packed(nn.RNN, read, ordered=True).double().eval()
    xmodel = lrp_fx.convert(model)
    for lengths in ([6, 5, 2], [4, 1, 1]):
        agree(xmodel, model, given(lengths, longest=7))
    assert len(xmodel.captures) == 1 and xmodel.current.captured.route == "export"


@pytest.mark.slow
def test_a_padding_that_is_longer_than_every_sample_is_another_graph():
    model = Packed().double().eval()
    for first in (5, 8):
        xmodel = lrp_fx.convert(model)  # the second time, what the first one captured is read from disk
        for lengths, longest in (([5, 3], first), ([5, 3], 8), ([2, 5], 5)):
            agree(xmodel, model, given(lengths, longest))


@pytest.mark.slow
def test_rows_that_are_read_by_their_number_are_no_free_lengths():
    model = Packed(read="rows").double().eval()
    xmodel = lrp_fx.convert(model)
    for lengths in ([6, 6, 6], [6, 2, 4]):
        agree(xmodel, model, given(lengths))
    assert len(xmodel.captures) == 2
    assert "reads the rows of a packed sequence by their number" in xmodel.current.captured.refusal


@pytest.mark.parametrize("lengths", [[3, 5], [5, 0]])
def test_lengths_that_the_model_refuses_are_refused(lengths):
    model = Packed(read="state", ordered=True).double().eval()
    xmodel = lrp_fx.convert(model, *given([5, 4]))
    x = given([5, 4])[0]
    with pytest.raises(RuntimeError):
        model(x, torch.tensor(lengths))
    with pytest.raises(lrp_fx.errors.LrpError):
        xmodel.explain(x, torch.tensor(lengths), target=1)
