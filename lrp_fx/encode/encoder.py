"""Which kind of raw input a value is, and what encodes it."""

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

#: what can be explained without making tensors of it: a text, a pair, a chat, an image, a sound, or a list of them
Raw = Text | Chat | Any


@dataclass(frozen=True)
class Kind:
    """A kind of raw input.

    Attributes:
        fits: whether a value is of this kind.
        tool: what ``convert`` has to be told of to take it.
    """

    fits: Callable[[Any], bool]
    tool: str


KINDS = {
    "chat": Kind(are_chats, "tokenizer"),
    "text": Kind(are_texts, "tokenizer"),
    "image": Kind(are_images, "image_processor"),
    "sound": Kind(are_sounds, "feature_extractor"),
}
_DECODER = {"decoder_input_ids", "decoder_inputs_embeds", "labels"}  #: inputs that say what a decoder reads


def kind_of(value: Any) -> str | None:
    """The kind of a raw input; None for what is none."""
    return next((name for name, kind in KINDS.items() if kind.fits(value)), None)


@dataclass(frozen=True)
class InputEncoder:
    """What makes model inputs of raw ones.

    Attributes:
        facts: of the model.
        texts: encodes texts and chats.
        images: encodes images.
        sounds: encodes sound.
        processor: encodes texts together with images or sound, and chats that hold some.
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
        """The encoder of a model; None where nothing is known.

        Args:
            model: see :meth:`ModelFacts.of`.
            tools: "tokenizer", "image_processor", "feature_extractor", "processor"; a processor has some of the others,
                or is one of them.
            labels: names of the classes; what the configuration says where None.
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
        """Of the sound that the model hears, in Hz."""
        return None if self.sounds is None else self.sounds.rate

    def takes(self, value: Any, kind: str) -> bool:
        """Whether there is something to encode a raw input with."""
        several = kind == "chat" and pictured(chats_of(value))
        texts = self.processor if several else self.texts
        tools = {"chat": texts, "text": self.texts, "image": self.images, "sound": self.sounds}
        return tools[kind] is not None

    def encode(
        self, raw: Mapping[str, Any], given: Mapping[str, Any], left: bool = False, rate: float | None = None
    ) -> Encoded:
        """Raw inputs as one batch of model inputs.

        Args:
            raw: by kind.
            given: further inputs, which win over what is made here.
            left: pad texts on the left, for those that go on.
            rate: samples per second of arrays of sound that do not say theirs.

        Raises:
            InputError: for what cannot be encoded.
        """
        made = self._together(raw, left, rate) if len(raw) > 1 else self._alone(*next(iter(raw.items())), left, rate)
        inputs, tokens = {n: v for n, v in made.inputs.items() if self.facts.takes(n)}, dict(made.tokens)
        if self.facts.start is not None and not _DECODER & given.keys():
            count = len(next(iter(inputs.values())))
            inputs["decoder_input_ids"] = torch.full((count, 1), self.facts.start)
            if self.texts is not None:
                tokens["decoder_input_ids"] = self.texts.describe(inputs["decoder_input_ids"])
        return replace(made, inputs={**inputs, **given}, tokens=tokens)

    def _alone(self, kind: str, value: Any, left: bool, rate: float | None) -> Encoded:
        if kind == "sound" and self.sounds is not None:
            made, notes = self.sounds.encode(value, rate)
            return Encoded(made, notes=notes)
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
            made = self.processor.apply_chat_template(
                chats, tokenize=True, return_dict=True, return_tensors="pt", **options_of(chats[0]), **side
            )
        except (ValueError, TypeError, KeyError, AttributeError) as reason:
            raise InputError(f"the processor refuses these messages: {reason}") from reason
        return self._processed(made)

    def _together(self, raw: Mapping[str, Any], left: bool, rate: float | None) -> Encoded:
        """Texts beside images or sound: by the processor, whose texts may have places for them."""
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
            made = self.processor(**listed, return_tensors="pt", **side)
        except (ValueError, TypeError) as reason:
            raise InputError(f"the processor refuses {' and '.join(raw)}: {reason}") from reason
        return self._processed(made)

    def _processed(self, made: Mapping[str, Any]) -> Encoded:
        inputs = {n: v for n, v in made.items() if isinstance(v, Tensor)}
        described = (
            {"input_ids": self.texts.describe(inputs["input_ids"], inputs.get("attention_mask"))}
            if self.texts is not None and "input_ids" in inputs
            else {}
        )
        return Encoded(inputs, described)

    def normalization(self, inputs: Mapping[str, Tensor]) -> dict[str, Normalization]:
        """How values of inputs that are images become colours."""
        return {} if self.images is None else self.images.normalization(inputs)

    def answer(self, index: int, classes: int) -> str:
        """What entry ``index`` of ``classes`` logits is called: a class, a token, else its number."""
        if self.labels is not None and len(self.labels) == classes:
            return self.labels[index]
        if self.texts is not None and classes >= self.texts.size > 2:
            return repr(self.texts.tokenizer.decode([index]))
        return f"output {index}"


def _first(tools: Sequence[Any], part: str, mark: str) -> Any:
    """The tool that has an attribute which marks its kind, or a part of this name of one that has it."""
    candidates = [c for tool in tools for c in (getattr(tool, part, None), tool) if c is not None]
    return next((c for c in candidates if hasattr(c, mark)), None)
