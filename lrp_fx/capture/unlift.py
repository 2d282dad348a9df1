"""The graph of an exported program with the model's parameters, buffers and constants as attributes.

PyTorch's ``ExportedProgram.module()`` does it, too, and generates the code of the graph three times meanwhile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export._remove_effect_tokens_pass import _remove_effect_tokens
from torch.export._unlift import _get_codegen
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrp_fx.graph.attribute_paths import attribute, readable
from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.lazy_module import lazy_module

_ATTRIBUTES = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR, InputKind.CUSTOM_OBJ)
_WRITES = (OutputKind.PARAMETER_MUTATION, OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)


def unlifted(program: ExportedProgram) -> fx.GraphModule:
    """A graph module that shares the model's tensors, with the model's call signature. Its writes are in place."""
    if program.verifiers[0].dialect != "TRAINING":
        program = _remove_effect_tokens(program)
    graph, _ = copy_graph(program.graph)
    named = _read_attributes(graph, program)
    _write_in_place(graph, program, named)
    signature = program.module_call_graph[0].signature
    names = None if signature is None else signature.forward_arg_names
    in_spec = program.call_spec.in_spec
    assert in_spec is not None
    graph._codegen = _get_codegen(in_spec, program.call_spec.out_spec, names)
    tensors = {**program.state_dict, **_constants(program)}
    read = {str(node.target): node for node in graph.nodes if node.op in ("get_attr", "call_module")}
    inner = {path: attribute(program.graph_module, node) for path, node in read.items() if path not in tensors}
    return lazy_module(tensors | inner, graph, "CapturedModule")


def _read_attributes(graph: fx.Graph, program: ExportedProgram) -> dict[str, Node]:
    """Read attributes where the graph takes them as inputs; returns the nodes of attributes and inputs by name."""
    named: dict[str, Node] = {}
    placeholders = graph.find_nodes(op="placeholder")
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind not in _ATTRIBUTES:
            named[node.name] = node
            continue
        assert spec.target is not None
        with graph.inserting_after(node):
            named[spec.target] = read = graph.get_attr(readable(spec.target))
        node.replace_all_uses_with(read)
        read.meta = node.meta
        graph.erase_node(node)
    return named


def _write_in_place(graph: fx.Graph, program: ExportedProgram, named: dict[str, Node]) -> None:
    """Write the new values of attributes and inputs where the graph returns them."""
    end = graph.output_node()
    returned: list[Any] = []
    written: dict[Any, Node] = {}
    values = pytree.tree_leaves(end.args)
    for value, spec in zip(values, program.graph_signature.output_specs, strict=True):
        if spec.kind not in _WRITES:
            returned.append(value)
            continue
        with graph.inserting_before(end):
            written[value] = graph.call_function(torch.ops.aten.copy_.default, (named[str(spec.target)], value))
    end.args = (tuple(written.get(value, value) for value in returned),)


def _constants(program: ExportedProgram) -> dict[str, Any]:
    """The constants of a program; none takes part in derivatives."""
    detached: dict[int, Tensor] = {}

    def constant(value: Any) -> Any:
        learned = isinstance(value, Tensor) and value.requires_grad
        return detached.setdefault(id(value), value.detach()) if learned else value

    return {name: constant(value) for name, value in program.constants.items()}
