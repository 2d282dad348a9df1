"""Relevance maximisation against brute force; dictionaries against their definition; the gallery."""

import functools
import pickle
from types import SimpleNamespace

import pytest
import torch
from models import build
from torch import nn

import lrp_fx
from lrp_fx.concepts import DictionaryError, FeatureExplainer, collect, explain_features, reference
from lrp_fx.concepts.gallery import gallery
from lrp_fx.errors import InputError, LatentError

F64 = {"dtype": torch.float64}


class Autoencoder(nn.Module):
    """A sparse autoencoder as they are published: shared bias, ReLU or the k largest."""

    def __init__(self, width, features, k=None):
        super().__init__()
        self.enc, self.dec, self.k = nn.Linear(width, features, **F64), nn.Linear(features, width, **F64), k

    def encode(self, x):
        f = torch.relu(self.enc(x - self.dec.bias))
        if self.k is None:
            return f
        values, ids = f.topk(self.k, dim=-1)
        return torch.zeros_like(f).scatter(-1, ids, values)

    def decode(self, f):
        return self.dec(f)


class Bottleneck(nn.Module):
    """All relevance flows through ``embed``."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(5, 8, **F64), nn.Linear(8, 8, **F64), nn.Linear(8, 4, **F64)

    def forward(self, x):
        h = self.embed(x)
        return self.head((h + torch.nn.functional.gelu(self.mix(h))).mean(1))


@functools.cache
def bottleneck():
    torch.manual_seed(0)
    model, x = Bottleneck().eval(), torch.randn(2, 6, 5, **F64)
    return model, x, lrp_fx.convert(model, x, rules="attnlrp")


@functools.cache
def llama():
    model, inputs = build("llama2")
    torch.manual_seed(1)
    return model, torch.randint(3, 99, (23, 7)), lrp_fx.convert(model, **inputs, rules="attnlrp")


@functools.cache
def convnet():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 3)
    model = nn.Sequential(*layers).double()
    images = torch.randn(19, 3, 8, 8, **F64)
    return model, images, lrp_fx.convert(model, images[:2], rules="attnlrp")


def trained(width, features, latents, steps=150):
    """An autoencoder that has learned these latents, so that most of its relevance is in features."""
    torch.manual_seed(0)
    sae = Autoencoder(width, features)
    adam = torch.optim.Adam(sae.parameters(), 1e-2)
    for _ in range(steps):
        f = sae.encode(latents)
        loss = (sae.decode(f) - latents).square().sum(-1).mean() + 0.01 * f.sum(-1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return sae


@pytest.mark.parametrize("pool", ["sum", "max"])
@pytest.mark.parametrize("by", ["relevance", "activation"])
def test_collections_are_what_brute_force_finds(by, pool):
    model, ids, xmodel = llama()
    found = collect(
        xmodel, {"input_ids": ids}, at="model.layers.1.mlp", by=by, pool=pool, top=4, batch=5, progress=False
    )
    if by == "relevance":
        values = xmodel.explain(input_ids=ids, at="model.layers.1.mlp").latents["model.layers.1.mlp"]
    else:
        kept = []
        hook = model.model.layers[1].mlp.register_forward_hook(lambda m, i, o: kept.append(o.detach()))
        model(input_ids=ids)
        hook.remove()
        values = kept[0]
    scores = values.sum(1) if pool == "sum" else values.amax(1)
    assert found.count == 23 and set(found.samples) <= set(range(23))
    for neuron in range(32):
        best = scores[:, neuron].sort(descending=True, stable=True)
        hits = found.top(neuron)
        assert [h.sample.index for h in hits] == best.indices[:4].tolist()
        assert [h.score for h in hits] == pytest.approx(best.values[:4].tolist(), abs=1e-9)
        assert all(torch.equal(h.sample.inputs["input_ids"][0], ids[h.sample.index]) for h in hits)


def test_collections_of_channels_with_a_target_per_sample_from_a_stream():
    _, images, xmodel = convnet()
    targets = torch.arange(19) % 3
    stream = ({"input": images[i : i + 4]} for i in range(0, 19, 4))
    found = collect(xmodel, stream, at=["0", "2"], top=30, target=targets, progress=False)
    whole = xmodel.explain(images, at=["0", "2"], target=targets)
    for path, width in (("0", 4), ("2", 5)):
        scores = whole.latents[path].sum((2, 3))
        for channel in range(width):
            hits = found.top(channel, path)
            assert [h.sample.index for h in hits] == scores[:, channel].argsort(descending=True).tolist()
            assert all(int(h.sample.target) == h.sample.index % 3 for h in hits)


def test_only_ranked_samples_are_held():
    _, ids, xmodel = llama()
    found = collect(xmodel, {"input_ids": ids}, at="lm_head", top=1, batch=6, target=7, progress=False)
    assert set(found.samples) == set(found.rankings["lm_head"].samples.unique().tolist())


def test_padding_is_no_activation():
    model, inputs = build("bert")
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    ids = inputs["input_ids"]
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
    place = "bert.encoder.layer.0.output"
    found = collect(
        xmodel, {"input_ids": ids, "attention_mask": mask}, at=place, by="activation", pool="max", top=2, progress=False
    )
    short = collect(xmodel, {"input_ids": ids[1:, :4], "attention_mask": mask[1:, :4]}, at=place, by="activation",
                    pool="max", top=1, progress=False)  # fmt: skip
    for neuron in range(32):
        padded = next(h.score for h in found.top(neuron) if h.sample.index == 1)
        assert padded == pytest.approx(short.top(neuron)[0].score, abs=1e-9)


def test_references_are_conditional_explanations():
    _, ids, xmodel = llama()
    found = collect(xmodel, {"input_ids": ids}, at="model.layers.0.mlp", top=2, progress=False)
    for item in reference(xmodel, found, 3):
        index = item.hit.sample.index
        whole = xmodel.explain(input_ids=ids, condition={"model.layers.0.mlp": 3})
        torch.testing.assert_close(
            item.relevance["input_ids"][0], whole.relevance["input_ids"][index], rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("pool", ["sum", "max"])
def test_references_of_activations_explain_the_activation(pool):
    model, x, xmodel = bottleneck()
    found = collect(xmodel, {"x": x}, at="embed", by="activation", pool=pool, top=2, progress=False)
    for item in reference(xmodel, found, 5):
        value = x[item.hit.sample.index]
        expected = value * model.embed.weight[5].detach()
        if pool == "max":
            best = model.embed(value)[:, 5].argmax()
            expected = torch.where(torch.arange(6)[:, None] == best, expected, 0.0)
        torch.testing.assert_close(item.relevance["x"][0], expected, rtol=1e-9, atol=1e-12)


def test_what_was_not_collected_is_named():
    _, x, xmodel = bottleneck()
    found = collect(xmodel, {"x": x}, at=["embed", "mix"], top=1, progress=False)
    with pytest.raises(LatentError, match="choose one of"):
        found.top(0)
    with pytest.raises(LatentError, match="give one of 0 to 7"):
        found.top(8, "mix")
    with pytest.raises(InputError, match="no sample"):
        collect(xmodel, [], at="embed", progress=False)
    with pytest.raises(InputError, match="same number of samples"):
        collect(xmodel, {"x": x, "y": x[:1]}, at="embed", progress=False)


@pytest.mark.parametrize("rules", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("k", [None, 6])
def test_features_error_and_bias_sum_to_the_relevance_of_the_latent(k, rules):
    _, ids, xmodel = llama()
    torch.manual_seed(0)
    sae = Autoencoder(32, 80, k)
    found = explain_features(xmodel, sae, input_ids=ids[:3], at="model.layers.0", rules=rules, target=4)
    latent = xmodel.explain(input_ids=ids[:3], at="model.layers.0", rules=rules, target=4).latents["model.layers.0"]
    torch.testing.assert_close(found.latent, latent, rtol=1e-9, atol=1e-12)
    total = found.features.sum(-1) + found.error.sum(-1) + found.bias.sum(-1)
    torch.testing.assert_close(total, latent.sum(-1), rtol=1e-9, atol=1e-12)
    assert found.features.shape == (3, 7, 80) and bool((found.features[found.activations == 0] == 0).all())
    assert float(found.features.abs().max()) > 1e-4


def test_a_feature_is_its_direction_times_the_cotangent():
    """By hand: the gradient of the head at the latent, the activation's slope held constant."""
    model, x, xmodel = bottleneck()
    sae = trained(8, 12, model.embed(x).detach())
    found = explain_features(xmodel, sae, x, at="embed", target=2)
    with torch.no_grad():
        h = model.embed(x)
        z = model.mix(h)
        w = model.head.weight[2] / 6
        g = w + ((torch.nn.functional.gelu(z) / z) * w) @ model.mix.weight
        f = sae.encode(h)
        torch.testing.assert_close(found.features, f * (g @ sae.dec.weight), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.error, (h - sae.decode(f)) * g, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.bias, sae.dec.bias * g, rtol=1e-9, atol=1e-12)
    assert float(found.error.abs().sum()) < 0.3 * float(found.latent.abs().sum())  # it has learned something


def test_features_and_error_sum_at_the_inputs_to_the_unconditional_relevance():
    model, x, xmodel = bottleneck()
    sae = trained(8, 12, model.embed(x).detach())
    explainer = FeatureExplainer.place(xmodel, sae, "embed")
    found = explainer.explain(x, target=2)
    parts = [found.to_inputs(i)["x"] for i in range(12)]
    total = sum(parts) + found.error_to_inputs()["x"]
    torch.testing.assert_close(total, xmodel.explain(x, target=2).relevance["x"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.to_inputs([1, 4, -1])["x"], parts[1] + parts[4] + parts[11], rtol=1e-9, atol=1e-12)
    with torch.no_grad():  # one feature by hand: through the encoder's weights where it is active, then the layer below
        h = model.embed(x)
        live = int(sae.encode(h).sum((0, 1)).argmax())
        slope = (sae.encode(h)[..., live] > 0).double()
        cotangent = found.features[..., live] / sae.encode(h)[..., live].clamp(min=1e-300) * slope
        sent = cotangent[..., None] * sae.enc.weight[live]
        torch.testing.assert_close(parts[live], x * (sent @ model.embed.weight), rtol=1e-9, atol=1e-12)


def test_features_of_channels_and_of_a_dictionary_without_modules():
    _, images, xmodel = convnet()
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 9, **F64), torch.randn(5, **F64)
    sae = SimpleNamespace(encode=lambda x: ((x - bias) @ weight).relu(), decode=lambda f: f @ weight.T + bias)
    found = explain_features(xmodel, sae, images[:2], at="2", target=1)
    whole = xmodel.explain(images[:2], at="2", target=1)
    total = found.features.sum(-1) + found.error.sum(-1) + found.bias.sum(-1)
    torch.testing.assert_close(total, whole.latents["2"].sum(1), rtol=1e-9, atol=1e-12)
    inputs = found.to_inputs(torch.ones(9, dtype=torch.bool))["input"] + found.error_to_inputs()["input"]
    torch.testing.assert_close(inputs, whole.relevance["input"], rtol=1e-9, atol=1e-12)


def test_past_a_skip_connection_the_inputs_get_what_flows_through_the_latent():
    _, ids, xmodel = llama()
    torch.manual_seed(0)
    found = explain_features(xmodel, Autoencoder(32, 40, 5), input_ids=ids[:2], at="model.layers.0.mlp", target=4)
    every = found.to_inputs(range(40))["input_ids"] + found.error_to_inputs()["input_ids"]
    none = torch.zeros(32, dtype=torch.bool)
    conditions = [{}, {"model.layers.0.mlp": none}]
    whole, past = xmodel.explain_conditions(input_ids=ids[:2], conditions=conditions, target=4)
    expected = whole.relevance["input_ids"] - past.relevance["input_ids"]
    torch.testing.assert_close(every, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "sae, message",
    [
        (SimpleNamespace(encode=torch.relu, decode=torch.tanh), "not affine"),
        (SimpleNamespace(encode=torch.relu, decode=lambda f: f[..., :3]), "decodes to"),
        (Autoencoder(7, 9), "cannot read"),
        (Autoencoder(8, 9).float(), "cannot read"),
    ],
)
def test_dictionaries_that_do_not_fit_are_named(sae, message):
    _, x, xmodel = bottleneck()
    with pytest.raises(DictionaryError, match=message):
        explain_features(xmodel, sae, x, at="embed")


def test_features_and_places_that_do_not_exist_are_named():
    _, x, xmodel = bottleneck()
    with pytest.raises(DictionaryError, match="give some of 0 to 8"):
        explain_features(xmodel, Autoencoder(8, 9), x, at="embed").to_inputs(9)
    with pytest.raises(LatentError, match="one place"):
        explain_features(xmodel, Autoencoder(8, 9), x, at="*")


def test_a_gallery_shows_no_padding():
    _, ids, xmodel = llama()
    mask = torch.ones_like(ids)
    mask[:, 4:] = 0
    padded = {"input_ids": ids, "attention_mask": mask}
    found = collect(xmodel, padded, at="model.layers.0.mlp", top=2, progress=False)
    assert gallery(xmodel, found, [3]).count('class="token"') == 2 * 4


def test_a_gallery_of_tokens_and_one_of_images(tmp_path):
    _, ids, xmodel = llama()
    place = "model.layers.0.mlp"
    found = collect(xmodel, {"input_ids": ids}, at=place, top=3, progress=False)
    page = gallery(xmodel, found, [0, 9], decode=lambda row: [f"<{i}>" for i in row], path=tmp_path / "out" / "g.html")
    assert (tmp_path / "out" / "g.html").read_text() == page
    for hit in found.top(9):
        assert (
            f"#{hit.sample.index} &nbsp;{hit.score:+.3g}" in page and f"&lt;{int(ids[hit.sample.index, 0])}&gt;" in page
        )
    assert page.count('class="row"') == 6 and page.count('class="token"') == 6 * 7
    _, images, convolutional = convnet()
    pictures = gallery(
        convolutional,
        collect(convolutional, {"input": images}, at="0", top=2, progress=False),
        {"0": [1, 3]},
        samples=1,
    )
    assert pictures.count("data:image/png;base64,") == 4
    with pytest.raises(InputError, match="input_ids"):
        gallery(xmodel, found, [0], input="nothing")


@pytest.fixture(scope="module")
def embedded():
    _, x, xmodel = bottleneck()
    torch.manual_seed(0)
    return explain_features(xmodel, Autoencoder(8, 12), x, at="embed", target=2)


def test_relevance_of_features_is_kept_shown_and_drawn(embedded, tmp_path, capsys):
    for name in ("features.safetensors", "features.json.gz"):
        again = lrp_fx.load_result(embedded.save(tmp_path / name))
        assert type(again) is type(embedded) and again.ruleset == embedded.ruleset == "attnlrp"
        for part in ("features", "error", "bias", "target", "latent", "activations", "reconstruction"):
            assert torch.equal(getattr(again, part), getattr(embedded, part))
        with pytest.raises(LatentError, match="explain again"):
            again.to_inputs(0)
    best = embedded[0].top(1)[0]
    embedded.show()
    printed = capsys.readouterr().out
    assert best.text == f"feature {best.position}" in printed and "beside the latent" in printed and "error" in printed
    assert f"latent {float(embedded.latent.sum()):.4g}" in embedded.plot(k=3).axes[0].get_xlabel()
    assert embedded[0].plot("waterfall") is not None and "sample 1" in embedded._repr_html_()
    assert "features by position" in embedded.view(tmp_path / "view.html").read_text()
    with pytest.raises(InputError, match="auto, bar, waterfall"):
        embedded.plot("image")


def test_positions_of_features_have_their_tokens(tmp_path):
    import words

    from lrp_fx.results import viewer_data

    xmodel = lrp_fx.convert(words.model().double(), tokenizer=words.tokenizer())
    torch.manual_seed(0)
    explainer = FeatureExplainer.place(xmodel, Autoencoder(16, 20), "bert.encoder.layer.0")
    texts = ["w3 w1 w4", "w5"]
    found = explainer.explain(texts, target=1)
    columns = [sample["matrices"][0]["columns"] for sample in viewer_data(found, "a name")["samples"]]
    assert columns == [["[CLS]", "w3", "w1", "w4", "[SEP]"], ["[CLS]", "w5", "[SEP]"]]
    assert set(found[1].to_dataframe()["token"]) <= {"[CLS]", "w5", "[SEP]", "[PAD]"}
    again = lrp_fx.load_result(found.save(tmp_path / "features.json.gz"))
    assert again[1].context.tokens == found[1].context.tokens
    encoded = words.tokenizer()(texts, padding=True, return_tensors="pt")
    assert explainer.explain(**encoded, target=1).context.tokens["features"][0].texts == tuple(columns[0])
    numbered = FeatureExplainer.place(lrp_fx.convert(xmodel.model), explainer.dictionary, explainer.at)
    assert numbered.explain(**encoded, target=1).context.tokens["features"][1].texts[:3] == ("2", "9", "3")


def test_files_of_the_first_version_have_flat_names(embedded, tmp_path):
    from lrp_fx.results import document, storage

    names = ("features", "error", "bias", "latent", "activations", "reconstruction", "target")
    tensors = {name: getattr(embedded, name) for name in names}
    storage.write(document.Document(embedded._document(True).about, tensors), tmp_path / "old.json.gz")
    again = lrp_fx.load_result(tmp_path / "old.json.gz")
    assert all(torch.equal(getattr(again, name), tensors[name]) for name in names)


def test_features_are_a_result(embedded):
    """What every result can do; the totals stay, and relevance at the inputs follows."""
    assert isinstance(embedded, lrp_fx.results.Result)
    rows = embedded.to_dataframe()
    assert rows["relevance"].sum() == pytest.approx(float(embedded.features.sum()))
    assert set(rows["feature"]) <= set(range(12))
    assert sum(embedded.amounts().values()) == pytest.approx(float(embedded.target.sum()))
    assert embedded.to_dataframe("category")["amount"].sum() == pytest.approx(float(embedded.target.sum()))
    largest = embedded[0].features.reshape(-1, 12).sum(0).abs().max()
    assert abs(embedded.top(1)[0].relevance) == pytest.approx(float(largest))
    assert [share.sample for share in embedded.top(1)] == list(range(len(embedded)))
    named = embedded.knowing(features={"features": [f"idea {i}" for i in range(12)]})
    assert named.top(1)[0].text.startswith("idea ")
    whole = embedded.to_inputs(3)["x"]
    torch.testing.assert_close(embedded[1:2].to_inputs(3)["x"], whole[1:2])
    torch.testing.assert_close(embedded[1:].to_inputs(embedded[1:].features > 0)["x"], embedded.to_inputs(
        (embedded.features > 0) & (torch.arange(len(embedded)) > 0).reshape(-1, *[1] * (embedded.features.dim() - 1))
    )["x"][1:])  # fmt: skip
    torch.testing.assert_close((embedded * 3 - embedded).to_inputs(3)["x"], 2 * whole)
    torch.testing.assert_close(embedded.aggregate("samples").to_inputs(3)["x"], whole.sum(0, keepdim=True))
    assert embedded.to(torch.float32).to_inputs(3)["x"].dtype is torch.float32
    torch.testing.assert_close(pickle.loads(pickle.dumps(embedded)).features, embedded.features)
    for wrong in (lambda: embedded.aggregate("layers"), lambda: embedded.merge("words")):
        with pytest.raises(InputError):
            wrong()
    with pytest.raises(LatentError, match="dropped"):
        embedded.without_inputs().activations  # noqa: B018
