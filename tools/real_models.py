"""Explain real pretrained models on real inputs, check every ledger, and write docs/real_models.md.

The models come from PyPI packages (fetched by `tools/real`); nothing is downloaded from a hub. A tool may name models;
the compiler knows none of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pretrained
import torch
import transformers
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

import lrp_fx
from lrp_fx.files import write_text

SUZUKI = [
    "Brc1ccc(C)cc1.OB(O)c1ccccc1>>Cc1ccc(-c2ccccc2)cc1",
    "COc1ccc(Br)cc1.OB(O)c1ccc(F)cc1>>COc1ccc(-c2ccc(F)cc2)cc1",
    "Ic1ccncc1.OB(O)c1ccc(C)cc1>>Cc1ccc(-c2ccncc2)cc1",
    "Clc1ccccn1.OB(O)c1ccccc1>>c1ccc(-c2ccccn2)cc1",
    "N#Cc1ccc(Br)cc1.CC(C)c1ccc(B(O)O)cc1>>CC(C)c1ccc(-c2ccc(C#N)cc2)cc1",
]


@dataclass
class Row:
    """One line of the report."""

    model: str
    task: str
    truth: str
    convert: float
    explain: float
    balance: float
    difference: float


def measure(name: str, task: str, model: nn.Module, inputs: dict[str, Tensor], truth: Callable[[Any], str]) -> Row:
    """Convert, verify in float32, time one explanation, and check it against a known fact."""
    start = time.perf_counter()
    xmodel = lrp_fx.convert(model, **inputs)
    converted = time.perf_counter() - start
    xmodel.explain(**inputs)
    start = time.perf_counter()
    xmodel.explain(**inputs)
    explained = time.perf_counter() - start
    result = xmodel.verify(**inputs)
    assert result.passed, (name, result.failures)
    return Row(name, task, truth(xmodel), converted, explained, result.balance, result.forward_difference)


def reactions(folder: Path) -> Row:
    model, smiles = pretrained.reaction_classifier(folder)

    def encode(reaction: str) -> tuple[list[str], Tensor]:
        return smiles.split(reaction), smiles.batch([reaction])[0]

    def truth(xmodel: Any) -> str:
        hits, classes = 0, set()
        for reaction in SUZUKI:
            tokens, ids = encode(reaction)
            attribution = xmodel.explain(input_ids=ids)
            relevance = attribution.relevance["input_ids"][0]
            classes.add(int(attribution.output.logits.argmax()))
            reactant = tokens.index(">>")
            top = {tokens[i] for i in relevance[:reactant].topk(2).indices}
            hits += "B" in top and bool(top & {"Br", "Cl", "I"})
        return f"boron and halide are the two most relevant reactant tokens in {hits} of {len(SUZUKI)} Suzuki couplings (predicted classes: {sorted(classes)})"

    return measure(
        "reaction classifier (rxnfp)", "50 reaction classes", model, {"input_ids": encode(SUZUKI[0])[1]}, truth
    )


def microbes(folder: Path) -> Row:
    model = pretrained.genera_model(folder)
    torch.manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (4, 64))

    def truth(xmodel: Any) -> str:
        relevance = xmodel.explain(input_ids=ids, target=(31, 100)).relevance["input_ids"]
        return f"relevance of genera after the explained position: {float(relevance[:, 32:].abs().max()):.0f}"

    return measure("microbiome language model (mgm)", "next genus of 9,669", model, {"input_ids": ids}, truth)


def mapper(folder: Path) -> Row:
    model, smiles = pretrained.atom_mapper(folder)
    vocabulary, tokens = smiles.vocabulary, smiles.split(SUZUKI[0])
    position = tokens.index("B")
    ids = torch.tensor([smiles.ids(tokens)])
    ids[0, position] = vocabulary["[MASK]"]

    def truth(xmodel: Any) -> str:
        attribution = xmodel.explain(input_ids=ids, target=lambda out: out.logits[:, position, vocabulary["B"]])
        guess = int(attribution.output.logits[0, position].argmax())
        near = attribution.relevance["input_ids"][0].topk(3).indices.tolist()
        return (
            f"masked boron predicted as '{list(vocabulary)[guess]}'; most relevant: {' '.join(tokens[i] for i in near)}"
        )

    return measure("atom mapper (rxnmapper)", "masked token", model, {"input_ids": ids}, truth)


def images(folder: Path) -> Row:
    model = pretrained.photograph_classifier(folder)

    def pixels(name: str) -> Tensor:
        image = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None].float()
        side = min(image.shape[2:])
        top, left = (image.shape[2] - side) // 2, (image.shape[3] - side) // 2
        crop = image[:, :, top : top + side, left : left + side]
        return (nn.functional.interpolate(crop, (224, 224), mode="bicubic", antialias=True) - 127) / 128

    def truth(xmodel: Any) -> str:
        labels = {"china.jpg": 698, "flower.jpg": 985}
        right = sum(int(xmodel.explain(x=pixels(n)).output.argmax()) == label for n, label in labels.items())
        return f"palace and daisy: {right} of 2 photographs right"

    return measure("EfficientNet-Lite0", "1,000 ImageNet classes", model, {"x": pixels("flower.jpg")}, truth)


def digits(folder: Path) -> Row:
    model, black = pretrained.digit_classifier(folder), pretrained.BLACK
    grown, labels = pretrained.digit_images(200)

    def truth(xmodel: Any) -> str:
        attribution = xmodel.explain(x=grown)
        correct = attribution.output.argmax(-1) == labels
        order = attribution.relevance["x"].flatten(1).argsort(-1, descending=True)
        drops = []
        for chosen in (order[:, :40], order[:, -40:], torch.stack([torch.randperm(784)[:40] for _ in range(200)])):
            flipped = grown.flatten(1).scatter(1, chosen, black).view_as(grown)
            with torch.no_grad():
                change = attribution.target - model(flipped).gather(1, attribution.output.argmax(-1)[:, None])[:, 0]
            drops.append(float(change[correct].mean()))
        return (
            f"{int(correct.sum())} of 200 right; blanking 40 of 784 pixels lowers the logit by {drops[0]:.1f} (most relevant), "
            f"{drops[1]:.1f} (least), {drops[2]:.1f} (random)"
        )

    return measure("digit CNN (digit-recognizer-py)", "10 digits", model, {"x": grown}, truth)


def write(rows: list[Row], path: Path) -> None:
    lines = [
        "# Real models",
        "",
        f"Written by `tools/real` on {time.strftime('%Y-%m-%d')}: torch {torch.__version__}, transformers "
        f"{transformers.__version__}, numpy {np.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, float32, "
        "rule set attnlrp. Every row passed `verify` (no node loses relevance; the ledger closes).",
        "",
        "| model | task | what is known to be true | convert (s) | explain (ms) | ledger balance | forward difference |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.model} | {r.task} | {r.truth} | {r.convert:.1f} | {1000 * r.explain:.0f} | {r.balance:.1e} | {r.difference:.1e} |"
        for r in rows
    ]
    write_text(path, "\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", type=Path, default=Path(".models"), help="folder that the packages were installed to"
    )
    parser.add_argument("--report", type=Path, default=Path("docs/real_models.md"))
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    builders = [reactions, microbes, mapper, images, digits]
    rows = [build(options.models) for build in track(builders, description="explaining", console=Console(stderr=True))]
    write(rows, options.report)
    print(options.report.read_text())


if __name__ == "__main__":
    main()
