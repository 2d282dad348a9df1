"""The page of the viewer as a file: one, without network, whatever texts are in it. tests/browser looks at it."""

import base64
import hashlib
import json
import re
from importlib.resources import files

import numpy as np
import pytest

from lrp_fx.errors import InputError
from lrp_fx.viz.colours import THEMES, background, contrast, foreground, table
from lrp_fx.viz.viewer import SCHEMA, viewer_page
from lrp_fx.viz.viewer.encode import image, pack, unpack
from lrp_fx.viz.viewer.graph import circuit_data, view_circuit
from lrp_fx.viz.viewer.page import bundle

HOSTILE = "</script><!--<script>\u2028\ud800"
MODULES = {p.name: p.read_text() for p in files("lrp_fx.viz.viewer").iterdir() if p.name.endswith(".js")}


def view(name="a name"):
    return {"name": name, "facts": [("rules", HOSTILE)], "samples": []}


def test_a_page_holds_all_it_needs_and_may_ask_for_nothing():
    page = viewer_page([view()], "Why?")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script")
    for tag, kind in (('<script type="module">', "script-src"), ("<style>", "style-src")):
        text = page.partition(tag)[2].partition("</")[0]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert not re.search(r'(src|href)="(?!data:)|@import|url\(', page)


def test_texts_cannot_leave_the_data():
    page = viewer_page([view(HOSTILE)], HOSTILE.replace("\ud800", ""))
    data = page.partition('id="data">')[2].partition("</script>")[0]
    assert "<" not in data and json.loads(data)["views"][0]["name"] == HOSTILE
    assert json.loads(data)["schema"] == SCHEMA
    assert page.count("<script") == 2 and page.count("</script>") == 2


def test_the_program_parses_no_html_and_asks_nothing():
    for name, source in MODULES.items():
        forbidden = (
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|fetch\(|XMLHttpRequest|WebSocket|import\("
        )
        assert not re.search(forbidden, source), name
        assert not re.search(r"rgb\(\s*\d|#[0-9a-fA-F]{3,6}\b(?=[\"';])", source), f"{name} has a colour of its own"
        assert len(source.splitlines()) <= 250, name


def test_every_module_is_in_a_page():
    whole = bundle() + bundle("structure.js")
    assert all(source.splitlines()[0] in whole for source in MODULES.values())


@pytest.mark.parametrize("first", ["main.js", "structure.js"])
def test_a_bundle_has_every_module_once_and_names_that_do_not_clash(first):
    whole = bundle(first)
    assert not re.search(r"^(import|export) ", whole, re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:const|let|function|class) (\w+)", whole, re.MULTILINE)
    assert len(names) == len(set(names))
    for source in MODULES.values():
        begin = source.splitlines()[0]
        assert begin.startswith("// ") and whole.count(begin) <= 1
        imports = re.findall(r"^import \{([^}]*)\}", source, re.MULTILINE)
        assert begin not in whole or {n.strip() for listed in imports for n in listed.split(",")} <= set(names)


@pytest.mark.parametrize("theme", THEMES)
def test_contrast_is_enough_in_every_theme(theme):
    inks = THEMES[theme]
    for colour in table(theme):
        assert contrast(colour, foreground(colour)) >= 4.5
    for back in ("page", "panel"):
        assert min(contrast(inks[back], inks[ink]) for ink in ("ink", "quiet", "note")) >= 4.5
        assert contrast(inks[back], inks["mark"]) >= 3


@pytest.mark.parametrize("theme", THEMES)
def test_the_scale_is_symmetric_and_ends_in_red_and_blue(theme):
    colours = table(theme)
    assert len(colours) % 2 and colours[len(colours) // 2] == background(0, theme)
    assert colours[0][2] > colours[0][0] and colours[-1][0] > colours[-1][2]


def test_arrays_and_images_survive():
    values = np.array([[1.5, -2.0, 0.0]])
    assert (unpack(pack(values)) == values).all() and pack(values)["shape"] == [1, 3]
    assert image(np.zeros((2, 3))).startswith("data:image/png;base64,")


def test_a_circuit_is_layered_and_its_ledger_adds_up(tmp_path):
    import networkx

    graph = networkx.DiGraph(rules="attnlrp")
    graph.add_node("target", kind="target", relevance=1.0, absorbed=0.25)
    graph.add_node("head", kind="latent", relevance=0.75, absorbed=0.0)
    graph.add_node("x", kind="input", relevance=0.75, absorbed=0.0)
    graph.add_edge("head", "target", weight=0.75)
    graph.add_edge("x", "head", weight=0.75)
    sample = circuit_data(graph, "a name")["samples"][0]
    drawn = sample["inputs"][0]
    assert {n["name"]: n["x"] for n in drawn["nodes"]} == {"x": 0, "head": 1, "target": 2}
    assert drawn["edges"] == [(1, 0, 0.75), (2, 1, 0.75)] and drawn["ways"] == [
        [(1, 0.0), (2, 0.0)],
        [(0, 0.0), (1, 0.0)],
    ]
    assert dict(sample["ledger"]) == {"absorbed": 0.25, "input": 0.75} and sample["targets"][0]["value"] == 1
    graph.remove_node("x")
    assert dict(circuit_data(graph, "pruned")["samples"][0]["ledger"])["pruned"] == 0.75
    assert '"name":"attnlrp"' in view_circuit(graph, path=tmp_path / "a.html").read_text()
    with pytest.raises(InputError, match="0 names for 0 graphs"):
        view_circuit(path=tmp_path / "b.html")
