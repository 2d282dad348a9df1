"""What every part of a random model is: a small module over values whose form is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn


@dataclass(frozen=True)
class Form:
    """What a value is: "sequence" (B, S, width), "patches" (B, of an image, width), "row" (B, width) or "image"
    (B, width, H, W)."""

    kind: str
    width: int


Forms = tuple[Form, ...]


class Part(nn.Module):
    """One step of a random model.

    Attributes:
        takes: kinds of the values it reads, one entry per value, alternatives with spaces between; patches are taken
            where sequences are, unless the part also reads inputs of the text's length.
        choices: spellings or variants of it.
        alike: whether all values that it reads have one form.
    """

    takes: ClassVar[tuple[str, ...]] = ("sequence",)
    choices: ClassVar[tuple[str, ...]] = ("",)
    alike: ClassVar[bool] = True

    def __init__(self, forms: Forms, choice: str) -> None:
        super().__init__()
        self.choice = choice
        self.width = forms[0].width if forms else 8

    @classmethod
    def gives(cls, forms: Forms, choice: str) -> Form | None:
        """The form of the result; None where it does not take these."""
        return forms[0]

    @classmethod
    def needs(cls, choice: str) -> tuple[str, ...]:
        """Inputs of the model that it reads besides values: ids, mask, index, positions."""
        return ()
