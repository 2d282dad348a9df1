"""Shards explained by workers of Ray, on this machine or on a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from lrp_fx.extras import require
from lrp_fx.runs.explainer import Explainer
from lrp_fx.runs.shard import Shard, Task, explain_shard

_WAITING = 2  #: shards that are sent to a worker: the one that it explains, and the next one
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Worker:
    """Explains shards in a process of its own.

    Attributes:
        explainer: the explainer.
    """

    def __init__(self, explainer: Explainer) -> None:
        self.explainer = explainer

    def explain(self, task: Task) -> Shard:
        """The explanations of a shard."""
        return explain_shard(self.explainer, task)


def explain_by_workers(
    explainer: Explainer, tasks: Iterable[Task], address: str, workers: int | None
) -> Iterator[Shard]:
    """The shards of tasks, in the order in which workers finish them.

    Tasks are read while workers explain, two for each worker. A worker that dies is started again, and its shards are
    explained again.

    Args:
        explainer: sent to every worker; a model in a folder is loaded there.
        tasks: the tasks.
        address: address of a cluster ("auto": the one that this machine belongs to); "local" starts one here.
        workers: number of workers; None for one for every two processors of the cluster.

    Raises:
        MissingExtraError: when ray is not installed.
    """
    ray: Any = require("ray", "ray")
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(**(_on_this_machine() if address == "local" else {"address": address}), log_to_driver=False)
    try:
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 2)) // 2)
        remote = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(Worker)
        sent = ray.put(explainer)
        team = [remote.remote(sent) for _ in range(count)]
        busy: dict[Any, int] = {}
        for task in tasks:
            if len(busy) >= _WAITING * count:
                yield _next(ray, busy)
            number = min(range(count), key=list(busy.values()).count)
            busy[team[number].explain.remote(task)] = number
        while busy:
            yield _next(ray, busy)
    finally:
        if started_here:
            ray.shutdown()


def _next(ray: Any, busy: dict[Any, int]) -> Shard:
    (done,), _ = ray.wait(list(busy))
    busy.pop(done)
    return ray.get(done)


def _on_this_machine() -> dict[str, Any]:
    """Options of a cluster on this machine: more processors than it may have, so that two workers do not starve the
    reader; workers find packages where this process does, and have as many threads, for equal rounding."""
    threads = {name: os.environ[name] for name in _THREADS if name in os.environ}
    variables = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **threads}
    count = max(4, os.cpu_count() or 1)
    return {"num_cpus": count, "include_dashboard": False, "runtime_env": {"env_vars": variables}}
