"""Models whose weights are offloaded (accelerate): relevance of the plain model, one operator's weights at a time."""

import functools
import gc
import weakref
from collections.abc import Mapping

import accelerate
import pytest
import torch
import transformers as tf
from models import few

import lrp_fx
from lrp_fx.capture.offload import Offloaded
from lrp_fx.errors import InputError

LAYERS = 3
GAMMA = {"name": "gamma", "base": "attnlrp", "rules": {"dense": {"rule": "gamma", "gamma": 0.25}}}
PLACES = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "lm_head": "disk",
}


def by_cpu_offload(dtype, folder):
    return accelerate.cpu_offload(plain(dtype), torch.device("cpu"))


def by_disk_offload(dtype, folder):
    return accelerate.disk_offload(plain(dtype), folder, torch.device("cpu"), offload_buffers=True)


def by_dispatch(dtype, folder):
    return accelerate.dispatch_model(plain(dtype), PLACES, offload_dir=folder)


def whole_blocks(dtype, folder):
    """All weights of a block at the beginning of its forward."""
    preload = ["LlamaDecoderLayer"]
    return accelerate.disk_offload(plain(dtype), folder, torch.device("cpu"), preload_module_classes=preload)


def from_shards(dtype, folder):
    plain(dtype).save_pretrained(folder / "saved", max_shard_size="40KB")
    assert len(list((folder / "saved").glob("*.safetensors"))) > 3
    return tf.AutoModelForCausalLM.from_pretrained(
        folder / "saved", device_map=PLACES, offload_folder=folder / "offloaded", dtype=dtype
    ).eval()


def plain(dtype=torch.float64):
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4, vocab_size=64
    )
    return tf.LlamaForCausalLM(config).to(dtype).eval()


@functools.cache
def wanted(dtype=torch.float64, rules="attnlrp"):
    return relevance(plain(dtype), rules)


def ids():
    return torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(1))


def relevance(model, rules="attnlrp", **options):
    return lrp_fx.convert(model, rules=rules, **options).explain(input_ids=ids(), target=5).relevance["input_ids"]


def close(found, wanted, tolerance):
    return float((found - wanted).abs().max() / wanted.abs().max()) < tolerance


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    "place", few([by_cpu_offload, by_disk_offload, by_dispatch, whole_blocks, from_shards], by_disk_offload)
)
def test_the_relevance_of_the_plain_model(place, dtype, tolerance, tmp_path):
    model = place(dtype, tmp_path)
    assert any(p.is_meta for p in model.parameters())
    assert close(relevance(model), wanted(dtype), tolerance)


@pytest.mark.parametrize("rules", few(["cp_lrp", "epsilon_plus", GAMMA], "epsilon_plus"))
def test_other_rule_sets(rules, tmp_path):
    assert close(relevance(by_disk_offload(torch.float64, tmp_path), rules), relevance(plain(), rules), 1e-10)


def test_a_recorded_run(tmp_path):
    xmodel = lrp_fx.convert(by_dispatch(torch.float64, tmp_path), capture="trace", input_ids=ids(), rules="attnlrp")
    found = xmodel.explain(input_ids=ids(), target=5).relevance["input_ids"]
    assert close(found, wanted(), 1e-10)
    held = dict(xmodel.graph_module.named_parameters())
    assert isinstance(held["model.layers.2.mlp.up_proj.weight"], Offloaded)
    assert not isinstance(held["model.layers.1.mlp.up_proj.weight"], Offloaded)


@pytest.mark.slow
def test_other_ways_to_explain(tmp_path):
    xmodel = lrp_fx.convert(by_disk_offload(torch.float64, tmp_path), input_ids=ids(), rules="attnlrp")
    assert close(xmodel.explain(input_ids=ids(), target=5, memory="low").relevance["input_ids"], wanted(), 1e-10)
    assert close(xmodel.lower(target=5)(input_ids=ids()).relevance["input_ids"], wanted(), 1e-10)
    many = xmodel.explain_targets(input_ids=ids(), targets=[5, 6]).relevance["input_ids"]
    assert close(many[0], wanted(), 1e-10)
    assert xmodel.verify(input_ids=ids()).bit_equal


def test_the_model_is_left_as_it_was(tmp_path):
    model = by_dispatch(torch.float64, tmp_path)
    before = {name: id(p) for name, p in model.named_parameters()}
    hooks = [getattr(m, "_hf_hook", None) for m in model.modules()]
    relevance(model)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert [getattr(m, "_hf_hook", None) for m in model.modules()] == hooks
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids()).logits, plain()(input_ids=ids()).logits)


class Counted(Mapping):
    """Weights by name, handed out as copies; how many bytes of such copies live."""

    def __init__(self, weights):
        self.weights, self.alive, self.most, self.reads = weights, 0, 0, 0

    def __getitem__(self, name):
        data = self.weights[name].clone()
        size = data.untyped_storage().nbytes()
        self.alive, self.reads = self.alive + size, self.reads + 1
        self.most = max(self.most, self.alive)
        weakref.finalize(data.untyped_storage(), self._gone, size)
        return data

    def _gone(self, size):
        self.alive -= size

    def __iter__(self):
        return iter(self.weights)

    def __len__(self):
        return len(self.weights)


@pytest.mark.slow
@pytest.mark.parametrize("rules, parts", [("attnlrp", 1), (GAMMA, 2)])  # a weight, and the positive part of it
def test_weights_in_memory_are_those_of_one_operator(rules, parts):
    weights = Counted(plain().state_dict())
    model = accelerate.cpu_offload(plain(), torch.device("cpu"), state_dict=weights)
    xmodel = lrp_fx.convert(model, rules=rules, input_ids=ids())
    gc.collect()
    assert weights.alive == 0
    weights.most = weights.reads = 0
    xmodel.explain(input_ids=ids())
    largest = max(w.untyped_storage().nbytes() for w in weights.weights.values())
    assert 0 < weights.most <= parts * largest
    assert weights.reads > len(weights)  # once on the way forward and once on the way back
    assert weights.alive == 0


def test_what_depends_on_values_is_not_put_off():
    weight = Offloaded(torch.empty(2, device="meta"), torch.device("cpu"), lambda: torch.tensor([0.0, 3.0]))
    assert isinstance(weight.clamp(min=1), Offloaded)
    assert float(weight.clamp(min=1).sum()) == 4
    assert weight.nonzero().tolist() == [[1]]


def test_tensors_are_moved_to_the_device_of_each_module():
    """The second half runs elsewhere: here on the meta device, which every machine has."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    for layer, device in zip(model, ("cpu", "meta"), strict=True):
        accelerate.hooks.add_hook_to_module(layer, accelerate.hooks.AlignDevicesHook(execution_device=device))
    xmodel = lrp_fx.convert(model, torch.randn(2, 4), rules="attnlrp")
    assert xmodel(torch.randn(2, 4)).device.type == "meta"
    linear = [n for n in xmodel.graph_module.graph.nodes if n.target is torch.ops.aten.linear.default]
    places = [{v.meta["val"].device.type for v in (*n.all_input_nodes, n)} for n in linear]
    assert places == [{"cpu"}, {"meta"}]


@pytest.mark.slow
def test_what_needs_all_weights_at_once_says_so(tmp_path):
    """Compilers and files would bring in a model that was offloaded because it does not fit."""
    xmodel = lrp_fx.convert(by_dispatch(torch.float32, tmp_path), input_ids=torch.ones(1, 4).long(), rules="attnlrp")
    graph = xmodel.lower(target=0)
    for needs in (graph.compile, lambda: graph.save(tmp_path / "x.pt2"), lambda: graph.package(tmp_path / "y.pt2")):
        with pytest.raises(InputError, match="without offloading"):
            needs()
