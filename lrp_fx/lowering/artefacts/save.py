"""Relevance graphs as files: an exported program, a compiled package without a need for lrp_fx, an ONNX model."""

from __future__ import annotations

import json
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.pt2_archive._package import package_pt2

from lrp_fx.cache.safe_names import attribute, by_torch
from lrp_fx.cache.serialize import Reader, Writer
from lrp_fx.capture import Shapes
from lrp_fx.capture.signature import flatten
from lrp_fx.capture.size_formulas import Unstorable
from lrp_fx.errors import InputError, LoweringError, LrpError, TargetError, UnsafeFileError, type_and_line
from lrp_fx.explain import Target
from lrp_fx.explain.reading import Reading
from lrp_fx.explain.target import check_won
from lrp_fx.explain.target_types import normal
from lrp_fx.extras import require
from lrp_fx.files import replacing, writing
from lrp_fx.graph.attribute_paths import module_of
from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.dimensions import example_size
from lrp_fx.lowering.accepts import Accepts, ran
from lrp_fx.lowering.artefacts.archive import ABOUT, Archive
from lrp_fx.lowering.artefacts.portable import spell_grouped_products
from lrp_fx.lowering.artefacts.viewable import viewable
from lrp_fx.lowering.artefacts.weights import Weights, fill, placeholder, references
from lrp_fx.lowering.dynamic_shapes import ShapeGuards
from lrp_fx.lowering.inductor import inductor_options
from lrp_fx.lowering.joint_graph import check_finite
from lrp_fx.lowering.targets.spec import TargetSpec
from lrp_fx.passes.convolution_backward import transpose_convolutions
from lrp_fx.results import Attribution, Context, no_ledger
from lrp_fx.results.document import read_context

_REFERENCES = "weights"
_UNACCOUNTED = "a saved graph has no ledger: explain with the converted model for one"


def portable(graph_module: fx.GraphModule, plain: bool = False) -> fx.GraphModule:
    """A relevance graph without operators of other libraries.

    Args:
        graph_module: the relevance graph.
        plain: decompose operators that only PyTorch has.
    """
    graph, _ = copy_graph(graph_module.graph)
    graph_module = fx.GraphModule(graph_module, graph, class_name="RelevanceGraph")
    spell_grouped_products(graph, plain)
    if plain:
        transpose_convolutions(graph)
    graph.lint()
    graph_module.recompile()
    return graph_module


def exported(graph_module: fx.GraphModule) -> torch.export.ExportedProgram:
    """The exported program of a portable graph, with the graph's dynamic dimensions."""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    examples, free = [], []
    for node in placeholders:
        value = node.meta["val"]
        examples.append(torch.zeros([example_size(n) for n in value.shape], dtype=value.dtype, device=value.device))
        free.append(
            {
                axis: torch.export.Dim.AUTO if isinstance(n, torch.SymInt) else torch.export.Dim.STATIC
                for axis, n in enumerate(value.shape)
            }
        )
    with torch.no_grad():
        return torch.export.export(graph_module, tuple(examples), dynamic_shapes=tuple(free), strict=False)


def save(
    graph_module: fx.GraphModule, path: str | Path, about: Mapping[str, Any], without: nn.Module | None = None
) -> None:
    """Save a relevance graph; plain ``torch.export.load`` reads it, too.

    Args:
        graph_module: the relevance graph.
        path: the file to write.
        about: metadata for :func:`load`: names, precisions and sizes of inputs, kind of target, rule set.
        without: a model whose weights are left out and referred to by name; None to write all weights.

    Raises:
        LoweringError: for a graph that has no plain form.
        OSError: where the file cannot be written; an older file stays.
    """
    graph_module = portable(graph_module)
    program = exported(viewable(graph_module))
    graph = _plain_graph(graph_module)
    names = {at: _name_in(at, program, graph_module) for at in graph.pop("paths")}
    referred = {} if without is None else references(graph_module, without)
    elsewhere = {at: keys for at, keys in referred.items() if names.get(at) in program.state_dict}
    for name in {names[at] for at in elsewhere}:
        program.state_dict[name] = placeholder(program.state_dict[name])
    program.example_inputs = None  # (would be pickled; not needed)
    document = {**about, **graph, "tensors": names, _REFERENCES: elsewhere}
    with warnings.catch_warnings(), writing(path) as file:
        warnings.filterwarnings("ignore", message="No complete tensor found")  # of placeholders: expanded on purpose
        torch.export.save(program, file, extra_files={ABOUT: json.dumps(document)})


def _plain_graph(graph_module: fx.GraphModule) -> dict[str, Any]:
    """A graph as plain data, with the paths of its tensors; only its inputs have ``meta["val"]``."""
    graph, _ = copy_graph(graph_module.graph)
    for node in graph.nodes:
        node.meta = {"val": node.meta["val"]} if node.op == "placeholder" else {}
    writer, paths = Writer(), sorted({str(n.target) for n in graph.find_nodes(op="get_attr")})
    try:
        return {"graph": writer.graph(graph), "symbols": writer.symbols(), "table": writer.table, "paths": paths}
    except Unstorable as reason:
        raise LoweringError(
            f"this graph cannot be saved: {reason}. Remedy: package() it, or use explain()."
        ) from reason


def _name_in(path: str, program: torch.export.ExportedProgram, graph_module: fx.GraphModule) -> str:
    """Name of a graph's tensor (at ``path``) in the exported program."""
    tensors = {**program.state_dict, **program.constants}
    if path in tensors:
        return path
    tensor = operator.attrgetter(path)(graph_module)
    return next(name for name, value in tensors.items() if value is tensor)


def package(graph_module: fx.GraphModule, path: str | Path, about: Mapping[str, Any]) -> Path:
    """Compile a relevance graph ahead of time to a package that runs from C++, or from Python with torch alone.

    Raises:
        ValueError: for a path that does not end in .pt2.
        OSError: where the file cannot be written; an older file stays.
    """
    if Path(path).suffix != ".pt2":
        raise ValueError(f"{str(path)!r}: the name of a package ends in .pt2")
    options = {**inductor_options(graph_module), "aot_inductor.package": True}
    graph_module = portable(graph_module)
    program, graph = exported(graph_module), _plain_graph(graph_module)
    assert program.example_inputs is not None
    document = {**about, **graph, "graph": None}
    with torch.no_grad():
        files: Any = torch._inductor.aot_compile(module_of(program), *program.example_inputs, options=options)
    with writing(path) as file:
        package_pt2(file, aoti_files=files, extra_files={ABOUT: json.dumps(document)})
    return Path(path)


def to_onnx(graph_module: fx.GraphModule, path: str | Path, about: Mapping[str, Any]) -> None:
    """Write a relevance graph as an ONNX model, with the names of inputs and outputs in ``about``.

    Raises:
        MissingExtraError: without the packages of the extra "onnx".
    """
    require("onnx", "onnx")
    require("onnxscript", "onnx")
    program: Any = torch.onnx.export(
        exported(viewable(portable(graph_module, plain=True))),
        dynamo=True,
        input_names=list(about["inputs"]),
        output_names=list(about["outputs"]),
        optimize=True,
        verbose=False,
    )
    with replacing(path) as beside:
        program.save(str(beside), external_data=False)


@dataclass(frozen=True)
class Artefact:
    """A relevance graph read from a file.

    Attributes:
        module: (tensor inputs, target inputs) -> {"target", "relevance", "latents", "output"}.
        about: names of inputs and outputs, kind of target, rule set.
        accepts: names, precisions and sizes of the inputs.
        positions: names of the positional inputs.
        reading: where the model's output has its logits.
        context: notes on the model, copied into every explanation.
    """

    module: Callable[..., Any]
    about: Mapping[str, Any]
    accepts: Accepts = field(repr=False)
    positions: tuple[str, ...] = field(repr=False)
    reading: Reading = field(repr=False)
    context: Context = field(repr=False)

    def __call__(self, *args: Any, target: Target = None, **kwargs: Any) -> Attribution:
        """Explain one call, as :meth:`lrp_fx.Lowered.__call__` does: inputs by name or by position.

        Constants of the lowered call are fixed in the graph and may be left out.

        Raises:
            InputError: for inputs of other number, names, precision, device or sizes.
            TargetError: for a target of another kind, or out of range.
            NumericalError: when the target or a relevance is not finite.
        """
        names, spec = list(self.accepts.dtypes), self._spec
        tensors = self.accepts.tensors(flatten(list(self.positions), args, kwargs, self.accepts.free))
        if target is None and spec.names:
            raise InputError(f"this graph takes {', '.join((*names, *spec.names))}; no target was given")
        if spec.kind == "callable" and target is not None:
            raise TargetError("this graph was saved with a callable target: call it without target=")
        extra: tuple[Tensor, ...] = ()
        if spec.names or target is not None:
            extra = spec.inputs(target, self.accepts.guards.limits(tensors), tensors[0].device, self.reading)
        with ran(), torch.no_grad():
            results = self.module(*tensors, *extra)
        relevance, latents = dict(results["relevance"]), dict(results["latents"])
        check_finite([check_won(normal(target), results["target"]), *relevance.values()])
        rules = self.about["rules"]
        return Attribution(
            relevance=relevance,
            latents=latents,
            target=results["target"],
            ruleset=rules,
            context=self.context,
            inputs=dict(zip(names, tensors, strict=True)),
            _output=results["output"],
            _sources=relevance,
            _account=no_ledger(_UNACCOUNTED),
        )

    explain = __call__

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self.module, nn.Module):
            raise LoweringError("a package is compiled code and cannot be copied or pickled. Remedy: load() it again")
        return dict(vars(self))

    @property
    def _spec(self) -> TargetSpec:
        names = self.about["inputs"][len(self.accepts.dtypes) :]
        return TargetSpec(self.about["target"], tuple(names), _is_chosen)


def _is_chosen(*_: Any) -> Tensor:
    raise LrpError("the target is chosen inside the graph")


def load(path: str | Path, weights: Weights | None = None, *, trust_code: bool = False) -> Artefact:
    """Read a file of ``save`` or ``package``. Neither the model's class nor its library is needed.

    Reading a saved graph runs no code of the file. A package is compiled code, and loading it runs that code.

    Args:
        path: the file.
        weights: the weights of a graph that was saved with ``weights="reference"``: a safetensors file, several, a
            folder with ``model.safetensors`` or its index, or {name: file or tensor}.
        trust_code: load a package although that runs its code.

    Raises:
        InputError: for a file that is no saved relevance graph, and for missing or superfluous ``weights``.
        UnsafeFileError: for a package without ``trust_code``, and for pickles or unknown operators in a saved graph.
        WeightError: for weights that are missing, or of another shape or precision.
    """
    archive = Archive(path)
    about = archive.about
    if archive.compiled and not trust_code:
        raise UnsafeFileError(
            f"{str(path)!r} is a package of compiled code, and loading it runs that code. Remedy: if you trust who "
            "wrote it, load(path, trust_code=True); a saved graph (save) needs no trust."
        )
    references = about.get(_REFERENCES) or {}
    if bool(references) != (weights is not None):
        remedy = (
            "refers to a checkpoint: name it with weights=" if references else "holds its weights: leave out weights="
        )
        raise InputError(f"{str(path)!r} {remedy}")
    try:
        reader = Reader(about["table"], about["symbols"])
        accepts, positions = _accepts(about, reader), tuple(map(str, about["positions"]))
        reading = Reading.from_plain(about["reading"])
        told = {key: about[key] for key in ("inputs", "outputs", "target", "rules")}
        context = read_context({"notes": about["notes"]})
        if archive.compiled:
            module: Any = torch._inductor.aoti_load_package(str(path))
        else:
            archive.check()
            tensors = archive.tensors()
            attributes = {attribute(at): tensors[name] for at, name in about["tensors"].items()}
            module = fx.GraphModule(attributes, reader.graph(about["graph"]), class_name="RelevanceGraph")
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{str(path)!r} is refused: {error}") from error
    except Exception as error:  # a damaged file fails in one of many ways
        reason = type_and_line(error)
        raise InputError(f"{str(path)!r} is no saved relevance graph: {reason}") from error
    if weights is not None:
        fill(module, references, weights)
    return Artefact(module, told, accepts, positions, reading, context)


def _accepts(about: Mapping[str, Any], reader: Reader) -> Accepts:
    dtypes = {str(name): by_torch(dtype) for name, dtype in about["dtypes"].items()}
    guards = ShapeGuards.from_plain(about, reader.symbols, Shapes.from_plain(about["captured"]))
    free = None if about["free"] is None else by_torch(about["free"])
    accepts = Accepts(dtypes, torch.device(about["device"]), dict(about["constants"]), guards, free)
    if about["inputs"][: len(dtypes)] != list(dtypes) or len(guards.shapes.dims) != len(dtypes):
        raise ValueError("names, precisions and shapes of the inputs do not match")
    return accepts
