"""Models from the Hugging Face Hub, into its cache on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrp_fx.errors import InputError
from lrp_fx.extras import require

#: files of a model, a tokenizer and processors; no code, no pickles
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")


def download(name: str) -> Path:
    """The folder of a model in the cache, downloaded if necessary.

    Args:
        name: "organisation/name", or "organisation/name@revision".

    Raises:
        InputError: if the Hub does not have the model, or cannot be reached and the cache does not have it.
        MissingExtraError: if huggingface_hub is not installed.
    """
    hub: Any = require("huggingface_hub", "transformers")
    repository, _, revision = name.partition("@")
    try:
        return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        offline = hub.constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else str(error).splitlines()[0]
        first = "unset HF_HUB_OFFLINE" if offline else "check the name and the network"
        if isinstance(error, hub.errors.RepositoryNotFoundError):  # what the Hub says of private and gated ones, too
            first = "check the name; a private or a gated model needs `hf auth login`, or HF_TOKEN"
        raise InputError(
            f"no model '{name}': it is neither a folder on this machine nor in the cache of the Hub, and the Hub could "
            f"not give it ({reason}). Remedy: {first}, or give the folder of a saved model"
        ) from error
