"""A model that is changed at random between calls: the conversion made before answers as one made afresh."""

import copy
import os
from contextlib import contextmanager

import pytest
import torch
import torch.nn.utils.prune as prune
from generated.checks import agree, apart
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import lrp_fx

WIDTH, CLASSES = 6, 4


class Block(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.norm, self.linear, self.act = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU()
        self.scale, self.name = 1.0, name
        self.options = {"skip": True}

    def forward(self, x):
        y = self.act(self.linear(self.norm(x))) * self.scale
        return x + y if self.options["skip"] else y


class Changing(nn.Module):
    """Parameters, buffers kept and not kept in its state, a plain tensor, numbers, a list of blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block("first"), Block("second")])
        self.register_buffer("keep", torch.rand(WIDTH), persistent=False)
        self.plain = torch.rand(WIDTH)
        self.batch_norm, self.dropout = nn.BatchNorm1d(WIDTH), nn.Dropout(0.5)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        x = x * self.keep + self.plain
        return self.head(self.dropout(self.batch_norm(x.mean(1))))


def varied(tensor):
    return tensor + 0.3 * torch.randn_like(tensor)


@contextmanager
def without_kept_captures():
    """A fresh conversion must not be served what an earlier one left on disk."""
    folder = os.environ.pop("LRP_FX_CACHE", None)
    try:
        yield
    finally:
        if folder is not None:
            os.environ["LRP_FX_CACHE"] = folder


class Changes(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 99))
    def begin(self, seed):
        torch.manual_seed(seed)
        self.model = Changing().double().eval()
        self.model.plain = self.model.plain.double()
        self.xmodel = lrp_fx.convert(self.model)
        self.sizes, self.hooks = (2, 5), []
        self.follows()

    def any_parameter(self, place):
        modules = [m for m in self.model.modules() if isinstance(m, (nn.Linear, nn.LayerNorm, nn.BatchNorm1d))]
        found = [(m, n) for m in modules for n, p in m.named_parameters(recurse=False)]
        return found[place % len(found)]

    @rule(place=st.integers(0, 30))
    def a_parameter_is_replaced(self, place):
        module, name = self.any_parameter(place)
        setattr(module, name, nn.Parameter(varied(getattr(module, name).detach())))

    @rule(place=st.integers(0, 30))
    def a_parameters_data_is_replaced(self, place):
        module, name = self.any_parameter(place)
        getattr(module, name).data = varied(getattr(module, name).detach())

    @rule(place=st.integers(0, 30))
    def a_parameter_is_updated_in_place(self, place):
        module, name = self.any_parameter(place)
        with torch.no_grad():
            getattr(module, name).mul_(1.3).add_(0.1)

    @rule(assign=st.booleans())
    def a_state_is_loaded(self, assign):
        state = {
            k: varied(v) if v.is_floating_point() and "var" not in k else v for k, v in self.model.state_dict().items()
        }
        self.model.load_state_dict(state, assign=assign)

    @rule(inside=st.booleans())
    def a_buffer_changes(self, inside):
        if inside:
            self.model.keep[0] *= -1.5
            self.model.batch_norm.running_mean.add_(0.2)
        else:
            self.model.keep = varied(self.model.keep)
            self.model.batch_norm.running_mean = varied(self.model.batch_norm.running_mean)

    @rule(inside=st.booleans())
    def a_plain_tensor_changes(self, inside):
        if inside:
            self.model.plain[1] += 0.7
        else:
            self.model.plain = varied(self.model.plain)

    @rule(value=st.sampled_from([0.5, 1.0, 2.0]), which=st.integers(0, 5))
    def a_number_changes(self, value, which):
        block = self.model.blocks[which % len(self.model.blocks)]
        block.scale, block.norm.eps, self.model.batch_norm.eps = value, 1e-5 * value, 1e-3 * value

    @rule(which=st.integers(0, 5))
    def an_option_in_a_dictionary_changes(self, which):
        options = self.model.blocks[which % len(self.model.blocks)].options
        options["skip"] = not options["skip"]

    @rule(which=st.integers(0, 5), act=st.sampled_from([nn.Tanh, nn.ReLU, nn.SiLU, nn.GELU]))
    def an_activation_is_swapped(self, which, act):
        self.model.blocks[which % len(self.model.blocks)].act = act()

    @rule(which=st.integers(0, 5))
    def a_layer_is_swapped(self, which):
        self.model.blocks[which % len(self.model.blocks)].linear = nn.Linear(WIDTH, WIDTH).double()

    @rule()
    def the_head_grows(self):
        self.model.head = nn.Linear(WIDTH, self.model.head.out_features + 1).double()

    @precondition(lambda self: len(self.model.blocks) > 1)
    @rule()
    def blocks_are_cut(self):
        self.model.blocks = self.model.blocks[:-1]

    @precondition(lambda self: len(self.model.blocks) < 3)
    @rule()
    def a_block_is_appended(self):
        self.model.blocks.append(Block("added").double())

    @precondition(lambda self: len(self.model.blocks) > 1)
    @rule()
    def blocks_change_places(self):
        first, *rest = self.model.blocks
        self.model.blocks = nn.ModuleList([*rest, first])

    @rule(which=st.integers(0, 5), factor=st.sampled_from([0.5, 3.0]), before=st.booleans())
    def a_hook_is_added(self, which, factor, before):
        linear = self.model.blocks[which % len(self.model.blocks)].linear
        if before:
            self.hooks.append(linear.register_forward_pre_hook(lambda module, args: (args[0] * factor,)))
        else:
            self.hooks.append(linear.register_forward_hook(lambda module, args, out: out * factor))

    @precondition(lambda self: self.hooks)
    @rule()
    def a_hook_is_removed(self):
        self.hooks.pop().remove()

    @rule()
    def a_forward_is_replaced(self):
        head = self.model.head
        head.forward = lambda x: 2 * nn.functional.linear(x, head.weight, head.bias)

    @precondition(
        lambda self: not parametrize.is_parametrized(self.model.blocks[0].linear) and not prune.is_pruned(self.model)
    )
    @rule(which=st.sampled_from(["weight norm", "prune"]))
    def a_weight_is_parametrized(self, which):
        linear = self.model.blocks[0].linear
        if which == "prune":
            prune.l1_unstructured(linear, "weight", amount=0.4)
        else:
            parametrizations.weight_norm(linear)
            with torch.no_grad():
                linear.parametrizations.weight.original0.mul_(1.5)

    @precondition(lambda self: parametrize.is_parametrized(self.model.blocks[0].linear))
    @rule()
    def a_parametrization_is_removed(self):
        parametrize.remove_parametrizations(self.model.blocks[0].linear, "weight")

    @rule()
    def the_precision_goes_there_and_back(self):
        self.model.float()
        self.model.plain = self.model.plain.float()  # which float() does not reach
        self.xmodel.explain(self.given().float())
        self.model.double()
        self.model.plain = self.model.plain.double()

    @rule()
    def it_is_trained(self):
        self.model.train().requires_grad_()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        for _ in range(2):
            optimizer.zero_grad()
            self.model(torch.randn(3, 4, WIDTH, dtype=torch.float64)).pow(2).mean().backward()
            optimizer.step()
        self.model.eval()

    @rule(mode=st.booleans(), flag=st.booleans())
    def its_flags_change(self, mode, flag):
        self.model.train(mode)
        self.model.requires_grad_(flag)

    @rule(sizes=st.sampled_from([(1, 5), (2, 1), (3, 9), (2, 5)]))
    def other_sizes_are_asked_for(self, sizes):
        self.sizes = sizes

    def given(self):
        return torch.randn(*self.sizes, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(7))

    @invariant()
    def follows(self):
        if not hasattr(self, "model"):
            return
        x, mode = self.given(), self.model.training
        leaf = x.clone().requires_grad_()
        self.model.eval()
        wanted = self.model(leaf)
        slope = torch.autograd.grad(wanted[:, 1].sum(), leaf)[0]
        self.model.train(mode)
        assert apart(self.xmodel(x).detach(), wanted.detach()) <= 1e-12
        agree(self.xmodel.explain(x, target=1, rules="gradient").relevance, {"x": x * slope}, "gradient")
        found = self.xmodel.explain(x, target=1)
        with without_kept_captures():
            agree(found.relevance, lrp_fx.convert(self.model).explain(x, target=1).relevance, "fresh conversion")
        assert found.ledger.balance <= 1e-9
        assert apart(found.output, wanted.detach()) <= 1e-12
        many = self.xmodel.explain(x, targets=[0, 1]).relevance
        agree({"x": many["x"][1]}, found.relevance, "many targets")


@pytest.mark.slow
def test_a_model_that_changes():
    examples = settings().max_examples // 3  # a run of one takes as long as all examples of most other tests
    run_state_machine_as_test(Changes, settings=settings(max_examples=examples, stateful_step_count=6))


def test_a_copy_changes_by_itself():
    torch.manual_seed(0)
    first = Changing().eval()
    x = torch.randn(2, 5, WIDTH)
    xmodel = lrp_fx.convert(first, x)
    wanted = xmodel.explain(x, target=1).relevance["x"]
    second = copy.deepcopy(first)
    second.blocks[0].scale = 3.0
    other = lrp_fx.convert(second).explain(x, target=1).relevance["x"]
    assert not torch.allclose(other, wanted)
    assert torch.equal(xmodel.explain(x, target=1).relevance["x"], wanted)


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.options, self.factors = {"skip": True}, [1.0, [2.0]]

    def forward(self, x):
        y = self.layer(x) * self.factors[0] * self.factors[1][0]
        return x + y if self.options["skip"] else y


def test_entries_of_containers_are_followed():
    torch.manual_seed(0)
    model, x = Optional().double().eval(), torch.randn(2, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(model, x)

    def an_option():
        model.options["skip"] = False

    def a_factor():
        model.factors[0] = 3.0

    def a_factor_further_inside():
        model.factors[1][0] = 5.0

    def another_dictionary():
        model.options = {"skip": True}

    for change in (an_option, a_factor, a_factor_further_inside, another_dictionary):
        change()
        assert torch.allclose(xmodel(x), model(x), rtol=1e-12), change.__name__
    assert "captures=5" in repr(xmodel)
