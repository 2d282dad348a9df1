"""What Python reads from tensors in a recorded run is a decision: other values are recorded anew, equal ones are not."""

import numpy as np
import pytest
import torch
from models import few
from torch import nn

import lrp_fx

A, B, C = torch.tensor([1, 4, 1]), torch.tensor([4, 1, 1]), torch.tensor([2, 2, 2])  # sum alike, of one size

READS = {
    "tolist": lambda x, k: x * k.tolist()[0],
    "data.tolist": lambda x, k: x * k.data.tolist()[0],
    "numpy": lambda x, k: x * float(k.numpy()[0]),
    "asarray": lambda x, k: x * float(np.asarray(k)[0]),
    "dlpack": lambda x, k: x * float(np.from_dlpack(k)[0]),
    "int": lambda x, k: x * int(k[0]),
    "index": lambda x, k: x[:, : k[0]].sum(1, keepdim=True) * x,
    "range": lambda x, k: sum(x for _ in range(k[0])),
    "bool": lambda x, k: x * 2 if k[0] > 1 else x * 3,
    "contains": lambda x, k: x * 2 if 4 in k[:1] else x * 3,
    "equal": lambda x, k: x * 2 if torch.equal(k, A) else x * 3,
    "allclose": lambda x, k: x * 2 if torch.allclose(k.double(), A.double()) else x * 3,
    "split": lambda x, k: torch.cat([p * (i + 1) for i, p in enumerate(x.split(k.tolist(), 1))], 1),
    "tensor_split": lambda x, k: torch.cat([p * (i + 1) for i, p in enumerate(x.tensor_split(k.cumsum(0), 1))], 1),
    "repeat_interleave": lambda x, k: x.repeat_interleave(k.repeat(2), 1)[:, :3] * x[:, :3],
    "arange": lambda x, k: x * torch.arange(k[0], k[0] + 6),
    "full": lambda x, k: x * torch.full((6,), k[0]),
    "a list made a tensor": lambda x, k: x * torch.tensor([k[0], 1, 1, 1, 1, 1]),
    "one_hot": lambda x, k: x * nn.functional.one_hot(k).shape[-1],
    "bincount": lambda x, k: x * len(torch.bincount(k)),
    "unique": lambda x, k: x * len(k.unique()),
    "nonzero": lambda x, k: x * len((k > 1).nonzero()),
    "where": lambda x, k: x * len(torch.where(k > 1)[0]),
    "mask": lambda x, k: x * x[:, k.repeat(2) > 1].shape[1],
    "packed": lambda x, k: x * nn.utils.rnn.pack_padded_sequence(x[..., None], k, True, False).batch_sizes.tolist()[1],
}


class Reading(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.l, self.read = nn.Linear(6, 6), read

    def forward(self, x, k):
        return self.read(self.l(x), k)


def captures(xmodel):
    return len(xmodel.captures)


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_other_values_are_served_another_graph(read):
    model, x = Reading(read).double().eval(), torch.randn(3, 6, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, A, capture="trace")
    for k in (A, B, C):
        torch.testing.assert_close(xmodel(x, k), model(x, k), rtol=1e-12, atol=1e-12)
    held = captures(xmodel)
    assert held <= 3
    for k in (A, B, C):
        torch.testing.assert_close(xmodel(2 * x, k), model(2 * x, k), rtol=1e-12, atol=1e-12)
    assert captures(xmodel) == held  # what was not read decides nothing


@pytest.mark.slow
@pytest.mark.parametrize("kind", few([nn.LSTM, nn.GRU, nn.RNN], nn.RNN))
@pytest.mark.parametrize("inside", few([True, False], True))
def test_other_lengths_in_a_packed_sequence(kind, inside):
    """Batch sizes are read by what writes recurrent layers out: lengths of equal sum and maximum are not alike."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.core, self.out = kind(4, 3, batch_first=True, bias=False), nn.Linear(3, 2, bias=False)

        def forward(self, x, lengths=None):
            if lengths is not None:
                x = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.out(nn.utils.rnn.pad_packed_sequence(self.core(x)[0], batch_first=True)[0].sum(1))

    def given(lengths):
        if inside:
            return x, lengths
        return (nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False),)

    model, x = Model().double().eval(), torch.randn(3, 4, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(model)
    for lengths in map(torch.tensor, ([1, 4, 3], [4, 2, 2], [2, 2, 4], [1, 4, 3])):
        call = given(lengths)
        torch.testing.assert_close(xmodel(*call), model(*call), rtol=1e-12, atol=1e-12)
        found = xmodel.explain(*call, target=1)
        fresh = lrp_fx.convert(model).explain(*call, target=1)
        for name, relevance in fresh.relevance.items():
            torch.testing.assert_close(found.relevance[name], relevance, rtol=1e-12, atol=1e-12)
        assert found.ledger.balance < 1e-12


def test_data_of_a_tensor_hands_on_relevance():
    class Model(nn.Module):
        def forward(self, x):
            return x.data * 2

    x = torch.randn(2, 3, dtype=torch.float64)
    found = lrp_fx.convert(Model(), x, capture="trace").explain(x, target=0).relevance["x"]
    torch.testing.assert_close(found[:, 0], 2 * x[:, 0], rtol=1e-12, atol=1e-12)


def _dropped(x):
    return nn.functional.dropout(x, 0.5, True)


DRAWS = {
    "rand": lambda x: x * torch.rand(x.shape[-1]),
    "randn_like": lambda x: x + torch.randn_like(x),
    "randint": lambda x: x * torch.randint(1, 9, (4,)),
    "randperm": lambda x: x[:, torch.randperm(4)],
    "normal": lambda x: torch.normal(x, 0.1),
    "normal of both": lambda x: torch.normal(x, x.abs()),
    "bernoulli": lambda x: x * torch.bernoulli(torch.sigmoid(x)),
    "bernoulli_": lambda x: x * torch.empty_like(x).bernoulli_(0.5),
    "multinomial": lambda x: x.gather(1, torch.multinomial(x.softmax(-1), 2)),
    "multinomial with replacement": lambda x: x.gather(1, torch.multinomial(x.softmax(-1), 9, True)),
    "exponential_": lambda x: x + torch.empty_like(x).exponential_().log(),
    "uniform_": lambda x: x * torch.empty(4).double().uniform_(),
    "normal_": lambda x: x * torch.empty(4).double().normal_(),
    "random_": lambda x: x * torch.empty(4).double().random_(1, 9),
    "geometric_": lambda x: x * torch.empty(4).double().geometric_(0.3),
    "cauchy_": lambda x: x * torch.empty(4).double().cauchy_(),
    "log_normal_": lambda x: x * torch.empty(4).double().log_normal_(),
    "poisson": lambda x: x * torch.poisson(torch.full((4,), 3.0)),
    "gumbel_softmax": lambda x: nn.functional.gumbel_softmax(x),
    "dropout": _dropped,
    "dropout in place": lambda x: nn.functional.dropout(x.clone(), 0.5, True, True),
    "dropout1d": lambda x: nn.functional.dropout1d(x[..., None], 0.5, True)[..., 0],
    "alpha_dropout": lambda x: nn.functional.alpha_dropout(x, 0.3, True),
    "feature_alpha_dropout": lambda x: nn.functional.feature_alpha_dropout(x[..., None], 0.3, True)[..., 0],
    "rrelu": lambda x: nn.functional.rrelu(x, training=True),
    "attention": lambda x: nn.functional.scaled_dot_product_attention(*x.view(3, 1, 1, 3, 4), dropout_p=0.3)[0, 0],
    "a generator": lambda x: x * torch.rand(4, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("drawing", DRAWS.values(), ids=DRAWS.keys())
def test_draws_of_a_recorded_run_stay(drawing):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(4, 4)

        def forward(self, x):
            return drawing(self.l(x))

    model, x = Model().double().eval(), torch.randn(9, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, capture="trace")
    first = xmodel(x)
    assert torch.equal(first, xmodel(x))
    found = xmodel.explain(x, target=1)
    torch.testing.assert_close(found.target, first[:, 1].detach(), rtol=1e-12, atol=1e-12)
    assert found.ledger.balance < 1e-9
    assert float(found.ledger.target) == pytest.approx(float(first[:, 1].sum()), rel=1e-12)
    assert found.relevance["x"].abs().sum() > 0
    given = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(xmodel.current.captured.graph_module(given)[:, 1].sum(), given)
    by_gradient = xmodel.explain(x, target=1, rules="gradient").relevance["x"]
    torch.testing.assert_close(by_gradient, x * gradient, rtol=1e-10, atol=1e-12)


def test_samples_follow_other_probabilities():
    """The noise is fixed, not the sample: what cannot be drawn is not drawn."""

    class Model(nn.Module):
        def forward(self, x, p):
            return x * torch.bernoulli(p) + x.gather(1, torch.multinomial(p + 1e-30, 1)) * torch.poisson(p * 0)

    x, ones = torch.ones(2, 5, dtype=torch.float64), torch.ones(2, 5, dtype=torch.float64)
    xmodel = lrp_fx.convert(Model(), x, ones, capture="trace")
    assert torch.equal(xmodel(x, ones), x)
    assert torch.equal(xmodel(x, 0 * ones), 0 * x)


def test_a_fixed_sample_serves_equal_parameters_only():
    class Model(nn.Module):
        def forward(self, x, rate):
            return x * torch.poisson(rate)

    x, rate = torch.ones(2, 5, dtype=torch.float64), torch.full((5,), 50.0, dtype=torch.float64)
    xmodel = lrp_fx.convert(Model(), x, rate, capture="trace")
    assert float(xmodel(x, rate).mean()) > 20
    assert float(xmodel(x, 0 * rate).abs().sum()) == 0
    assert torch.equal(xmodel(x, rate), xmodel(2 * x, rate) / 2)
