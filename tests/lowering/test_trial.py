"""Lowered graphs explain their own example as explain() does, and no file of one that does not is written."""

import copy
import pickle

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import InputError, LoweringError, TargetError
from lrp_fx.lowering import lowered as lowering


class Transposed(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.head = norm, nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2)).mean(1)


NORMS = {
    "batch": lambda: nn.BatchNorm1d(8),
    "instance": lambda: nn.InstanceNorm1d(8, affine=True),
    "group": lambda: nn.GroupNorm(2, 8),
    "layer": lambda: nn.LayerNorm(5),
}


@pytest.mark.parametrize("norm", NORMS)
def test_norms_over_transposed_sequences(norm, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    xmodel = lrp_fx.convert(Transposed(NORMS[norm]()).double().eval(), x)
    wanted = xmodel.explain(x, target=1).relevance["x"]
    xmodel.save(tmp_path / "x.pt2", x, target=1)
    for lowered in (
        xmodel.lower(x, target=1),
        xmodel.lower(x, target=1, dynamic=False),
        lrp_fx.load(tmp_path / "x.pt2"),
    ):
        assert torch.allclose(lowered(x, target=1).relevance["x"], wanted, rtol=0, atol=1e-10)


class Where(nn.Module):
    def forward(self, x, mask):
        return torch.where(mask, x * 2, x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_masks_of_bytes(dtype):
    x, mask = torch.randn(2, 3, dtype=torch.float64), torch.tensor([[1, 0, 1], [1, 1, 0]]).to(dtype)
    xmodel = lrp_fx.convert(Where(), x, mask)
    found, wanted = xmodel.lower(x, mask, target=0)(x, mask, target=2), xmodel.explain(x, mask, target=2)
    assert torch.equal(found.relevance["x"], wanted.relevance["x"])
    assert torch.equal(wanted.relevance["x"][:, 2], Where()(x, mask)[:, 2])


class LossFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        y = self.linear(x)
        return y.sum(), None, y


def test_a_callable_on_outputs_that_begin_with_a_loss():
    torch.manual_seed(0)
    x = torch.randn(2, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(LossFirst().double(), x)
    for target in (lambda out: out[2].sum().reshape(1), lambda out: out[2][:, 1]):
        found, wanted = xmodel.lower(x, target=target)(x, target=target), xmodel.explain(x, target=target)
        assert torch.allclose(found.relevance["x"], wanted.relevance["x"], atol=1e-12)


def test_a_graph_that_explains_something_else_is_not_written(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    lowered = lrp_fx.convert(nn.Sequential(nn.Linear(4, 3), nn.Tanh()).eval(), x).lower(x, target=1)
    nodes = list(lowered.graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.tanh.default))
    for node in nodes:
        node.target = torch.ops.aten.sigmoid.default
    lowered.graph_module.recompile()
    for write in (lowered.save, lowered.package):
        with pytest.raises(LoweringError, match="the target by"):
            write(tmp_path / "x.pt2")
    nodes[0].target = torch.ops.aten.inverse.default
    lowered.graph_module.recompile()
    with pytest.raises(LoweringError, match="does not run on its own example"):
        lowered.save(tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


class Dense(nn.Module):
    """(B, 3, H, W) -> (B, classes, H, W), or with its classes last."""

    def __init__(self, last):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 5, 3, padding=1), last

    def forward(self, x):
        found = self.conv(x)
        return found.movedim(1, -1) if self.last else found


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("axis", [None, "named"])
def test_pixels_of_a_lowered_and_of_a_loaded_graph(last, axis, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    axis = None if axis is None else (3 if last else 1)
    xmodel = lrp_fx.convert(Dense(last).double().eval(), x)
    lowered = xmodel.lower(x, target=lrp_fx.Pixels(0, axis))
    lowered.save(tmp_path / "x.pt2")
    for graph in (lowered, lrp_fx.load(tmp_path / "x.pt2")):
        for chosen in (1, 4, torch.tensor([2, 3])):
            target = lrp_fx.Pixels(chosen, axis)
            wanted = xmodel.explain(x, target=target)
            found = graph(x, target=target)
            assert torch.allclose(found.target, wanted.target, rtol=0, atol=1e-12)
            assert torch.allclose(found.relevance["x"], wanted.relevance["x"], rtol=0, atol=1e-12)
        with pytest.raises(TargetError, match="5 classes"):
            graph(x, target=lrp_fx.Pixels(5, axis))
        with pytest.raises(TargetError, match="lowered for a target of kind 'pixels"):
            graph(x, target=(1, 0, 0))
        with pytest.raises(TargetError, match="wins at no pixel"):
            graph(torch.zeros_like(x), target=lrp_fx.Pixels(int(xmodel.model.conv.bias.argmin()), axis))


def test_a_loaded_graph_explains_the_callable_it_was_saved_with_and_no_other(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(nn.Linear(4, 3).double(), x)
    wanted = xmodel.explain(x, target=lambda out: out[:, 1])
    xmodel.save(tmp_path / "x.pt2", x, target=lambda out: out[:, 1])
    loaded = lrp_fx.load(tmp_path / "x.pt2")
    found = loaded(x)
    assert torch.allclose(found.relevance[next(iter(found.relevance))], next(iter(wanted.relevance.values())))
    with pytest.raises(TargetError, match="saved with a callable target"):
        loaded(x, target=lambda out: out[:, 2])


class Guarded(nn.Module):
    def forward(self, x):
        return x.cumsum(1) * (2.0 if x.shape[1] > 6 else 1.0)


def test_a_loaded_graph_serves_the_sizes_for_which_the_model_runs_it(tmp_path):
    x = torch.randn(2, 8, dtype=torch.float64)
    xmodel = lrp_fx.convert(Guarded(), x)
    xmodel.save(tmp_path / "x.pt2", x, target=3)
    loaded = lrp_fx.load(tmp_path / "x.pt2")
    longer = torch.randn(2, 11, dtype=torch.float64)
    assert torch.equal(loaded(longer, target=3).target, Guarded()(longer)[:, 3])
    with pytest.raises(InputError, match=r"x\.shape"):
        loaded(longer[:, :5], target=3)


class Packed(nn.Module):
    """The last step of a recurrent layer over sequences of given lengths, unpacked again."""

    def __init__(self, first, both):
        super().__init__()
        self.lstm, self.first = nn.LSTM(4, 3, batch_first=first, bidirectional=both), first
        self.head = nn.Linear(6 if both else 3, 2)

    def forward(self, x, lengths):
        rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=self.first, enforce_sorted=False)
        found, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(rows)[0], batch_first=self.first, total_length=7)
        found = found if self.first else found.transpose(0, 1)
        return self.head(found[torch.arange(len(lengths)), lengths - 1])


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_packed_sequences(first, dynamic, tmp_path):
    torch.manual_seed(0)
    model, lengths = Packed(first, first).double().eval(), torch.tensor([3, 5, 2])
    x = torch.randn((3, 6, 4) if first else (6, 3, 4), dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, lengths)
    wanted = xmodel.explain(x, lengths, target=1)
    assert torch.allclose(wanted.target, model(x, lengths)[:, 1])
    lowered = xmodel.lower(x, lengths, target=1, dynamic=dynamic)
    with pytest.warns(UserWarning, match="recorded"):
        lowered.save(tmp_path / "x.pt2")
    for graph in (lowered, lrp_fx.load(tmp_path / "x.pt2")):
        found = graph(x, lengths, target=1)
        assert torch.allclose(found.target, wanted.target, rtol=0, atol=1e-12)
        assert torch.allclose(found.relevance["x"], wanted.relevance["x"], rtol=0, atol=1e-12)
    many = xmodel.explain_targets(x, lengths, targets=[0, 1])
    assert torch.allclose(many.relevance["x"][1], wanted.relevance["x"], rtol=0, atol=1e-12)
    assert float(wanted.relevance["x"].abs().max()) > 1e-3
    others = torch.tensor([4, 4, 2])
    expected = xmodel.explain(x, others, target=1).relevance["x"]
    assert torch.allclose(lowered(x, others, target=1).relevance["x"], expected, rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="other branches"):
        lowered(x, torch.tensor([4, 0, 2]), target=1)


class Scaled(nn.Module):
    def forward(self, x, scale):
        return torch.tanh(x * scale)


def test_a_number_that_is_an_input(tmp_path):
    x = torch.randn(2, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(Scaled())
    for scale in (0.5, 1.5, 2.5):  # one graph for all of them, from the second on
        wanted = xmodel.explain(x, scale, target=1)
    xmodel.save(tmp_path / "x.pt2", x, 2.5, target=1)
    for graph in (xmodel.lower(x, 2.5, target=1), lrp_fx.load(tmp_path / "x.pt2")):
        assert torch.equal(graph(x, 2.5, target=1).target, wanted.target)
        assert torch.equal(graph(x, scale=0.75, target=1).target, torch.tanh(x * 0.75)[:, 1])


def test_no_graph_that_explains_something_else_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LRP_FX_CACHE", str(tmp_path))
    torch.manual_seed(0)
    x, model = torch.randn(2, 4), nn.Sequential(nn.Linear(4, 3), nn.Tanh()).eval()
    computed = lowering.finished

    def wrong(graph_module):
        for node in graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.tanh.default):
            node.target = torch.ops.aten.sigmoid.default
        return computed(graph_module)

    xmodel = lrp_fx.convert(model, x)
    before = set(tmp_path.glob("*.pt"))
    monkeypatch.setattr(lowering, "finished", wrong)
    with pytest.raises(LoweringError, match="the target by"):
        xmodel.lower(x, target=1)
    assert set(tmp_path.glob("*.pt")) == before
    monkeypatch.setattr(lowering, "finished", computed)
    xmodel.lower(x, target=1)
    assert len(set(tmp_path.glob("*.pt")) - before) == 1


def test_copies(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double().eval(), x)
    lowered = xmodel.lower(x, target=1)
    wanted = lowered(x, target=2)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(LoweringError, match=r"lrp_fx\.load"):
            copied(lowered)
    lowered.save(tmp_path / "x.pt2")
    loaded = lrp_fx.load(tmp_path / "x.pt2")
    others = (copy.copy(lowered), copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)))
    for graph in others:
        assert torch.equal(graph(x, target=2).relevance["input"], wanted.relevance["input"])
    again = copy.deepcopy(xmodel).lower(x, target=1)
    assert torch.equal(again(x, target=2).relevance["input"], wanted.relevance["input"])
