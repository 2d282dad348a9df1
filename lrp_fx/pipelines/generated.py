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
from lrp_fx.pipelines.explained import Asked, Explained
from lrp_fx.results import Generation

_NEW = 20  #: default number of new tokens


def _generated(asked: Asked, raw: tuple[Any, ...], options: Mapping[str, Any]) -> Generation:
    """Generate and explain a text; greedily, unless options say otherwise."""
    configured = getattr(getattr(asked.pipe, "generation_config", None), "max_new_tokens", None)
    chosen = {k: v for k, v in options.items() if k != "max_new_tokens"}
    new = options.get("max_new_tokens") or configured or _NEW
    return asked.xmodel.explain_generation(*raw, max_new_tokens=new, rules=asked.rules, options=chosen)


def continued(asked: Asked) -> Explained:
    """The continuation of a prompt or a chat, with or without images: {"images": ..., "text": ...}.

    Raises:
        InputError: for several texts at once.
    """
    _, forward, post = asked.pipe._sanitize_parameters(**asked.options)
    raw: tuple[Any, ...] = (asked.raw,)
    prompt = asked.raw
    if isinstance(asked.raw, Mapping):
        prompt, images = asked.raw["text"], asked.raw["images"]
        if not isinstance(prompt, str):
            raise InputError("give one text: a list of inputs gives a list of answers")
        raw = (images if isinstance(images, list) else [images], prompt)
    generation = _generated(asked, raw, forward.get("generate_kwargs", forward) or {})
    sequences = generation.sequences.cpu()
    outputs = {
        "generated_sequence": sequences if asked.pipe.task == "image-text-to-text" else sequences[None],
        "input_ids": sequences[:, : generation.start],
        "prompt_text": _chat(prompt) if is_chat(prompt) else prompt,
    }
    return Explained(asked.pipe.postprocess(outputs, **post), generation)


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

    def __call__(self, asked: Asked) -> Explained:
        """Generate, and explain every token."""
        tasks = getattr(getattr(asked.xmodel.model, "config", None), "task_specific_params", None) or {}
        settings = [v for n, v in tasks.items() if n.startswith(self.prefixes) and isinstance(v, Mapping)]
        prefix = asked.options.get("prefix") or next((s["prefix"] for s in settings if "prefix" in s), "")
        options = {k: v for k, v in asked.options.items() if k != "prefix"}
        generation = _generated(asked, (prefix + asked.raw,), options)
        new = generation.sequences[0, generation.start :]
        return Explained([{self.key: asked.tokenizer.decode(new, skip_special_tokens=True)}], generation)


def heard(asked: Asked) -> Explained:
    """Speech recognition: generated token by token, or letter by letter by a CTC model."""
    if is_encoder_decoder(asked.xmodel.model):
        _, forward, post = asked.pipe._sanitize_parameters(**asked.options)
        options = {k: v for k, v in forward.items() if k in ("max_new_tokens", "num_beams", "do_sample")}
        generation = _generated(asked, (asked.raw,), options)
        tokens = generation.sequences[:, generation.start :].cpu()
        return Explained(asked.pipe.postprocess([{"tokens": tokens, "is_last": True}], **post), generation)
    encoded = asked.encoded(asked.raw)
    logits = asked.output(encoded).logits[0].detach()
    letters = _letters(logits, asked.tokenizer)
    answer = asked.pipe(dict(asked.raw) if isinstance(asked.raw, Mapping) else asked.raw, **asked.options)
    if not letters:
        return Explained(answer, None)
    several = asked.xmodel.explain_targets(asked.raw, targets=[place for _, place in letters], rules=asked.rules)
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
