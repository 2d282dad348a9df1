"""The captured graph and its node data as files of Model Explorer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.fx import Graph, Node

from lrp_fx.files import write_text
from lrp_fx.graph.location import module_path, source_line
from lrp_fx.operators.table import op_name
from lrp_fx.report.node_rows import NodeRow
from lrp_fx.viz.colours import CATEGORIES, RGB, background, foreground, hexadecimal

GRAPH = "graph"  #: id of the graph; Model Explorer gives exported programs the same one
_COLUMNS = ("role", "rule", "relevance")


def write_node_data(graph: Graph, rows: Sequence[NodeRow], ruleset: str, folder: Path) -> list[Path]:
    """Write the graph, and a file of node data for every column that has values.

    Args:
        graph: the captured graph.
        rows: its nodes that compute something of relevance, and its inputs.
        ruleset: name of the rule set, part of the columns' titles.
        folder: folder to write to; it is created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_name = {row.name: row for row in rows}
    files: dict[str, Any] = {GRAPH: [{"id": GRAPH, "nodes": [_node(n, by_name.get(n.name)) for n in graph.nodes]}]}
    for column in _COLUMNS:
        values = {row.name: value for row in rows if (value := getattr(row, column)) not in (None, "")}
        if values:
            data = _numbers(values) if column == "relevance" else _words(values)
            files[column] = {GRAPH: {"name": f"{column} ({ruleset})", **data}}
    paths = []
    for name, document in files.items():
        paths.append(folder / f"{name}.json")
        write_text(paths[-1], json.dumps(document, indent=1) + "\n")
    return paths


def _node(node: Node, row: NodeRow | None) -> dict[str, Any]:
    """One node of the graph, in a namespace of its module."""
    facts = {"source": source_line(node), "target": str(node.target)}
    if row is not None:
        facts |= {column: value for column in _COLUMNS if (value := getattr(row, column)) not in (None, "")}
    namespace = "inputs" if node.op == "placeholder" else module_path(node).replace(".", "/")
    edges = [
        {"sourceNodeId": operand.name, "sourceNodeOutputId": "0", "targetNodeInputId": str(index)}
        for index, operand in enumerate(node.all_input_nodes)
    ]
    shape = getattr(node.meta.get("val"), "shape", None)
    outputs = [] if shape is None else [{"key": "tensor_shape", "value": str(tuple(shape))}]
    return {
        "id": node.name,
        "label": op_name(node) if node.op == "call_function" else node.op,
        "namespace": namespace,
        "attrs": [{"key": key, "value": str(value)} for key, value in facts.items()],
        "incomingEdges": edges,
        "outputsMetadata": [{"id": "0", "attrs": outputs}],
    }


def _words(values: Mapping[str, str]) -> dict[str, Any]:
    """Node data of words: one background for each."""
    listed = sorted(set(values.values()))
    colours = {word: CATEGORIES[index % len(CATEGORIES)] for index, word in enumerate(listed)}
    return {"results": {name: {"value": word, **_style(colours[word])} for name, word in values.items()}}


def _numbers(values: Mapping[str, float]) -> dict[str, Any]:
    """Node data of relevance: red speaks for the target, blue against it, as strong as its share of the largest."""
    largest = max(map(abs, values.values())) or 1.0
    return {
        "results": {name: {"value": value, **_style(background(value / largest))} for name, value in values.items()}
    }


def _style(colour: RGB) -> dict[str, str]:
    return {"bgColor": hexadecimal(colour), "textColor": hexadecimal(foreground(colour))}
