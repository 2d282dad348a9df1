"""Measured functions by name: contenders, which return relevance, and references."""

from __future__ import annotations

import importlib.util
import sys
import time
import types
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import lrp_fx
from benchmark.cases import Case
from lrp_fx.lowering import Lowered

Run = Callable[[], Tensor | None]
ORDER = ("forward", "gradient", "eager", "lowered", "compiled", "compiled forward")


def forward(case: Case) -> Run:
    """The model alone."""

    def run() -> None:
        with torch.no_grad():
            case.model(**case.inputs)

    return run


def gradient(case: Case) -> Run:
    """Input times gradient of the largest logit, by plain eager autograd."""

    def run() -> Tensor:
        inputs = case.embedded()
        case.logits(case.model(**inputs)).max(-1).values.sum().backward()
        sources = [v for v in inputs.values() if isinstance(v, Tensor) and v.requires_grad]
        return torch.cat([(v.detach() * v.grad).flatten() for v in sources if v.grad is not None])

    return run


def compiled_forward(case: Case) -> Run:
    """The model alone, compiled: twice its time is a bound for forward and backward."""
    fast = torch.compile(case.model, dynamic=False)

    def run() -> None:
        with torch.no_grad():
            fast(**case.inputs)

    return run


def autolrp(case: Case) -> Run:
    """autoLRP's AttnLRP on the same embeddings."""
    import autolrp as other

    def run() -> Tensor:
        inputs = case.embedded()
        wrapped = {k: other.tensor(v.detach()) if _differentiable(v) else v for k, v in inputs.items()}
        out = case.logits(case.model(**wrapped))
        out[0, int(out[0].argmax())].lrp(config=other.LRPConfig.attnlrp())
        return torch.cat([w.relevance.flatten() for w in wrapped.values() if isinstance(w, other.LRPTensor)])

    return run


def zennit(case: Case) -> Run:
    """zennit's EpsilonPlus, batch normalization merged."""
    _stand_in_for_torchvision()
    from zennit.attribution import Gradient
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import EpsilonPlus

    composite = EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])
    (image,) = case.inputs.values()

    def run() -> Tensor:
        with Gradient(model=_LogitsOnly(case.model), composite=composite) as attributor:
            return attributor(
                image.clone(), lambda out: torch.eye(out.shape[1], device=out.device)[out.argmax(-1)] * out
            )[1]

    return run


def _stand_in_for_torchvision() -> None:
    """zennit only needs two class names of torchvision, which has no build for some versions of torch."""
    if importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.models", "torchvision.models.resnet"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.models.resnet"].__dict__.update(
            Bottleneck=type("B", (), {}), BasicBlock=type("A", (), {})
        )
        sys.modules["torchvision.models"].__dict__["resnet"] = sys.modules["torchvision.models.resnet"]


class _LogitsOnly(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image).logits


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def lxt(case: Case) -> Run:
    """LXT's efficient implementation; it patches transformers permanently, so it runs in its own process."""
    from lxt.efficient import monkey_patch

    monkey_patch(sys.modules[type(case.model).__module__])
    return gradient(case)


class Explainers:
    """The contenders of lrp_fx for one case, and the time to make them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.seconds: dict[str, float] = {}
        self.xmodel = self._timed("convert", lambda: lrp_fx.convert(case.model, **case.inputs))

    def _timed(self, name: str, make: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        contender = make()
        self.seconds[name] = time.perf_counter() - start
        return contender

    def eager(self) -> Run:
        """``explain``."""
        return lambda: _all(self.xmodel.explain(**self.case.inputs))

    def low(self) -> Run:
        """``explain(memory="low")``."""
        return lambda: _all(self.xmodel.explain(**self.case.inputs, memory="low"))

    @cached_property
    def graph(self) -> Lowered:
        """The lowered graph."""
        return self._timed("lower", lambda: self.xmodel.lower(**self.case.inputs))

    def lowered(self) -> Run:
        """``lower``."""
        return lambda: _all(self.graph(**self.case.inputs))

    def compiled(self) -> Run:
        """``compile`` by way of ``lower``, so that ``explain`` does not use it."""
        graph = self.graph.compile()
        return lambda: _all(graph(**self.case.inputs))


def _all(attribution: lrp_fx.Attribution) -> Tensor:
    return torch.cat([r.flatten() for r in attribution.relevance.values()])
