import gc
import importlib
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("LRP_FX_CHECK_STAGES", "1")  # what each stage promises is looked at in every test

import pytest
import torch
from hypothesis import HealthCheck, settings

ANYHOW = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("lrp", max_examples=12, derandomize=True, **ANYHOW)
settings.register_profile("thorough", max_examples=60, print_blob=True, **ANYHOW)  # (tools/test --thorough)
settings.load_profile("lrp")


gc.set_threshold(50_000, 20, 10)  # looking for cycles took an eighth of the tests' time


def pytest_collection_finish(session):
    """What was imported is no garbage: it is not looked through again."""
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc):
    """Models that are made from a ``drawn`` number: the same ones every time, others under a seed; most are slow."""
    if "drawn" in metafunc.fixturenames:
        first = int(metafunc.config.getoption("--hypothesis-seed") or 0)
        further = [pytest.param(n, marks=pytest.mark.slow) for n in range(first + 6, first + 30)]
        metafunc.parametrize("drawn", [*range(first, first + 6), *further])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _captures(tmp_path_factory):
    """One folder of captures for all tests and workers: what one test captured another need not capture again."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRP_FX_CACHE", str(shared / "captures"))
        yield


@pytest.fixture
def in_two_processes(tmp_path, request):
    """Runs a script in one process and then in another, which find "first" and "second" in ``sys.argv[1]``; what both
    printed."""

    def run(code):
        script = tmp_path / "run.py"
        head = (
            f"import sys\nsys.path[:0] = {[str(Path(__file__).parent), str(request.path.parent)]!r}\n"
            "import torch\ntorch.set_num_threads(1)\n"
        )
        script.write_text(head + textwrap.dedent(code))
        printed = []
        for which in ("first", "second"):
            done = subprocess.run([sys.executable, "-W", "ignore", str(script), which], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
            printed.append(done.stdout)
        return printed

    return run


@pytest.fixture(scope="session")
def zennit():
    """zennit without torchvision (which has no build for the CPU torch): it needs two class names of it only."""
    names = ["torchvision", "torchvision.models", "torchvision.models.resnet"]
    stubs = {name: types.ModuleType(name) for name in names if name not in sys.modules}
    for name in ("Bottleneck", "BasicBlock"):
        setattr(stubs.get(names[2], types.ModuleType("")), name, type(name, (), {}))
    sys.modules.update(stubs)
    try:
        package = importlib.import_module("zennit")
        for part in ("attribution", "canonizers", "composites", "layer", "rules", "types"):
            importlib.import_module(f"zennit.{part}")
    finally:
        for name in stubs:
            del sys.modules[name]
    return package
