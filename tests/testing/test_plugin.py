"""The pytest plugin: fixture, marker, options and report, in test runs of their own."""

import json
import tomllib
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SUITE = """
import pytest, torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))

def test_plain(assert_explainable):
    assert assert_explainable(net(), torch.randn(2, 4)).rules == {default!r}

@pytest.mark.lrp(rules="cp_lrp", target=1)
def test_marked(assert_explainable):
    assert assert_explainable(net(), torch.randn(2, 4)).rules == "cp_lrp"
    assert assert_explainable(net(), torch.randn(2, 4), rules="gradient").rules == "gradient"

@pytest.mark.lrp(ops={{"movement": {{"aten.gelu": "self"}}}})
def test_broken(assert_explainable):
    assert_explainable(net(), torch.randn(2, 4))
"""


def run(pytester, *options, default="default", **outcomes):
    pytester.makepyfile(SUITE.format(default=default))
    result = pytester.runpytest_inprocess("-p", "pytest_lrp_fx", "--strict-markers", "-p", "no:randomly", *options)
    result.assert_outcomes(**outcomes)
    return result


def test_fixture_marker_and_report(pytester):
    result = run(pytester, "--lrp-report=out.json", passed=2, failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: explanations of Sequential under default do not hold:*", "*gelu*"])
    report = json.loads((pytester.path / "out.json").read_text())
    assert (report["passed"], report["failed"]) == (3, 1) and report["versions"]["torch"]
    names = [check["test"].partition("::")[2] for check in report["checks"]]
    assert names == ["test_broken", "test_marked", "test_marked", "test_plain"]
    assert report["checks"][0]["failures"][0]["place"]["node"] == "gelu"
    assert report["checks"][-1]["measured"]["conservation"] < 1e-12


def test_rules_of_the_command_line(pytester):
    run(pytester, "--lrp-rules=attnlrp", "-k", "not broken", default="attnlrp", passed=2, deselected=1)
    assert not list(pytester.path.glob("*.json"))


@pytest.mark.slow
def test_the_report_holds_what_other_processes_checked(pytester):
    run(pytester, "--lrp-report=out.json", "-n", "2", passed=2, failed=1)
    assert len(json.loads((pytester.path / "out.json").read_text())["checks"]) == 4


def test_the_package_declares_the_plugin_under_its_own_name():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {"pytest_lrp_fx": "pytest_lrp_fx"}


@pytest.mark.slow
def test_loading_the_plugin_imports_no_torch(in_two_processes):
    (printed, _) = in_two_processes(
        "import sys\nwithout = set(sys.modules)\nfor name in [n for n in sys.modules if n.startswith('torch')]:\n"
        "    del sys.modules[name]\nimport pytest_lrp_fx\nprint('torch' in sys.modules, 'lrp_fx' in sys.modules)"
    )
    assert printed.split() == ["False", "False"]
