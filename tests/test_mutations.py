"""The list of tools/mutate fits the code: every line it changes is there, and so is every test it names."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "mutation"))

from mutations import Mutation, StaleError, check, mutations

import lrp_fx


def test_every_line_of_the_list_is_still_there():
    listed = mutations()
    check(listed)
    rooms = {room.strip() for room in lrp_fx.__doc__.partition("errors,")[2].replace("->", ",").split(",")}
    assert len(listed) >= 44 and {m.stage for m in listed} <= rooms
    stages = ["rules", "capture", "cache", "analysis", "plan", "passes", "rewrite", "explain", "verify", "lowering"]
    assert {m.stage for m in listed} >= {*stages, "specialization", "capture_cache", "concepts", "evaluate", "tuning"}


@pytest.mark.parametrize(
    ("old", "below", "tests", "said"),
    [
        ("a = 2", "", "tests/test_x.py::test_x", "has 'a = 2' 0 times"),
        ("b = 1", "", "tests/test_x.py::test_x", "has 'b = 1' 2 times"),
        ("b = 1", "def g():", "tests/test_x.py::test_y", "there is no test"),
        ("a = 1", "", "tests/test_y.py::test_x", "there is no test"),
    ],
)
def test_an_entry_that_does_not_fit_is_an_error(tmp_path, old, below, tests, said):
    (tmp_path / "x.py").write_text("a = 1\ndef f():\n    b = 1\ndef g():\n    b = 1\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("def test_x():\n    pass\n")
    entry = Mutation("name", "x.py", old, "c = 3", "why", (tests,), below)
    with pytest.raises(StaleError, match=said):
        check([entry], tmp_path)
    fitting = Mutation("name", "x.py", "b = 1", "c = 3", "why", ("tests/test_x.py::test_x",), "def g():")
    check([fitting], tmp_path)
    assert fitting.applied(tmp_path) == "a = 1\ndef f():\n    b = 1\ndef g():\n    c = 3\n"
