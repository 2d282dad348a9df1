"""Pages without a script in a browser: light or dark as the system asks for, no fault that axe finds."""

import pytest
from viewed import batch, image, text

from lrp_fx.viz.colours import THEMES, css


@pytest.mark.parametrize("scheme", THEMES)
@pytest.mark.parametrize("make", [text, batch, image])
def test_a_page_follows_the_system(browser, tmp_path, axe, make, scheme):
    path = make().save_html(tmp_path / "page.html")
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1000, "height": 700})
    page = context.new_page()
    page.goto(path.as_uri())
    colour = "selector => getComputedStyle(document.querySelector(selector)).backgroundColor"
    assert page.evaluate(colour, "body") == css(THEMES[scheme]["page"])
    assert page.evaluate(colour, "main section") == css(THEMES[scheme]["panel"])
    page.evaluate(axe)
    found = page.evaluate("() => axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})")[
        "violations"
    ]
    told = [(v["id"], v["impact"], [n["html"][:160] for n in v["nodes"][:2]]) for v in found]
    assert not [t for t in told if t[1] in ("serious", "critical", "moderate")], told
    page.screenshot(path=tmp_path / "page.png")
    context.close()
