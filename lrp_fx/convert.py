"""Entry point: ``convert`` takes a model and returns a converted module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lrp_fx.analysis.detached import HONOUR, READINGS
from lrp_fx.capture import ROUTES, unwrapped
from lrp_fx.capture_cache import Options
from lrp_fx.converted import RuleSource
from lrp_fx.encode import InputEncoder
from lrp_fx.module import ExplainableModule
from lrp_fx.operators.table import OpTable
from lrp_fx.rules.ruleset import RuleSet


def convert(
    model: torch.nn.Module | Any,
    *args: Any,
    tokenizer: Any = None,
    processor: Any = None,
    image_processor: Any = None,
    feature_extractor: Any = None,
    labels: Any = None,
    rules: RuleSource = "default",
    dynamic: bool = True,
    ops: str | Path | Mapping[str, Any] | None = None,
    capture: str = "auto",
    captures: int = 32,
    check: str | bool = "first",
    detach: str = HONOUR,
    **kwargs: Any,
) -> ExplainableModule:
    """Convert any ``nn.Module`` into an explainable one.

    Args:
        model: the model; it is not modified. ``nn.DataParallel`` and ``torch.compile`` around it are removed. A
            pipeline of transformers stands for its model, tokenizer and processors.
        tokenizer: the model's tokenizer (Hugging Face), or a processor that has one. ``explain`` and the like then take
            texts, pairs (a tuple), chats (a list of messages) and lists of them, and results have tokens and words.
        processor: the processor (Hugging Face) of a model that reads texts together with images or sound.
        image_processor: the model's image processor (Hugging Face), or any function from an image to a tensor.
            ``explain`` then takes images.
        feature_extractor: the model's feature extractor (Hugging Face). ``explain`` then takes sound, as
            ``{"array": ..., "sampling_rate": ...}`` or as an array with ``sampling_rate=``.
        labels: names of the classes, a sequence or {index: name}; None for those of the model's configuration. A tensor
            is an example input of that name.
        *args: example inputs. With them the model is captured now, without them at the first call.
        rules: a rule set: name, path of a TOML file, dict, or :class:`RuleSet`.
        dynamic: dynamic shapes where the model allows them (one capture serves any batch and length).
        ops: further op declarations: path of a TOML file, or a dict of the same structure.
        capture: "export" (one graph for every size and value), "trace" (records a run; the graph serves inputs that
            take the same branches, others are recorded anew), or "auto": export, and trace if export fails.
        captures: size of the capture cache; the least recently used capture is dropped first.
        check: "first" checks the first explanation of every capture and rule set with an accounting sweep
            (``lrp_fx.explain.check``); "always" checks every explanation, False none.
        detach: "honour" treats detached values (``detach``, ``.data``, ``no_grad``, ``inference_mode``) as constants
            under every rule set, as autograd does; only if no output has a gradient does relevance follow them, and a
            note says so. "see-through" lets relevance always follow the values.
        **kwargs: example inputs by keyword.

    Raises:
        CaptureError: if the model cannot be captured.
        UnknownOpError: if relevance reaches an operator without a declaration.
        RuleSetError: for a malformed rule set or op table.
        TypeError: for an object without an ``nn.Module``.
        ValueError: for another value of ``capture``, ``check`` or ``detach``.
    """
    if capture not in ROUTES:
        raise ValueError(f"capture={capture!r}: choose one of {', '.join(ROUTES)}")
    tools = {
        "tokenizer": tokenizer, "processor": processor, "image_processor": image_processor,
        "feature_extractor": feature_extractor,
    }  # fmt: skip
    if not isinstance(model, torch.nn.Module) and isinstance(getattr(model, "model", None), torch.nn.Module):
        tools = {name: tool if tool is not None else getattr(model, name, None) for name, tool in tools.items()}
        model = model.model
    if isinstance(labels, torch.Tensor):
        kwargs["labels"], labels = labels, None
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"convert expects an nn.Module, not {type(model).__name__}")
    if detach not in READINGS:
        raise ValueError(f"detach={detach!r}: choose one of {', '.join(READINGS)}")
    options = Options(dynamic, capture, captures, check, detach)
    options.when(check)
    model = unwrapped(model)
    encoder = InputEncoder.of(model, tools, labels)
    module = ExplainableModule(model, RuleSet.load(rules), OpTable.load(ops), options, encoder)
    args, kwargs, _ = module.encoded(args, kwargs)
    if args or kwargs:
        specialization, _ = module.specialization(args, kwargs)
        specialization.under(module.ruleset)  # raises for a rule set that does not fit the model
    return module
