"""Tasks with a generated text, whose every token is explained; and speech recognition letter by letter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lrp_fx.capture.conventions import is_encoder_decoder
from lrp_fx.encode.chats import is_chat
from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.pipelines.explained import Explained, Request
from lrp_fx.results import Generation

_NEW = 20  #: default number of new tokens


def _generated(request: Request, raw: tuple[Any, ...], options: Mapping[str, Any]) -> Generation:
    """Generate and explain a text; greedily, unless options say otherwise."""
    configured = getattr(getattr(request.pipe, "generation_config", None), "max_new_tokens", None)
    chosen = {k: v for k, v in options.items() if k != "max_new_tokens"}
    new = options.get("max_new_tokens") or configured or _NEW
    return request.xmodel.explain_generation(*raw, max_new_tokens=new, rules=request.rules, options=chosen)


def continued(request: Request) -> Explained:
    """The continuation of a prompt or a chat, with or without images: {"images": ..., "text": ...}.

    Raises:
        InputError: for several texts at once.
    """
    _, forward, post = request.pipe._sanitize_parameters(**request.options)
    raw: tuple[Any, ...] = (request.raw,)
    prompt = request.raw
    if isinstance(request.raw, Mapping):
        prompt, images = request.raw["text"], request.raw["images"]
        if not isinstance(prompt, str):
            raise InputError("give one text: a list of inputs gives a list of answers")
        raw = (images if isinstance(images, list) else [images], prompt)
    generation = _generated(request, raw, forward.get("generate_kwargs", forward) or {})
    sequences = generation.sequences.cpu()
    outputs = {
        "generated_sequence": sequences if request.pipe.task == "image-text-to-text" else sequences[None],
        "input_ids": sequences[:, : generation.start],
        "prompt_text": _chat(prompt) if is_chat(prompt) else prompt,
    }
    return Explained(request.pipe.postprocess(outputs, **post), generation)


def _chat(messages: Any) -> Any:
    """Messages in the type of transformers' pipelines."""
    module: Any = require("transformers.utils.chat_template_utils", "transformers")
    return module.Chat(messages)


@dataclass(frozen=True)
class Written:
    """A text generated from another one: a summary, a translation.

    Attributes:
        key: its key in the answer.
        prefixes: prefixes of keys of the model's ``task_specific_params``; the first matching entry with a "prefix"
            gives the beginning of the input.
    """

    key: str
    prefixes: tuple[str, ...]

    def __call__(self, request: Request) -> Explained:
        """Generate, and explain every token."""
        tasks = getattr(getattr(request.xmodel.model, "config", None), "task_specific_params", None) or {}
        settings = [v for n, v in tasks.items() if n.startswith(self.prefixes) and isinstance(v, Mapping)]
        prefix = request.options.get("prefix") or next((s["prefix"] for s in settings if "prefix" in s), "")
        options = {k: v for k, v in request.options.items() if k != "prefix"}
        generation = _generated(request, (prefix + request.raw,), options)
        new = generation.sequences[0, generation.start :]
        return Explained([{self.key: request.tokenizer.decode(new, skip_special_tokens=True)}], generation)


def heard(request: Request) -> Explained:
    """Speech recognition: generated token by token, or letter by letter by a CTC model."""
    if is_encoder_decoder(request.xmodel.model):
        _, forward, post = request.pipe._sanitize_parameters(**request.options)
        options = {k: v for k, v in forward.items() if k in ("max_new_tokens", "num_beams", "do_sample")}
        generation = _generated(request, (request.raw,), options)
        tokens = generation.sequences[:, generation.start :].cpu()
        return Explained(request.pipe.postprocess([{"tokens": tokens, "is_last": True}], **post), generation)
    encoded = request.encoded(request.raw)
    logits = request.output(encoded).logits[0].detach()
    letters = _letters(logits, request.tokenizer)
    answer = request.pipe(dict(request.raw) if isinstance(request.raw, Mapping) else request.raw, **request.options)
    if not letters:
        return Explained(answer, None)
    several = request.xmodel.explain_targets(request.raw, targets=[place for _, place in letters], rules=request.rules)
    return Explained(answer, replace(several, names=tuple(name for name, _ in letters)))


def _letters(logits: Tensor, tokenizer: Any) -> list[tuple[str, tuple[int, int]]]:
    """(letter, (step, class)) of every recognised letter, at the step of its largest logit."""
    best = logits.argmax(-1).tolist()
    letters: list[tuple[str, tuple[int, int]]] = []
    for step, token in enumerate(best):
        if token == tokenizer.pad_token_id:
            continue
        if step and best[step - 1] == token:
            earlier = letters[-1][1][0]
            if logits[step, token] > logits[earlier, token]:
                letters[-1] = (letters[-1][0], (step, token))
        else:
            letters.append((tokenizer.convert_ids_to_tokens(token), (step, token)))
    return letters
