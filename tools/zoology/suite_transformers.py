"""The transformers library's models: one tiny random instance per model class of its auto-mappings.

    python suite_transformers.py [--only SUBSTRING]      (builds them all, each in a child process)

Sizes come from tiny_configs.py, exceptions for single types from tiny_configs.toml.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import multiprocessing
import operator
import os
import tomllib
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from case import Built, Case, NotBuildable
from torch import Tensor, nn

TASKS = (
    "CAUSAL_LM",
    "MASKED_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SEQUENCE_CLASSIFICATION",
    "TOKEN_CLASSIFICATION",
    "QUESTION_ANSWERING",
    "IMAGE_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
    "IMAGE_TEXT_TO_TEXT",
    "SPEECH_SEQ_2_SEQ",
)
BATCH, TEXT, DECODER_TEXT = 2, 10, 6
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@functools.cache
def _table() -> dict[str, Any]:
    """Exceptions for single types: [config.TYPE], [inputs.TYPE], [not_buildable]."""
    with open(Path(__file__).with_name("tiny_configs.toml"), "rb") as file:
        return tomllib.load(file)


def _listed() -> Iterator[tuple[str, str, str]]:
    """Task, model type and class of every entry; a class only in its first task and under its own type."""
    from transformers.models.auto import modeling_auto

    seen: set[str] = set()
    for task in TASKS:
        types: dict[str, list[str]] = {}
        for model_type, names in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            for name in [names] if isinstance(names, str) else names:
                types.setdefault(name, []).append(model_type)
        for name, candidates in types.items():
            if name in seen:
                continue
            seen.add(name)
            # GPT2LMHeadModel also serves gpt-sw3: the type that the class is named after comes first.
            matching = [t for t in candidates if name.lower().startswith(t.replace("-", "").replace("_", "").lower())]
            yield task, (matching or candidates)[0], name


def cases() -> list[Case]:
    """One case per model class, the first class of each type before the others."""
    first, others, types = [], [], set()
    for task, model_type, name in _listed():
        build = functools.partial(_build, task, model_type, name)
        case = Case("transformers", task.lower().replace("_", "-"), f"{model_type} ({name})", build)
        (others if model_type in types else first).append(case)
        types.add(model_type)
    return first + others


def _class(name: str) -> type[nn.Module]:
    """The model class of this name."""
    import transformers

    try:
        return getattr(transformers, name)
    except AttributeError:  # some classes are exported by their module only
        from transformers.models.auto.modeling_auto import MODEL_NAMES_TO_MODULE  # type: ignore[attr-defined]

        return getattr(importlib.import_module(MODEL_NAMES_TO_MODULE[name]), name)


def _build(task: str, model_type: str, name: str) -> Built:
    """One tiny model with inputs; its forward has been run."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    table = _table()
    for key in (name, model_type):
        if key in table["not_buildable"]:
            raise NotBuildable(table["not_buildable"][key])
    torch.manual_seed(0)
    cls = _class(name)
    config = _config(cls, task, model_type)
    model = cls(config).eval().float()
    _enliven(model)
    inputs = _inputs(model, config, task, model_type, name)
    with torch.no_grad():
        hooks = [m.register_forward_pre_hook(_settle) for m in model.modules() if isinstance(m, BATCH_NORMS)]
        if hooks:
            model(**inputs)
        for hook in hooks:
            hook.remove()
        output = model(**inputs)
    first = next(v for v in output.values() if isinstance(v, Tensor) and v.is_floating_point())
    if not torch.isfinite(first).all():
        raise ValueError("the output is not finite")
    return Built(model, inputs)


def _enliven(model: nn.Module) -> None:
    """Weights with which every branch matters, instead of those at the start of training.

    Gates and biases that start at zero would hide a branch; weights of standard deviation 0.02 make attention uniform,
    and let the signal of a small deep model fade out.
    """
    for parameter in model.parameters():
        if parameter.numel() and not parameter.detach().any():
            nn.init.normal_(parameter, std=0.1)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            _strengthen(module.weight, module.weight[:1].numel(), 1.0 if isinstance(module, nn.Linear) else 2.0)
        elif "expert" in name:
            for parameter in module.parameters(recurse=False):
                if parameter.ndim == 3:  # one matrix per expert
                    _strengthen(parameter, parameter.shape[-1], 1.0)


def _settle(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Set a norm's statistics to those of these inputs: the statistics of a fresh norm make deep signals vanish."""
    places = [d for d in range(args[0].ndim) if d != 1]
    variance = args[0].var(places, unbiased=False)
    norm.running_mean.copy_(args[0].mean(places))
    norm.running_var.copy_(variance.clamp(min=0.1 * variance.mean().item() + 1e-6))  # dead channels stay small
    if norm.affine and norm.weight.abs().mean() < 0.5:
        nn.init.uniform_(norm.weight, 0.5, 1.5)


def _strengthen(weight: Tensor, fan_in: int, gain: float) -> None:
    """Scales weights up to a variance of gain / fan_in."""
    with torch.no_grad():
        deviation, wanted = weight.std(unbiased=False).item(), (gain / max(fan_in, 1)) ** 0.5
        if 0 < deviation < wanted:
            weight.mul_(wanted / deviation)


def _config(cls: type[nn.Module], task: str, model_type: str) -> Any:
    """The tiny configuration of a model class."""
    from tiny_configs import Shrinker
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = getattr(cls, "config_class", None) or CONFIG_MAPPING[model_type]
    fields_set: dict[str, Any] = {}
    fields = getattr(config_class, "__dataclass_fields__", {})
    if task == "CAUSAL_LM" and "is_decoder" in fields:
        fields_set["is_decoder"] = True  # BERT and its kin attend to both sides otherwise
    if task == "SEQUENCE_CLASSIFICATION":
        fields_set["pad_token_id"] = 0  # where the last word of each row of a batch is looked for
        if "text_config" in fields:
            fields_set["text_config"] = {"pad_token_id": 0}
    if task == "QUESTION_ANSWERING":
        fields_set["num_labels"] = 2
    return Shrinker(_table()["config"]).shrink(config_class, fields_set)


def _inputs(model: nn.Module, config: Any, task: str, model_type: str, name: str) -> dict[str, Any]:
    """Example inputs of a model."""
    table = _table()["inputs"]
    entry = table.get(name, table.get(model_type))
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {}
    if entry is not None:
        inputs = {key: _tensor(value, config) for key, value in entry.items()}
        if "pixel_values" in inputs and "input_ids" in accepted and "input_ids" not in inputs:
            inputs = _image_and_text(model, config, inputs)
        if "input_features" in inputs and "input_ids" in accepted and "input_ids" not in inputs:
            inputs = _sound_and_text(model, config, inputs)
    elif "pixel_values" in accepted and "input_ids" in accepted:
        inputs = _image_and_text(model, config, {})
    elif "pixel_values" in accepted:
        inputs["pixel_values"] = _pixels(config)
    elif "input_features" in accepted and _method(model, "get_audio_features"):
        inputs = _sound_and_text(model, config, {})
    elif "input_features" in accepted and "input_ids" not in accepted:
        inputs["input_features"] = torch.randn(BATCH, 16, 32)
        if "decoder_input_ids" in accepted:
            inputs["decoder_input_ids"] = _ids(config, DECODER_TEXT)
    elif "input_values" in accepted and "input_ids" not in accepted:
        inputs["input_values"] = torch.randn(BATCH, 1600)
        if "decoder_input_ids" in accepted:
            inputs["decoder_input_ids"] = _ids(config, DECODER_TEXT)
    else:
        inputs["input_ids"] = _ids(config, TEXT)
        if task in ("SEQUENCE_CLASSIFICATION", "QUESTION_ANSWERING"):
            end = getattr(config, "eos_token_id", None)
            if task == "SEQUENCE_CLASSIFICATION" and "decoder_input_ids" in accepted and end is not None:
                inputs["input_ids"][:, -1] = end  # BART and its kin classify at the end of the sentence
        elif "decoder_input_ids" in accepted and getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = _ids(config, DECODER_TEXT)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    return inputs


def _ids(config: Any, length: int, batch: int = BATCH) -> Tensor:
    """Random words that are no special tokens."""
    from tiny_configs import TEXT_IDS

    return torch.randint(*TEXT_IDS, (batch, length))


def _pixels(config: Any, batch: int = BATCH) -> Tensor:
    """A batch of random images of the size that the configuration names."""
    configs = (config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None))
    size = next((s for p in configs if (s := getattr(p, "image_size", None))), 64)
    channels = next((c for p in configs if isinstance(c := getattr(p, "num_channels", None), int)), 3)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(batch, channels, height, width)


def _tensor(value: Any, config: Any) -> Any:
    """A tensor from its description in the table: a shape, or a table with one of ids, ints, floats, ones."""
    if isinstance(value, list):
        return torch.randn(*value)
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "ids":
        return _ids(config, content[-1], content[0])
    if kind == "ones":
        return torch.ones(*content, dtype=torch.long)
    if kind == "below":
        return torch.randint(0, content[0], tuple(content[1:]))
    if kind == "boxes":  # left, top, right and bottom of words on a page
        corner = torch.randint(0, 40, (*content, 2))
        return torch.cat([corner, corner + torch.randint(1, 20, (*content, 2))], dim=-1)
    if kind == "page":  # the same as fractions of the page
        return torch.sort(torch.rand(*content, 4).reshape(*content, 2, 2), dim=-2).values.flatten(-2)
    if kind == "grid":  # columns and rows of an image's patches
        batch, rows, columns = content
        return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1).expand(batch, -1, -1)
    if kind == "flags":
        return torch.ones(*content, dtype=torch.bool)
    if kind == "first":  # ones at the first places, zeros after them
        batch, length, count = content
        return (torch.arange(length) < count).long().expand(batch, -1)
    if kind == "patches":  # row, column and pixels of each patch
        batch, count, width = content
        place = torch.arange(1, count + 1).expand(batch, -1)[..., None]
        return torch.cat([place // 4, place % 4, torch.randn(batch, count, width)], dim=-1)
    if kind == "placed":
        name, count = content
        return _placed(_ids(config, TEXT), operator.attrgetter(name)(config), count)
    return torch.tensor(content)


def _placed(ids: Tensor, token: int, count: int) -> Tensor:
    """The text with this many placeholders after its second word."""
    return torch.cat([ids[:, :2], torch.full((len(ids), count), token), ids[:, 2:]], dim=1)


def _image_and_text(model: nn.Module, config: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Images, unless they are given, and a text with as many placeholders as the model makes image features."""
    vision = getattr(config, "vision_config", None) or config
    get = _method(model, "get_image_features")
    accepted = set(inspect.signature(model.forward).parameters)
    wanted = accepted | (set(inspect.signature(get).parameters) if get else set())
    patch = getattr(vision, "patch_size", 8)
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    if "pixel_values" in inputs:
        pass
    elif "image_grid_thw" in wanted:
        side = 4
        time = getattr(vision, "temporal_patch_size", 1)
        inputs["pixel_values"] = torch.randn(BATCH * side * side, 3 * time * patch**2)
        inputs["image_grid_thw"] = torch.tensor([[1, side, side]] * BATCH)
    elif "spatial_shapes" in wanted:
        inputs["pixel_values"] = torch.randn(BATCH, 16, 3 * patch**2)
        inputs["pixel_attention_mask"] = torch.ones(BATCH, 16, dtype=torch.long)
        inputs["spatial_shapes"] = torch.tensor([[4, 4]] * BATCH)
    else:
        inputs["pixel_values"] = _pixels(config)
        if "image_sizes" in wanted:
            inputs["image_sizes"] = torch.tensor([list(inputs["pixel_values"].shape[-2:])] * BATCH)
    token = next(
        (t for n in ("image_token_id", "image_token_index") if (t := getattr(config, n, None)) is not None), None
    )
    ids = _ids(config, TEXT)
    if get is not None and token is not None:
        count = _feature_count(get, {k: v for k, v in inputs.items() if k in inspect.signature(get).parameters})
        ids = _placed(ids, token, count // BATCH)
    inputs = {"input_ids": ids, **inputs}
    if "mm_token_type_ids" in accepted and token is not None:
        inputs["mm_token_type_ids"] = (ids == token).long()
    return inputs


def _method(model: nn.Module, name: str) -> Any:
    """This method of the model's body, which names its arguments, or of the model; None where neither has it."""
    return getattr(getattr(model, "model", None), name, None) or getattr(model, name, None)


def _sound_and_text(model: nn.Module, config: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Spectrograms, unless they are given, and a text with as many placeholders as the model makes features of them."""
    get = _method(model, "get_audio_features")
    accepted = inspect.signature(get).parameters
    inputs.setdefault("input_features", torch.randn(BATCH, 16, 32))
    if "input_features_mask" in accepted:
        inputs.setdefault("input_features_mask", torch.ones(BATCH, 32, dtype=torch.long))
    token = next(t for n in ("audio_token_id", "audio_token_index") if (t := getattr(config, n, None)) is not None)
    count = _feature_count(get, {k: v for k, v in inputs.items() if k in accepted})
    return {"input_ids": _placed(_ids(config, TEXT), token, count // BATCH), **inputs}


def _feature_count(get: Any, inputs: dict[str, Any]) -> int:
    """Number of positions in the text for the images of a batch."""
    with torch.no_grad():
        output = get(**inputs)
    pooled = getattr(output, "pooler_output", None)
    output = getattr(output, "last_hidden_state", output) if pooled is None else pooled
    if isinstance(output, (list, tuple)):
        return sum(f.reshape(-1, f.shape[-1]).shape[0] for f in output)
    return output.reshape(-1, output.shape[-1]).shape[0]


def _attempt(case: Case, send: Any) -> None:
    """Builds one case in the child and tells its result."""
    torch.set_num_threads(1)
    try:
        built = case.build()
        send.send(("built", str(sum(p.numel() for p in built.model.parameters()))))
    except NotBuildable as error:
        send.send(("not buildable", str(error)))
    except BaseException as error:
        line = (str(error).strip().splitlines() or [""])[-1]
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        send.send(("failed", f"{type(error).__name__}: {line[:200]} [{place}]"))


def main() -> None:
    """Builds all cases, each in a forked child, and prints failures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--only", default="", help="only cases whose key contains this, or one of these with commas between"
    )
    parser.add_argument("--large", type=int, default=1_000_000, help="name models of more parameters than this")
    options = parser.parse_args()
    import transformers.modeling_utils  # noqa: F401  (once, in the parent, for all children)

    words = options.only.lower().split(",")
    chosen = [c for c in cases() if any(part in c.key.lower() for part in words)]
    counts: dict[str, int] = {}
    fork = multiprocessing.get_context("fork")
    for case in chosen:
        receive, send = fork.Pipe(duplex=False)
        child = fork.Process(target=_attempt, args=(case, send))
        child.start()
        send.close()
        try:
            status, text = receive.recv() if receive.poll(60) else ("failed", "timeout after 60 s")
        except EOFError:
            status, text = "failed", "the process died"
        child.kill()
        child.join()
        counts[status] = counts.get(status, 0) + 1
        if status != "built":
            print(f"{status}: {case.key}: {text}", flush=True)
        elif int(text) > options.large:
            print(f"large: {case.key}: {int(text):,} parameters", flush=True)
    print(f"{len(chosen)} classes: " + ", ".join(f"{n} {s}" for s, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
