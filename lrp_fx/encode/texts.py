"""Texts to model inputs by a tokenizer of Hugging Face's kind: whatever has its methods serves."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrp_fx.capture.conventions import is_encoder_decoder
from lrp_fx.errors import InputError
from lrp_fx.results import Note, Tokens

_ANY = 10**6  #: lengths from here on say that a tokenizer knows no limit
_FILLED = {"attention_mask": 0, "token_type_ids": 0}  #: what stands where a text has ended

#: a text, or two that belong together (premise and hypothesis, question and passage)
Text = str | tuple[str, str]


def are_texts(value: Any) -> bool:
    """Whether a value is a text, a pair of texts, or a list of texts or pairs."""
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(
        isinstance(v, str) or (isinstance(v, tuple) and len(v) == 2 and all(isinstance(t, str) for t in v))
        for v in listed
    )


@dataclass(frozen=True)
class Encoded:
    """Texts as model inputs.

    Attributes:
        inputs: (B, S) tensors by name.
        tokens: by name of the input, of every text.
        notes: what was cut off.
    """

    inputs: dict[str, Tensor]
    tokens: dict[str, tuple[Tokens, ...]]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer with what is known of its model.

    Attributes:
        tokenizer: called with a text, it returns ``input_ids`` and more; ``convert_ids_to_tokens``, ``decode``. None
            where only names of classes are known.
        labels: names of the classes, where there are some.
        accepted: names of inputs that the model takes; None for all.
        limit: most tokens that it reads; None where nobody says.
        start: the token with which its decoder begins; None where it has none.
    """

    tokenizer: Any
    labels: tuple[str, ...] | None = None
    accepted: tuple[str, ...] | None = None
    limit: int | None = None
    start: int | None = None

    @classmethod
    def of(
        cls, model: nn.Module, tokenizer: Any, labels: Sequence[str] | Mapping[int, str] | None = None
    ) -> TextEncoder:
        """The encoder of a model.

        Args:
            model: its ``config``, where it has one, says names of classes, the limit and the start token.
            tokenizer: its tokenizer, or a processor that has one.
            labels: names of the classes; what the configuration says where None.
        """
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        config = getattr(model, "config", None)
        named = getattr(config, "id2label", None) if labels is None else labels
        if isinstance(named, Mapping):
            named = [named[i] for i in sorted(named)]
        parameters = inspect.signature(model.forward).parameters.values()
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        limits = (getattr(tokenizer, "model_max_length", None), getattr(config, "max_position_embeddings", None))
        start = None
        if is_encoder_decoder(model):
            settings = (getattr(model, "generation_config", None), config)
            starts = (getattr(s, "decoder_start_token_id", None) for s in settings)
            start = next((s for s in starts if s is not None), 0)
        return cls(
            tokenizer,
            tuple(map(str, named)) if named else None,
            None if open_ended else tuple(p.name for p in parameters),
            next((n for n in limits if isinstance(n, int) and 0 < n < _ANY), None),
            start,
        )

    def encode(
        self, texts: Text | Sequence[Text], given: Mapping[str, Any] | None = None, left: bool = False
    ) -> Encoded:
        """Texts as one batch, padded to the longest; what is too long is cut off, with a warning and a note.

        Args:
            texts: one, or several.
            given: further inputs, which win over what is made here.
            left: pad on the left, for texts that go on.

        Raises:
            InputError: for a text without tokens.
        """
        listed = [texts] if isinstance(texts, (str, tuple)) else list(texts)
        rows, notes = [], []
        for number, text in enumerate(listed):
            row = self._row(text)
            length = len(row["input_ids"])
            if self.limit is not None and length > self.limit:
                row = self._row(text, truncation=True, max_length=self.limit)
                cut = f"text {number} has {length} tokens, and the model reads {self.limit}: the rest was cut off"
                warnings.warn(cut, stacklevel=4)
                notes.append(Note("cut off", f"{cut}. Explain it in parts."))
            if not len(row["input_ids"]):
                raise InputError(f"text {number} has no tokens: {text!r:.60}")
            rows.append(row)
        width = max(len(row["input_ids"]) for row in rows)
        names = [n for n in rows[0] if n == "input_ids" or n in _FILLED]
        names = [n for n in names if self.accepted is None or n in self.accepted]
        fills = {**_FILLED, "input_ids": self._padding()}
        inputs = {n: torch.tensor([_padded(list(r[n]), width, fills[n], left) for r in rows]) for n in names}
        tokens = [self._tokens(text, row, width, left) for text, row in zip(listed, rows, strict=True)]
        named = {"input_ids": tuple(tokens)}
        if self.start is not None and not {"decoder_input_ids", "decoder_inputs_embeds", "labels"} & set(given or {}):
            inputs["decoder_input_ids"] = torch.full((len(rows), 1), self.start)
            named["decoder_input_ids"] = self.describe(inputs["decoder_input_ids"])
        return Encoded({**inputs, **(given or {})}, named, tuple(notes))

    def describe(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tokens, ...]:
        """Tokens of (B, S) ids, without the texts that they are from; what a mask hides is padding."""
        special = set(getattr(self.tokenizer, "all_special_ids", ()))
        shown = torch.ones_like(ids) if mask is None or mask.shape != ids.shape else mask
        described = []
        for row, seen in zip(ids.tolist(), shown.tolist(), strict=True):
            texts = tuple(map(self._spelled, self.tokenizer.convert_ids_to_tokens(row)))
            described.append(Tokens(texts, tuple(i in special for i in row), tuple(not s for s in seen)))
        return tuple(described)

    def answer(self, index: int, classes: int) -> str:
        """What entry ``index`` of ``classes`` logits is called: a class, a token, else its number."""
        if self.labels is not None and len(self.labels) == classes:
            return self.labels[index]
        sized = hasattr(type(self.tokenizer), "__len__")
        known = len(self.tokenizer) if sized else getattr(self.tokenizer, "vocab_size", 0)
        if classes >= known > 2:
            return repr(self.tokenizer.decode([index]))
        return f"output {index}"

    def _row(self, text: Text, **options: Any) -> Mapping[str, Any]:
        parts = text if isinstance(text, tuple) else (text,)
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its length, which is looked at here
            return self.tokenizer(
                *parts, return_offsets_mapping=fast, return_special_tokens_mask=True, return_attention_mask=True,
                **({"verbose": False} | options),
            )  # fmt: skip

    def _padding(self) -> int:
        named = (getattr(self.tokenizer, n, None) for n in ("pad_token_id", "eos_token_id", "unk_token_id"))
        return next((i for i in named if i is not None), 0)  # whatever it is, the mask hides it

    def _tokens(self, text: Text, row: Any, width: int, left: bool) -> Tokens:
        ids = list(row["input_ids"])
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        special = [bool(s) for s in row["special_tokens_mask"]]
        parts = text if isinstance(text, tuple) else (text,)
        whole = "\n".join(parts)
        offsets: list[Any] | None = None
        words: list[Any] | None = None
        if "offset_mapping" in row:
            of = row.sequence_ids(0)
            begins = [len(parts[0]) + 1 if s == 1 else 0 for s in of]
            offsets = [(a + b, e + b) for (a, e), b in zip(row["offset_mapping"], begins, strict=True)]
            numbers = row.word_ids(0)
            words = [None if n is None else n + b * _ANY for n, b in zip(numbers, begins, strict=True)]
            texts = [p if s else whole[slice(*o)] for p, s, o in zip(pieces, special, offsets, strict=True)]
        else:
            texts = list(map(self._spelled, pieces))
        return Tokens(
            tuple(_padded(texts, width, "[PAD]", left)),
            tuple(_padded(special, width, True, left)),
            tuple(_padded([False] * len(ids), width, True, left)),
            None if offsets is None else tuple(_padded(offsets, width, (0, 0), left)),
            None if words is None else tuple(_padded(words, width, None, left)),
            whole if offsets is not None else None,
        )

    def _spelled(self, piece: str) -> str:
        """A piece as text: a space begins a word, ``##`` continues one."""
        if piece.startswith("##"):
            return piece
        text = self.tokenizer.convert_tokens_to_string([piece])
        return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text


def _padded(values: list[Any], width: int, fill: Any, left: bool) -> list[Any]:
    missing = [fill] * (width - len(values))
    return [*missing, *values] if left else [*values, *missing]
