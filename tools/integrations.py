"""Test adapters against packages whose pins or weight keep them out of the tests' environment: one venv for each.

An environment stands on that of the tests (torch, transformers, pytest are lent to it by path) and has its packages,
pinned and without their dependencies, in front of it. ``tools/test --integrations [NAME ...]`` runs it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".integrations"

#: folder of tests/integrations -> what its environment has
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "quantus": (
        "quantus==0.6.0", "cachetools==8.0.2", "opencv-python-headless==5.0.0.93", "lazy_loader", "imageio", "tifffile",
    ),
    "shap": ("shap==0.51.0", "slicer==0.0.8", "numba==0.68.1", "llvmlite==0.50.0"),
    "inseq": (
        "inseq==0.7.1", "jaxtyping==0.3.11", "typeguard==2.13.3", "treescope==0.1.10", "sentencepiece==0.2.3",
    ),
    "circuits": ("circuit-tracer==0.5.0",),
}  # fmt: skip


def python_of(name: str) -> Path:
    """The interpreter of an environment, made where it is not there or has other packages."""
    home, packages = HOME / name, ENVIRONMENTS[name]
    python, mark = home / "bin" / "python", home / "packages.txt"
    wanted = "\n".join(packages)
    if mark.is_file() and mark.read_text() == wanted:
        return python
    venv.create(home, clear=True, with_pip=False)
    site = home / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (site / "lent.pth").write_text(f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n")
    install = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--ignore-installed", *packages]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    mark.write_text(wanted)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/test --integrations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"environments: {', '.join(ENVIRONMENTS)} (all)")
    names = parser.parse_args().names or list(ENVIRONMENTS)
    if unknown := set(names) - ENVIRONMENTS.keys():
        parser.error(f"there is no environment {', '.join(sorted(unknown))}: {', '.join(ENVIRONMENTS)}")
    failed = []
    for name in names:
        start, python = time.perf_counter(), python_of(name)
        command = [python, "-W", "ignore", "-m", "pytest", "-p", "no:cacheprovider", f"tests/integrations/{name}"]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
        print(f"{name}: {'passed' if not done.returncode else 'FAILED'} in {time.perf_counter() - start:.0f} s")
        failed += [name] if done.returncode else []
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
