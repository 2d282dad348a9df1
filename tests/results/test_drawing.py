"""Results draw themselves: every kind of figure, the terminal, pages, notebooks; the waterfall of a ledger closes."""

import itertools
import re
from dataclasses import replace

import matplotlib
import pytest
import torch
from rich.console import Console
from test_merging import result

from lrp_fx.errors import InputError
from lrp_fx.results import (
    Attribution,
    Attributions,
    Context,
    Entry,
    Generation,
    Ledger,
    Note,
    Tokens,
    computed_ledger,
    no_ledger,
)

HOSTILE = "<img src=x onerror=alert(1)>$\\frac{"


def made(shape, context=None, keep=True, **more):
    torch.manual_seed(0)
    values = torch.randn(1, *shape).double()
    relevance = values * torch.randn(1, *shape).double()
    return Attribution(
        relevance={"x": relevance}, latents={}, target=relevance.sum()[None], ruleset="attnlrp",
        inputs={"x": values} if keep else {}, context=context or Context(answers=("seven",)),
        _account=no_ledger("made up"), **more,
    )  # fmt: skip


def texts(figure):
    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


#: shape of an input -> the kind that suits, and how many axes it has
SUITED = {
    (3, 8, 9): ("image", 3), (8, 9, 3): ("image", 3), (1, 8, 9): ("image", 3), (4, 8, 9): ("image", 2),
    (500,): ("waveform", 2), (1, 500): ("waveform", 2), (9,): ("tabular", 1), (40, 50): ("spectrogram", 3),
    (3, 50): ("series", 4), (50, 3): ("series", 4),
}  # fmt: skip


@pytest.mark.parametrize("shape", SUITED)
def test_every_kind_of_input_has_a_picture(shape):
    kind, axes = SUITED[shape]
    one = made(shape)
    figure = one.plot()
    assert len(figure.axes) == axes and len(one.plot(kind).axes) == axes
    assert any("seven" in t for t in texts(figure))
    assert len(made(shape, keep=False).plot(kind).axes) <= axes  # without the inputs the map alone


def test_what_a_picture_shows_is_the_relevance():
    one = made((3, 8, 9))
    drawn = one.plot("image").axes[1].images[0].get_array()
    assert abs(drawn - one.relevance["x"][0].sum(0).numpy()).max() < 1e-12
    series = made((50, 3), Context(features={"x": ("a", "b", "c")}))
    rows = [axes.collections[0].get_array().ravel() for axes in series.plot().axes[:3]]
    assert all(abs(row - series.relevance["x"][0, :, i].numpy()).max() < 1e-12 for i, row in enumerate(rows))
    table = made((3,), Context(features={"x": ("age", "sex", "income")}))
    assert {t.partition(" = ")[0] for t in texts(table.plot()) if " = " in t} == {"age", "income", "sex"}
    sound = made((16_000,), Context(sampling_rate=8000.0)).plot()
    assert "seconds" in texts(sound) and sound.axes[0].get_xlim()[1] == 2.0


def test_a_result_is_told_what_it_cannot_know():
    one = made((3,)).knowing(features={"x": ["age", "sex", "income"]}, answers=["rich"], labels=["poor", "rich"])
    assert {s.text for s in one.top(9)} == {"age", "sex", "income"} and one.context.labels == ("poor", "rich")
    assert any("rich" in t for t in texts(one.plot())) and set(one.to_dataframe()["answer"]) == {"rich"}
    for wrong, message in (
        ({"rate": 3}, "no field rate"),
        ({"features": {"y": []}}, "no input is called y: there are x"),
        ({"answers": ["a", "b"]}, "as many answers and tokens as there are samples, 1"),
    ):
        with pytest.raises(InputError, match=message):
            one.knowing(**wrong)


def test_overlays_need_the_picture():
    assert len(made((3, 8, 9)).plot("overlay").axes) == 3
    with pytest.raises(InputError, match="an overlay needs an image"):
        made((3, 8, 9), keep=False).plot("overlay")


def test_kinds_that_do_not_fit_are_refused():
    one = made((3, 8, 9))
    for kind, message in (
        ("waveform", "no single waveform"),
        ("series", "no plane"),
        ("pie", "choose one of auto"),
        ("tokens", "no tokens"),
    ):
        with pytest.raises(InputError, match=message):
            one.plot(kind)
    with pytest.raises(InputError, match="choose one of x"):
        one.plot(input="y")
    with pytest.raises(InputError, match="shows one sample, and there are 2"):
        result().plot("bar")
    with pytest.raises(InputError, match="no image"):
        made((9,)).plot("image")
    with pytest.raises(InputError, match="several targets, or latents"):
        replace(result(), latents={})[0].plot("matrix")


def test_a_batch_of_texts_is_one_picture():
    whole = result()
    shown = texts(whole.merge("words").plot())
    assert "Unbelievable" in shown and "dull" in shown and "good (3)" in shown and "bad (-1)" in shown


def test_heads_by_tokens():
    torch.manual_seed(0)
    one = result()[0]
    length = one.relevance["ids"].shape[1]
    mixed = {f"layers.{i}.attention@mixed": torch.randn(1, length, 3, 4).double() for i in (10, 2)}
    figure = replace(one, latents={**one.latents, **mixed}).plot("heads")
    shown = [i for i, padding in enumerate(one.tokens()[0].padding) if not padding]
    drawn = torch.tensor(figure.axes[0].images[0].get_array())
    expected = torch.cat([mixed[f"layers.{i}.attention@mixed"].sum(-1)[0].T[:, shown] for i in (2, 10)])
    assert drawn.shape == (6, len(shown)) and float((drawn - expected).abs().max()) < 1e-9
    assert "layers.2.attention@mixed [0]" in texts(figure)
    with pytest.raises(InputError, match=r"self_attn@mixed"):
        one.plot("heads")


def test_latents_by_tokens_and_targets_by_tokens():
    one = result()[0]
    figure = one.merge("words").plot("matrix")
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape == (2, 5) and abs(drawn.sum() - float(sum(v.sum() for v in one.latents.values()))) < 1e-9
    assert "0.mlp" in texts(figure) or "layers.0.mlp" in texts(figure)
    many = Attributions(
        relevance={"ids": torch.randn(3, 1, 4)}, latents={}, target=torch.randn(3, 1), ruleset="r", names=("a", "b", "c"),
        inputs={"ids": torch.arange(4)[None]},
    )  # fmt: skip
    drawn = many.plot().axes[0].images[0].get_array()
    assert drawn.shape == (3, 4) and {"a", "b", "c", "0", "1"} <= set(texts(many.plot()))


LEDGER = Ledger(
    (
        Entry("input", "ids", "", "", "", 5.0),
        Entry("bias", "b", "", "", "", -1.5),
        Entry("softmax", "s", "", "", "", -0.5),
    ),
    3.0,
)


def closed(**more):
    values = torch.zeros(1, 9).double()
    values[0, :4] = torch.tensor([1.0, 2.0, 3.0, -1.0])
    whole = result()[0]
    return replace(
        whole, relevance={"ids": values}, target=torch.tensor([3.0]).double(), _account=computed_ledger(LEDGER), **more
    )


def test_the_waterfall_of_a_ledger_closes():
    figure = closed().plot("waterfall")
    bars = [(b.get_x(), b.get_x() + b.get_width()) for b in figure.axes[0].patches]
    assert bars[0][0] == 0 and bars[-1] == (0, 3.0) and abs(bars[-2][1] - 3.0) < 1e-12
    assert all(abs(a[1] - b[0]) < 1e-12 for a, b in itertools.pairwise(bars[:-1]))
    shown = texts(figure)
    assert {"biases", "softmax (expansion)", "Unbelievable", "explained value"} <= set(shown)
    assert not [t for t in shown if "not accounted" in t]
    alone = texts(LEDGER.plot(notes=("mind this",)))
    assert "inputs" in alone and "note: mind this" in alone
    broken = Ledger(LEDGER.entries[:2], 3.0)
    assert "not accounted for" in texts(broken.plot())


@pytest.mark.parametrize("words", [True, False])
def test_a_terminal_shows_text_ledger_and_notes(words, capsys):
    context = replace(result()[0].context, notes=(Note("cut off", "it was [bold]cut[/bold] off"),))
    closed(context=context).show(words=words, console=Console(width=120))
    shown = capsys.readouterr().out
    assert ("Unbelievable" in shown) == words and "explained value" in shown and "+3.0000" in shown
    assert "note: it was [bold]cut[/bold] off" in shown and "good (3)" in shown
    result().show(console=Console(width=120))
    shown = capsys.readouterr().out
    assert "sample 1: bad (-1)" in shown and "note: no ledger: made up" in shown
    made((500,)).show(ledger=False)
    assert "x[" in capsys.readouterr().out


def hostile():
    tokens = Tokens((HOSTILE, "ok"), (False, False), (False, False))
    context = Context(tokens={"ids": (tokens,)}, answers=(HOSTILE,), notes=(Note("n", HOSTILE),))
    return Attribution(
        relevance={"ids": torch.tensor([[1.0, -0.5]])}, latents={}, target=torch.tensor([0.5]), ruleset=HOSTILE,
        context=context, _account=no_ledger(HOSTILE),
    )  # fmt: skip


def test_html_has_no_script_no_network_and_shows_hostile_text_as_text(tmp_path):
    one = hostile()
    path = one.save_html(tmp_path / "x.html", title=HOSTILE, facts={HOSTILE: HOSTILE})
    for html in (path.read_text(), one._repr_html_(), one._repr_mimebundle_()["text/html"]):
        assert "<img" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html and "<script" not in html
        assert "http:" not in html and "https:" not in html and "url(" not in html
    assert one._repr_mimebundle_()["text/plain"] == repr(one) and "note: <img" in repr(one)
    texts(one.plot())
    texts(one.plot("bar"))
    one.show()


def test_html_has_pictures_ledgers_and_every_target(tmp_path):
    image = made((3, 8, 9)).to_html(ledger=False)
    assert image.count("data:image/png;base64,") == 1
    page = closed().to_html(facts={"model": "m"})
    assert "softmax" in page and "+3" in page and re.search("explained value</td><td[^>]*>\\+3<", page)
    assert "<h3>Ledger</h3>" not in closed()._repr_html_()  # it was not computed
    generation = Generation(
        sequences=torch.arange(5)[None], start=3, relevance={"ids": torch.randn(1, 2, 5)}, latents={}, generated="ids",
        target=torch.randn(1, 2), ruleset="r", context=Context(tokens={"ids": (Tokens.plain([" a", " b", " c", " d", " e"]),)}),
    )  # fmt: skip
    page = generation.to_html()
    assert page.count("<details>") == 2 and "all together" in page
    batch = torch.ones(20, 3)
    many = Attribution(relevance={"ids": batch}, latents={}, target=batch[:, 0], ruleset="r", inputs={"ids": batch.long()}, _account=no_ledger("x"))  # fmt: skip
    assert "12 more samples" in many._repr_html_() and many.to_html().count("<section>") == 20


def test_without_the_extra_packages_the_error_names_the_extra(monkeypatch):
    import importlib

    from lrp_fx.errors import MissingExtraError

    real = importlib.import_module

    def missing(name, *rest):
        if name.partition(".")[0] in ("matplotlib", "pandas", "jinja2", "safetensors"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    one = closed()
    for act in (one.plot, one.to_dataframe, lambda: one.save("x.safetensors")):
        with pytest.raises(MissingExtraError, match=r"lrp_fx\[results\]"):
            act()
    assert one._repr_html_() is None and "text/html" not in one._repr_mimebundle_()
