"""Exports of a converted module: one functional graph, files of it, pipeline stages."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lrp_fx.capture import TRACING, read_call
from lrp_fx.converted import ConvertedModule, RuleSource
from lrp_fx.errors import InputError
from lrp_fx.explain import Condition, Target
from lrp_fx.explain.conditions import places_of
from lrp_fx.extras import require
from lrp_fx.files import write_text
from lrp_fx.lowering import Lowered, lower
from lrp_fx.lowering.distributed.pipeline import Pipeline
from lrp_fx.version import VERSION

EXPLAIN_JSON = "explain.json"  #: file with rule set and options of a saved model, next to its config.json
EXPLAIN_GRAPH = "explain.pt2"  #: file with a graph whose weights are those beside it
EXPLAIN_SCHEMA = 1


class Exporting(ConvertedModule):
    """The exporters of a converted module; all but :meth:`pipeline` take the arguments of :meth:`lower`."""

    def lower(
        self,
        *args: Any,
        target: Target = None,
        at: str | Iterable[str] = (),
        condition: Condition | None = None,
        rules: RuleSource | None = None,
        outputs: bool = False,
        dynamic: bool = True,
        **kwargs: Any,
    ) -> Lowered:
        """Forward pass, relevance backward pass and target selection as one functional graph of tensor operators.

        The graph is called like :meth:`explain`, with inputs of any size within its shape guards and any target of the
        same kind (a class, a tuple of indices, a :class:`lrp_fx.Contrast`, a :class:`lrp_fx.Span`, each sample's
        largest logit, or this callable).

        Args:
            *args: example inputs; without any, those of the latest capture.
            target: its kind is fixed, its value is an input of the graph.
            at: as in :meth:`explain`.
            condition: as in :meth:`explain`; a part of the graph.
            rules: another rule set than the one the model was converted with.
            outputs: also return the model's outputs; without them its head runs at the explained positions only.
            dynamic: dynamic shapes; otherwise nodes that depend on sizes alone (masks, rotary tables) are folded.
            **kwargs: example inputs.

        Raises:
            InputError, TargetError, LatentError, UnknownOpError, CaptureError: see ``lrp_fx.errors``.
        """
        specialization, call = self.example(args, kwargs)
        sweeper = specialization.sweeper(self.rule_set(rules), places_of(at, {} if condition is None else condition))
        read = functools.partial(read_call, self.model, free=call.free)
        with TRACING:
            lowered = lower(sweeper, read, call, target, condition=condition, outputs=outputs, dynamic=dynamic)
        return replace(lowered, show=self.captures.show_one_sample) if dynamic else lowered

    def compile(  # type: ignore[override]
        self, *args: Any, mode: str | None = None, per_block: bool | None = None, **kwargs: Any
    ) -> Lowered:
        """:meth:`lower` under ``torch.compile`` (full graph, compiled at the first call); ``mode`` as there.

        :meth:`explain` then uses it for every call that it serves: the same kind of target, rule set and ``at``. It
        replaces an older compiled graph for such calls. With ``per_block`` each kind of repeated block is compiled
        once, so that compile time does not grow with depth; None does so where at least four blocks are alike.
        """
        graph = self.lower(*args, **kwargs).compile(mode, per_block=per_block)
        if not graph.condition:
            specialization = next(c for c in self.captures if c.captured is graph.sweeper.captured)
            specialization.use(graph, places_of(kwargs.get("at", ())))
        return graph

    def save(self, path: str | Path, *args: Any, weights: str = "inside", **kwargs: Any) -> None:
        """:meth:`lower`, saved for :func:`lrp_fx.load`; with ``weights="reference"`` without the model's weights."""
        self.lower(*args, **kwargs).save(path, weights, self.model)

    def save_pretrained(
        self, folder: str | Path, *, check: Any = None, graph: bool | Mapping[str, Any] = False, **options: Any
    ) -> Path:
        """Save the model, its tokenizer or processors, and its rule set for :func:`lrp_fx.from_pretrained`.

        ``explain.json`` next to the files of transformers has the whole rule set, the options ``detach`` and
        ``capture`` of ``convert``, versions, and the check. It does not have declarations of operators
        (``convert(ops=...)``). A graph, ``explain.pt2``, has no weights: ``lrp_fx.load(folder / "explain.pt2",
        weights=folder)`` reads those of the model.

        Args:
            folder: folder to write to.
            check: result of :func:`lrp_fx.testing.check` to save with the model; None for none.
            graph: arguments of :meth:`lower`, to save its graph, too; True for those of the latest capture.
            **options: arguments of the model's ``save_pretrained``.

        Returns:
            The folder.

        Raises:
            InputError: for a model, or a tokenizer or processor, without ``save_pretrained``.
        """
        parts = [self.model, *([] if self.encoder is None else self.encoder.tools)]
        if missing := [part for part in parts if not hasattr(part, "save_pretrained")]:
            raise InputError(f"{type(missing[0]).__name__} has no save_pretrained: save(path) writes a graph instead")
        parts[0].save_pretrained(folder, **options)
        for tool in parts[1:]:
            tool.save_pretrained(folder)
        how = self.captures.options
        document = {
            "schema": EXPLAIN_SCHEMA, "versions": {"lrp_fx": VERSION, "torch": torch.__version__},
            "rules": self.ruleset.document(), "options": {"detach": how.detach, "capture": how.route},
            "check": None if check is None else check.to_dict(),
        }  # fmt: skip
        write_text(Path(folder) / EXPLAIN_JSON, json.dumps(document, indent=1) + "\n")
        if graph is not False:
            self.save(Path(folder) / EXPLAIN_GRAPH, weights="reference", **({} if graph is True else graph))
        return Path(folder)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None,
        commit_message: str = "Model with its rule set", **options: Any,
    ) -> str:  # fmt: skip
        """Upload what :meth:`save_pretrained` writes to the Hugging Face Hub; the repository is created if it is new.

        Args:
            repo_id: ``organisation/name``.
            private: whether a new repository is private; None for the organisation's default.
            token: token of the account; None for the one that ``hf auth login`` stored.
            commit_message: message of the commit.
            **options: arguments of :meth:`save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            InputError: as :meth:`save_pretrained`.
            MissingExtraError: if huggingface_hub is not installed.
        """
        library: Any = require("huggingface_hub", "transformers")
        api = library.HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **options)
            created = api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message=commit_message)
        return str(commit)

    def package(self, path: str | Path, *args: Any, **kwargs: Any) -> Path:
        """:meth:`lower`, compiled ahead of time (AOTInductor) to a package that runs from C++, or with torch alone."""
        return self.lower(*args, **kwargs).package(path)

    def to_onnx(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """:meth:`lower`, as an ONNX model (needs the extra "onnx")."""
        self.lower(*args, **kwargs).to_onnx(path)

    def pipeline(
        self,
        *args: Any,
        group: Any = None,
        at: str | Iterable[str] = (),
        rules: RuleSource | None = None,
        **kwargs: Any,
    ) -> Pipeline:
        """This process's stage of the model, to explain with the other processes of a ``torch.distributed`` group.

        Every process makes the same call, with example inputs or none, as :meth:`lower`; then all call ``explain`` of
        the result.
        """
        ruleset = self.rule_set(rules)
        specialization, call = self.example(args, kwargs)
        sweeper = specialization.sweeper(ruleset, places_of(at))
        return Pipeline.build(sweeper, group, functools.partial(read_call, self.model, free=call.free))
