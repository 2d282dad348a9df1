"""Pages have no fault of accessibility that axe-core finds in jsdom, without a browser; `tools/test --all` installs both from npm.
Contrast is not seen there: test_viewer.py computes it, and tests/browser looks at it in Chromium."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.concepts import view_circuit

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/results"))
from viewed import batch, circuit, generation, image, several, sound, table, text, translation

MODULES = Path(os.environ.get("LRP_FX_NODE_MODULES", ROOT / ".models/node_modules"))
RESULTS = (text, batch, several, generation, translation, image, sound, table)

pytestmark = pytest.mark.slow


def examine(*pages):
    """Page -> names of rules that passed, and faults."""
    missing = [name for name in ("axe-core", "jsdom") if not (MODULES / name).is_dir()]
    assert shutil.which("node") and not missing, (
        f"no node, or none of {missing} in {MODULES}: tools/test --all installs them"
    )
    ran = subprocess.run(
        ["node", ROOT / "tests/viz/axe.mjs", MODULES, *pages], capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_pages_have_no_fault_and_a_planted_one_is_found(tmp_path):
    xmodel = lrp_fx.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    xmodel.explain(torch.ones(1, 3))
    pages = [
        lrp_fx.view(*(make() for make in RESULTS), path=tmp_path / "results.html"),
        view_circuit(circuit(), path=tmp_path / "circuit.html"),
        xmodel.report().save_html(tmp_path / "structure.html"),
        text().save_html(tmp_path / "static.html"),
    ]
    planted = tmp_path / "planted.html"
    planted.write_text(pages[-1].read_text().replace("</body>", "<img src='data:,'><button></button></body>"))
    *examined, broken = examine(*pages, planted).values()
    assert [page["faults"] for page in examined] == [[]] * len(pages)
    assert all(len(page["passed"]) > 10 for page in examined)
    assert {"image-alt", "button-name"} <= {fault["id"] for fault in broken["faults"]}
