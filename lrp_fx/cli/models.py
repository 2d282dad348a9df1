"""Models by name: bundled demos, folders of saved models, GGUF files, ids on the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrp_fx.cli.demo import demos, load_demo, load_gguf
from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.encode import open_image, open_sound
from lrp_fx.errors import InputError, LrpError
from lrp_fx.extras import require
from lrp_fx.files import read_text
from lrp_fx.hub.download import download
from lrp_fx.hub.folder import load_folder
from lrp_fx.module import ExplainableModule

_EXAMPLE = "a b c"  #: default text for a capture
#: kind of file -> argument of ``convert`` with its encoder
_FILES = {"image": "image_processor", "sound": "feature_extractor"}
_READERS: dict[str, Callable[[str], Any]] = {"text": str, "image": open_image, "sound": open_sound}
#: name of a model's main input -> its kind
_MAIN_INPUTS = {"pixel_values": "image", "input_features": "sound", "input_values": "sound"}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")  #: organisation/name, or organisation/name@revision


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

    @property
    def reads(self) -> str:
        """Kind of a plain argument: "text", or "image" or "sound" (the path of a file) for a model of these."""
        kinds = [kind for kind, tool in _FILES.items() if tool in self.tools]
        main = _MAIN_INPUTS.get(getattr(self.model, "main_input_name", ""))
        if main in kinds:
            return main
        return kinds[0] if kinds and not {"tokenizer", "processor"} & self.tools.keys() else "text"

    def converted(self, rules: RuleSource) -> ExplainableModule:
        """The model, converted with its tokenizer and processors."""
        return convert(self.model, rules=rules, labels=self.labels, **self.tools)


@dataclass(frozen=True)
class RawInputs:
    """Inputs from the command line.

    Attributes:
        text: a text, or the path of a file for a model that reads no text.
        image: an image file.
        sound: a wav file.
        lines: several of them.
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
        if str(file) != "-" and (not file.exists() or file.is_dir()):  # a pipe will do
            raise InputError(f"there is no file {str(file)!r}: give one with a text per line, or - for standard input")
        read = sys.stdin.read() if str(file) == "-" else read_text(file)
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
        example = example and loaded.reads == "text"
        text = self.text
        if text is None:
            text = "" if raw else loaded.text or (_EXAMPLE if example else "")
        read = _READERS[loaded.reads]
        if self.lines:
            lines = [read(line) for line in self.lines]
            raw.append(lines if len(lines) > 1 else lines[0])
        elif text.strip():
            raw.append(read(text))
        if not raw:
            wanted = {"text": "a text", "image": "the path of an image", "sound": "the path of a wav file"}
            raise InputError(f"there is nothing to explain: give {wanted[loaded.reads]}, --file, --image or --sound")
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
    """A model: a demo by its name, a folder, a GGUF file, or the id of a model on the Hugging Face Hub.

    Raises:
        LrpError: for a name that is none of these, and for a model that cannot be read or reached.
    """
    dtype = precision_of(precision)
    path = Path(name)
    if name in demos():
        _local()
        demo = demos()[name]
        model, tools, labels = load_demo(name)
        return Loaded(name, model.to(dtype), tools, labels, demo.title, text or demo.text)
    if path.suffix == ".gguf" and path.is_file():
        _local()
        model, tokenizer = load_gguf(path.parent.resolve(), path.name)
        return Loaded(path.stem, model.to(dtype), {"tokenizer": tokenizer}, None, _title(path.stem), text or "")
    if (path / "config.json").is_file():
        _local()
        return _load_folder(path.resolve(), path.resolve().name, text or "", dtype)
    if _HUB_ID.fullmatch(name) and not path.exists():
        _quiet()
        return _load_folder(download(name), name, text or "", dtype)
    listed = ", ".join(f"{demo.name} ({demo.install})" for demo in demos().values())
    raise LrpError(
        f"no model '{name}': give the folder of a saved Hugging Face model (with a config.json), a GGUF file, the id "
        f"of a model on the Hub (organisation/name), or one of the demos: {listed}"
    )


def _title(name: str) -> str:
    return f"What did {name} base its answer on?"


def _load_folder(folder: Path, name: str, text: str, dtype: torch.dtype) -> Loaded:
    model, tools = load_folder(folder, dtype)
    classes: dict[int, str] = getattr(getattr(model, "config", None), "id2label", None) or {}
    labels = [str(classes[i]) for i in sorted(classes)] if "Classification" in type(model).__name__ else None
    return Loaded(name, model, tools, labels, _title(name), text)


def _local() -> None:
    """Keep transformers from asking the network about a model that is on this machine."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _quiet()


def _quiet() -> None:
    """Disable the progress bar of weight loading, which would break up the output."""
    with contextlib.suppress(LrpError, AttributeError):
        transformers: Any = require("transformers", "transformers")
        transformers.utils.logging.disable_progress_bar()
