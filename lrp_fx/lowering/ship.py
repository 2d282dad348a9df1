"""Relevance graphs as files: an exported program, a compiled package that needs no Python of ours, an ONNX model."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from lrp_fx.capture import copy_graph
from lrp_fx.capture.paths import module_of
from lrp_fx.errors import InputError, LrpError, require
from lrp_fx.explain import Attribution, Ledger
from lrp_fx.lowering.convolutions import transpose_convolutions
from lrp_fx.lowering.inductor import inductor_options
from lrp_fx.lowering.portable import spell_grouped_products
from lrp_fx.lowering.weights import Weights, fill, placeholder, references

_META, _REFERENCES = "lrp_fx.json", "weights"


def exported(graph_module: fx.GraphModule, plain: bool = False) -> torch.export.ExportedProgram:
    """The exported program of a relevance graph, its sizes as free as the graph leaves them.

    Args:
        plain: spell out what other runtimes than PyTorch do not have.
    """
    graph, _ = copy_graph(graph_module.graph)
    graph_module = fx.GraphModule(graph_module, graph, class_name="RelevanceGraph")
    spell_grouped_products(graph, plain)
    if plain:
        transpose_convolutions(graph)
    graph.lint()
    graph_module.recompile()
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    examples, free = [], []
    for node in placeholders:
        value = node.meta["val"]
        examples.append(torch.zeros([_size(n) for n in value.shape], dtype=value.dtype, device=value.device))
        free.append(
            {
                axis: torch.export.Dim.AUTO if isinstance(n, torch.SymInt) else torch.export.Dim.STATIC
                for axis, n in enumerate(value.shape)
            }
        )
    with torch.no_grad():
        return torch.export.export(graph_module, tuple(examples), dynamic_shapes=tuple(free), strict=False)


def _size(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def save(
    graph_module: fx.GraphModule, path: str | Path, about: Mapping[str, Any], without: nn.Module | None = None
) -> None:
    """Save a relevance graph; plain ``torch.export.load`` reads it, too.

    Args:
        without: a model whose weights are left out and referred to by their names; otherwise they are in the file.
    """
    program = exported(graph_module)
    known = {} if without is None else references(graph_module, without)
    elsewhere = {name: names for name, names in known.items() if name in program.state_dict}
    for name in elsewhere:
        program.state_dict[name] = placeholder(program.state_dict[name])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found")  # placeholders are incomplete on purpose
        torch.export.save(program, path, extra_files={_META: json.dumps({**about, _REFERENCES: elsewhere})})


def package(graph_module: fx.GraphModule, path: str | Path) -> Path:
    """Compile a relevance graph ahead of time to a package that runs from C++, or from Python with torch alone."""
    options = inductor_options(graph_module)
    with torch.no_grad():
        made = torch._inductor.aoti_compile_and_package(
            exported(graph_module), package_path=str(path), inductor_configs=options
        )
    return Path(made)


def to_onnx(graph_module: fx.GraphModule, path: str | Path, about: Mapping[str, Any]) -> None:
    """Write a relevance graph as an ONNX model; inputs and outputs have the names that ``about`` gives them.

    Raises:
        MissingExtraError: without the packages of the extra "onnx".
    """
    require("onnx", "onnx")
    require("onnxscript", "onnx")
    program: Any = torch.onnx.export(
        exported(graph_module, plain=True),
        dynamo=True,
        input_names=list(about["inputs"]),
        output_names=list(about["outputs"]),
        optimize=True,
        verbose=False,
    )
    program.save(str(path), external_data=False)


@dataclass(frozen=True)
class Artefact:
    """A relevance graph read from a file.

    Attributes:
        module: (tensor inputs, target inputs) -> {"target", "relevance", "latents", "output"}.
        about: names of inputs and outputs, kind of target, rule set.
    """

    module: torch.nn.Module
    about: Mapping[str, Any]

    def __call__(self, **inputs: Any) -> Attribution:
        """Explain one call: the inputs by name, and those of the target (``target=``, an int or a (B,) tensor).

        Raises:
            InputError: for a missing or an unknown input.
        """
        names = self.about["inputs"]
        if set(inputs) != set(names):
            raise InputError(f"this graph takes {', '.join(names)}; given were {', '.join(inputs) or 'none'}")
        tensors = [inputs[n] for n in names]
        batch = next(t for t in tensors if isinstance(t, Tensor)).shape[0]
        ready = [t if isinstance(t, Tensor) else torch.full((batch,), t) for t in tensors]
        with torch.no_grad():
            found = self.module(*ready)
        relevance = dict(found["relevance"])
        latents, rules = dict(found["latents"]), self.about["rules"]
        return Attribution(relevance, latents, found["target"], found["output"], rules, relevance, _no_ledger)


def _no_ledger() -> Ledger:
    raise LrpError("a saved graph has no ledger: explain with the converted model for the whole account")


def load(path: str | Path, weights: Weights | None = None) -> Artefact:
    """Read what :meth:`lrp_fx.ExplainableModule.save` wrote. Neither the model's class nor its library is needed.

    Args:
        path: the file.
        weights: where the weights are, of a graph that was saved with ``weights="reference"``: a safetensors file,
            several, a folder with ``model.safetensors`` or its index, or {name: file or tensor}.

    Raises:
        InputError: for a file that is no saved relevance graph, and where weights are needed or are not.
        WeightError: for weights that are not there, or of another shape or precision.
    """
    extra = {_META: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
        about = json.loads(extra[_META])
    except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{str(path)!r} is no saved relevance graph: {str(error).splitlines()[0]}") from error
    wanted, module = about.get(_REFERENCES, {}), module_of(program)
    if bool(wanted) != (weights is not None):
        remedy = "refers to a checkpoint: name it with weights=" if wanted else "holds its weights: leave out weights="
        raise InputError(f"{str(path)!r} {remedy}")
    if weights is not None:
        fill(module, wanted, weights)
    return Artefact(module, about)
