"""Where relevance of inputs is collected: at the signal that is read by an index, at the input whose values pick rows."""

from __future__ import annotations

import pytest
import torch
from models import few
from torch import Tensor, nn
from torch.nn import functional as F

import lrp_fx

D = torch.float64


class Reads(nn.Module):
    """A linear layer whose rows an integer input picks: relevance of the picked rows is known in closed form."""

    def __init__(self, read) -> None:
        super().__init__()
        self.read = read
        self.first = nn.Linear(4, 3, bias=False, dtype=D)
        self.last = nn.Linear(3, 2, bias=False, dtype=D)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.last(self.read(self.first(x), index))


def _put_back(h: Tensor, index: Tensor) -> Tensor:
    out = torch.zeros_like(h[:, : index.shape[1]])
    out[:, :] = torch.stack([row[i] for row, i in zip(h.unbind(0), index.unbind(0), strict=True)])
    return out


ROWS = {  # (N, D), (n,) -> (n, D)
    "index": lambda h, i: h[i],
    "index_select": lambda h, i: h.index_select(0, i),
    "gather": lambda h, i: h.gather(0, i[:, None].expand(-1, h.shape[1])),
    "take_along_dim": lambda h, i: torch.take_along_dim(h, i[:, None], 0),
    "take": lambda h, i: h.take(i[:, None] * h.shape[1] + torch.arange(h.shape[1])),
    "embedding": lambda h, i: F.embedding(i, h),
    "embedding with a padding row": lambda h, i: F.embedding(i, h, padding_idx=2),
    "moved first": lambda h, i: h.t()[:, i.flip(0).flip(0)].t(),
    "shifted": lambda h, i: torch.cat([h[:1], h])[i + 1],
    "both coordinates": lambda h, i: h[i[:, None], torch.arange(h.shape[1])],
    "computed": lambda h, i: h[(i.unsqueeze(0) + 0).squeeze(0).long()],
    "one-hot": lambda h, i: F.one_hot(i, h.shape[0]).to(h) @ h,
    "one-hot, summed": lambda h, i: (F.one_hot(i, h.shape[0])[..., None].to(h) * h).sum(1),
    "one-hot, einsum": lambda h, i: torch.einsum("kn,nh->kh", F.one_hot(i, h.shape[0]).to(h), h),
    "one-hot, halved and doubled": lambda h, i: (F.one_hot(i, h.shape[0]).to(h) / 2).t().t() @ h * 2,
    "one-hot, twice": lambda h, i: F.one_hot(torch.arange(len(i)), len(i)).to(h) @ (F.one_hot(i, len(h)).to(h) @ h),
    "identity matrix": lambda h, i: torch.eye(h.shape[0], dtype=h.dtype)[i] @ h,
}
STEPS = {  # (B, S, D), (B, n) -> (B, n, D)
    "pairs": lambda h, i: h[torch.arange(h.shape[0])[:, None], i],
    "gather": lambda h, i: h.gather(1, i[..., None].expand(-1, -1, h.shape[2])),
    "take_along_dim": lambda h, i: torch.take_along_dim(h, i[..., None], 1),
    "flat rows": lambda h, i: h.flatten(0, 1)[i + h.shape[1] * torch.arange(h.shape[0])[:, None]],
    "flat embedding": lambda h, i: F.embedding(i + h.shape[1] * torch.arange(h.shape[0])[:, None], h.flatten(0, 1)),
    "unbound": _put_back,
}


def _want(model: Reads, x: Tensor, index: Tensor, cls: int) -> Tensor:
    """x times the composed weight, as often as a row is picked."""
    weight = model.last.weight[cls] @ model.first.weight
    if x.dim() == 2:
        return x * weight * torch.bincount(index, minlength=len(x))[:, None]
    counts = torch.zeros(x.shape[:2], dtype=D).scatter_add(1, index, torch.ones_like(index, dtype=D))
    return x * weight * counts[..., None]


def _target(output: Tensor) -> Tensor:
    return output[..., 1].flatten(1).sum(1) if output.dim() > 2 else output[:, 1]


@pytest.mark.parametrize("capture", ["export", "trace"])
@pytest.mark.parametrize("name", ROWS)
def test_picked_rows_are_the_signal(name: str, capture: str) -> None:
    torch.manual_seed(0)
    model = Reads(ROWS[name]).eval()
    xmodel = lrp_fx.convert(model, capture=capture, rules="attnlrp")
    for size, index in ((5, [4, 0, 2, 2]), (5, [1, 1, 3, 0]), (7, [6, 2, 5])):
        x, picked = torch.randn(size, 4, dtype=D), torch.tensor(index)
        for rules in ("attnlrp", "gradient"):
            found = xmodel.explain(x, picked, target=1, rules=rules)
            assert set(found.relevance) == {"x"}
            torch.testing.assert_close(found.relevance["x"], _want(model, x, picked, 1), rtol=1e-10, atol=1e-12)
            assert found.ledger.balance < 1e-10


@pytest.mark.parametrize("name", few(STEPS, *list(STEPS)[:2]))
def test_picked_steps_are_the_signal_by_every_way(name: str) -> None:
    """Batched; a second call of other sizes; many targets; low memory; lowered."""
    torch.manual_seed(0)
    model = Reads(STEPS[name]).eval()
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    for batch, length in ((3, 5), (2, 6)):
        x, index = torch.randn(batch, length, 4, dtype=D), torch.randint(0, length, (batch, 3))
        found = xmodel.explain(x, index, target=_target)
        torch.testing.assert_close(found.relevance["x"], _want(model, x, index, 1), rtol=1e-10, atol=1e-12)
        assert set(found.relevance) == {"x"}
    last = [_want(model, x, index[:, -1:], c) for c in (0, 1)]
    torch.testing.assert_close(xmodel.explain(x, index, target=0, memory="low").relevance["x"], last[0])
    many = xmodel.explain(x, index, targets=[0, 1]).relevance["x"]
    torch.testing.assert_close(many, torch.stack(last), rtol=1e-10, atol=1e-12)
    lowered = xmodel.lower(x, index, target=1)
    torch.testing.assert_close(lowered(x, index, target=1).relevance["x"], last[1], rtol=1e-10, atol=1e-12)


def test_an_index_that_picks_from_a_table_and_from_a_signal():
    """It is the source of the table's rows alone; a table of both is as when it is read by the index itself."""

    class Both(nn.Module):
        def __init__(self, read) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.read, self.table = read, nn.Parameter(torch.randn(6, 3, dtype=D))

        def forward(self, h: Tensor, i: Tensor) -> Tensor:
            rows = F.one_hot(i, 6).to(D) if self.read == "one-hot" else None
            picked = (lambda t: rows @ t) if rows is not None else (lambda t: t[i])
            return (picked(self.table) + picked(h) + picked(self.table + h)).sum(1)

    h, i = torch.randn(6, 3, dtype=D), torch.tensor([3, 0, 5, 5])
    for rules in ("attnlrp", "gradient"):
        first, second = (
            lrp_fx.convert(Both(read), rules="attnlrp").explain(h, i, target=lambda o: o, rules=rules)
            for read in ("one-hot", "index")
        )
        assert set(first.relevance) == set(second.relevance) == {"h", "i"}
        for name in first.relevance:
            torch.testing.assert_close(first.relevance[name], second.relevance[name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            first.relevance["h"], 2 * h * torch.bincount(i, minlength=6)[:, None], rtol=1e-10, atol=1e-12
        )


def test_rows_that_a_layer_mixes_are_a_signal():
    """A code that goes through a layer, or stands beside a signal, is no lookup: both factors have their share."""
    layer = nn.Linear(6, 3, bias=False, dtype=D)
    uses = {
        "mixed": lambda h, i: layer(F.one_hot(i, 6).to(D)) * h,
        "beside": lambda h, i: (torch.cat([F.one_hot(i, 6).to(D), h], -1) @ torch.ones(9, 3, dtype=D)) * h,
    }

    class Use(nn.Module):
        def __init__(self, use) -> None:
            super().__init__()
            self.use, self.layer = use, layer

        def forward(self, h: Tensor, i: Tensor) -> Tensor:
            return self.use(h, i).sum(1)

    h, i = torch.randn(4, 3, dtype=D), torch.tensor([3, 0, 5, 5])
    for use in uses.values():
        found = lrp_fx.convert(Use(use), rules="attnlrp").explain(h, i, target=lambda o: o)
        assert found.relevance["i"].abs().min() > 1e-6 and found.ledger.balance < 1e-10


class Pointer(nn.Module):
    """Memory that is computed from tokens, read at positions that are given: the tokens are the signal."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(9, 4, dtype=D), nn.Linear(4, 9, bias=False, dtype=D)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        memory = self.words(ids)
        return self.last(memory[torch.arange(ids.shape[0]), positions])


def test_integers_that_are_ids_and_index_at_once() -> None:
    """`ids` pick words (relevance) and steps (none); the same tensor in both places is told apart, too."""
    torch.manual_seed(0)
    model = Pointer().eval()
    ids, positions = torch.randint(0, 9, (3, 5)), torch.tensor([4, 0, 2])
    found = lrp_fx.convert(model, rules="attnlrp").explain(ids, positions, target=1)
    assert set(found.relevance) == {"ids"}
    want = torch.zeros(3, 5, dtype=D).scatter(1, positions[:, None], model(ids, positions)[:, 1:2])
    torch.testing.assert_close(found.relevance["ids"], want)

    class Walk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.last = nn.Embedding(5, 4, dtype=D), nn.Linear(4, 2, bias=False, dtype=D)

        def forward(self, ids: Tensor) -> Tensor:
            return self.last(self.words(ids).gather(1, ids[..., None].expand(-1, -1, 4)).sum(1))

    model, ids = Walk().eval(), torch.tensor([[1, 0, 2, 2, 4], [3, 3, 3, 0, 1]])
    found = lrp_fx.convert(model, rules="attnlrp").explain(ids, target=0).relevance["ids"]
    each = (model.words(ids) @ model.last.weight[0]) * torch.stack([torch.bincount(r, minlength=5) for r in ids])
    torch.testing.assert_close(found, each)


class Table(nn.Module):
    """Rows of a table that a function computes from parameters, picked by a function of (table, ids)."""

    def __init__(self, table, pick=lambda t, i: F.embedding(i, t)) -> None:
        super().__init__()
        self.table, self.pick = table, pick
        self.weight, self.last = nn.Parameter(torch.randn(7, 4, dtype=D)), nn.Linear(4, 2, bias=False, dtype=D)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.pick(self.table(self.weight), ids).sum(1))


TABLES = {
    "tied": lambda w: w.t().contiguous().t(),
    "normalised": lambda w: F.normalize(w, dim=-1),
    "sliced": lambda w: torch.cat([w[:3], w[3:]])[None, :7][0],
}


@pytest.mark.parametrize("pick", few(["embedding", "gather", "index", "one-hot"], "gather"))
@pytest.mark.parametrize("name", TABLES)
def test_rows_of_a_table_that_is_computed_from_parameters_are_the_ids(name: str, pick: str) -> None:
    torch.manual_seed(0)
    picks = {
        "embedding": lambda t, i: F.embedding(i, t),
        "gather": lambda t, i: t[None].expand(i.shape[0], -1, -1).gather(1, i[..., None].expand(-1, -1, 4)),
        "index": lambda t, i: t[i],
        "one-hot": lambda t, i: F.one_hot(i, 7).to(D) @ t,
    }
    model, ids = Table(TABLES[name], picks[pick]).eval(), torch.randint(0, 7, (2, 5))
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    want = TABLES[name](model.weight)[ids] @ model.last.weight[1]
    torch.testing.assert_close(xmodel.explain(ids, target=1).relevance["ids"], want)
    torch.testing.assert_close(xmodel.lower(ids, target=1)(ids, target=1).relevance["ids"], want)
    many = xmodel.explain(ids, targets=[0, 1]).relevance["ids"]
    torch.testing.assert_close(many[1], want)


def test_rows_behind_another_dimension() -> None:
    """Indices that are broadcast, behind other dimensions, apart from one another, or from two inputs."""
    torch.manual_seed(0)
    table = torch.randn(3, 7, 4, dtype=D)
    heads = torch.arange(3)

    def model(read):
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Parameter(table.clone())

            def forward(self, a: Tensor, b: Tensor) -> Tensor:
                return read(self.table, a, b).sum().reshape(1)

        return Model().eval()

    a, b = torch.tensor([1, 0, 2, 2, 1]), torch.tensor([6, 0, 3, 3, 5])
    sums = table.sum(2)
    cases = {
        "broadcast": (lambda t, a, b: t[heads[:, None], b], None, sums[:, b].sum(0)),
        "behind": (lambda t, a, b: t[:, b], None, sums[:, b].sum(0)),
        "select behind": (lambda t, a, b: t.index_select(1, b), None, sums[:, b].sum(0)),
        "apart": (lambda t, a, b: t[heads[:, None], :, b % 4], None, table.sum(1)[:, b % 4].sum(0)),
        "both": (lambda t, a, b: t[a, b], sums[a, b] / 2, sums[a, b] / 2),
        "a hash of both": (lambda t, a, b: t.flatten(0, 1)[a * 7 + b], sums[a, b] / 2, sums[a, b] / 2),
        "every pair": (lambda t, a, b: t[a[:, None], b], sums[a][:, b].sum(1) / 2, sums[a][:, b].sum(0) / 2),
    }
    for name, (read, first, second) in cases.items():
        found = lrp_fx.convert(model(read), rules="attnlrp").explain(a, b)
        want = {"a": first, "b": second}
        assert set(found.relevance) == {k for k, v in want.items() if v is not None}, name
        for key, relevance in found.relevance.items():
            torch.testing.assert_close(relevance, want[key], msg=lambda m, name=name: f"{name}: {m}")
        assert found.ledger.balance < 1e-12, name


CATEGORIES = {  # (B, 3) -> (B,) ids below 4
    "cast": lambda x: x[:, 0].long(),
    "rounded": lambda x: (x[:, 0] + 0.2).round().int(),
    "floored and clamped": lambda x: torch.floor(x[:, 0] + 0.5).clamp(0, 3).to(torch.int64),
    "unbound": lambda x: x.unbind(1)[0].type(torch.long),
    "bins": lambda x: torch.bucketize(x[:, 0], torch.tensor([0.5, 1.5, 2.5], dtype=D)),
    "half of it": lambda x: (x[:, 0] * 2).long() // 2,
    "a table of groups": lambda x: torch.tensor([2, 0, 1, 1])[x[:, 0].long()],
}


@pytest.mark.parametrize("name", few(CATEGORIES, *list(CATEGORIES)[:3]))
def test_a_category_in_a_float_column(name: str) -> None:
    """Rows that a float column picks belong to that column; what else the column does is added."""
    torch.manual_seed(0)
    read = CATEGORIES[name]

    class Tabular(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kinds, self.last = nn.Embedding(4, 4, dtype=D), nn.Linear(7, 2, bias=False, dtype=D)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([self.kinds(read(x)), x], 1))

    model = Tabular().eval()
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    for batch in (3, 5):
        x = torch.randn(batch, 3, dtype=D)
        x[:, 0] = torch.randint(0, 4, (batch,)).to(D)
        want = x * model.last.weight[1, 4:]
        want[:, 0] += model.kinds(read(x)) @ model.last.weight[1, :4]
        found = xmodel.explain(x, target=1)
        torch.testing.assert_close(found.relevance["x"], want, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.relevance["x"].sum(1), found.target)
        assert set(found.ledger) == {"input"}
    torch.testing.assert_close(xmodel.explain(x, targets=[0, 1]).relevance["x"][1], want)
    torch.testing.assert_close(xmodel.explain(x, target=1, memory="low").relevance["x"], want)
    torch.testing.assert_close(xmodel.lower(x, target=1)(x, target=1).relevance["x"], want)


def test_rows_that_a_hidden_state_picks_are_parameters() -> None:
    """A code book: which code is chosen has no derivative, and no single entry of the input picked it."""
    torch.manual_seed(0)

    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.codes = nn.Linear(4, 4, dtype=D), nn.Embedding(50, 2, dtype=D)

        def forward(self, x: Tensor) -> Tensor:
            return self.codes(self.first(x).sum(1).abs().long()) + x[:, :2]

    model, x = Codes().eval(), torch.randn(3, 4, dtype=D)
    found = lrp_fx.convert(model, rules="attnlrp").explain(x, target=1)
    want = torch.zeros_like(x)
    want[:, 1] = x[:, 1]
    torch.testing.assert_close(found.relevance["x"], want)
    assert found.ledger["source"] == pytest.approx(float((model(x) - x[:, :2])[:, 1].sum()))


def test_a_packed_sequence_that_is_given() -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.last = nn.GRU(4, 6, bias=False, dtype=D), nn.Linear(6, 2, bias=False, dtype=D)

        def forward(self, p: nn.utils.rnn.PackedSequence) -> Tensor:
            return self.last(self.rnn(p)[1][-1])

    model = Model().eval()
    sequences = [torch.randn(n, 4, dtype=D) for n in (3, 5, 2)]
    packed = nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    found = lrp_fx.convert(model, rules="attnlrp").explain(packed, target=1)
    assert set(found.relevance) == {"p.data"}
    together = nn.utils.rnn.PackedSequence(found.relevance["p.data"], *packed[1:])
    each, _ = nn.utils.rnn.pad_packed_sequence(together)
    for i, sequence in enumerate(sequences):
        single = nn.utils.rnn.pack_sequence([sequence])
        alone = lrp_fx.convert(model, rules="attnlrp").explain(single, target=1).relevance["p.data"]
        torch.testing.assert_close(each[: len(sequence), i], alone, rtol=1e-9, atol=1e-12)


SELECTIONS = {
    "sorted": lambda ids: ids.sort(-1)[0],
    "sorted downwards": lambda ids: torch.sort(ids, dim=1, descending=True).values,
    "the largest two": lambda ids: ids.topk(2, -1)[0],
    "the largest": lambda ids: ids.max(-1)[0].unsqueeze(-1),
    "the second": lambda ids: ids.kthvalue(2, -1)[0].unsqueeze(-1),
}


@pytest.mark.parametrize("capture", ["export", "trace"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_ids_that_are_selected_with_their_positions_have_the_relevance_of_their_rows(name, capture):
    """An operator with two results, values and where they were: relevance goes back to where they were."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.head = torch.nn.Embedding(20, 4), torch.nn.Linear(4, 3, bias=False)

        def forward(self, ids):
            return self.head(self.rows(SELECTIONS[name](ids))).sum(1)

    torch.manual_seed(0)
    model, ids = Model().double(), torch.tensor([[5, 2, 9, 7], [1, 8, 3, 4]])
    chosen = SELECTIONS[name](ids)
    each = (model.rows.weight @ model.head.weight[1]).detach()
    expected = torch.where((ids.unsqueeze(-1) == chosen.unsqueeze(1)).any(-1), each[ids], 0.0)
    found = lrp_fx.convert(model, ids, capture=capture, rules="attnlrp").explain(ids, target=1)
    torch.testing.assert_close(found.relevance["ids"], expected, rtol=1e-12, atol=1e-14)
