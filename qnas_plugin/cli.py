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
from qnas_plugin.errors import MissingOptionsError, QnasError, UsageError
from qnas_plugin.request import ExportRequest, ProfileRequest, RetargetRequest, TrainRequest, TuneRequest
from qnas_plugin.request.command_line import INSTEAD, Command, asking

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

Count = int | None

ConfigOption = Annotated[
    Path | None,
    typer.Option(help="TOML file with any of these options, by their names; options given here win."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output.", rich_help_panel="Output")
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"qnas {__version__}")
        raise typer.Exit


@app.command(cls=Command)
@asking(TrainRequest)
def train(asked: dict[str, Any], config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Give a supernet its weights: elastic fine-tuning from a pretrained model (InstaTune).

    Stop it with Ctrl-C at any time; the same command continues. For several processes or machines put
    "accelerate launch -m qnas_plugin" in place of "qnas".
    """
    request = TrainRequest.build(asked, config)
    from qnas_plugin.console import training

    record = training(request)
    if as_json:
        print(json.dumps(record, indent=2, sort_keys=True))


@app.command(cls=Command)
@asking(TuneRequest)
def tune(asked: dict[str, Any], config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Search sub-network and precision together; write a Pareto set of ONNX models, each built, run and measured.

    Stop it with Ctrl-C at any time; the same command continues where it was. The exit code is 0 when the recommended
    member keeps all limits on the report split too, 4 when it does not, and 3 when there is none to recommend.
    """
    request = TuneRequest.build(asked, config)
    from qnas_plugin.console import tuning

    result = tuning(request)
    if as_json:
        print(json.dumps(result.record, indent=2, sort_keys=True))
    if result.recommended is None:
        raise typer.Exit(EXIT_NO_MEMBER)
    if not result.kept:
        raise typer.Exit(EXIT_NOT_KEPT)


@app.command(cls=Command)
@asking(ProfileRequest)
def profile(
    asked: dict[str, Any],
    detect: Annotated[
        bool,
        typer.Option(
            "--detect", help="Only describe this machine and write its hardware profile.", rich_help_panel=INSTEAD
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the profile that --detect writes.", rich_help_panel=INSTEAD)
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Only show what got slower from one table to another.", metavar="OLD NEW", rich_help_panel=INSTEAD
        ),
    ] = None,
    merge: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Only merge two tables of one SKU into --out.", metavar="TABLE TABLE", rich_help_panel=INSTEAD
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Only draw a table: its test and its rows.", metavar="TABLE", rich_help_panel=INSTEAD),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the latency table of a supernet on this machine, with its own tested error in it.

    A search with "qnas tune --latency table" then needs no measurement and not this machine. Stop it with Ctrl-C at any
    time; the same command continues, and one with a longer budget makes the table better.
    """
    from qnas_plugin import console

    modes = {
        "--detect": detect,
        "--compare": compare,
        "--merge": merge,
        "--plot": plot,
        "--supernet": asked.get("supernet"),
    }
    given = [mode for mode, value in modes.items() if value]
    if len(given) != 1:
        raise UsageError(f"give one of {', '.join(modes)}; got {' and '.join(given) or 'none'}")
    if name is not None and not detect:
        raise UsageError("--name is for --detect")
    out, overwrite = asked.get("out"), asked.get("overwrite", False)
    if detect:
        return console.detecting(name, out, overwrite)
    if compare:
        return console.comparing(*compare)
    if plot:
        return console.plotting(plot, out)
    if merge:
        return console.merging(*merge, out, overwrite)
    table = console.profiling(ProfileRequest.build(asked))
    if as_json:
        print(table.model_dump_json(indent=2))


@app.command(cls=Command)
@asking(
    TuneRequest,
    *("supernet", "checkpoint", "model", "precision", "keep_fp32", "group", "max_groups"),
    *("task", "data", "metric", "max_length", "calibration_samples", "search_samples", "selection_samples", "out"),
)
def sensitivity(asked: dict[str, Any], config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say what each single decision does to the accuracy: the full network in FP32 with one of them changed at a time.

    No latency is measured. Stop it with Ctrl-C at any time; the same command continues.
    """
    request = TuneRequest.build(asked, config)
    from qnas_plugin.console import rating

    found = rating(request)
    if as_json:
        print(json.dumps([vars(change) for change in found.changes], indent=2, sort_keys=True))


@app.command(cls=Command)
@asking(RetargetRequest)
def retarget(asked: dict[str, Any], as_json: JsonOption = False) -> None:
    """Turn a finished study into the Pareto set of another CPU or setting, by its latency table, in seconds.

    Accuracies come from the stored trials and a predictor trained on them; nothing is measured without --evaluate.
    """
    request = RetargetRequest.build(asked)
    from qnas_plugin.console import retargeting

    result = retargeting(request)
    if as_json:
        print(json.dumps(result.record, indent=2, sort_keys=True))


@app.command(cls=Command)
@asking(ExportRequest)
def export(asked: dict[str, Any]) -> None:
    """Write one candidate of a study's supernet as ONNX, on any machine; the same bytes each time.

    Refused where the checkpoint, the tokenizer or the data have changed since the study.
    """
    request = ExportRequest.build(asked)
    from qnas_plugin.console import exporting

    exporting(request)


@app.command("olive-config", cls=Command)
@asking(TuneRequest, "model", "task", "data", "objectives", "trials", "population", "seed", "out")
def olive_config(
    asked: dict[str, Any],
    config: Annotated[
        Path | None, typer.Option(help="TOML file with any options of qnas tune; options given here win.")
    ] = None,
) -> None:
    """Write what "olive run" needs to search an ONNX model: package.json, run.json and a script.

    Then: olive run --config OUT/run.json --package-config OUT/package.json
    """
    request = TuneRequest.build(asked, config)
    from qnas_plugin.console import olive_configuring

    olive_configuring(request)


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
        Path | None,
        typer.Option(
            help="With --kernels: .npz file with the inputs of one run.", show_default="made up", metavar="FILE.npz"
        ),
    ] = None,
    batch: Annotated[
        Count, typer.Option(help="With --kernels: size of a free first axis of made-up inputs.", show_default="1")
    ] = None,
    seq_len: Annotated[
        Count, typer.Option(help="With --kernels: size of other free axes of made-up inputs.", show_default="128")
    ] = None,
    threads: Annotated[Count, typer.Option(help="With --kernels: threads of the run.", show_default="1")] = None,
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


def main(arguments: list[str] | None = None, program: str = "qnas") -> None:
    """Runs the command line; each expected error is one line on standard error and a non-zero exit code.

    Args:
        arguments: The command and its options; None is those of the process.
        program: What people call to get its help.
    """
    try:
        with _stopped_by_signals():
            app(arguments, prog_name=program)
    except MissingOptionsError as error:
        command = (sys.argv[1:] if arguments is None else arguments)[0]
        _fail(f"{error}; see: {program} {command} --help", EXIT_USAGE)
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
