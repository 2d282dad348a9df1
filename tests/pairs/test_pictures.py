"""Pictures of pairs: the strongest pair has the widest line, padding is left out, the whole matrix is there."""

import re

import pytest
import torch

import lrp_fx
from lrp_fx.errors import InputError
from lrp_fx.pairs import PairAttribution, draw_connections, draw_pairs, pairs_page
from lrp_fx.viz.colours import background
from lrp_fx.viz.figures import fractions


def attribution(**fields):
    table = torch.zeros(1, 4, 5, dtype=torch.float64)
    table[0, 0, 1], table[0, 1, 0], table[0, 1, 3], table[0, -1, -1] = 2.0, -0.5, 9.0, 0.25
    shown = (torch.tensor([[True, True, False]]), torch.tensor([[True, True, True, False]]))
    tokens = ([["the", "<cat>", "[PAD]"]], [["a", "kitten", "sat", "[PAD]"]])
    return PairAttribution(table, table.sum((1, 2)), "dot", "attnlrp", shown, **{"tokens": tokens, **fields})


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
    assert [tuple(p) for p in strong.get_xydata()] == [words["the"], words["kitten"]]
    assert [tuple(p) for p in weak.get_xydata()] == [words["<cat>"], words["a"]]
    assert strong.get_color()[0] > strong.get_color()[2] and weak.get_color()[0] < weak.get_color()[2]


def test_lines_join_patches_of_images():
    table = torch.zeros(1, 5, 5)
    table[0, 3, 0] = 1.0
    shown = (torch.ones(1, 4, dtype=torch.bool),) * 2
    found = PairAttribution(table, torch.ones(1), "cosine", "attnlrp", shown, None, ((2, 2), (2, 2)))
    (axes,) = draw_connections(found, images=torch.rand(2, 1, 8, 8), lines=1).axes
    assert [tuple(p) for p in axes.lines[0].get_xydata()] == [(6.0, 6.0), (12.0, 2.0)]  # the second image begins at 10
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
    empty = attribution()
    empty.table.zero_()
    empty.similarity.zero_()
    assert pairs_page(empty).count("<line ") == 6
    draw_pairs(empty), draw_connections(empty)


def test_features_without_tokens_have_their_number():
    assert ">2</text>" in pairs_page(attribution(tokens=None)).replace(" ", "").replace("\n", "")


def test_a_result_is_kept_shown_and_drawn(tmp_path, capsys):
    table = torch.arange(24.0).reshape(2, 3, 4) - 9
    shown = (torch.tensor([[True, True], [True, False]]), torch.ones(2, 3, dtype=torch.bool))
    tokens = ([["a", "b"], ["c", "[PAD]"]], [["x", "y", "z"]] * 2)
    found = PairAttribution(table, table.sum((1, 2)), "cosine", "attnlrp", shown, tokens, (None, (1, 3)))
    for name in ("pairs.safetensors", "pairs.json.gz"):
        again = lrp_fx.load_result(found.save(tmp_path / name))
        assert isinstance(again, PairAttribution) and torch.equal(again.table, found.table)
        assert (again.tokens, again.grids, again.kind, again.ruleset) == (tokens, (None, (1, 3)), "cosine", "attnlrp")
        assert torch.equal(again.shown[0], shown[0]) and torch.equal(again.similarity, found.similarity)
    with pytest.raises(lrp_fx.errors.InputError, match="holds a result of the kind PairAttribution"):
        lrp_fx.Attribution.load(tmp_path / "pairs.json.gz")
    rows = found.to_dataframe()
    assert len(rows) == 2 * 3 + 1 * 3 and rows["relevance"].sum() == pytest.approx(
        float(table[0, :2, :3].sum() + table[1, :1, :3].sum())
    )
    found.show()
    printed = capsys.readouterr().out
    assert "a - x" in printed and "other pairs" in printed and f"{float(table[0].sum()):+.4f}" in printed
    assert found.plot(sample=0) is not None and found[0].plot("connections") is not None
    assert "<table" in found[1].to_html() and found[0].save_html(tmp_path / "page.html").exists()
    with pytest.raises(lrp_fx.errors.InputError, match="there are 2: give sample="):
        found.plot()
    with pytest.raises(lrp_fx.errors.InputError, match="choose one of auto, matrix, connections"):
        found[0].plot("waterfall")
