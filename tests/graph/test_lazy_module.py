"""Graph modules whose code is generated at the first call."""

import copy
import sys
import threading

import pytest
import torch
from torch import fx

from lrp_fx.graph.lazy_module import lazy_module


def sums(count: int) -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for _ in range(count):
        x = graph.call_function(torch.add, (x, 1))
    graph.output(x)
    return graph


@pytest.fixture
def threads_switch_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def called_by_threads(module, count):
    """What ``count`` threads get that call ``module`` at the same time."""
    results = []
    threads = [threading.Thread(target=lambda: results.append(float(module(torch.zeros(()))))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_that_make_the_first_call_at_once_get_the_same_code(threads_switch_often):
    for _ in range(5):
        assert called_by_threads(lazy_module({}, sums(300), "Sums"), 8) == [300.0] * 8


def test_copies_and_changed_graphs_generate_their_own_code():
    module = lazy_module({}, sums(3), "Sums")
    assert float(module(torch.zeros(()))) == 3
    copied = copy.deepcopy(module)
    total = copied.graph.output_node().args[0]
    with copied.graph.inserting_before(copied.graph.output_node()):
        copied.graph.output_node().args = (copied.graph.call_function(torch.mul, (total, 2)),)
    copied.recompile()
    assert float(copied(torch.zeros(()))) == 6
    assert float(module(torch.zeros(()))) == 3
