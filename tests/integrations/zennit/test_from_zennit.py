"""zennit 0.5.1: composites read as rule sets explain as zennit does."""

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.errors import RuleSetError


def convolutional():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 5),
    ).double()  # fmt: skip
    return model.eval(), torch.randn(2, 3, 14, 14, dtype=torch.float64).clamp(-2.5, 2.5)


def by_zennit(zennit, model, x, composite, gradients=False):
    chosen = torch.eye(5, dtype=x.dtype)[torch.tensor([1, 3])]
    with zennit.attribution.Gradient(model=model, composite=composite) as attributor:
        _, relevance = attributor(x.clone(), (lambda out: chosen) if gradients else (lambda out: out * chosen))
    return x * relevance if gradients else relevance


def composites(zennit):
    rules, types, made = zennit.rules, zennit.types, zennit.composites
    base = made.layer_map_base()
    return {
        "box": made.EpsilonGammaBox(low=-3.0, high=2.5, gamma=0.4, epsilon=1e-3),
        "box of tensors": made.EpsilonGammaBox(low=torch.full((1, 3, 1, 1), -3.0), high=torch.tensor(3.0)),
        "plus": made.EpsilonPlus(epsilon=0.1, stabilizer=1e-4),
        "plus, flat": made.EpsilonPlusFlat(),
        "alpha 2, beta 1": made.EpsilonAlpha2Beta1(),
        "guided": made.GuidedBackprop(),
        "deconvnet": made.DeconvNet(),
        "excitation": made.ExcitationBackprop(),
        "own map": made.LayerMapComposite(
            [*base, (nn.Conv2d, rules.AlphaBeta(alpha=1.5, beta=0.5)), (nn.Linear, rules.Gamma(gamma=0.1))]
        ),
        "own first": made.SpecialFirstLayerMapComposite(
            [*base, (types.Linear, rules.Epsilon(0.01))], [(types.Convolution, rules.WSquare())]
        ),
        "names first": made.NameLayerMapComposite(
            [(["2", "9"], rules.Gamma(gamma=1.0))], [*base, (types.Linear, rules.Epsilon())]
        ),
    }


NAMES = ["box", "box of tensors", "plus", "plus, flat", "alpha 2, beta 1", "guided", "deconvnet", "excitation",
         "own map", "own first", "names first"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_composite_that_is_read_explains_as_zennit_does(name, zennit):
    composite = composites(zennit)[name]
    model, x = convolutional()
    expected = by_zennit(zennit, model, x, composite, gradients=name in ("guided", "deconvnet"))
    rules = lrp_fx.RuleSet.from_zennit(composite)
    found = lrp_fx.convert(model, x, rules=rules).explain(x, target=torch.tensor([1, 3])).relevance["input"]
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_a_rule_set_that_was_read_can_be_saved(zennit, tmp_path):
    rules = lrp_fx.RuleSet.from_zennit(composites(zennit)["names first"])
    assert lrp_fx.RuleSet.load(rules.save(tmp_path / "read.toml")) == rules
    assert rules.name == "NameLayerMapComposite" and set(rules.overrides) == {"2", "9"}
    other = lrp_fx.RuleSet.from_zennit(composites(zennit)["plus"], base="attnlrp")
    assert str(other.rules["softmax"]) == "taylor"


def test_what_cannot_be_read_is_an_error_that_names_it(zennit):
    rules, made = zennit.rules, zennit.composites
    read = lrp_fx.RuleSet.from_zennit

    class Own(rules.Epsilon):
        pass

    class OwnCanonizer(zennit.canonizers.CompositeCanonizer):
        pass

    def layers(types, hook):
        return made.LayerMapComposite([(types, hook)])

    low = torch.tensor([-1.0, -2.0, -3.0])[:, None, None]
    for composite, said in (
        (made.BetaSmooth(), "ReLUBetaSmooth has no counterpart"),
        (layers(nn.Linear, Own()), "the hook Own has no counterpart"),
        (layers(nn.LayerNorm, rules.Pass()), "type LayerNorm have no role"),
        (layers(nn.Conv2d, rules.ZBox(low=low, high=3.0)), "low differs from entry to entry"),
        (layers(nn.Linear, rules.Epsilon(epsilon=lambda z: z + 1)), "a stabiliser other than a number"),
        (made.EpsilonPlus(zero_params=["bias"]), "zero_params"),
        (layers(nn.Linear, rules.Pass()), "dense has no rule 'identity'"),
        (zennit.core.Composite(lambda ctx, name, module: None), "a function of its own"),
        (made.EpsilonPlus(canonizers=[OwnCanonizer([])]), "OwnCanonizer is a canonizer of your own"),
        (made.MixedComposite([made.EpsilonPlus(), made.NameMapComposite([(["2"], rules.Flat())])]), "put the Name"),
    ):
        with pytest.raises(RuleSetError, match=said):
            read(composite)
