"""Lowered graphs: the relevance of the eager sweep, from one functional graph, at sizes it was not traced with."""

import dataclasses
import functools

import pytest
import torch
import transformers as tf
from models import TEXT, build, few, ids

import lrp_fx
from lrp_fx.errors import InputError, NumericalError, TargetError
from lrp_fx.lowering.dynamic_shapes import dynamic_if_possible

FAMILIES = ["llama2", "mixtral", "flan-t5", "bert", "vit", "resnet"]


@functools.cache
def case(name):
    """A converted model; "llama" has one layer only, and is quick to trace."""
    if name == "llama":
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**{**TEXT, "num_hidden_layers": 1})).double().eval()
        inputs = {"input_ids": ids()}
    else:
        model, inputs = build(name)
    return lrp_fx.convert(model, **inputs, rules="attnlrp"), inputs


def resized(inputs, batch, length):
    """Other inputs, of another batch size and, for text, another length."""
    torch.manual_seed(1)
    new = {}
    for key, value in inputs.items():
        if value.is_floating_point():
            new[key] = torch.randn(batch, *value.shape[1:], dtype=value.dtype)
        elif "mask" in key:
            new[key] = torch.ones(batch, length, dtype=value.dtype)
        elif "type" in key:
            new[key] = torch.zeros(batch, length, dtype=value.dtype)
        else:
            new[key] = torch.randint(3, 99, (batch, length + ("decoder" in key)))
    return new


def same(found, expected):
    assert found.relevance.keys() == expected.relevance.keys()
    torch.testing.assert_close(found.target, expected.target, rtol=1e-12, atol=1e-12)
    for name, value in expected.relevance.items():
        assert float((found.relevance[name] - value).abs().max()) < 1e-9 * float(value.abs().max())
    for name, value in expected.latents.items():
        torch.testing.assert_close(found.latents[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", few(FAMILIES, "llama", "resnet"))
def test_lowered_relevance_is_that_of_the_eager_sweep_at_other_sizes(name):
    xmodel, inputs = case(name)
    lowered = xmodel.lower(**inputs)
    assert not any("lrp_fx" in str(n.target) or "autograd" in str(n.target) for n in lowered.graph_module.graph.nodes)
    for batch, length in ((3, 11), (2, 4), (1, 5)):
        other = resized(inputs, batch, length)
        if xmodel.specialization((), other)[0].captured is lowered.sweeper.captured:
            same(lowered(**other), xmodel.explain(**other))
        else:  # the model asks whether it has one sample: that is another graph of its own
            assert batch == 1 and "attention_mask" not in inputs
            with pytest.raises(InputError, match=r"shape\[0\] != 1"):
                lowered(**other)
            same(xmodel.lower(**other)(**other), xmodel.explain(**other))


@pytest.mark.parametrize(
    ("name", "rules"),
    few(
        [
            ("llama", "cp_lrp"),
            ("llama", {"base": "attnlrp", "rules": {"linear": {"rule": "epsilon", "epsilon": 1e-3}}}),
            ("bert", {"base": "attnlrp", "rules": {"dense": {"rule": "gamma", "gamma": 0.1}}}),
            ("vit", "vit_gamma"),
            ("resnet", "epsilon_gamma_box"),
            ("resnet", "epsilon_alpha2_beta1_flat"),
            ("resnet", "deconvnet"),
            ("resnet", {"base": "epsilon_plus", "rules": {"selection": "even"}}),
        ],
        ("llama", "cp_lrp"),
        ("resnet", "epsilon_gamma_box"),
    ),
)
def test_rule_sets_survive_lowering(name, rules):
    xmodel, inputs = case(name)
    other = resized(inputs, 3, 6)
    same(xmodel.lower(**inputs, rules=rules)(**other), xmodel.explain(**other, rules=rules))


def test_a_rule_of_the_users_own_survives_lowering():
    lrp_fx.register_rule("lowered-damped", base="epsilon", backward=lambda g, y, strength: g * (1 - strength))
    xmodel, inputs = case("llama")
    rules = {"base": "attnlrp", "rules": {"linear": {"rule": "lowered-damped", "strength": 0.1}}}
    same(xmodel.lower(**inputs, rules=rules)(**inputs), xmodel.explain(**inputs, rules=rules))


@pytest.mark.slow
def test_targets_are_inputs_of_the_graph():
    xmodel, inputs = case("llama")
    other = resized(inputs, 3, 6)
    classes = xmodel.lower(**inputs, target=4)
    same(classes(**other, target=17), xmodel.explain(**other, target=17))
    same(classes(**other, target=torch.tensor([1, -1, 3])), xmodel.explain(**other, target=torch.tensor([1, -1, 3])))
    indexed = xmodel.lower(**inputs, target=(0, 0))
    same(indexed(**other, target=(2, 5)), xmodel.explain(**other, target=(2, 5)))
    one = resized(inputs, 3, 6)["input_ids"][1:2, :4]
    own = indexed(**other, target=(torch.tensor([5, 3, 0]), torch.tensor([1, 9, 2])))
    torch.testing.assert_close(
        own.relevance["input_ids"][1, :4], xmodel.explain(input_ids=one, target=(3, 9)).relevance["input_ids"][0]
    )
    contrast = xmodel.lower(**inputs, target=lrp_fx.Contrast(1, 2))
    same(contrast(**other, target=lrp_fx.Contrast(3, 4)), xmodel.explain(**other, target=lrp_fx.Contrast(3, 4)))
    rest = xmodel.lower(**inputs, target=lrp_fx.Contrast())
    same(rest(**other, target=lrp_fx.Contrast()), xmodel.explain(**other, target=lrp_fx.Contrast()))


@pytest.mark.slow
def test_a_callable_target_is_traced():
    xmodel, inputs = case("llama")
    other = resized(inputs, 3, 6)
    difference = lambda out: out.logits[:, -1, 7] - out.logits[:, -1, 3]
    lowered = xmodel.lower(**inputs, target=difference)
    same(lowered(**other), xmodel.explain(**other, target=difference))
    with pytest.raises(TargetError, match="another"):
        lowered(**other, target=lambda out: out.logits[:, 0, 0])
    with pytest.raises(TargetError, match="reads tensor values"):
        xmodel.lower(**inputs, target=lambda out: out.logits[:, -1, 7] * float(out.logits.sum()))


@pytest.mark.slow
def test_padding_moves_the_explained_position():
    xmodel, inputs = case("llama")
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, 5:] = 0
    example = {**inputs, "attention_mask": mask}
    lowered = xmodel.lower(**example)
    other = {"input_ids": resized(inputs, 3, 6)["input_ids"], "attention_mask": torch.ones(3, 6, dtype=torch.long)}
    other["attention_mask"][1, 2:] = 0
    same(lowered(**other), xmodel.explain(**other))


@pytest.mark.slow
def test_latents_and_conditions_are_part_of_the_graph():
    xmodel, inputs = case("llama")
    other = resized(inputs, 3, 6)
    at = "model.layers.*.mlp"
    lowered = xmodel.lower(**inputs, at=at)
    found, expected = lowered(**other), xmodel.explain(**other, at=at)
    assert len(expected.latents) == 1
    same(found, expected)
    condition = {"model.layers.0.mlp": [3, 5], "model.layers.0.self_attn": torch.arange(32) % 2 == 0}
    same(xmodel.lower(**inputs, condition=condition)(**other), xmodel.explain(**other, condition=condition))


@pytest.mark.slow
def test_outputs_come_with_it_where_they_are_asked_for():
    xmodel, inputs = case("llama")
    other = resized(inputs, 3, 6)
    found, expected = xmodel.lower(**inputs, outputs=True)(**other), xmodel.explain(**other)
    same(found, expected)
    assert type(found.output) is type(expected.output)
    torch.testing.assert_close(found.output.logits, expected.output.logits, rtol=1e-12, atol=1e-12)
    assert found.ledger.balance < 1e-9


def products(lowered, width):
    """Products of matrices that involve ``width`` columns, and the rows of each."""
    rows = []
    for node in lowered.graph_module.graph.nodes:
        if "mm" in str(node.target) and width in node.meta["val"].shape:
            rows.append(str(node.meta["val"].shape[0]))
    return rows


def test_the_head_and_the_last_feed_forward_run_at_explained_positions_only():
    xmodel, inputs = case("llama")
    graph = xmodel.lower(**inputs)
    batch = str(graph.graph_module.graph.find_nodes(op="placeholder")[0].meta["val"].shape[0])
    assert products(graph, 100) == [batch]  # the head, forward
    assert products(graph, 64).count(batch) >= 3  # gate, up, and back through down, of the last layer
    whole = xmodel.lower(**inputs, outputs=True)
    assert len(products(whole, 100)) == 2  # once in full, for the output, and once for the target


def test_no_gradient_of_a_weight_is_computed():
    xmodel, inputs = case("llama")
    shapes = {str(tuple(p.shape)) for p in xmodel.model.parameters() if p.dim() == 2}
    for node in xmodel.lower(**inputs).graph_module.graph.nodes:
        if "mm" in str(node.target):
            assert str(tuple(node.meta["val"].shape)) not in shapes


def test_constants_are_folded_where_sizes_are_fixed():
    xmodel, inputs = case("llama")
    free, fixed = xmodel.lower(**inputs), xmodel.lower(**inputs, dynamic=False)
    same(fixed(**inputs), xmodel.explain(**inputs))
    names = [str(n.target) for n in fixed.graph_module.graph.nodes]
    assert any("cos" in str(n.target) for n in free.graph_module.graph.nodes)
    assert not any("cos" in n or "sym_size" in n for n in names)
    with pytest.raises(InputError, match="other sizes"):
        fixed(**resized(inputs, 3, 6))


def test_wrong_targets_are_named():
    xmodel, inputs = case("llama")
    lowered = xmodel.lower(**inputs, target=3)
    for target in (100, torch.tensor([1, 2, 3]), (1, 2), lrp_fx.Contrast(1, 2)):
        with pytest.raises(TargetError):
            lowered(**inputs, target=target)


def test_explain_uses_what_was_compiled() -> None:
    """Calls that a compiled graph serves are explained by it; all others, and what it does not return, eagerly."""
    model, inputs = build("llama2")
    plain, xmodel = (lrp_fx.convert(model, **inputs, rules="attnlrp") for _ in range(2))
    graph = xmodel.lower(**inputs, target=7)
    calls: list[int] = []

    def counted(*tensors):
        calls.append(1)
        return graph.graph_module(*tensors)

    xmodel.current.compiled[xmodel.ruleset.key, ()] = (dataclasses.replace(graph, runner=counted),)
    other = {"input_ids": torch.randint(3, 99, (3, 9))}
    found, expected = xmodel.explain(**other, target=5), plain.explain(**other, target=5)
    assert len(calls) == 1
    assert torch.allclose(found.relevance["input_ids"], expected.relevance["input_ids"], atol=1e-12)
    assert torch.allclose(found.output.logits, expected.output.logits, atol=1e-12)
    assert found.ledger.entries[0].amount == pytest.approx(expected.ledger.entries[0].amount)
    assert {k: v.shape for k, v in found.sources.items()} == {k: v.shape for k, v in expected.sources.items()}
    for how in ({}, {"target": (3, 7)}, {"target": 5, "rules": "cp_lrp"}, {"target": 5, "at": "*.mlp"}):
        xmodel.explain(**other, **how)
    xmodel.explain(**other, target=5, condition={"model.layers.0.mlp": [1]})
    assert len(calls) == 1


def test_a_bad_number_in_a_compiled_graph_is_named_by_the_sweep() -> None:
    model, inputs = build("llama2")
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    graph = xmodel.lower(**inputs, target=7)
    xmodel.current.compiled[xmodel.ruleset.key, ()] = (graph,)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="first at"):
        xmodel.explain(**inputs, target=7)


class Smaller(torch.nn.Module):
    """The smaller of two layers: its backward formula writes into what it has just computed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = (torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.minimum(self.one(x), self.other(x)))


class Dispatch(torch.nn.Module):
    """Two layers, each applied to the rows that a third one sends to it: how many these are, values decide."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.one, self.other = torch.nn.Linear(6, 2), torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        self.head = torch.nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, 1)
        choice, out = self.gate(rows).argmax(-1), torch.zeros_like(rows)
        for i, layer in enumerate((self.one, self.other)):
            (at,) = torch.where(choice == i)
            out = out.index_add(0, at, layer(rows[at]))
        return self.head(out.view(x.shape)).mean(1)


@pytest.mark.parametrize("kind", [Smaller, Dispatch])
def test_a_lowered_graph_is_functional_whatever_backward_formulas_and_numbers_of_rows(kind: type) -> None:
    model = kind().double()
    x, more = torch.randn(2, 5, 6).double(), torch.randn(4, 5, 6).double()
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    lowered = xmodel.lower(x)
    nodes = lowered.graph_module.graph.nodes
    assert not [n for n in nodes if isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable]
    for inputs in (x, more):
        wanted = xmodel.explain(inputs).relevance["x"]
        assert (lowered(inputs).relevance["x"] - wanted).abs().max() <= 1e-12 * wanted.abs().max()


class Branch(torch.nn.Module):
    """One layer or the other: export refuses it, so a run is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) if x.sum() > 0 else self.other(x)


def test_a_branch_that_was_not_taken_is_named(tmp_path) -> None:
    model, x = Branch().double(), torch.ones(2, 4).double()
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    lowered = xmodel.lower(x, target=0)
    assert torch.equal(lowered(2 * x, target=0).relevance["x"], xmodel.explain(2 * x, target=0).relevance["x"])
    with pytest.raises(InputError, match="other branches"):
        lowered(-x, target=0)
    with pytest.warns(UserWarning, match="take the branches of the example"):
        lowered.save(tmp_path / "x.pt2")


class Heard(torch.nn.Module):
    """Tokens, and a recording of a fixed number of samples with a mask of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(20, 6), torch.nn.Linear(6, 9)
        self.register_buffer("weights", torch.ones(2, 1))

    def forward(self, ids: torch.Tensor, sound: torch.Tensor, sound_mask: torch.Tensor) -> torch.Tensor:
        heard = (sound * sound_mask * self.weights).sum() + (sound_mask * self.weights).sum()
        return self.head(self.table(ids)) * heard


def test_a_graph_serves_the_call_it_was_lowered_with() -> None:
    """Two recordings always, and as many samples of text: that the mask is not the text's is told by its length."""
    model = Heard().double()
    inputs = {
        "ids": torch.randint(0, 20, (2, 7)),
        "sound": torch.randn(2, 5).double(),
        "sound_mask": torch.ones(2, 5).double(),
    }
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    lowered = xmodel.lower(**inputs)
    for ids_ in (inputs["ids"], torch.randint(0, 20, (3, 4))):
        call = {**inputs, "ids": ids_}
        wanted = xmodel.explain(**call).relevance["ids"]
        assert (lowered(**call).relevance["ids"] - wanted).abs().max() <= 1e-12 * wanted.abs().max()


class Loop(torch.nn.Module):
    """Layers that are chosen by values, one after the other: recorded, as often as they were chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = torch.nn.Linear(6, 3), torch.nn.Linear(6, 4)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, 1)
        choice, out = self.gate(rows).argmax(-1), torch.zeros_like(rows)
        for i in torch.unique(choice).unbind():
            (at,) = torch.where(choice == i)
            out = out.index_add(0, at, self.layers[int(i)](rows[at]))
        return self.head(out.view(x.shape)).mean(1)


def test_lengths_of_a_recorded_run_are_those_of_its_decisions() -> None:
    model, x = Loop().double(), torch.randn(2, 5, 6).double()
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    assert xmodel.current.captured.route == "trace"
    lowered, wanted = xmodel.lower(x), xmodel.explain(x).relevance["x"]
    assert (lowered(x).relevance["x"] - wanted).abs().max() <= 1e-12 * wanted.abs().max()
    with pytest.raises(InputError, match="other branches"):
        lowered(-x)


class Pooled(torch.nn.Module):
    """Tokens pooled to one: PyTorch changes the strides of such a mean in place where channels come last."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool1d(torch.relu(self.one(x)).transpose(1, 2), 1)
        return self.head(pooled.flatten(1))


def test_relevance_goes_back_through_a_pool_to_one_value() -> None:
    model, x = Pooled().double(), torch.randn(2, 5, 6).double()
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    wanted, found = xmodel.explain(x).relevance["x"], xmodel.lower(x)(x).relevance["x"]
    assert wanted.abs().max() > 0
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()


class _Made:
    def __init__(self, free: bool, mismatch: str | None) -> None:
        self.free, self.guards, self._mismatch = free, self, mismatch

    def mismatch(self, tensors: list[torch.Tensor]) -> str | None:
        return self._mismatch


@pytest.mark.parametrize("fate", ["serves", "does not serve its example", "cannot be traced"])
def test_sizes_are_fixed_only_where_they_cannot_be_free(fate: str) -> None:
    def make(free: bool) -> _Made:
        if free and fate == "cannot be traced":
            raise IndexError("sizes differ")
        return _Made(free, "Ne(s0, 2)" if free and fate != "serves" else None)

    assert dynamic_if_possible(make, []).free is (fate == "serves")


class Sides(torch.nn.Module):
    """Two sequences of lengths of their own, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.one(x).tanh().sum(1) * self.two(y).sum(1)


def test_sizes_that_are_equal_by_chance_stay_apart() -> None:
    torch.manual_seed(0)
    model, x = Sides().double(), torch.randn(5, 5, 3).double()
    xmodel = lrp_fx.convert(model, x, x.clone(), rules="attnlrp")
    lowered = xmodel.lower(x, x.clone(), target=1)
    for batch, one, two in ((5, 4, 7), (2, 6, 6), (3, 3, 5)):
        given = torch.randn(batch, one, 3).double(), torch.randn(batch, two, 3).double()
        wanted, found = xmodel.explain(*given, target=1), lowered(*given, target=1)
        for name in ("x", "y"):
            torch.testing.assert_close(found.relevance[name], wanted.relevance[name], rtol=1e-12, atol=1e-14)
    assert len(xmodel.captures.reasons) == 1
