"""Facts: reach, origin, statistic; and that neither package nor rules name an architecture."""

import re
from pathlib import Path

import pytest
import torch
import transformers as tf
from models import GQA
from torch import nn
from torch.nn import functional as F

import lrp_fx
from lrp_fx.analysis import analyse
from lrp_fx.capture import capture
from lrp_fx.operators.table import OpTable

ROOT = Path(lrp_fx.__file__).parent.parent


class Two(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.a, self.b = function, nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.function(self.a(x), self.b(x))


ROLES = {
    "normalization": [
        lambda a, b: a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda a, b: a / (a.norm(dim=-1, keepdim=True) + 1e-6),
        lambda a, b: (a - a.mean(-1, keepdim=True)) / a.std(-1, keepdim=True),
        lambda a, b: a / a.abs().amax(-1, keepdim=True),
        lambda a, b: a / torch.sqrt((a**2).mean(-1, keepdim=True) - a.mean(-1, keepdim=True) ** 2 + 1.0),
        lambda a, b: (n := a.norm(dim=1, keepdim=True)) / n.mean(-1, keepdim=True),
    ],
    "gate": [
        lambda a, b: F.silu(a) * b,
        lambda a, b: a * torch.sigmoid(b),
        lambda a, b: a * (0.5 * b * (1 + torch.tanh(b))),
        lambda a, b: 2 * F.relu(a).unsqueeze(1).squeeze(1) * b,
        lambda a, b: a * (1 / (1 + torch.exp(-b))),
    ],
    "bilinear": [
        lambda a, b: a * b,
        lambda a, b: a / b,
        lambda a, b: a @ b.transpose(1, 2),
        lambda a, b: F.silu(a) * F.silu(b),
        lambda a, b: (a @ b.transpose(1, 2)).softmax(-1) @ b,
        lambda a, b: F.silu(a) * torch.rsqrt(a.square().mean(-1, keepdim=True) + 1.0) + b,
    ],
    "nonlinearity": [lambda a, b: a * torch.sigmoid(a) + b, lambda a, b: a**3 + b, lambda a, b: 1 / (2 + a.exp()) + b],
    "softmax": [lambda a, b: a.softmax(-1) + b, lambda a, b: a.exp() / a.exp().sum(-1, keepdim=True) + b],
}


@pytest.mark.parametrize(("role", "index"), [(r, i) for r, fs in ROLES.items() for i in range(len(fs))])
def test_roles_follow_from_dataflow(role, index):
    function = ROLES[role][index]
    if role == "softmax" and index == 1:
        function = lambda a, b: (e := a.exp()) / e.sum(-1, keepdim=True) + b
    xmodel = lrp_fx.convert(Two(function), torch.randn(2, 4, 6))
    found = {row.role for row in xmodel.report().rows} - {"linear", "movement", "statistic"}
    assert role in found
    assert not found & ({"gate", "recurrent-gate", "bilinear", "normalization"} - {role})


def test_masks_positions_and_rotary_tables_do_not_carry():
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**GQA)).eval()
    captured = capture(model, (), {"input_ids": torch.randint(0, 99, (2, 7))})
    facts = analyse(captured.graph_module.graph, OpTable.load())
    names = {n.name for n in facts.operands}
    assert not any(n.name in names for n in captured.graph_module.graph.nodes if "cos" in n.name or "arange" in n.name)
    assert [s.name for s in facts.sources] == ["model.embed_tokens.weight"]


def test_positions_counted_from_the_tokens_are_not_the_tokens():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(20, 4), nn.Embedding(20, 4)

        def forward(self, tokens):
            places = torch.cumsum(tokens.ne(1).long(), 1)
            return (self.words(tokens) + self.places(places)).sum(1)

    model = Model().double()
    attribution = lrp_fx.convert(model).explain(torch.randint(2, 20, (2, 5)), target=0)
    assert attribution.ledger["source"] != 0
    total = attribution.relevance["tokens"].sum().item() + attribution.ledger["source"]
    assert abs(total - attribution.target.sum().item()) < 1e-12


def test_positions_counted_from_a_mask_are_not_the_mask():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(20, 4), nn.Embedding(20, 4)

        def forward(self, tokens, shown):
            return (self.words(tokens) + self.places(shown.cumsum(1))).sum(1)

    tokens, shown = torch.randint(0, 20, (2, 5)), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    attribution = lrp_fx.convert(Model().double()).explain(tokens, shown, target=0)
    assert set(attribution.relevance) == {"tokens"} and attribution.ledger["source"] != 0
    assert attribution.ledger.balance < 1e-12


def test_no_architecture_is_named():
    names = "llama mixtral mistral bert gpt gpt2 qwen qwen2 qwen3 gemma gemma2 gemma3 t5 deit vit mamba rwkv whisper phi phi3 resnet albert"
    pattern = re.compile(rf"\b({'|'.join(names.split())})\b", re.IGNORECASE)
    files = [*ROOT.glob("lrp_fx/**/*.py"), *ROOT.glob("rules/*.toml")]
    assert len(files) > 20
    found = [
        f"{f.name}:{i}: {line}"
        for f in files
        for i, line in enumerate(f.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found
