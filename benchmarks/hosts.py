"""One search through every host: whether each evaluates the same policies, and what a trial costs there.

    optimum-cli export onnx --model demo/digits-supernet --task image-classification demo/digits-onnx
    python benchmarks/hosts.py [--olive BIN/PYTHON] [--trials 40]

All have the same ONNX model, data, seed and objectives (accuracy and size, which repeat exactly). Hosts take turns,
each in a process of its own; a trial's cost is the mean time from one trial to the next, the algorithm's share
included. Olive may be in another environment than the rest: name its Python.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

HARDWARE = "demo/this-machine.toml"
OPTIMUM = "import sys; from optimum.commands.optimum_cli import main; sys.argv[0] = 'optimum-cli'; main()"
FIT = """
import sys
import numpy as np, onnxruntime as ort
from qnas_plugin import registry
from qnas_plugin.hosts.neural_compressor import fit
from qnas_plugin.tasks import SplitSizes
model, out, trials, population = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
task = registry.load("tasks", "image_classification")
data, puts = task.load("digits", sizes=SplitSizes(128, 300)), task.processor(model)
calibration = [(batch.inputs, None) for batch in puts.batches(data.calibration.inputs, 8)]
batches = list(puts.batches(data.search.inputs, 32))
def accuracy(candidate):
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(__import__("os").sched_getaffinity(0))
    session = ort.InferenceSession(candidate.SerializeToString(), options, providers=["CPUExecutionProvider"])
    right = [session.run(None, dict(b.inputs))[0].argmax(-1) == data.search.labels[b.positions] for b in batches]
    return float(np.concatenate(right).mean())
fit(model, out=out, calib_dataloader=calibration, eval_func=accuracy, objectives=("accuracy", "size_mb"),
    max_trials=trials, strategy_kwargs={"population": population, "hardware": "demo/this-machine.toml",
                                        "calibration_samples": 128})
"""

Trials = list[tuple[float, float]]
"""Accuracy and bytes of each trial, in order."""


def main() -> None:
    """Runs all hosts and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("demo/digits-onnx/model.onnx"))
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--population", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--olive", type=Path, help="Python of an environment that has Olive")
    given = parser.parse_args()
    search = ["-m", str(given.model), "--task", "image-classification", "--data", "digits"]
    search += ["--objective", "accuracy", "--objective", "size_mb", "--trials", str(given.trials)]
    search += ["--population", str(given.population)]
    here = ["--hardware", HARDWARE, "--search-samples", "300"]
    numbers = [str(given.trials), str(given.population)]
    commands = {
        "qnas tune": lambda out: [[sys.executable, "-m", "qnas_plugin", "tune", *search, *here, "--out", out]],
        "optimum-cli tune": lambda out: [[sys.executable, "-c", OPTIMUM, "tune", *search, *here, "--out", out]],
        "Neural Compressor fit": lambda out: [[sys.executable, "-c", FIT, str(given.model), out, *numbers]],
    }
    if given.olive:
        commands["olive run"] = lambda out: olive(str(given.olive), search, out)
    found: dict[str, Trials] = {}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(prefix="qnas-") as folder:
        environment = os.environ | {"OLIVE_DISABLE_TELEMETRY": "1"}
        for turn in range(given.rounds):
            for name, command in commands.items():
                out = Path(folder) / f"{turn}-{name.replace(' ', '-')}"
                for step in command(str(out)):
                    ran = subprocess.run(step, env=environment, capture_output=True, text=True)
                    if ran.returncode not in (0, 3):
                        raise SystemExit(
                            f"{name} ended with {ran.returncode}:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}"
                        )
                found[name], each = of_olive(out) if name == "olive run" else of_study(out)
                seconds[name].append(each)
    print(f"{given.trials} trials, population {given.population}, {given.rounds} rounds; {given.model}")
    first = found["qnas tune"]
    for name, trials in found.items():
        alike = sum(mine == theirs for mine, theirs in zip(trials, first, strict=True))
        same = "the same" if front(trials) == front(first) else "another"
        cost, base = statistics.mean(seconds[name]), statistics.mean(seconds["qnas tune"])
        print(
            f"{name:22} {alike:3} of {len(first)} trials the same, in order; "
            f"{len(set(trials) & set(first)):3} points in common; front {same}; {cost:.3f} s a trial, "
            f"{1000 * (cost - base):+.0f} ms"
        )


def olive(python: str, search: list[str], out: str) -> list[list[str]]:
    """The two commands of an Olive search."""
    config = Path(f"{out}.toml")
    config.write_text(f"hardware = '{HARDWARE}'\nsearch_samples = 300\n")
    run = ["-m", "olive", "run", "--config", f"{out}/run.json", "--package-config", f"{out}/package.json"]
    return [
        [python, "-m", "qnas_plugin", "olive-config", *search, "--config", str(config), "--out", out],
        [python, *run],
    ]


def of_study(out: Path) -> tuple[Trials, float]:
    """The trials of a study, and the seconds between two."""
    lines = [json.loads(line) for line in (out / "study.journal").read_text().splitlines()]
    stored = [line for line in lines if "candidate" in line.get("user_attrs", {})]
    metrics = [line["user_attrs"]["metrics"] for line in stored]
    ends = [datetime.fromisoformat(line["datetime_complete"]).timestamp() for line in stored]
    return [(row["accuracy"], round(row["size_mb"] * 1e6)) for row in metrics], (ends[-1] - ends[0]) / (len(ends) - 1)


def of_olive(out: Path) -> tuple[Trials, float]:
    """The same of an Olive run."""
    nodes = json.loads(next((out / "olive").rglob("footprint.json")).read_text()).values()
    nodes = sorted((node for node in nodes if node.get("metrics")), key=lambda node: node["end_time"])
    values = [node["metrics"]["value"] for node in nodes]
    ends = [node["end_time"] for node in nodes]
    trials = [(row["accuracy-accuracy_score"]["value"], row["size-bytes"]["value"]) for row in values]
    return trials, (ends[-1] - ends[0]) / (len(ends) - 1)


def front(trials: Trials) -> list[tuple[float, float]]:
    """Trials that no other one is better than."""
    better = lambda a, b: a[0] >= b[0] and a[1] <= b[1] and a != b  # noqa: E731
    return sorted({mine for mine in trials if not any(better(other, mine) for other in trials)})


if __name__ == "__main__":
    main()
