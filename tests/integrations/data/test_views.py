"""Views of whole runs: clusters of maps (SpRAy), prototypes of concepts (PCX), relevance by word, neuron and head."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import adjusted_rand_score
from watermark import LABELS, images, pixels_of, trained
from words import model, texts, tokenizer

import lrp_fx
from lrp_fx import concepts
from lrp_fx.errors import InputError, LatentError

COUNT = 240


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """(runs by rules, which images have the watermark): the images are files, and one more is broken."""
    home = tmp_path_factory.mktemp("watermark")
    pixels, _, has_mark = images(COUNT)
    (home / "images").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(home / "images" / f"{number:03d}.png")
    (home / "images" / "001.png").write_bytes(b"broken")
    net = trained()
    for rules in ("default", "attnlrp"):
        lrp_fx.run(
            net, home / "images", out=home / rules, image_processor=pixels_of, labels=LABELS, at="3", rules=rules,
            progress=False, rows_per_shard=100,
        )  # fmt: skip
    return home, has_mark


@pytest.mark.parametrize(("rules", "clusters"), [("default", 2), ("attnlrp", None)])
def test_spray_finds_the_watermark(rules, clusters, marked):
    home, has_mark = marked
    found = concepts.spray(home / rules, clusters=clusters)
    assert found.keys() == set(LABELS)
    vertical = found["vertical"]
    assert 1 not in vertical.rows and len(vertical) == 2
    assert adjusted_rand_score(has_mark[vertical.rows], vertical.labels) >= 0.9
    (cluster,) = {int(label) for label in vertical.labels[has_mark[vertical.rows]]}
    mean = np.abs(vertical.mean(cluster))
    assert mean[-4:-1, -4:-1].sum() > 0.5 * mean.sum()
    other = np.abs(vertical.mean(1 - cluster))
    assert other[-4:-1, -4:-1].sum() < 0.2 * other.sum()
    assert set(vertical.members(0)) | set(vertical.members(1)) == set(vertical.rows)


def test_clusters_of_few_rows_of_small_maps_and_their_picture(marked, tmp_path):
    home, has_mark = marked
    few = concepts.spray(home / "attnlrp", size=8, most=60, clusters=2, embedding="tsne")["vertical"]
    assert len(few.rows) == 60 and few.maps.shape == (60, 8, 8) and few.places.shape == (60, 2)
    assert adjusted_rand_score(has_mark[few.rows], few.labels) >= 0.9
    np.testing.assert_allclose(np.abs(few.maps).sum((1, 2)), 1)
    few.plot().savefig(tmp_path / "clusters.png")
    pixels = np.asarray(Image.open(tmp_path / "clusters.png").convert("RGB"))
    assert (pixels != 255).any((1, 2)).mean() > 0.5
    with pytest.raises(InputError, match="choose one of spectral, tsne, umap"):
        concepts.spray(home / "attnlrp", embedding="pca")
    with pytest.raises(InputError, match="no run in"):
        concepts.spray(tmp_path)


def test_prototypes_tell_images_with_the_watermark_from_others(marked, tmp_path):
    home, has_mark = marked
    found = concepts.prototypes(home / "default", "3", components=2)
    one = found.classes["vertical"]
    shares = [has_mark[one.rows[one.members == k]].mean() for k in (0, 1)]
    assert sorted(shares) == [0, 1] and one.coverage.sum() == pytest.approx(1)
    with_mark = int(np.argmax(shares))
    assert all(has_mark[one.rows[one.nearest(with_mark, 3)]])
    scaled = found.run.latent("3") / np.abs(found.run.latent("3")).sum(1, keepdims=True)
    place = one.nearest(with_mark)[0]
    np.testing.assert_allclose(one.concepts[place], scaled[found.run.numbers == one.rows[place]][0])
    likely = found.likelihoods(found.run.latent("3"))
    better = likely["vertical"] > likely["horizontal"]
    assert (better == (found.run.predictions == "vertical")).mean() > 0.95
    assert likely["vertical"][found.run.numbers == one.rows[one.deviating(1)[0]]] == one.likelihood.min()
    page = found.gallery(tmp_path / "page.html", samples=2)
    assert (tmp_path / "page.html").read_text() == page
    assert page.count("data:image/png;base64,") == 2 * 3 * 2 * 2 and f"#{one.rows[place]} " in page
    with pytest.raises(LatentError, match="there are 3"):
        concepts.prototypes(home / "default", "5")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A run of texts with relevance of feed-forward neurons and of heads."""
    out = tmp_path_factory.mktemp("reviews")
    explainer = lrp_fx.Explainer(
        model(), tokenizer=tokenizer(), at=("bert.encoder.layer.0", "bert.encoder.layer.0.attention.self@mixed")
    )
    lrp_fx.run(explainer, [*texts(30), None], out=out, progress=False)
    return out, explainer.xmodel


def test_relevance_by_word_over_a_data_set(reviews, tmp_path):
    out, xmodel = reviews
    view = concepts.global_view(out, "words")
    expected = {}
    for text in texts(30):
        one = xmodel.explain(text)
        for word, special, amount in zip(
            one.tokens()[0].texts, one.tokens()[0].special, one.relevance["input_ids"][0].tolist(), strict=True
        ):
            if not special:
                expected.setdefault(word, []).append(amount)
    rows = {row["name"]: row for row in view.rows()}
    assert rows.keys() == {word for word, amounts in expected.items() if len(amounts) >= 5} and len(rows) > 20
    for word, row in rows.items():
        assert row["count"] == len(expected[word])
        assert row["mean"] == pytest.approx(np.mean(expected[word]), rel=1e-3, abs=1e-6)
        assert row["magnitude"] == pytest.approx(np.abs(expected[word]).mean(), rel=1e-3, abs=1e-6)
    assert list(view.magnitude) == sorted(view.magnitude, reverse=True)
    for kind in ("beeswarm", "bars"):
        labels = [label.get_text() for axes in view.plot(kind, top=4).axes for label in axes.get_yticklabels()]
        assert [label.partition(" ")[0] for label in labels][:4] == list(view.names[:4])


def test_relevance_by_neuron_and_by_head(reviews):
    out, xmodel = reviews
    run = concepts.ExplainedRun.open(out)
    neurons, heads = run.latents
    one = xmodel.explain(texts(30)[7], at=(neurons, heads))
    np.testing.assert_allclose(run.latent(neurons)[7], one.latents[neurons][0].sum(0), rtol=1e-3, atol=1e-5)
    assert run.latent(heads).shape == (30, 2) and run.latent(neurons).shape == (30, 16)
    np.testing.assert_allclose(run.latent(heads)[7].sum(), one.latents[heads].sum(), rtol=1e-3, atol=1e-5)
    view = concepts.global_view(run, neurons)
    assert view.magnitude[0] == pytest.approx(np.abs(run.latent(neurons)).mean(0).max())
    assert len(concepts.global_view(run, heads)) == 2
    with pytest.raises(LatentError, match="is no tensor with relevance"):
        concepts.global_view(run, None)


def test_texts_are_clustered_by_relevance_of_their_words(tmp_path):
    torch.manual_seed(0)
    planted = [f"w1 w2 {text}" if i % 2 else f"w30 w31 {text}" for i, text in enumerate(texts(16))]
    explainer = lrp_fx.Explainer(model(), tokenizer=tokenizer(), target=1)
    lrp_fx.run(explainer, planted, out=tmp_path, progress=False)
    (found,) = concepts.spray(tmp_path, clusters=2, neighbours=3).values()
    assert found.words and found.maps.shape == (16, len(found.words))
    words = {word for word, _ in found.top_words(0)} | {word for word, _ in found.top_words(1)}
    assert words & {"w1", "w2", "w30", "w31"}
    assert len(found.plot().axes) == 4
