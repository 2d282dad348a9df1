"""Relevance of token ids is collected behind the first linear layers: fewer products, the same relevance."""

import pytest
import torch
from models import build, few
from torch import nn

import lrp_fx

FIRST = "model.layers.0"
PLACES = [f"{FIRST}.input_layernorm", f"{FIRST}.self_attn.q_proj", "model.embed_tokens"]


def _products(lowered):
    """How many products of matrices a graph has, experts aside."""
    names = [str(n.target) for n in lowered.graph_module.graph.nodes]
    return sum(name in ("aten.mm.default", "aten.addmm.default") for name in names)


def _agree(found, wanted, bound=1e-10):
    for name, relevance in wanted.items():
        assert relevance.abs().max() > 0
        assert (found[name] - relevance).abs().max() <= bound * relevance.abs().max()


@pytest.mark.parametrize(
    ("name", "fewer"),
    few([("llama2", 3), ("flan-t5", 6), ("mixtral", 3), ("gemma3", 3), ("bert", 0)]),
)
def test_products_of_the_first_layers_with_their_cotangents_are_saved(name, fewer, monkeypatch):
    """Of decoder and encoder; where rows get a bias before they are multiplied (a norm's), nothing changes."""
    monkeypatch.delenv("LRP_FX_CACHE")  # what one of the two kept, the other would find
    model, inputs = build(name)
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    late = xmodel.lower(**inputs)
    monkeypatch.setattr(
        "lrp_fx.lowering.joint_graph.collect_early", lambda graph, ops, taps, depths, held: [[t] for t in taps]
    )
    early = xmodel.lower(**inputs)
    assert _products(early) - _products(late) == fewer
    _agree(late(**inputs).relevance, early(**inputs).relevance)
    _agree(late(**inputs).relevance, xmodel.explain(**inputs).relevance)


@pytest.mark.parametrize(
    "rules",
    few(["attnlrp", "cp_lrp", "epsilon_plus", "epsilon_plus_flat", "relp", "pa_lrp"], "epsilon_plus_flat"),
)
def test_under_every_kind_of_rule(rules):
    model, inputs = build("llama2")
    xmodel = lrp_fx.convert(model, **inputs, rules=rules)
    _agree(xmodel.lower(**inputs)(**inputs).relevance, xmodel.explain(**inputs).relevance)


@pytest.mark.slow
@pytest.mark.parametrize("place", few(PLACES, PLACES[0]))
def test_what_is_asked_for_on_the_way_is_collected_there_too(place):
    model, inputs = build("llama2")
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    found, wanted = xmodel.lower(**inputs, at=place)(**inputs), xmodel.explain(**inputs, at=place)
    _agree(found.latents, wanted.latents)
    _agree(found.relevance, wanted.relevance)
    condition = {place: [1, 2, 5]}
    found = xmodel.lower(**inputs, condition=condition)(**inputs)
    _agree(found.relevance, xmodel.explain(**inputs, condition=condition).relevance)


class Mixed(nn.Module):
    """Rows that are squared, masked, scaled, and read by layers with and without a bias."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.plain, self.biased, self.head = nn.Linear(6, 4, bias=False), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, ids, scale):
        x = self.table(ids)
        rows = x * 2.0 / scale[:, None, None]
        mixed = self.plain(rows) * rows.square().mean(-1, keepdim=True) + self.biased(rows) + self.plain(rows.flip(1))
        return self.head(mixed).mean(1)


def test_only_products_with_constants_are_passed():
    torch.manual_seed(0)
    model, ids, scale = Mixed().double(), torch.randint(0, 20, (2, 5)), torch.rand(2, dtype=torch.float64) + 1
    xmodel = lrp_fx.convert(model, ids, scale, rules="attnlrp")
    found, wanted = xmodel.lower(ids, scale)(ids, scale), xmodel.explain(ids, scale)
    _agree(found.relevance, wanted.relevance)
    assert (wanted.ledger["bias"] + sum(float(r.sum()) for r in wanted.relevance.values())) == pytest.approx(
        float(wanted.target.sum()), rel=1e-9
    )


def test_products_of_a_gamma_layer_with_its_cotangents_are_saved(monkeypatch):
    """Its two products, with weights and with their magnitudes, are each of degree 1 in the rows."""
    monkeypatch.delenv("LRP_FX_CACHE")
    torch.manual_seed(0)
    first, head = nn.Linear(6, 8, bias=False), nn.Linear(8, 3)
    model = nn.Sequential(nn.Embedding(20, 6), first, nn.Tanh(), nn.Flatten(), nn.Linear(40, 8), head).double()
    ids = torch.randint(0, 20, (2, 5))
    xmodel = lrp_fx.convert(model, ids)
    late = xmodel.lower(ids)
    monkeypatch.setattr(
        "lrp_fx.lowering.joint_graph.collect_early", lambda graph, ops, taps, depths, held: [[t] for t in taps]
    )
    early = xmodel.lower(ids)
    assert _products(early) - _products(late) == 2
    _agree(late(ids).relevance, early(ids).relevance)
    _agree(late(ids).relevance, xmodel.explain(ids).relevance)


#: a rule set with two products forward and back for every layer, the head, too; and one with three
GAMMAS = ["default", {"base": "attnlrp", "rules": {"dense": {"rule": "alpha-beta", "alpha": 2.0, "beta": 1.0}}}]


TARGETS = [None, 7, (3, 7), lrp_fx.Contrast(3, 4)]


@pytest.mark.parametrize(
    "target, rules",
    few(
        [*[(t, r) for t in TARGETS for r in ("attnlrp", "default")], (None, GAMMAS[1]), (7, GAMMAS[1])], (7, "default")
    ),
    ids=str,
)
def test_of_a_head_one_row_is_multiplied_on_the_way_back(target, rules):
    """The way forward computes all logits where the largest is looked for, and one of them where it is given."""
    model, inputs = build("llama2")
    xmodel = lrp_fx.convert(model, **inputs, rules=rules)
    lowered = xmodel.lower(**inputs, target=target)
    _agree(lowered(**inputs).relevance, xmodel.explain(**inputs, target=target).relevance)
    heads = [
        node
        for node in lowered.graph_module.graph.nodes
        if str(node.target) in ("aten.mm.default", "aten.addmm.default")
        and any(100 in getattr(n.meta.get("val"), "shape", ()) for n in node.all_input_nodes)
    ]
    assert len(heads) == (1 if target is None else 0)
    magnitudes = [n for n in lowered.graph_module.graph.nodes if str(n.target) == "aten.abs.default"]
    assert not [n for n in magnitudes if n.meta["val"].dim() == 2 and n.meta["val"].shape[0] == 100]  # nor their sizes
