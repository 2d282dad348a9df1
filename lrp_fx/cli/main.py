"""Command line: explain, view, report on the graph, verify, measure, export."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import lrp_fx
from lrp_fx.cli.bench import bench_table, measured
from lrp_fx.cli.evaluate import parted, results_table, text_task, writable_rules
from lrp_fx.cli.exits import EXITS, clear_errors
from lrp_fx.cli.explaining import ExplainOptions, as_json, explained, write
from lrp_fx.cli.listing import ops_table
from lrp_fx.cli.models import RawInputs, load
from lrp_fx.errors import InputError, LrpError
from lrp_fx.evaluate import METHODS, evaluate, find_methods
from lrp_fx.explain.target_types import NAMED
from lrp_fx.files import read_text, replacing
from lrp_fx.rules.ruleset import available
from lrp_fx.runs import Explainer
from lrp_fx.runs.data_files import kind_of_data

_CODES = "  \n".join(f"{code}: {when}" for code, when in EXITS.items())
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Layer-wise Relevance Propagation for any PyTorch model.",
    epilog=f"Exit codes:  \n{_CODES}",
)

Model = Annotated[
    str,
    typer.Argument(help="folder of a saved Hugging Face model, GGUF file, id of a model on the Hub, or name of a demo"),
]
Text = Annotated[
    str | None, typer.Argument(help="the text to explain; the path of an image or a wav file for a model of these")
]
Image = Annotated[Path | None, typer.Option(help="an image file, for a model that sees")]
Sound = Annotated[Path | None, typer.Option(help="a wav file, for a model that hears")]
Rules = Annotated[str, typer.Option(help="rule set: a name (see `lrp-fx rules`) or a TOML file")]
Class = Annotated[int | None, typer.Option(help="class or token id to explain (default: the model's own answer)")]
What = Annotated[
    str | None,
    typer.Option(
        help=f"class or token id to explain, or of the model's own answer: {', '.join(NAMED)} (default logit)"
    ),
]
Why = Annotated[str | None, typer.Option(help="a node or a module path, or a glob: which patterns match, and why not")]
Precision = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16")]


class Format(StrEnum):
    """Formats of `export`."""

    graph = "graph"
    package = "package"
    onnx = "onnx"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lrp_fx {lrp_fx.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command()
def explain(
    model: Model,
    text: Text = None,
    image: Image = None,
    sound: Sound = None,
    file: Annotated[Path | None, typer.Option(help="a file with a text per line; - is standard input")] = None,
    html: Annotated[Path | None, typer.Option(help="write the heatmap to this HTML file")] = None,
    view: Annotated[Path | None, typer.Option(help="write a page to explore (docs/viewer.md)")] = None,
    save: Annotated[Path | None, typer.Option(help="save the result (.safetensors, .json.gz)")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON and nothing else")] = False,
    generate: Annotated[int | None, typer.Option(min=1, help="generate this many tokens, and explain each")] = None,
    at: Annotated[list[str] | None, typer.Option(help="also relevance inside the model: a name or a glob")] = None,
    target: What = None,
    contrast: Annotated[bool, typer.Option("--contrast", help="as --target contrast: why not another answer")] = False,
    rules: Rules = "default",
    pieces: Annotated[
        bool, typer.Option("--pieces/--words", help="show the tokenizer's pieces, or whole words")
    ] = False,
    precision: Precision = "float32",
) -> None:
    """Explain the model's answer: relevance of words, pixels, moments."""
    with clear_errors():
        console = Console(quiet=json)
        with console.status("loading the model"):
            loaded = load(model, text, precision)
        inputs = RawInputs.read(text, image, sound, file)
        if contrast and target is not None:
            raise InputError("--contrast is a target: leave out --target")
        options = ExplainOptions("contrast" if contrast else _target(target), rules, tuple(at or ()), generate)
        with console.status("capturing and rewriting the graph, then one backward sweep"):
            result = explained(loaded, inputs, options)
        written = write(result, loaded, words=not pieces, html=html, view=view, save=save)
        if json:
            typer.echo(as_json(result, words=not pieces))
            return
        console.print(f"\n{escape(loaded.title)}\n", highlight=False)
        result.show(words=not pieces, console=console)
        for kind, place in written.items():
            console.print(f"{kind}: {place.resolve()}", highlight=False, soft_wrap=True)


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
    with clear_errors():
        results = [lrp_fx.load_result(file) for file in files]
        names = [file.name.removesuffix(".gz").rpartition(".")[0] for file in files]
        page = lrp_fx.view(*results, path=output, title=title, names=names)
        Console().print(f"page: {page.resolve()}", highlight=False, soft_wrap=True)


@app.command()
def report(
    model: Model,
    text: Text = None,
    image: Image = None,
    sound: Sound = None,
    rules: Rules = "default",
    precision: Precision = "float32",
    why: Why = None,
    html: Annotated[Path | None, typer.Option(help="write the graph, to zoom and search, to this HTML file")] = None,
) -> None:
    """Show role and rule of every node of the model's graph; with --why, the patterns and conditions of some nodes."""
    with clear_errors():
        loaded = load(model, text, precision)
        xmodel = loaded.converted(rules)
        args, inputs, _ = xmodel.encoded(RawInputs(text, image, sound).raw(loaded, example=True), {})
        xmodel.specialization(args, inputs)
        summary = xmodel.report()
        (summary if why is None else summary.why(why)).print()
        if html is not None:
            place = summary.save_html(html, f"{loaded.name} under the rules {summary.ruleset}")
            Console().print(f"page: {place.resolve()}", highlight=False, soft_wrap=True)


@app.command()
def verify(
    model: Model,
    text: Text = None,
    image: Image = None,
    sound: Sound = None,
    target: What = None,
    rules: Rules = "default",
    precision: Precision = "float64",
) -> None:
    """Check outputs, conservation at every node and finiteness; exit code 3 if a check fails."""
    with clear_errors():
        loaded = load(model, text, precision)
        raw = RawInputs(text, image, sound).raw(loaded, example=True)
        result = loaded.converted(rules).verify(*raw, target=_target(target), show=True)
    if not result.passed:
        raise typer.Exit(3)


@app.command()
def bench(
    model: Model,
    text: Text = None,
    image: Image = None,
    sound: Sound = None,
    rules: Annotated[str, typer.Option(help="comma-separated rule sets")] = "default,attnlrp",
    repeat: Annotated[int, typer.Option(min=1, help="number of timed calls; the fastest counts")] = 5,
    compile: Annotated[bool, typer.Option("--compile", help="also time the compiled graphs")] = False,
    precision: Precision = "float32",
) -> None:
    """Time explanations beside the model's forward pass and gradient, on these inputs and this machine."""
    with clear_errors():
        loaded = load(model, text, precision)
        raw = RawInputs(text, image, sound).raw(loaded, example=True)
        Console().print(bench_table(measured(loaded, raw, rules.split(","), repeat, compile)))


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Argument(help="the file to write")],
    text: Text = None,
    image: Image = None,
    sound: Sound = None,
    format: Annotated[
        Format, typer.Option(help="graph (.pt2, for lrp_fx.load), package (AOTInductor, for C++), onnx")
    ] = Format.graph,
    target: What = None,
    rules: Rules = "default",
    precision: Precision = "float32",
) -> None:
    """Write the explanation as one graph, in a file that runs without the model's code."""
    with clear_errors():
        loaded = load(model, text, precision)
        xmodel = loaded.converted(rules)
        args, inputs, _ = xmodel.encoded(RawInputs(text, image, sound).raw(loaded, example=True), {})
        with Console().status("tracing the joint graph, and comparing it with the eager sweep"):
            lowered = xmodel.lower(*args, target=_target(target), **inputs)
            write_graph: dict[Format, Any] = {
                Format.graph: lowered.save, Format.package: lowered.package, Format.onnx: lowered.to_onnx
            }  # fmt: skip
            write_graph[format](output)
        takes = ", ".join(lowered.inputs)
        Console().print(f"{format.value}: {output.resolve()}, takes {takes}", highlight=False, soft_wrap=True)


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
    with clear_errors():
        loaded = load(model, None, precision)
        lines = (read_text(file).splitlines() if file is not None else []) + (text or [])
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


@app.command()
def tune(
    model: Model,
    file: Annotated[Path, typer.Argument(help="a file with a text per line; every third text is held out")],
    output: Annotated[Path, typer.Argument(help="the TOML file to write, for --rules")],
    metric: Annotated[str, typer.Option(help="what to improve: abpc, insertion, deletion, loo, ...")] = "abpc",
    trials: Annotated[int, typer.Option(min=1, help="rule sets to try, the shipped ones among them")] = 100,
    depths: Annotated[int, typer.Option(min=1, help="groups of layers with rules of their own")] = 3,
    base: Annotated[str, typer.Option(help="the rule set to change: a name or a TOML file")] = "attnlrp",
    target: Class = None,
    precision: Precision = "float32",
) -> None:
    """Search the most faithful rules for a model on some texts; compare them with others on those held out."""
    with clear_errors():
        writable_rules(output)
        halves = parted(read_text(file).splitlines())
        loaded = load(model, None, precision)
        tuned_on, held_out = (text_task(loaded.name, loaded.model, loaded.tokenizer, p, target) for p in halves)
        tuned = lrp_fx.tune(loaded.model, tuned_on, metric, base, trials, depths)
        tuned.ruleset.save(output)
        methods = find_methods(dict.fromkeys([str(output), base, "default"]))
        results = evaluate(held_out, methods)
        console = Console()
        tried = f"{tuned.trials} rule sets on {len(tuned_on)} texts: {metric} {tuned.value:.4g} at best"
        console.print(
            f"{tried}; on the other {len(held_out)} (higher is better, for deletion lower)\n", highlight=False
        )
        console.print(results_table(results))
        console.print(f"rules: {output.resolve()}", highlight=False, soft_wrap=True)


@app.command("run")
def run_command(
    model: Model,
    data: Annotated[
        Path,
        typer.Argument(
            help="a file (.txt, .csv, .tsv, .jsonl, .parquet, .arrow), a folder of such files, of images or wav files"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder for the shards and the manifest")],
    column: Annotated[
        list[str] | None, typer.Option(help="column of the texts; twice for pairs (default text)")
    ] = None,
    image: Annotated[str | None, typer.Option(help="column of images, in place of texts")] = None,
    sound: Annotated[str | None, typer.Option(help="column of sounds, in place of texts")] = None,
    at: Annotated[
        list[str] | None, typer.Option(help="relevance by neuron or head inside the model: a name or a glob")
    ] = None,
    target: What = None,
    rules: Rules = "default",
    ledger: Annotated[bool, typer.Option("--ledger", help="a ledger for each row: a sweep more for every row")] = False,
    precision: Precision = "float32",
    half: Annotated[bool, typer.Option("--half", help="keep relevance in float16")] = False,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="rows of a shard")] = 2048,
    ray: Annotated[str | None, typer.Option(help="address of a Ray cluster; local starts one on this machine")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="workers on the cluster (default: half its CPUs)")] = None,
) -> None:
    """Explain a whole data set: Parquet shards in a folder. Repeat the command to resume a run that was killed."""
    with clear_errors():
        loaded = load(model, None, precision)
        if len(column or ()) > 2:
            raise InputError("texts are in one column, or pairs in two")
        text: Any = None if not column else column[0] if len(column) == 1 else tuple(column)
        named = {"text": text, "image": image, "sound": sound}
        if not any(named.values()):
            kind = kind_of_data(data)
            named[kind] = kind
        encoders = ("tokenizer", "image_processor", "feature_extractor")
        explainer = Explainer(
            loaded.model, labels=loaded.labels, rules=rules, target=_target(target), at=at or (), ledger=ledger,
            **named, **{name: loaded.tools[name] for name in encoders if name in loaded.tools},
        )  # fmt: skip
        summary = lrp_fx.run(
            explainer, data, out=out, precision="float16" if half else "float32", rows_per_shard=rows_per_shard,
            ray=ray, workers=workers,
        )  # fmt: skip
        Console().print(str(summary), highlight=False, soft_wrap=True)


@app.command("rules")
def rules_command() -> None:
    """List the shipped rule sets."""
    for name in available():
        ruleset = lrp_fx.RuleSet.load(name)
        shown = ", ".join(f"{role}: {rule}" for role, rule in ruleset.rules.items())
        Console().print(f"[bold]{name}[/]  {shown}", highlight=False)


@app.command()
def ops(
    pattern: Annotated[str, typer.Argument(help="names of operators, with * and ?: aten.*softmax*")] = "*",
) -> None:
    """List the declarations of operators: kind, operands that carry relevance, further fields."""
    with clear_errors():
        Console().print(ops_table(pattern))
