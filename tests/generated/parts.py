"""All parts by name."""

from __future__ import annotations

import inspect

from generated import layers, mixing, moving
from generated.part import Part

PARTS: dict[str, type[Part]] = {
    name: kind
    for module in (layers, mixing, moving)
    for name, kind in vars(module).items()
    if inspect.isclass(kind) and issubclass(kind, Part) and kind is not Part
}
