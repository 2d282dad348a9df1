"""The table of tasks: encoding of the input, answer, and targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lrp_fx.encode import open_image, open_sound
from lrp_fx.pipelines.answered import (
    Answered,
    best_class,
    entailment,
    entities,
    hypotheses,
    masked,
    passage,
    segments,
    text_or_pair,
)
from lrp_fx.pipelines.explained import Explained, Request
from lrp_fx.pipelines.generated import Written, continued, heard
from lrp_fx.pipelines.tables import similarity, table


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        explain: answers and explains.
        theirs: whether transformers has a pipeline of this name.
        read: reads a raw input from a file, for inputs other than text.
        loads: class of transformers that loads a model from a folder, for tasks without a pipeline.
    """

    explain: Callable[[Request], Explained]
    theirs: bool = True
    read: Callable[[str], Any] | None = None
    loads: str | None = None


TASKS: dict[str, Task] = {
    "text-classification": Task(Answered(best_class, text_or_pair)),
    "token-classification": Task(Answered(entities)),
    "fill-mask": Task(Answered(masked)),
    "zero-shot-classification": Task(Answered(entailment, hypotheses)),
    "image-classification": Task(Answered(best_class), read=open_image),
    "image-segmentation": Task(Answered(segments), read=open_image),
    "audio-classification": Task(Answered(best_class), read=open_sound),
    "automatic-speech-recognition": Task(heard, read=open_sound),
    "text-generation": Task(continued),
    "image-text-to-text": Task(continued),
    "summarization": Task(Written("summary_text", ("summarization",)), False, loads="AutoModelForSeq2SeqLM"),
    "translation": Task(Written("translation_text", ("translation",)), False, loads="AutoModelForSeq2SeqLM"),
    "question-answering": Task(passage, False, loads="AutoModelForQuestionAnswering"),
    "sentence-similarity": Task(similarity, False, loads="AutoModel"),
    "tabular": Task(table, False),
}
#: other names of tasks
ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "tabular-classification": "tabular",
    "tabular-regression": "tabular",
}
