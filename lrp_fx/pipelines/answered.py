"""Tasks with an answer of one forward pass: classes, tokens, pixels, passages, and their targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.explain import Logit, Pixels, Target
from lrp_fx.pipelines.explained import Explained, Request
from lrp_fx.pipelines.query_masks import Queries

#: (name, target) of each of several answers
Named = list[tuple[str, Target]]


@dataclass(frozen=True)
class Answered:
    """A task with one answer, from the pipeline of transformers.

    Attributes:
        target: the target of an answer, or several by name.
        encode: raw input -> arguments of ``explain``; None for the input itself.
    """

    target: Callable[[Request], Target | Named]
    encode: Callable[[Request], tuple[Any, ...]] | None = None

    def __call__(self, request: Request) -> Explained:
        """Answer, then explain."""
        args = (request.raw,) if self.encode is None else self.encode(request)
        target = self.target(request)
        if not isinstance(target, list):
            return Explained(request.answer, request.xmodel.explain(*args, target=target, rules=request.rules))
        if not target:
            return Explained(request.answer, None)
        targets = [one for _, one in target]
        several = request.xmodel.explain_targets(*args, targets=targets, rules=request.rules)
        return Explained(request.answer, replace(several, names=tuple(name for name, _ in target)))


# -- classes of texts, images, sounds


def text_or_pair(request: Request) -> tuple[Any, ...]:
    """A text, or {"text": ..., "text_pair": ...}."""
    raw = request.raw
    if isinstance(raw, Mapping):
        return ((raw["text"], raw["text_pair"]),) if raw.get("text_pair") is not None else (raw["text"],)
    return (raw,)


def best_class(request: Request) -> Target:
    """The first class of the answer."""
    answer = request.answer
    while isinstance(answer, list):
        answer = answer[0]
    return request.class_of(answer["label"])


# -- hypotheses


def hypotheses(request: Request) -> tuple[Any, ...]:
    """A batch of pairs: the text with a hypothesis for each label, in the order of the answer."""
    template = request.options.get("hypothesis_template", "This example is {}.")
    return ([(request.raw, template.format(label)) for label in request.answer["labels"]],)


def entailment(request: Request) -> Target:
    """The logit by which the pipeline ranks hypotheses."""
    return int(request.pipe.entailment_id)


# -- tokens


def entities(request: Request) -> Named:
    """For each entity the sum of the largest logits at its tokens, named by word and class."""
    encoded = request.encoded(request.raw)
    tokens = encoded.tokens["input_ids"][0]
    if tokens.offsets is None:
        raise InputError("entities need offsets in the text: give a fast tokenizer")
    named: Named = []
    for entity in request.answer:
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


def masked(request: Request) -> Target | Named:
    """The first token of the answer, at each position of the mask token."""
    ids = request.encoded(request.raw).inputs["input_ids"][0]
    positions = (ids == request.tokenizer.mask_token_id).nonzero()[:, 0].tolist()
    rows = request.answer if isinstance(request.answer[0], list) else [request.answer]
    first = [row[0] for row in rows]
    targets = [Logit(one["token"], position) for one, position in zip(first, positions, strict=True)]
    named: Named = [(one["token_str"], target) for one, target in zip(first, targets, strict=True)]
    return named if len(targets) > 1 else targets[0]


# -- pixels


def segments(request: Request) -> Named:
    """Each segment: the logits of its class over the pixels where it wins, or the logits of its query."""
    labels = request.xmodel.encoder.labels if request.xmodel.encoder is not None else None
    queries = Queries.of(request.output(request.encoded(request.raw)), len(labels or ()))
    named: Named = []
    for one in request.answer:
        label = request.class_of(one["label"])
        named.append((one["label"], Pixels(label) if queries is None else queries.target_of(label, one["mask"])))
    return named


# -- passages


def question_and_context(request: Request) -> tuple[str, str]:
    """{"question": ..., "context": ...}, or both as a pair.

    Raises:
        InputError: for another input.
    """
    raw = request.raw
    if isinstance(raw, Mapping) and {"question", "context"} <= raw.keys():
        return raw["question"], raw["context"]
    if isinstance(raw, tuple) and len(raw) == 2:
        return raw
    raise InputError('give {"question": ..., "context": ...}, or (question, context)')


def passage(request: Request) -> Explained:
    """The most probable passage of the context; the target is the sum of its start logit and its end logit."""
    pair = question_and_context(request)
    encoded = request.encoded(pair)
    tokens, output = encoded.tokens["input_ids"][0], request.output(encoded)
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
    longest = request.options.get("max_answer_len", 15)
    scores = (first[:, None] * last).triu().tril(longest - 1)
    start, end = divmod(int(scores.argmax()), scores.shape[1])
    place = tokens.offsets[start][0] - begins, tokens.offsets[end][1] - begins
    text = pair[1][slice(*place)]
    answer = {"score": float(scores[start, end]), "start": place[0], "end": place[1], "answer": text}
    attribution = request.xmodel.explain(pair, target=_Passage(start, end), rules=request.rules)
    return Explained(answer, attribution.knowing(answers=[text]))


@dataclass(frozen=True)
class _Passage:
    """The sum of a start logit and an end logit."""

    start: int
    end: int

    def __call__(self, output: Any) -> Tensor:
        return output.start_logits[:, self.start] + output.end_logits[:, self.end]
