"""The summary of the faithfulness study: which rows stay when a column is measured again."""

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import faithfulness_summary
import identity

from lrp_fx.evaluate import Results

RECORD = {"samples": 4, "seed": 1, "samples hash": "a", "weights hash": "b", "measured": "2026-11-26", "rules": {}}


def measured(**values: list[float]) -> Results:
    """Results of one column by one metric; every method takes a millisecond."""
    rows = [("task", m, "abpc", i, v) for m, numbers in values.items() for i, v in enumerate(numbers)]
    cost = [("task", m, 0.001, 0.001, len(numbers)) for m, numbers in values.items()]
    return Results(
        pd.DataFrame(rows, columns=["task", "method", "metric", "sample", "value"]),
        pd.DataFrame(columns=["task", "method", "order", "taken", "value"]),
        pd.DataFrame(cost, columns=["task", "method", "seconds", "processor", "samples"]),
    )


@pytest.fixture
def first():
    record = {**RECORD, "rules": identity.rule_keys(["attnlrp", "relp"])}
    return faithfulness_summary.merged(None, measured(attnlrp=[1, 2, 3, 4], relp=[2, 3, 4, 5]), record)


def test_rows_have_means_and_differences_sample_by_sample(first):
    row = first["methods"]["relp"]
    assert row["metrics"]["abpc"][0] == 3.5 and row["difference"] == [1.0, 1.0, 1.0] and row["price"] == 1.0
    assert first["methods"]["attnlrp"]["difference"] is None


def test_methods_and_metrics_that_were_not_measured_again_stay(first, tmp_path):
    first["methods"]["attnlrp"]["metrics"]["loo"] = [0.5, 0.4, 0.6]
    again = faithfulness_summary.merged(first, measured(attnlrp=[3, 3, 3, 3]), RECORD)
    assert again["methods"]["attnlrp"]["metrics"] == {"abpc": [3.0, 3.0, 3.0], "loo": [0.5, 0.4, 0.6]}
    assert again["methods"]["relp"] == first["methods"]["relp"]
    faithfulness_summary.write({"task": again}, tmp_path / "summary.json")
    assert faithfulness_summary.read(tmp_path / "summary.json") == {"task": again}


@pytest.mark.parametrize("key", faithfulness_summary.HASHES)
def test_rows_of_other_samples_or_weights_are_dropped(first, key):
    again = faithfulness_summary.merged(first, measured(attnlrp=[3, 3, 3, 3]), {**RECORD, key: "other"})
    assert list(again["methods"]) == ["attnlrp"]


def test_rows_of_changed_rules_are_dropped(first):
    first["methods"]["relp"]["rules"] = "changed since"
    again = faithfulness_summary.merged(first, measured(attnlrp=[3, 3, 3, 3]), RECORD)
    assert list(again["methods"]) == ["attnlrp"]
