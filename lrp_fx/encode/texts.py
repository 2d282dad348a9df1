"""Texts as model inputs, by a tokenizer with the methods of Hugging Face's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lrp_fx.encode.chats import Spelled
from lrp_fx.encode.encoded import Encoded
from lrp_fx.encode.model_facts import ENDLESS, ModelFacts
from lrp_fx.errors import InputError, type_and_line
from lrp_fx.results import Note, Tokens

_FILLED = {"attention_mask": 0, "token_type_ids": 0}  #: values at padding


@dataclass(frozen=True)
class Tokenized:
    """A text with its encoding by a tokenizer (:meth:`TextEncoder.tokenized`).

    Attributes:
        text: the text, or the pair.
        row: the result of the tokenizer, not truncated.
    """

    text: str | tuple[str, str]
    row: Mapping[str, Any] = field(repr=False)

    def __len__(self) -> int:
        return len(self.row["input_ids"])


#: a text, a pair (premise and hypothesis, question and passage), a chat by its template, or one that is tokenized
Text = str | tuple[str, str] | Spelled | Tokenized


def are_texts(value: Any) -> bool:
    """Whether a value is a text, a pair of texts, or a list of texts or pairs."""
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(
        isinstance(v, (str, Spelled, Tokenized))
        or (isinstance(v, tuple) and len(v) == 2 and all(isinstance(t, str) for t in v))
        for v in listed
    )


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer with facts about its model.

    Attributes:
        tokenizer: a function from a text to ``input_ids`` and more, with ``convert_ids_to_tokens`` and ``decode``.
        facts: facts about the model.
    """

    tokenizer: Any
    facts: ModelFacts

    @property
    def limit(self) -> int | None:
        """Largest number of tokens of the model; None if unknown."""
        limits = (getattr(self.tokenizer, "model_max_length", None), self.facts.limit)
        return next((n for n in limits if isinstance(n, int) and 0 < n < ENDLESS), None)

    def encode(self, texts: Text | Sequence[Text], left: bool = False) -> Encoded:
        """Texts as one batch, padded to the longest; a text that is too long is cut off, with a warning and a note.

        Args:
            texts: one text, or several.
            left: pad on the left, for generation.

        Raises:
            InputError: for a text without tokens, and for a chat that is too long.
        """
        listed: list[Text] = [texts] if isinstance(texts, (str, tuple, Spelled, Tokenized)) else list(texts)
        rows, notes = [], []
        for number, text in enumerate(listed):
            row = self._row(text)
            length = len(row["input_ids"])
            if self.limit is not None and length > self.limit:
                if isinstance(text, Spelled):  # a chat without its end has another meaning
                    raise InputError(f"the chat has {length} tokens, and the model reads {self.limit}: shorten it")
                row = self._row(text, truncation=True, max_length=self.limit)
                cut = f"text {number} has {length} tokens, and the model reads {self.limit}: the rest was cut off"
                warnings.warn(cut, stacklevel=5)
                notes.append(Note("cut off", f"{cut}. Explain it in parts."))
            if not len(row["input_ids"]):
                raise InputError(f"text {number} has no tokens: {' '.join(_parts(text))!r:.60}")
            rows.append(row)
        width = max(len(row["input_ids"]) for row in rows)
        names = [n for n in rows[0] if (n == "input_ids" or n in _FILLED) and self.facts.takes(n)]
        fills = {**_FILLED, "input_ids": self._padding()}
        inputs = {n: torch.tensor([_padded(list(r[n]), width, fills[n], left) for r in rows]) for n in names}
        tokens = [self._tokens(text, row, width, left) for text, row in zip(listed, rows, strict=True)]
        return Encoded(inputs, {"input_ids": tuple(tokens)}, tuple(notes))

    def tokenized(self, texts: Sequence[str | tuple[str, str]]) -> list[Tokenized]:
        """Many texts, or many pairs, encoded by one call of the tokenizer: faster than one call for each."""
        if not texts or not getattr(self.tokenizer, "is_fast", False):
            return [Tokenized(text, self._row(text)) for text in texts]
        parts = [list(part) for part in zip(*map(_parts, texts), strict=True)]
        many = self._called(parts)
        rows = (
            type(many)({name: listed[i] for name, listed in many.items()}, encoding=many.encodings[i])
            for i in range(len(texts))
        )
        return [Tokenized(text, row) for text, row in zip(texts, rows, strict=True)]

    def describe(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tokens, ...]:
        """Tokens of (B, S) ids without their text; positions with mask 0 are padding."""
        special = self._special()
        shown = torch.ones_like(ids) if mask is None or mask.shape != ids.shape else mask
        described = []
        for row, seen in zip(ids.tolist(), shown.tolist(), strict=True):
            texts = tuple(map(self._spelled, self.tokenizer.convert_ids_to_tokens(row)))
            described.append(Tokens(texts, tuple(i in special for i in row), tuple(not s for s in seen)))
        return tuple(described)

    def of_vocabulary(self, names: Sequence[str]) -> list[str]:
        """The inputs among ``names`` that hold ids of the vocabulary: ``decoder_input_ids``, no numbers of segments.

        Those that end as the tokenizer's first output is called; all, if none does.
        """
        first = next(iter(getattr(self.tokenizer, "model_input_names", ())), "input_ids")
        return [name for name in names if name.endswith(first)] or list(names)

    @property
    def size(self) -> int:
        """Size of the vocabulary."""
        sized = hasattr(type(self.tokenizer), "__len__")
        return len(self.tokenizer) if sized else getattr(self.tokenizer, "vocab_size", 0)

    def _special(self) -> set[int]:
        """Ids of special tokens, without the unknown token, which stands for text."""
        return set(getattr(self.tokenizer, "all_special_ids", ())) - {getattr(self.tokenizer, "unk_token_id", None)}

    def _row(self, text: Text, **options: Any) -> Mapping[str, Any]:
        if isinstance(text, Tokenized) and not options:
            return text.row
        options = {"add_special_tokens": False, **options} if isinstance(text, Spelled) else options
        return self._called(_parts(text), **options)

    def _called(self, parts: Sequence[Any], **options: Any) -> Any:
        """The tokenizer's result for the parts of one text, or of many.

        Raises:
            InputError: for a text that it refuses.
        """
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # (the length is checked in encode)
            try:
                return self.tokenizer(
                    *parts, return_offsets_mapping=fast, return_special_tokens_mask=True, return_attention_mask=True,
                    **({"verbose": False} | options),
                )  # fmt: skip
            except (TypeError, ValueError) as error:
                raise InputError(f"the tokenizer refuses the text: {_reason(parts, error)}") from error

    def _padding(self) -> int:
        named = (getattr(self.tokenizer, n, None) for n in ("pad_token_id", "eos_token_id", "unk_token_id"))
        return next((i for i in named if i is not None), 0)  # (any id serves: the mask hides it)

    def _tokens(self, text: Text, row: Any, width: int, left: bool) -> Tokens:
        ids = list(row["input_ids"])
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        marks = self._special() if isinstance(text, Spelled) else set()
        special = [bool(s) or i in marks for s, i in zip(row["special_tokens_mask"], ids, strict=True)]
        parts = _parts(text)
        whole = "\n".join(parts)
        offsets: list[Any] | None = None
        words: list[Any] | None = None
        if "offset_mapping" in row:
            of = row.sequence_ids(0)
            begins = [len(parts[0]) + 1 if s == 1 else 0 for s in of]
            offsets = [(a + b, e + b) for (a, e), b in zip(row["offset_mapping"], begins, strict=True)]
            numbers = row.word_ids(0)
            words = [None if n is None else n + b * ENDLESS for n, b in zip(numbers, begins, strict=True)]
            texts = [p if s else whole[slice(*o)] for p, s, o in zip(pieces, special, offsets, strict=True)]
            if isinstance(text, Spelled):  # tokens of the template are special
                special = [s or not text.says(*o) for s, o in zip(special, offsets, strict=True)]
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
        """A piece as text: a leading space begins a word, ``##`` continues one."""
        if piece.startswith("##"):
            return piece
        text = self.tokenizer.convert_tokens_to_string([piece])
        return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text


def _parts(text: Text) -> tuple[str, ...]:
    if isinstance(text, Tokenized):
        return _parts(text.text)
    return text if isinstance(text, tuple) else (text.text if isinstance(text, Spelled) else text,)


def _padded(values: list[Any], width: int, fill: Any, left: bool) -> list[Any]:
    missing = [fill] * (width - len(values))
    return [*missing, *values] if left else [*values, *missing]


def _reason(parts: Any, error: Exception) -> str:
    """Why a tokenizer refuses texts: half a character among them, or what it says itself."""
    for part in parts if isinstance(parts, (list, tuple)) else [parts]:
        if isinstance(part, (list, tuple)):
            return _reason(part, error)
        half = next((c for c in part if "\ud800" <= c <= "\udfff"), None) if isinstance(part, str) else None
        if half is not None:
            return f"{half!r} in it is half a character. Remedy: decode its bytes with errors='replace'"
    return type_and_line(error)
