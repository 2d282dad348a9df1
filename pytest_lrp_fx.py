"""The pytest plugin: fixture ``assert_explainable``, marker ``lrp``, options ``--lrp-rules`` and ``--lrp-report``.

It is a module outside of the package, since pytest loads plugins in every run and ``import lrp_fx`` imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

_PROPERTY = "lrp_fx"  #: user property of a test's report with its checks; xdist passes it on


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("lrp_fx", "explanations of models (lrp_fx)")
    group.addoption(
        "--lrp-rules", default=None, metavar="RULES", help="rule set of assert_explainable: a name or a file"
    )
    group.addoption("--lrp-report", default=None, metavar="PATH", help="write what assert_explainable measured as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and with ``--lrp-report`` the report."""
    config.addinivalue_line(
        "markers", "lrp(**options): options of assert_explainable in this test (rules, target, ops), over --lrp-rules"
    )
    path = config.getoption("--lrp-report")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Report(Path(path)), "lrp_fx_report")


@pytest.fixture
def assert_explainable(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """:func:`lrp_fx.testing.assert_explainable` under the rules and the options of this run and this test.

    Options of the call come before those of the marker, and these before ``--lrp-rules``.
    """
    from lrp_fx import testing

    marked = [marker.kwargs for marker in request.node.iter_markers("lrp")]
    rules = request.config.getoption("--lrp-rules")
    options = {} if rules is None else {"rules": rules}
    for closer in reversed(marked):
        options.update(closer)

    def explainable(model: Any, *args: Any, **more: Any) -> Any:
        __tracebackhide__ = True
        result = testing.check(model, *args, **{**options, **more})
        request.node.user_properties.append((_PROPERTY, result.to_dict()))
        return result.assert_passed()

    return explainable


class _Report:
    """Collects the checks of all tests in all processes, and writes them at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checks: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the checks of a finished test."""
        if report.when == "call":
            checks = [value for name, value in report.user_properties if name == _PROPERTY]
            self.checks += [{"test": report.nodeid, **value} for value in checks]  # type: ignore[dict-item]

    def pytest_sessionfinish(self) -> None:
        """Write the report."""
        from lrp_fx.files import write_text

        checks = sorted(self.checks, key=lambda check: check["test"])
        passed = sum(check["passed"] for check in checks)
        document = {"versions": _versions(), "passed": passed, "failed": len(checks) - passed, "checks": checks}
        write_text(self.path, json.dumps(document, indent=1) + "\n")


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("lrp_fx", "torch", "transformers", "timm"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
