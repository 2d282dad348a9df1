"""Pairs of features on two pretrained models (see `tools/real`): docs/pairs.svg, and the numbers of docs/pairs.md."""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib.figure
import pretrained
import torch
from torch import nn

import lrp_fx
from lrp_fx.cli.demo import demos, load_encoder
from lrp_fx.pairs import PairAttribution, draw_connections, draw_pairs, explain_pairs, mean_pooling

SENTENCES = [
    ("The cat sat on the mat.", "A kitten was sitting on a rug in the sun."),
    ("I love this movie.", "This film is great, I really enjoyed it."),
    ("The doctor examined the patient.", "Physicians treat sick people in hospitals."),
    ("Stocks fell sharply on Monday.", "The markets dropped at the start of the week."),
    ("He plays the guitar in a band.", "She repairs old cars in her garage."),
]


def timed(
    xmodel: lrp_fx.ExplainableModule, first: object, second: object, **options: object
) -> tuple[PairAttribution, float]:
    """The result, and seconds of processor time of a call without a capture."""
    explain_pairs(xmodel, first, second, **options)
    start = time.process_time()
    return explain_pairs(xmodel, first, second, **options), time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    figure = matplotlib.figure.Figure(figsize=(12, 7.5), layout="constrained")
    (top, matrix), (left, right) = figure.subplots(2, 2)
    encoder, tokenizer = load_encoder(demos()["sentiment"])
    xmodel = lrp_fx.convert(encoder, rules="attnlrp")
    for number, (a, b) in enumerate(SENTENCES):
        inputs = [tokenizer(text, return_tensors="pt") for text in (a, b)]
        options = {"output": mean_pooling, "decode": tokenizer.convert_ids_to_tokens, "similarity": "cosine"}
        result, seconds = timed(xmodel, *inputs, **options)
        best = ", ".join(f"{' – '.join(p.tokens or ())} {p.relevance:.3f}" for p in result.top(3))
        pairs = float(result.pairs.sum())
        print(f"| {a} | {b} | {float(result.similarity):.3f} | {pairs:.3f} | {best} | {seconds:.2f} |", flush=True)
        if number == 0:
            draw_connections(result, ax=top)
            draw_pairs(result, ax=matrix)
    cnn = pretrained.digit_classifier(pretrained.find("digit_recognizer"))
    embedding = nn.Sequential(cnn.conv_layers, nn.Flatten(), *list(cnn.fc_layers)[:2])
    images, labels = pretrained.digit_images(200)
    xmodel = lrp_fx.convert(embedding)
    for axes, (i, j) in ((left, (0, 10)), (right, (4, 9))):
        for rules in ("attnlrp", "epsilon_plus"):
            result, seconds = timed(
                xmodel, images[i : i + 1], images[j : j + 1], features=4, similarity="cosine", rules=rules
            )
            print(rules, labels[[i, j]].tolist(), result, f"{seconds:.2f} s")
        draw_connections(result, images=[images[i], images[j]], lines=20, ax=axes)
        axes.set_title(f"cosine {float(result.similarity):.2f}", fontsize=9)
    figure.savefig(Path(__file__).parent.parent / "docs" / "pairs.svg")


if __name__ == "__main__":
    main()
