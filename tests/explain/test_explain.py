"""Targets, latents, sources, lazy capture, dynamic shapes."""

from dataclasses import replace

import pytest
import torch
from models import build, few
from torch import nn

import lrp_fx
from lrp_fx.errors import InputError, LatentError, TargetError


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    model, inputs = build("llama2")
    return model, inputs["input_ids"], lrp_fx.convert(model, input_ids=inputs["input_ids"], rules="attnlrp")


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    return model, torch.randn(5, 4, dtype=torch.float64), lrp_fx.convert(model, rules="attnlrp")


def test_default_target_is_each_samples_largest_logit(classifier):
    model, x, xmodel = classifier
    torch.testing.assert_close(xmodel.explain(x).target, model(x).amax(-1).detach())


@pytest.mark.parametrize(
    "target",
    [2, -1, torch.tensor([2, 2, 2, 2, 2]), (2,), (-1,), lambda out: out[:, 2], torch.tensor(2)],
    ids=["int", "negative", "tensor", "tuple", "negative tuple", "callable", "scalar tensor"],
)
def test_ways_to_name_a_class(classifier, target):
    model, x, xmodel = classifier
    attribution = xmodel.explain(x, target=target)
    torch.testing.assert_close(attribution.target, model(x)[:, 2].detach())
    torch.testing.assert_close(attribution.relevance["input"], xmodel.explain(x, target=2).relevance["input"])


def test_one_class_per_sample(classifier):
    model, x, xmodel = classifier
    classes = torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(xmodel.explain(x, target=classes).target, model(x)[range(5), classes].detach())


def test_sequence_targets(llama):
    model, tokens, xmodel = llama
    logits = model(input_ids=tokens).logits.detach()
    torch.testing.assert_close(xmodel.explain(input_ids=tokens).target, logits[:, -1].amax(-1))
    torch.testing.assert_close(xmodel.explain(input_ids=tokens, target=7).target, logits[:, -1, 7])
    early = xmodel.explain(input_ids=tokens, target=(2, 7))
    torch.testing.assert_close(early.target, logits[:, 2, 7])
    assert (early.relevance["input_ids"][:, 3:] == 0).all()  # causal
    single = xmodel.explain(input_ids=tokens, target=(1, 2, 7))
    torch.testing.assert_close(single.target, logits[1, 2, 7].reshape(1))
    assert (single.relevance["input_ids"][0] == 0).all()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "out of range: the output has 3 classes"),
        (torch.tensor([0, 1]), "2 targets for a batch of 5"),
        (torch.tensor([0.5] * 5), "integer tensor"),
        ((0, 1, 2), "has 3 indices"),
        ((7,), "does not index an output of shape"),
        (lambda out: out, r"must return a floating \(B,\) tensor"),
        (lambda out: out.detach()[:, 0], "does not depend on any input"),
    ],
)
def test_bad_targets(classifier, target, message):
    _, x, xmodel = classifier
    with pytest.raises(TargetError, match=message):
        xmodel.explain(x, target=target)


def test_samples_are_independent(llama):
    _, tokens, xmodel = llama
    both = xmodel.explain(input_ids=tokens).relevance["input_ids"]
    for i in range(2):
        alone = xmodel.explain(input_ids=tokens[i : i + 1]).relevance["input_ids"]
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-9, atol=1e-12)


def test_latents_by_path_and_glob(llama):
    _, tokens, xmodel = llama
    attribution = xmodel.explain(input_ids=tokens, at=["model.layers.*.mlp", "model.norm", "model.embed_tokens"])
    assert set(attribution.latents) == {"model.layers.0.mlp", "model.layers.1.mlp", "model.norm", "model.embed_tokens"}
    assert attribution.latents["model.layers.0.mlp"].shape == (2, 7, 32)
    # without a bias in the head, all of the target is at the last norm; and the embedding is the source
    torch.testing.assert_close(attribution.latents["model.norm"].sum(), attribution.target.sum())
    torch.testing.assert_close(attribution.latents["model.embed_tokens"].sum(-1), attribution.relevance["input_ids"])


def test_latents_conserve_over_a_residual_block():
    model, inputs = build("llama2")
    xmodel = lrp_fx.convert(model, **inputs, rules="cp_lrp")
    attribution = xmodel.explain(**inputs, at="model.layers.*")
    whole = attribution.target.sum()
    for path in ("model.layers.0", "model.layers.1"):
        torch.testing.assert_close(attribution.latents[path].sum(), whole, rtol=1e-9, atol=1e-12)


def test_unknown_latent(llama):
    _, tokens, xmodel = llama
    with pytest.raises(LatentError, match=r"model\.layer\.0\.mlp.*close: .*model\.layers\.0\.mlp"):
        xmodel.explain(input_ids=tokens, at="model.layer.0.mlp")


def test_sources_name_every_table():
    model, inputs = build("bert-classifier")
    attribution = lrp_fx.convert(model, **inputs, rules="attnlrp").explain(**inputs)
    names = set(attribution.sources)
    for table in ("word", "position", "token_type"):
        assert any(f"{table}_embeddings.weight" in name for name in names), names
    ledger = attribution.ledger
    total = sum(r.sum().item() for r in attribution.sources.values())
    assert abs(total - ledger["input"] - ledger["source"]) < 1e-9
    assert "target" in str(ledger)


def test_the_ledger_is_a_mapping_that_sums_to_the_target(llama):
    _, tokens, xmodel = llama
    attribution = xmodel.explain(input_ids=tokens)
    ledger = attribution.ledger
    assert abs(sum(ledger.values()) - attribution.target.sum().item()) < 1e-9
    assert set(ledger) == {"input", "softmax"} and "bias" not in ledger and ledger["bias"] == 0
    assert abs(sum(ledger.by("role").values()) - ledger.target) < 1e-9
    assert abs(sum(ledger.by("module").values()) - ledger.target) < 1e-9


def test_a_ledger_that_lacks_an_entry_does_not_balance(classifier):
    _, x, xmodel = classifier
    ledger = xmodel.explain(x).ledger
    assert ledger.balance < 1e-12
    whole = sum(abs(e.amount) for e in ledger.entries)
    least = min(ledger.entries, key=lambda e: abs(e.amount))
    part = replace(ledger, entries=tuple(e for e in ledger.entries if e is not least))
    assert part.residual == pytest.approx(least.amount)
    assert part.balance == pytest.approx(abs(least.amount) / max(abs(ledger.target), whole - abs(least.amount)))


def test_a_floating_padding_mask_is_no_source():
    model, inputs = build("bert")
    whole = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    whole["attention_mask"][0, 5:] = 0
    floating = {**whole, "attention_mask": whole["attention_mask"].double()}
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    expected, found = xmodel.explain(**whole), xmodel.explain(**floating)
    assert set(found.relevance) == {"input_ids"}
    torch.testing.assert_close(found.relevance["input_ids"], expected.relevance["input_ids"])


@pytest.mark.slow
def test_a_decoder_that_starts_with_one_token_stays_dynamic(monkeypatch):
    monkeypatch.delenv("LRP_FX_CACHE", raising=False)
    model, inputs = build("flan-t5")
    first = {"input_ids": inputs["input_ids"][:1], "decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)}
    xmodel = lrp_fx.convert(model, **first, rules="attnlrp")
    assert xmodel.explain(**first).relevance["decoder_input_ids"].shape == (1, 1)
    assert xmodel.explain(**inputs).relevance["decoder_input_ids"].shape == (2, 5)
    assert len(xmodel.captures.reasons) == 1


def test_class_token_and_positions_are_sources():
    model, inputs = build("vit")
    attribution = lrp_fx.convert(model, **inputs, rules="attnlrp").explain(**inputs)
    assert attribution.relevance["pixel_values"].shape == (2, 3, 32, 32)
    assert any("cls_token" in name for name in attribution.sources)
    assert any("position_embeddings" in name for name in attribution.sources)


def test_capture_at_first_call_and_per_signature():
    model, inputs = build("llama2")
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    tokens = inputs["input_ids"]
    xmodel(input_ids=tokens)
    assert len(xmodel.captures) == 1
    xmodel(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    xmodel(inputs_embeds=model.get_input_embeddings()(tokens).detach())
    assert len(xmodel.captures) == 3


@pytest.mark.parametrize("name", few(["llama2", "mixtral", "flan-t5", "bert", "gpt2", "vit", "encoder"], "encoder"))
def test_one_capture_serves_any_batch_and_length(name, monkeypatch):
    monkeypatch.delenv("LRP_FX_CACHE", raising=False)  # captures on disk are taken one by one
    model, inputs = build(name)
    xmodel = lrp_fx.convert(
        model, **{k: v[:1] for k, v in inputs.items()}, rules="attnlrp"
    )  # a batch of one stays dynamic
    for batch, extra in ((1, 0), (3, 0), (2, 4)):
        grown = {}
        for key, value in inputs.items():
            value = value[:1].expand(batch, *value.shape[1:]).clone()
            if value.dim() == 2 or name == "encoder":
                value = torch.cat([value, value[:, :1].expand(-1, extra, *value.shape[2:])], 1)
            grown[key] = value
        attribution = xmodel.explain(**grown)
        assert attribution.target.shape[0] == batch
        assert attribution.ledger.balance < 1e-9
    # of decoders without a mask, transformers asks whether the batch is one, and does the same either way: one graph
    assert len(xmodel.captures.reasons) == len(xmodel.captures) == 1


def test_a_dimension_the_model_freezes_recaptures():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.sum(1) if x.shape[1] > 4 else x.prod(1)

    xmodel = lrp_fx.convert(Fixed(), torch.randn(2, 6).double(), ops={"linear": {"aten.prod": "self"}}, rules="attnlrp")
    assert torch.equal(xmodel(torch.ones(3, 9).double()), torch.full((3,), 9.0).double())
    assert torch.equal(xmodel(torch.full((3, 2), 3.0).double()), torch.full((3,), 9.0).double())
    assert len(xmodel.captures) == 2


def test_static_capture():
    xmodel = lrp_fx.convert(nn.Linear(4, 2), torch.randn(3, 4), dynamic=False, rules="attnlrp")
    assert xmodel.current.captured.shapes.dims == ((3, 4),)
    assert xmodel(torch.randn(5, 4)).shape == (5, 2)  # a new size recaptures


def test_token_ids_shifted_by_the_model_are_carried_back():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 3, bias=False)

        def forward(self, tokens):
            start = torch.full((tokens.shape[0], 1), 7, dtype=torch.long)
            shifted = torch.cat([start, tokens[:, :-1]], 1)
            return self.head(self.table(shifted)).sum(1)

    model, tokens = Shift().double(), torch.randint(0, 50, (2, 5))
    attribution = lrp_fx.convert(model, rules="attnlrp").explain(tokens, target=0)
    per_row = (model.table(tokens) * model.head.weight[0]).sum(-1)
    expected = torch.cat([per_row[:, :-1], torch.zeros(2, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(attribution.relevance["tokens"], expected.detach())


@pytest.mark.parametrize("samples", [1, 2])
def test_the_last_token_id_written_in_front_is_carried_back(samples):
    """One sample's last id is a scalar, which fills its place; two samples' are copied."""

    class Wrap(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 3, bias=False)

        def forward(self, tokens):
            shifted = tokens.clone()
            shifted[:, 1:] = tokens[:, :-1].clone()
            shifted[:, 0] = tokens[:, -1:].squeeze()
            return self.head(self.table(shifted)).sum(1)

    model, tokens = Wrap().double(), torch.randint(0, 50, (samples, 5))
    attribution = lrp_fx.convert(model, tokens, rules="attnlrp").explain(tokens, target=0)
    expected = (model.table(tokens) * model.head.weight[0]).sum(-1)
    torch.testing.assert_close(attribution.relevance["tokens"], expected.detach())


def test_rules_by_module_path():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    rules = {"base": "attnlrp", "overrides": {"1": {"nonlinearity": "gradient"}}}
    overridden = lrp_fx.convert(model, x, rules=rules).explain(x)
    plain = lrp_fx.convert(model, x, rules="attnlrp").explain(x)
    assert not torch.allclose(overridden.relevance["input"], plain.relevance["input"])
    assert overridden.ledger["rule"] != 0 and overridden.ledger.balance < 1e-9


def test_an_input_that_cannot_carry_relevance():
    class Count(nn.Module):
        def forward(self, mask):
            return (mask > 0).double().sum(-1, keepdim=True)

    with pytest.raises(InputError, match="no input can carry relevance"):
        lrp_fx.convert(Count(), rules="attnlrp").explain(torch.ones(2, 3, dtype=torch.long))


class Biases(torch.nn.Module):
    """A table with a row of biases per head, read by distance: the ids pick columns."""

    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Parameter(torch.randn(3, 9)), torch.nn.Linear(5, 2, bias=False)

    def forward(self, buckets):
        picked = self.table.index_select(1, buckets.flatten()).view(3, *buckets.shape)
        return self.head(picked.square().sum(0))


def test_ids_may_pick_columns():
    model, buckets = Biases().double(), torch.randint(0, 9, (2, 5))
    xmodel = lrp_fx.convert(model, buckets, rules="attnlrp")
    relevance = xmodel.explain(buckets, target=1).relevance["buckets"]
    wanted = model.table[:, buckets].square().sum(0) * model.head.weight[1]
    torch.testing.assert_close(relevance, wanted.detach())
    torch.testing.assert_close(xmodel.lower(buckets, target=1)(buckets, target=1).relevance["buckets"], relevance)


@pytest.mark.slow
@pytest.mark.parametrize("rules", few(["attnlrp", "gradient"], "gradient"))
def test_group_norm_of_a_channels_last_image(in_two_processes, rules):
    """torch 2.13 ends the process in the backward of group_norm for the bias alone."""
    printed = in_two_processes(f"""
        import lrp_fx
        from torch import nn
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.Flatten(), nn.Linear(288, 2)).double().eval()
        nn.init.normal_(model[1].bias)
        x = torch.randn(2, 3, 8, 8).double().to(memory_format=torch.channels_last)
        xmodel = lrp_fx.convert(model, x, rules="{rules}")
        assert torch.equal(xmodel(x), model(x)) and xmodel(x).shape == (2, 2)
        ledger = xmodel.explain(x).ledger
        plain = xmodel.explain(x.contiguous()).ledger
        assert ledger.balance < 1e-9, ledger
        assert abs(ledger.by("category")["bias"] - plain.by("category")["bias"]) < 1e-9
        print("done")
    """)
    assert printed == ["done\n", "done\n"]
