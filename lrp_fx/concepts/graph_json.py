"""Circuits in the file format of circuit-tracer and Neuronpedia, for their viewers.

Inputs are split by token. Relevance absorbed on the way into a node (by biases, softmax, stabilisers) becomes a node of
type "bias". Thus the links into each node sum to its relevance, and tokens and biases together sum to the target.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrp_fx.concepts.flow import TARGET
from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.files import write_text
from lrp_fx.version import VERSION

if TYPE_CHECKING:
    import networkx

#: kind of a node -> its type in the format
_TYPES = {"latent": "cross layer transcoder", "target": "logit"}
_GENERATOR = {"name": "lrp_fx", "version": VERSION}


def to_graph_json(
    graph: networkx.DiGraph,
    *,
    tokens: Sequence[str],
    path: str | Path | None = None,
    prompt: str | None = None,
    slug: str = "circuit",
    scan: str = "model",
    answer: str = "target",
) -> dict[str, Any]:
    """A graph of :func:`lrp_fx.concepts.relevance_flow` as circuit-tracer and Neuronpedia read it.

    Latents are placed at the last token; a latent's layer is the length of the longest path to it, its label its name.
    ``activation`` is a node's relevance, ``influence`` the magnitude of the relevance over that of the explained value.

    Args:
        graph: a graph of one sample with ``detail="position"``, pruned or not.
        tokens: text of each position of the inputs.
        path: the JSON file to write; None writes none.
        prompt: the text; None for the tokens joined.
        slug: name of the graph.
        scan: name of the model; Neuronpedia reads it as the model's id.
        answer: label of the target.

    Returns:
        The document: ``metadata``, ``qParams``, ``nodes``, ``links``.

    Raises:
        InputError: for a graph without positions, of several samples, or with another number of positions than
            ``tokens``.
        MissingExtraError: when networkx is not installed.
    """
    nodes, ids = _nodes(graph, tokens, answer)
    links = []
    for source, target, edge in graph.edges(data=True):
        if graph.nodes[source]["kind"] != "input":
            links.append(_link(ids[source], ids[target], edge["weight"]))
            continue
        flow = _by_token(source, edge.get("flow"), len(tokens))
        links += [_link(f"{ids[source]}_{i}", ids[target], amount) for i, amount in enumerate(flow) if amount]
    for name, facts in graph.nodes.items():
        if facts["absorbed"]:
            nodes.append(_bias(nodes[0], ids[name], graph.nodes[name], name, len(tokens)))
            links.append(_link(nodes[-1]["node_id"], ids[name], facts["absorbed"]))
    used = {end for link in links for end in (link["source"], link["target"])}
    document = {
        "metadata": {
            "slug": slug, "scan": scan, "transcoder_list": [], "prompt_tokens": list(tokens), "schema_version": 1,
            "prompt": "".join(tokens) if prompt is None else prompt, "info": {"generator": _GENERATOR},
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": ids[TARGET], "sg_pos": ""},
        "nodes": [n for n in nodes if n["node_id"] in used or n["feature_type"] == "logit"],
        "links": links,
    }  # fmt: skip
    if path is not None:
        write_text(path, json.dumps(document, indent=1) + "\n")
    return document


def _nodes(graph: networkx.DiGraph, tokens: Sequence[str], answer: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(nodes, the target first; name -> id). The id of an input is the prefix of its tokens' ids."""
    nx: Any = require("networkx", "concepts")
    columns = [[n for n in column if graph.nodes[n]["kind"] != "input"] for column in nx.topological_generations(graph)]
    columns = [column for column in columns if column]
    last, total = len(tokens) - 1, abs(graph.nodes[TARGET]["relevance"]) or 1.0
    nodes, ids = [], {}
    for layer, column in enumerate(columns):
        for feature, name in enumerate(column):
            facts = graph.nodes[name]
            ids[name] = f"{layer}_{feature}_{last}"
            label = f'Output "{answer}"' if name == TARGET else name
            shown = (_TYPES[facts["kind"]], label, facts["relevance"], total)
            nodes.append(_node(ids[name], feature, str(layer), last, *shown))
            nodes[-1]["is_target_logit"] = name == TARGET
    inputs = [n for n, kind in graph.nodes(data="kind") if kind == "input"]
    for number, name in enumerate(inputs):
        ids[name] = f"E_{number}"
        for i, amount in enumerate(_by_token(name, graph.nodes[name].get("flow"), len(tokens))):
            label = tokens[i] if len(inputs) == 1 else f"{tokens[i]} ({name})"
            nodes.append(_node(f"{ids[name]}_{i}", i, "E", i, "embedding", label, amount, total))
    return sorted(nodes, key=lambda node: not node.get("is_target_logit")), ids


def _node(
    name: str, feature: int, layer: str, position: int, kind: str, label: str, relevance: float, total: float
) -> dict[str, Any]:
    return {
        "node_id": name, "jsNodeId": name, "feature": feature, "layer": layer, "ctx_idx": position,
        "feature_type": kind, "clerp": label, "influence": abs(relevance) / total, "activation": relevance,
    }  # fmt: skip


def _bias(target: dict[str, Any], of: str, facts: dict[str, Any], name: str, length: int) -> dict[str, Any]:
    total = abs(target["activation"]) or 1.0
    label = f"absorbed before {name}"
    return _node(f"B_{of}", -1, of.split("_")[0], length - 1, "bias", label, facts["absorbed"], total)


def _link(source: str, target: str, weight: float) -> dict[str, Any]:
    return {"source": source, "target": target, "weight": float(weight)}


def _by_token(name: str, flow: Tensor | None, count: int) -> list[float]:
    """Relevance of an input per token.

    Raises:
        InputError: for a graph without positions, several samples, or another number of positions.
    """
    if flow is None:
        raise InputError('the graph has no relevance per token: build it with relevance_flow(..., detail="position")')
    if flow.dim() != 2 or flow.shape[0] != 1:
        raise InputError(f"{name!r} has relevance of shape {tuple(flow.shape)}: give a graph of one sample of tokens")
    if flow.shape[1] != count:
        raise InputError(f"{name!r} has {flow.shape[1]} positions, and there are {count} tokens")
    return flow[0].double().tolist()
