"""The relevance flow graph: what leaves a node and what arrives, pruning, splits, the drawing."""

import functools
import itertools

import networkx as nx
import pytest
import torch
from models import build
from torch import nn

import lrp_fx
from lrp_fx.concepts import prune, relevance_flow
from lrp_fx.errors import LatentError

PLACES = {
    "llama2": ["model.layers.*", "lm_head"],  # every module output inside the blocks
    "gpt2": ["transformer.h.?", "*.attn", "*.mlp"],
    "resnet": ["*"],
    "flan-t5": ["*.block.?", "*.layer.?"],
}


@functools.cache
def converted(name):
    model, inputs = build(name)
    return lrp_fx.convert(model, **inputs, rules="attnlrp"), inputs


def weights(edges):
    return sum(w for *_, w in edges)


@pytest.mark.parametrize("rules", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", PLACES)
def test_flow_is_conserved_at_every_node_and_agrees_with_explain(name, rules):
    xmodel, inputs = converted(name)
    graph = relevance_flow(xmodel, **inputs, at=PLACES[name], rules=rules)
    attribution = xmodel.explain(**inputs, at=PLACES[name], rules=rules)
    assert (
        nx.is_directed_acyclic_graph(graph) and len(graph) == len(attribution.latents) + len(attribution.relevance) + 1
    )
    for path, relevance in (attribution.latents | attribution.relevance).items():
        node = graph.nodes[path]
        assert node["relevance"] == pytest.approx(float(relevance.sum()), abs=1e-9)
        assert weights(graph.out_edges(path, data="weight")) == pytest.approx(node["relevance"], abs=1e-9)
    assert graph.nodes["target"]["relevance"] == pytest.approx(float(attribution.target.sum()), abs=1e-9)
    # the ledger counts what was absorbed operator by operator, in a sweep of its own
    absorbed = sum(node["absorbed"] for node in graph.nodes.values())
    assert absorbed == pytest.approx(attribution.ledger.total - attribution.ledger["input"], abs=1e-9)
    assert (abs(absorbed) < 1e-9) == (name in ("llama2", "flan-t5") and rules == "cp_lrp")  # no biases


def test_what_a_block_absorbs_is_what_the_ledger_finds_inside_of_it():
    xmodel, inputs = converted("llama2")
    graph = relevance_flow(xmodel, **inputs, at="model.layers.?")
    modules = xmodel.explain(**inputs).ledger.by("module")
    for block in ("model.layers.0", "model.layers.1"):
        inside = sum(amount for module, amount in modules.items() if module.startswith(block))
        entering, leaving = (
            weights(graph.out_edges(block, data="weight")),
            weights(graph.in_edges(block, data="weight")),
        )
        assert entering == pytest.approx(leaving + inside, abs=1e-9) and abs(inside) > 1e-6


def test_an_edge_is_what_goes_directly():
    """By hand: relevance of the skip connection, and of the branch beside it."""
    torch.manual_seed(0)

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.first(x)
            return self.head(h + self.branch(h))

    model, x = Skip().double(), torch.randn(5, 4, dtype=torch.float64)
    graph = relevance_flow(
        lrp_fx.convert(model, x, rules="attnlrp"), x, at=["first", "branch"], target=1, detail="element"
    )
    h, w = model.first(x).detach(), model.head.weight[1].detach()
    branch = model.branch(h).detach()
    edges = {(a, b): f for a, b, f in graph.edges(data="flow")}
    expected = {
        ("first", "target"): h * w,
        ("branch", "target"): branch * w,
        ("first", "branch"): h * (w @ model.branch.weight.detach()),
        ("x", "first"): x * ((w + w @ model.branch.weight.detach()) @ model.first.weight.detach()),
    }
    assert edges.keys() == expected.keys()
    for edge, flow in expected.items():
        torch.testing.assert_close(edges[edge], flow, rtol=1e-9, atol=1e-12)
    nodes = graph.nodes
    assert nodes["target"]["absorbed"] == pytest.approx(float(5 * model.head.bias[1].detach()), abs=1e-12)
    assert nodes["branch"]["absorbed"] == pytest.approx(float(5 * model.branch.bias.detach() @ w), abs=1e-12)


def test_samples_and_positions_sum_to_the_weights():
    xmodel, inputs = converted("llama2")
    for detail, shape in (("sample", (2,)), ("position", (2, 7))):
        graph = relevance_flow(xmodel, **inputs, at=["model.layers.?", "*.mlp"], detail=detail)
        for *_, data in graph.edges(data=True):
            assert data["flow"].shape == shape
            assert float(data["flow"].sum()) == pytest.approx(data["weight"], abs=1e-12)
    tokens = sum(flow for *_, flow in graph.out_edges("input_ids", data="flow"))
    torch.testing.assert_close(tokens, xmodel.explain(**inputs).relevance["input_ids"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("split", [-1, (-1, 4), (1, 7)])
def test_parts_of_a_node_are_nodes_that_sum_to_it(split):
    xmodel, inputs = converted("llama2")
    places = ["*.q_proj", "*.v_proj", "*.self_attn"]
    whole = relevance_flow(xmodel, **inputs, at=places, target=5)
    parts = relevance_flow(xmodel, **inputs, at=places, target=5, split={"*.v_proj": split})
    merged = {}
    for a, b, weight in parts.edges(data="weight"):
        edge = (a.split("[")[0], b.split("[")[0])
        merged[edge] = merged.get(edge, 0.0) + weight
    assert len(parts) - len(whole) == 2 * ({-1: 32, (-1, 4): 4, (1, 7): 7}[split] - 1)
    assert merged == pytest.approx({(a, b): w for a, b, w in whole.edges(data="weight")}, abs=1e-9)


def test_heads_are_parts_of_what_an_attention_mixes():
    xmodel, inputs = converted("llama2")
    graph = relevance_flow(xmodel, **inputs, at=["*@mixed", "model.layers.?"], split={"*@mixed": 1})
    heads = [n for n in graph if "@mixed[" in n]
    assert len(heads) == 8
    mixed = xmodel.explain(**inputs, at="*@mixed").latents
    for path, relevance in mixed.items():
        for head, amount in enumerate(relevance.sum((0, 2, 3)).tolist()):
            assert graph.nodes[f"{path}[{head}]"]["relevance"] == pytest.approx(amount, abs=1e-9)


@pytest.mark.parametrize("split", [{"*": 5}, {"*": (-1, 5)}, {"*": (-1, 0)}])
def test_splits_that_do_not_fit_are_named(split):
    xmodel, inputs = converted("llama2")
    with pytest.raises(LatentError, match="axis"):
        relevance_flow(xmodel, **inputs, at="*.mlp", split=split)


def walks(graph):
    """Every way from an input to the target with its share of the flow, by enumeration."""
    inputs = [n for n, kind in graph.nodes(data="kind") if kind == "input"]
    paths = [p for n in inputs for p in nx.all_simple_edge_paths(graph, n, "target")]
    alive = {edge for path in paths for edge in path}
    totals = {b: sum(abs(graph.edges[e]["weight"]) for e in alive if e[1] == b) for _, b in alive}
    shares = {e: abs(graph.edges[e]["weight"]) / totals[e[1]] for e in alive}
    return {tuple(path): torch.tensor([shares[e] for e in path], dtype=torch.float64).prod().item() for path in paths}


def test_pruning_keeps_the_fewest_of_the_strongest_edges_that_carry_the_fraction():
    xmodel, inputs = converted("llama2")
    graph = relevance_flow(xmodel, **inputs, at=["model.layers.?", "*.mlp", "*.self_attn"])
    share = walks(graph)
    assert sum(share.values()) == pytest.approx(1, abs=1e-9)
    through = {e: sum(s for path, s in share.items() if e in path) for e in graph.edges}
    ranked = sorted(through, key=lambda e: -through[e])

    def carried(edges):
        return sum(s for path, s in share.items() if set(path) <= set(edges))

    sizes = []
    for fraction in (0.3, 0.6, 0.9, 1.0):
        kept = prune(graph, fraction)
        sizes.append(len(kept.edges))
        count = next(n for n in itertools.count() if carried(ranked[:n]) >= fraction - 1e-12)
        assert set(kept.edges) == {e for path in share if set(path) <= set(ranked[:count]) for e in path}
        assert kept.graph["carried"] == pytest.approx(carried(kept.edges), abs=1e-9)
        assert kept.graph["carried"] >= fraction - 1e-9
        assert all(kept.edges[e] == graph.edges[e] for e in kept.edges)
    assert sizes == sorted(sizes) and 0 < sizes[0] < sizes[2]
    for fraction in (0, 1.5):
        with pytest.raises(ValueError, match="fraction"):
            prune(graph, fraction)


def test_a_name_shared_by_modules_and_an_input_of_the_same_name():
    """Modules that return the same tensor are one after the other; an input keeps a name of its own."""
    torch.manual_seed(0)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.target, self.x = nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 3)

        def forward(self, x):
            return self.x(self.target(x))

    model, x = Named().double(), torch.randn(2, 4, dtype=torch.float64)
    graph = relevance_flow(lrp_fx.convert(model, x, rules="attnlrp"), x, at="*")
    assert list(nx.topological_sort(graph)) == ["x (x)", "target.0", "target (latent)", "x", "target"]
    assert graph.nodes["target.0"]["relevance"] == pytest.approx(graph.nodes["target (latent)"]["relevance"], abs=1e-12)
    assert graph.nodes["target (latent)"]["absorbed"] == pytest.approx(0, abs=1e-12)


def test_pruned_graphs_keep_the_order_of_the_whole():
    """Order of insertion, not that of a set: pictures would differ from process to process."""
    graph = nx.DiGraph([(f"a{n}", f"b{n}") for n in range(50)])
    graph.add_edges_from(("x", f"a{n}") for n in range(50))
    graph.add_edges_from((f"b{n}", "target") for n in range(50))
    nx.set_node_attributes(
        graph, {n: "input" if n == "x" else "target" if n == "target" else "latent" for n in graph}, "kind"
    )
    nx.set_edge_attributes(graph, {edge: 1.0 + (edge[0] < "a2" or edge[1] < "a2") for edge in graph.edges}, "weight")
    pruned = prune(graph, 0.3)
    assert 10 < len(pruned) < 60
    assert list(pruned) == [n for n in graph if n in pruned]
    assert list(pruned.edges) == [edge for edge in graph.edges if edge in pruned.edges]


def test_the_drawing_shows_every_node_and_edge():
    from lrp_fx.viz.circuit import draw_circuit

    xmodel, inputs = converted("llama2")
    graph = prune(relevance_flow(xmodel, **inputs, at=["*.mlp", "*.self_attn"]), 0.9)
    figure = draw_circuit(graph, names=lambda name: name.removeprefix("model.layers."))
    texts = {t.get_text() for t in figure.axes[0].texts}
    assert {name.removeprefix("model.layers.") for name in graph} <= {t.split("\n")[0] for t in texts}
    boxes = [p for p in figure.axes[0].patches if hasattr(p, "get_boxstyle")]
    assert len(boxes) == len(graph) and len(figure.axes[0].patches) == len(graph.edges) + len(graph)
    figure.canvas.draw()
    inside = [t.get_window_extent() for t in figure.axes[0].texts if "\n" in t.get_text()]
    for box, text in zip(boxes, inside, strict=True):
        assert text.width <= box.get_window_extent().width and text.height <= box.get_window_extent().height
    assert not [
        1 for i, a in enumerate(boxes) for b in boxes[:i] if a.get_window_extent().overlaps(b.get_window_extent())
    ]
