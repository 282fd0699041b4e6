"""The command line: ``qnas train | tune | profile | ...``. The only module that prints and knows exit codes."""

from __future__ import annotations

import errno
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from qnas_plugin._version import __version__
from qnas_plugin.errors import QnasError, UsageError

EXIT_ERROR, EXIT_USAGE, EXIT_NO_MEMBER, EXIT_NOT_KEPT, EXIT_INTERRUPTED = 1, 2, 3, 4, 130

app = typer.Typer(
    name="qnas",
    help="Searches the sub-network and the INT8/FP32 precision of each layer together, for one CPU, and writes a "
    "Pareto set of verified ONNX models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Text = str | None
Count = int | None
Number = float | None


def _option(help: str, default: object = None, metavar: str | None = None) -> Any:
    """An option that is None when not given; ``default`` is what the request then takes, for the help text."""
    return typer.Option(help=help, show_default=str(default) if default is not None else False, metavar=metavar)


SupernetOption = Annotated[Text, _option("Supernet family; list them with: qnas show supernets.")]
CheckpointOption = Annotated[Text, _option("Hugging Face name or folder, or a folder that qnas train wrote.")]
TaskOption = Annotated[Text, _option("Task; list them with: qnas show tasks.")]
DataOption = Annotated[Text, _option("The task's data: a file, a folder, or a name that the task knows.")]
OutOption = Annotated[Path | None, _option("Folder for the results.")]
ConfigOption = Annotated[Path | None, _option("TOML file with any of these options; options given here win.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
ObjectiveOption = Annotated[
    list[str] | None,
    _option("accuracy, latency_ms or size_mb; give it two or three times.", "accuracy, latency_ms", "METRIC"),
]
SeedOption = Annotated[Count, _option("Of every random choice.", 0)]
LengthOption = Annotated[Count, _option("Cut texts after this many tokens.", "the tokenizer's own")]
CalibrationOption = Annotated[Count, _option("Training examples for the quantization ranges.", 128)]
SearchOption = Annotated[Count, _option("Held-out training examples for the accuracy that steers the search.", 2000)]
SelectionOption = Annotated[
    Count,
    _option(
        "Held-out training examples that choose the recommended member; nothing is searched on them.",
        "as many as --search-samples",
    ),
]
InsistOption = Annotated[
    bool,
    typer.Option(
        "--insist", help="Use or make a latency table although it is of other hardware or settings; results say so."
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what another run left in --out; what this one reads is never.")
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"qnas {__version__}")
        raise typer.Exit


@app.command()
def train(
    supernet: SupernetOption = None,
    checkpoint: CheckpointOption = None,
    task: TaskOption = None,
    data: DataOption = None,
    out: OutOption = None,
    epochs: Annotated[Count, _option("Passes over the training data.", 3)] = None,
    batch_size: Annotated[Count, _option("Examples a step in each process.", 32)] = None,
    learning_rate: Annotated[Number, _option("Highest learning rate.", 5e-5)] = None,
    weight_decay: Annotated[Number, _option("Weight decay of AdamW.", 0.01)] = None,
    warmup: Annotated[Number, _option("Share of the steps in which the learning rate rises.", 0.06)] = None,
    subnets: Annotated[
        Text,
        _option(
            "Trained in each step beside the whole supernet: random, sandwich (random and smallest), none.", "random"
        ),
    ] = None,
    shrinking: Annotated[
        Number, _option("Share of the steps over which subnets may become smaller, step by step.", 0)
    ] = None,
    task_weight: Annotated[
        Number, _option("Share of cross-entropy in the loss; distillation has the rest.", 0.3)
    ] = None,
    teacher: Annotated[Text, _option("Fine-tuned checkpoint of the same family to distil from.")] = None,
    augment: Annotated[
        bool, typer.Option("--augment", help="Mirror and move images at random, by an eighth at most.")
    ] = False,
    arithmetic: Annotated[Text, _option("auto, bf16 or fp32; auto is bf16 where the CPU has it.", "auto")] = None,
    depth: Annotated[Text, _option("Choices for the number of layers, like 3,4,5,6.", "the family's own")] = None,
    heads: Annotated[Text, _option("Choices for the heads of a layer.", "the family's own")] = None,
    ffn: Annotated[Text, _option("Choices for the feed-forward width of a layer.", "the family's own")] = None,
    kernel: Annotated[Text, _option("Choices for the size of kernels, like 3,5,7.", "the family's own")] = None,
    expand: Annotated[Text, _option("Choices for the relative width inside a block.", "the family's own")] = None,
    width: Annotated[Text, _option("Choices for the relative width of a stage.", "the family's own")] = None,
    max_length: LengthOption = None,
    calibration_samples: CalibrationOption = None,
    search_samples: SearchOption = None,
    selection_samples: SelectionOption = None,
    seed: SeedOption = None,
    overwrite: OverwriteOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a supernet its weights: elastic fine-tuning from a pretrained model (InstaTune).

    Stop it with Ctrl-C at any time; the same command continues. For several processes or machines put
    "accelerate launch -m qnas_plugin" in place of "qnas".
    """
    options = {name: value for name, value in locals().items() if name not in ("config", "as_json")}
    options["augment"], options["overwrite"] = augment or None, overwrite or None
    for name in ("depth", "heads", "ffn", "kernel", "expand", "width"):
        options[name] = _numbers(name, options[name])
    from qnas_plugin.console import training
    from qnas_plugin.request import TrainRequest

    record = training(TrainRequest.build(options, config))
    if as_json:
        print(json.dumps(record, indent=2, sort_keys=True))


@app.command()
def tune(
    supernet: SupernetOption = None,
    checkpoint: CheckpointOption = None,
    model: Annotated[
        Text,
        typer.Option(
            "-m",
            "--model",
            help="In place of both: an ONNX file, or a folder with one, whose layers' precision is searched; or a "
            "Hugging Face model, whose supernet is found by its type.",
            show_default=False,
            metavar="MODEL",
        ),
    ] = None,
    task: Annotated[
        Text, _option("Task; list them with: qnas show tasks. For --model it is arrays when not given.")
    ] = None,
    data: DataOption = None,
    out: OutOption = None,
    metric: Annotated[
        Text,
        _option(
            "What stands as accuracy: accuracy, agreement or cosine with the FP32 model, or module:function.",
            "accuracy with labels, else cosine",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        _option("Choice of each group, see: qnas show precisions; may be repeated.", "int8, fp32", "FORMAT"),
    ] = None,
    keep_fp32: Annotated[
        list[str] | None,
        _option("What stays FP32: layers of the model, or groups of the supernet; may be repeated.", None, "PATTERN"),
    ] = None,
    group: Annotated[
        list[str] | None,
        _option("Layers of the model that are decided together; may be repeated.", None, "NAME=PATTERN"),
    ] = None,
    max_groups: Annotated[Count, _option("Groups of the model's layers; more are joined.", 60)] = None,
    hardware: Annotated[Text, _option("Hardware profile, or auto for this machine's.", "auto")] = None,
    threads: Annotated[Count, _option("Threads that latencies are measured with.", "the profile's")] = None,
    batch: Annotated[Count, _option("Batch size that latencies are measured at.", "the profile's")] = None,
    seq_len: Annotated[Count, _option("Tokens that latencies are measured at.", "the profile's")] = None,
    objective: ObjectiveOption = None,
    limit: Annotated[
        list[str] | None,
        _option("Bound for the recommended member, like 'latency_ms<=5'; may be repeated.", None, "BOUND"),
    ] = None,
    latency: Annotated[
        Text, _option("measured, or table: from the SKU's latency table, also of a machine elsewhere.", "measured")
    ] = None,
    table: Annotated[Path | None, _option("Latency table.", "the one that fits")] = None,
    insist: InsistOption = False,
    against: Annotated[
        Text, _option("The full network that results are compared with: int8 or fp32.", "int8; fp32 for --model")
    ] = None,
    max_accuracy_drop: Annotated[
        Number, _option("Accuracy that the recommended member may lose against it.", 0.01)
    ] = None,
    confidence: Annotated[
        Number, _option("With which the selection examples must show that it loses no more.", 0.9)
    ] = None,
    algorithm: Annotated[Text, _option("Search algorithm; list them with: qnas show algorithms.", "linas")] = None,
    trials: Annotated[Count, _option("Candidates to evaluate, those of a stopped run included.", 250)] = None,
    population: Annotated[Count, _option("Candidates of a generation; linas learns anew ten times in it.", 50)] = None,
    storage: Annotated[Text, _option("Optuna storage URL.", "OUT/study.journal")] = None,
    study_name: Annotated[Text, _option("Name of the study in a storage of several.", "the folder's")] = None,
    workers: Annotated[Count, _option("Processes of this machine that evaluate.", "this one alone")] = None,
    cluster: Annotated[
        Text, _option("Dask scheduler whose workers evaluate, like tcp://host:8786.", None, "ADDRESS")
    ] = None,
    max_length: LengthOption = None,
    calibration_samples: CalibrationOption = None,
    search_samples: SearchOption = None,
    selection_samples: SelectionOption = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search sub-network and precision together; write a Pareto set of ONNX models, each built, run and measured.

    Stop it with Ctrl-C at any time; the same command continues where it was. The exit code is 0 when the recommended
    member keeps all limits on the report split too, 4 when it does not, and 3 when there is none to recommend.
    """
    options = {name: value for name, value in locals().items() if name not in ("config", "as_json")}
    options["objectives"] = options.pop("objective") or None
    options["limits"] = options.pop("limit") or None
    options |= {name: options[name] or None for name in ("precision", "keep_fp32", "group")}
    options["insist"] = insist or None
    from qnas_plugin.console import tuning
    from qnas_plugin.request import TuneRequest

    result = tuning(TuneRequest.build(options, config))
    if as_json:
        print(json.dumps(result.record, indent=2, sort_keys=True))
    if result.recommended is None:
        raise typer.Exit(EXIT_NO_MEMBER)
    if not result.kept:
        raise typer.Exit(EXIT_NOT_KEPT)


@app.command()
def profile(
    supernet: SupernetOption = None,
    checkpoint: Annotated[
        Text, _option("As for tune; a folder with a config.json and no weights is enough, no data are needed.")
    ] = None,
    hardware: Annotated[Text, _option("Hardware profile of this machine, or auto to find it.", "auto")] = None,
    threads: Annotated[Count, _option("Threads of the runtime.", "the profile's")] = None,
    batch: Annotated[Count, _option("Examples a run.", "the profile's")] = None,
    seq_len: Annotated[Count, _option("Tokens an example, for text.", "the profile's")] = None,
    resolution: Annotated[Count, _option("Height and width in pixels, for images.", "the model's")] = None,
    budget: Annotated[Text, _option("How long to measure: 90s, 10m, 1h.", "10m")] = None,
    out: Annotated[
        Path | None, _option("Folder of latency tables, or what --detect, --merge or --plot write.", "the user's own")
    ] = None,
    seed: SeedOption = None,
    insist: InsistOption = False,
    detect: Annotated[
        bool, typer.Option("--detect", help="Only describe this machine and write its hardware profile.")
    ] = False,
    name: Annotated[Text, _option("Name of the profile that --detect writes.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Only show what got slower from one table to another.", metavar="OLD NEW"),
    ] = None,
    merge: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Only merge two tables of one SKU into --out.", metavar="TABLE TABLE"),
    ] = None,
    plot: Annotated[Path | None, _option("Only draw a table: its test and its rows.", None, "TABLE")] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the latency table of a supernet on this machine, with its own tested error in it.

    A search with "qnas tune --latency table" then needs no measurement and not this machine. Stop it with Ctrl-C at any
    time; the same command continues, and one with a longer budget makes the table better.
    """
    from qnas_plugin import console

    modes = {"--detect": detect, "--compare": compare, "--merge": merge, "--plot": plot, "--supernet": supernet}
    given = [mode for mode, value in modes.items() if value]
    if len(given) != 1:
        raise UsageError(f"give one of {', '.join(modes)}; got {' and '.join(given) or 'none'}")
    if name is not None and not detect:
        raise UsageError("--name is for --detect")
    if detect:
        return console.detecting(name, out, overwrite)
    if compare:
        return console.comparing(*compare)
    if plot:
        return console.plotting(plot, out)
    if merge:
        return console.merging(*merge, out, overwrite)
    from qnas_plugin.request import ProfileRequest

    options = {
        "supernet": supernet,
        "checkpoint": checkpoint,
        "hardware": hardware,
        "threads": threads,
        "batch": batch,
        "seq_len": seq_len,
        "resolution": resolution,
        "budget": budget,
        "out": out,
        "seed": seed,
        "insist": insist,
        "overwrite": overwrite,
    }
    table = console.profiling(ProfileRequest.build(options))
    if as_json:
        print(table.model_dump_json(indent=2))


@app.command()
def retarget(
    study: Annotated[Path, typer.Option(help="Folder that qnas tune wrote.")],
    hardware: Annotated[str, typer.Option(help="Hardware profile to find the Pareto set for, or auto.")],
    threads: Annotated[Count, _option("Threads of the runtime.", "the profile's")] = None,
    batch: Annotated[Count, _option("Examples a run.", "the profile's")] = None,
    seq_len: Annotated[Count, _option("Tokens an example, for text.", "the study's")] = None,
    table: Annotated[Path | None, _option("Latency table.", "the one that fits")] = None,
    insist: InsistOption = False,
    evaluate: Annotated[int, typer.Option(help="New accuracy evaluations to spend where predictions are unsure.")] = 0,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    out: Annotated[Path | None, _option("Folder for the result.", "STUDY/retarget/HARDWARE")] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a finished study into the Pareto set of another CPU or setting, by its latency table, in seconds.

    Accuracies come from the stored trials and a predictor trained on them; nothing is measured without --evaluate.
    """
    from qnas_plugin.console import retargeting

    result = retargeting(
        study,
        hardware,
        threads=threads,
        batch=batch,
        seq_len=seq_len,
        table=table,
        insist=insist,
        evaluate=evaluate,
        seed=seed,
        out=out,
    )
    if as_json:
        print(json.dumps(result.record, indent=2, sort_keys=True))


@app.command()
def export(
    study: Annotated[Path, typer.Option(help="Folder that qnas tune wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    key: Annotated[
        Text, _option("Key, or beginning of it, of a candidate of the study.", "the recommended member's")
    ] = None,
    candidate: Annotated[Path | None, _option("JSON file with a candidate, like pareto/*/candidate.json.")] = None,
    precision: Annotated[
        Text, _option("searched, int8 or fp32; the last two set all groups alike.", "searched")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write one candidate of a study's supernet as ONNX, on any machine; the same bytes each time.

    Refused where the checkpoint, the tokenizer or the data have changed since the study.
    """
    from qnas_plugin.console import exporting

    exporting(study, out, key=key, candidate=candidate, precision=precision or "searched", overwrite=overwrite)


@app.command("olive-config")
def olive_config(
    out: Annotated[Path, typer.Option(help="Folder for the files, and for what Olive writes.")],
    config: Annotated[
        Path | None, _option("TOML file with options of qnas tune, --model and --data among them; those here win.")
    ] = None,
    model: Annotated[Text, typer.Option("-m", "--model", help="ONNX file.", show_default=False)] = None,
    task: TaskOption = None,
    data: DataOption = None,
    objective: ObjectiveOption = None,
    trials: Annotated[Count, _option("Candidates to evaluate.", 250)] = None,
    population: Annotated[Count, _option("Candidates between two trainings of the predictors.", 50)] = None,
    seed: SeedOption = None,
) -> None:
    """Write what "olive run" needs to search an ONNX model: package.json, run.json and a script.

    Then: olive run --config OUT/run.json --package-config OUT/package.json
    """
    from qnas_plugin.console import olive_configuring
    from qnas_plugin.request import TuneRequest

    options = {name: value for name, value in locals().items() if name in TuneRequest.model_fields}
    olive_configuring(TuneRequest.build(options | {"objectives": objective or None}, config))


@app.command()
def show(
    what: Annotated[
        str,
        typer.Argument(help="supernets, tasks, algorithms, predictors, precisions, hardware, or an ONNX file."),
    ],
    study: Annotated[
        Path | None, typer.Option(help="With predictors: a folder of qnas tune, to show how well they rank its trials.")
    ] = None,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="With an ONNX file, quantized or not: what ONNX Runtime runs each layer as, and where time goes.",
        ),
    ] = False,
    data: Annotated[
        Path | None, _option("With --kernels: .npz file with the inputs of one run.", "made up", "FILE.npz")
    ] = None,
    batch: Annotated[Count, _option("With --kernels: size of a free first axis of made-up inputs.", 1)] = None,
    seq_len: Annotated[Count, _option("With --kernels: size of other free axes of made-up inputs.", 128)] = None,
    threads: Annotated[Count, _option("With --kernels: threads of the run.", 1)] = None,
) -> None:
    """List what is registered, the precision groups or the kernels of an ONNX file, or how well predictors rank."""
    from qnas_plugin import console

    if kernels or any(option is not None for option in (data, batch, seq_len, threads)):
        if not kernels or not what.endswith(".onnx"):
            raise UsageError(f"--kernels is for an ONNX file, the other options are for --kernels; got 'show {what}'")
        sizes = [default if size is None else size for size, default in ((batch, 1), (seq_len, 128), (threads, 1))]
        if min(sizes) < 1:
            raise UsageError(f"--batch, --seq-len and --threads are at least 1; got {min(sizes)}")
        console.showing_kernels(Path(what), data, *sizes)
    elif study is None:
        console.showing(what)
    elif what == "predictors":
        console.ranking_predictors(study)
    else:
        raise UsageError(f"--study is for qnas show predictors; got 'qnas show {what}'")


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) if "." in part else int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--{name} takes numbers with commas between them, like 3,4,6; got '{text}'") from None


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; each expected error is one line on standard error and a non-zero exit code."""
    try:
        with _stopped_by_signals():
            app(arguments)
    except UsageError as error:
        _fail(str(error), EXIT_USAGE)
    except QnasError as error:
        _fail(str(error), EXIT_ERROR)
    except MemoryError:
        _fail("this takes more memory than there is; what was finished is kept", EXIT_ERROR)
    except OSError as error:  # wherever it happens, also in files that others write for us
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" at {error.filename}" if error.filename else ""
            _fail(
                f"the disk is full{where}; make room (TMPDIR is for temporary files), the same command continues",
                EXIT_ERROR,
            )
        named = f"cannot use {error.filename}: " if error.filename else ""
        _fail(f"{named}{error.strerror or error}", EXIT_ERROR)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "qnas_plugin"):
            raise
        _fail(
            f"the package '{package}' is not installed; install what is missing with: pip install qnas-plugin",
            EXIT_ERROR,
        )
    except (KeyboardInterrupt, SystemExit) as stop:  # Typer 0.29 turns the one into the other
        if isinstance(stop, SystemExit) and stop.code != EXIT_INTERRUPTED:
            raise
        _fail("stopped; what was finished is kept, the same command continues", EXIT_INTERRUPTED)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Makes SIGTERM, and a terminal that is closed, end a command as Ctrl-C does: cleaned up, and with one line."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:  # what nohup ignores stays ignored
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str, code: int) -> None:
    print(f"qnas: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
