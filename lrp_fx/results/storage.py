"""Documents in files: ``.safetensors`` with the document in its header, or ``.json.gz``. No pickles, no code."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import InputError, type_and_line
from lrp_fx.extras import require
from lrp_fx.files import replacing
from lrp_fx.results.document import Document

_KEY = "lrp_fx"  #: key of the document in the header of a safetensors file
_LIMIT = 1 << 30  #: largest size of unpacked JSON, in bytes
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    )
}  # fmt: skip


def write(document: Document, path: str | Path) -> Path:
    """Write a document in the format of the file's suffix, and create its folder if necessary.

    Raises:
        InputError: for another suffix, and for tensors of other types (complex ones).
        MissingExtraError: for ``.safetensors`` without the package.
        OSError: where the file cannot be written; an older file stays.
    """
    writer, _ = _format(path)
    wrong = {n: t.dtype for n, t in document.tensors.items() if t.dtype not in _DTYPES.values()}
    if wrong:
        raise InputError(f"tensors of these types cannot be saved: {', '.join(f'{n} ({d})' for n, d in wrong.items())}")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in document.tensors.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        writer(Document(document.about, tensors), beside)
    return Path(path)


def read(path: str | Path) -> Document:
    """Read a file of :func:`write`.

    Raises:
        InputError: for a file that is missing, damaged, or of another kind.
        MissingExtraError: for ``.safetensors`` without the package.
    """
    _, reader = _format(path)
    if not Path(path).is_file():
        raise InputError(f"{str(path)!r} is no saved result: there is no such file")
    return reader(Path(path))


def refused(path: str | Path, reason: Exception) -> InputError:
    """The error for a file that cannot be read as a result."""
    return InputError(f"{str(path)!r} is no saved result: {type_and_line(reason)}")


def _write_safetensors(document: Document, path: Path) -> None:
    module: Any = require("safetensors.torch", "results")
    path.write_bytes(module.save(document.tensors, metadata={_KEY: json.dumps(document.about)}))


def _read_safetensors(path: Path) -> Document:
    safetensors: Any = require("safetensors", "results")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            if _KEY not in metadata:
                raise ValueError("its header has no entry of lrp_fx")
            return Document(json.loads(metadata[_KEY]), {name: file.get_tensor(name).clone() for name in names})
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as reason:
        raise refused(path, reason) from reason


def _write_json(document: Document, path: Path) -> None:
    tensors = {name: _listed(tensor) for name, tensor in document.tensors.items()}
    data = json.dumps({**document.about, "tensors": tensors}).encode()
    path.write_bytes(gzip.compress(data, mtime=0))


def _read_json(path: Path) -> Document:
    try:
        with gzip.open(path) as file:
            data = file.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise ValueError(f"it unpacks to more than {_LIMIT >> 20} MB")
        about = json.loads(data)
        if not isinstance(about, dict) or not isinstance(about.get("tensors"), dict):
            raise ValueError("it has no tensors")
        tensors = {str(name): _tensor(listed) for name, listed in about.pop("tensors").items()}
        return Document(about, tensors)
    except (OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, zlib.error) as reason:
        raise refused(path, reason) from reason


def _listed(tensor: Tensor) -> dict[str, Any]:
    """A tensor as lists; NaN and infinities, which JSON lacks, as text."""
    values = (tensor.double() if tensor.is_floating_point() else tensor).flatten().tolist()
    values = [v if math.isfinite(v) else str(v) for v in values]
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "values": values}


def _tensor(listed: Any) -> Tensor:
    dtype, shape, values = _DTYPES[listed["dtype"]], listed["shape"], listed["values"]
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) != len(values):
        raise ValueError(f"a tensor of shape {shape} with {len(values)} values")
    number = float if dtype.is_floating_point else int
    return torch.tensor([number(v) for v in values], dtype=torch.float64 if number is float else torch.int64).to(
        dtype
    ).reshape(shape)  # fmt: skip


#: suffix -> (writer, reader)
_FORMATS: dict[str, tuple[Callable[[Document, Path], None], Callable[[Path], Document]]] = {
    ".safetensors": (_write_safetensors, _read_safetensors),
    ".json.gz": (_write_json, _read_json),
}


def _format(path: str | Path) -> tuple[Callable[[Document, Path], None], Callable[[Path], Document]]:
    for suffix, functions in _FORMATS.items():
        if Path(path).name.endswith(suffix):
            return functions
    raise InputError(f"{str(path)!r}: the name of a result's file ends in {' or '.join(_FORMATS)}")
