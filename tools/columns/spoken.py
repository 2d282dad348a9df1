"""Which letters does a phoneme come from? On held-out words that the models of `training.phonemes` pronounce correctly.

Only the encoder's last state connects letters and phonemes, so relevance passes two recurrences. The letters of a phoneme
by an alignment from counts (`training.alignment`) are annotated.
"""

from __future__ import annotations

import random
from functools import cache

import torch
from torch import nn
from training import alignment, phonemes

from columns import weights
from lrp_fx.evaluate.task import Task, Tokens

KINDS: dict[str, type[nn.RNNBase]] = {"gru": nn.GRU, "lstm": nn.LSTM}
COUNTED = 4000  #: words that alignments are learnt from
LOOKED_AT = 60  #: words of each length, the first ones, on which rules were tried out: they are left out


@cache
def pieces() -> dict[alignment.Piece, float]:
    """How often letters stand for phonemes, counted in some of the words that the models learnt."""
    learnt = [word for word in phonemes.words() if not word.held_out]
    random.Random(0).shuffle(learnt)
    return alignment.learn(learnt[:COUNTED])


def gru(samples: int = weights.SAMPLES) -> Task:
    """Letters to phonemes by a GRU encoder and decoder, words of seven letters held out; truth: the phoneme's letters."""
    return _phonemes("gru", samples)


def lstm(samples: int = weights.SAMPLES) -> Task:
    """Letters to phonemes by an LSTM encoder and decoder: as `phonemes_gru`."""
    return _phonemes("lstm", samples)


def _phonemes(kind: str, samples: int) -> Task:
    return spoken(kind, 7, -(-samples // 5)).part(slice(0, samples), f"phonemes_{kind}")  # six phonemes or so a word


def spoken(kind: str, length: int, words: int = 40) -> Task:
    """Every phoneme of some words of one length: its logit, when the phonemes before it were said."""
    model = phonemes.network(KINDS[kind])
    model.load_state_dict(weights.state(f"phonemes-{kind}"))
    model.eval()
    chosen = [word for word in phonemes.words() if word.held_out and len(word.letters) == length]
    random.Random(1).shuffle(chosen)
    encoded = phonemes.encode(chosen)
    right = phonemes.right(model, encoded).nonzero()[:, 0].tolist()[LOOKED_AT : LOOKED_AT + words]
    steps = max(len(chosen[row].phonemes) for row in right)
    rows, positions, letters = [], [], []
    for row in right:
        for position, aligned in enumerate(alignment.align(chosen[row], pieces()) or []):
            rows.append(row)
            positions.append(position)
            letters.append([letter in aligned for letter in range(length)])
    at = torch.tensor(positions)
    inputs = {"letters": encoded.letters[rows], "said": encoded.given[rows, :steps].contiguous()}
    target = (at, encoded.said[rows, at])
    return Task(
        f"{kind}, {length} letters",
        model,
        inputs,
        target,
        Tokens(phonemes.BLANK, "letters"),
        annotated=torch.tensor(letters),
    )
