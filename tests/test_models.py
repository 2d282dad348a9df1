"""Real model classes: forward equality, ledger, conservation, and that the checks bite."""

import pytest
import torch
from models import MODELS, build, few, zero_additive_parameters
from torch.utils import _pytree as pytree

import lrp_fx
from lrp_fx.capture.conventions import traceable
from lrp_fx.rewrite import OWNER

# nn.MultiheadAttention hands a non-contiguous tensor to linear; which matmul kernel folds it depends on whether the
# weight requires a gradient, and in the rewritten graph no weight does.
OTHER_KERNEL = {"encoder", "mha"}


@pytest.fixture(scope="module", params=few(MODELS, "llama2", "bert", "resnet"))
def converted(request):
    torch.manual_seed(0)
    model, inputs = build(request.param)
    return request.param, model, inputs, lrp_fx.convert(model, **inputs)


def test_outputs_are_the_models_own(converted):
    name, model, inputs, xmodel = converted
    with torch.no_grad():
        with traceable(model, experts=None):  # caches off, as in the capture
            expected = model(**inputs)
        found = xmodel(**inputs)
    assert type(found) is type(expected)
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b) if name not in OTHER_KERNEL else torch.allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rules", ["attnlrp", "cp_lrp", "gradient"])
def test_ledger_balances(converted, rules):
    _, _, inputs, xmodel = converted
    attribution = xmodel.explain(**inputs, rules=rules)
    ledger = attribution.ledger
    assert ledger.balance < 1e-9
    assert abs(ledger.target - attribution.target.sum().item()) < 1e-12
    shown = sum(r.sum().item() for r in attribution.relevance.values())
    assert abs(shown - ledger["input"]) < 1e-9 * max(1, abs(shown))


def test_every_role_but_softmax_conserves_at_its_node(converted, capsys):
    _, _, inputs, xmodel = converted
    result = xmodel.verify(**inputs, show=True)
    assert result.passed, result.failures
    for check in result.roles:
        assert check.defect < 1e-9
        if check.role not in ("softmax", "attention", "linear", "movement", "normalization"):
            assert abs(check.absorbed) < 1e-9  # these may only add constants: biases, masks, class tokens
    assert "verify: passed" in capsys.readouterr().out


def test_report_knows_every_node(converted):
    _, _, _, xmodel = converted
    report = xmodel.report()
    assert report.rows and report.nodes >= sum(row.count for row in report.rows) > 0
    assert "normalization" in str(report) or "linear" in str(report)


@pytest.mark.parametrize("name", few(MODELS, "llama2", "vit", "resnet"))
def test_inputs_alone_sum_to_the_target_without_additive_parameters(name):
    model, inputs = build(name)
    zero_additive_parameters(model)
    attribution = lrp_fx.convert(model, **inputs, rules="cp_lrp").explain(**inputs)
    total = sum(r.sum() for r in attribution.relevance.values())
    assert abs(total - attribution.target.sum()) < 1e-9 * attribution.target.abs().sum()


def test_encoder_and_decoder_are_both_sources():
    model, inputs = build("flan-t5")
    attribution = lrp_fx.convert(model, **inputs).explain(**inputs)
    assert attribution.relevance["input_ids"].shape == (2, 7)
    assert attribution.relevance["decoder_input_ids"].shape == (2, 5)
    assert all(r.abs().sum() > 0 for r in attribution.relevance.values())


def test_a_missing_rule_is_found_and_named():
    """Break RMSNorm by letting relevance through its statistic: the ledger no longer balances, verify names the node."""
    model, inputs = build("llama2")
    xmodel = lrp_fx.convert(model, **inputs)
    sweeper = xmodel.current.sweeper(xmodel.ruleset, ())
    graph_module = sweeper.rewritten.graph_module
    broken = None
    for node in list(graph_module.graph.nodes):
        owner = node.meta.get(OWNER)
        if "detach" in str(node.target) and owner is not None and "rsqrt" in str(node.args[0].target):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
            broken = owner
            break
    graph_module.recompile()
    result = xmodel.verify(**inputs)
    assert not result.passed
    assert result.balance > 1e-4
    assert f"'{broken.name}'" in result.failures[0] and "normalization" in result.failures[0]
    assert "input_layernorm" in result.failures[0] and "modeling_llama.py" in result.failures[0]
