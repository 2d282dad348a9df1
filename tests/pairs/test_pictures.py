"""Pictures of pairs: the strongest pair has the widest line, padding is left out, the whole matrix is there."""

import pickle
import re
from dataclasses import replace

import pytest
import torch

import lrp_fx
from lrp_fx.errors import InputError
from lrp_fx.pairs import PairAttribution, draw_connections, draw_pairs, pairs_page
from lrp_fx.results import Context, Tokens, document, storage
from lrp_fx.viz.colours import background
from lrp_fx.viz.figures import fractions


def attribution(**fields):
    table = torch.zeros(1, 4, 5, dtype=torch.float64)
    table[0, 0, 1], table[0, 1, 0], table[0, 1, 3], table[0, -1, -1] = 2.0, -0.5, 9.0, 0.25
    shown = (torch.tensor([[True, True, False]]), torch.tensor([[True, True, True, False]]))
    texts = {"first": ["the", "<cat>", "[PAD]"], "second": ["a", "kitten", "sat", "[PAD]"]}
    context = Context(tokens={side: (Tokens.plain(listed),) for side, listed in texts.items()})
    fields = {"masks": shown, "context": context, **fields}
    return PairAttribution.of_table(table, table.sum((1, 2)), "dot", "attnlrp", **fields)


def test_matrix_shows_every_pair_and_the_rests():
    (axes,) = draw_pairs(attribution()).axes
    pixels = axes.images[0].get_array()
    assert pixels.shape[:2] == (3, 4)  # padding is left out
    assert tuple(pixels[0, 1]) == fractions(background(1))  # the strongest pair, full red
    assert pixels[1, 0][2] > pixels[1, 0][0]  # against: blue
    assert [t.get_text() for t in axes.get_yticklabels()] == ["the", "<cat>", "rest"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "kitten", "sat", "rest"]
    assert "dot 10.75" in axes.get_xlabel()


def test_lines_join_the_strongest_pairs():
    (axes,) = draw_connections(attribution(), lines=2).axes
    words = {t.get_text(): t.get_position() for t in axes.texts}
    weak, strong = axes.lines
    assert strong.get_linewidth() > weak.get_linewidth()
    for line, pair in ((strong, ("the", "kitten")), (weak, ("<cat>", "a"))):
        (x, y), (u, v) = line.get_xydata()
        assert [x, u] == [words[word][0] for word in pair]
        assert 1 > y > v > 0  # between the words, not across them
    assert strong.get_color()[0] > strong.get_color()[2] and weak.get_color()[0] < weak.get_color()[2]


def test_lines_join_patches_of_images():
    table = torch.zeros(1, 5, 5)
    table[0, 3, 0] = 1.0
    shown = (torch.ones(1, 4, dtype=torch.bool),) * 2
    images = torch.rand(2, 1, 8, 8)
    found = PairAttribution.of_table(table, torch.ones(1), "cosine", "attnlrp", masks=shown, grids=((2, 2), (2, 2)))
    whole = replace(found, inputs={"first": images[:1], "second": images[1:]})
    for axes in (draw_connections(found, images=images, lines=1).axes[0], whole.plot("connections", lines=1).axes[0]):
        assert [tuple(p) for p in axes.lines[0].get_xydata()] == [(6.0, 6.0), (12.0, 2.0)]  # the second begins at 10
    with pytest.raises(InputError, match="patches"):
        draw_connections(found, images=torch.rand(2, 1, 7, 7))
    with pytest.raises(InputError, match="patches"):
        draw_connections(attribution(), images=torch.rand(2, 1, 8, 8))


def test_page_holds_words_lines_and_matrix_and_escapes():
    page = pairs_page(attribution(), title="Why?", facts={"model": "m<1>"})
    assert "<cat>" not in page and "&lt;cat&gt;" in page and "m&lt;1&gt;" in page and "[PAD]" not in page
    assert page.count("<line ") == 6  # of two words and three
    assert page.count("<rect ") == 5
    assert len(re.findall(r'<td[^>]*title="', page)) == 3 * 4
    assert "2.00" in page and "-0.50" in page and 'title="+0.25"' in page
    assert "http:" not in page and "https:" not in page


def test_nothing_to_show_is_shown_as_nothing():
    empty = attribution() * 0.0
    assert pairs_page(empty).count("<line ") == 6
    draw_pairs(empty), draw_connections(empty)


def test_features_without_tokens_have_their_number():
    assert ">2</text>" in pairs_page(attribution(context=Context())).replace(" ", "").replace("\n", "")


@pytest.fixture(scope="module")
def two():
    """Two pairs of texts; the second one has padding."""
    table = torch.arange(24.0).reshape(2, 3, 4) - 9
    shown = (torch.tensor([[True, True], [True, False]]), torch.ones(2, 3, dtype=torch.bool))
    texts = {"first": [["a", "##b"], ["c", "[PAD]"]], "second": [["x", "y", "z"]] * 2}
    tokens = {side: tuple(map(Tokens.plain, rows)) for side, rows in texts.items()}
    return PairAttribution.of_table(
        table, table.sum((1, 2)), "cosine", "attnlrp", masks=shown, context=Context(tokens=tokens), grids=(None, (1, 3))
    )


def test_a_result_is_kept(two, tmp_path):
    for name in ("pairs.safetensors", "pairs.json.gz"):
        again = lrp_fx.load_result(two.save(tmp_path / name))
        assert isinstance(again, PairAttribution) and torch.equal(again.table, two.table)
        assert (again.context.tokens, again.grids, again.kind) == (two.context.tokens, (None, (1, 3)), "cosine")
        assert torch.equal(again.shown[0], two.shown[0]) and torch.equal(again.similarity, two.similarity)
    with pytest.raises(InputError, match="holds a result of the kind PairAttribution"):
        lrp_fx.Attribution.load(tmp_path / "pairs.json.gz")


def test_files_of_the_first_version_are_read(two, tmp_path):
    """One table, and texts of features without further facts."""
    whole = two._document(True)
    about = {**whole.about, "pair_tokens": [[["a", "##b"], ["c", "[PAD]"]], [["x", "y", "z"]] * 2]}
    del about["tokens"]
    tensors = {n: t for n, t in whole.tensors.items() if n == "target" or n.startswith("shown/")}
    storage.write(document.Document(about, {**tensors, "table": two.table}), tmp_path / "old.json.gz")
    again = lrp_fx.load_result(tmp_path / "old.json.gz")
    assert torch.equal(again.table, two.table) and again.context.tokens == two.context.tokens and again.kind == "cosine"


def test_a_result_is_shown_and_drawn(two, tmp_path, capsys):
    two.show(words=False)
    printed = capsys.readouterr().out
    assert "a – z" in printed and "rest with rest" in printed and f"{float(two.similarity[0]):+.4f}" in printed
    assert two.plot(sample=0) is not None and two[0].plot("connections") is not None
    assert two.to_html().count("<svg") == 2 and two[0].save_html(tmp_path / "page.html").exists()
    assert "sample 1" in two._repr_html_() and "first with rest" in two._repr_mimebundle_()["text/html"]
    assert '"first by second"' in two.view(tmp_path / "view.html").read_text()
    with pytest.raises(InputError, match="there are 2: give sample="):
        two.plot()
    with pytest.raises(InputError, match="choose one of auto, matrix, connections"):
        two[0].plot("waterfall")


def test_a_result_is_a_result(two):
    """What every result can do: frames, sums, words, slices; the totals stay."""
    assert isinstance(two, lrp_fx.results.Result)
    torch.testing.assert_close(two.total.float(), two.similarity)
    rows = two.to_dataframe()
    inside = two.pairs[0].sum() + two.pairs[1, :1].sum()
    assert len(rows) == 2 * 3 + 1 * 3 and rows["relevance"].sum() == pytest.approx(float(inside))
    assert two.to_dataframe("category")["amount"].sum() == pytest.approx(float(two.similarity.sum()))
    words = two.merge("words")
    assert words.tokens("first")[0].texts[0] == "ab" and words.pairs.shape == (2, 2, 3)
    torch.testing.assert_close(words.total, two.total)
    torch.testing.assert_close(words.pairs[0, 0], two.pairs[0].sum(0))
    assert words.shown[0].tolist() == [[True, False], [True, False]]
    assert two[0].top(1)[0].tokens == ("ab", "x") and two[0].top(1, by="token")[0].tokens == ("a", "x")
    assert [pair.relevance < 0 for pair in two.top(1, sign=-1, by="token")] == [True]
    for change in (two * 2.0 - two, two[[1, 0]][[1, 0]], two.cpu(), pickle.loads(pickle.dumps(two))):
        torch.testing.assert_close(change.table, two.table)
    assert two.numpy()["pairs"].shape == (2, 2, 3)
    together = two.aggregate("samples")
    torch.testing.assert_close(together.table[0], two.table.sum(0))
    assert together.shown[0].tolist() == [[True, True]]
    torch.testing.assert_close(two.normalize("target").similarity, torch.ones(2))
    for wrong in (
        lambda: two.aggregate("layers"),
        two.to_shap,
        lambda: two.plot(input="x"),
        lambda: two.to_dataframe("x"),
    ):
        with pytest.raises(InputError):
            wrong()
