"""What was captured, for which sizes, how long it took, and why."""

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
        """Input -> its sizes: a number if fixed, a name if free."""
        shapes = self.captured.shapes
        return dict(zip(shapes.inputs, shapes.dims, strict=False))

    @property
    def conditions(self) -> list[str]:
        """What the model asked about free sizes, and where: the capture serves sizes for which all of it holds."""
        return self.captured.shapes.relied

    @property
    def nodes(self) -> int:
        """Nodes of the captured graph."""
        return len(self.captured.graph_module.graph.nodes)

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} ({', '.join(map(str, dims))})" for name, dims in self.sizes.items())
        return (
            f"{sizes or 'no tensors'}: {self.nodes} nodes by {self.captured.route} in {self.seconds:.2f} s, because: "
            f"{self.reason}"
        )


class Captures(tuple[CaptureRecord, ...]):
    """All captures of a model, in order; one line each as text."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(f"{number}. {record}" for number, record in enumerate(self, 1)) or "nothing is captured yet"

    __repr__ = __str__
