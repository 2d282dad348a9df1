"""The wheel has all that the package reads. (tests/test_readme.py installs and runs it, where the source tree is not.)"""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_rules_templates_and_demos(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "_rules/ops.toml",
        "_rules/attnlrp.toml",
        "viz/viewer/viewer.html.jinja",
        "viz/viewer/viewer.css.jinja",
        *(f"viz/viewer/{p.name}" for p in (ROOT / "lrp_fx/viz/viewer").glob("*.js")),
        "viz/page.html.jinja",
        "viz/shell.html.jinja",
        "viz/look.css.jinja",
        "concepts/gallery.html.jinja",
        "cli/demos.toml",
        "viz/viewer/structure.html.jinja",
        "cli/sentiment_head.json",
    ):
        assert f"lrp_fx/{needed}" in names
    assert not [n for n in names if n.startswith(("tests/", "tools/"))]
    assert "pytest_lrp_fx.py" in names  # the plugin, which pytest loads without the package
