"""Models from other packages on PyPI (x-transformers, vit-pytorch) and two GPTs of our own, each in a single file."""

from __future__ import annotations

import sys

import pypi_vit
import pypi_xt
import torch
from case import Built, Case
from prepare import prepare
from try_build import try_all


def _nano_gpt() -> Built:
    from nano_gpt import Config, NanoGPT

    torch.manual_seed(0)
    return prepare(NanoGPT(Config()), torch.randint(97, (2, 24)))


def _nano_gpt_without_bias() -> Built:
    from nano_gpt import Config, NanoGPT

    torch.manual_seed(0)
    return prepare(NanoGPT(Config(bias=False)), torch.randint(97, (2, 24)))


def _mini_gpt() -> Built:
    from mini_gpt import MiniGPT

    torch.manual_seed(0)
    return prepare(MiniGPT(), torch.randint(97, (2, 24)))


def cases() -> list[Case]:
    """The own models first, then the packages'."""
    small = [
        Case("pypi", "own", "nano_gpt", _nano_gpt),
        Case("pypi", "own", "nano_gpt without bias", _nano_gpt_without_bias),
        Case("pypi", "own", "mini_gpt", _mini_gpt),
    ]
    return small + pypi_xt.cases() + pypi_vit.cases()


if __name__ == "__main__":
    sys.exit(bool(try_all(cases(), sys.argv[1] if len(sys.argv) > 1 else None)))
