"""Measured explanations as evaluation entries of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.testing import Check
from lrp_fx.version import VERSION

#: rule set -> metric -> value
Results = Mapping[str, Mapping[str, float]]


def eval_results(
    results: Results, *, task: str, dataset: str, dataset_name: str = "", split: str | None = None
) -> list[Any]:
    """The results as ``huggingface_hub.EvalResult``, one for each rule set and metric.

    They go into the metadata of a model card: ``card.data.eval_results = eval_results(...)``, or
    ``huggingface_hub.metadata_eval_result``.

    Args:
        results: rule set -> metric -> value, measured on the model (:func:`lrp_fx.evaluate.evaluate`).
        task: the model's task on the Hub ("text-classification").
        dataset: name of the data set on the Hub ("stanfordnlp/sst2").
        dataset_name: the data set's name for readers; its last part by default.
        split: the split that was measured on.

    Raises:
        MissingExtraError: if huggingface_hub is not installed.
    """
    hub: Any = require("huggingface_hub", "transformers")
    named = dataset_name or dataset.rpartition("/")[2]
    return [
        hub.EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=named,
            dataset_split=split,
            metric_type=metric,
            metric_name=f"{metric} of explanations ({rules})",
            metric_value=float(value),
            metric_args={"rules": rules, "lrp_fx": VERSION},
        )
        for rules, values in results.items()
        for metric, value in values.items()
    ]


def eval_entries(
    results: Results, *, dataset: str, check: Check | None = None, date: str | None = None, source: str | None = None
) -> list[dict[str, Any]]:
    """The results as entries of a file ``.eval_results/NAME.yaml`` in a model's repository.

    Args:
        results: as in :func:`eval_results`.
        dataset: name of the benchmark data set on the Hub.
        check: result of :func:`lrp_fx.testing.check`; its verdict is part of every entry's notes.
        date: day or time of the measurement (ISO 8601).
        source: address of the page that describes the measurement.

    Raises:
        InputError: for a check that failed: its explanations do not hold, and have no results.
        MissingExtraError: if huggingface_hub is not installed.
    """
    if check is not None and not check.passed:
        raise InputError(f"explanations of {check.model} do not hold: {check.failures[0]}")
    hub: Any = require("huggingface_hub", "transformers")
    checked = "" if check is None else "; explanations checked"
    entries = [
        hub.EvalResultEntry(
            dataset_id=dataset,
            task_id=metric,
            value=float(value),
            date=date,
            source_url=source,
            notes=f"lrp_fx {VERSION}, rules {rules}{checked}",
        )
        for rules, values in results.items()
        for metric, value in values.items()
    ]
    return hub.eval_result_entries_to_yaml(entries)
