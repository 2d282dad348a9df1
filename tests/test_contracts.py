"""Stage contracts: every one is seen to bite on a graph that was broken on purpose."""

import dataclasses
import os

import pytest
import torch
from torch import fx, nn

import lrp_fx
from lrp_fx.contracts import CONTRACTS, VARIABLE, Stage, check_stage
from lrp_fx.errors import ContractError
from lrp_fx.graph.copies import copy_graph
from lrp_fx.graph.operands import Slot
from lrp_fx.rules.functions import scale_relevance

aten = torch.ops.aten


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x) * 2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = Gated()

    def forward(self, x):
        return self.mlp(x)


@pytest.fixture(scope="module")
def made():
    """Stage -> what it made of one model."""
    x = torch.randn(2, 4, dtype=torch.float64)
    xmodel = lrp_fx.convert(Model().double(), x=x, rules="attnlrp")
    specialization = xmodel.captures.latest
    graph_module, facts = specialization.captured.graph_module, specialization.facts
    rewritten = specialization.under(xmodel.ruleset)
    plan, tapped = rewritten.plan, specialization.sweeper(xmodel.ruleset, ()).tapped
    return {
        "capture": Stage(graph_module, facts.ops),
        "analysis": Stage(graph_module, facts.ops, facts),
        "plan": Stage(graph_module, facts.ops, facts, plan),
        "rewrite": Stage(rewritten.graph_module, facts.ops, facts, plan, rewritten),
        "taps": Stage(tapped, facts.ops, plan=plan),
        "lowering": Stage(xmodel.lower(x=x).graph_module, facts.ops),
    }


def copied(stage):
    """The same with a copy of its graph."""
    graph, mapping = copy_graph(stage.graph_module.graph)
    rewritten = stage.rewritten
    if rewritten is not None:
        results, copies = (
            {node: mapping[made] for node, made in nodes.items() if made in mapping}
            for nodes in (rewritten.results, rewritten.copies)
        )
        rewritten = dataclasses.replace(rewritten, results=results, copies=copies)
    return dataclasses.replace(stage, graph_module=fx.GraphModule(stage.graph_module, graph), rewritten=rewritten)


def product(stage):
    return next(n for n in stage.nodes if n.target is aten.mul.Tensor)


def parameter(stage):
    return next(n for n in stage.nodes if n.op == "get_attr")


def inserted(stage, target, *further):
    """A call between a product and its users."""
    node = product(stage)
    with stage.graph_module.graph.inserting_after(node):
        new = stage.graph_module.graph.call_function(target, (node, *further))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def without_value(stage):
    del product(stage).meta["val"]


def written(stage):
    product(stage).target = aten.mul_.Tensor


def detached(stage):
    inserted(stage, aten.detach.default)


def python_call(stage):
    inserted(stage, scale_relevance, 0.5)


def missing_attribute(stage):
    parameter(stage).target = "mlp.nowhere.weight"


def undeclared(stage):
    facts = dataclasses.replace(
        stage.facts, specs={n: s for n, s in stage.facts.specs.items() if n is not product(stage)}
    )
    return dataclasses.replace(stage, facts=facts)


def carried_from_nowhere(stage):
    operands = {**stage.facts.operands, product(stage): {Slot("self"): parameter(stage)}}
    return dataclasses.replace(stage, facts=dataclasses.replace(stage.facts, operands=operands))


def with_decisions(stage, decisions):
    return dataclasses.replace(stage, plan=dataclasses.replace(stage.plan, decisions=decisions))


def undecided(stage):
    return with_decisions(stage, {n: d for n, d in stage.plan.decisions.items() if n is not product(stage)})


def without_a_number(stage):
    node = product(stage)
    decision = stage.plan.decisions[node]
    wrong = dataclasses.replace(decision, factors={slot: float("nan") for slot in decision.live})
    return with_decisions(stage, {**stage.plan.decisions, node: wrong})


def factor_of_nothing(stage):
    node = product(stage)
    wrong = dataclasses.replace(stage.plan.decisions[node], factors={Slot("bias"): 0.5})
    return with_decisions(stage, {**stage.plan.decisions, node: wrong})


def lost(stage):
    node = next(n for n in stage.plan.decisions if n.target is aten.mul.Tensor)
    stage.rewritten.results[node] = node  # (of the captured graph)


def other_shape(stage):
    next(n for n in stage.nodes if n.target is aten.sigmoid.default).target = aten.sum.default


def other_dtype(stage):
    node = next(n for n in stage.nodes if n.target is aten.sigmoid.default)
    node.target, node.args = aten.to.dtype, (*node.args, torch.float32)


def differentiated_parameter(stage):
    node = parameter(stage)
    for user in list(node.users):
        user.replace_all_uses_with(node)


def untapped(stage):
    end = stage.graph_module.graph.output_node()
    end.args = ((end.args[0][0], [], end.args[0][2]),)


def tapped_elsewhere(stage):
    end = stage.graph_module.graph.output_node()
    end.args = ((end.args[0][0], [product(stage)], end.args[0][2]),)


#: contract -> what breaks it
BREAKS = {
    "every_node_has_a_value": [without_value],
    "nothing_is_written": [written],
    "nothing_is_detached": [detached],
    "every_call_is_an_operator": [python_call],
    "no_call_has_a_derivative_of_its_own": [python_call],
    "every_attribute_exists": [missing_attribute],
    "every_carrying_node_is_declared": [undeclared],
    "every_carrying_operand_carries": [carried_from_nowhere],
    "every_live_node_has_a_decision": [undecided],
    "every_factor_is_a_number_of_a_live_operand": [without_a_number, factor_of_nothing],
    "every_decision_is_in_the_graph": [lost],
    "every_rewritten_node_keeps_shape_and_dtype": [other_shape, other_dtype],
    "every_parameter_is_a_constant": [differentiated_parameter],
    "every_source_is_tapped": [untapped, tapped_elsewhere],
}
CASES = [
    (stage, contract.__name__, breaks)
    for stage, contracts in CONTRACTS.items()
    for contract in contracts
    for breaks in BREAKS[contract.__name__]
]


@pytest.mark.parametrize("name", CONTRACTS)
def test_contracts_hold(made, name):
    check_stage(name, made[name])
    check_stage(name, copied(made[name]) if name not in ("analysis", "plan") else made[name])


@pytest.mark.parametrize("name, contract, breaks", CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_contract_is_an_error(made, name, contract, breaks):
    stage = made[name] if name in ("analysis", "plan") else copied(made[name])
    with pytest.raises(ContractError, match=f"after {name}, {contract.replace('_', ' ')}: ") as caught:
        check_stage(name, breaks(stage) or stage)
    assert " at node '" in str(caught.value) and "(op " in str(caught.value)


def test_the_error_says_where_the_node_came_from(made):
    stage = copied(made["capture"])
    written(stage)
    with pytest.raises(
        ContractError, match=r"node 'mul' \(op aten.mul_.Tensor\) in module 'mlp'.*test_contracts.py:\d+.*down"
    ):
        check_stage("capture", stage)


def test_nothing_is_looked_at_unless_it_is_asked_for(made, monkeypatch):
    assert os.environ[VARIABLE] == "1"  # in all tests
    stage = copied(made["capture"])
    written(stage)
    for off in ("", "0"):
        monkeypatch.setenv(VARIABLE, off)
        check_stage("capture", stage)


def test_a_pass_that_breaks_its_promise_is_named_at_once(monkeypatch):
    def broken(graph_module, ops):
        next(n for n in graph_module.graph.nodes if n.target is aten.mul.Tensor).target = aten.mul_.Tensor

    monkeypatch.setattr("lrp_fx.capture_cache.decompose", broken)
    with pytest.raises(ContractError, match="after capture, nothing is written"):
        lrp_fx.convert(Model(), x=torch.randn(2, 4))
