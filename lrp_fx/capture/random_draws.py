"""Random draws of a recorded run, which become constants of the graph.

Drawn again, hashes and noise would differ from the values that Python read. If the distribution depends on a tensor,
the draw is reparametrised: fixed noise, and operators of the graph. Relevance then passes, and other probabilities give
other samples. If no such form is known, the sample is fixed, and the graph serves equal parameters only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils import _pytree as pytree

_SAMPLERS = {"_standard_gamma", "_sample_dirichlet"}
#: kernels with dropout inside: their results are no samples
_KERNELS = {"lstm", "gru", "rnn_tanh", "rnn_relu", "miopen_rnn", "native_dropout"}
_ATTENTION = "scaled_dot_product_attention"


def draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a PyTorch function, one that is a single operator, draws random numbers."""
    name = getattr(func, "__name__", "")
    if isinstance(func, FunctionType) or name in _KERNELS or (name.startswith("_") and name not in _SAMPLERS):
        return False
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if not isinstance(packet, torch._ops.OpOverloadPacket) or name.startswith("rrelu_with"):
        return False
    if name == _ATTENTION:
        return bool(_attention_arguments(args, kwargs)["dropout_p"])
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, o).tags for o in packet.overloads())


def draw(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], note: Callable[[Any], None]) -> Any:
    """The result of a random call, with its random part as a constant of the recorded graph.

    Args:
        func: a function for which :func:`draws` holds.
        args: its arguments.
        kwargs: its keyword arguments.
        note: called with the arguments on which a fixed sample depends.
    """
    name = func.__name__
    if (form := _SPELLINGS.get(name.removesuffix("_"))) is not None:
        value = form(func, args, kwargs)
        if value is not NotImplemented:
            written = name.endswith("_") and value is not args[0]
            return args[0].copy_(value) if written else value
    if name.endswith("_"):
        with disable_proxy_modes_tracing():
            value = func(torch.empty_like(args[0]), *args[1:], **kwargs)
        _note_all(note, (args[1:], kwargs))
        return args[0].copy_(value)
    _note_all(note, (args[name.endswith("_like") :], {k: v for k, v in kwargs.items() if k != "out"}))
    with disable_proxy_modes_tracing():
        value = func(*args, **{k: v for k, v in kwargs.items() if k != "out"})
    return value if kwargs.get("out") is None else kwargs["out"].copy_(value)


def _note_all(note: Callable[[Any], None], arguments: Any) -> None:
    for leaf in pytree.tree_leaves(arguments):
        note(leaf)


def _dropout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Dropout of any kind is affine in every entry, x * scale + shift, as found from its results on ones and zeros."""
    x, p, training = _bound(args, kwargs, input=None, p=0.5, train=True)
    if not training or p == 0:
        return x
    call = getattr(torch, func.__name__.removesuffix("_"))
    with disable_proxy_modes_tracing():
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            shift = call(torch.zeros_like(x), p, True)
        scale = call(torch.ones_like(x), p, True) - shift
        shifted = bool(shift.any())
    return x * scale + shift if shifted else x * scale


def _bernoulli(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """1 if uniform noise is below the probability, else 0."""
    x, p = _bound(args, kwargs, input=None, p=None)
    if p is None and not func.__name__.endswith("_"):
        p = x
    if not isinstance(p, Tensor):
        return NotImplemented
    with disable_proxy_modes_tracing():
        noise = torch.rand(x.shape, dtype=p.dtype, device=p.device, generator=kwargs.get("generator"))
    return (noise < p).to(x.dtype)


def _multinomial(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Indices of the largest probability / exponential noise, as PyTorch draws without replacement."""
    weights, count, replacement = _bound(args, kwargs, input=None, num_samples=None, replacement=False)
    every = replacement and count > 1
    shape = (*weights.shape[:-1], count, weights.shape[-1]) if every else weights.shape
    with disable_proxy_modes_tracing():
        noise = torch.empty(shape, dtype=weights.dtype, device=weights.device)
        noise.exponential_(1, generator=kwargs.get("generator"))
    if every:
        return (weights.unsqueeze(-2) / noise).argmax(-1)
    return (weights / noise).topk(count, -1).indices


def _normal(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Standard normal noise times the deviation, plus the mean."""
    if func.__name__.endswith("_"):
        return NotImplemented
    mean, deviation = _bound(args, kwargs, mean=0.0, std=1.0)
    tensors = [t for t in (mean, deviation) if isinstance(t, Tensor)]
    if not tensors:
        return NotImplemented
    with disable_proxy_modes_tracing():
        shape = torch.broadcast_shapes(*(t.shape for t in tensors))
        noise = torch.empty(shape, dtype=tensors[0].dtype, device=tensors[0].device)
        noise.normal_(generator=kwargs.get("generator"))
    return noise * deviation + mean


def _rrelu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """x if it is positive, else x times a random slope."""
    x, lower, upper, training = _bound(args, kwargs, input=None, lower=1 / 8, upper=1 / 3, training=False)
    if not training:
        return torch.nn.functional.leaky_relu(x, (lower + upper) / 2)
    with disable_proxy_modes_tracing():
        slopes = torch.empty_like(x).uniform_(lower, upper)
    return torch.where(x > 0, x, x * slopes)


def _attention(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Attention written out, with the dropout of this run on its weights."""
    query, key, value, mask, p, causal, scale, grouped = _attention_arguments(args, kwargs).values()
    groups = query.shape[-3] // key.shape[-3] if grouped else 1
    key, value = (t.repeat_interleave(groups, -3) if groups > 1 else t for t in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -float("inf")) if mask.dtype is torch.bool else scores + mask
    return torch.dropout(scores.softmax(-1), p, True) @ value


def _attention_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    defaults = dict(zip(names, (None, None, None, None, 0.0, False, None, False), strict=True))
    return defaults | dict(zip(names, args, strict=False)) | kwargs


def _bound(args: tuple[Any, ...], kwargs: dict[str, Any], **defaults: Any) -> list[Any]:
    """Arguments in the order of ``defaults``, which fill in missing ones."""
    kinds = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=d) for n, d in defaults.items()]
    accepted = {k: v for k, v in kwargs.items() if k in defaults}
    bound = inspect.Signature(kinds).bind(*args[: len(defaults)], **accepted)
    bound.apply_defaults()
    return list(bound.arguments.values())


_SPELLINGS: dict[str, Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]] = {
    "dropout": _dropout,
    "alpha_dropout": _dropout,
    "feature_dropout": _dropout,
    "feature_alpha_dropout": _dropout,
    "bernoulli": _bernoulli,
    "multinomial": _multinomial,
    "normal": _normal,
    "rrelu": _rrelu,
    _ATTENTION: _attention,
}


def drawing(graph: fx.Graph) -> list[fx.Node]:
    """Nodes with users that draw random numbers in every run of a captured graph."""
    tag = torch.Tag.nondeterministic_seeded
    seeded = [n for n in graph.nodes if isinstance(n.target, torch._ops.OpOverload) and tag in n.target.tags]
    return [n for n in seeded if n.users and not _inert(n)]


def _inert(node: fx.Node) -> bool:
    """Whether a node that could draw does not: dropout in evaluation mode, attention without dropout."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    arguments = {a.name: a.default_value for a in schema if a.has_default_value()}
    arguments |= {a.name: v for a, v in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    return arguments.get("train") is False or arguments.get("training") is False or arguments.get("dropout_p") == 0
