"""Named tensors inside a captured graph: outputs and inputs of modules, and the parts of attention.

``model.layers.3.mlp`` is the output of that module, ``model.layers.3.mlp.down_proj@input`` the input of a module (the
neurons of the layer), ``model.layers.3.self_attn@mixed`` a part of its attention, with a dimension for heads
(:data:`lrp_fx.analysis.attention.PARTS`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch.fx import Graph, Node

from lrp_fx.analysis import Facts
from lrp_fx.analysis.attention import PARTS, find_attention
from lrp_fx.errors import LatentError
from lrp_fx.graph.module_calls import places
from lrp_fx.graph.operands import is_float
from lrp_fx.graph.steps import STEP

INSIDE = ("scores", "weights")  #: parts of attention that a fused kernel does not return


def module_outputs(graph: Graph, facts: Facts) -> dict[str, Node]:
    """Module path -> the floating tensor that its last call returned.

    Without a note of the capture, it is the last tensor of the module that is used outside of it.
    """
    outputs: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor) or not is_float(node):
            continue
        if _in_a_step(node):
            continue
        for path in _paths(node):
            if path and any(path not in _paths(user) for user in node.users):
                outputs[path] = node
    return outputs | _noted(graph, facts, returned=True)


def _noted(graph: Graph, facts: Facts, returned: bool) -> dict[str, Node]:
    """Module path -> the first floating tensor that its last call returned, or an argument of its first call.

    Tensors that carry relevance come first: the first argument of an attention may be its positions.
    """
    best: dict[str, tuple[tuple[int, int, int], Node]] = {}
    for node in graph.nodes:
        if not isinstance(node.meta.get("val"), torch.Tensor) or not is_float(node):
            continue
        for place in places(node):
            if place.path and place.returned is returned:
                rank = (-place.call if returned else place.call, not facts.carries(node), place.leaf)
                if place.path not in best or rank <= best[place.path][0]:  # (of nodes with one rank, the last)
                    best[place.path] = rank, node
    return {path: node for path, (_, node) in best.items()}


def _in_a_step(node: Node) -> bool:
    """Whether a node belongs to one step of a loop: a rewritten graph has no value of it for all steps."""
    return STEP in node.meta and node.meta[STEP].number >= 0


def _paths(node: Node) -> set[str]:
    return {path for path, _ in (node.meta.get("nn_module_stack") or {}).values()}


def module_inputs(graph: Graph, facts: Facts) -> dict[str, Node]:
    """Module path -> the first tensor from outside that carries relevance into the module."""
    inputs: dict[str, Node] = {}
    for node in graph.nodes:
        if _in_a_step(node):
            continue
        for operand in facts.operands.get(node, {}).values():
            for path in _paths(node) - _paths(operand):
                inputs.setdefault(path, operand)
    noted = _noted(graph, facts, returned=False)
    return inputs | {path: node for path, node in noted.items() if facts.carries(node) or path not in inputs}


def attention_parts(graph: Graph, facts: Facts) -> dict[str, Node | None]:
    """``path@part`` -> node, None for parts inside a fused kernel. Further attentions of a module: ``path.1``."""
    named: dict[str, Node | None] = {}
    count: dict[str, int] = {}
    for site in find_attention(graph, facts):
        number = count[site.path] = count.get(site.path, -1) + 1
        path = f"{site.path}.{number}" if number else site.path
        named |= {f"{path}@{name}": site.part(name) for name in PARTS}
    return named


def looks_inside(patterns: Iterable[str]) -> bool:
    """Whether a pattern names a part of attention that a fused kernel does not return."""
    return any(pattern.rpartition("@")[2] in INSIDE for pattern in patterns if "@" in pattern)


def find_latents(
    graph: Graph, facts: Facts, patterns: Iterable[str], aliases: Callable[[str], Iterable[str]] = lambda name: ()
) -> dict[str, Node]:
    """Nodes whose names match one of ``patterns``; a pattern without "@" means outputs of modules.

    Args:
        graph: the captured graph.
        facts: its facts.
        patterns: names and globs.
        aliases: pattern that matches nothing -> other names of what it means.

    Raises:
        LatentError: for a pattern that matches nothing in the graph.
    """
    patterns = list(patterns)
    named: dict[str, Node | None] = dict(module_outputs(graph, facts)) if patterns else {}
    if any("@" in pattern for pattern in patterns):
        named |= {f"{path}@input": node for path, node in module_inputs(graph, facts).items()}
        named |= attention_parts(graph, facts)
    latents: dict[str, Node] = {}
    for pattern in patterns:
        matches = {
            name: node
            for name, node in named.items()
            if node is not None and ("@" in name) == ("@" in pattern) and fnmatchcase(name, pattern)
        }
        if not matches:
            alias = next((named[name] for name in aliases(pattern) if name in named), None)
            matches = {} if alias is None else {pattern: alias}
        if not matches:
            near = get_close_matches(pattern, named, n=3, cutoff=0.3)
            raise LatentError(
                f"at={pattern!r} matches no module with an output in the captured graph, no module@input and no part "
                f"of an attention (@{', @'.join(PARTS)}); close: {near or sorted(named)[:5]}"
            )
        latents |= matches
    return latents
