"""Randomisation test (Adebayo et al., arXiv:1810.03292): an explanation has to change with the model's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from lrp_fx.capture import Captured
from lrp_fx.errors import InputError
from lrp_fx.evaluate.methods import Method
from lrp_fx.evaluate.metrics import rank_correlation
from lrp_fx.evaluate.task import Task


def randomisation(task: Task, method: Method, batch: int = 32, stages: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Rank correlation of |relevance| before and after parameters are redrawn, cascading from the output down.

    The parameters of a copy of the model are redrawn from normal distributions with their means and standard
    deviations, so that activations keep their scale. The target stays the same. Low is good: a method with a high
    correlation does not depend on the model.

    Returns:
        ``"randomised 25%"`` ... ``"randomised 100%"`` (of the model's modules): (N,) Spearman correlations.

    Raises:
        InputError: if the method does not apply to the model.
    """
    twin = replace(task, model=copy.deepcopy(task.model))
    explain = method.prepare(twin)
    if explain is None:
        raise InputError(f"{method.name} does not apply to task {task.name!r}")
    samples = twin.batch(slice(0, method.limit))
    batches = [samples.part(slice(i, i + batch)) for i in range(0, len(samples), batch)]
    before = [explain(b).abs() for b in batches]
    twin.converted(**batches[0].inputs)
    order = from_the_top(twin.model, twin.converted.current.captured)
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for stage, group in enumerate(_groups(order, stages), 1):
        for parameter in group:
            redraw(parameter, generator)
        after = [explain(b).abs() for b in batches]
        values[f"randomised {100 * stage // stages}%"] = torch.cat(
            [rank_correlation(x, y, b.eligible) for x, y, b in zip(before, after, batches, strict=True)]
        )
    return values


def redraw(parameter: nn.Parameter, generator: torch.Generator) -> None:
    """Redraw a parameter in place, from a normal distribution with its mean and standard deviation."""
    with torch.no_grad():
        mean, deviation = parameter.mean(), parameter.std(correction=0)
        parameter.copy_(mean + deviation * torch.randn(parameter.shape, generator=generator))


def from_the_top(model: nn.Module, captured: Captured) -> list[list[nn.Parameter]]:
    """The parameters by module, in reverse order of their first use in the captured graph."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()
    uses = [n for n in captured.graph_module.graph.nodes if n.op == "get_attr" and n.users]
    position = {n: i for i, n in enumerate(captured.graph_module.graph.nodes)}
    for node in sorted(uses, key=lambda n: min(position[u] for u in n.users)):
        parameter = parameters.get(str(node.target))
        if parameter is not None and id(parameter) not in seen:
            seen.add(id(parameter))
            modules.setdefault(str(node.target).rpartition(".")[0], []).append(parameter)
    return list(reversed(modules.values()))


def _groups(order: list[list[nn.Parameter]], count: int) -> Iterator[list[nn.Parameter]]:
    for stage in range(count):
        first, last = stage * len(order) // count, (stage + 1) * len(order) // count
        yield [p for module in order[first:last] for p in module]
