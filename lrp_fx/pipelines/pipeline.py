"""``lrp_fx.pipeline``: a task by name, as in transformers, with an attribution for every answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.encode.chats import is_chat
from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.module import ExplainableModule
from lrp_fx.pipelines.explained import Explained, Request
from lrp_fx.pipelines.tasks import ALIASES, TASKS, Task

_TOOLS = ("tokenizer", "processor", "image_processor", "feature_extractor")


@dataclass(frozen=True)
class Pipeline:
    """Answers, and explains its answers.

    Attributes:
        task: name of the task.
        xmodel: the converted model.
        pipe: the pipeline of transformers that answers; None for tasks that it does not have.
    """

    task: str
    xmodel: ExplainableModule
    pipe: Any = field(default=None, repr=False)

    def __call__(self, raw: Any, *, rules: RuleSource | None = None, **options: Any) -> Any:
        """Answer, and explain the answer.

        Args:
            raw: an input of the task, or a list of inputs. Images and sounds may be given by file name.
            rules: another rule set than the one of the conversion.
            **options: options of transformers' pipeline (``candidate_labels``, ``max_new_tokens``, ``top_k``, ...).

        Returns:
            An :class:`lrp_fx.Explained`; for a list, a list of them.

        Raises:
            InputError: for an input of another kind.
        """
        if isinstance(raw, list) and not is_chat(raw):
            return [self._one(one, options, rules) for one in raw]
        return self._one(raw, options, rules)

    def _one(self, raw: Any, options: dict[str, Any], rules: RuleSource | None) -> Explained:
        task = TASKS[self.task]
        raw = task.read(raw) if task.read is not None and isinstance(raw, str) else raw
        return task.explain(Request(self.xmodel, self.pipe, raw, options, rules))


def pipeline(
    task: str | Any, model: Any = None, *, rules: RuleSource = "default", labels: Any = None, **options: Any
) -> Pipeline:
    """A pipeline that explains its answers.

    Args:
        task: the name of a task (:data:`lrp_fx.pipelines.TASKS`), or a pipeline of transformers.
        model: a module, a converted module, the folder of a saved model, a pipeline of transformers, or an export
            (:class:`lrp_fx.integrations.transformers.ExportedModule`).
        rules: the rule set.
        labels: names of classes; None for those of the model's configuration.
        **options: ``tokenizer``, ``processor``, ``image_processor``, ``feature_extractor``; others go to
            ``transformers.pipeline``.

    Raises:
        InputError: for a task that is not in the table, and without a model.
        MissingExtraError: if transformers is needed and not installed.
    """
    pipe = next((p for p in (task, model) if hasattr(p, "task") and hasattr(p, "model")), None)
    named = task if isinstance(task, str) else getattr(pipe, "task", None)
    name = ALIASES.get(str(named), str(named).partition("_")[0])
    if name not in TASKS:
        raise InputError(f"there is no task {named!r}: choose one of {', '.join(TASKS)}")
    tools: dict[str, Any] = {tool: options.get(tool) for tool in _TOOLS}
    converted = model if isinstance(model, ExplainableModule) else None
    module = converted.model if converted is not None else model
    if pipe is None:
        if module is None:
            raise InputError(f"lrp_fx.pipeline({name!r}, model) needs a model")
        pipe = _theirs(name, module, options) if TASKS[name].theirs else None
    if pipe is not None:
        module = pipe.model
        tools = {tool: value if value is not None else getattr(pipe, tool, None) for tool, value in tools.items()}
    elif isinstance(module, str):
        module, tools["tokenizer"] = _loaded(TASKS[name], module, tools["tokenizer"])
    export: Any = module if converted is None and hasattr(module, "explain") else None  # explains under its own rules
    if export is not None:
        return Pipeline(name, export, pipe)
    xmodel = converted if converted is not None else convert(module, rules=rules, labels=labels, **tools)
    return Pipeline(name, xmodel, pipe)


def _theirs(name: str, model: Any, options: dict[str, Any]) -> Any:
    """The pipeline of transformers, on the model's device."""
    transformers: Any = require("transformers", "transformers")
    arguments = {name: value for name, value in options.items() if value is not None}
    if isinstance(model, torch.nn.Module):
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        arguments = {"device": device, **arguments}
    return transformers.pipeline(name, model=model, **arguments)


def _loaded(task: Task, folder: str, tokenizer: Any) -> tuple[torch.nn.Module, Any]:
    """A saved model and its tokenizer.

    Raises:
        InputError: for a task whose models are not saved by transformers.
    """
    if task.loads is None:
        raise InputError("models of this task cannot be loaded from a folder: give a module")
    transformers: Any = require("transformers", "transformers")
    model = getattr(transformers, task.loads).from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder) if tokenizer is None else tokenizer
