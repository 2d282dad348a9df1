"""The viewer in a browser: collected only where there is one, Playwright, and axe-core; tools/test --all brings them.
tools/viewer_check lets nothing be left out (LRP_FX_BROWSER=required), and runs what is marked viewer_check, too."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/results"))  # results with known numbers

REQUIRED = os.environ.get("LRP_FX_BROWSER") == "required"
BROWSER = (
    os.environ.get("LRP_FX_CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or next((str(path.parent / "chromium") for path in (ROOT / ".models/chromium").glob(".chromium-*")), None)
)
AXE = Path(os.environ.get("LRP_FX_AXE", ROOT / ".models/node_modules/axe-core/axe.min.js"))
MISSING = [
    name
    for name, there in (("chromium", BROWSER), ("playwright", importlib.util.find_spec("playwright")), (f"axe ({AXE})", AXE.is_file()))
    if not there
]  # fmt: skip
if MISSING and REQUIRED:
    raise RuntimeError(f"the viewer cannot be looked at: there is no {', no '.join(MISSING)}")
if MISSING:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(config, items):
    left = [] if REQUIRED else [item for item in items if item.get_closest_marker("viewer_check")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def show(browser, tmp_path):
    """show(result, ..., scheme="light", title=None) -> the page, open. Nothing may fail, ask the network or raise a dialog."""
    import lrp_fx
    from lrp_fx.concepts import view_circuit

    seen = {"requests": [], "errors": [], "dialogs": []}
    contexts = []

    def open_page(*results, scheme="light", **options):
        view = lrp_fx.view if isinstance(results[0], lrp_fx.results.Result) else view_circuit
        path = view(*results, path=tmp_path / f"page{len(contexts)}.html", **options)
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": 1200, "height": 900}, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: seen["requests"].append(r.url))
        page.on("pageerror", lambda e: seen["errors"].append(str(e)))
        page.on("console", lambda m: seen["errors"].append(m.text) if m.type == "error" else None)
        page.on("dialog", lambda d: (seen["dialogs"].append(d.message), d.dismiss()))
        page.goto(path.as_uri())
        page.wait_for_selector("[data-ready=yes]", state="attached")
        page.seen = seen
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not seen["errors"] and not seen["dialogs"]
    assert all(url.startswith(("file:", "data:", "blob:")) for url in seen["requests"])


@pytest.fixture(scope="session")
def axe():
    return AXE.read_text()


if __name__ == "__main__":  # tools/test asks
    print(
        f"tests/browser: left out, there is no {', no '.join(MISSING)}; tools/viewer_check runs them"
        if MISSING
        else "tests/browser: run"
    )
