"""Train the 770 numbers of the sentiment demo: logistic regression on mean-pooled sentence embeddings.

The snippets (Hutto & Gilbert, ICWSM 2014) are movie-review sentences with a mean human rating from -4 to 4; those within
1.2 of neutral are left out (8,400 remain), 5,000 train, the rest is held out. The two logits are -z/2 and z/2 for the regression's z.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pretrained
import torch
from rich.progress import track
from sklearn.linear_model import LogisticRegression

from lrp_fx.cli.demo import demos, load_encoder, mean_pool
from lrp_fx.files import write_text

#: the sentences: `tools/faithfulness` fetches them
SNIPPETS = pretrained.folder() / "movie_snippets.tsv"
HEAD = Path(__file__).parent.parent / "lrp_fx" / "cli" / "sentiment_head.json"


def read(path: Path) -> tuple[list[str], np.ndarray]:
    """Sentences and their ratings, without near-neutral ones.

    Raises:
        FileNotFoundError: if they are missing; the message names the command that fetches them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no sentences in {path}: tools/faithfulness fetches them")
    texts, ratings = [], []
    for line in path.read_bytes().splitlines():
        try:
            row = line.decode("utf-8")
        except UnicodeDecodeError:
            row = line.decode("latin-1")
        _, rating, text = row.split("\t", 2)
        if abs(float(rating)) > 1.2:
            texts.append(text)
            ratings.append(float(rating))
    return texts, np.array(ratings)


@torch.no_grad()
def embed(texts: list[str], batch: int = 64) -> np.ndarray:
    encoder, tokenizer = load_encoder(demos()["sentiment"])
    rows = []
    for start in track(range(0, len(texts), batch), description="encoding"):
        inputs = tokenizer(
            texts[start : start + batch], padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        hidden = encoder(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        rows.append(mean_pool(hidden, inputs["attention_mask"]).numpy())
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("snippets", type=Path, nargs="?", default=SNIPPETS)
    options = parser.parse_args()
    texts, ratings = read(options.snippets)
    order = np.random.default_rng(0).permutation(len(texts))
    features, labels = embed([texts[i] for i in order]), ratings[order] > 0
    model = LogisticRegression(C=0.3, max_iter=2000).fit(features[:5000], labels[:5000])
    print(f"held-out accuracy on {len(order) - 5000} snippets: {model.score(features[5000:], labels[5000:]):.4f}")
    half, bias = model.coef_[0] / 2, model.intercept_[0] / 2
    rounded = [[float(f"{v:.6g}") for v in row] for row in (-half, half)]
    head = {"labels": ["negative", "positive"], "weight": rounded, "bias": [float(f"{v:.6g}") for v in (-bias, bias)]}
    write_text(HEAD, json.dumps(head) + "\n")
    print(f"{sum(map(len, rounded)) + 2} numbers written to {HEAD}")


if __name__ == "__main__":
    main()
