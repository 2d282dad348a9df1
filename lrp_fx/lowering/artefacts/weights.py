"""Weights by reference: a saved relevance graph names its parameters and reads them from a checkpoint.

The checkpoint is the model's own (safetensors files), so the graph of a large model does not copy its weights.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from lrp_fx.capture.offload import put
from lrp_fx.errors import InputError, WeightError
from lrp_fx.extras import require

Weights = str | Path | Sequence[str | Path] | Mapping[str, str | Path | Tensor]

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def references(graph_module: fx.GraphModule, model: nn.Module) -> dict[str, list[str]]:
    """Attribute of a graph -> the names of the same tensor in the model's ``state_dict``.

    Tied weights have several names; a checkpoint may use any of them. Tensors outside the state dict are left out.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            names.setdefault(id(tensor), []).append(name)
    weights = [
        *graph_module.named_parameters(remove_duplicate=False),
        *graph_module.named_buffers(remove_duplicate=False),
    ]
    return {path: names[id(tensor)] for path, tensor in weights if id(tensor) in names}


def placeholder(like: Tensor) -> Tensor:
    """A tensor of the same shape that stores one entry: NaN (or 0), so that an unfilled graph cannot look right."""
    entry = torch.full((), float("nan") if like.is_floating_point() else 0, dtype=like.dtype, device=like.device)
    expanded = entry.expand(like.shape)
    return nn.Parameter(expanded, requires_grad=False) if isinstance(like, nn.Parameter) else expanded


def fill(module: nn.Module, references: Mapping[str, Sequence[str]], weights: Weights) -> None:
    """Replace the placeholders of a module by the tensors they refer to.

    Args:
        module: the module, changed in place.
        references: attribute -> names, from :func:`references`.
        weights: a safetensors file, several, a folder with one or with an index, or name -> file or tensor.

    Raises:
        WeightError: naming every tensor that is missing, or of another shape or precision.
        InputError: for a file that cannot be read.
    """
    places = _places(weights)
    missing = [" or ".join(names) for names in references.values() if not any(n in places for n in names)]
    if missing:
        raise WeightError(
            f"the weights have no {'; no '.join(missing)}. They have {_some(sorted(places))}.\nRemedy: give the "
            "checkpoint of this model, with the names of its state_dict(), or {name: tensor} with those names."
        )
    chosen = {path: next(n for n in names if n in places) for path, names in references.items()}
    tensors = _read({n: places[n] for n in chosen.values()})
    unlike = []
    for path, name in chosen.items():
        old, new = operator.attrgetter(path)(module), tensors[name]
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            unlike.append(f"{name} is {_form(new)}, not {_form(old)}")
            continue
        put(module, path, new.detach().to(old.device))
    if unlike:
        raise WeightError(
            "these weights do not fit the graph: " + "; ".join(unlike) + ".\nRemedy: give the checkpoint of this model "
            "in the precision in which it was converted, or convert and save the model in the other precision."
        )


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "") if names else "none"


def _places(weights: Weights) -> dict[str, Path | Tensor]:
    """Name -> its file, or the tensor itself."""
    if isinstance(weights, Mapping):
        return {name: value if isinstance(value, Tensor) else Path(value) for name, value in weights.items()}
    files = [Path(weights)] if isinstance(weights, (str, Path)) else [Path(w) for w in weights]
    return {name: file for path in files for file in _files(path) for name in _names(file)}


def _files(path: Path) -> list[Path]:
    """The safetensors files of a path: a file, an index, or a folder with one of them."""
    index = path / _INDEX if path.is_dir() else path
    if index.suffix == ".json":
        if index.is_file():
            return [index.parent / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if (path / _SINGLE).is_file():
            return [path / _SINGLE]
        raise InputError(f"{str(path)!r} has neither {_INDEX} nor {_SINGLE}: name the files")
    return [path]


def _opened(file: Path) -> Any:
    safetensors: Any = require("safetensors", "weights")
    try:
        return safetensors.safe_open(str(file), framework="pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{str(file)!r} cannot be read as safetensors: {error}") from error


def _names(file: Path) -> list[str]:
    with _opened(file) as checkpoint:
        return list(checkpoint.keys())


def _read(places: Mapping[str, Path | Tensor]) -> dict[str, Tensor]:
    """The tensors by name, every file opened once."""
    tensors = {name: place for name, place in places.items() if isinstance(place, Tensor)}
    for file in {place for place in places.values() if isinstance(place, Path)}:
        with _opened(file) as checkpoint:
            inside = [name for name, place in places.items() if place == file]
            if unknown := set(inside) - set(checkpoint.keys()):
                raise WeightError(f"{str(file)!r} has no {', '.join(sorted(unknown))}")
            # copied, since kernels round differently at the unaligned addresses of a mapped file
            tensors |= {name: checkpoint.get_tensor(name).clone() for name in inside}
    return tensors
