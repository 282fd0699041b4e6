"""Kills workers and drivers of searches at random moments, and counts what that breaks.

    python benchmarks/kill.py [--kills 20] [--seed 0]

Searches of a small random ViT on scikit-learn's digits, with 1, 2 and 3 workers in turn, each driver a process of its
own. SIGKILL hits the driver or one of its workers; a killed driver is started again on the same storage. The last
seven counts must be 0.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from qnas_plugin import registry
from qnas_plugin.data import SplitSizes
from qnas_plugin.errors import QnasError
from qnas_plugin.evaluate import workers
from qnas_plugin.evaluate.bench import Job
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.hardware import RuntimeSetting, describe
from qnas_plugin.hardware.machine import detect
from qnas_plugin.quantizers import range_cache
from qnas_plugin.search import Problem
from qnas_plugin.space import Candidate
from qnas_plugin.study.evaluation import Trial
from qnas_plugin.study.study import Study
from qnas_plugin.supernets import Elastic

OBJECTIVES = ("accuracy", "size_mb")
TRIALS = 60
FREE = ("searches", "trials stored", "drivers killed", "workers killed", "cache entries")
FAULTS = (
    "finished trials lost",
    "trials repeated",
    "trials failed",
    "metrics that differ from one process",
    "studies unreadable",
    "damaged cache entries",
    "processes left behind",
)


def main() -> None:
    """Runs the test, or one driver of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        checkpoint, out, count = arguments.drive
        drive(Path(checkpoint), Path(out), int(count))
        return
    with tempfile.TemporaryDirectory(prefix="qnas-kill-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        counts = kill(Path(folder), arguments.kills, np.random.default_rng(arguments.seed))
    for name, count in counts.items():
        print(f"{name:36} {count}")
    sys.exit(any(counts[name] for name in FAULTS))


def kill(folder: Path, kills: int, rng: np.random.Generator) -> Counter[str]:
    """Runs searches until so many processes were killed; the counts."""
    save_checkpoint(folder / "vit")
    counts = Counter(dict.fromkeys((*FREE, *FAULTS), 0))
    lab = make(folder / "vit")
    while counts["drivers killed"] + counts["workers killed"] < kills:
        out = folder / f"search-{counts['searches']}"
        out.mkdir()
        search(folder / "vit", out, 1 + counts["searches"] % 3, kills, rng, counts)
        counts["searches"] += 1
        check(lab, out, counts)
    for path in range_cache.folder().glob("[!.]*.json"):
        counts["cache entries"] += 1
        counts["damaged cache entries"] += range_cache.load(path.stem) is None
    return counts


def search(checkpoint: Path, out: Path, count: int, kills: int, rng: np.random.Generator, counts: Counter[str]) -> None:
    """One search to its end, through kills."""
    command = [sys.executable, __file__, "--drive", str(checkpoint), str(out), str(count)]
    while True:
        driver = subprocess.Popen(command)
        while driver.poll() is None and counts["drivers killed"] + counts["workers killed"] < kills:
            if rng.random() < 0.3:  # at any moment, also while it starts
                time.sleep(rng.uniform(0, 8))
            else:  # while it searches
                seen = len(finished(out))
                while driver.poll() is None and len(finished(out)) < seen + 3:
                    time.sleep(0.02)
                time.sleep(rng.uniform(0, 0.5))
            children = descendants(driver.pid)
            victims = [child for child in children if "multiprocessing-fork" in " ".join(child.cmdline())]
            if victims and rng.random() < 0.6:
                victims[int(rng.integers(len(victims)))].kill()
                counts["workers killed"] += 1
            elif driver.poll() is None:
                driver.kill()
                counts["drivers killed"] += 1
                counts["processes left behind"] += len(psutil.wait_procs(children, timeout=30)[1])
        status = driver.wait()
        if status == 0:
            return
        if status != -signal.SIGKILL:
            raise SystemExit(f"the driver ended with status {status}")


def descendants(pid: int) -> list[psutil.Process]:
    """The processes that a driver started."""
    try:
        return [child for child in psutil.Process(pid).children(recursive=True) if child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def check(lab: Lab, out: Path, counts: Counter[str]) -> None:
    """Compares what the drivers said was finished with what is stored, and some trials with one process alone."""
    try:
        with open_study(lab, out) as study:
            trials = study.trials()
    except QnasError:
        counts["studies unreadable"] += 1
        return
    keys = Counter(trial.candidate.key for trial in trials)
    counts["trials stored"] += len(trials)
    counts["trials failed"] += sum(trial.state == "failed" for trial in trials)
    counts["trials repeated"] += len(trials) - len(keys)
    counts["finished trials lost"] += sum(key not in keys for key in finished(out))
    for trial in trials[::10]:
        alone = lab.bench.evaluate(job(lab, trial.candidate), out, threads=1)
        counts["metrics that differ from one process"] += trial.metrics != alone.metrics


def drive(checkpoint: Path, out: Path, count: int) -> None:
    """One driver: searches, and writes the key of each trial that it was told is stored."""
    lab = make(checkpoint)
    algorithm = registry.load("search", "random").create(Problem(lab.network.space, OBJECTIVES), seed=0, population=20)
    profile = describe(detect(), "this-machine")

    def said(trial: Trial) -> None:
        with (out / "finished").open("a") as file:
            file.write(f"{trial.candidate.key}\n")

    with open_study(lab, out) as study, workers.connect(count, None, profile.name) as client:
        workers.drive(
            client,
            study,
            algorithm,
            lab.bench,
            lambda candidate: job(lab, candidate),
            profile,
            trials=TRIALS,
            on_trial=said,
        )


def job(lab: Lab, candidate: Candidate) -> Job:
    """A job with a latency as from a table, so that no time goes into measuring."""
    return replace(lab.job(candidate), latency=(1.0, 0.0))


def finished(out: Path) -> list[str]:
    """What drivers said is stored, the last line only when whole."""
    path = out / "finished"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def open_study(lab: Lab, out: Path) -> Study:
    """The study of a search."""
    return Study.open(str(out / "study.journal"), lab.network.space, OBJECTIVES, identity={"of": "kill"})


def make(checkpoint: Path) -> Lab:
    """The lab of a checkpoint."""
    task = registry.load("tasks", "image_classification")
    supernet = registry.load("supernets", "vit").load(
        str(checkpoint), elastic=Elastic((2, 3, 4), (1, 2, 4), (16, 32, 48))
    )
    dataset = task.load("digits", sizes=SplitSizes(calibration=32, search=300))
    return Lab(supernet, dataset, task.processor(str(checkpoint)), describe(detect(), "here"), RuntimeSetting())


def save_checkpoint(folder: Path) -> None:
    """A random ViT for images of 8x8 pixels."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
        num_channels=1,
        initializer_range=0.2,
        id2label={i: str(i) for i in range(10)},
        label2id={str(i): i for i in range(10)},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 8, "width": 8}
    ViTImageProcessor(do_resize=False, image_mean=[0.5], image_std=[0.5], size=size).save_pretrained(folder)


if __name__ == "__main__":
    main()
