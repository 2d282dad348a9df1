"""Conversions say what they do: a status line, log records, and the list of captures."""

import io
import logging
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx import status


class Slow(nn.Module):
    """Branches on its length, and takes its time."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.layer, self.seconds = nn.Linear(4, 3), seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return self.layer(x).mean(1) if x.shape[1] > 5 else self.layer(x).sum(1)


@pytest.fixture
def terminal(monkeypatch):
    """What is written to a standard error that is a terminal; lines appear at once."""
    written = io.StringIO()
    written.isatty = lambda: True
    monkeypatch.setattr(status, "sys", SimpleNamespace(stderr=written))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(status, "PATIENCE", 0.05)
    monkeypatch.delenv(status.LINE, raising=False)
    return written


def test_a_long_conversion_shows_its_stage_and_what_is_traced(terminal):
    lrp_fx.convert(Slow(0.3), torch.randn(2, 7, 4))
    assert "lrp_fx converts Slow: export" in terminal.getvalue()
    with status.converting("a model"):
        status.stage("export")
        status.traced(12)
        assert str(status._CURRENT.get().__rich__()) == "lrp_fx converts a model: export, 12 operators, 0 s"
    assert status._CURRENT.get() is None


def test_no_line_where_nobody_looks_or_where_it_is_switched_off(terminal, monkeypatch):
    monkeypatch.setenv(status.LINE, "0")
    lrp_fx.convert(Slow(0.2), torch.randn(2, 7, 4))
    assert not terminal.getvalue()
    monkeypatch.delenv(status.LINE)
    terminal.isatty = lambda: False
    lrp_fx.convert(Slow(0.2), torch.randn(2, 7, 4))
    assert not terminal.getvalue()


def test_captures_say_sizes_seconds_and_reasons(caplog):
    xmodel = lrp_fx.convert(Slow())
    assert str(xmodel.captures()) == "nothing is captured yet"
    with caplog.at_level(logging.INFO, "lrp_fx.captures"):
        for length in (7, 9, 3):
            xmodel.explain(torch.randn(2, length, 4))
    first, second = xmodel.captures()
    assert first.reason == "the first call" and "x.shape[1] > 5" in second.reason
    assert first.sizes["x"][2] == 4 and isinstance(first.sizes["x"][0], str) and first.nodes and first.seconds > 0
    assert any("x.shape[1] > 5" in condition for condition in first.conditions)
    assert str(xmodel.captures()).splitlines()[1].startswith("2. x (") and second.reason in str(second)
    assert [r.getMessage() for r in caplog.records] == [
        f"Slow, capture {n}: {record}" for n, record in enumerate((first, second), 1)
    ]


def test_environment_names_what_is_logged(capsys):
    logger = logging.getLogger("lrp_fx.stages")
    before = logger.level, list(logger.handlers)
    try:
        status.log_to_stderr("stages")
        lrp_fx.convert(Slow(), torch.randn(2, 7, 4))
        assert "[lrp_fx.stages] Slow: export took" in capsys.readouterr().err
        with pytest.raises(ValueError, match="'nonsense' is none of captures, stages"):
            status.log_to_stderr("captures,nonsense")
    finally:
        logger.level, logger.handlers = before
        logging.getLogger("lrp_fx.captures").handlers.clear()
