"""The README's snippet runs as it is pasted, and prints what stands below it; what it links to is there."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    "README.md",
    *[
        f"docs/{name}.md"
        for name in ("using", "rules", "measured", "how_it_works", "limits", "results", "pipelines", "cli")
    ],
]
NUMBER = r"-?\d+\.\d+(?:e-?\d+)?"


def test_the_snippet_prints_what_it_says():
    code, output = re.search(r"```python\n(import torch, lrp_fx.*?)```\s*```\n(.*?)```", README, re.S).groups()
    assert len(code.splitlines()) <= 6
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    words = [re.sub(NUMBER, "#", text).split() for text in (printed.getvalue(), output)]
    assert words[0] == words[1]
    numbers = [[float(n) for n in re.findall(NUMBER, text)] for text in (printed.getvalue(), output)]
    assert numbers[0] == pytest.approx(numbers[1], abs=2e-4)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text())]
    missing = [link for link in links if link and "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_the_commands_are_there():
    for command in re.findall(r"^tools/(\w+)", README, re.M):
        assert (ROOT / "tools" / command).is_file()
