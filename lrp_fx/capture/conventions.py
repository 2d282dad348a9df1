"""What a model has to be told for the duration of a capture, and is told back afterwards.

These are conventions of the libraries models come from (``training``, ``config.use_cache``), not of any architecture:
evaluation mode makes dropout inert, a cache is state that a graph cannot return, and experts that loop over the data
have a traceable twin.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

TRACEABLE_EXPERTS = "grouped_mm"
_EXPERTS = "_experts_implementation_internal"


def _configs(model: torch.nn.Module) -> list[Any]:
    """Every configuration object reachable from the model's modules, nested ones included, each once."""
    found: dict[int, Any] = {}
    stack = [config for module in model.modules() if (config := getattr(module, "config", None)) is not None]
    while stack:
        config = stack.pop()
        if id(config) in found or not hasattr(config, "__dict__") or isinstance(config, torch.nn.Module):
            continue
        found[id(config)] = config
        stack += [v for k, v in vars(config).items() if k.endswith("config") and hasattr(v, "__dict__")]
    return list(found.values())


def is_encoder_decoder(model: torch.nn.Module) -> bool:
    """Whether what a model generates is another sequence than the one it reads."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


@contextlib.contextmanager
def traceable(model: torch.nn.Module, experts: str | None = TRACEABLE_EXPERTS) -> Iterator[None]:
    """Within: evaluation mode, caches off, experts traceable, no opaque kernels. Afterwards: all as it was."""
    training = [(module, module.training) for module in model.modules()]
    changed: list[tuple[Any, str, Any]] = []
    fastpath = torch.backends.mha.get_fastpath_enabled()

    def put(config: Any, name: str, value: Any) -> None:
        changed.append((config, name, vars(config)[name]))
        vars(config)[name] = value

    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator per encoder layer
        for module, _ in training:
            module.training = False
        for config in _configs(model):
            if vars(config).get("use_cache"):
                put(config, "use_cache", False)
            if experts is not None and _EXPERTS in vars(config) and vars(config)[_EXPERTS] != "batched_mm":
                put(config, _EXPERTS, experts)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for config, name, value in reversed(changed):
            vars(config)[name] = value
        for module, mode in training:
            module.training = mode
