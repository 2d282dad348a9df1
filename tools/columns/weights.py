"""Folders of trained models, and choice of samples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

SEED = 1  #: of the samples of every column
SAMPLES = 300  #: the first 200 to measure on, 100 to tune rule sets on


def folder(name: str) -> Path:
    """Folder of a trained model: in $LRP_FX_TRAINED or `.models/trained`.

    Raises:
        FileNotFoundError: if it has not been trained.
    """
    path = Path(os.environ.get("LRP_FX_TRAINED", Path(__file__).parents[2] / ".models" / "trained")) / name
    if not path.is_dir():
        raise FileNotFoundError(f"no trained model in {path}: run tools/train {name}")
    return path


def load(name: str, kind: type[transformers.PreTrainedModel]) -> nn.Module:
    """A trained model in the format of transformers, in evaluation mode and float32."""
    model: nn.Module = kind.from_pretrained(folder(name), dtype=torch.float32)
    return model.eval()


def state(name: str) -> dict[str, Tensor]:
    """Weights of a trained model of plain torch."""
    return load_file(folder(name) / "model.safetensors")


@torch.no_grad()
def logits(model: nn.Module, inputs: Mapping[str, Tensor], size: int = 50) -> Tensor:
    """(N, ...) logits of all samples, ``size`` at a time."""
    count = next(iter(inputs.values())).shape[0]
    batches = []
    for start in range(0, count, size):
        output = model(**{k: v[start : start + size] for k, v in inputs.items()})
        batches.append(output if isinstance(output, Tensor) else output.logits)
    return torch.cat(batches)
