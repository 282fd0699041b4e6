"""One search through every host: whether each evaluates the same policies, and what a trial costs there.

    optimum-cli export onnx --model demo/digits-supernet --task image-classification demo/digits-onnx
    python benchmarks/search/hosts.py [--olive BIN/PYTHON] [--trials 40]

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
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

HARDWARE = "demo/this-machine.toml"
OPTIMUM = "import sys; from optimum.commands.optimum_cli import main; sys.argv[0] = 'optimum-cli'; main()"
FIT = """
import sys
import numpy as np, onnxruntime as ort
from qnas_plugin import registry
from qnas_plugin.hosts.neural_compressor import fit
from qnas_plugin.data import SplitSizes
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

LATENCY_TOO = """
import json, sys
run = json.load(open(sys.argv[1]))
unranked = {"name": "p50", "priority": -1, "higher_is_better": False}
run["evaluators"]["qnas"]["metrics"].append({"name": "latency", "type": "latency", "sub_types": [unranked]})
json.dump(run, open(sys.argv[1], "w"))
"""


@dataclass(frozen=True)
class Run:
    """What a host evaluated.

    Args:
        trials: Policy (a letter a group), accuracy and bytes of each trial, in order.
        seconds: Mean time from one to the next.
        rest: The part of it that is neither building nor measuring, where that is known.
    """

    trials: list[tuple[str, float, float]]
    seconds: float
    rest: float | None = None

    @property
    def policies(self) -> list[str]:
        """Of all trials, in order."""
        return [policy for policy, *_ in self.trials]

    @property
    def front(self) -> set[str]:
        """The policies that no other one is better than."""

        def better(mine: tuple[str, float, float], theirs: tuple[str, float, float]) -> bool:
            return mine[1] >= theirs[1] and mine[2] <= theirs[2] and mine[1:] != theirs[1:]

        return {mine[0] for mine in self.trials if not any(better(theirs, mine) for theirs in self.trials)}


def main() -> None:
    """Runs all hosts and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("demo/digits-onnx/model.onnx"))
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--population", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
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
    print(f"{given.trials} trials, population {given.population}; {given.model}")
    first: Run | None = None
    with tempfile.TemporaryDirectory(prefix="qnas-") as folder:
        for turn in range(given.rounds):
            for name, command in commands.items():
                out = Path(folder) / f"{turn}-{name.replace(' ', '-')}"
                if not all(ended_well(name, step) for step in command(str(out))):
                    continue
                ran = of_olive(out) if name == "olive run" else of_study(out)
                first = first or ran
                print(f"{name:22} {compared(ran, first)}", flush=True)


def compared(ran: Run, first: Run) -> str:
    """How a host's run stands to the first one."""
    same = zip(ran.policies, first.policies, strict=True)
    alike = next((i for i, (mine, theirs) in enumerate(same) if mine != theirs), len(first.policies))
    common = len({*ran.policies} & {*first.policies})
    own = "" if ran.rest is None else f", {1000 * ran.rest:.0f} ms of it neither building nor measuring"
    return (
        f"the first {alike} of {len(first.policies)} policies the same in order, {common} in common, front "
        f"{'the same' if ran.front == first.front else 'another'}; {ran.seconds:.3f} s a trial{own}"
    )


def ended_well(name: str, command: list[str]) -> bool:
    """Runs a command and says why if it fails; no member that keeps the limits is no failure."""
    environment = os.environ | {"OLIVE_DISABLE_TELEMETRY": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ran.returncode not in (0, 3):
        print(f"{name} ended with {ran.returncode}:\n{(ran.stdout + ran.stderr)[-4000:]}")
    return ran.returncode in (0, 3)


def olive(python: str, search: list[str], out: str) -> list[list[str]]:
    """The commands of an Olive search that measures latencies too, as all others do whatever they search for."""
    config = Path(f"{out}.toml")
    config.write_text(f"hardware = '{HARDWARE}'\nsearch_samples = 300\n")
    write = ["-m", "qnas_plugin", "olive-config", *search, "--config", str(config), "--out", out]
    run = ["-m", "olive", "run", "--config", f"{out}/run.json", "--package-config", f"{out}/package.json"]
    return [[python, *write], [python, "-c", LATENCY_TOO, f"{out}/run.json"], [python, *run]]


def of_study(out: Path) -> Run:
    """The trials of a study."""
    storage = JournalStorage(JournalFileBackend(str(out / "study.journal")))
    trials = optuna.load_study(study_name=None, storage=storage).trials
    ends = [trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete]
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    work = statistics.mean(sum(trial.user_attrs["seconds"].values()) for trial in trials[1:])
    found = []
    for trial in trials:
        policy = "".join(choice[0] for name, choice in trial.params.items() if name.startswith("precision."))
        found.append((policy, trial.user_attrs["metrics"]["accuracy"], trial.user_attrs["metrics"]["size_mb"]))
    return Run(found, seconds, seconds - work)


def of_olive(out: Path) -> Run:
    """The trials of an Olive run."""
    nodes = json.loads(next((out / "olive").rglob("footprint.json")).read_text()).values()
    nodes = sorted((node for node in nodes if node.get("metrics")), key=lambda node: node["end_time"])
    groups = json.loads((out / "run.json").read_text())["passes"]["qnas"]
    found = []
    for node in nodes:
        policy = "".join(node["pass_run_config"][name][0] for name in sorted(groups) if name.startswith("group_"))
        values = node["metrics"]["value"]
        found.append((policy, values["accuracy-accuracy_score"]["value"], values["size-bytes"]["value"]))
    ends = [node["end_time"] for node in nodes]
    return Run(found, (ends[-1] - ends[0]) / (len(ends) - 1))


if __name__ == "__main__":
    main()
