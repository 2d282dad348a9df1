"""Command line: explain a text, report on the graph, verify, evaluate."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

import lrp_fx
from lrp_fx.capture.conventions import is_encoder_decoder
from lrp_fx.cli.demo import demos, load_demo
from lrp_fx.cli.evaluate import results_table, text_task
from lrp_fx.errors import LrpError, MissingExtraError
from lrp_fx.evaluate import METHODS, evaluate, find_methods
from lrp_fx.explain.target_types import NAMED
from lrp_fx.extras import require
from lrp_fx.files import replacing
from lrp_fx.rules.ruleset import available

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Layer-wise Relevance Propagation for any PyTorch model."
)

Model = Annotated[str, typer.Argument(help="folder of a saved Hugging Face model, or the name of a bundled demo")]
Text = Annotated[str | None, typer.Argument(help="the text to explain (a demo has one of its own)")]
Rules = Annotated[str, typer.Option(help="rule set: a name (see `lrp-fx rules`) or a TOML file")]
Class = Annotated[int | None, typer.Option(help="class or token id to explain (default: the model's own answer)")]
What = Annotated[
    str | None,
    typer.Option(
        help=f"class or token id to explain, or of the model's own answer: {', '.join(NAMED)} (default logit)"
    ),
]
Why = Annotated[str | None, typer.Option(help="a node or a module path, or a glob: which patterns match, and why not")]
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")

Precision = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16")]


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer and, for a classifier, the label of every class."""

    name: str
    model: torch.nn.Module
    tokenizer: Any
    labels: list[str] | None
    title: str
    text: str

    def encode(self, text: str) -> tuple[dict[str, Any], Any]:
        """(model inputs, the tokenizer's encoding) of one text; a decoder's input is its start token.

        Raises:
            LrpError: for a text without tokens, or with more than the tokenizer's maximum.
        """
        encoding = self.tokenizer(text, return_tensors="pt")
        length = encoding["input_ids"].shape[1]
        if not 0 < length <= self.tokenizer.model_max_length:
            raise LrpError(f"the text has {length} tokens: give 1 to {self.tokenizer.model_max_length}")
        inputs = {k: encoding[k] for k in ("input_ids", "attention_mask") if k in encoding}
        if is_encoder_decoder(self.model):
            start = getattr(self.model.config, "decoder_start_token_id", None)
            inputs["decoder_input_ids"] = torch.tensor([[start or 0]])
        return inputs, encoding


def load(name: str, text: str | None, precision: str) -> Loaded:
    """A demo by name, or a model saved in a local folder."""
    dtype = getattr(torch, precision, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise LrpError(f"unknown precision {precision!r}: use float32, float64, bfloat16 or float16")
    _quiet()
    if name in demos():
        demo = demos()[name]
        classifier, words, names = load_demo(name)
        return Loaded(name, classifier.to(dtype), words, names, demo.title, text or demo.text)
    if not (Path(name) / "config.json").is_file():
        raise LrpError(
            f"no model '{name}': give the folder of a saved Hugging Face model (with a config.json), "
            f"or one of the demos: {', '.join(f'{d.name} ({d.install})' for d in demos().values())}"
        )
    return _load_folder(Path(name).resolve(), text or "", dtype)


def _load_folder(folder: Path, text: str, dtype: torch.dtype) -> Loaded:
    transformers: Any = require("transformers", "transformers")
    if not any(
        path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)
    ):  # (transformers would return a tokenizer without a vocabulary)
        raise LrpError(f"there is no tokenizer in {folder}: save it there with tokenizer.save_pretrained(folder)")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        config = transformers.AutoConfig.from_pretrained(folder)
        cls = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
        model = cls.from_pretrained(folder).eval().to(dtype)
    except Exception as error:  # errors of several libraries
        raise LrpError(f"the model in {folder} cannot be loaded: {error}") from error
    classes: dict[int, str] = getattr(model.config, "id2label", None) or {}
    labels = [str(classes[i]) for i in sorted(classes)] if "Classification" in cls.__name__ else None
    return Loaded(folder.name, model, tokenizer, labels, f"What did {folder.name} base its answer on?", text)


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """Print errors of lrp_fx as one message, and exit with code 1."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are local folders
    try:
        yield
    except (LrpError, OSError) as error:
        kind = "missing package" if isinstance(error, MissingExtraError) else type(error).__name__
        Console(stderr=True).print(f"[bold red]{kind}[/]: {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error


def _quiet() -> None:
    """Disable the progress bar of weight loading, which would break up the output."""
    with contextlib.suppress(LrpError, AttributeError):
        transformers: Any = require("transformers", "transformers")
        transformers.utils.logging.disable_progress_bar()


@app.command()
def explain(
    model: Model,
    text: Text = None,
    html: Annotated[Path | None, typer.Option(help="write the heatmap to this HTML file")] = None,
    target: What = None,
    rules: Rules = "default",
    pieces: Annotated[
        bool, typer.Option("--pieces/--words", help="show the tokenizer's pieces, or whole words")
    ] = False,
    precision: Precision = "float32",
) -> None:
    """Show which words made the model answer as it did."""
    with _clear_errors():
        console = Console()
        with console.status("loading the model"):
            loaded = load(model, text, precision)
        if not loaded.text.strip():
            raise LrpError("there is nothing to explain: give a text")
        xmodel = lrp_fx.convert(loaded.model, rules=rules, tokenizer=loaded.tokenizer, labels=loaded.labels)
        with console.status("capturing and rewriting the graph, then one backward sweep"):
            attribution = xmodel.explain(loaded.text, target=_target(target))
            attribution.ledger  # noqa: B018  (computed now, so that its notes are shown)
        console.print(f"\n{escape(loaded.title)}\n", highlight=False)
        attribution.show(words=not pieces, console=console)
        if html is not None:
            place = attribution.save_html(html, title=loaded.title, facts={"model": loaded.name}, words=not pieces)
            console.print(f"heatmap: {place.resolve()}", highlight=False, soft_wrap=True)


def _target(option: str | None) -> int | str | None:
    """A class by its number, or the name of a target."""
    return int(option) if option is not None and re.fullmatch(r"-?\d+", option) else option


@app.command()
def view(
    files: Annotated[list[Path], typer.Argument(help="files of saved results (.safetensors, .json.gz)")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the page to write")] = Path("view.html"),
    title: Annotated[str | None, typer.Option(help="heading of the page")] = None,
) -> None:
    """Write saved results, several side by side, to one HTML page that needs no network."""
    with _clear_errors():
        results = [lrp_fx.load_result(file) for file in files]
        names = [file.name.removesuffix(".gz").rpartition(".")[0] for file in files]
        page = lrp_fx.view(*results, path=output, title=title, names=names)
        Console().print(f"page: {page.resolve()}", highlight=False, soft_wrap=True)


@app.command()
def report(
    model: Model, text: Text = None, rules: Rules = "default", precision: Precision = "float32", why: Why = None
) -> None:
    """Show role and rule of every node of the model's graph; with --why, the patterns and conditions of some nodes."""
    with _clear_errors():
        loaded = load(model, text, precision)
        inputs, _ = loaded.encode(loaded.text or "a b c")
        summary = lrp_fx.convert(loaded.model, **inputs, rules=rules).report()
        (summary if why is None else summary.why(why)).print()


@app.command()
def verify(
    model: Model, text: Text = None, target: What = None, rules: Rules = "default", precision: Precision = "float64"
) -> None:
    """Check outputs, conservation at every node and finiteness; exit code 1 if a check fails."""
    with _clear_errors():
        loaded = load(model, text, precision)
        inputs, _ = loaded.encode(loaded.text or "a b c")
        result = lrp_fx.convert(loaded.model, rules=rules).verify(**inputs, target=_target(target), show=True)
    if not result.passed:
        raise typer.Exit(1)


@app.command("eval")
def eval_command(
    model: Model,
    file: Annotated[Path | None, typer.Argument(help="a file with a text per line (a demo has one of its own)")] = None,
    text: Annotated[list[str] | None, typer.Option(help="a text; may be given several times")] = None,
    methods: Annotated[str, typer.Option(help="comma-separated: rule sets (names or TOML files) and baselines")] = "",
    target: Class = None,
    steps: Annotated[int, typer.Option(min=1, help="steps of the perturbation curves")] = 10,
    csv: Annotated[Path | None, typer.Option(help="write values, curves and cost as CSV to this folder")] = None,
    plot: Annotated[Path | None, typer.Option(help="write curves and means to this image file")] = None,
    precision: Precision = "float32",
) -> None:
    """Measure how faithful rule sets and baselines are on a model and some texts."""
    with _clear_errors():
        loaded = load(model, None, precision)
        lines = (file.read_text().splitlines() if file is not None else []) + (text or [])
        texts = [line for line in lines if line.strip()] or ([loaded.text] if loaded.text else [])
        if not texts:
            raise LrpError("there is nothing to evaluate on: give a file with a text per line, or --text")
        task = text_task(loaded.name, loaded.model, loaded.tokenizer, texts, target)
        chosen = find_methods(methods.split(",") if methods else METHODS)
        results = evaluate(task, chosen, steps=steps)
        console = Console()
        console.print(f"{len(texts)} texts; higher is better, for deletion lower\n", highlight=False)
        console.print(results_table(results))
        if csv is not None:
            results.save(csv)
        if plot is not None:
            with replacing(plot) as beside:
                results.plot().savefig(beside)


@app.command("rules")
def rules_command() -> None:
    """List the shipped rule sets."""
    for name in available():
        ruleset = lrp_fx.RuleSet.load(name)
        shown = ", ".join(f"{role}: {rule}" for role, rule in ruleset.rules.items())
        Console().print(f"[bold]{name}[/]  {shown}", highlight=False)
