"""Reading a ``.pt2`` file without running code of it: plain data and raw tensors, no pickles.

``torch.export.load`` is not used: it unpickles sample inputs and weights, evaluates formulas of sizes as Python source
and calls any function of PyTorch by name. The graph is read from plain data (:mod:`lrp_fx.cache.serialize`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

from lrp_fx.errors import InputError, UnsafeFileError

ABOUT = "lrp_fx.json"
_PROGRAM = re.compile(
    r"archive_format|archive_version|byteorder|\.data/[\w.]+|version|models/model\.json|extra/[\w.]+"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_SAMPLES = "data/sample_inputs/model.pt"
_COMPILED = "data/aotinductor/"


class Archive:
    """The records of a file.

    Raises:
        InputError: for a file that is no archive of PyTorch, or has no relevance graph.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise InputError(f"{str(path)!r} is no saved relevance graph: there is no such file")
        self._storages: dict[str, Any] = {}
        try:
            self._reader = torch._C.PyTorchFileReader(str(path))
            self.names = list(self._reader.get_all_records())
            self.about: dict[str, Any] = json.loads(self._reader.get_record(f"extra/{ABOUT}"))
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{str(path)!r} is no saved relevance graph: {str(error).splitlines()[0]}") from error
        if not isinstance(self.about, dict) or "graph" not in self.about:
            raise InputError(f"{str(path)!r} is no saved relevance graph of this version: save it again")

    @property
    def compiled(self) -> bool:
        """Whether the file contains compiled code."""
        return any(name.startswith(_COMPILED) for name in self.names)

    def check(self) -> None:
        """Check that every record is one of a saved graph.

        Raises:
            UnsafeFileError: for any other record, which could be a pickle.
        """
        size = self._reader.get_record_size
        pickles = [n for n in self.names if not _PROGRAM.fullmatch(n) and not (n == _SAMPLES and not size(n))]
        if pickles:
            raise UnsafeFileError(
                f"it holds {', '.join(sorted(pickles)[:3])}, which may be a pickle, and reading a pickle runs its code"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name; tensors that shared memory share it again.

        Raises:
            UnsafeFileError: for a pickled tensor.
        """
        tensors: dict[str, Tensor] = {}
        for kind in ("weights", "constants"):
            folder = f"data/{kind}/"
            for name, form in json.loads(self._reader.get_record(f"{folder}model_{kind}_config.json"))[
                "config"
            ].items():
                if form["use_pickle"] or form["tensor_meta"] is None:
                    raise UnsafeFileError(f"its tensor {name!r} is a pickle")
                tensors[name] = self._tensor(folder + form["path_name"], form["tensor_meta"], form["is_param"])
        return tensors

    def _tensor(self, record: str, form: Any, parameter: bool) -> Tensor:
        if not _PROGRAM.fullmatch(record):
            raise UnsafeFileError(f"{record[:80]!r} is no record of a tensor")
        dtype = _SERIALIZE_TO_TORCH_DTYPE[form["dtype"]]
        sizes, strides = ([n["as_int"] for n in form[key]] for key in ("sizes", "strides"))
        size = self._reader.get_record_size(record)
        if not size:
            tensor = torch.empty(sizes, dtype=dtype)
            if tensor.numel():
                raise InputError(f"the tensor in {record!r} has no contents")
        else:
            flat = torch.empty(0, dtype=dtype).set_(self._storage(record, size, dtype))
            tensor = flat.as_strided(sizes, strides, form["storage_offset"]["as_int"])
        device = form["device"]
        where = torch.device(device["type"], device["index"]) if device["index"] is not None else device["type"]
        tensor = tensor.to(where)
        return torch.nn.Parameter(tensor, requires_grad=False) if parameter else tensor

    def _storage(self, record: str, size: int, dtype: torch.dtype) -> Any:
        if record not in self._storages:
            raw = self._reader.get_storage_from_record(record, size // dtype.itemsize, dtype)
            self._storages[record] = raw.untyped_storage()
        return self._storages[record]
