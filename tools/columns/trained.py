"""Columns on the models that `tools/train` trains."""

from __future__ import annotations

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from training import images, networks, prose, questions

from columns import weights
from lrp_fx.evaluate.task import Features, Patches, Task, Tokens


def _language(name: str, kind: type[transformers.PreTrainedModel]) -> Task:
    model = weights.load(name, kind)
    windows = load_file(weights.folder("prose") / "windows.safetensors")["test"].long()
    chosen = torch.randperm(len(windows), generator=torch.Generator().manual_seed(weights.SEED))[: weights.SAMPLES]
    inputs = {"input_ids": windows[chosen]}
    eligible = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    eligible[:, 0] = False  # the start token
    target = weights.logits(model, inputs)[:, -1].argmax(-1)
    return Task(name, model, inputs, target, Tokens(prose.UNKNOWN), eligible)


def lm() -> Task:
    """LLaMA-like language model: 64 tokens of held-out documents; its own next token is explained.

    The unknown token replaces removed tokens; it also replaced some tokens in training.
    """
    return _language("lm", transformers.LlamaForCausalLM)


def moe() -> Task:
    """Mixtral-like language model: as `lm`."""
    return _language("moe", transformers.MixtralForCausalLM)


def qa(samples: int = weights.SAMPLES) -> Task:
    """Extractive question answering about entities never seen: the logit of the right code, where the model gives it.

    The decoder is given the beginning of the answer, up to that code. Features are the words of question and context;
    annotated is the word that is the answer.
    """
    model = weights.load("qa", transformers.T5ForConditionalGeneration)
    data = questions.batch(2 * samples, np.random.default_rng(weights.SEED), True)
    length = int(data["mask"].sum(1).max())
    ids, mask, answer = data["ids"][:, :length], data["mask"][:, :length], data["answer"][:, -1]
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": questions.begun(data["answer"])}
    right = (weights.logits(model, inputs)[:, -1].argmax(-1) == answer).nonzero()[:samples, 0]
    eligible = (ids != questions.PAD) & (ids != questions.END)
    annotated = nn.functional.one_hot(data["position"], length).bool()
    inputs = {name: value[right] for name, value in inputs.items()}
    return Task("qa", model, inputs, answer[right], Tokens(questions.PAD), eligible[right], annotated[right])


def _digits(name: str, model: nn.Module, features: Features, samples: int) -> Task:
    pictures, _ = images.digits()
    inputs = {features.input: pictures.roll(-images.TRAIN, 0)[:samples].clone()}
    return Task(name, model, inputs, weights.logits(model, inputs).argmax(-1), features)


HELD_OUT = 400  #: digits that were not trained on; where more samples are asked for, digits of the training follow


def vit(samples: int = HELD_OUT) -> Task:
    """ViT on held-out digits, its own answer; patches of four pixels, removed by background."""
    model = weights.load("vit", transformers.ViTForImageClassification)
    return _digits("vit", model, Patches(4, (0.0,), "pixel_values"), samples)


def cnn(samples: int = HELD_OUT) -> Task:
    """CNN with batch normalization on the same digits, in the same patches."""
    model = networks.CNN()
    model.load_state_dict(weights.state("cnn"))
    return _digits("cnn", model.eval(), Patches(4, (0.0,)), samples)
