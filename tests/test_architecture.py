"""The tables of docs/architecture.md are those of the code, and the files that it names exist."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import architecture


def test_the_tables_are_those_of_this_code():
    page = architecture.PAGE.read_text()
    assert set(architecture.TABLES) == {name for _, name, _ in architecture.BLOCK.findall(page)}
    assert architecture.written(page) == page, "run tools/architecture"


def test_the_files_it_names_exist():
    text = architecture.BLOCK.sub("", architecture.PAGE.read_text())
    named = set(re.findall(r"`([\w./]+/[\w./]*)`", text))
    missing = {name for name in named if not ((ROOT / name).exists() or (ROOT / "lrp_fx" / name).exists())}
    assert len(named) > 20 and not missing
