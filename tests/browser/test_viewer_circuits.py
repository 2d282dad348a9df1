"""Circuits in the viewer."""

from pathlib import Path
from xml.etree import ElementTree

from test_viewer_text import adds_up, ledger
from viewed import circuit

FOCUSED = "document.activeElement.getAttribute('aria-label')"


def test_a_circuit_by_pointer_and_keys(show, axe):
    page = show(circuit())
    options = page.locator("svg [role=option]")
    assert options.count() == 6 and adds_up(ledger(page)) and ledger(page)["explained value"] == 1
    assert page.locator("caption").inner_text().startswith("Nodes absorb")
    options.first.focus()
    assert page.evaluate(FOCUSED).startswith("target: +1")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(FOCUSED) == "layer 1 head 0: +1.350"
    assert "in +1.215, out +1.350" in page.locator("#readout").inner_text()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert "layer 0 head" in page.evaluate(FOCUSED)
    whole = page.locator("svg").get_attribute("viewBox")
    page.keyboard.press("+")
    closer = page.locator("svg").get_attribute("viewBox")
    assert float(closer.split()[2]) < float(whole.split()[2])
    page.get_by_role("button", name="all of it").click()
    assert page.locator("svg").get_attribute("viewBox") == whole
    page.locator("svg").hover()
    page.mouse.wheel(0, -100)
    page.wait_for_function("(whole) => document.querySelector('svg').getAttribute('viewBox') !== whole", arg=whole)
    page.get_by_label("Show").select_option("against")
    assert page.locator("svg path[visibility=hidden]").count() == 4  # of 8, those that carry relevance for it
    page.evaluate(axe)
    found = page.evaluate("axe.run(document)")["violations"]
    assert not [
        (v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical", "moderate")
    ]
    with page.expect_download() as svg:
        page.get_by_role("button", name="Save as svg").click()
    root = ElementTree.fromstring(Path(svg.value.path()).read_text())
    assert "layer 0 head 1" in {t.text for t in root.iter("{http://www.w3.org/2000/svg}text")}


def test_hundreds_of_nodes(show):
    page = show(circuit(20, 20), scheme="dark")
    assert page.locator("svg [role=option]").count() == 402
    _, _, width, height = map(float, page.locator("svg").get_attribute("viewBox").split())
    assert 1.5 * height < width < 4 * height  # columns stand apart, so that the whole of it is as wide as its panel
    ink = page.locator("svg text").first.evaluate(
        "(text) => [text.getAttribute('fill'), getComputedStyle(document.body).color]"
    )
    assert ink[0] == ink[1]  # from the start: it was black on a dark panel
    widths = page.locator("svg path").evaluate_all(
        "(lines) => lines.map((line) => Number(line.getAttribute('stroke-width')))"
    )
    assert widths == sorted(widths) and widths[0] < widths[-1]  # strong edges lie above weak ones
    assert page.evaluate("performance.getEntriesByName('ready')[0].startTime") < 6000
