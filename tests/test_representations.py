"""What a session or a notebook shows of an object: a table or a line, not its contents."""

import pytest
import torch
from torch import nn

import lrp_fx


@pytest.fixture(scope="module")
def xmodel():
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5)).eval()
    return lrp_fx.convert(model, torch.randn(3, 6))


def test_results_are_shown_as_their_tables(xmodel):
    x = torch.randn(3, 6)
    shown = [xmodel.report(), xmodel.report().why("1"), xmodel.verify(x), xmodel.explain(x, target=1).ledger]
    for one, said in zip(shown, ("centred-identity", "nonlinearity", "verify: passed", "target"), strict=True):
        assert repr(one) == str(one) and said in repr(one)


def test_a_lowered_graph_is_shown_in_a_line(xmodel):
    lowered = xmodel.lower(torch.randn(3, 6), target=1)
    (size,) = [size for size in xmodel.captures()[0].sizes["input"] if isinstance(size, str)]
    assert repr(lowered) == f"Lowered(input ({size}, 6); target class; rules 'default')"


def test_a_table_of_operators_is_counted():
    table = lrp_fx.OpTable.load()
    assert repr(table) == f"OpTable({len(table.specs)} operators)"
