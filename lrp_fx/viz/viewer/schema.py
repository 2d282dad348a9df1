"""What the viewer shows, as plain data: schema 1.

``View`` is one result. Everything in it is what JSON can say; arrays are :class:`Packed`. Relevance has one row per
target throughout, (T, ...): one target for an attribution, one per new token for a generated text.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

SCHEMA = 1


class Packed(TypedDict):
    """An array: its shape, and its numbers as little-endian float32 in base64."""

    shape: list[int]
    float32: str


class Target(TypedDict):
    """An explained value; None where it is not finite."""

    name: str
    value: float | None


class Words(TypedDict):
    """Tokens joined to words: ``of`` has the number of its word for every token, -1 for padding, which is not shown."""

    of: list[int]
    texts: list[str]
    special: list[int]
    breaks: list[int]


class TokensInput(TypedDict):
    """Text.

    ``special`` and ``breaks`` are positions: of tokens that are none of the text, and of those that begin a line. Of a
    generated text ``start`` is the position of its first new token: target t is the token at ``start + t``.
    """

    kind: Literal["tokens"]
    name: str
    tokens: list[str]
    special: list[int]
    breaks: list[int]
    words: Words
    relevance: Packed  # (T, S)
    start: NotRequired[int]


class MapInput(TypedDict):
    """Relevance of an image, or of anything else in two dimensions; ``picture`` is an image as a data: URI."""

    kind: Literal["map"]
    name: str
    relevance: Packed  # (T, H, W)
    picture: str | None
    caption: str


class SoundInput(TypedDict):
    """Sound.

    ``player`` is a wav file, ``spectrogram`` a grey image of low (bottom) to high frequencies, both as data: URIs.
    ``low`` and ``high`` are the ends of the waveform in as many stretches as ``relevance`` has, summed in each.
    """

    kind: Literal["sound"]
    name: str
    rate: float
    seconds: float
    player: str | None
    spectrogram: str | None
    low: Packed  # (N,)
    high: Packed  # (N,)
    relevance: Packed  # (T, N)


class ValuesInput(TypedDict):
    """Numbers with names, such as the columns of a table."""

    kind: Literal["values"]
    name: str
    names: list[str]
    values: list[float | None] | None
    relevance: Packed  # (T, N)


class Node(TypedDict):
    """A node of a graph: ``x`` is the number of its layer, ``y`` its height in it, 0 in the middle."""

    name: str
    x: int
    y: float


class GraphInput(TypedDict):
    """A graph of relevance flow; ``edges`` are (from, to, relevance) by numbers of nodes."""

    kind: Literal["graph"]
    name: str
    nodes: list[Node]
    edges: list[tuple[int, int, float]]
    relevance: Packed  # (1, N)


Input = TokensInput | MapInput | SoundInput | ValuesInput | GraphInput


class Matrix(TypedDict):
    """Relevance inside the model: a row per layer or head; columns are positions, or one for all.

    ``relevance`` has one target where ``summed`` says that it is of all targets together.
    """

    name: str
    rows: list[str]
    columns: list[str]
    relevance: Packed  # (T, R, C)
    summed: bool


class Sample(TypedDict):
    """One explained sample; ``ledger`` is (category, amount), None with the reason in ``no_ledger``; ``caption`` says
    what its entries are where they are not each computed on their own."""

    name: str
    targets: list[Target]
    inputs: list[Input]
    matrices: list[Matrix]
    notes: list[str]
    ledger: list[tuple[str, float]] | None
    no_ledger: str
    caption: NotRequired[str]


class View(TypedDict):
    """One result; ``facts`` are (name, value) to say above it."""

    name: str
    facts: list[tuple[str, str]]
    samples: list[Sample]


class Page(TypedDict):
    """All that a page holds. ``colours``: theme -> the diverging scale, from against to for, as (red, green, blue)."""

    schema: int
    title: str
    colours: dict[str, list[tuple[int, int, int]]]
    views: list[View]
