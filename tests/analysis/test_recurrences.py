"""Recurrences: gates are told apart, relevance survives 256 steps, and every step conserves."""

import math

import pytest
import torch
from models import few, zero_additive_parameters
from torch import nn
from transformers import (
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

import lrp_fx
from lrp_fx.rules.ruleset import RuleSet


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed, self.core, self.head = nn.Embedding(20, 8), kind(8, 12, batch_first=True), nn.Linear(12, 20)

    def forward(self, input_ids):
        return self.head(self.core(self.embed(input_ids))[0])


SMALL = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "use_cache": False, "pad_token_id": 0}
MODELS = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "mamba": lambda: MambaForCausalLM(MambaConfig(**SMALL, state_size=4)),
    "mamba2": lambda: Mamba2ForCausalLM(
        Mamba2Config(**SMALL, state_size=4, num_heads=4, head_dim=8, n_groups=1, chunk_size=64)
    ),
    "rwkv": lambda: RwkvForCausalLM(RwkvConfig(**SMALL | {"num_hidden_layers": 2}, attention_hidden_size=16)),
    "rg-lru": lambda: RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            **SMALL, lru_width=16, num_attention_heads=2, intermediate_size=24, block_types=["recurrent"]
        )
    ),
    "gated delta rule": lambda: Qwen3NextForCausalLM(
        Qwen3NextConfig(
            **SMALL,
            intermediate_size=24,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            num_experts=0,
            layer_types=["linear_attention"],
            linear_num_key_heads=1,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            mlp_only_layers=[0],
        )
    ),
}


def converted(name, length):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    ids = torch.randint(1, 20, (1, length))
    return model, lrp_fx.convert(model, input_ids=ids, rules="lstm_lrp", capture="trace"), ids


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_conservation_over_many_steps(name):
    model, xmodel, ids = converted(name, 64 if name == "rwkv" else 256)  # whose steps have most operators
    for rules in ("lstm_lrp", "attnlrp", "mamba_lrp"):
        assert xmodel.explain(input_ids=ids, rules=rules).ledger.balance < 1e-9
    zero_additive_parameters(model)
    attribution = xmodel.explain(input_ids=ids)
    assert abs(attribution.relevance["input_ids"].sum() - attribution.target) < 1e-9 * attribution.target.abs()


@pytest.mark.parametrize("name", few(MODELS, "gru", "rwkv"))
def test_no_gate_of_a_recurrence_takes_relevance(name):
    """Under signal-takes-all rules nothing flows into a sigmoid, an exponential or a softplus."""
    _, xmodel, _ = converted(name, 6)
    plan = xmodel.current.under(xmodel.ruleset).plan
    roles = {d.role for d in plan.decisions.values()}
    assert "recurrent-gate" in roles
    for node, decision in plan.decisions.items():
        if decision.role == "recurrent-gate":
            live = [n for slot, n in decision.live.items() if decision.factors.get(slot, 1) != 0]
            assert not set(live) & plan.facts.positive, node


def test_a_gated_linear_unit_is_no_recurrence():
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = x + torch.sigmoid(layer["a"](x)) * layer["b"](x)
            return x

    x = torch.randn(2, 6, dtype=torch.float64)
    xmodel = lrp_fx.convert(Unit().double(), x)
    roles = [d.role for d in xmodel.current.under(xmodel.ruleset).plan.decisions.values()]
    assert "recurrent-gate" not in roles and roles.count("gate") == 3


def test_a_leaky_sum_forgets_as_the_model_does():
    """h' = sigmoid(2) h + x over 64 steps: relevance of step t is x_t times what is left of it, not 2^-T of it."""

    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(1, 1)

        def forward(self, x):
            h = torch.zeros_like(x[:, 0])
            for t in range(x.shape[1]):
                h = torch.sigmoid(self.gate(x[:, t])) * h + x[:, t]
            return h

    model = Leaky().double()
    with torch.no_grad():
        model.gate.weight.zero_()
        model.gate.bias.fill_(2.0)
    x = torch.randn(1, 64, 1, dtype=torch.float64)
    relevance = lrp_fx.convert(model, x).explain(x).relevance["x"][0, :, 0]
    kept = 1 / (1 + math.exp(-2.0))
    expected = x[0, :, 0] * kept ** torch.arange(63, -1, -1, dtype=torch.float64)
    assert torch.allclose(relevance, expected, rtol=1e-12, atol=1e-15)


class StateSpace(nn.Module):
    """h' = exp(-d a) h + d B x, y = C h with d, B and C computed from x; ``held`` makes them constants to autograd."""

    def __init__(self, held):
        super().__init__()
        self.select, self.rate, self.a = nn.Linear(6, 8, bias=False), nn.Linear(6, 6), nn.Parameter(torch.rand(6, 4))
        self.held = held

    def forward(self, x):
        d, (b, c) = nn.functional.softplus(self.rate(x)), self.select(x).chunk(2, -1)
        if self.held:
            d, b, c = d.detach(), b.detach(), c.detach()
        decay = torch.exp(-self.a * d[..., None])
        taken = (d[..., None] * b[:, :, None]) * x[..., None]
        h, read = torch.zeros(x.shape[0], 6, 4, dtype=x.dtype), []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + taken[:, t]
            read.append((h * c[:, t, None]).sum(-1))
        return torch.stack(read, 1).sum((1, 2))


def test_mamba_lrp_holds_selective_parameters_constant():
    torch.manual_seed(0)
    model, x = StateSpace(False).double().eval(), torch.randn(2, 7, 6, dtype=torch.float64)
    reference = StateSpace(True).double()
    reference.load_state_dict(model.state_dict())
    leaf = x.clone().requires_grad_()
    reference(leaf).sum().backward()
    found = lrp_fx.convert(model, x).explain(x, rules="mamba_lrp", target=lambda y: y)
    torch.testing.assert_close(found.relevance["x"], x * leaf.grad, rtol=1e-10, atol=1e-12)
    shared = lrp_fx.convert(model, x).explain(x, rules="attnlrp", target=lambda y: y)
    assert not torch.allclose(shared.relevance["x"], found.relevance["x"], rtol=1e-2)


@pytest.mark.parametrize("name", few(["mamba", "mamba2"], "mamba"))
def test_signal_takes_all_of_what_is_read_from_a_state(name):
    _, xmodel, _ = converted(name, 6)
    plan = xmodel.current.under(RuleSet.load("mamba_lrp")).plan
    chosen = [d for d in plan.decisions.values() if d.role == "selective"]
    assert chosen
    assert all(sum(d.factors.get(slot, 1) != 0 for slot in d.live) == 1 for d in chosen)
