"""Column of the sentiment demo."""

from __future__ import annotations

import numpy as np
from train_sentiment_head import SNIPPETS, read

from columns import weights
from lrp_fx.cli.demo import load_demo
from lrp_fx.evaluate.task import Task, Tokens

LENGTHS = (12, 40)  # tokens, special ones included


def sentiment() -> Task:
    """The demo's classifier on held-out movie-review sentences; its own answer is explained.

    The sentences are those of `tools/train_sentiment_head.py`: the first ones with 12 to 40 tokens, padded to one length.
    [MASK] replaces removed tokens.
    """
    texts, _ = read(SNIPPETS)
    order = np.random.default_rng(0).permutation(len(texts))  # the order in which the head was trained
    model, tools, _ = load_demo("sentiment")
    tokenizer = tools["tokenizer"]
    held_out = [texts[i] for i in order[5000:6000]]
    sizes = [len(ids) for ids in tokenizer(held_out)["input_ids"]]
    fitting = [t for t, n in zip(held_out, sizes, strict=True) if LENGTHS[0] <= n <= LENGTHS[1]][: weights.SAMPLES]
    encoded = tokenizer(fitting, padding="max_length", max_length=LENGTHS[1], return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    special = (inputs["input_ids"] == tokenizer.cls_token_id) | (inputs["input_ids"] == tokenizer.sep_token_id)
    eligible = inputs["attention_mask"].bool() & ~special
    target = weights.logits(model, inputs).argmax(-1)
    return Task("sentiment", model, inputs, target, Tokens(tokenizer.mask_token_id), eligible)
