"""Kinds of raw inputs, and the encoder of each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lrp_fx.encode.chats import Chat, are_chats, chats_of, options_of, pictured, spelled
from lrp_fx.encode.encoded import Encoded
from lrp_fx.encode.images import ImageEncoder, are_images
from lrp_fx.encode.model_facts import ModelFacts
from lrp_fx.encode.sounds import SoundEncoder, are_sounds
from lrp_fx.encode.texts import Text, TextEncoder, are_texts
from lrp_fx.errors import InputError
from lrp_fx.results import Normalization

#: inputs that are not tensors: a text, a pair, a chat, an image, a sound, or a list of them
Raw = Text | Chat | Any


@dataclass(frozen=True)
class Kind:
    """A kind of raw input.

    Attributes:
        fits: whether a value is of this kind.
        tool: argument of ``convert`` with its encoder.
    """

    fits: Callable[[Any], bool]
    tool: str


KINDS = {
    "chat": Kind(are_chats, "tokenizer"),
    "text": Kind(are_texts, "tokenizer"),
    "image": Kind(are_images, "image_processor"),
    "sound": Kind(are_sounds, "feature_extractor"),
}
_DECODER = {"decoder_input_ids", "decoder_inputs_embeds", "labels"}  #: inputs of a decoder


def kind_of(value: Any) -> str | None:
    """The kind of a raw input; None for any other value."""
    return next((name for name, kind in KINDS.items() if kind.fits(value)), None)


@dataclass(frozen=True)
class InputEncoder:
    """Encodes raw inputs as model inputs.

    Attributes:
        facts: facts about the model.
        texts: encodes texts and chats.
        images: encodes images.
        sounds: encodes sound.
        processor: encodes texts together with images or sound, and chats with images.
    """

    facts: ModelFacts
    texts: TextEncoder | None = None
    images: ImageEncoder | None = None
    sounds: SoundEncoder | None = None
    processor: Any = None

    @classmethod
    def of(
        cls, model: nn.Module, tools: Mapping[str, Any], labels: Sequence[str] | Mapping[int, str] | None = None
    ) -> InputEncoder | None:
        """The encoder of a model; None without tools and labels.

        Args:
            model: see :meth:`ModelFacts.of`.
            tools: "tokenizer", "image_processor", "feature_extractor", "processor"; a processor contains some of the
                others, or is one of them.
            labels: names of the classes; None for those of the configuration.
        """
        listed = [t for t in tools.values() if t is not None]
        if not listed and labels is None:
            return None
        facts = ModelFacts.of(model, labels)
        tokenizer = _first(listed, "tokenizer", "convert_ids_to_tokens")
        images = tools.get("image_processor") or _first(listed, "image_processor", "preprocess")
        extractor = _first(listed, "feature_extractor", "sampling_rate")
        return cls(
            facts,
            None if tokenizer is None else TextEncoder(tokenizer, facts),
            None if images is None else ImageEncoder(images, facts.first),
            None if extractor is None else SoundEncoder(extractor),
            next((t for t in listed if hasattr(t, "tokenizer")), None),
        )

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes."""
        return self.facts.labels

    @property
    def sampling_rate(self) -> float | None:
        """Sampling rate of the model's sound input, in Hz."""
        return None if self.sounds is None else self.sounds.rate

    @property
    def tools(self) -> list[Any]:
        """Tokenizer, image processor and feature extractor of this encoder, or the processor that contains them."""
        parts = [
            None if self.texts is None else self.texts.tokenizer,
            None if self.images is None else self.images.processor,
            None if self.sounds is None else self.sounds.extractor,
        ]
        return [self.processor] if self.processor is not None else [part for part in parts if part is not None]

    def takes(self, value: Any, kind: str) -> bool:
        """Whether there is an encoder for a raw input of this kind."""
        several = kind == "chat" and pictured(chats_of(value))
        texts = self.processor if several else self.texts
        tools = {"chat": texts, "text": self.texts, "image": self.images, "sound": self.sounds}
        return tools[kind] is not None

    def encode(
        self, raw: Mapping[str, Any], further: Mapping[str, Any], left: bool = False, rate: float | None = None
    ) -> Encoded:
        """Raw inputs as one batch of model inputs.

        Args:
            raw: kind -> raw input.
            further: further inputs by name; they replace encoded ones.
            left: pad texts on the left, for generation.
            rate: samples per second of sounds without a rate of their own.

        Raises:
            InputError: for inputs that cannot be encoded.
        """
        batch = self._together(raw, left, rate) if len(raw) > 1 else self._alone(*next(iter(raw.items())), left, rate)
        inputs, tokens = {n: v for n, v in batch.inputs.items() if self.facts.takes(n)}, dict(batch.tokens)
        if self.facts.start is not None and not _DECODER & further.keys():
            count = len(next(iter(inputs.values())))
            inputs["decoder_input_ids"] = torch.full((count, 1), self.facts.start)
            if self.texts is not None:
                tokens["decoder_input_ids"] = self.texts.describe(inputs["decoder_input_ids"])
        return replace(batch, inputs={**inputs, **further}, tokens=tokens)

    def _alone(self, kind: str, value: Any, left: bool, rate: float | None) -> Encoded:
        if kind == "sound" and self.sounds is not None:
            tensors, notes = self.sounds.encode(value, rate)
            return Encoded(tensors, notes=notes)
        if kind == "image" and self.images is not None:
            return Encoded(self.images.encode(value))
        if kind == "chat" and pictured(chats_of(value)):
            return self._pictured(chats_of(value), left)
        assert self.texts is not None
        texts = [spelled(self.texts.tokenizer, chat) for chat in chats_of(value)] if kind == "chat" else value
        return self.texts.encode(texts, left)

    def _pictured(self, chats: list[Chat], left: bool) -> Encoded:
        """Chats with images, by the processor's template."""
        side = {"padding": True, "padding_side": "left" if left else "right"} if len(chats) > 1 else {}
        try:
            batch = self.processor.apply_chat_template(
                chats, tokenize=True, return_dict=True, return_tensors="pt", **options_of(chats[0]), **side
            )
        except (ValueError, TypeError, KeyError, AttributeError) as reason:
            raise InputError(f"the processor refuses these messages: {reason}") from reason
        return self._processed(batch)

    def _together(self, raw: Mapping[str, Any], left: bool, rate: float | None) -> Encoded:
        """Texts with images or sound, by the processor; the texts may have placeholders."""
        if "chat" in raw:
            raise InputError('put images into the messages: {"type": "image", "image": image} among the content')
        if self.processor is None:
            raise InputError(f"{' and '.join(raw)} together need a processor: lrp_fx.convert(model, processor=...)")
        names = {"text": "text", "image": "images", "sound": "audio"}
        listed = {names[k]: v if isinstance(v, list) else [v] for k, v in raw.items()}
        if self.sounds is not None and "audio" in listed:
            listed["audio"] = self.sounds.waves(listed["audio"], rate)
        several = len(listed.get("text", ())) > 1
        side = {"padding": True, "padding_side": "left" if left else "right"} if several else {}
        try:
            batch = self.processor(**listed, return_tensors="pt", **side)
        except (ValueError, TypeError) as reason:
            raise InputError(f"the processor refuses {' and '.join(raw)}: {reason}") from reason
        return self._processed(batch)

    def _processed(self, batch: Mapping[str, Any]) -> Encoded:
        inputs = {n: v for n, v in batch.items() if isinstance(v, Tensor)}
        described = (
            {"input_ids": self.texts.describe(inputs["input_ids"], inputs.get("attention_mask"))}
            if self.texts is not None and "input_ids" in inputs
            else {}
        )
        return Encoded(inputs, described)

    def normalization(self, inputs: Mapping[str, Tensor]) -> dict[str, Normalization]:
        """Image input -> its normalization, to show values as colours."""
        return {} if self.images is None else self.images.normalization(inputs)

    def answer(self, index: int, classes: int) -> str:
        """Name of entry ``index`` of ``classes`` logits: a class, a token, otherwise its number."""
        if self.labels is not None and len(self.labels) == classes:
            return self.labels[index]
        if self.texts is not None and classes >= self.texts.size > 2:
            return repr(self.texts.tokenizer.decode([index]))
        return f"output {index}"


def _first(tools: Sequence[Any], part: str, mark: str) -> Any:
    """The first tool, or its ``part``, with the attribute ``mark``; None without one."""
    candidates = [c for tool in tools for c in (getattr(tool, part, None), tool) if c is not None]
    return next((c for c in candidates if hasattr(c, mark)), None)
