"""Heatmaps: colours, words, pages."""

import re

import pytest

from lrp_fx.viz import Word, heatmap_page, join_pieces, render_tokens, token_html, write_page
from lrp_fx.viz.colours import background, foreground

WORDS = [Word("[CLS]", 0.1, special=True), Word("good", 2.0), Word("<b>bad</b>", -1.0), Word("the", 0.0)]


def test_scale_is_symmetric_around_white():
    assert background(0) == (255, 255, 255)
    assert background(1) == background(5) and background(-1) == background(-5)
    red, blue = background(0.5), background(-0.5)
    assert red[0] > red[2] and blue[2] > blue[0]


def test_text_stays_readable():
    assert foreground(background(0)) == (0, 0, 0)
    assert foreground(background(1)) == (255, 255, 255)


def test_pieces_join_to_words_and_keep_their_sum():
    text = "unbelievable film"
    offsets, words = [(0, 0), (0, 2), (2, 12), (13, 17), (0, 0)], [None, 0, 0, 1, None]
    joined = join_pieces(text, offsets, words, [0.5, 1.0, 2.0, -1.0, 0.25])
    assert [w.text for w in joined if not w.special] == ["unbelievable", "film"]
    assert [w.relevance for w in joined] == [0.5, 3.0, -1.0, 0.25]


def test_pieces_that_hold_their_space_begin_words():
    """Byte-level tokenizers number a whole sentence as one word and keep spaces inside their pieces."""
    text = "an unbeliev able film"
    offsets = [(0, 2), (2, 6), (6, 11), (11, 16), (16, 21)]
    joined = join_pieces(text, offsets, [0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert [(w.text, w.relevance) for w in joined] == [("an", 1.0), ("unbeliev", 5.0), ("able", 4.0), ("film", 5.0)]


def test_terminal_colours_follow_the_sign():
    text = render_tokens(WORDS)
    styles = {text.plain[s.start : s.end].strip(): s.style for s in text.spans}
    assert styles["good"].bgcolor.triplet.red > styles["good"].bgcolor.triplet.blue
    assert styles["<b>bad</b>"].bgcolor.triplet.blue > styles["<b>bad</b>"].bgcolor.triplet.red


def test_page_shows_everything_and_escapes(tmp_path):
    page = heatmap_page(WORDS, title="Why?", facts={"model": "m<1>"}, ledger={"input": 1.1, "bias": 0.4})
    assert "<b>bad</b>" not in page and "&lt;b&gt;bad&lt;/b&gt;" in page and "m&lt;1&gt;" in page
    assert 'title="+2"' in page and "+1.500" in page  # the relevance of a word; the sum of the ledger
    assert "http" not in re.sub(r"xmlns=\S+", "", page)  # self-contained
    assert write_page(tmp_path / "x.html", page).read_text() == page


def test_fragment_for_notebooks():
    assert token_html(WORDS).count("<span") == 4


@pytest.mark.parametrize("words", [[], [Word("the", 0.0)]])
def test_no_relevance_at_all(words):
    assert "<main>" in heatmap_page(words, title="t", facts={}, ledger={})
