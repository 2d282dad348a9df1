"""circuit-tracer 0.5: its own models of the file accept what we write."""

from circuit_tracer.frontend.graph_models import Model
from test_graph_json import TOKENS, circuit

from lrp_fx import concepts


def test_circuit_tracer_reads_the_file():
    document = concepts.to_graph_json(circuit(), tokens=TOKENS)
    read = Model(**document)
    assert read.metadata.prompt == "The cat in the hat" and len(read.nodes) == len(document["nodes"])
    assert [n.node_id for n in read.nodes if n.is_target_logit] == [read.qParams.clickedId]
    assert {n.layer for n in read.nodes if n.feature_type == "embedding"} == {"E"}
