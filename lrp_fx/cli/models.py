"""Models by name: folders of saved models, and bundled demos."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrp_fx.cli.demo import demos, load_demo
from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.encode import open_image, open_sound
from lrp_fx.errors import InputError, LrpError
from lrp_fx.extras import require
from lrp_fx.hub.folder import load_folder
from lrp_fx.module import ExplainableModule

_EXAMPLE = "a b c"  #: default text for a capture


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer or processors and, for a classifier, the label of every class.

    Attributes:
        name: its name.
        model: the model, in evaluation mode.
        tools: tokenizer and processors, by argument of ``convert``.
        labels: names of classes.
        title: heading of pages about it.
        text: the text to explain.
    """

    name: str
    model: torch.nn.Module
    tools: dict[str, Any]
    labels: list[str] | None
    title: str
    text: str

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer.

        Raises:
            LrpError: without one.
        """
        if self.tools.get("tokenizer") is None:
            raise LrpError(f"{self.name} has no tokenizer: save it there with tokenizer.save_pretrained(folder)")
        return self.tools["tokenizer"]

    def converted(self, rules: RuleSource) -> ExplainableModule:
        """The model, converted with its tokenizer and processors."""
        return convert(self.model, rules=rules, labels=self.labels, **self.tools)


@dataclass(frozen=True)
class RawInputs:
    """Inputs from the command line.

    Attributes:
        text: a text.
        image: an image file.
        sound: a wav file.
        lines: several texts.
    """

    text: str | None = None
    image: Path | None = None
    sound: Path | None = None
    lines: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str | None, image: Path | None, sound: Path | None, file: Path | None) -> RawInputs:
        """Inputs with the lines of a file, or of standard input.

        Raises:
            InputError: for both a text and a file of texts, and for a file without texts.
        """
        if file is None:
            return cls(text, image, sound)
        if text is not None:
            raise InputError("give a text, or --file, not both")
        read = sys.stdin.read() if str(file) == "-" else file.read_text()
        lines = tuple(line for line in read.splitlines() if line.strip())
        if not lines:
            raise InputError(f"there is no text in {str(file)!r}")
        return cls(None, image, sound, lines)

    def raw(self, loaded: Loaded, example: bool = False) -> tuple[Any, ...]:
        """Raw inputs of the model; for ``example`` with a default text.

        Raises:
            InputError: without any input.
        """
        raw: list[Any] = []
        if self.image is not None:
            raw.append(open_image(self.image))
        if self.sound is not None:
            raw.append(open_sound(self.sound))
        text = self.text or ("" if raw else loaded.text or (_EXAMPLE if example else ""))
        if self.lines:
            raw.append(list(self.lines) if len(self.lines) > 1 else self.lines[0])
        elif text.strip():
            raw.append(text)
        if not raw:
            raise InputError("there is nothing to explain: give a text, --file, --image or --sound")
        return tuple(raw)


def precision_of(name: str) -> torch.dtype:
    """A floating type by its name.

    Raises:
        LrpError: for another name.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise LrpError(f"unknown precision {name!r}: use float32, float64, bfloat16 or float16")
    return dtype


def load(name: str, text: str | None, precision: str) -> Loaded:
    """A demo by name, or a model saved in a local folder.

    Raises:
        LrpError: for an unknown name.
    """
    dtype = precision_of(precision)
    _quiet()
    if name in demos():
        demo = demos()[name]
        model, tokenizer, labels = load_demo(name)
        return Loaded(name, model.to(dtype), {"tokenizer": tokenizer}, labels, demo.title, text or demo.text)
    if not (Path(name) / "config.json").is_file():
        raise LrpError(
            f"no model '{name}': give the folder of a saved Hugging Face model (with a config.json), "
            f"or one of the demos: {', '.join(f'{d.name} ({d.install})' for d in demos().values())}"
        )
    return _load_folder(Path(name).resolve(), text or "", dtype)


def _load_folder(folder: Path, text: str, dtype: torch.dtype) -> Loaded:
    model, tools = load_folder(folder, dtype)
    classes: dict[int, str] = getattr(getattr(model, "config", None), "id2label", None) or {}
    labels = [str(classes[i]) for i in sorted(classes)] if "Classification" in type(model).__name__ else None
    return Loaded(folder.name, model, tools, labels, f"What did {folder.name} base its answer on?", text)


def _quiet() -> None:
    """Disable the progress bar of weight loading, which would break up the output."""
    with contextlib.suppress(LrpError, AttributeError):
        transformers: Any = require("transformers", "transformers")
        transformers.utils.logging.disable_progress_bar()
