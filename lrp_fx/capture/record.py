"""Records of captures: their sizes, duration and reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from lrp_fx.capture.captured import Captured


@dataclass(frozen=True)
class CaptureRecord:
    """One capture of a model.

    Attributes:
        reason: why no earlier capture served the call.
        seconds: wall time of capture and analysis.
        captured: the capture.
    """

    reason: str
    seconds: float
    captured: Captured = field(repr=False)

    @property
    def sizes(self) -> dict[str, tuple[int | str, ...]]:
        """Input -> its sizes: a number if specialized, a name if dynamic."""
        shapes = self.captured.shapes
        return dict(zip(shapes.inputs, shapes.dims, strict=False))

    @property
    def conditions(self) -> list[str]:
        """The guards on dynamic sizes, each with its line of code."""
        return self.captured.shapes.relied

    @property
    def nodes(self) -> int:
        """Number of nodes of the captured graph."""
        return len(self.captured.graph_module.graph.nodes)

    def __str__(self) -> str:
        capture = f"{self.nodes} nodes by {self.captured.route} in {self.seconds:.2f} s"
        return f"{self.captured.shapes}: {capture}, because: {self.reason}"


class Captures(tuple[CaptureRecord, ...]):
    """All captures of a model, in order; as text, one line each."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(f"{number}. {record}" for number, record in enumerate(self, 1)) or "nothing is captured yet"

    __repr__ = __str__
