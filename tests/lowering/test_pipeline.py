"""Models in stages over two processes (gloo): relevance, targets and latents of one process."""

import os
from pathlib import Path

import accelerate
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers as tf

import lrp_fx
from lrp_fx.errors import InputError, LatentError, TargetError
from lrp_fx.lowering.distributed.stages import split

WORLD = 2
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 100}


def llama():
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT, num_key_value_heads=2))
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[1, :2] = 0
    return model, {"input_ids": ids(4, 7), "attention_mask": mask}


def bert():
    return tf.BertForSequenceClassification(tf.BertConfig(**TEXT)), {"input_ids": ids(4, 7)}


def t5():
    config = tf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=4, num_heads=4, vocab_size=100)
    return tf.T5ForConditionalGeneration(config), {"input_ids": ids(4, 7), "decoder_input_ids": ids(4, 5)}


def ids(batch, length):
    return torch.randint(3, 99, (batch, length))


MODELS = {"llama": llama, "bert": bert, "t5": t5}
TARGETS = {
    "largest": None,
    "class": 1,
    "classes": torch.tensor([0, 1, 1, 0]),
    "contrast": lrp_fx.Contrast(torch.tensor([0, 1, 1, 0]), 1),
    "callable": lambda output: output.logits.flatten(1).sum(1),
}
LATENTS = {"llama": ("model.layers.0.mlp", "model.layers.3"), "bert": (), "t5": ("decoder.block.2",)}


def built(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    return lrp_fx.convert(model.eval(), **inputs), inputs


def cases():
    for name in MODELS:
        for microbatches in (1, 2, 4):
            yield name, "largest", microbatches
    for target in TARGETS:
        yield "bert", target, 2


def run(rank, folder):
    """What a process finds, in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    found = {}
    models = {name: built(name) for name in MODELS}
    pipelines = {name: models[name][0].pipeline(at=LATENTS[name]) for name in MODELS}
    for name, target, microbatches in cases():
        a = pipelines[name].explain(**models[name][1], target=TARGETS[target], microbatches=microbatches)
        logits = None if a.output is None else a.output.logits
        found[name, target, microbatches] = (a.relevance, a.latents, a.target, logits)
    with pytest.raises(LatentError):
        _ = a.ledger
    with pytest.raises(TargetError, match="out of range"):  # chosen in one process, raised in both
        pipelines["bert"].explain(**models["bert"][1], target=7)
    with pytest.raises(InputError, match="micro-batches"):
        pipelines["bert"].explain(**models["bert"][1], microbatches=3)
    found["longer"] = pipelines["bert"].explain(input_ids=longer()).relevance["input_ids"]
    found["offloaded"] = offloaded()
    torch.save(found, folder / f"found_{rank}.pt")
    dist.destroy_process_group()


def longer():
    return torch.arange(3, 3 + 2 * 9).reshape(2, 9)


class Read(dict):
    """Weights by name, and the names that were read."""

    def __init__(self, weights):
        super().__init__(weights)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


def offloaded():
    """(relevance, names of the stage's weights, names that were read) with weights offloaded."""
    torch.manual_seed(0)
    model, inputs = llama()
    weights = Read(model.state_dict())
    model = accelerate.cpu_offload(model.eval(), torch.device("cpu"), state_dict=weights)
    xmodel = lrp_fx.convert(model, **inputs)
    weights.names.clear()
    pipeline = xmodel.pipeline()
    a = pipeline.explain(**inputs, microbatches=2)
    return a.relevance["input_ids"], set(dict(pipeline.stage.graph_module.named_parameters())), weights.names


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("pipeline"))
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(run, (folder,), nprocs=WORLD)
    return [torch.load(folder / f"found_{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def models():
    return {name: built(name) for name in MODELS}


def close(found, wanted, scale=None):
    largest = (wanted if scale is None else scale).abs().max()
    return float((found - wanted).abs().max() / largest) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name, target, microbatches", list(cases()))
def test_relevance_of_one_process(found, models, name, target, microbatches):
    xmodel, inputs = models[name]
    one = xmodel.explain(**inputs, target=TARGETS[target], at=LATENTS[name])
    for rank in range(WORLD):
        relevance, latents, explained, logits = found[rank][name, target, microbatches]
        assert relevance.keys() == one.relevance.keys()
        assert all(close(relevance[n], one.relevance[n]) for n in relevance)
        assert list(latents) == list(one.latents) == list(LATENTS[name])
        assert all(close(latents[n], one.latents[n]) for n in latents)
        assert close(explained, one.target, one.output.logits)  # a difference of logits has their rounding
        assert (logits is None) == (rank < WORLD - 1)
    assert close(logits, one.output.logits)


@pytest.mark.slow
def test_other_sizes(found, models):
    one = models["bert"][0].explain(input_ids=longer()).relevance["input_ids"]
    assert all(close(found[rank]["longer"], one) for rank in range(WORLD))


@pytest.mark.slow
def test_a_process_reads_the_weights_of_its_stage_alone(found, models):
    one = models["llama"][0].explain(**models["llama"][1]).relevance["input_ids"]
    names = set(models["llama"][0].model.state_dict())
    (first, mine, read), (second, theirs, read_there) = (found[rank]["offloaded"] for rank in range(WORLD))
    assert close(first, one) and close(second, one)
    assert mine == read and theirs == read_there
    assert mine | theirs == names and not mine & theirs
    assert 0.3 < len(mine) / len(names) < 0.7


def test_stages_meet_between_blocks_and_hand_on_little(models):
    xmodel, inputs = models["llama"]
    sweeper = xmodel.specialization((), inputs)[0].sweeper(xmodel.ruleset, ())
    for count in (2, 3, 4):
        stages = split(sweeper, count)
        assert [len(s.departs) for s in stages] == [2] * (count - 1) + [0]  # the residual stream and the mask
        assert [s.arrives for s in stages[1:]] == [s.departs for s in stages[:-1]]
        names = [set(dict(s.graph_module.named_parameters())) for s in stages]
        assert sum(map(len, names)) == len(set().union(*names)) == len(list(xmodel.model.parameters()))


def test_more_stages_than_blocks(models):
    xmodel, inputs = models["llama"]
    with pytest.raises(InputError, match="Start fewer processes"):
        split(xmodel.specialization((), inputs)[0].sweeper(xmodel.ruleset, ()), 9)


def test_without_processes(models):
    with pytest.raises(InputError, match="init_process_group"):
        models["llama"][0].pipeline()
