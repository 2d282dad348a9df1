"""Chats: messages become one text by the tokenizer's chat template, with the spans of the messages in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrp_fx.errors import InputError

#: {"role": "user", "content": "..."}; content may be a list of parts, {"type": "image", "image": ...} among them
Message = Mapping[str, Any]
Chat = Sequence[Message]


@dataclass(frozen=True)
class Spelled:
    """A chat as text, by its template.

    Attributes:
        text: the whole text, including the template's marks.
        said: (start, end) of the messages' contents.
    """

    text: str
    said: tuple[tuple[int, int], ...]

    def says(self, start: int, end: int) -> bool:
        """Whether a span of the text overlaps with a message; otherwise it belongs to the template."""
        return any(start < e and end > s for s, e in self.said)


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in value)
    )


def are_chats(value: Any) -> bool:
    """Whether a value is a chat, or a list of chats."""
    return is_chat(value) or (isinstance(value, list) and bool(value) and all(map(is_chat, value)))


def chats_of(value: Any) -> list[Chat]:
    """One chat, or several, as a list."""
    return [value] if is_chat(value) else list(value)


def pictured(chats: Sequence[Chat]) -> bool:
    """Whether a chat has parts other than text."""
    return any(part.get("type") != "text" for chat in chats for part in _parts(chat))


def options_of(chat: Chat) -> dict[str, bool]:
    """Options for the end of a template: before an answer, or inside a last message of the assistant."""
    answered = chat[-1]["role"] == "assistant"
    return {"continue_final_message": answered, "add_generation_prompt": not answered}


def spelled(tokenizer: Any, chat: Chat) -> Spelled:
    """A chat of texts by the template of a tokenizer.

    Raises:
        InputError: for a tokenizer without a template, and for messages that the template refuses.
    """
    try:
        text = tokenizer.apply_chat_template([dict(m) for m in chat], tokenize=False, **options_of(chat))
    except Exception as reason:  # templates raise any type of error
        raise InputError(
            f"the tokenizer's chat template refuses these messages: {reason}. Remedy: set tokenizer.chat_template, or "
            "give a text"
        ) from reason
    said, after = [], 0
    for part in _parts(chat):
        content = str(part.get("text", ""))
        spelling = next((c for c in (content, content.strip()) if c and text.find(c, after) >= 0), None)
        if spelling is not None:
            start = text.find(spelling, after)
            after = start + len(spelling)
            said.append((start, after))
    return Spelled(text, tuple(said) or ((0, len(text)),))


def _parts(chat: Chat) -> Iterator[Mapping[str, Any]]:
    for message in chat:
        content = message["content"]
        yield from [{"type": "text", "text": content}] if isinstance(content, str) else content
