"""The viewer's data: schema 1.

``View`` is one result, as JSON; arrays are :class:`Packed`. Relevance always has one row per target, (T, ...): one
target for an attribution, one per new token for a generated text.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

SCHEMA = 1


class Packed(TypedDict):
    """An array: its shape, and its numbers as little-endian float32 in base64."""

    shape: list[int]
    float32: str


class Target(TypedDict):
    """An explained value; None if it is not finite."""

    name: str
    value: float | None


class Words(TypedDict):
    """Tokens merged to words: ``of`` has the index of its word for every token, -1 for padding, which is not shown."""

    of: list[int]
    texts: list[str]
    special: list[int]
    breaks: list[int]


class TokensInput(TypedDict):
    """Text.

    ``special`` has the positions of tokens outside of the text, ``breaks`` those of tokens that begin a line. In a
    generated text ``start`` is the position of the first new token: target t is the token at ``start + t``.
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
    """Relevance of an image, or of another input with two dimensions; ``picture`` is an image as a data: URI.

    With ``upwards`` the first row of the input, the lowest frequency of a spectrogram, is the last one here.
    """

    kind: Literal["map"]
    name: str
    relevance: Packed  # (T, H, W)
    picture: str | None
    upwards: bool
    caption: str


class SoundInput(TypedDict):
    """Sound.

    ``player`` is a wav file, ``spectrogram`` a grey image with low frequencies at the bottom, both as data: URIs.
    ``low`` and ``high`` are the minimum and maximum of the waveform in N intervals, ``relevance`` its sums over them.
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
    """A node of a graph: ``x`` is the index of its layer, ``y`` its height there, 0 in the middle."""

    name: str
    x: int
    y: float


class GraphInput(TypedDict):
    """A graph of relevance flow.

    ``edges`` are (from, to, relevance), with indices of nodes, ``ways`` the points (x, y) of each, from end to end.
    """

    kind: Literal["graph"]
    name: str
    nodes: list[Node]
    edges: list[tuple[int, int, float]]
    ways: list[list[tuple[float, float]]]
    relevance: Packed  # (1, N)


Input = TokensInput | MapInput | SoundInput | ValuesInput | GraphInput


class Matrix(TypedDict):
    """Relevance inside the model: a row per layer or head, a column per position, or one for all positions.

    With ``summed``, ``relevance`` is summed over targets (T = 1).
    """

    name: str
    rows: list[str]
    columns: list[str]
    relevance: Packed  # (T, R, C)
    summed: bool


class Sample(TypedDict):
    """One explained sample; ``ledger`` is (category, amount), or None with the reason in ``no_ledger``; ``caption``
    replaces the ledger's caption."""

    name: str
    targets: list[Target]
    inputs: list[Input]
    matrices: list[Matrix]
    notes: list[str]
    ledger: list[tuple[str, float]] | None
    no_ledger: str
    caption: NotRequired[str]


class View(TypedDict):
    """One result; ``facts`` are (name, value), shown above it."""

    name: str
    facts: list[tuple[str, str]]
    samples: list[Sample]


class Page(TypedDict):
    """The data of a page. ``colours``: theme -> the diverging scale from negative to positive, as RGB triples."""

    schema: int
    title: str
    colours: dict[str, list[tuple[int, int, int]]]
    views: list[View]
