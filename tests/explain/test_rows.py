"""Where one position of a sequence of logits is explained, the head runs at that position only."""

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.results import Later


class Words(nn.Module):
    """A causal language model with a padding mask."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.mlp, self.norm = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), nn.LayerNorm(8)

    def forward(self, ids, attention_mask):
        x = self.embed(ids)
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        seen = attention_mask[:, None, None].bool() & torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)
        return self.head(self.mlp(self.norm(x + mixed)) + x)


TARGETS = {
    "largest": None,
    "class": -4,
    "one per sample": torch.tensor([1, 2, 3]),
    "contrast": lrp_fx.Contrast(4, 7),
    "position": lrp_fx.Logit(3, position=2),
    "one position per sample": lrp_fx.LogProb(3, position=torch.tensor([1, 2, -1])),
    "name": "log_prob",
    "probability": lrp_fx.Probability(2),
}


def inputs(length=6):
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1, 4:] = 0
    return torch.randint(0, 11, (3, length)), mask


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Words().double().eval()


@pytest.fixture(scope="module")
def xmodel(model):
    return lrp_fx.convert(model, *inputs())


def at_every_position(xmodel, *args, **kwargs):
    """The same explanation with logits of all positions."""
    sweeper = xmodel.current.sweeper(xmodel.ruleset, tuple(kwargs.get("at", ())))
    kept = sweeper.rows
    sweeper.__dict__["rows"] = None
    try:
        return xmodel.explain(*args, **kwargs)
    finally:
        sweeper.__dict__["rows"] = kept


@pytest.mark.parametrize("name", TARGETS)
def test_it_is_the_explanation_of_all_positions(model, xmodel, name):
    for length in (6, 9):
        ids, mask = inputs(length)
        one = xmodel.explain(ids, mask, target=TARGETS[name])
        every = at_every_position(xmodel, ids, mask, target=TARGETS[name])
        assert isinstance(one._output, Later) and not isinstance(every._output, Later)
        assert torch.allclose(one.relevance["ids"], every.relevance["ids"], rtol=0, atol=1e-12)
        assert torch.allclose(one.target, every.target, rtol=0, atol=1e-12)
        assert torch.equal(one.output, every.output) and torch.equal(one.output, model(ids, mask))
        assert abs(one.ledger.residual) < 1e-9


def test_the_head_sees_one_position(xmodel):
    graph = xmodel.current.sweeper(xmodel.ruleset, ()).rows.graph_module.graph
    layers = [n for n in graph.nodes if n.target is torch.ops.aten.linear.default and n.meta["val"].shape[-1] == 11]
    assert layers and all(n.meta["val"].shape[1] == 1 for n in layers)


def test_other_targets_read_all_of_the_output(xmodel):
    ids, mask = inputs()
    for target in ((2, 5), lambda output: output[:, -1, 3], lrp_fx.Span(2, 4)):
        assert not isinstance(xmodel.explain(ids, mask, target=target)._output, Later)


def test_latents_and_conditions(xmodel):
    ids, mask = inputs()
    one, every = (
        explain(ids, mask, at=["mlp"])
        for explain in (xmodel.explain, lambda *a, **k: at_every_position(xmodel, *a, **k))
    )
    assert one.latents["mlp"].shape == (3, 6, 8)
    assert torch.allclose(one.latents["mlp"], every.latents["mlp"], rtol=0, atol=1e-12)
    parts = xmodel.explain_conditions(ids, mask, conditions=[{}, {"mlp": [1, 2]}])
    assert torch.allclose(parts[0].relevance["ids"], one.relevance["ids"], rtol=0, atol=1e-12)
    assert not torch.allclose(parts[1].relevance["ids"], one.relevance["ids"])


def test_errors_are_those_of_all_positions(xmodel):
    ids, mask = inputs()
    with pytest.raises(lrp_fx.errors.TargetError, match="target 11 is out of range: the output has 11 classes"):
        xmodel.explain(ids, mask, target=11)
    with pytest.raises(lrp_fx.errors.TargetError, match="position 6 is out of range"):
        xmodel.explain(ids, mask, target=lrp_fx.Logit(3, position=6))


def test_without_inputs_the_output_is_gone_unless_it_was_read(xmodel):
    ids, mask = inputs()
    with pytest.raises(lrp_fx.errors.LrpError, match="keep_inputs=False"):
        _ = xmodel.explain(ids, mask, keep_inputs=False).output
    read = xmodel.explain(ids, mask)
    output = read.output
    assert torch.equal(read.without_inputs().output, output)
