"""English prose that ships in packages: Python's language reference in `pydoc_data.topics`, and docstrings."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

START, UNKNOWN = 0, 1
WORDS = 2000
PACKAGES = ["sklearn", "networkx", "numpy"]


def _docstrings(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests", "testing", "idlelib", "lib2to3"} & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def documents(shortest: int = 200) -> list[str]:
    """Topics and docstrings of at least ``shortest`` characters, each once, in a fixed order."""
    roots = [Path(sysconfig.get_paths()["stdlib"])]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        roots.append(Path(spec.submodule_search_locations[0]))
    texts = dict.fromkeys(topics.topics[name] for name in sorted(topics.topics))
    texts.update(dict.fromkeys(text for root in roots for text in _docstrings(root)))
    return [text for text in texts if len(text) >= shortest]


def held_out(text: str) -> bool:
    """Whether a document is among the tenth that no model learns from, by its hash."""
    return hashlib.sha256(text.encode()).digest()[0] % 10 == 0


def learn_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level byte-pair encoding of 2,000 tokens, the first two of them start and unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=["<s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def windows(tokenizer: Tokenizer, texts: list[str], length: int) -> Tensor:
    """(N, length) tokens: a start token, then a piece of a document; a shorter piece at a document's end is dropped."""
    rows = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        rows += [[START, *ids[i : i + length - 1]] for i in range(0, len(ids) - length + 2, length - 1)]
    return torch.tensor(rows)


def blanked(windows: Tensor, generator: torch.Generator) -> Tensor:
    """Some tokens of each window replaced by the unknown one, 25 per cent on average and of most windows few.

    So the model is trained on inputs with removed tokens, as in perturbation experiments.
    """
    share = torch.rand(len(windows), 1, generator=generator) ** 3
    gone = torch.rand(windows.shape, generator=generator) < share
    gone[:, 0] = False
    return windows.masked_fill(gone, UNKNOWN)


def corpus(folder: Path, length: int, test_length: int) -> tuple[Tensor, Tensor]:
    """(windows to learn from, windows held out); they and the tokenizer are kept in ``folder``."""
    file = folder / "windows.safetensors"
    if not file.exists():
        texts = documents()
        learnt, tested = [t for t in texts if not held_out(t)], [t for t in texts if held_out(t)]
        tokenizer = learn_tokenizer(learnt)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        splits = {"train": windows(tokenizer, learnt, length), "test": windows(tokenizer, tested, test_length)}
        save_file({name: part.to(torch.int16) for name, part in splits.items()}, file)
    splits = load_file(file)
    return splits["train"].long(), splits["test"].long()
