"""One look: colours, terminal, pages, figures."""

import itertools
import re

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from rich.console import Console

from lrp_fx.viz import Panel, Text, Word, fragment, page, render_tokens, visible, write_page
from lrp_fx.viz.amount_plots import draw_bars, draw_waterfall
from lrp_fx.viz.array_plots import draw_image, draw_series, draw_spectrogram, draw_waveform
from lrp_fx.viz.colours import background, foreground
from lrp_fx.viz.figures import colour_map, plain
from lrp_fx.viz.terminal import printed, render_sample, top_table
from lrp_fx.viz.text_plots import draw_matrix, draw_tokens

HOSTILE = "<script>alert(1)</script> $\\frac{"
WORDS = [Word("[CLS]", 0.1, special=True), Word("good", 2.0), Word("<b>bad</b>", -1.0), Word("the", 0.0)]


def test_the_scale_is_matplotlibs():
    """...so that a page, a terminal and a figure show one colour for one number."""
    theirs, ours = matplotlib.colormaps["RdBu_r"], colour_map()
    for share in np.linspace(-1, 1, 41):
        wanted = np.array(theirs((share + 1) / 2)[:3]) * 255
        assert np.abs(np.array(background(share)) - wanted).max() < 3
        assert np.abs(np.array(ours((share + 1) / 2)[:3]) * 255 - wanted).max() < 3
    assert background(1) == background(5) and background(-1) == background(-5)


def test_text_stays_readable():
    assert foreground(background(0)) == (0, 0, 0)
    assert foreground(background(1)) == (255, 255, 255)


def test_terminal_colours_follow_the_sign():
    text = render_tokens(WORDS)
    styles = {text.plain[s.start : s.end].strip(): s.style for s in text.spans}
    assert styles["good"].bgcolor.triplet.red > styles["good"].bgcolor.triplet.blue
    assert styles["<b>bad</b>"].bgcolor.triplet.blue > styles["<b>bad</b>"].bgcolor.triplet.red


def test_markup_of_a_terminal_is_shown_as_text(capsys):
    console = Console(width=100)
    printed(render_sample("[red]x[/]", [("[i]", [Word("[bold]w[/bold]", 1.0)])], [], ["[b]n"]), console=console)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[red]x[/]", "[bold]w[/bold]", "note: [b]n"))


def test_white_space_is_seen(capsys):
    assert [visible(text) for text in ("\n", " \n\n", "\t", "  ", "", "a\n")] == [
        "\\n",
        "\\n\\n",
        "\\t",
        "·",
        "·",
        "a\n",
    ]
    words = [Word("Tokyo", 1.0), Word("\n", 0.5), Word("The", 0.25)]
    printed(render_tokens(words), top_table(words), console=Console(width=60))
    out = capsys.readouterr().out
    assert " Tokyo  \\n \n The " in out and re.search(r"^\\n +\+0.5000", out, re.M)  # the line goes on where it did
    html = page([Panel(texts=[Text(words)])], "t")
    assert html.count("\\n") >= 2 and plain("\n") == "\\n"


@pytest.mark.parametrize(("special", "scales"), [(True, 0), (False, 1)])
def test_no_scale_where_nothing_has_a_colour(special, scales, capsys):
    words = [Word("<s>", 1.0, True), Word("word", 0.5, special)]
    printed(render_sample("", [("", words)], [], []), console=Console(width=60))
    assert ("+0.5" in capsys.readouterr().out) == bool(scales)
    assert page([Panel(texts=[Text(words)])], "t").count('class="legend"') == scales


def shown():
    notes = [HOSTILE]
    return [
        Panel(
            HOSTILE,
            {HOSTILE: "m<1>"},
            [Text(WORDS, HOSTILE), Text(WORDS, "folded", True)],
            [],
            {"input": 1.1, "bias": 0.4},
            notes,
        )
    ]


def test_pages_show_everything_and_escape(tmp_path):
    for html in (page(shown(), HOSTILE), fragment(shown(), HOSTILE)):
        assert "<b>bad</b>" not in html and "&lt;b&gt;bad&lt;/b&gt;" in html and "m&lt;1&gt;" in html
        assert "<script" not in html and "alert(1)" in html and not re.search(r"\son\w+=", html)
        assert 'title="+2"' in html and "+1.5" in html  # the relevance of a word; the sum of the ledger
        assert "http:" not in html and "https:" not in html and "url(" not in html  # self-contained
        assert html.count("<details>") == 1
    whole = page(shown(), "t")
    assert "default-src 'none'" in whole and write_page(tmp_path / "x.html", whole).read_text() == whole


@pytest.mark.parametrize("words", [[], [Word("the", 0.0)]])
def test_no_relevance_at_all(words):
    assert "<main" in page([Panel(texts=[Text(words)])], "t")
    assert draw_tokens([("", words)]).get_figheight() > 0


def texts(figure):
    """All texts of a figure."""
    figure.canvas.draw()  # raises for formulas that do not parse
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


RNG = np.random.default_rng(0)
FIGURES = {
    "tokens": lambda: draw_tokens([(HOSTILE, [*WORDS, Word(HOSTILE, 1.0)] * 9)], (HOSTILE,)),
    "matrix": lambda: draw_matrix(RNG.normal(size=(3, 70)), [HOSTILE] * 3, [HOSTILE] * 70, title=HOSTILE, notes=(HOSTILE,)),
    "bars": lambda: draw_bars([(HOSTILE, 1.0), ("x", -2.0)], title=HOSTILE, notes=(HOSTILE,)),
    "waterfall": lambda: draw_waterfall([(HOSTILE, 1.0)], [(HOSTILE, -2.0)], -1.0, title=HOSTILE, notes=(HOSTILE,)),
    "image": lambda: draw_image(RNG.normal(size=(5, 7)), RNG.normal(size=(3, 5, 7)), title=HOSTILE, notes=(HOSTILE,)),
    "overlay": lambda: draw_image(np.zeros((5, 7)), np.zeros((1, 5, 7)), overlay=True, title=HOSTILE, notes=(HOSTILE,)),
    "waveform": lambda: draw_waveform(RNG.normal(size=999), RNG.normal(size=999), rate=100.0, title=HOSTILE, notes=(HOSTILE,)),
    "spectrogram": lambda: draw_spectrogram(RNG.normal(size=(5, 7)), None, title=HOSTILE, notes=(HOSTILE,)),
    "series": lambda: draw_series(RNG.normal(size=(2, 7)), None, [HOSTILE] * 2, title=HOSTILE, notes=(HOSTILE,)),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_hostile_texts_are_drawn_as_they_are(name):
    written = texts(FIGURES[name]())
    assert any("<script>" in t for t in written) and any(t.startswith("note: <script>") for t in written)
    import matplotlib._pylab_helpers as pylab

    assert not pylab.Gcf.get_all_fig_managers()  # pyplot knows nothing of it


def steps(figure):
    """(from, to) of every bar of a waterfall."""
    return [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in figure.axes[0].patches]


def test_a_waterfall_closes():
    figure = draw_waterfall([("bias", 0.5), ("softmax", -2.0)], [("good", 3.0), ("bad", -0.25)], 1.25)
    bars = steps(figure)
    assert len(bars) == 5 and bars[0][0] == 0 and bars[-1] == (0, 1.25)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bars[:4])) and bars[3][1] == 1.25
    assert not [t for t in texts(figure) if "not accounted" in t]
    open_ = draw_waterfall([("bias", 0.5)], [("good", 3.0)], 4.0)
    assert "not accounted for" in texts(open_) and steps(open_)[2] == (3.5, 4.0)
    red, blue = (to_rgb(p.get_facecolor()) for p in figure.axes[0].patches[:2])
    assert red[0] > red[2] and blue[2] > blue[0]


def test_columns_of_a_waveform_are_sums():
    relevance = RNG.normal(size=12_345)
    figure = draw_waveform(None, relevance)
    drawn = figure.axes[0].collections[0].get_array()
    assert drawn.size == 300 and abs(float(drawn.sum()) - relevance.sum()) < 1e-9
