"""Where relevance of the inputs is collected: floating inputs, and rows that input token ids pick from a table."""

from __future__ import annotations

from torch.fx import Graph, Node

from lrp_fx.analysis.facts import Source
from lrp_fx.analysis.operands import is_float, is_integer, slots
from lrp_fx.optable import OpTable, bind

_IDENTITY = ("movement", "linear", "selection", "product", "nonlinearity", "homogeneous")


def find_sources(graph: Graph, ops: OpTable) -> list[Source]:
    """Sources of a captured graph, in graph order.

    An integer input keeps its identity through movement and arithmetic, and loses it in a comparison: positions that a
    model counts from its padding mask are not the tokens.
    """
    sources: list[Source] = []
    identity: dict[Node, Node] = {}  # integer node -> the placeholder whose values it holds
    for node in graph.nodes:
        if node.op == "placeholder":
            if is_float(node) and "mask" not in str(node.target):  # a mask selects; it is no signal, whatever its type
                sources.append(Source(node, node, None, str(node.target)))
            elif is_integer(node):
                identity[node] = node
        elif node.op == "call_function":
            spec = ops.get(node)
            if is_float(node) and (indices := _picked_by(node, spec.kind if spec else "", identity)) is not None:
                sources.append(Source(node, identity[indices], indices, table_name(node), _first_dim(node)))
            elif spec and spec.kind in _IDENTITY and is_integer(node):
                held = [identity[n] for n in slots(node, spec.args + spec.terms).values() if n in identity]
                if held:
                    identity[node] = held[0]
    return sources


def _picked_by(node: Node, kind: str, identity: dict[Node, Node]) -> Node | None:
    """The input-holding indices with which ``node`` picks rows of a constant table, or None."""
    if kind == "lookup":
        indices = bind(node)["indices"]
        return indices if indices in identity else None
    if kind == "movement" and node.target.__name__.startswith(("index.", "index_select.")):  # type: ignore[union-attr]
        rows = slots(node, ("indices", "index"))
        held = [n for n in rows.values() if n in identity]
        return held[0] if held else None
    return None


def _first_dim(node: Node) -> int:
    """Where the dimensions of the indices begin in what a lookup picked."""
    bound = bind(node)
    if isinstance(dim := bound.get("dim"), int):
        return dim % node.meta["val"].dim()
    listed = bound.get("indices")
    return next((i for i, n in enumerate(listed) if n is not None), 0) if isinstance(listed, (list, tuple)) else 0


def table_name(node: Node) -> str:
    """Path of the parameter or buffer at the head of ``node``'s operands."""
    for operand in node.all_input_nodes:
        if operand.op == "get_attr":
            return str(operand.target)
        if operand.op == "call_function" and is_float(operand):
            return table_name(operand)
    return node.name
