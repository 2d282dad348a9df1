"""The entry to it all: a model in, a converted module out."""

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
        model: the model; it is not modified. One inside ``nn.DataParallel`` or ``torch.compile`` is taken out; a
            pipeline object of transformers is taken with its tokenizer and processors.
        tokenizer: the model's tokenizer, of Hugging Face's kind (a processor that has one will do): ``explain`` and its
            like then take texts, pairs (a tuple), chats (a list of messages) and lists of them, and results know their
            tokens and words.
        processor: of Hugging Face's kind: what a model needs that reads texts beside images or sound.
        image_processor: of Hugging Face's kind, or any function of an image to a tensor: ``explain`` then takes images.
        feature_extractor: of Hugging Face's kind: ``explain`` then takes sound, as ``{"array": ..., "sampling_rate":
            ...}`` or an array with ``sampling_rate=``.
        labels: names of the classes, a sequence or {index: name}; None for those of the model's configuration. A tensor
            is an example input of that name.
        *args: example inputs. With them the model is captured now, without them at the first call.
        rules: a rule set: name, path of a TOML file, dict, or :class:`RuleSet`.
        dynamic: leave every input dimension free that the model allows (one capture serves any batch and length).
        ops: further op declarations: path of a TOML file, or a dict of the same form.
        capture: "export" (one graph for every size and value), "trace" (records a run; serves inputs that lead to the
            same decisions, and records anew for others), or "auto": trace what export refuses.
        captures: how many captures are kept: those that were used last.
        check: "first" holds the first explanation of every capture and rule set to an accounting sweep
            (``lrp_fx.explain.check``); "always" does so every time, False never.
        detach: "honour" takes what the model's author held constant (``detach``, ``.data``, ``no_grad``,
            ``inference_mode``) for a constant, under every rule set, as autograd does; a model all of whose output is
            without gradients is seen through, and a note says so. "see-through" lets relevance follow the values.
        **kwargs: example inputs by keyword.

    Raises:
        CaptureError: when the model cannot be captured.
        UnknownOpError: when relevance reaches an operator that nobody declared.
        RuleSetError: for a malformed rule set or op table.
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
        specialization.under(module.ruleset)  # so that a rule set which does not fit is an error now
    return module
