"""Relevance of pairs (BiLRP): known truth, conservation, by hand, and every way that the two inputs can differ."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import InputError, TargetError
from lrp_fx.pairs import explain_pairs, first_token, last_token, mean_pooling
from lrp_fx.pairs.explain_pairs import _by_coordinates, _by_features
from lrp_fx.pairs.side import Side

EXACT = {"base": "attnlrp", "rules": {"linear": {"rule": "epsilon", "epsilon": 0.0}}}
WORDS = 30


class Encoder(nn.Module):
    """Token ids -> hidden states of one layer of attention and one with a gate, or their mean."""

    def __init__(self, width=12, bias=True, pooled=False):
        super().__init__()
        self.table = nn.Embedding(WORDS, width)
        self.mix = nn.ModuleList(nn.Linear(width, width, bias=bias) for _ in range(4))
        self.up, self.down = nn.Linear(width, 3 * width, bias=bias), nn.Linear(3 * width, width, bias=bias)
        self.pooled = pooled

    def forward(self, input_ids, attention_mask=None):
        x = self.table(input_ids)
        query, key, value, out = self.mix
        hidden = None if attention_mask is None else attention_mask[:, None, None].bool()
        read = nn.functional.scaled_dot_product_attention(*(p(x)[:, None] for p in (query, key, value)), hidden)
        x = x + out(read[:, 0])
        x = x + self.down(self.up(x).relu())
        return x.mean(1) if self.pooled else x


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(WORDS, 12)
        self.gate, self.up, self.down = (nn.Linear(12, 12, bias=False) for _ in range(3))

    def forward(self, input_ids):
        x = self.table(input_ids)
        return self.down(self.gate(x).relu() * self.up(x)).mean(1)


class Outputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()

    def forward(self, input_ids):
        hidden = self.encoder(input_ids)
        return {"hidden": hidden, "parts": (hidden[:, 0], hidden.mean(1))}


@pytest.fixture
def encoder():
    return Encoder().double().eval()


def tokens(batch=2, length=5):
    return torch.randint(1, WORDS, (batch, length))


def by_hand(xmodel, a, b, read, rules=None):
    """The double loop: every coordinate explained on each side by itself, products summed; and the embeddings."""
    width = read(xmodel(a)).shape[1]
    table, embeddings = 0, []
    for m in range(width):
        sides = [xmodel.explain(x, target=lambda out, m=m: read(out)[:, m], rules=rules) for x in (a, b)]
        first, second = (next(iter(side.relevance.values())) for side in sides)
        table = table + first[:, :, None] * second[:, None]
        embeddings.append(torch.stack([side.target for side in sides]))
    return table, *torch.stack(embeddings, -1)


def test_a_linear_encoder_in_closed_form():
    """R_ij = sum_m x_i W_mi W_mj y_j."""
    model = nn.Linear(5, 7, bias=False).double()
    x, y = torch.randn(2, 3, 5, dtype=torch.float64)
    found = explain_pairs(lrp_fx.convert(model), x, y, rules=EXACT)
    weight = model.weight.detach()
    torch.testing.assert_close(found.pairs, torch.einsum("bi,mi,mj,bj->bij", x, weight, weight, y))
    torch.testing.assert_close(found.similarity, (model(x) * model(y)).sum(-1).detach())
    assert float(found.remainder.abs().max()) < 1e-12


def test_pairs_are_the_whole_similarity_where_nothing_is_added():
    xmodel = lrp_fx.convert(Gated().double())
    found = explain_pairs(xmodel, tokens(), tokens(2, 4), rules=EXACT)
    torch.testing.assert_close(found.pairs.sum((1, 2)), found.similarity, rtol=1e-8, atol=1e-10)
    assert not found.notes


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_the_double_loop_over_coordinates(encoder, similarity):
    xmodel, a, b = lrp_fx.convert(encoder), tokens(), tokens(2, 6)
    found = explain_pairs(xmodel, a, b, similarity=similarity, output=mean_pooling)
    table, first, second = by_hand(xmodel, a, b, lambda out: out.mean(1))
    scale = 1 if similarity == "dot" else 1 / (first.norm(dim=-1) * second.norm(dim=-1))
    torch.testing.assert_close(found.pairs, table * torch.as_tensor(scale).reshape(-1, 1, 1))
    torch.testing.assert_close(found.similarity, (first * second).sum(-1) * scale)
    if similarity == "cosine":
        pooled = [encoder(x).mean(1).detach() for x in (a, b)]
        torch.testing.assert_close(found.similarity, nn.functional.cosine_similarity(*pooled))


def test_the_last_token_is_the_last_one_that_is_no_padding(encoder):
    hidden = torch.randn(3, 5, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    assert torch.equal(last_token({"h": hidden}, {"attention_mask": mask}), hidden[range(3), [2, 4, 4]])
    assert torch.equal(last_token(hidden, {}), hidden[:, -1])
    xmodel, a, b = lrp_fx.convert(encoder), tokens(), tokens(2, 6)
    table, first, second = by_hand(xmodel, a, b, lambda out: out[:, -1])
    found = explain_pairs(xmodel, a, b, output=last_token)
    torch.testing.assert_close(found.pairs, table)
    torch.testing.assert_close(found.similarity, (first * second).sum(-1))


def test_the_rest_is_what_the_ledgers_of_both_sides_say(encoder):
    xmodel, a, b = lrp_fx.convert(encoder), tokens(1), tokens(1, 4)
    found = explain_pairs(xmodel, a, b, output=mean_pooling)
    torch.testing.assert_close(found.table.sum((1, 2)), found.similarity)
    sides, rests = [], []
    for x in (a, b):
        each = [xmodel.explain(x, target=lambda out, m=m: out.mean(1)[:, m]) for m in range(12)]
        sides.append(torch.stack([one.relevance["input_ids"][0] for one in each], -1))
        rests.append(
            torch.tensor([sum(v for k, v in one.ledger.items() if k != "input") for one in each], dtype=torch.float64)
        )
    torch.testing.assert_close(found.table[0, -1, -1], rests[0] @ rests[1])
    torch.testing.assert_close(found.table[0, :-1, -1], sides[0] @ rests[1])
    torch.testing.assert_close(found.table[0, -1, :-1], sides[1] @ rests[0])
    torch.testing.assert_close(found.remainder, found.similarity - found.pairs.sum((1, 2)))
    assert float(found.remainder.abs()) > 1e-3


def test_the_word_that_two_sentences_share_comes_first(encoder):
    with torch.no_grad():
        encoder.table.weight.copy_(torch.linalg.qr(torch.randn(WORDS, 12).double())[0] * 4)
        encoder.table.weight[:10] = torch.eye(12).double()[:10] * 4
    a, b = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[5, 6, 7, 3, 8]])
    found = explain_pairs(
        lrp_fx.convert(encoder),
        a,
        b,
        similarity="cosine",
        output=mean_pooling,
        decode=lambda ids: [f"w{i}" for i in ids],
    )
    best, *others = found.top(5, by="token")
    assert (best.first, best.second, best.tokens) == (2, 3, ("w3", "w3"))
    assert best.relevance > 2 * abs(others[0].relevance)
    sizes = [abs(pair.relevance) for pair in found.top(20)]
    assert len(sizes) == 20 and sizes == sorted(sizes, reverse=True)


def test_a_batch_is_its_samples_and_a_second_call_is_the_first(encoder):
    xmodel, a, b = lrp_fx.convert(encoder), tokens(3), tokens(3, 7)
    whole = explain_pairs(xmodel, a, b, output=mean_pooling)
    for i in range(3):
        alone = explain_pairs(xmodel, a[i : i + 1], b[i : i + 1], output=mean_pooling)
        torch.testing.assert_close(alone.table[0], whole.table[i])
    explain_pairs(xmodel, tokens(2, 9), tokens(2, 3), output=mean_pooling)  # other sizes between
    torch.testing.assert_close(explain_pairs(xmodel, a, b, output=mean_pooling).table, whole.table, rtol=0, atol=0)
    swapped = explain_pairs(xmodel, b, a, output=mean_pooling)
    torch.testing.assert_close(swapped.table.transpose(1, 2), whole.table)


def test_a_model_that_changed_is_explained_as_it_is(encoder):
    xmodel, a, b = lrp_fx.convert(encoder), tokens(), tokens()
    before = explain_pairs(xmodel, a, b, output=mean_pooling)
    with torch.no_grad():
        encoder.down.weight.mul_(3)
    after = explain_pairs(xmodel, a, b, output=mean_pooling)
    fresh = explain_pairs(lrp_fx.convert(copy.deepcopy(encoder)), a, b, output=mean_pooling)
    torch.testing.assert_close(after.table, fresh.table)
    assert not torch.allclose(before.table, after.table)


def sides(xmodel, a, b, **options):
    fields = {"output": mean_pooling, "input": None, "grouping": None, "rules": None, "chunk": None, "check": False}
    return [Side.forward(xmodel, x, **{**fields, **options}) for x in (a, b)]


@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_the_ways_agree(encoder, chunk):
    first, second = sides(lrp_fx.convert(encoder), tokens(), tokens(2, 7), chunk=chunk)
    whole = _by_coordinates(first, second, False)
    torch.testing.assert_close(_by_features(first, second, False), whole)
    torch.testing.assert_close(_by_features(second, first, False).transpose(1, 2), whole)


def test_rules_that_cut_cotangents_are_explained_coordinate_by_coordinate():
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 40)).double()
    xmodel = lrp_fx.convert(model, rules="guided_backprop")
    x, y = torch.randn(2, 2, 6, dtype=torch.float64)
    found = explain_pairs(xmodel, x, y)
    torch.testing.assert_close(found.pairs, by_hand(xmodel, x, y, lambda out: out)[0])
    first, second = sides(xmodel, x, y, output=None)
    assert not torch.allclose(_by_features(first, second, False), found.table)  # which is why


def test_padding_changes_nothing(encoder):
    xmodel, a, b = lrp_fx.convert(encoder), tokens(1, 4), tokens(1, 3)
    padded = {
        "input_ids": torch.cat([b, torch.zeros(1, 2, dtype=torch.long)], 1),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
    }
    plain = explain_pairs(
        xmodel,
        {"input_ids": a, "attention_mask": torch.ones_like(a)},
        {"input_ids": b, "attention_mask": torch.ones_like(b)},
        output=mean_pooling,
    )
    found = explain_pairs(xmodel, {"input_ids": a, "attention_mask": torch.ones_like(a)}, padded, output=mean_pooling)
    torch.testing.assert_close(found.pairs[:, :, :3], plain.pairs)
    assert not found.pairs[:, :, 3:].any()
    assert found.shown[1].tolist() == [[True, True, True, False, False]]
    assert {p.second for p in found.top(100)} == {0, 1, 2} and len(found.top(100)) == 12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_half_precision(encoder, dtype, tolerance):
    xmodel, a, b = lrp_fx.convert(encoder), tokens(), tokens(2, 6)
    exact = explain_pairs(xmodel, a, b, similarity="cosine", output=mean_pooling)
    half = explain_pairs(
        lrp_fx.convert(copy.deepcopy(encoder).to(dtype)), a, b, similarity="cosine", output=mean_pooling
    )
    assert half.table.dtype is torch.float32
    assert float((half.table - exact.table).abs().max()) < tolerance * float(exact.table.abs().max())
    torch.testing.assert_close(half.table.sum((1, 2)), half.similarity, rtol=1e-3, atol=1e-4)


def test_small_factors_are_not_lost_in_half_precision():
    model = nn.Sequential(nn.Linear(4, 300, bias=False)).half()
    x = torch.full((1, 4), 1e-3, dtype=torch.float16)
    found = explain_pairs(lrp_fx.convert(model), x, x, rules=EXACT)
    weight = model[0].weight.detach().double()
    exact = torch.einsum("bi,mi,mj,bj->bij", x.double(), weight, weight, x.double())
    torch.testing.assert_close(found.pairs.double(), exact, rtol=0.01, atol=float(exact.abs().max()) / 100)


def test_patches_are_sums_of_pixels():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 16, 6)
    ).double()
    xmodel, (a, b) = lrp_fx.convert(model), torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    pixels, patches = explain_pairs(xmodel, a, b), explain_pairs(xmodel, a, b, features=4)
    assert pixels.pairs.shape == (2, 64, 64) and patches.pairs.shape == (2, 4, 4)
    summed = pixels.pairs.view(2, 2, 4, 2, 4, 2, 4, 2, 4).sum((2, 4, 6, 8)).view(2, 4, 4)
    torch.testing.assert_close(patches.pairs, summed)
    assert patches.grids == ((2, 2), (2, 2)) and pixels.grids == ((8, 8), (8, 8))
    rows = explain_pairs(xmodel, a, b, features=lambda r: r.sum((1, 3)))
    torch.testing.assert_close(rows.pairs, pixels.pairs.view(2, 8, 8, 8, 8).sum((2, 4)))


def test_where_the_embedding_is():
    xmodel, a, b = lrp_fx.convert(Outputs().double()), tokens(), tokens()
    mean = explain_pairs(xmodel, a, b, output="parts.1")
    torch.testing.assert_close(explain_pairs(xmodel, a, b, output=mean_pooling).table, mean.table)
    first = explain_pairs(xmodel, a, b, output=lambda out, inputs: out["hidden"][:, 0])
    torch.testing.assert_close(explain_pairs(xmodel, a, b, output=first_token).table, first.table)
    torch.testing.assert_close(explain_pairs(xmodel, a, b, output="parts.0").table, first.table)
    for wrong in (None, "parts.2", "pooler_output", "hidden", lambda out, inputs: out["hidden"].sum()):
        with pytest.raises(TargetError):
            explain_pairs(xmodel, a, b, output=wrong)


def test_errors_say_what_is_wrong(encoder):
    xmodel, a = lrp_fx.convert(encoder), tokens()
    with pytest.raises(TargetError, match="mean_pooling"):
        explain_pairs(xmodel, a, a)
    with pytest.raises(InputError, match="equally many samples"):
        explain_pairs(xmodel, a, tokens(3), output=mean_pooling)
    with pytest.raises(TargetError, match="cosine"):
        explain_pairs(xmodel, a, a, output=mean_pooling, similarity="euclidean")
    with pytest.raises(InputError, match="input_ids"):
        explain_pairs(xmodel, a, a, output=mean_pooling, input="pixels")
    with pytest.raises(InputError, match="patches"):
        explain_pairs(xmodel, a, a, output=mean_pooling, features=2)
    picture = lrp_fx.convert(nn.Sequential(nn.Flatten(), nn.Linear(3 * 80 * 80, 2)))
    with pytest.raises(InputError, match="features="):
        explain_pairs(picture, *torch.randn(2, 1, 3, 80, 80))
    silent = lrp_fx.convert(nn.Linear(3, 2, bias=False))
    with pytest.raises(TargetError, match="cosine"):
        explain_pairs(silent, torch.zeros(1, 3), torch.ones(1, 3), similarity="cosine")
    with pytest.raises(InputError, match="sign="):
        explain_pairs(xmodel, a, a, output=mean_pooling).top(3, sign="up")
    with pytest.raises(InputError, match="decode"):
        explain_pairs(silent, torch.ones(1, 3), torch.ones(1, 3), decode=str)


def test_notes_tell_weak_maps(encoder):
    """Biases hold all of it; and large parts cancel."""
    biased = nn.Linear(3, 2).double()
    with torch.no_grad():
        biased.bias.fill_(100.0)
    x = torch.rand(1, 3, dtype=torch.float64)
    found = explain_pairs(lrp_fx.convert(biased), x, x)
    assert [note.name for note in found.notes] == ["small share"] and "note: pairs of features hold" in repr(found)
    plain = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([[1.0, -1.0]]))
    y = torch.tensor([[10.0, 9.0]], dtype=torch.float64)
    assert [note.name for note in explain_pairs(lrp_fx.convert(plain), y, y).notes] == ["cancelling"]


def test_inference_mode_changes_nothing(encoder):
    a, b = tokens(), tokens(2, 3)
    outside = explain_pairs(lrp_fx.convert(encoder), a, b, output=mean_pooling)
    with torch.inference_mode():
        inside = explain_pairs(lrp_fx.convert(encoder), a.clone(), b.clone(), output=mean_pooling)
    torch.testing.assert_close(inside.table.clone(), outside.table)


def test_samples_are_results_of_their_own(encoder):
    found = explain_pairs(
        lrp_fx.convert(encoder), tokens(3), tokens(3, 4), output=mean_pooling, decode=lambda ids: list(map(str, ids))
    )
    assert len(found) == 3 and len(found[1:]) == 2 and [len(one) for one in found] == [1, 1, 1]
    first = [replace(pair, sample=0) for pair in found.top(4) if pair.sample == 2]
    assert len(first) == 4 and found[2].top(4) == first and found[-1].top(4) == first
    torch.testing.assert_close(found[1:].table, found.table[1:])
    with pytest.raises(IndexError):
        found[3]


def test_results_travel(encoder):
    found = explain_pairs(lrp_fx.convert(encoder), tokens(), tokens(), output=mean_pooling)
    again = pickle.loads(pickle.dumps(found))
    torch.testing.assert_close(again.pairs, found.pairs)
    assert repr(again) == repr(found) and "dot=" in repr(found)
