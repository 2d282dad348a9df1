"""Groups of tokens: words, sentences, spans."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from lrp_fx.errors import InputError
from lrp_fx.results.context import Tokens

#: positions of one group, in order
Group = list[int]
#: "words", "sentences", spans of positions (start, end), or a function from tokens to a group name for every position
By = str | Sequence[tuple[int, int]] | Callable[[Tokens], Iterable[Hashable]]

_ENDS = re.compile(r"[.!?…。！？][\"'”’»)\]]*$")  #: end of the last word of a sentence
_CONTINUES = "##"  #: WordPiece's prefix of a piece that continues a word


def find_groups(tokens: Tokens, by: By) -> list[Group]:
    """Groups of positions, in the order of their first positions, without padding.

    Raises:
        InputError: for an unknown name, spans that overlap or are out of range, and a callable that does not name a
            group for every position.
    """
    if isinstance(by, str):
        if by not in _NAMED:
            raise InputError(f"by={by!r}: choose one of {', '.join(_NAMED)}, spans of positions, or a callable")
        return _NAMED[by](tokens)
    names = list(by(tokens)) if callable(by) else _in_spans(len(tokens), by)
    if len(names) != len(tokens):
        raise InputError(f"{len(names)} group names for {len(tokens)} tokens: give one for each (None: alone)")
    groups: dict[Any, Group] = {}
    for position, name in enumerate(names):
        if not tokens.padding[position]:
            groups.setdefault(("alone", position) if name is None else ("group", name), []).append(position)
    return list(groups.values())


def merged(tokens: Tokens, groups: Sequence[Group]) -> Tokens:
    """Every group as one token."""
    if tokens.offsets is None or tokens.text is None:
        texts, spans = [_spelled(tokens, group) for group in groups], None
    else:
        starts_ends = [[tokens.offsets[i] for i in group] for group in groups]
        spans = tuple((min(s for s, _ in pairs), max(e for _, e in pairs)) for pairs in starts_ends)
        inside = [tokens.text[slice(*span)].strip() for span in spans]
        texts = [
            _spelled(tokens, group) if tokens.special[group[0]] or not whole or not _adjacent(group) else whole
            for group, whole in zip(groups, inside, strict=True)
        ]
    special = tuple(all(tokens.special[i] for i in group) for group in groups)
    words = None if tokens.words is None else tuple(range(len(groups)))  # merged again, they stay what they are
    return Tokens(tuple(texts), special, (False,) * len(groups), spans, words, tokens.text)


def _adjacent(group: Group) -> bool:
    return group == list(range(group[0], group[-1] + 1))


def word_of(pieces: Sequence[str]) -> str:
    """The pieces of one word, joined."""
    joined = "".join(t.removeprefix(_CONTINUES) if i else t for i, t in enumerate(pieces))
    return joined.strip() or "".join(pieces)


def _spelled(tokens: Tokens, group: Group) -> str:
    """The tokens of a group as text: pieces of one word joined, words with a space between them."""
    words: list[list[str]] = []
    previous: int | None = None
    for position in group:
        if previous is not None and position == previous + 1 and _belong_together(tokens, previous, position):
            words[-1].append(tokens.texts[position])
        else:
            words.append([tokens.texts[position]])
        previous = position
    return " ".join(map(word_of, words))


def _words(tokens: Tokens) -> list[Group]:
    """Words: a piece that begins with a space, or follows one, starts a word; tokenizers may number whole sentences."""
    groups: list[Group] = []
    previous: int | None = None
    for position in range(len(tokens)):
        if tokens.padding[position]:
            continue
        if previous is not None and _belong_together(tokens, previous, position):
            groups[-1].append(position)
        else:
            groups.append([position])
        previous = position
    return groups


def _belong_together(tokens: Tokens, previous: int, position: int) -> bool:
    """Whether a piece continues the word of the preceding piece; special tokens are words of their own."""
    if tokens.special[previous] or tokens.special[position]:
        return False
    if tokens.text is None or tokens.offsets is None:
        text = tokens.texts[position]
        marked = any(t.startswith(_CONTINUES) for t in tokens.texts)
        spaced = any(t[:1].isspace() for t in tokens.texts)
        return text.startswith(_CONTINUES) if marked else spaced and not text[:1].isspace()
    if tokens.words is not None and tokens.words[previous] != tokens.words[position]:
        return False
    end, start = tokens.offsets[previous][1], tokens.offsets[position][0]
    return not tokens.text[end : start + 1][:1].isspace()


def _sentences(tokens: Tokens) -> list[Group]:
    """Sentences: words up to the end of a sentence or a line."""
    groups: list[Group] = []
    open_: bool = False
    words = _words(tokens)
    shown = merged(tokens, words)
    for number, word in enumerate(words):
        special = shown.special[number]
        if open_ and not special and not _line_between(tokens, groups[-1][-1], word[0]):
            groups[-1] += word
        else:
            groups.append(list(word))
        open_ = not special and not _ENDS.search(shown.texts[number])
    return groups


def _line_between(tokens: Tokens, previous: int, position: int) -> bool:
    if tokens.text is None or tokens.offsets is None:
        return "\n" in tokens.texts[position]
    return "\n" in tokens.text[tokens.offsets[previous][1] : tokens.offsets[position][0]]


def _in_spans(count: int, spans: Iterable[tuple[int, int]]) -> list[int | None]:
    names: list[int | None] = [None] * count
    for number, (start, end) in enumerate(spans):
        if not 0 <= start < end <= count:
            raise InputError(f"span ({start}, {end}) is not among {count} tokens: give 0 <= start < end <= {count}")
        if any(name is not None for name in names[start:end]):
            raise InputError(f"span ({start}, {end}) overlaps another one")
        names[start:end] = [number] * (end - start)
    return names


_NAMED: dict[str, Callable[[Tokens], list[Group]]] = {"words": _words, "sentences": _sentences}
