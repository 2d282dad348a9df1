"""The one sweep: cotangents and relevance at tap points, and that no other module has a sweep of its own."""

import ast

import pytest
import torch
from test_rooms import FILES, tree
from torch.fx.experimental.proxy_tensor import make_fx

from lrp_fx.errors import TargetError
from lrp_fx.explain.sweep import TapPoints, cotangents, sweep, sweep_each
from lrp_fx.rules.functions import relevance_of

#: what differentiates an operator, a formula or a linear map by itself, or the model for another method
DERIVATIVES = {
    "analysis.advice", "concepts.dictionary", "explain.rerun", "explain.tokens", "lowering.targets.batched_attention",
    "rules.slopes", "capture.passes.unpack_quantized", "capture.recurrence",
    "cli.bench",  # the model's own gradient, which explanations are timed beside
}  # fmt: skip


def leaves():
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([1.0, 0.0, -2.0], [3.0, 4.0, 5.0])]


def points(feeds_zeros=False):
    a, b = leaves()
    h = a * torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    return TapPoints([a, b], {"h": h, "constant": torch.ones(3)}, feeds_zeros), h


def test_relevance_is_value_times_cotangent_and_zero_where_nothing_comes_back():
    taps, h = points()
    found = sweep(taps, h)
    assert found.sources[0].tolist() == [2, 0, -10] and found.latents["h"].tolist() == [2, 0, -10]
    assert found.sources[1].tolist() == [0, 0, 0] and found.latents["constant"].tolist() == [0, 0, 0]
    assert not any(r.requires_grad for r in (*found.sources, *found.latents.values()))


def test_a_source_of_zero_has_relevance_where_a_rule_feeds_zeros():
    taps, h = points(feeds_zeros=True)
    found = sweep(taps, h, seed=torch.tensor([0.0, 1e300, 0.0], dtype=torch.float64))
    assert float(found.sources[0][1]) > 0 and found.latents["h"].tolist() == [0, 0, 0]


def test_infinite_values_that_nothing_comes_back_to_have_no_relevance():
    value = torch.tensor([-torch.inf, 2.0, torch.nan])
    assert relevance_of(value, torch.tensor([0.0, 3.0, 0.0])).tolist() == [0, 6, 0]
    assert relevance_of(value, torch.tensor([[0.0, 3.0, 0.0], [0.0, -1.0, 0.0]])).tolist() == [[0, 6, 0], [0, -2, 0]]


def test_a_mask_cuts_cotangents_at_its_latent_during_one_sweep_only():
    taps, h = points()
    cut = sweep(taps, h, masks={"h": torch.tensor([1.0, 1.0, 0.0])}, again=True)
    assert cut.sources[0].tolist() == [2, 0, 0]
    assert sweep(taps, h).sources[0].tolist() == [2, 0, -10]


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_many_seeds_are_as_one_after_the_other(chunk):
    taps, h = points()
    explained = h.cumsum(0).sin()
    seeds = torch.eye(3, dtype=torch.float64)
    found = sweep_each(taps, explained, seeds, chunk)
    for i, seed in enumerate(seeds):
        one = sweep(taps, explained, seed=seed, again=True)
        assert torch.equal(found.sources[0][i], one.sources[0]) and torch.equal(found.latents["h"][i], one.latents["h"])
    assert found.sources[1].shape == found.latents["constant"].shape == (3, 3)
    assert not found.sources[1].any() and not found.latents["constant"].any()


def test_the_number_of_seeds_stays_free_in_a_trace():
    def explained(x, seeds):
        swept = sweep_each(TapPoints([x.requires_grad_()], {"constant": torch.ones(3)}), x.sin(), seeds)
        return swept.sources[0], swept.latents["constant"]

    traced = make_fx(explained, tracing_mode="symbolic")(torch.ones(5), torch.ones(7, 5))
    x, seeds = torch.arange(4.0), torch.eye(4)[:3]
    of_x, of_constant = traced(x, seeds)
    torch.testing.assert_close(of_x, x * x.cos() * seeds)
    assert of_constant.shape == (3, 3)


def test_a_target_that_depends_on_no_tap_point_is_named():
    taps, _ = points()
    with pytest.raises(TargetError, match="does not depend"):
        sweep(taps, torch.ones(2))
    with pytest.raises(TargetError, match="does not depend"):
        sweep_each(taps, torch.ones(2), torch.eye(2))
    assert cotangents(torch.ones(2), taps.all) == [None] * 4


def called(name):
    """Names of the functions that a module calls."""
    return {ast.unparse(node.func) for node in ast.walk(tree(name)) if isinstance(node, ast.Call)}


def test_no_other_module_sweeps():
    differentiating = {name for name in FILES if "torch.autograd.grad" in called(name)}
    assert differentiating - DERIVATIVES == {"explain.sweep"}
    assert {name for name in FILES if "nonzero" in called(name)} <= {
        "rules.functions", "explain.account", "explain.ledger"
    }  # fmt: skip
