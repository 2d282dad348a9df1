"""The wheel works from another folder, in an environment that has never seen the source tree."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROGRAM = """
import torch, lrp_fx
from torch import nn
assert "site-packages" in lrp_fx.__file__, lrp_fx.__file__
x = torch.randn(2, 4, dtype=torch.float64)
a = lrp_fx.convert(nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.LayerNorm(8), nn.Linear(8, 3)).double(), rules="cp_lrp").explain(x)
assert a.ledger.balance < 1e-9
print("ledger", a.ledger.balance, lrp_fx.rules.ruleset.available())
"""


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


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(wheel, tmp_path):
    """A fresh venv gets the wheel; torch and the other dependencies are lent to it by path, the source tree is not."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    site = home / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    (site / "dependencies.pth").write_text(f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    python = home / "bin/python"
    result = subprocess.run([python, "-P", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "'attnlrp', 'cp_lrp', 'deconvnet', 'default', 'epsilon_alpha2_beta1'" in result.stdout
    listed = subprocess.run([python, "-m", "lrp_fx.cli", "rules"], cwd=tmp_path, capture_output=True, text=True)
    assert listed.returncode == 0 and "attnlrp" in listed.stdout, listed.stderr
