"""The export format "lrp" of transformers: a model's outputs and its explanations from one saved graph.

Importing this module registers the format with ``transformers.exporters``. A folder of it holds the graph (``.pt2``, no
code and no pickles), the configuration and the manifest of transformers; neither the model's class nor its weights are
needed to load it.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.encode import Encoded, InputEncoder, encoded_call
from lrp_fx.errors import InputError
from lrp_fx.explain import Target
from lrp_fx.extras import require
from lrp_fx.lowering import load
from lrp_fx.results import Attribution
from lrp_fx.rules.ruleset import RuleSet

exporters: Any = require("transformers.exporters", "transformers")
_metadata: Any = require("transformers.exporters.metadata", "transformers")
_runners: Any = require("transformers.exporters.runners.base", "transformers")

FORMAT = "lrp"


@dataclass
class LrpConfig(exporters.ExportConfigMixin):  # type: ignore[misc]
    """Configuration of an export.

    Attributes:
        export_format: "lrp".
        rules: name or document of the rule set.
        target: an example of the targets that the graph takes, as in :meth:`lrp_fx.ExplainableModule.lower`: with a
            class, every class; with "contrast", only contrasts.
        at: names of latents whose relevance the graph returns, too.
        dynamic: whether sizes are free where the model allows it.
    """

    export_format: str = FORMAT
    rules: Any = "default"
    target: Any = 0
    at: Sequence[str] = ()
    dynamic: bool = True

    def __post_init__(self) -> None:
        """Replace a rule set by its document, which JSON can hold."""
        if isinstance(self.rules, RuleSet):
            self.rules = self.rules.document()


@dataclass(frozen=True)
class _Saved:
    """A loaded graph with its file, which is copied when the export is saved again."""

    graph: Any
    path: Path

    def save(self, path: str | Path) -> None:
        shutil.copyfile(self.path, path)


class LrpExporter(exporters.HfExporter):  # type: ignore[misc]
    """Exports outputs and relevance of a model as one graph."""

    export_format = FORMAT
    config_class = LrpConfig
    program_suffix = ".pt2"
    required_packages = ("torch",)

    def export_program(self, model: Any, sample_inputs: Mapping[str, Any], config: LrpConfig) -> tuple[Any, Any]:
        """Lower a model; returns the lowered graph and the metadata of transformers.

        Raises:
            InputError, TargetError, LatentError, UnknownOpError, CaptureError: as :meth:`lrp_fx.convert` and ``lower``.
        """
        inputs = dict(sample_inputs)
        xmodel = convert(model, rules=config.rules)
        how = {"target": config.target, "at": tuple(config.at), "dynamic": config.dynamic}
        graph = xmodel.lower(**inputs, **how, outputs=True)
        output = graph(**inputs).output
        call = SimpleNamespace(in_spec=pytree.tree_structure(((), inputs)), out_spec=pytree.tree_structure(output))
        described = SimpleNamespace(call_spec=call)
        metadata = _metadata.build_export_metadata(model, inputs, described, self.required_packages)
        _metadata.record_output_structure(metadata, output)
        return graph, metadata

    @classmethod
    def save_program(cls, program: Any, path: str | Path) -> None:
        """Write a graph."""
        program.save(path)

    @classmethod
    def load_program(cls, path: str | Path) -> Any:
        """Read a graph; no code of the file runs."""
        return _Saved(load(path), Path(path))


class LrpRunner(_runners.ModelRunner):  # type: ignore[misc]
    """Runs an export: called, it returns what the model returns; :meth:`explain` returns an attribution."""

    def __init__(self, program: Any, metadata: Any) -> None:
        super().__init__(metadata)
        self.graph = program.graph if isinstance(program, _Saved) else program

    @property
    def device(self) -> torch.device:
        """Where the graph runs: where it was exported."""
        return self.graph.accepts.device

    @classmethod
    def from_program(cls, program: Any, metadata: Any, device: Any = None) -> LrpRunner:
        """A runner.

        Raises:
            InputError: for another device than that of the export.
        """
        runner = cls(program, metadata)
        if device is not None and torch.device(device).type != runner.device.type:
            raise InputError(f"this graph runs on {runner.device}: export the model on {device} for that")
        return runner

    def __call__(self, share_inputs: bool = True, share_outputs: bool = False, **kwargs: Any) -> Any:
        """The model's outputs."""
        output = self.explain(target=self.metadata.export_config["target"], **kwargs).output
        return self.unflatten([leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)])

    def explain(self, *, target: Target = None, **kwargs: Any) -> Attribution:
        """Explain one call.

        Args:
            target: a target of the exported kind.
            **kwargs: the model's inputs.

        Raises:
            InputError, TargetError, NumericalError: as a loaded graph (:func:`lrp_fx.load`).
        """
        return self.graph(target=target, **kwargs)


class ExportedModule(nn.Module):
    """An export as a module, for pipelines of transformers and for :func:`lrp_fx.pipeline` (tasks that answer with a
    class, if the export's targets are classes). It has no parameters.

    Attributes:
        exported: the export.
        runner: its only runner.
        config: the model's configuration.
        ruleset: the rule set of the export.
        encoder: encodes raw inputs of :meth:`explain`; None without tokenizer and the like.
    """

    def __init__(self, exported: Any, **tools: Any) -> None:
        """Wrap an export of one graph.

        Args:
            exported: the export, with the format "lrp".
            **tools: ``tokenizer``, ``image_processor``, ``feature_extractor``, ``processor``.
        """
        super().__init__()
        (runner,) = exported.runners.values()
        self.exported, self.runner, self.config = exported, runner, exported.config
        if runner.metadata.architecture:  # pipelines of transformers know models by the names of their classes
            self.__class__ = type(runner.metadata.architecture, (ExportedModule,), {})
        self.forward = _taking(tuple(runner.metadata.kwargs), exported)
        self.ruleset = RuleSet.load(runner.metadata.export_config["rules"])
        self.encoder = InputEncoder.of(self, tools)

    @property
    def device(self) -> torch.device:
        """Where the graph runs."""
        return self.runner.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the graph."""
        return self.runner.dtype

    def can_generate(self) -> bool:
        """Whether it generates texts: one graph does not."""
        return False

    def encoded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any], Encoded | None]:
        """Encode raw inputs, as a converted module does."""
        return encoded_call(self.encoder, lambda: torch.empty(0, dtype=self.dtype, device=self.device), args, kwargs)

    def explain(self, *args: Any, target: Target = None, rules: RuleSource | None = None, **kwargs: Any) -> Attribution:
        """Explain one call, of raw inputs or of tensors by name.

        Args:
            *args: texts, images, sounds.
            target: as in :meth:`LrpRunner.explain`.
            rules: None, or the rule set of the export.
            **kwargs: the model's inputs.

        Raises:
            InputError: for another rule set; else as :meth:`LrpRunner.explain`.
        """
        if rules is not None and RuleSet.load(rules).key != self.ruleset.key:
            raise InputError(f"this graph has the rules {self.ruleset.name!r}: export the model under other ones")
        _, inputs, encoded = self.encoded(args, kwargs)
        taken = {name: value for name, value in inputs.items() if name in self.runner.metadata.kwargs}
        result = self.runner.explain(target=target, **taken)
        if encoded is None or self.encoder is None:
            return result
        notes = (*encoded.notes, *result.context.notes)
        return result.with_context(
            replace(result.context, tokens=encoded.tokens, notes=notes, labels=self.encoder.labels)
        )


def _taking(names: Sequence[str], function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a signature of these names: pipelines and encoders read it."""

    def forward(**kwargs: Any) -> Any:
        return function(**kwargs)

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward


exporters.register_backend(LrpExporter, LrpRunner)
