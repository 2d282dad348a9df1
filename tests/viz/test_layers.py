"""Layered layout: layers as given, nothing above another, few crossings, long edges straight."""

import random
import sys
from itertools import combinations, pairwise

import networkx
import pytest

from lrp_fx.errors import MissingExtraError
from lrp_fx.viz.layered_layout import layout


def random_graph(seed, nodes=60, layers=8):
    generator = random.Random(seed)
    depths = [0, *sorted(generator.randrange(layers) for _ in range(nodes - 1))]
    graph = networkx.DiGraph()
    graph.add_nodes_from((n, {"depth": depth}) for n, depth in enumerate(depths))
    for a in range(nodes):
        later = [b for b in range(nodes) if depths[b] > depths[a]]
        graph.add_edges_from((a, b) for b in generator.sample(later, min(2, len(later))))
    return graph


def points_of(placed):
    """Layer -> height -> size of what is there."""
    layers = {}
    for way in placed.ways.values():
        for layer, height in way[1:-1]:
            layers.setdefault(layer, {})[height] = 0.4
    for layer, height in placed.places.values():
        layers.setdefault(layer, {})[height] = 1.0
    return layers


def crossings(placed):
    pieces = [piece for way in placed.ways.values() for piece in pairwise(way)]
    return sum(
        (a[1] - c[1]) * (b[1] - d[1]) < 0 for (a, b), (c, d) in combinations(pieces, 2) if a[0] == c[0] and b[0] == d[0]
    )


@pytest.mark.parametrize("seed", range(3))
def test_points_of_a_layer_keep_their_distance(seed):
    graph = random_graph(seed)
    placed = layout(graph)
    depths = sorted(set(dict(graph.nodes(data="depth")).values()))
    assert {n: depths[layer] for n, (layer, _) in placed.places.items()} == dict(graph.nodes(data="depth"))
    for (a, b), way in placed.ways.items():
        assert way[0] == placed.places[a] and way[-1] == placed.places[b]
        assert [layer for layer, _ in way] == list(range(way[0][0], way[-1][0] + 1))
    count = len(graph) + sum(len(way) - 2 for way in placed.ways.values())
    assert sum(len(heights) for heights in points_of(placed).values()) == count  # nothing shares a place
    for heights in points_of(placed).values():
        for (low, below), (high, above) in pairwise(sorted(heights.items())):
            assert high - low >= (below + above) / 2 - 1e-9
    assert layout(graph) == placed


def test_edges_cross_less_than_in_the_order_of_the_nodes():
    for seed in range(3):
        graph = random_graph(seed)
        shuffled = {n: place for n, place in enumerate(random.Random(0).sample(range(60), 60))}
        placed = layout(graph)
        ways = {
            e: [(layer, shuffled[e[0]] if layer < way[-1][0] else shuffled[e[1]]) for layer, _ in way]
            for e, way in placed.ways.items()
        }
        assert crossings(placed) < 0.5 * crossings(type(placed)(placed.places, ways))


def test_a_long_edge_is_straight_where_it_has_room():
    graph = networkx.DiGraph([(n, n + 1) for n in range(8)] + [(0, 8)])
    placed = layout(graph)
    assert {n: layer for n, (layer, _) in placed.places.items()} == {n: n for n in range(9)}
    assert len({height for _, height in placed.ways[0, 8][1:-1]}) == 1
    assert placed.ways[0, 8][1][1] not in {height for _, height in placed.places.values()}
    assert layout(graph, span=3).ways[0, 8] == [placed.places[0], placed.places[8]]


def test_a_drawing_is_no_higher_than_its_fullest_layer_asks():
    for seed in range(3):
        layers = points_of(layout(random_graph(seed, nodes=150)))
        heights = [height for layer in layers.values() for height in layer]
        assert max(heights) - min(heights) < 1.4 * max(sum(layer.values()) for layer in layers.values())


def test_graphs_without_edges():
    assert layout(networkx.DiGraph()).places == {}
    heights = sorted(height for _, height in layout(networkx.empty_graph(3, networkx.DiGraph)).places.values())
    assert [b - a for a, b in pairwise(heights)] == pytest.approx([1, 1])


@pytest.mark.parametrize("package", ["fast_sugiyama", "scipy.optimize", "networkx"])
def test_a_missing_package_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}' is needed here: pip install 'lrp_fx\[layout\]'"):
        layout(networkx.DiGraph([(0, 1)]))
