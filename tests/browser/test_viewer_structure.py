"""A model's graph in a browser: search, keys, zoom, contrast; hundreds of nodes."""

import pytest
import torch
from torch import nn

import lrp_fx

FOCUSED = "document.activeElement.getAttribute('aria-label')"


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.gate, self.down = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(self.up(y) * torch.sigmoid(self.gate(y)))


def report_of(layers):
    xmodel = lrp_fx.convert(nn.Sequential(nn.Embedding(9, 8), *[Layer() for _ in range(layers)]))
    xmodel.explain(torch.ones(1, 3, dtype=torch.long), target=(0, 0))
    return xmodel.report()


@pytest.fixture(scope="module")
def report():
    return report_of(40)


@pytest.fixture
def page(browser, report, tmp_path, request):
    yield from opened(browser, report, tmp_path, request.param)


def opened(browser, report, tmp_path, scheme):
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1200, "height": 900})
    page, errors = context.new_page(), []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.goto(report.save_html(tmp_path / "graph.html").as_uri())
    page.wait_for_selector("[data-ready=yes]", state="attached")
    yield page
    context.close()
    assert not errors


def test_it_begins_with_what_is_explained(browser, tmp_path):
    for page in opened(browser, report_of(3), tmp_path, "light"):
        x, y = page.locator("svg g:has(rect.source)").get_attribute("transform")[10:-1].split()
        left, top, width, height = map(float, page.locator("svg").get_attribute("viewBox").split())
        assert abs(left + width / 2 - float(x)) < 1 and top < float(y) < top + height


@pytest.mark.viewer_check
@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_search_keys_and_zoom(page, axe, report):
    boxes = page.locator("svg [role=option]")
    assert boxes.count() == len(report.nodes_of()) > 240
    assert page.evaluate("performance.getEntriesByName('ready')[0].startTime") < 6000
    page.get_by_label("Find").fill("sigmoid_17")
    assert page.locator("svg g.off").count() == boxes.count() - 1
    assert f"1 of {boxes.count()} nodes" in page.locator("output").inner_text()
    page.keyboard.press("Enter")
    assert "17" in page.locator(".details").inner_text() and "sigmoid" in page.locator("#readout").inner_text()
    page.locator(".details dd button").first.click()  # what it takes: the gate's layer
    assert "aten.linear" in page.evaluate(FOCUSED)
    page.keyboard.press("ArrowDown")
    assert "sigmoid" in page.evaluate(FOCUSED)
    view = page.locator("svg").get_attribute("viewBox").split()
    page.keyboard.press("+")
    closer = page.locator("svg").get_attribute("viewBox").split()
    assert float(closer[2]) < float(view[2])
    page.get_by_role("button", name="all of it").click()
    assert float(page.locator("svg").get_attribute("viewBox").split()[3]) > float(view[3])
    page.locator("summary").first.click()
    page.locator("[data-node]").first.click()
    assert page.evaluate(FOCUSED) is not None
    page.evaluate(axe)
    found = page.evaluate("axe.run(document)")["violations"]
    assert not [
        (v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical", "moderate")
    ]
