"""Models saved in a folder, with their tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lrp_fx.errors import InputError
from lrp_fx.extras import require

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")


def load_folder(folder: str | Path, dtype: torch.dtype | None = None) -> tuple[torch.nn.Module, Any]:
    """(model in evaluation mode, tokenizer) of a folder that ``save_pretrained`` wrote; nothing is looked up.

    Args:
        folder: with a ``config.json``, weights and the tokenizer.
        dtype: precision of the model; None for its own.

    Raises:
        InputError: for a folder without a model or a tokenizer, or one that cannot be read.
        MissingExtraError: when transformers is not installed.
    """
    folder = Path(folder).resolve()
    if not (folder / "config.json").is_file():
        raise InputError(f"no model in {folder}: give the folder of a saved Hugging Face model (with a config.json)")
    transformers: Any = require("transformers", "transformers")
    if not any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):  # else an empty one is made up
        raise InputError(f"there is no tokenizer in {folder}: save it there with tokenizer.save_pretrained(folder)")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        cls = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
        model = cls.from_pretrained(folder, local_files_only=True).eval()
    except Exception as error:  # whatever is wrong with the folder, of whichever library's type
        raise InputError(f"the model in {folder} cannot be loaded: {error}") from error
    return (model if dtype is None else model.to(dtype)), tokenizer
