"""Targets by name, of a position, of a span: each against a target written out by hand, in every way of explaining."""

import pytest
import torch
from models import build, few, ids
from torch import nn

import lrp_fx
from lrp_fx import Contrast, Logit, LogProb, Probability, Span
from lrp_fx.errors import TargetError


@pytest.fixture(scope="module")
def llama():
    model, inputs = build("llama2")
    return model, inputs, lrp_fx.convert(model, **inputs)


def same(found, wanted, most=1e-9):
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= most * float(wanted.abs().max())


def alike(found, wanted, most=1e-9):
    same(found.target, wanted.target, most)
    for name, relevance in wanted.relevance.items():
        same(found.relevance[name], relevance, most)


def picked(z, c):
    return z.gather(1, torch.as_tensor(c).expand(len(z))[:, None]).squeeze(1)


def contrasted(z, c):
    c = torch.as_tensor(c).expand(len(z))
    p = z.detach().softmax(1)
    others = p / (1 - picked(p, c))[:, None]
    others = others * (torch.arange(z.shape[1]) != c[:, None])
    return picked(z, c) - (others * z).sum(1)


VALUES = {
    Logit: picked,
    Contrast: contrasted,
    LogProb: lambda z, c: picked(z.log_softmax(1), c),
    Probability: lambda z, c: picked(z.softmax(1), c),
}
NAMES = {"logit": Logit, "contrast": Contrast, "log_prob": LogProb, "probability": Probability}


def by_hand(form, chosen=None, position=None):
    """The callable that means the same; without a mask a sequence ends at its last position."""

    def target(output):
        z = output.logits
        at = torch.full((len(z),), z.shape[1] - 1) if position is None else torch.as_tensor(position).expand(len(z))
        z = z[torch.arange(len(z)), at]
        return VALUES[form](z, z.argmax(1) if chosen is None else chosen)

    return target


MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
ENDS = torch.tensor([6, 3])


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_target_of_that_kind(llama, name):
    _, inputs, xmodel = llama
    form = NAMES[name]
    for call in (inputs, inputs, {"input_ids": ids(1, 5)}, {"input_ids": ids(3, 9)}):
        alike(xmodel.explain(**call, target=name), xmodel.explain(**call, target=by_hand(form)))
    alike(xmodel.explain(**inputs, target=form(7)), xmodel.explain(**inputs, target=by_hand(form, 7)))
    each = torch.tensor([9, 2])
    padded = {**inputs, "attention_mask": MASK}
    wanted = xmodel.explain(**padded, target=by_hand(form, each, ENDS))
    alike(xmodel.explain(**padded, target=form(each)), wanted)
    alike(xmodel.explain(**padded, target=form(each), memory="low"), wanted)
    assert not wanted.relevance["input_ids"][1, 4:].any()
    wanted = xmodel.explain(**inputs, target=by_hand(form, each, torch.tensor([2, 5])))
    alike(xmodel.explain(**inputs, target=form(each, position=[2, -2])), wanted)
    assert abs(xmodel.explain(**inputs, target=form(each)).ledger.balance) < 1e-10


@pytest.mark.parametrize("name", few(NAMES))
def test_a_name_in_a_lowered_graph(llama, name):
    _, inputs, xmodel = llama
    form = NAMES[name]
    lowered = xmodel.lower(**inputs, target=name)
    for call in (inputs, {"input_ids": ids(3, 9)}):
        alike(lowered(**call), xmodel.explain(**call, target=by_hand(form)))
    padded = {**inputs, "attention_mask": MASK}
    placed = xmodel.lower(**padded, target=form(3, position=1))
    alike(
        placed(**padded, target=form(5, position=[2, -4])),
        xmodel.explain(**padded, target=by_hand(form, 5, torch.tensor([2, 3]))),
    )
    with pytest.raises(TargetError):
        placed(**padded, target=form(5, position=7))
    with pytest.raises(TargetError, match="lower it for that kind"):
        placed(**padded, target=form(5))


def test_the_maps_of_a_log_probability_and_a_probability_are_multiples_of_the_contrast(llama):
    model, inputs, xmodel = llama
    p = model(**inputs).logits[:, -1].softmax(1)[:, 4].detach()[:, None]
    contrast, log_prob, probability = (
        xmodel.explain(**inputs, target=form(4)).relevance["input_ids"] for form in (Contrast, LogProb, Probability)
    )
    same(log_prob, (1 - p) * contrast)
    same(probability, p * (1 - p) * contrast)
    assert xmodel.explain(**inputs, target=LogProb(4)).ledger["target"] != 0
    assert xmodel.explain(**inputs, target=Contrast(4)).ledger["target"] == 0


def test_a_certain_answer_has_no_map_by_its_log_probability_and_says_so():
    layer = nn.Linear(3, 2)
    layer.bias.data = torch.tensor([300.0, 0.0])
    xmodel, x = lrp_fx.convert(layer), torch.randn(4, 3)
    for target in ("log_prob", "probability"):
        found = xmodel.explain(x, target=target)
        assert not found.relevance["input"].any() and "nothing" in [note.name for note in found.notes]
    contrast = xmodel.explain(x, target="contrast")
    assert contrast.relevance["input"].any() and "nothing" not in [note.name for note in contrast.notes]


def test_several_targets_of_all_kinds(llama):
    _, inputs, xmodel = llama
    padded = {**inputs, "attention_mask": MASK}
    at_once = [
        None,
        "logit",
        "contrast",
        3,
        Contrast(4, 5),
        Contrast([4, 5], position=2),
        Logit(3, position=[0, 1]),
        (1, 8),
    ]
    for targets in (at_once, [*at_once, "log_prob", Probability(3), Span(1, 3)], ["contrast"]):
        found = xmodel.explain(**padded, targets=targets, at="model.layers.0.mlp")
        for i, target in enumerate(targets):
            one = xmodel.explain(**padded, target=target, at="model.layers.0.mlp")
            same(found.target[i], one.target)
            same(found.relevance["input_ids"][i], one.relevance["input_ids"])
            same(found.latents["model.layers.0.mlp"][i], one.latents["model.layers.0.mlp"])


def spans_by_hand(tokens, start, end, mask=None):
    def target(output):
        z = output.logits
        total = z.new_zeros(len(z))
        for row in range(len(z)):
            for t in range(start[row], end[row]):
                if mask is None or (mask[row, t] and mask[row, t - 1]):
                    total = total + contrasted(z[row : row + 1, t - 1], tokens[row, t]) * (torch.arange(len(z)) == row)
        return total

    return target


@pytest.mark.slow
def test_a_span_is_the_sum_of_its_tokens_contrasts(llama):
    _, inputs, xmodel = llama
    tokens = inputs["input_ids"]
    found = xmodel.explain(**inputs, target=Span(3, 6))
    alike(found, xmodel.explain(**inputs, target=spans_by_hand(tokens, [3, 3], [6, 6])))
    parts = [xmodel.explain(**inputs, target=Contrast(tokens[:, t], position=t - 1)) for t in (3, 4, 5)]
    same(found.relevance["input_ids"], sum(part.relevance["input_ids"] for part in parts))
    assert not found.relevance["input_ids"][:, 5:].any() and abs(found.ledger.balance) < 1e-10
    alike(xmodel.explain(**inputs, target=Span(-4, -1)), found)
    alike(xmodel.explain(**inputs, target=Span(3, 6), memory="low"), found)
    each = xmodel.explain(**inputs, target=Span(torch.tensor([2, 5])))
    alike(each, xmodel.explain(**inputs, target=spans_by_hand(tokens, [2, 5], [7, 7])))
    longer = ids(3, 10)
    for call, start, end in ((inputs, 1, None), ({"input_ids": longer}, 4, 8)):
        wanted = xmodel.explain(**call, target=Span(start, end))
        lowered = xmodel.lower(**inputs, target=Span(2, end))
        alike(lowered(**call, target=Span(start, end)), wanted)


@pytest.mark.parametrize("mask", [MASK, MASK.flip(1)], ids=["behind", "in front"])
def test_padding_in_a_span_counts_nothing(llama, mask):
    _, inputs, xmodel = llama
    padded = {**inputs, "attention_mask": mask}
    tokens, span = inputs["input_ids"], Span(2, 6)
    wanted = xmodel.explain(**padded, target=spans_by_hand(tokens, [2, 2], [6, 6], mask))
    alike(xmodel.explain(**padded, target=span), wanted)
    alike(xmodel.lower(**padded, target=Span(1, 2))(**padded, target=span), wanted)
    alone = mask[1].bool()
    single = xmodel.explain(input_ids=tokens[1:, alone], target=Span(2, 4) if mask[1, 0] else Span(1, 3))
    same(wanted.relevance["input_ids"][1:, alone], single.relevance["input_ids"], 1e-8)


@pytest.mark.slow
def test_spans_of_an_encoder_decoder_are_the_decoders():
    model, inputs = build("flan-t5")
    xmodel = lrp_fx.convert(model, **inputs)
    tokens = inputs["decoder_input_ids"]
    start, end = [1] * len(tokens), [tokens.shape[1]] * len(tokens)
    assert xmodel.current.reading.tokens[0] == "decoder_input_ids"
    alike(
        xmodel.explain(**inputs, target=Span(1)),
        xmodel.explain(**inputs, target=spans_by_hand(tokens, start, end)),
        1e-8,
    )


@pytest.mark.parametrize(
    "wrong", [Span(0, 3), Span(3, 3), Span(4, 2), Span(2, 8), Span(-7), Span([1, 2, 3]), Span(2, [3, 9])]
)
def test_spans_outside_of_the_text_are_refused(llama, wrong):
    _, inputs, xmodel = llama
    with pytest.raises(TargetError):
        xmodel.explain(**inputs, target=wrong)
    with pytest.raises(TargetError):
        xmodel.explain(**inputs, targets=[1, wrong])
    with pytest.raises(TargetError):
        xmodel.lower(**inputs, target=Span(1, 2))(**inputs, target=wrong)


class Pooled(nn.Module):
    """(B, S) ids -> (B, classes)."""

    def __init__(self, classes, after=None):
        super().__init__()
        self.embed, self.head, self.after = nn.Embedding(20, 8), nn.Linear(8, classes), after

    def forward(self, tokens):
        logits = self.head(self.embed(tokens).mean(1))
        return logits if self.after is None else self.after(logits)


def test_shares_of_a_softmax_have_no_log_probability_of_their_own():
    """Of logarithms of shares a softmax makes the same shares; of the shares themselves it would make others."""
    torch.manual_seed(0)
    tokens = ids(2, 6, 3, 19)
    logits = Pooled(20).double()
    logs, shares = Pooled(20, lambda z: z.log_softmax(-1)).double(), Pooled(20, lambda z: z.softmax(-1)[:, :]).double()
    for model in (logs, shares):
        model.load_state_dict(logits.state_dict())
    wanted = lrp_fx.convert(logits).explain(tokens=tokens, target=LogProb(3)).target
    same(lrp_fx.convert(logs).explain(tokens=tokens, target=LogProb(3)).target, wanted)
    xmodel = lrp_fx.convert(shares)
    same(xmodel.explain(tokens=tokens, target=3).target, wanted.exp())
    for target in ("log_prob", Probability(3)):
        with pytest.raises(TargetError, match="returns probabilities"):
            xmodel.explain(tokens=tokens, target=target)
        with pytest.raises(TargetError, match="returns probabilities"):
            xmodel.lower(tokens=tokens, target=target)


def test_embeddings_in_place_of_ids(llama):
    model, inputs, _ = llama
    xmodel = lrp_fx.convert(model)
    rows = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach()}
    by_ids, by_rows = xmodel.explain(**inputs, target="contrast"), xmodel.explain(**rows, target="contrast")
    same(by_rows.target, by_ids.target)
    same(by_rows.relevance["inputs_embeds"].sum(-1), by_ids.relevance["input_ids"])
    with pytest.raises(TargetError, match="input ids"):
        xmodel.explain(**rows, target=Span(1, 3))


@pytest.mark.slow
def test_generated_tokens_by_their_contrast(llama):
    model, inputs, xmodel = llama
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    for target, form in (("contrast", Contrast), (Contrast(foil=5), None), (None, Logit)):
        found = xmodel.explain_generation(inputs["input_ids"], max_new_tokens=3, target=target)
        for i, t in enumerate(range(found.start, found.sequences.shape[1])):
            said = found.sequences[:, t]
            one = xmodel.explain(
                input_ids=found.sequences[:, :t], target=Contrast(said, 5) if form is None else form(said)
            )
            same(found.relevance["input_ids"][:, i, :t], one.relevance["input_ids"])
            same(found.target[:, i], one.target)
    for wrong in (3, Contrast(3), Logit(position=2), Span(1, 2), "contras"):
        with pytest.raises(TargetError):
            xmodel.explain_generation(inputs["input_ids"], max_new_tokens=3, target=wrong)


def test_targets_that_are_none_are_refused_with_the_choices(llama):
    _, inputs, xmodel = llama
    with pytest.raises(TargetError, match=r"did you mean 'contrast'.*'logit', 'contrast', 'log_prob', 'probability'"):
        xmodel.explain(**inputs, target="contast")
    for wrong in (
        "",
        "Contrast",
        Contrast,
        Contrast("a"),
        LogProb(True),
        LogProb(100),
        Probability(1, position=9),
        Logit(0.5),
    ):
        for explain in (
            lambda target: xmodel.explain(**inputs, target=target),
            lambda target: xmodel.explain(**inputs, targets=[1, target]),
            lambda target: xmodel.lower(**inputs, target=target)(**inputs),
        ):
            with pytest.raises(TargetError):
                explain(wrong)
    classifier = lrp_fx.convert(Pooled(3).double())
    for wrong in (Contrast(1, position=0), Span(1, 2)):
        with pytest.raises(TargetError):
            classifier.explain(tokens=ids(2, 6, 3, 19), target=wrong)
    one_value = lrp_fx.convert(nn.Linear(3, 1))
    with pytest.raises(TargetError):
        one_value.explain(torch.randn(2, 3), target="pixels")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_double(dtype):
    model, inputs = build("llama2", dtype)
    exact, _ = build("llama2")
    exact.load_state_dict(model.state_dict())
    xmodel, reference = lrp_fx.convert(model), lrp_fx.convert(exact.double())
    for target in (Contrast(5), LogProb(5), Probability(5), Span(2, 5)):
        found, wanted = xmodel.explain(**inputs, target=target), reference.explain(**inputs, target=target)
        assert found.target.dtype == dtype
        same(found.target.double(), wanted.target, 0.05)
        same(found.relevance["input_ids"].double(), wanted.relevance["input_ids"], 0.1)


@pytest.mark.slow
def test_saved_graphs_take_named_targets(llama, tmp_path):
    _, inputs, xmodel = llama
    xmodel.save(tmp_path / "named.pt2", **inputs, target=Contrast(3))
    loaded = lrp_fx.load(tmp_path / "named.pt2")
    same(
        loaded(**inputs, target=Contrast(5)).relevance["input_ids"],
        xmodel.explain(**inputs, target=Contrast(5)).relevance["input_ids"],
    )
    with pytest.raises(TargetError):
        loaded(**inputs, target=LogProb(5))


@pytest.mark.slow
def test_a_compiled_graph_serves_the_same_target_by_its_name(llama):
    model, inputs, _ = llama
    xmodel = lrp_fx.convert(model)
    graph = xmodel.lower(**inputs)
    call = xmodel.example((), inputs)[1]
    assert graph.serves(call, "logit") and graph.serves(call, None) and not graph.serves(call, "contrast")
