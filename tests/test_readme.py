"""The README's install lines, commands and snippet run as they are pasted, and print what stands below them; what it
links to is there."""

import ast
import contextlib
import importlib.metadata as metadata
import io
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {extra: [Requirement(text) for text in listed] for extra, listed in PROJECT["optional-dependencies"].items()}
INSTALL = [shlex.split(line, comments=True) for line in re.findall(r"^pip install .*", README, re.M)]

INSTALLED = """
assert "site-packages" in lrp_fx.__file__, lrp_fx.__file__
assert {"attnlrp", "cp_lrp", "deconvnet", "default", "epsilon_alpha2_beta1"} <= set(lrp_fx.rules.ruleset.available())
x = torch.randn(2, 4, dtype=torch.float64)
a = lrp_fx.convert(nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.LayerNorm(8), nn.Linear(8, 3)).double(), rules="cp_lrp").explain(x)
assert a.ledger.balance < 1e-9
"""


def snippet():
    return re.search(r"```python\n(import torch, lrp_fx.*?)```\s*```\n(.*?)```", README, re.S).groups()


def assert_same_output(printed, output):
    words = [re.sub(NUMBER, "#", text).split() for text in (printed, output)]
    assert words[0] == words[1]
    numbers = [[float(n) for n in re.findall(NUMBER, text)] for text in (printed, output)]
    assert numbers[0] == pytest.approx(numbers[1], abs=2e-4)


def test_the_snippet_prints_what_it_says():
    code, output = snippet()
    assert len(code.splitlines()) <= 6
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert_same_output(printed.getvalue(), output)


def test_torch_is_pinned_to_a_version_that_the_project_takes():
    pinned = Requirement(INSTALL[0][-1])
    taken = next(r for text in PROJECT["dependencies"] if (r := Requirement(text)).name == "torch")
    version = re.search(r"^TORCH_PIN=(.*)$", (ROOT / "tools/setup.sh").read_text(), re.M).group(1)
    assert pinned.name == "torch" and str(pinned.specifier) == f"=={version}" and version in taken.specifier


@pytest.mark.slow
def test_the_install_line_and_the_demo_run_in_a_fresh_environment(tmp_path):
    """As README has them, from another folder. Packages that pip needs are lent by path, the source tree is not: pip
    refuses if what is here does not meet the requirements of the extra."""
    python, program = tmp_path / "venv/bin/python", tmp_path / "snippet.py"
    venv.create(tmp_path / "venv", with_pip=False)
    site = tmp_path / f"venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (site / "lent.pth").write_text(f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(*command):
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    line = [word.replace("path/to/this/clone", str(ROOT)) for word in INSTALL[1]]
    assert str(ROOT) in line[-1]
    run(python, "-m", *line)
    code, output = snippet()
    program.write_text(code + INSTALLED)
    assert_same_output(run(python, "-P", program), output)
    command = re.search(r"^\.venv/bin/(lrp-fx .*)$", (ROOT / "tools/demo").read_text(), re.M).group(1)
    sentence = re.search(r'^tools/demo "(.*?)"', README, re.M).group(1)
    run(*[str(python.parent / "lrp-fx"), *shlex.split(command.replace("$sentence", sentence))[1:]])
    assert "sentence" in (tmp_path / "demo.html").read_text()


def closure(requirements):
    """Names of the packages that requirements bring, with theirs; None if one is not installed, whose own are unknown."""
    names, left = set(), list(requirements)
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name in names or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        names.add(name)
        try:
            left += map(Requirement, metadata.requires(name) or ())
        except metadata.PackageNotFoundError:
            return None
    return names


def test_extras_that_pages_and_errors_name_bring_what_is_asked_for():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {extra for page in pages for extra in re.findall(r"(?:lrp_fx|clone)\[(\w[\w-]*)\]'", page.read_text())}
    assert "demo" in named and named <= EXTRAS.keys()
    brought = {
        extra: closure([*map(Requirement, PROJECT["dependencies"]), *listed]) for extra, listed in EXTRAS.items()
    }
    assert all(brought[extra] for extra in ("concepts", "demo", "html", "layout", "results"))
    packages = metadata.packages_distributions()
    wrong = []
    for path in (ROOT / "lrp_fx").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
                module, extra = (getattr(argument, "value", None) for argument in node.args)
                providers = {canonicalize_name(name) for name in packages.get(str(module).partition(".")[0], ())}
                known = extra is None or extra in EXTRAS  # None: the caller's
                if not known or (extra and providers and brought[extra] and not providers & brought[extra]):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {module!r} is not in the extra {extra!r}")
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text())]
    missing = [link for link in links if link and "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_the_commands_are_there():
    for command in re.findall(r"^tools/(\w+)", README, re.M):
        assert (ROOT / "tools" / command).is_file()
