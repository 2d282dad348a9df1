"""The columns of the faithfulness study: evaluation tasks on trained and on pretrained models.

Each entry of ``COLUMNS`` is a function that loads its model and makes its samples, always the same ones. Entries of
``EXTENSIBLE`` take the number of samples; larger sets begin with the smaller ones. Trained models come from `tools/train`,
pretrained ones from `tools/real`.
"""

from __future__ import annotations

from collections.abc import Callable

from columns import chemistry, genera, pictures, planted, sentences, spoken, trained, words
from lrp_fx.evaluate.task import Task

COLUMNS: dict[str, Callable[..., Task]] = {
    "lm": trained.lm,
    "moe": trained.moe,
    "qa": trained.qa,
    "vit": trained.vit,
    "cnn": trained.cnn,
    "sentiment": sentences.sentiment,
    "reactions": chemistry.classes,
    "mapper": chemistry.mapper,
    "microbes": genera.microbes,
    "photos": pictures.photos,
    "digits": pictures.digits,
    "crnn": words.crnn,
    "speech": words.spoken,
    "phonemes_gru": spoken.gru,
    "phonemes_lstm": spoken.lstm,
    "recall": planted.recall,
    "brackets": planted.brackets,
    "addition": planted.addition,
}

#: columns that take a number of samples
EXTENSIBLE = ("qa", "vit", "cnn", "crnn", "speech", "phonemes_gru", "phonemes_lstm", "recall", "brackets", "addition")

#: columns whose answer is known to depend on the annotated features and on the question only
PLANTED = ("recall", "brackets", "addition")
