"""What the terminal shows: progress while work goes on, at its end a table and a sentence, all on standard error."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from qnas_plugin import registry
from qnas_plugin.errors import OutputError, UnknownNameError
from qnas_plugin.files import refuse_existing, write_bytes
from qnas_plugin.request import ExportRequest, ProfileRequest, RetargetRequest, TrainRequest, TuneRequest

if TYPE_CHECKING:
    from qnas_plugin.additive.sensitivity import Sensitivity
    from qnas_plugin.commands.profile import Progress as Profiled
    from qnas_plugin.commands.retarget import Retargeted
    from qnas_plugin.commands.tune import Progress as Searched
    from qnas_plugin.latency.table import LatencyTable
    from qnas_plugin.results.member import Result
    from qnas_plugin.training.instatune import Step
from qnas_plugin.console.tables import called, latency_notes, result_table, sensitivity_table

# Under accelerate launch only the first process speaks.
console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")


def training(request: TrainRequest) -> dict[str, Any] | None:
    """Trains, with a bar, an early estimate and a summary."""
    from qnas_plugin.commands.train import train

    first: Step | None = None
    with _bar("{task.fields[loss]}") as bar:
        task = bar.add_task("Training", total=None, loss="", visible=False)

        def on_step(step: Step) -> None:
            nonlocal first
            bar.update(task, total=step.total, completed=step.done, loss=f"loss {step.loss:.3f}", visible=True)
            _say_tenths(step.done, step.total, f"loss {step.loss:.3f}")
            first = step if first is None else first
            if step.done - first.done == 20:
                left = (step.seconds - first.seconds) / 20 * (step.total - step.done)
                bar.console.print(
                    f"{step.total} steps, about {left / 60:.0f} minutes to go; Ctrl-C stops, the same command continues"
                )

        record = train(request, on_stage=lambda text: bar.console.print(f"[dim]{text}[/dim]"), on_step=on_step)
    if record is not None:
        accuracy = record["accuracy"]
        console.print(
            f"Accuracy on held-out training data: largest {accuracy['largest_search']:.4f}, "
            f"smallest {accuracy['smallest_search']:.4f}"
        )
        console.print(f"Supernet written to {request.out}; search it with: qnas tune --checkpoint {request.out} ...")
    return record


def tuning(request: TuneRequest) -> Result:
    """Searches, with a bar of trials, and ends with one table and one sentence."""
    from qnas_plugin.commands.tune import tune
    from qnas_plugin.runtimes.onnxruntime import int8_overflows

    with _bar("{task.fields[best]}") as bar:
        task = bar.add_task("Searching", total=request.trials, best="", visible=False)

        def on_progress(searched: Searched) -> None:
            best = "  ".join(f"{called(name, searched.metric)} {value:.4g}" for name, value in searched.best.items())
            volume = f"  hypervolume {searched.hypervolume:.4f}" if searched.hypervolume is not None else ""
            bar.update(task, completed=searched.done, best=f"best: {best}{volume}", visible=True)
            _say_tenths(searched.done, searched.total, f"best: {best}{volume}")
            if searched.trial is not None and searched.trial.error is not None:
                bar.console.print(f"[yellow]trial {searched.trial.number} failed: {searched.trial.error}[/yellow]")

        result = tune(request, on_stage=lambda text: bar.console.print(f"[dim]{text}[/dim]"), on_progress=on_progress)
    console.print(result_table(result))
    for sentence in latency_notes(result.record["latency"]):
        console.print(f"[yellow]{sentence}[/yellow]")
    if int8_overflows():
        console.print(
            "[yellow]This CPU has no VNNI: run INT8 models here with the session option session.x64quantprecision=1 "
            "of ONNX Runtime, as they were measured; without it sums overflow and accuracy is lost.[/yellow]"
        )
    console.print(f"Written to {request.out}: pareto.json and {len(result.members)} models under pareto/")
    for member in result.members:
        if member.baseline and not member.dominated:
            console.print(f"{member.name} is {member.baseline}")
    if folded := sum(member.dominated for member in result.members):
        console.print(f"{folded} of them are dominated on verified values, and not shown above; report.html has them")
    console.print(result.reason[0].upper() + result.reason[1:] + ".")
    return result


def profiling(request: ProfileRequest) -> LatencyTable:
    """Makes a latency table, with a bar of the time budget, and says how good it is."""
    from qnas_plugin.commands.profile import profile

    with _bar("{task.fields[networks]}") as bar:
        task = bar.add_task("Measuring", total=None, networks="", visible=False)

        def on_progress(done: Profiled) -> None:
            text = f"{done.visits} batches"
            bar.update(task, total=int(done.budget), completed=int(done.seconds), networks=text, visible=True)
            _say_tenths(int(done.seconds), int(done.budget), text)

        table, path = profile(
            request, on_stage=lambda text: bar.console.print(f"[dim]{text}[/dim]"), on_progress=on_progress
        )
    fidelity, errors = table.fidelity, table.fidelity.errors
    console.print(
        f"On {fidelity.held_out} held-out networks: mean error {errors.mean_error:.2%}, within 5 % "
        f"{errors.within_5:.0%}, Kendall tau {errors.kendall_tau:.3f}; two measurements of one differ by "
        f"{fidelity.noise:.2%}, the sum of parts timed alone is off by {fidelity.alone.mean_error:.1%}"
    )
    for problem in table.problems:
        console.print(f"[yellow]Think before you publish this table: {problem}.[/yellow]")
    console.print(f"{len(table.rows)} rows ({table.granularity}) from {table.networks} networks, written to {path}")
    return table


def detecting(name: str | None, out: Path | None, overwrite: bool) -> None:
    """Describes this machine and writes its hardware profile, unless a known one fits."""
    from qnas_plugin import hardware
    from qnas_plugin.errors import HardwareError
    from qnas_plugin.hardware.machine import detect

    machine = detect()
    console.print(f"This machine: {machine}")
    if name is None:
        try:
            known = hardware.match(machine)
        except HardwareError as error:
            console.print(f"{error}")
            name = hardware.suggest_name(machine)
        else:
            console.print(f"Its hardware profile is '{known.name}'; for one of your own give --name")
            return
    profile, folder = hardware.describe(machine, name), out or hardware.user_folder("hardware_profiles")
    path = folder / f"{profile.name}.toml"
    if path.exists() and not overwrite:
        known = hardware.load_profile(str(path))
        if hardware.is_this_machine(known, machine):
            refuse_existing(path, overwrite)
        console.print(f"{path} describes this machine already; --overwrite writes it anew")
        return
    hardware.write_profile(profile, folder)
    console.print(f"Wrote {path}; complete by hand what the system does not tell, then use --hardware {path}")


def comparing(before: Path, after: Path) -> None:
    """Prints what got slower and faster between two latency tables."""
    from qnas_plugin.latency import merge
    from qnas_plugin.latency import table as latency_table

    tables = latency_table.load(before), latency_table.load(after)
    changes = merge.compare(*tables)
    for label, table in zip(("before", "after"), tables, strict=True):
        console.print(
            f"{label}: {table}, {table.created}, onnxruntime {table.versions.get('onnxruntime')}, "
            f"mean error {table.fidelity.errors.mean_error:.2%}"
        )
    certain = [change for change in changes if change.certain]
    shown = Table(title="Rows that differ by more than twice their spread, slower ones first", title_justify="left")
    for column in ("row", "before ms", "after ms", "change"):
        shown.add_column(column, justify="left" if column == "row" else "right")
    for change in certain:
        ratio = f"{change.after / change.before - 1:+.1%}" if change.before else "new"
        shown.add_row(change.key, f"{change.before:.4f}", f"{change.after:.4f}", ratio)
    if certain:
        Console(highlight=False).print(shown)
    console.print(f"{len(certain)} of {len(changes)} rows differ")


def merging(first: Path, second: Path, out: Path | None, overwrite: bool) -> None:
    """Writes one table with the rows of two."""
    from qnas_plugin import hardware
    from qnas_plugin.latency import merge
    from qnas_plugin.latency import table as latency_table

    table = merge.merge(latency_table.load(first), latency_table.load(second))
    folder = out or hardware.user_folder("latency_tables")
    refuse_existing(folder / table.hardware.name / f"{table.name}.json", overwrite)
    path = latency_table.write(table, folder)
    console.print(f"Wrote {path} with {len(table.rows)} rows; its fidelity is the worse one's, nobody tested it anew")


def plotting(source: Path, out: Path | None) -> None:
    """Writes the plots of a latency table."""
    from qnas_plugin.latency import plot
    from qnas_plugin.latency import table as latency_table

    path = out or source.with_suffix(".html")
    if path.exists() and path.samefile(source):
        raise OutputError(f"--out {path} is the table itself; give another file")
    write_bytes(path, plot.render(latency_table.load(source)).encode())
    console.print(f"Wrote {path}")


def rating(request: TuneRequest) -> Sensitivity:
    """Scores single changes, with a bar, and ends with those that lose most."""
    from qnas_plugin.additive.plot import render
    from qnas_plugin.commands.sensitivity import sensitivity

    with _bar("") as bar:
        task = bar.add_task("Scoring", total=None, visible=False)

        def on_change(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)
            _say_tenths(done, total, "single changes")

        found = sensitivity(request, on_stage=lambda text: bar.console.print(f"[dim]{text}[/dim]"), on_change=on_change)
    write_bytes(request.out / "sensitivity.html", render(found).encode())
    console.print(sensitivity_table(found))
    if fragile := found.fragile():
        console.print(
            "These lose more than noise in a format: " + " ".join(f"--keep-fp32 '{name}'" for name in fragile)
        )
    console.print(f"Written to {request.out}: sensitivity.json, sensitivity.csv and sensitivity.html")
    return found


def retargeting(request: RetargetRequest) -> Retargeted:
    """Finds the Pareto set for another table and prints it."""
    from qnas_plugin.commands.retarget import retarget

    result = retarget(request, on_stage=lambda text: console.print(f"[dim]{text}[/dim]"))
    record = result.record
    shown = Table(title=f"Pareto set for {record['hardware']['name']}, latency predicted", title_justify="left")
    for column in ("key", called("accuracy", record["metric"]), "", "latency ms", "size MB"):
        shown.add_column(column, justify="right" if column not in ("key", "") else "left")
    for member in result.members:
        accuracy, latency, size = (member.metrics[name] for name in ("accuracy", "latency_ms", "size_mb"))
        shown.add_row(member.candidate.key, f"{accuracy:.4f}", member.accuracy, f"{latency:.3f}", f"{size:.2f}")
    console.print(shown)
    for note in record["notes"]:
        console.print(f"[yellow]The latency table does not quite fit: {note}.[/yellow]")
    console.print("Nothing here was tested on the selection part; verify a member before it is deployed.")
    folder = request.out or request.study / "retarget" / record["hardware"]["name"]
    console.print(
        f"From {record['trials']} stored trials and {record['evaluated']} new evaluations, in "
        f"{record['seconds']:.0f} s; the mean error of {record['table']['name']} is "
        f"{record['table']['mean_error']:.1%}. Build a member with: qnas export --study {request.study} "
        f"--candidate {folder / 'candidates' / '<file>'}"
    )
    return result


def exporting(request: ExportRequest) -> None:
    """Writes one candidate and says where it is."""
    from qnas_plugin.commands.export import export

    export(request, on_stage=console.print)


def olive_configuring(request: TuneRequest) -> None:
    """Writes Olive's configuration and says how to run it."""
    from qnas_plugin.commands.olive_config import write_config

    write_config(request)
    out = request.out
    console.print(f"Wrote {out}; run it with: olive run --config {out}/run.json --package-config {out}/package.json")


def showing(what: str) -> None:
    """Lists what is registered, on standard output."""
    kinds: Mapping[str, registry.Kind] = {
        "supernets": "supernets",
        "tasks": "tasks",
        "algorithms": "search",
        "predictors": "predictors",
        "quantizers": "quantizers",
    }
    if what.endswith(".onnx"):
        from qnas_plugin.supernets.onnx_file.onnx_model import load

        rows = [(name, " ".join(nodes)) for name, nodes in load(what).groups.items()]
    elif what == "precisions":
        from qnas_plugin.quantizers.formats import FORMATS

        rows = [(name, format.about) for name, format in FORMATS.items()]
    elif what == "hardware":
        from qnas_plugin.hardware import profiles

        rows = [(name, f"{profile.vendor} {profile.model}") for name, profile in sorted(profiles().items())]
    elif what in kinds:
        rows = [(name, registry.describe(kinds[what], name)) for name in registry.names(kinds[what])]
    else:
        raise UnknownNameError("list", what, [*kinds, "precisions", "hardware"])
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def showing_kernels(model: Path, data: Path | None, batch_size: int, length: int, threads: int) -> None:
    """Prints what each layer of a file runs as, and where the time goes, on standard output."""
    from qnas_plugin.measure import operator_times
    from qnas_plugin.quantizers import kernels

    layers = kernels.layers(model)
    inputs = operator_times.made_up(model, batch_size, length) if data is None else operator_times.read_inputs(data)
    times = operator_times.measure(model, inputs, threads=threads)
    output = Console(highlight=False)
    table = Table(box=box.SIMPLE)
    for column in ("layer", "stored", "runs as", "ms", "%"):
        table.add_column(column, justify="right" if column in ("ms", "%") else "left", overflow="fold")
    for layer in layers:
        ms = sum(times.nodes.get(name, 0.0) for name in layer.nodes)
        style = "yellow" if layer.int8 and not layer.integer else None
        stored = "INT8" if layer.int8 else "FP32"
        table.add_row(layer.name, stored, str(layer), f"{ms:.4f}", f"{100 * ms / times.run:.1f}", style=style)
    output.print(table)
    table = Table(box=box.SIMPLE)
    for column in ("operator", "calls", "ms", "%"):
        table.add_column(column, justify="left" if column == "operator" else "right")
    rest = max(0.0, times.run - sum(times.operators.values()))
    for operator, ms in [*times.operators.items(), ("between them", rest)]:
        calls = str(times.counts.get(operator, ""))
        table.add_row(operator, calls, f"{ms:.4f}", f"{100 * ms / times.run:.1f}")
    output.print(table)
    output.print(kernels.summary(layers, times.operators, times.run), soft_wrap=True)


def ranking_predictors(study: Path) -> None:
    """Prints how well predictors rank the trials of a study, on standard output."""
    from qnas_plugin.commands.ranking import ranking

    output = Console(highlight=False)
    for metric, points in ranking(study).items():
        table = Table(title=f"{metric}, of trials that were not learned from", title_justify="left", box=box.SIMPLE)
        for column in ("learned from", "predictor", "Kendall tau", "error / constant's", "MAPE"):
            table.add_column(column, justify="left" if column == "predictor" else "right")
        for point in points:
            ratio = f"{point.error / point.constant:.2f}" if point.constant else "-"
            table.add_row(str(point.rows), point.name, f"{point.tau:.3f}", ratio, f"{point.mape:.2%}")
        output.print(table)
    output.print("A constant has a tau of 0; an error of 1.00 is that of a constant, whatever its MAPE is.")


@contextmanager
def _bar(last: str) -> Iterator[Progress]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn(last),
        console=console,
    ) as bar:
        yield bar


def _say_tenths(done: int, total: int, text: str) -> None:
    """A line for each tenth of the work, where there is no terminal to draw a bar on."""
    if not console.is_terminal and done * 10 // total > (done - 1) * 10 // total:
        console.print(f"{done} of {total}: {text}")
