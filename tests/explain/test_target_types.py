"""What a target means is decided by the form of the output, in every way of explaining alike, or refused by name."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from models import build, ids
from torch import nn

import lrp_fx
from lrp_fx.concepts.cut import cut_forward
from lrp_fx.errors import TargetError
from lrp_fx.results import Attributions


def close(a, b):
    assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def _seeded(make):
    torch.manual_seed(0)
    return make().double().eval()


class Steps(nn.Module):
    """(B, T, 4) -> (B, classes, T): a linear layer, transposed."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x):
        return self.layer(x).transpose(1, 2)


class Upsampled(nn.Module):
    """A segmentation head: convolution, normalization, convolution, resampling, a sum with what is finer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.fine, self.head = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        h = self.body(x)
        coarse = nn.functional.interpolate(self.head(nn.functional.avg_pool2d(h, 2)), scale_factor=2, mode="bilinear")
        return (coarse + self.fine(h)).log_softmax(1)


class Last(nn.Module):
    """(B, 3, H, W) -> (B, H, W, classes)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, x):
        return self.layer(x.permute(0, 2, 3, 1))


class Attended(nn.Module):
    """(B, T, 4) -> (B, T, 6): attention, spelled out, and a head whose weights come first."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (2, 2)).transpose(1, 2) for f in (self.q, self.k, self.v))
        h = ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return (self.head @ h.transpose(1, 2)).transpose(1, 2)


class Untold(nn.Module):
    """Nothing in it tells which dimension counts classes."""

    def forward(self, x):
        return x * x.sin()


IMAGE = torch.randn(2, 3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SERIES = torch.randn(2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

#: model -> (how it is made, its input, axis of the classes)
DENSE = {
    "convolution": (lambda: nn.Conv2d(3, 5, 3, padding=1, bias=False), IMAGE, 1),
    "transposed convolution": (lambda: nn.ConvTranspose2d(3, 5, 2, stride=2), IMAGE, 1),
    "convolution over time": (lambda: nn.Conv1d(7, 5, 2), SERIES, 1),
    "linear, transposed": (Steps, SERIES, 1),
    "segmentation head": (Upsampled, IMAGE, 1),
    "classes last": (Last, IMAGE, 3),
}


@pytest.mark.parametrize("name", DENSE)
def test_a_class_of_a_dense_output_is_refused_and_pixels_are_its_sum_where_it_wins(name):
    make, x, axis = DENSE[name]
    model = _seeded(make)
    xmodel, out = lrp_fx.convert(model, rules="attnlrp"), model(x)
    for target in (3, torch.tensor([1, 2]), lrp_fx.Contrast(1, 2)):
        with pytest.raises(TargetError, match=rf"dimension {axis} counts classes \(0 to 4\).*Pixels"):
            xmodel.explain(x, target=target)
    rows = out.movedim(axis, 1).flatten(2)
    close(xmodel.explain(x).target, rows.flatten(1).amax(1))
    wins = rows.argmax(1)
    wanted = torch.stack([torch.where(wins == c, rows[:, c], 0.0).sum(-1) for c in range(5)])
    for chosen in range(5):
        if not bool((wins == chosen).any()):
            with pytest.raises(TargetError, match="wins at no pixel"):
                xmodel.explain(x, target=lrp_fx.Pixels(chosen))
            continue
        found = xmodel.explain(x, target=lrp_fx.Pixels(chosen))
        close(found.target, wanted[chosen])
        one = xmodel.explain(
            x, target=lambda o, c=chosen: torch.where(wins == c, o.movedim(axis, 1).flatten(2)[:, c], 0.0).sum(-1)
        )
        close(next(iter(found.relevance.values())), next(iter(one.relevance.values())))
    for wrong in (5, -6, torch.tensor([0, 5])):
        with pytest.raises(TargetError, match="out of range"):
            xmodel.explain(x, target=lrp_fx.Pixels(wrong))
    index = [0] * (out.dim() - 1)
    index[axis - 1] = 3
    close(xmodel.explain(x, target=tuple(index)).target, rows[:, 3, 0])
    index[axis - 1] = 5
    with pytest.raises(TargetError, match="out of range"):
        xmodel.explain(x, target=tuple(index))


@pytest.mark.parametrize("name", ["convolution", "linear, transposed", "classes last"])
def test_pixels_are_the_same_in_every_way_of_explaining(name):
    make, x, axis = DENSE[name]
    model = _seeded(make)
    xmodel, rows = lrp_fx.convert(model, rules="attnlrp"), model(x).movedim(axis, 1).flatten(2)
    chosen = rows.argmax(1).mode(-1).values
    target = lrp_fx.Pixels(chosen)
    one = xmodel.explain(x, target=target)
    (key,) = one.relevance
    many = xmodel.explain(x, targets=[target, None, lrp_fx.Pixels(int(chosen[0]), axis=axis)])
    assert isinstance(many, Attributions) and many.count == 3
    close(many.relevance[key][0], one.relevance[key])
    close(many.relevance[key][1], xmodel.explain(x).relevance[key])
    close(many.target[2], xmodel.explain(x, target=lrp_fx.Pixels(int(chosen[0]))).target)
    graph = xmodel.lower(x, target=lrp_fx.Pixels(0))
    lowered = graph(x, target=target)
    close(lowered.relevance[key], one.relevance[key])
    close(lowered.target, one.target)
    with pytest.raises(TargetError, match="out of range"):
        graph(x, target=lrp_fx.Pixels(5))
    absent = [c for c in range(5) if not bool((rows.argmax(1) == c).any())]
    for c in absent:
        with pytest.raises(TargetError, match="wins at no pixel"):
            graph(x, target=lrp_fx.Pixels(c))
    with pytest.raises(TargetError, match="kind"):
        graph(x, target=1)
    with pytest.raises(TargetError, match="counts classes"):
        xmodel.lower(x, target=1)
    close(xmodel.lower(x)(x).relevance[key], xmodel.explain(x).relevance[key])
    close(cut_forward(xmodel, (x,), {}, [], target).chosen.detach(), one.target)


def test_one_channel_wins_where_it_is_positive():
    model = _seeded(lambda: nn.Conv2d(3, 1, 3, padding=1))
    found = lrp_fx.convert(model, rules="attnlrp").explain(IMAGE, target=lrp_fx.Pixels(0))
    close(found.target, model(IMAGE).clamp(min=0).flatten(1).sum(1))


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 6), Attended, lambda: nn.LSTM(4, 6, batch_first=True)])
def test_a_sequence_of_logits_is_explained_at_its_last_step(make):
    model = _seeded(make)
    xmodel, out = lrp_fx.convert(model, rules="attnlrp"), model(SERIES)
    out = out[0] if isinstance(out, tuple) else out
    close(xmodel.explain(SERIES, target=3).target, out[:, -1, 3])
    close(xmodel.explain(SERIES).target, out[:, -1].amax(-1))
    close(xmodel.explain(SERIES, target=(2, 3)).target, out[:, 2, 3])
    wins = out.argmax(-1)
    chosen = int(wins.flatten().mode().values)
    found = xmodel.explain(SERIES, target=lrp_fx.Pixels(chosen))
    close(found.target, torch.where(wins == chosen, out[..., chosen], 0.0).sum(-1))


def test_logits_of_a_model_output_are_a_sequence():
    model, inputs = build("llama2")
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    logits = model(**inputs).logits
    assert xmodel.current.reading.named and xmodel.current.reading.axis == 2
    close(xmodel.explain(**inputs, target=3).target, logits[:, -1, 3])
    with pytest.raises(TargetError, match="out of range"):
        xmodel.explain(**inputs, target=logits.shape[-1])
    with pytest.raises(TargetError, match="padding"):
        xmodel.explain(input_ids=ids(2, 5), attention_mask=torch.ones(2, 5).long(), target=lrp_fx.Pixels(3))


def test_an_output_that_does_not_tell_is_refused_with_the_choices():
    x, xmodel = torch.rand(2, 3, 4, dtype=torch.float64), lrp_fx.convert(Untold(), rules="attnlrp")
    for target in (None, 1, lrp_fx.Contrast(1)):
        with pytest.raises(TargetError, match=r"does not tell.*\(i1, i2\).*Pixels\(class, axis=\.\.\.\).*callable"):
            xmodel.explain(x, target=target)
    with pytest.raises(TargetError, match="axis="):
        xmodel.explain(x, target=lrp_fx.Pixels(1))
    out = x * x.sin()
    wins = out.argmax(1)
    close(xmodel.explain(x, target=lrp_fx.Pixels(1, axis=1)).target, torch.where(wins == 1, out[:, 1], 0.0).sum(-1))
    close(xmodel.explain(x, target=(1, 2)).target, out[:, 1, 2])
    with pytest.raises(TargetError, match="axis"):
        xmodel.explain(x, target=lrp_fx.Pixels(1, axis=0))


Named = namedtuple("Named", ["loss", "scores"])


class WithLoss(nn.Module):
    """A loss first, of some shape."""

    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.wrap = nn.Linear(4, 3), wrap

    def forward(self, x, labels=None):
        scores = self.layer(x)
        if labels is None:
            return (scores,)
        return self.wrap(nn.functional.cross_entropy(scores, labels), scores)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda loss, scores: (loss, scores),
        lambda loss, scores: (loss.reshape(1), scores),
        lambda loss, scores: {"loss": loss, "scores": scores},
        Named,
        lambda loss, scores: (scores, loss),
    ],
)
def test_a_loss_is_not_taken_for_logits(wrap):
    model = WithLoss(wrap).double()
    x, labels = torch.randn(2, 4, dtype=torch.float64), torch.tensor([0, 1])
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    for target, wanted in ((None, model.layer(x).amax(-1)), (2, model.layer(x)[:, 2])):
        close(xmodel.explain(x, labels=labels, target=target).target, wanted)
        close(xmodel.explain(x, labels=labels, targets=[target]).target[0], wanted)


#: spellings of class 1 for both samples
SAME = [
    1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), torch.tensor(1, dtype=torch.int32), [1, 1], np.array([1, 1]),
    torch.tensor([1, 1]), range(1, 2) and [np.int32(1), 1], -2, (1,), (np.int64(1),), (torch.tensor([1, 1]),), ([1, 1],),
]  # fmt: skip
#: what is no target of an output (2, 3)
WRONG = [
    True, "1", "cat", b"1", 1.0, 0.5, np.float32(1), torch.tensor(1.0), torch.tensor(True), torch.tensor([True, False]),
    3, -4, [0, 1, 2], torch.tensor([0, 3]), [0.0, 1.0], [], torch.zeros(0).long(), torch.zeros(2, 2).long(), (1, 1, 1), (),
    (3,), ("a",), (True,), (1.0,), (None,), ["a", "b"], {"a": 1}, {1, 2}, object(),
]  # fmt: skip


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    return xmodel, x, xmodel.explain(x, target=1), {}


def _ways(xmodel, x, graphs):
    """Every way to explain a target: name -> function."""

    def lowered(target):
        width = len(target) if isinstance(target, tuple) else 0
        if width not in graphs:
            graphs[width] = xmodel.lower(x, target=(0,) * width if width else 0)
        return graphs[width](x, target=target)

    return {
        "explain": lambda t: xmodel.explain(x, target=t),
        "targets": lambda t: xmodel.explain(x, targets=[t]),
        "conditions": lambda t: xmodel.explain_conditions(x, conditions=[{}], target=t)[0],
        "lowered": lowered,
        "concepts": lambda t: cut_forward(xmodel, (x,), {}, [], t),
        "verify": lambda t: xmodel.verify(x, target=t),
    }


@pytest.mark.parametrize("target", SAME, ids=repr)
def test_every_spelling_of_a_class_means_the_same_everywhere(classifier, target):
    xmodel, x, wanted, graphs = classifier
    for name, way in _ways(xmodel, x, graphs).items():
        found = way(target)
        if name == "verify":
            assert found.ledger.target == pytest.approx(float(wanted.target.sum()), abs=1e-12)
            continue
        chosen = found.chosen.detach() if name == "concepts" else found.target
        close(chosen.reshape(2), wanted.target)
        if name != "concepts":
            close(found.relevance["input"].reshape(2, 3), wanted.relevance["input"])


@pytest.mark.parametrize("target", WRONG, ids=lambda t: "object" if type(t) is object else repr(t))
def test_what_is_no_target_is_a_target_error_everywhere(classifier, target):
    xmodel, x, _, graphs = classifier
    for way in _ways(xmodel, x, graphs).values():
        with pytest.raises(TargetError):
            way(target)


@pytest.mark.parametrize(
    "targets", [[], (), torch.zeros(0).long(), "12", 5, [None, 3], [1, "a"], [0, 1.0], np.zeros(0)]
)
def test_lists_of_targets_that_name_none(classifier, targets):
    xmodel, x, _, _ = classifier
    with pytest.raises(TargetError):
        xmodel.explain(x, targets=targets)


def test_lists_of_targets_of_every_kind(classifier):
    xmodel, x, wanted, _ = classifier
    for targets in (
        [None, 1],
        [np.int64(0), 1],
        torch.arange(2),
        np.arange(2),
        [lrp_fx.Contrast(0, 2), 1],
        [[0, 2], (1,)],
    ):
        found = xmodel.explain(x, targets=targets)
        close(found.relevance["input"][1], wanted.relevance["input"])
        close(found.target[0], xmodel.explain(x, target=targets[0]).target)
    functions = [lambda y: y[:, 0] * y[:, 1], 1]
    close(xmodel.explain(x, targets=functions).target[1], wanted.target)


def test_contrasts_of_numpy_integers(classifier):
    xmodel, x, _, _ = classifier
    one = xmodel.explain(x, target=lrp_fx.Contrast(np.int64(0), [2, 2]))
    close(one.relevance["input"], xmodel.explain(x, target=lrp_fx.Contrast(0, 2)).relevance["input"])
    for wrong in (lrp_fx.Contrast("a"), lrp_fx.Contrast(True), lrp_fx.Contrast(0, 3), lrp_fx.Contrast(0, 1.5)):
        with pytest.raises(TargetError):
            xmodel.explain(x, target=wrong)


def test_one_value_per_sample(classifier):
    model = _seeded(lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)))
    x = torch.randn(2, 3, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    for target in (None, 0, -1, np.int64(0), [0, 0]):
        close(xmodel.explain(x, target=target).target, model(x))
        close(xmodel.explain(x, targets=[target]).target[0], model(x))
    for target in (1, "a", [0, 1], lrp_fx.Pixels(0), lrp_fx.Contrast(0)):
        with pytest.raises(TargetError):
            xmodel.explain(x, target=target)
