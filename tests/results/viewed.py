"""Results with known numbers, to be looked at in the viewer."""

import torch

from lrp_fx.results import (
    Attribution,
    Attributions,
    Context,
    Entry,
    Generation,
    Ledger,
    Tokens,
    computed_ledger,
    no_ledger,
)

HOSTILE = "</script><img src=x onerror=alert(1)>"


def ledger(**amounts):
    entries = tuple(Entry(category, category, "", "", "", float(amount)) for category, amount in amounts.items())
    return Ledger(entries, sum(e.amount for e in entries))


def tokens(pieces, text=None):
    """Tokens of pieces, "##" continuing a word, [.] special, "" padding."""
    special = tuple(p.startswith("[") or not p for p in pieces)
    return Tokens(tuple(pieces), special, tuple(not p for p in pieces), None, None, text)


def text(pieces=("[CLS]", "un", "##believ", "##able", HOSTILE, "film", "[SEP]", ""), numbers=None, base=0.75, **more):
    """One text; its inputs and a bias of ``base`` are its explained value."""
    numbers = [0.1, 1.0, -0.5, 2.0, -1.25, 0.25, 0.05, 0.0] if numbers is None else numbers
    relevance = torch.tensor([numbers], dtype=torch.float64)
    value = float(relevance.sum()) + base
    return Attribution(
        relevance={"ids": relevance}, latents=more.pop("latents", {}), target=torch.tensor([value], dtype=torch.float64),
        ruleset=more.pop("ruleset", "attnlrp"), inputs={},
        context=Context(tokens={"ids": (tokens(pieces),)}, answers=("positive",), **more),
        _account=computed_ledger(ledger(input=float(relevance.sum()), bias=base)),
    )  # fmt: skip


def batch():
    """Two texts, the second one with numbers ten times as large; no ledger of each."""
    one = torch.tensor([[1.0, -0.5, 0.25], [10.0, 5.0, -2.5]], dtype=torch.float64)
    shown = tuple(tokens(p) for p in (("a", "good", "film"), ("a", "bad", "film")))
    return Attribution(
        relevance={"ids": one}, latents={}, target=one.sum(1), ruleset="cp_lrp",
        context=Context(tokens={"ids": shown}, answers=("good", "bad")), _account=no_ledger("nobody computed it"),
    )  # fmt: skip


def several():
    """Two targets of one text."""
    relevance = torch.tensor([[[1.0, 2.0]], [[-3.0, 0.5]]], dtype=torch.float64)
    return Attributions(
        relevance={"ids": relevance}, latents={}, target=relevance.sum(-1) + 1, ruleset="attnlrp", names=("cat", "dog"),
        context=Context(tokens={"ids": (tokens(("meow", "woof")),)}),
    )  # fmt: skip


def generation():
    """Prompt "the cat", then "sat", "un", "##done": new token t has relevance t + 1 of the first token, -1 of the one before."""
    relevance = torch.zeros(1, 3, 5, dtype=torch.float64)
    for t in range(3):
        relevance[0, t, 0] = t + 1.0
        relevance[0, t, t + 1] = -1.0
    shown = tokens(("the", "cat", "sat", "un", "##done"))
    return Generation(
        relevance={"ids": relevance}, latents={}, target=relevance.sum(-1) + 0.5, ruleset="attnlrp", generated="ids",
        sequences=torch.arange(5)[None], start=2, context=Context(tokens={"ids": (shown,)}),
    )  # fmt: skip


def written(prompt=4000, new=96):
    """A long text whose last tokens were generated."""
    relevance = torch.randn(1, new, prompt + new, dtype=torch.float64).tril(prompt - 1)
    shown = tokens([f"word{i}" for i in range(prompt + new)])
    return Generation(
        relevance={"ids": relevance}, latents={}, target=relevance.sum(-1), ruleset="attnlrp", generated="ids",
        sequences=torch.zeros(1, prompt + new, dtype=torch.long), start=prompt, context=Context(tokens={"ids": (shown,)}),
    )  # fmt: skip


def translation():
    """An encoder's text beside the decoder's."""
    one = generation()
    source = torch.tensor([[[5.0, 0.0], [0.0, 4.0], [1.0, 1.0]]], dtype=torch.float64)
    shown = {**one.context.tokens, "source_ids": (tokens(("die", "Katze")),)}
    return Generation(
        relevance={"source_ids": source, "ids": one.relevance["ids"]}, latents={}, target=one.target + source.sum(-1),
        ruleset="attnlrp", generated="ids", sequences=one.sequences, start=2, context=Context(tokens=shown),
    )  # fmt: skip


def image(size=8):
    """An image of (3, size, size); its first pixel has most relevance, its last one negative."""
    pixels = torch.linspace(-1, 1, 3 * size * size, dtype=torch.float64).reshape(1, 3, size, size)
    relevance = torch.zeros_like(pixels)
    relevance[0, :, 0, 0], relevance[0, 0, -1, -1] = 1.0, -1.5
    return _floating("image", pixels, relevance)


def sound(length=4000, rate=8000.0):
    """A tone whose second half has all relevance."""
    wave = torch.sin(torch.arange(length, dtype=torch.float64) * 0.3)[None]
    relevance = torch.zeros_like(wave)
    relevance[0, length // 2 :] = 2.0 / length
    return _floating("wave", wave, relevance, sampling_rate=rate)


def spectrogram():
    """Twelve frequencies in twenty steps; the lowest one of the first step has all relevance."""
    energy = torch.arange(240, dtype=torch.float64).reshape(1, 12, 20)
    relevance = torch.zeros_like(energy)
    relevance[0, 0, 0] = 1.5
    return _floating("energy", energy, relevance, sampling_rate=8000.0)


def table():
    """A row of a table."""
    values, relevance = ([[3.5, 1e6]], [[1.0, -0.25]])
    return _floating(
        "row", *(torch.tensor(v, dtype=torch.float64) for v in (values, relevance)), features={"row": ("age", HOSTILE)}
    )


def _floating(name, given, relevance, **context):
    value = relevance.reshape(1, -1).sum(1)
    return Attribution(
        relevance={name: relevance}, latents={}, target=value + 1, ruleset="attnlrp", inputs={name: given},
        context=Context(**context), _account=computed_ledger(ledger(input=float(value), bias=1.0)),
    )  # fmt: skip


def long(count=4096, layers=64):
    """A long text with a matrix of layers."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(count, generator=generator, dtype=torch.float64)
    latents = {f"layers.{i}": torch.randn(1, count, 2, generator=generator) for i in range(layers)}
    return text([f"word{i}" for i in range(count)], numbers.tolist(), latents=latents)


def circuit(layers=2, width=2):
    """A graph of relevance flow: one input, layers of heads, a target of 1; every node hands on all but a tenth."""
    import networkx

    graph = networkx.DiGraph(rules="attnlrp")
    graph.add_node("target", kind="target", relevance=1.0, absorbed=0.0)
    above = {"target": 1.0}
    for layer in reversed(range(layers)):
        names = [f"layer {layer} head {h}" for h in range(width)]
        shares = {name: 0.0 for name in names}
        for node, amount in above.items():
            graph.nodes[node]["absorbed"] = 0.1 * amount
            for number, name in enumerate(names):
                part = 0.9 * amount * (1.5 if number == 0 else -0.5 / (width - 1))
                graph.add_edge(name, node, weight=part)
                shares[name] += part
        for name, amount in shares.items():
            graph.add_node(name, kind="latent", relevance=amount)
        above = shares
    for node, amount in above.items():
        graph.nodes[node]["absorbed"] = 0.1 * amount
        graph.add_edge("input", node, weight=0.9 * amount)
    graph.add_node("input", kind="input", relevance=0.9 * sum(above.values()), absorbed=0.0)
    return graph
