"""Relevance graphs as files: the same relevance, at sizes they were not made with, without lrp_fx or transformers."""

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers as tf
from models import GQA, few
from torch._inductor.utils import run_and_get_code

import lrp_fx
from lrp_fx.errors import InputError, LrpError, WeightError


def expected(xmodel, inputs, target):
    return xmodel.explain(**inputs, target=target).relevance["input_ids"]


def close(found, wanted):
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@pytest.fixture(scope="module")
def case():
    """A Mixtral-like model of one layer in float32, converted at (2, 7), and inputs of another size."""
    torch.manual_seed(0)
    config = tf.MixtralConfig(**{**GQA, "num_hidden_layers": 1}, num_local_experts=4)
    model = tf.MixtralForCausalLM(config).eval()
    xmodel = lrp_fx.convert(model, input_ids=torch.randint(3, 99, (2, 7)), rules="attnlrp")
    others = [{"input_ids": torch.randint(3, 99, size)} for size in ((3, 11), (1, 5))]
    return xmodel, xmodel.lower(target=0), others


class Small(torch.nn.Module):
    """One causal attention layer over tokens: quick to compile."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = torch.nn.Embedding(100, 16), torch.nn.RMSNorm(16)
        self.qkv, self.out, self.head = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16), torch.nn.Linear(16, 100)

    def forward(self, input_ids):
        h = self.embed(input_ids)
        q, k, v = self.qkv(self.norm(h)).view(*h.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(h + torch.nn.functional.silu(self.out(mixed.transpose(1, 2).flatten(2))))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    xmodel = lrp_fx.convert(Small().eval(), input_ids=torch.randint(3, 99, (2, 7)), rules="attnlrp")
    return xmodel, [{"input_ids": torch.randint(3, 99, size)} for size in ((3, 11), (1, 5))]


def in_another_process(folder, code):
    """Run code in a process that can import torch, and neither lrp_fx nor transformers."""
    header = """
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("lrp_fx", "transformers"):
                    raise ImportError(name)
        sys.meta_path.insert(0, Refuse())
        import torch
        torch.set_num_threads(1)
        cases = torch.load("cases.pt")
        def close(found, wanted):
            assert float((found - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    """
    script = folder / "run.py"
    script.write_text(textwrap.dedent(header) + textwrap.dedent(code))
    done = subprocess.run([sys.executable, "-W", "ignore", str(script)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def write_cases(folder, xmodel, others):
    target = [torch.full((len(o["input_ids"]),), 5) for o in others]
    cases = [(o["input_ids"], t, expected(xmodel, o, t)) for o, t in zip(others, target, strict=True)]
    torch.save(cases, folder / "cases.pt")


@pytest.mark.slow
def test_a_saved_graph_explains_without_the_model(case, tmp_path):
    xmodel, lowered, others = case
    lowered.save(tmp_path / "x.pt2")
    loaded = lrp_fx.load(tmp_path / "x.pt2")
    for inputs in (others[0], {"input_ids": torch.randint(3, 99, (4, 5))}):
        found = loaded(**inputs, target=5)
        close(found.relevance["input_ids"], expected(xmodel, inputs, 5))
        assert found.ruleset == "attnlrp"
    try:  # the model asks whether there is one sample: what the graph at hand refuses, that of the file refuses
        close(lowered(**others[1], target=5).target, loaded(**others[1], target=5).target)
    except InputError as refused:
        with pytest.raises(InputError, match=re.escape(str(refused))):
            loaded(**others[1], target=5)
    with pytest.raises(InputError, match="takes input_ids, target"):
        loaded(input_ids=others[0]["input_ids"])
    with pytest.raises(LrpError, match="no ledger"):
        _ = found.ledger
    write_cases(tmp_path, xmodel, others)
    in_another_process(
        tmp_path,
        """
        module = torch.export.load("x.pt2").module()
        for ids, target, wanted in cases:
            with torch.no_grad():
                close(module(ids, target)["relevance"]["input_ids"], wanted)
        """,
    )


@pytest.fixture(scope="module")
def packaged(small, tmp_path_factory):
    """A folder with a package."""
    folder = tmp_path_factory.mktemp("packaged")
    small[0].package(folder / "x_aoti.pt2", target=0)
    return folder


@pytest.mark.slow
def test_a_package_runs_with_torch_alone(small, packaged):
    xmodel, others = small
    write_cases(packaged, xmodel, others)
    in_another_process(
        packaged,
        """
        module = torch._inductor.aoti_load_package("x_aoti.pt2")
        for ids, target, wanted in cases:
            close(module(ids, target)["relevance"]["input_ids"], wanted)
        """,
    )


@pytest.mark.slow
def test_a_package_runs_from_the_programme_in_the_docs(small, packaged):
    """It explains three samples of eleven tokens; the package was made with two of seven."""
    xmodel, _ = small
    text = (Path(__file__).parents[2] / "docs" / "lowering.md").read_text()
    (packaged / "explain.cpp").write_text(text.partition("```cpp\n")[2].partition("```")[0])
    build = text.partition("```cpp\n")[2].partition("```bash\n")[2].partition("```")[0]
    script = build.replace("python -c", f"{shlex.quote(sys.executable)} -c") + "./explain\n"
    subprocess.run(["bash", "-euc", script], cwd=packaged, check=True, capture_output=True)
    ids = torch.arange(5, 16)[None].repeat(3, 1)
    close(torch.load(packaged / "relevance.pt"), expected(xmodel, {"input_ids": ids}, 5))


@pytest.mark.slow
def test_an_onnx_model_explains_in_onnxruntime(case, tmp_path):
    xmodel, lowered, others = case
    lowered.to_onnx(tmp_path / "x.onnx")
    write_cases(tmp_path, xmodel, others)
    in_another_process(
        tmp_path,
        """
        import onnxruntime
        session = onnxruntime.InferenceSession("x.onnx")
        assert [i.name for i in session.get_inputs()] == ["input_ids", "target"]
        for ids, target, wanted in cases:
            (found,) = session.run(["relevance.input_ids"], {"input_ids": ids.numpy(), "target": target.numpy()})
            close(torch.from_numpy(found), wanted)
        """,
    )


@pytest.mark.slow
def test_images_ship_as_onnx_too(tmp_path):
    torch.manual_seed(0)
    import onnxruntime

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.MaxPool2d(2), torch.nn.Conv2d(4, 6, 3, groups=2), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(24, 5),
    ).eval()  # fmt: skip
    xmodel = lrp_fx.convert(model, torch.randn(2, 3, 16, 16), rules="attnlrp")
    xmodel.to_onnx(tmp_path / "x.onnx", target=0)
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"))
    x = torch.randn(3, 3, 16, 16)
    (found,) = session.run(["relevance.input"], {"input": x.numpy(), "target": torch.full((3,), 2).numpy()})
    close(torch.from_numpy(found), xmodel.explain(x, target=2).relevance["input"])


@pytest.mark.slow
def test_a_compiled_graph_gives_the_eager_relevance(small):
    xmodel, others = small
    inputs = others[0]
    eager = expected(xmodel, inputs, 5)  # before: explain() then uses what was compiled
    compiled = xmodel.compile(target=0)
    close(compiled(**inputs, target=5).relevance["input_ids"], eager)
    assert torch.equal(
        xmodel.explain(**inputs, target=5).relevance["input_ids"], compiled(**inputs, target=5).relevance["input_ids"]
    )
    xmodel.current.compiled.clear()


@pytest.mark.slow
def test_compiled_convolutions_leave_weights_and_cotangents_as_they_lie():
    """Inductor would lay out the weights anew (channels last) at every call, and convolution_backward its inputs."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, stride=2), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(16 * 7 * 7, 5),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 16, 16)
    xmodel = lrp_fx.convert(model, x, rules="attnlrp")
    eager = xmodel.explain(x, target=2).relevance["input"]
    compiled = xmodel.compile(x, target=2, mode="default")
    found, (code,) = run_and_get_code(compiled, x, target=2)
    close(found.relevance["input"], eager)
    assert "convolution_backward" in code
    assert "(72, 1, 24, 8)" not in code, "strides of the second weight, channels last"


def test_a_file_that_is_no_graph_is_named(tmp_path):
    (tmp_path / "x.pt2").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no saved relevance graph"):
        lrp_fx.load(tmp_path / "x.pt2")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A LLaMA-like model with tied embeddings, its checkpoint, and its graph with weights inside and by reference."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("shared")
    config = tf.LlamaConfig(
        vocab_size=300, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = tf.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder / "one")
    model.save_pretrained(folder / "several", max_shard_size="200KB")
    xmodel = lrp_fx.convert(model, input_ids=torch.randint(3, 99, (2, 7)), rules="attnlrp")
    lowered = xmodel.lower(target=0)
    lowered.save(folder / "inside.pt2")
    lowered.save(folder / "reference.pt2", "reference", model)
    return folder, model, lrp_fx.load(folder / "inside.pt2")


def forms_of(folder, model):
    shards = sorted((folder / "several").glob("*.safetensors"))
    assert len(shards) > 2
    state = model.state_dict()
    return {
        "a file": folder / "one" / "model.safetensors",
        "a folder": folder / "one",
        "a folder with an index": folder / "several",
        "an index": folder / "several" / "model.safetensors.index.json",
        "files": [str(s) for s in shards],
        "tensors": state,
        "files by name": dict.fromkeys(set(state) - {"lm_head.weight"}, folder / "one" / "model.safetensors"),
    }


FORMS = ["a file", "a folder", "a folder with an index", "an index", "files", "tensors", "files by name"]


@pytest.mark.parametrize("form", few(FORMS, "a folder with an index", "tensors"))
def test_weights_by_reference_give_the_very_same_relevance(form, shared):
    folder, model, inside = shared
    loaded = lrp_fx.load(folder / "reference.pt2", weights=forms_of(folder, model)[form])
    for size in ((3, 11), (4, 5)):
        ids = torch.randint(3, 99, size)
        found, wanted = loaded(input_ids=ids, target=5), inside(input_ids=ids, target=5)
        assert torch.equal(found.relevance["input_ids"], wanted.relevance["input_ids"])
        assert torch.equal(found.target, wanted.target) and bool(found.target.isfinite().all())


def test_a_graph_that_refers_to_its_weights_is_small(shared):
    folder, model, _ = shared
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    sizes = {name: (folder / f"{name}.pt2").stat().st_size for name in ("inside", "reference")}
    assert sizes["inside"] - sizes["reference"] > 0.99 * held
    ids = torch.randint(3, 99, (2, 4))
    alone = torch.export.load(folder / "reference.pt2").module()  # without the checkpoint: nothing that looks right
    assert bool(alone(ids, torch.zeros(2, dtype=torch.long))["target"].isnan().all())


def test_saving_by_reference_is_a_choice_of_the_converted_model(small, tmp_path):
    xmodel, others = small
    xmodel.save(tmp_path / "x.pt2", target=0, weights="reference")
    loaded = lrp_fx.load(tmp_path / "x.pt2", weights=dict(xmodel.model.state_dict()))
    close(loaded(**others[0], target=5).relevance["input_ids"], expected(xmodel, others[0], 5))
    with pytest.raises(ValueError, match="choose"):
        xmodel.save(tmp_path / "x.pt2", weights="elsewhere")


def _renamed(state):
    return {k.replace("layers.1.mlp", "layers.1.ffn"): v for k, v in state.items()}


def _without_either_name(state):
    return {k: v for k, v in state.items() if k not in ("lm_head.weight", "model.embed_tokens.weight")}


WRONG = {
    "other names": (_renamed, "have no model.layers.1.mlp.gate_proj.weight; no model.layers.1.mlp.up_proj.weight"),
    "tied weights under no name": (_without_either_name, "have no model.embed_tokens.weight or lm_head.weight"),
    "none": (lambda state: {}, "They have none"),
    "another precision": (
        lambda state: {k: v.bfloat16() for k, v in state.items()},
        r"norm.weight is bfloat16 \(128,\), not float32 \(128,\)",
    ),
    "another size": (
        lambda state: {k: v[:64] if k == "model.norm.weight" else v for k, v in state.items()},
        r"model.norm.weight is float32 \(64,\), not float32 \(128,\)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_weights_that_do_not_fit_are_named(what, shared):
    folder, model, _ = shared
    change, message = WRONG[what]
    with pytest.raises(WeightError, match=message):
        lrp_fx.load(folder / "reference.pt2", weights=change(model.state_dict()))


def test_files_that_are_no_checkpoint_are_named(shared, tmp_path):
    folder, model, _ = shared
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    reference = folder / "reference.pt2"
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        lrp_fx.load(reference, weights=tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        lrp_fx.load(reference, weights=tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match=r"has neither model.safetensors.index.json nor model.safetensors"):
        lrp_fx.load(reference, weights=tmp_path)
    with pytest.raises(WeightError, match="has no model"):
        lrp_fx.load(reference, weights=dict.fromkeys(model.state_dict(), next((folder / "several").glob("*-00001-*"))))
    with pytest.raises(InputError, match="refers to a checkpoint"):
        lrp_fx.load(reference)
    with pytest.raises(InputError, match="holds its weights"):
        lrp_fx.load(folder / "inside.pt2", weights=folder / "one")
