"""Stops each command at random moments, gives it again until it is done, and counts what that breaks.

    python benchmarks/kill_commands.py [--kills 20] [--commands train tune ...] [--seed 0]

Each command runs on a small random ViT and scikit-learn's digits, once undisturbed and then stopped so many times, by
SIGKILL and SIGTERM in turn, at a moment drawn uniformly from the time that the undisturbed run takes; a run that is
done before that is begun anew in another folder. ``profile`` has a budget of its own. All counts but the first two
must be 0. What is left is counted when a following start has had its chance to remove it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from kill import save_checkpoint

from qnas_plugin.files.locks import PART, SCRATCH
from qnas_plugin.hardware import describe, write_profile
from qnas_plugin.hardware.machine import detect

COUNTS = ("kills", "runs")
FAULTS = (
    "tracebacks",
    "wrong exit codes",
    "refused to continue",
    "finished work lost",
    "results that differ",
    "folders left behind",
    "processes left behind",
)
FINISHED = (0, 3, 4)
"""Exit codes of what is done; the last two say that no member keeps the limits."""

Done = Callable[[Path], object]


@dataclass(frozen=True)
class Command:
    """A command line of ``qnas`` without ``--out``, what of its work is on disk, and what its result is.

    Args:
        arguments: Without the output folder.
        progress: How much is finished, as a number that must never fall.
        result: What must be equal to that of a run that nobody stopped; None where times decide.
    """

    arguments: list[str]
    progress: Callable[[Path], int]
    result: Done


def main() -> None:
    """Prints a table, a column a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("train", "tune", "profile", "export", "retarget")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--commands", nargs="+", default=names, choices=names)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qnas-kill-") as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        os.environ |= {"XDG_CACHE_HOME": name, "TMPDIR": str(folder / "tmp"), "QNAS_HOME": str(folder / "home")}
        commands = prepare(folder, set(arguments.commands))
        table = {
            command: stop_and_go(folder, command, commands[command], arguments.kills, arguments.seed)
            for command in arguments.commands
        }
    print(f"{'':24}" + "".join(f"{command:>10}" for command in table))
    for row in (*COUNTS, *FAULTS):
        print(f"{row:24}" + "".join(f"{counts[row]:10}" for counts in table.values()))
    sys.exit(any(counts[fault] for counts in table.values() for fault in FAULTS))


def stop_and_go(folder: Path, name: str, command: Command, kills: int, seed: int) -> Counter[str]:
    """Runs a command to its end again and again until it was stopped so many times; the counts."""
    rng, counts = np.random.default_rng(seed), Counter(dict.fromkeys((*COUNTS, *FAULTS), 0))
    began = time.monotonic()
    start(command, folder / f"{name}-whole").communicate()
    seconds, expected = time.monotonic() - began, command.result(folder / f"{name}-whole")
    while counts["kills"] < kills:
        out = folder / f"{name}-{counts['runs']}"
        one_run(command, out, kills, seconds, rng, counts)
        counts["results that differ"] += command.result(out) != expected
        counts["runs"] += 1
        print(f"{name}: {counts['kills']} of {kills} kills", file=sys.stderr)
        left = [*out.rglob(f".*{PART}"), *out.rglob(f"{SCRATCH}*"), *(folder / "tmp").glob(f"{SCRATCH}*")]
        counts["folders left behind"] += len(left)
    return counts


def one_run(
    command: Command, out: Path, kills: int, seconds: float, rng: np.random.Generator, counts: Counter[str]
) -> None:
    """One run to its end, stopped on the way."""
    done = 0
    while True:
        process = start(command, out)
        stop = (signal.SIGKILL, signal.SIGTERM)[counts["kills"] % 2]
        if counts["kills"] < kills:
            try:
                process.wait(rng.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                children = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(stop)
                counts["kills"] += 1
                error = process.communicate(timeout=120)[1]
                counts["processes left behind"] += len(psutil.wait_procs(children, timeout=20)[1])
                counts["tracebacks"] += "Traceback" in error
                # Before the program has begun, the system's own way to end by a signal is what happens.
                counts["wrong exit codes"] += process.returncode not in (
                    -stop,
                    130 if stop == signal.SIGTERM else -stop,
                )
                now = command.progress(out)
                counts["finished work lost"] += max(0, done - now)
                done = now
                continue
        error = process.communicate()[1]
        counts["tracebacks"] += "Traceback" in error
        if process.returncode not in FINISHED:
            counts["refused to continue"] += 1
            print(error.strip().splitlines()[-1], file=sys.stderr)
        return


def start(command: Command, out: Path) -> subprocess.Popen[str]:
    """The command as a process."""
    line = [sys.executable, "-m", "qnas_plugin", *command.arguments, "--out", str(out)]
    return subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def prepare(folder: Path, names: set[str]) -> dict[str, Command]:
    """The commands, with what they need: a checkpoint, and where asked for a table and a study."""
    sku = write_profile(describe(detect(), "this-machine"), folder / "home" / "hardware_profiles")
    save_checkpoint(folder / "vit")
    source = ["--supernet", "vit", "--checkpoint", str(folder / "vit")]
    data = ["--task", "image_classification", "--data", "digits", "--search-samples", "100"]
    tune = [
        *(
            "tune",
            *source,
            *data,
            "--hardware",
            str(sku),
            "--trials",
            "30",
            "--population",
            "8",
            "--algorithm",
            "random",
        ),
        *("--objective", "accuracy", "--objective", "size_mb", "--max-accuracy-drop", "1"),
    ]
    train = ["train", *source, *data, "--epochs", "8", "--arithmetic", "fp32"]
    profile = ["profile", *source, "--hardware", str(sku), "--budget", "20s", "--seed", "1"]
    study, tables = folder / "study", folder / "home" / "latency_tables"
    commands = {
        "train": Command(train, lambda out: 0, weights),
        "tune": Command(tune, trials, members),
        "profile": Command(profile, lines, lambda out: len(list(out.rglob("*-*.json"))) > 0),
    }
    if names & {"export", "retarget"}:
        timed = [*tune, "--objective", "latency_ms"]
        run(timed, study)
        run(["profile", *source, "--hardware", str(sku), "--budget", "20s"], tables)
        commands["export"] = Command(["export", "--study", str(study)], lambda out: 0, model)
        commands["retarget"] = Command(
            ["retarget", "--study", str(study), "--hardware", str(sku), "--insist", "--evaluate", "3"],
            lambda out: 0,
            retargeted,
        )
    return commands


def run(arguments: list[str], out: Path) -> None:
    """A command that others need."""
    process = start(Command(arguments, lambda out: 0, lambda out: None), out)
    error = process.communicate()[1]
    if process.returncode not in FINISHED:
        raise SystemExit(f"cannot prepare: {error}")


def weights(out: Path) -> object:
    """The trained weights; the last bits of sums depend on nothing that a stop changes."""
    path = out / "model.safetensors"
    return path.read_bytes() if path.exists() else None


def model(out: Path) -> object:
    """The bytes of the model."""
    return (out / "model.onnx").read_bytes() if (out / "model.onnx").exists() else None


def trials(out: Path) -> int:
    """How many trials are stored."""
    path = out / "study.journal"
    return path.read_bytes().count(b'"metrics"') if path.exists() else 0


def lines(out: Path) -> int:
    """How many whole lines were measured."""
    return sum(path.read_bytes().count(b"\n") for path in out.rglob("*.measured.jsonl"))


def members(out: Path) -> object:
    """Keys and bytes of the members that the result names."""
    record = json.loads((out / "pareto.json").read_text())
    return {member["key"]: model(out / member["folder"]) for member in record["members"]}


def retargeted(out: Path) -> object:
    """Keys of the members that the result names, and of the files beside it."""
    record = json.loads((out / "retarget.json").read_text())
    return [member["key"] for member in record["members"]], sorted(path.name for path in (out / "candidates").iterdir())


if __name__ == "__main__":
    main()
