"""Tasks with an answer of one forward pass: classes, tokens, pixels, passages, and their targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.explain import Logit, Pixels, Target
from lrp_fx.pipelines.explained import Asked, Explained

#: (name, target) of each of several answers
Named = list[tuple[str, Target]]


@dataclass(frozen=True)
class Answered:
    """A task with one answer, from the pipeline of transformers.

    Attributes:
        target: the target of an answer, or several by name.
        encode: raw input -> arguments of ``explain``; None for the input itself.
    """

    target: Callable[[Asked], Target | Named]
    encode: Callable[[Asked], tuple[Any, ...]] | None = None

    def __call__(self, asked: Asked) -> Explained:
        """Answer, then explain."""
        args = (asked.raw,) if self.encode is None else self.encode(asked)
        target = self.target(asked)
        if not isinstance(target, list):
            return Explained(asked.answer, asked.xmodel.explain(*args, target=target, rules=asked.rules))
        if not target:
            return Explained(asked.answer, None)
        targets = [one for _, one in target]
        several = asked.xmodel.explain_targets(*args, targets=targets, rules=asked.rules)
        return Explained(asked.answer, replace(several, names=tuple(name for name, _ in target)))


# -- classes of texts, images, sounds


def text_or_pair(asked: Asked) -> tuple[Any, ...]:
    """A text, or {"text": ..., "text_pair": ...}."""
    raw = asked.raw
    if isinstance(raw, Mapping):
        return ((raw["text"], raw["text_pair"]),) if raw.get("text_pair") is not None else (raw["text"],)
    return (raw,)


def best_class(asked: Asked) -> Target:
    """The first class of the answer."""
    answer = asked.answer
    while isinstance(answer, list):
        answer = answer[0]
    return asked.class_of(answer["label"])


# -- hypotheses


def hypotheses(asked: Asked) -> tuple[Any, ...]:
    """A batch of pairs: the text with a hypothesis for each label, in the order of the answer."""
    template = asked.options.get("hypothesis_template", "This example is {}.")
    return ([(asked.raw, template.format(label)) for label in asked.answer["labels"]],)


def entailment(asked: Asked) -> Target:
    """The logit by which the pipeline ranks hypotheses."""
    return int(asked.pipe.entailment_id)


# -- tokens


def entities(asked: Asked) -> Named:
    """For each entity the sum of the largest logits at its tokens, named by word and class."""
    encoded = asked.encoded(asked.raw)
    tokens = encoded.tokens["input_ids"][0]
    if tokens.offsets is None:
        raise InputError("entities need offsets in the text: give a fast tokenizer")
    named: Named = []
    for entity in asked.answer:
        positions = [
            i
            for i, (start, end) in enumerate(tokens.offsets)
            if not tokens.special[i] and start < entity["end"] and end > entity["start"]
        ]
        name = f"{entity['word']}: {entity.get('entity_group', entity.get('entity'))}"
        named.append((name, _Largest(tuple(positions)) if len(positions) > 1 else Logit(position=positions[0])))
    return named


@dataclass(frozen=True)
class _Largest:
    """The sum of the largest logits at some positions."""

    positions: tuple[int, ...]

    def __call__(self, output: Any) -> Tensor:
        return output.logits[:, list(self.positions)].amax(-1).sum(-1)


def masked(asked: Asked) -> Target | Named:
    """The first token of the answer, at each position of the mask token."""
    ids = asked.encoded(asked.raw).inputs["input_ids"][0]
    positions = (ids == asked.tokenizer.mask_token_id).nonzero()[:, 0].tolist()
    rows = asked.answer if isinstance(asked.answer[0], list) else [asked.answer]
    first = [row[0] for row in rows]
    targets = [Logit(one["token"], position) for one, position in zip(first, positions, strict=True)]
    named: Named = [(one["token_str"], target) for one, target in zip(first, targets, strict=True)]
    return named if len(targets) > 1 else targets[0]


# -- pixels


def segments(asked: Asked) -> Named:
    """The logits of each segment's class over the pixels where it wins.

    Raises:
        InputError: for a model whose masks belong to queries, not to classes.
    """
    if any("score" in one and one["score"] is not None for one in asked.answer):
        raise InputError(
            "this model's masks belong to queries: use explain(target=callable) with a callable of its mask logits. "
            "This task explains models with a logit for each class and pixel"
        )
    return [(one["label"], Pixels(asked.class_of(one["label"]))) for one in asked.answer]


# -- passages


def question_and_context(asked: Asked) -> tuple[str, str]:
    """{"question": ..., "context": ...}, or both as a pair.

    Raises:
        InputError: for another input.
    """
    raw = asked.raw
    if isinstance(raw, Mapping) and {"question", "context"} <= raw.keys():
        return raw["question"], raw["context"]
    if isinstance(raw, tuple) and len(raw) == 2:
        return raw
    raise InputError('give {"question": ..., "context": ...}, or (question, context)')


def passage(asked: Asked) -> Explained:
    """The most probable passage of the context; the target is the sum of its start logit and its end logit."""
    pair = question_and_context(asked)
    encoded = asked.encoded(pair)
    tokens, output = encoded.tokens["input_ids"][0], asked.output(encoded)
    if tokens.offsets is None:
        raise InputError("a passage needs offsets in the text: give a fast tokenizer")
    begins = len(pair[0]) + 1
    inside = torch.tensor([not s and o[0] >= begins for s, o in zip(tokens.special, tokens.offsets, strict=True)])
    if not bool(inside.any()):
        raise InputError("the question takes up all tokens of the model: the context was cut off")
    first, last = (
        logits[0].detach().cpu().double().masked_fill(~inside, -torch.inf).softmax(0)
        for logits in (output.start_logits, output.end_logits)
    )
    longest = asked.options.get("max_answer_len", 15)
    scores = (first[:, None] * last).triu().tril(longest - 1)
    start, end = divmod(int(scores.argmax()), scores.shape[1])
    place = tokens.offsets[start][0] - begins, tokens.offsets[end][1] - begins
    text = pair[1][slice(*place)]
    answer = {"score": float(scores[start, end]), "start": place[0], "end": place[1], "answer": text}
    attribution = asked.xmodel.explain(pair, target=_Passage(start, end), rules=asked.rules)
    return Explained(answer, attribution.knowing(answers=[text]))


@dataclass(frozen=True)
class _Passage:
    """The sum of a start logit and an end logit."""

    start: int
    end: int

    def __call__(self, output: Any) -> Tensor:
        return output.start_logits[:, self.start] + output.end_logits[:, self.end]
