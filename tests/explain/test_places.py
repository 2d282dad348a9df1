"""Names of modules: one that hands on its input, is nested, called twice, returns a tuple, or is named like a keyword."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

import lrp_fx

D = torch.float64
ROUTES = ("export", "trace")


class Block(nn.Module):
    """Returns a dict; its hook point is called twice, its last layer only under a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.hook, self.layer, self.drop = nn.Identity(), nn.Linear(4, 4, bias=False, dtype=D), nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.drop(self.layer(self.hook(x)))
        return {"positions": torch.arange(4), "hidden": self.hook(hidden), "twice": 2 * hidden}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Identity()
        self.block = Block()
        self.tail = nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(4, 3, bias=False, dtype=D), nn.Identity()))

    def forward(self, x: Tensor) -> Tensor:
        entered = self.entry(x)
        hidden = self.block(x=entered)["hidden"]
        hidden = hidden.clone()
        hidden += entered
        return self.tail(hidden)


PATHS = {
    "entry",
    "block",
    "block.hook",
    "block.layer",
    "block.drop",
    "tail",
    "tail.0",
    "tail.1",
    "tail.1.0",
    "tail.1.1",
}


def _want(model: Model, x: Tensor) -> dict[str, Tensor]:
    """Relevance inside, in closed form: every layer is linear."""
    last = model.tail[1][0].weight[1]
    hidden = x @ model.block.layer.weight.T
    out = torch.zeros(len(x), 3, dtype=D)
    out[:, 1] = (hidden + x) @ last
    whole = x * (last @ model.block.layer.weight + last)  # the tensor goes into the block and past it
    return {
        "entry": whole, "entry@input": whole,
        "block": hidden * last, "block@input": whole,
        "block.hook": hidden * last, "block.hook@input": whole,
        "block.layer": hidden * last, "block.layer@input": whole,
        "block.drop": hidden * last, "block.drop@input": hidden * last,
        "tail": out, "tail@input": (hidden + x) * last,
        "tail.0": (hidden + x) * last, "tail.0@input": (hidden + x) * last,
        "tail.1": out, "tail.1@input": (hidden + x) * last,
        "tail.1.0": out, "tail.1.0@input": (hidden + x) * last,
        "tail.1.1": out, "tail.1.1@input": out,
    }  # fmt: skip


@pytest.mark.parametrize("capture", ROUTES)
def test_every_module_has_an_output_and_an_input(capture: str) -> None:
    torch.manual_seed(0)
    model = Model().eval()
    xmodel = lrp_fx.convert(model, capture=capture, rules="attnlrp")
    for batch in (2, 3):
        x = torch.randn(batch, 4, dtype=D)
        plain = xmodel.explain(x, target=1)
        found = xmodel.explain(x, target=1, at=["*", "*@input"])
        want = _want(model, x)
        assert set(want) == PATHS | {f"{path}@input" for path in PATHS}
        assert set(found.latents) >= set(want)
        for name, relevance in want.items():
            torch.testing.assert_close(found.latents[name], relevance, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(found.relevance["x"], plain.relevance["x"])
    torch.testing.assert_close(xmodel.explain(x, targets=[0, 1], at="tail.0").latents["tail.0"][1], want["tail.0"])
    torch.testing.assert_close(xmodel.lower(x, target=1, at="entry")(x, target=1).latents["entry"], want["entry"])
    one = xmodel.explain(x, target=1, condition={"block.hook": [2]}).relevance["x"]
    direct = x * model.tail[1][0].weight[1]
    through = x * model.block.layer.weight[2] * model.tail[1][0].weight[1, 2]
    torch.testing.assert_close(one, direct + through)


def test_noting_places_leaves_the_graph_as_it_is() -> None:
    """Hooks for the time of the capture alone, on no module; the nodes are those of a capture without them."""
    model, x = Model().eval(), torch.randn(2, 4, dtype=D)
    before = pickle.dumps({name: sorted(vars(module)) for name, module in model.named_modules()})
    captured = lrp_fx.convert(model, x, rules="attnlrp").current.captured
    program = torch.export.export(model, (x,), strict=False)
    called = [str(n.target) for n in captured.graph_module.graph.nodes if n.op == "call_function"]
    plain = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    dropped = {"aten.dropout.default", "aten.arange.default", "aten.mul.Tensor"}
    assert called == [name.replace("add_.", "add.") for name in plain if name not in dropped]
    assert pickle.dumps({name: sorted(vars(module)) for name, module in model.named_modules()}) == before
    assert not nn.modules.module._global_forward_hooks and not nn.modules.module._global_forward_pre_hooks


def test_places_are_kept_on_disk(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LRP_FX_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.ReLU(), nn.Linear(4, 2)).double().eval(),
        torch.randn(2, 4).double(),
    )
    first = lrp_fx.convert(model, x, rules="attnlrp").explain(x, at="1").latents["1"]
    again = lrp_fx.convert(model, x, rules="attnlrp").explain(x, at="1").latents["1"]
    assert any(tmp_path.rglob("*"))
    torch.testing.assert_close(first, again)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module("in", nn.Linear(4, 4, dtype=D))
        self.parts = nn.ModuleDict({"class": nn.Linear(4, 4, dtype=D), "is": nn.Identity()})
        self.register_parameter("lambda", nn.Parameter(torch.randn(4, dtype=D)))
        self.register_buffer("None", torch.randn(4, dtype=D))
        self.out = nn.Linear(4, 2, dtype=D)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(getattr(self, "in")(x)) + getattr(self, "lambda")
        return self.out(self.parts["is"](self.parts["class"](h * getattr(self, "None"))))


@pytest.mark.parametrize("capture", ROUTES)
def test_names_that_are_keywords(capture: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = Keywords().eval()
    xmodel = lrp_fx.convert(model, capture=capture, rules="attnlrp")
    x = torch.randn(3, 4, dtype=D)
    torch.testing.assert_close(xmodel(x), model(x))
    found = xmodel.explain(x, target=1, rules="gradient", at=["in", "parts.class", "parts.is"])
    assert set(found.latents) == {"in", "parts.class", "parts.is"}
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(found.relevance["x"], x * gradient)
    assert {"in.bias", "parts.class.bias", "lambda"} <= set(found.ledger.by("name"))
    assert xmodel.verify(x, target=1).passed
    plain = xmodel.explain(x, target=1).relevance["x"]
    torch.testing.assert_close(xmodel.explain(x, target=1, memory="low").relevance["x"], plain)
    torch.testing.assert_close(xmodel.explain(x, targets=[0, 1]).relevance["x"][1], plain)
    lowered = xmodel.lower(x, target=1)
    torch.testing.assert_close(lowered(x, target=1).relevance["x"], plain)
    lowered.save(tmp_path / "graph.pt2")
    loaded = lrp_fx.load(tmp_path / "graph.pt2")
    torch.testing.assert_close(loaded(x=x, target=torch.ones(3, dtype=torch.long)).relevance["x"], plain)


def test_names_that_are_keywords_are_kept_on_disk(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LRP_FX_CACHE", str(tmp_path))
    model, x = Keywords().eval(), torch.randn(3, 4, dtype=D)
    first = lrp_fx.convert(model, x, rules="attnlrp").explain(x, target=1).relevance["x"]
    again = lrp_fx.convert(model, x, rules="attnlrp").explain(x, target=1).relevance["x"]
    torch.testing.assert_close(first, again)
