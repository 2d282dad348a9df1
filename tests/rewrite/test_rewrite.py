"""Rules are ordinary calls of the graph: compile, export and make_fx keep them; plain autograd runs them."""

import pytest
import torch
from models import build, few
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import lrp_fx


def relevance(function, embeddings):
    leaf = embeddings.clone().requires_grad_()
    function(inputs_embeds=leaf).logits[:, -1].amax(-1).sum().backward()
    return (leaf * leaf.grad).sum(-1)


@pytest.fixture(scope="module", params=few(["llama2", "gpt2", "mixtral", "gemma2"], "llama2"))
def converted(request):
    torch.manual_seed(0)
    model, inputs = build(request.param)
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    xmodel = lrp_fx.convert(model, inputs_embeds=embeddings, rules="attnlrp")
    return xmodel, embeddings, relevance(xmodel, embeddings)


def test_plain_autograd_is_explain(converted):
    xmodel, embeddings, expected = converted
    attribution = xmodel.explain(inputs_embeds=embeddings, target=lambda out: out.logits[:, -1].amax(-1))
    torch.testing.assert_close(attribution.relevance["inputs_embeds"].sum(-1), expected, rtol=1e-12, atol=1e-14)


def test_torch_compile_keeps_the_rules(converted):
    xmodel, embeddings, expected = converted
    torch._dynamo.reset()
    compiled = torch.compile(xmodel, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(relevance(compiled, embeddings), expected, rtol=1e-10, atol=1e-13)


def test_torch_export_keeps_the_rules(converted, tmp_path):
    xmodel, embeddings, expected = converted
    program = torch.export.export(xmodel.graph_module, (), {"inputs_embeds": embeddings}, strict=False)
    torch.testing.assert_close(relevance(program.module(), embeddings), expected, rtol=1e-10, atol=1e-13)
    torch.export.save(program, tmp_path / "x.pt2")
    loaded = torch.export.load(tmp_path / "x.pt2").module()
    torch.testing.assert_close(relevance(loaded, embeddings), expected, rtol=1e-10, atol=1e-13)


def test_make_fx_traces_forward_and_relevance_into_one_graph(converted):
    xmodel, embeddings, expected = converted

    def both(e):
        e = e.detach().requires_grad_()
        target = xmodel.graph_module(inputs_embeds=e).logits[:, -1].amax(-1).sum()
        return (e * torch.autograd.grad(target, e)[0]).sum(-1)

    graph = make_fx(both, tracing_mode="symbolic", _allow_non_fake_inputs=True)(embeddings)
    torch.testing.assert_close(graph(embeddings), expected, rtol=1e-10, atol=1e-13)


def test_fused_attention_stays_fused(converted):
    xmodel, _, _ = converted
    softmaxes = [n for n in xmodel.graph_module.graph.nodes if "softmax" in str(n.target) and n.meta["val"].dim() == 4]
    fused = [n for n in xmodel.graph_module.graph.nodes if "scaled_dot_product_attention" in str(n.target)]
    assert bool(fused) != bool(softmaxes)


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_no_gradient_of_expert_weights_is_computed():
    """The library's backward of a grouped product computes one, whether anybody wants it or not."""
    model, inputs = build("mixtral")
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    with Operators() as ran:
        xmodel.explain(**inputs)
    assert "transformers::grouped_mm_fallback" in ran.names
    assert not any("grouped" in name and "backward" in name for name in ran.names)


@pytest.mark.parametrize("name", few(["mixtral", "qwen2", "qwen3"], "qwen2"))
def test_heads_that_share_keys_read_them_unrepeated_and_explain_alike(name):
    model, inputs = build(name)
    xmodel = lrp_fx.convert(model, **inputs, rules="attnlrp")
    found = xmodel.explain(**inputs)
    alone = xmodel.explain(**inputs, at="*@key")  # what is asked for stays as the model has it: a copy for every head
    graphs = [s.tapped.graph for s in xmodel.current.sweepers.values()]
    fused = [
        g.find_nodes(op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default) for g in graphs
    ]
    shared = [[bool(n.kwargs.get("enable_gqa")) for n in nodes] for nodes in fused]
    causal = [len(n.args) < 4 for n in fused[0]]
    assert any(causal) and shared == [causal, [False] * len(causal)]
    key = alone.latents["model.layers.0.self_attn@key"]
    assert key.shape[1] == model.config.num_attention_heads
    wanted = alone.relevance["input_ids"]
    assert float((found.relevance["input_ids"] - wanted).abs().max()) < 1e-12 * float(wanted.abs().max())


@pytest.mark.parametrize("norm", [torch.nn.LayerNorm(8), torch.nn.RMSNorm(8), torch.nn.GroupNorm(4, 8)])
def test_normalizations_keep_their_statistics_not_their_input(norm):
    x = torch.randn(2, 8, 8)
    xmodel = lrp_fx.convert(torch.nn.Sequential(norm, torch.nn.Flatten(), torch.nn.Linear(64, 3)), x, rules="attnlrp")
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        xmodel.graph_module(x.requires_grad_())
    held = {p.data_ptr() for p in xmodel.model.parameters()}
    assert max(t.numel() for t in kept if t.data_ptr() not in held) <= 2 * 8  # rows of the largest statistic


class Weighed(torch.nn.Module):
    def forward(self, x):
        return x + torch.tanh(x) + x * torch.tanh(x).exp()


def test_no_gradient_flows_where_relevance_does_not():
    """What an operator that is declared constant makes of a signal is a constant to autograd, too."""
    x = torch.randn(2, 5, dtype=torch.float64)
    xmodel = lrp_fx.convert(Weighed(), ops={"constant": {"ops": ["aten.tanh"]}}, rules="attnlrp")
    found = xmodel.explain(x, target=1)
    wanted = torch.zeros_like(x)
    wanted[:, 1] = (x * (1 + torch.tanh(x).exp()))[:, 1]
    torch.testing.assert_close(found.relevance["x"], wanted)
    leaf = x.clone().requires_grad_()
    xmodel(leaf)[:, 1].sum().backward()
    torch.testing.assert_close(leaf * leaf.grad, wanted)
