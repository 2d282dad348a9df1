"""The zoo's further columns: inputs of other sizes, and that a column fails where it should."""

import re
import sys
from html import unescape
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "zoology"))

from case import Built
from further import FurtherRow, _at, check_further
from gradient import against_autograd
from page import search_page
from sizes import longer, one_sample

import lrp_fx

WORDS = torch.tensor([[5, 99, 99, 7, 8, 9, 10, 11, 12, 2], [6, 99, 99, 17, 18, 19, 20, 21, 22, 2]])


def test_one_sample_halves_rows_that_belong_to_samples():
    given = {"ids": WORDS, "patches": torch.randn(8, 3), "grid": torch.ones(2, 3), "use_cache": False}
    sized = one_sample((), given)
    assert {k: v.shape[0] for k, v in sized.kwargs.items() if k != "use_cache"} == {"ids": 1, "patches": 4, "grid": 1}
    assert one_sample((), {"x": torch.randn(3, 2)}) is None


def test_longer_texts_keep_placeholders_and_the_last_word():
    given = {
        "input_ids": WORDS,
        "attention_mask": torch.ones_like(WORDS),
        "position_ids": torch.arange(10).expand(2, -1),
    }
    sized = next(iter(longer((), given, 70)))
    ids = sized.kwargs["input_ids"]
    assert (
        ids.shape == (2, 70)
        and (ids == 99).sum() == 4
        and (ids[:, -1] == 2).all()
        and (ids[:, :9] == WORDS[:, :9]).all()
    )
    assert (
        sized.kwargs["attention_mask"].shape == (2, 70) and (sized.kwargs["position_ids"][1] == torch.arange(70)).all()
    )


def test_larger_images_and_longer_sounds():
    image, sound = {"pixel_values": torch.randn(2, 3, 8, 8)}, {"input_values": torch.randn(2, 100)}
    assert [tuple(s.kwargs["pixel_values"].shape) for s in longer((), image, 70)] == [(2, 3, 12, 12), (2, 3, 16, 16)]
    assert [tuple(s.kwargs["pixel_values"].shape) for s in longer((), image, 130)] == [(2, 3, 8, 12)]
    assert [tuple(s.kwargs["input_values"].shape) for s in longer((), sound, 70)] == [(2, 150), (2, 200)]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer, self.head = nn.Embedding(100, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        return self.head(torch.tanh(self.layer(self.table(input_ids) * attention_mask[..., None])).mean(1))


def test_a_row_that_passes():
    torch.manual_seed(0)
    built = Built(Classifier().eval(), {"input_ids": WORDS, "attention_mask": torch.ones_like(WORDS)})
    row = check_further(lambda: built)
    assert row.verdict == "pass", row.reason
    assert row.sizes == ["1 sample", "70 tokens", "130 tokens"] and row.untried == {}
    assert row.gradient < 1e-9 and row.longest < 1e-9 and row.half_correlation > 0.99


@pytest.mark.parametrize("fault", ["outputs", "relevance"])
def test_a_column_that_fails(fault):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    other = lrp_fx.convert(model, rules="cp_lrp" if fault == "outputs" else "gradient")
    if fault == "outputs":
        other.forward = lambda *args: 2 * model(*args)
    row = FurtherRow("fail")
    told = _at(row, "one_sample", other, [one_sample((torch.randn(2, 4, dtype=torch.float64),), {})], Built(model))
    assert fault in told and row.one_sample > 1e-3


class Shifted(nn.Module):
    """A decoder that is given the same ids, shifted to the right behind a start token; another table looks them up."""

    def __init__(self):
        super().__init__()
        self.table, self.decoder = nn.Embedding(100, 8), nn.Embedding(100, 8)
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids):
        ids = torch.full_like(input_ids, 2)
        ids[:, 1:] = input_ids[:, :-1].clone()
        weights = torch.arange(1.0, 11.0).to(self.head.weight)[:, None]
        hidden = torch.tanh(self.layer(self.table(input_ids) * weights)) * torch.tanh(self.decoder(ids) * weights)
        return self.head(hidden.mean(1))


class Columns(nn.Module):
    """Rows of a picture's patches: the first column of each is a category."""

    def __init__(self):
        super().__init__()
        self.table, self.layer, self.head = nn.Embedding(10, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, patches):
        return self.head(torch.tanh(self.table(patches[..., 0].long()) + self.layer(patches[..., 1:])).mean(1))


@pytest.mark.parametrize("kind", ["shifted", "columns"])
def test_ids_that_the_model_moves_are_compared_with_the_gradient_of_their_rows(kind):
    torch.manual_seed(0)
    inputs = {"input_ids": torch.arange(3, 23).view(2, 10)}
    if kind == "columns":
        inputs = {"patches": torch.cat([torch.arange(10.0).view(2, 5, 1), torch.randn(2, 5, 4)], -1)}
    model = (Shifted() if kind == "shifted" else Columns()).double().eval()
    inputs = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    xmodel, target = lrp_fx.convert(model, **inputs), lambda y: y[:, 1]
    difference, told = against_autograd(xmodel, model, (), inputs, target)
    assert told == "" and difference < 1e-12
    wrong = lrp_fx.convert(model, **inputs, rules="cp_lrp")
    explain = wrong.explain
    wrong.explain = lambda *args, rules, **kwargs: explain(*args, **kwargs)  # the reference has to tell
    assert "autograd" in against_autograd(wrong, model, (), inputs, target)[1]


def test_the_page_to_search_has_every_class_and_needs_no_network(tmp_path):
    rows = {
        "timm/resnet/resnet10t (ResNet)": {"verdict": "pass", "reason": "", "forward": 2e-7, "conservation": 0.0, "role_defect": 1e-12},
        "pypi/x-transformers/odd <b> (Odd)": {"verdict": "fail", "reason": "a node loses & relevance", "forward": None, "conservation": None, "role_defect": None},
        "timm/vit/old (Old)": {"verdict": "not buildable", "reason": "no size", "forward": None, "conservation": None, "role_defect": None},
    }  # fmt: skip
    page = search_page({"rows": rows})
    cells = [
        [unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
        for row in re.findall(r"<tr><td>.*?</tr>", page)
    ]
    assert len(cells) == 3 and ["resnet10t (ResNet)", "resnet", "timm", "pass", "2e-07", "0", "1e-12", ""] in cells
    assert ["odd <b> (Odd)", "x-transformers", "pypi", "fail", "", "", "", "a node loses & relevance"] in cells
    assert "timm: 1 of 1 pass" in page and "pypi: 0 of 1 pass" in page
    assert "default-src 'none'; script-src 'unsafe-inline'" in page and not re.search(r"(src|href)=|https?://", page)
