"""Models saved in a folder, with their tokenizers and processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lrp_fx.errors import InputError
from lrp_fx.extras import require

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")
#: argument of convert -> (class of transformers that loads it, patterns of its files)
_TOOLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tokenizer": ("AutoTokenizer", _TOKENIZER_FILES),
    "image_processor": ("AutoImageProcessor", ("preprocessor_config.json",)),
    "feature_extractor": ("AutoFeatureExtractor", ("preprocessor_config.json",)),
    "processor": ("AutoProcessor", ("processor_config.json",)),
}


def load_folder(folder: str | Path, dtype: torch.dtype | None = None) -> tuple[torch.nn.Module, dict[str, Any]]:
    """(model in evaluation mode, argument of ``convert`` -> tokenizer or processor) of a saved Hugging Face model.

    Needs no network.

    Args:
        folder: folder with a ``config.json``, weights, and a tokenizer or processor.
        dtype: precision of the model; None for the saved one.

    Raises:
        InputError: for a folder without a model or without a tokenizer or processor, and if one cannot be read.
        MissingExtraError: if transformers is not installed.
    """
    folder = Path(folder).resolve()
    if not (folder / "config.json").is_file():
        raise InputError(f"no model in {folder}: give the folder of a saved Hugging Face model (with a config.json)")
    transformers: Any = require("transformers", "transformers")
    tools = _tools(transformers, folder)
    if not tools:  # (transformers would return a tokenizer without a vocabulary)
        raise InputError(
            f"there is no tokenizer or processor in {folder}: save it there with tokenizer.save_pretrained(folder)"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        cls = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
        model = cls.from_pretrained(folder).eval()
    except Exception as error:  # errors of several libraries
        raise InputError(f"the model in {folder} cannot be loaded: {error}") from error
    return (model if dtype is None else model.to(dtype)), tools


def _tools(transformers: Any, folder: Path) -> dict[str, Any]:
    """The tokenizer and processors in a folder.

    Raises:
        InputError: if there are files of some, but none can be read.
    """
    tools, reasons = {}, []
    for name, (loader, patterns) in _TOOLS.items():
        if any(path for pattern in patterns for path in folder.glob(pattern)):
            try:
                tools[name] = getattr(transformers, loader).from_pretrained(folder)
            except Exception as reason:  # the file may be of another kind of processor
                reasons.append(f"{name}: {reason}")
    if not tools and reasons:
        raise InputError(f"tokenizer and processors in {folder} cannot be loaded: {'; '.join(reasons)}")
    return tools
