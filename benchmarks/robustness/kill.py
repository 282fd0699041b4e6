"""Stops each command of ``qnas`` at random moments, gives it again until it is done, and counts what that breaks.

    python -m benchmarks.robustness.kill [--kills 20] [--commands train tune ...] [--minutes 8] [--seed 0]

A small random ViT and scikit-learn's digits. Each command runs once undisturbed; then it is stopped, three times of
five by SIGKILL, else by SIGTERM or SIGINT, and goes on in the same folder: a chain of kills is one run. A command that
is done before that many kills begins anew in another folder. Some kills hit a process of the command's own (one that
times models, a worker) in place of the command, which has to go on without it. A quarter of the moments lie in the
start-up; the others in the work, half of them soon after it began, so that a chain gets far, half anywhere in the time
that the undisturbed run took. Four starts of five after a stop are forked from a process that has the libraries loaded,
which saves their seconds; those with workers never. No new kill comes after ``--minutes`` of a command.

    kills, of parts   how many, and how many of them hit a process of the command's own
    runs, resumed     runs to the end, and starts after a stop that went on
    lost              finished work that was not there any more
    differ            results that differ from the undisturbed run; for tune, trials too
    torn              results that were half there after a stop
    refused           starts that ended with an error
    traceback, code   stops that showed a traceback, or ended with another code than 130
    left              processes, temporary folders and half-written files that stayed
    MB                memory of the largest process

All columns from ``lost`` to ``left`` must be 0.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection
from hashlib import sha256
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.robustness.chain import COLUMNS, FAULTS, FINISHED, Chain, Command
from qnas_plugin.hardware import RuntimeSetting, describe, write_profile
from qnas_plugin.hardware.machine import detect
from qnas_plugin.latency.table import write
from qnas_plugin.quantizers import range_cache
from qnas_plugin.supernets import vit
from tests.commands.conftest import ELSEWHERE, THERE, table_of

NAMES = ("train", "tune", "tune-workers", "verify", "profile", "export", "retarget")
LIBRARIES = (
    *(f"qnas_plugin.{name}" for name in ("console", "commands.export", "commands.profile", "commands.retarget")),
    *(f"qnas_plugin.{name}" for name in ("commands.train", "commands.tune", "search.linas")),
    *("accelerate", "plotly.graph_objects", "sklearn.datasets", "torch.onnx", "transformers.models.vit"),
)
ALL_STEPS = range(10**5)


def main() -> None:
    """Prints a table, a row a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--commands", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell all below would ignore it
    torch.set_num_threads(1)  # what is forked must have no threads
    for name in LIBRARIES:
        import_module(name)
    faults = 0
    with tempfile.TemporaryDirectory(prefix="qnas-kill-") as place:
        folder = Path(place)
        commands = prepare(folder, set(given.commands))
        print("| command | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|", sep="\n")
        for name in given.commands:
            counts = Chain(folder, name, commands[name], given.kills, given.minutes, given.seed).row()
            counts["torn"] += sum(
                range_cache.load(path.stem) is None for path in range_cache.folder().glob("[!.]*.json")
            )
            faults += sum(counts[fault] for fault in FAULTS)
            print(f"| {name} | " + " | ".join(str(counts[column]) for column in COLUMNS) + " |", flush=True)
    sys.exit(faults > 0)


def prepare(folder: Path, names: set[str]) -> dict[str, Command]:
    """The commands, with what they need: a checkpoint, a hardware profile, and where asked for a study and a table."""
    for name in ("tmp", "run"):
        (folder / name).mkdir(mode=0o700)
    homes = {"XDG_CACHE_HOME": "cache", "TMPDIR": "tmp", "XDG_RUNTIME_DIR": "run", "QNAS_HOME": "home"}
    os.environ |= {name: str(folder / place) for name, place in homes.items()} | {"OMP_NUM_THREADS": "1"}
    tempfile.tempdir = None  # else what is forked keeps the one from before
    here = str(write_profile(describe(detect(), "this-machine"), folder / "home" / "hardware_profiles"))
    (folder / "vit").mkdir()
    checkpoint = str(vit.tiny(folder / "vit").checkpoint)
    source = ["--supernet", "vit", "--checkpoint", checkpoint]
    data = ["--task", "image_classification", "--data", "digits", "--search-samples", "100"]
    shape = ["--population", "8", "--max-accuracy-drop", "1", "--objective", "accuracy", "--objective", "size_mb"]
    tune = ["tune", *source, *data, *shape]
    measured = [*tune, "--hardware", here]
    looked_up = [*tune, "--hardware", THERE, "--latency", "table", "--table", made_up_table(checkpoint, folder, THERE)]
    searching, retarget = "Searching with", ["--hardware", ELSEWHERE, "--evaluate", "3"]
    train = ["train", *source, *data, "--epochs", "15", "--arithmetic", "fp32"]
    workers = [*looked_up, "--algorithm", "random", "--workers", "2", "--trials", "24"]
    profile = ["profile", *source, "--hardware", here, "--budget", "20s"]
    commands = {
        "train": Command(train, "Training on", steps, weights),
        "tune": Command([*looked_up, "--trials", "24"], searching, trials, members),
        "tune-workers": Command(workers, searching, trials, members, fork=False),
        "profile": Command(profile, "Timing the parts", visits, table, exact=False),
    }
    if "verify" in names:
        done = made(folder / "done", [*measured, "--trials", "6"])
        commands["verify"] = Command([*measured, "--trials", "8"], "Verifying", trials, members, start=done)
    if names & {"export", "retarget"}:
        study = str(made(folder / "study", [*looked_up, "--objective", "latency_ms", "--trials", "16"]))
        retarget += ["--study", study, "--table", made_up_table(checkpoint, folder, ELSEWHERE)]
        commands["export"] = Command(["export", "--study", study], "", nothing, model)
        commands["retarget"] = Command(["retarget", *retarget], "Searching on", nothing, candidates)
    return commands


def made_up_table(checkpoint: str, folder: Path, sku: str) -> str:
    """A latency table of made-up milliseconds, so that nothing is timed."""
    supernet = vit.load(checkpoint)
    content = table_of(supernet, sku, 0 if sku == THERE else 1)
    setting = RuntimeSetting(resolution=8)
    return str(write(content.model_copy(update={"supernet": "vit", "setting": setting}), folder / "tables"))


def made(out: Path, arguments: list[str]) -> Path:
    """What a command that others need wrote."""
    print(f"preparing: {arguments[0]}", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "qnas_plugin", *arguments, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode not in FINISHED:
        raise SystemExit(f"cannot prepare: {done.stderr}")
    return out


def nothing(out: Path) -> Collection[object]:
    """Of a command that begins again."""
    return ()


def steps(out: Path) -> Collection[object]:
    """The steps of a training that are kept."""
    if (out / "supernet.json").exists():
        return ALL_STEPS
    path = out / "training.pt"
    return ALL_STEPS[: int(torch.load(path, weights_only=True)["done"])] if path.exists() else ()


def weights(out: Path) -> object:
    """The trained weights."""
    return digest(out / "model.safetensors") if (out / "supernet.json").exists() else None


def trials(out: Path) -> Collection[object]:
    """Each stored trial, as often as it is there: its candidate, values and state, sorted."""
    path = out / "study.journal"
    found = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []
    return sorted(
        (str(line["user_attrs"]["candidate"]), tuple(line["values"] or ()), int(line["state"]))
        for line in found
        if "candidate" in line.get("user_attrs", ())
    )


def members(out: Path) -> object:
    """Keys and bytes of the members and baselines that the result names."""
    path = out / "pareto.json"
    if not path.exists():
        return None
    record = json.loads(path.read_bytes())
    named = {each["folder"]: each["key"] for each in (*record["members"], *record["baselines"])}
    for name, key in named.items():
        if json.loads((out / name / "candidate.json").read_bytes())["key"] != key:
            raise ValueError(f"{name} is another candidate")
    return sorted((key, name, digest(out / name / "model.onnx")) for name, key in named.items()), record["recommended"]


def visits(out: Path) -> Collection[object]:
    """Whole lines of measurements."""
    return [line for path in out.rglob("*.measured.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]


def table(out: Path) -> object:
    """Whether there is a table with rows."""
    return any(len(json.loads(path.read_bytes())["rows"]) > 0 for path in out.glob("*/*.json")) or None


def model(out: Path) -> object:
    """The bytes of the model."""
    return digest(out / "model.onnx") if (out / "model.onnx").exists() else None


def candidates(out: Path) -> object:
    """The members that the result names, whose files are there."""
    if not (out / "retarget.json").exists():
        return None
    found = json.loads((out / "retarget.json").read_bytes())["members"]
    for number, member in enumerate(found, 1):
        path = out / "candidates" / f"{number}-{member['key']}.json"
        if json.loads(path.read_bytes())["key"] != member["key"]:
            raise ValueError(f"{path} is another candidate")
    return found


def digest(path: Path) -> str:
    """Of a file's bytes."""
    return sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
