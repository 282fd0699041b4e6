"""An ONNX file to its latency: everything is measured on the file that ships."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from qnas_plugin.data import Inputs
from qnas_plugin.errors import HardwareError, MeasurementError
from qnas_plugin.files.locks import scratch
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.hardware.machine import cores
from qnas_plugin.hardware.turns import measuring
from qnas_plugin.measure import timing_process
from qnas_plugin.measure.accuracy import SILENT_SECONDS, members_bytes

# Weights in memory take up to this times their file: the file's own, and packed for the processor.
_MEMORY_PER_FILE = 3


@dataclass(frozen=True)
class Latency:
    """Single runs of a model, in milliseconds.

    Args:
        median: Over all runs of all rounds.
        std: Standard deviation of single runs; far more than the uncertainty of the median.
        runs: How many were timed.
        seconds: How long they took together.
        round_medians: The median of each round; that they agree is what shows a quiet machine.
        core_share: The part of the time, in [0, 1], in which the model had its core for itself. Well below 1, something
            else ran on it.
    """

    median: float
    mean: float
    std: float
    p90: float
    p95: float
    p99: float
    minimum: float
    runs: int
    seconds: float
    round_medians: tuple[float, ...]
    core_share: float

    @property
    def spread(self) -> float:
        """How far the rounds are apart, relative to the median: what a repetition may differ by."""
        return (max(self.round_medians) - min(self.round_medians)) / self.median

    def to_dict(self) -> dict[str, Any]:
        """All fields and the spread, for JSON."""
        return asdict(self) | {"round_medians": list(self.round_medians), "spread": self.spread}


def time_models(
    models: Sequence[Path],
    inputs: Inputs,
    setting: RuntimeSetting,
    *,
    minimum_runs: int = 30,
    minimum_seconds: float = 0.8,
    rounds: int = 4,
) -> list[Latency]:
    """Times models on the same inputs, in their order.

    They run in a process of their own, pinned to the least busy cores of one socket, a core a thread. In each round
    every model has its turn, in alternating order, so that what disturbs the machine for a while hits all alike. A turn
    starts with a warm-up, and is repeated, twice at most, when something else ran on its core. Sessions stay loaded if
    all fit in half of the free memory, otherwise each is loaded for its turn. Only one measurement goes on at a time
    for one user of a machine; others wait.

    By default a model of 5 ms takes a second and a half.

    Args:
        inputs: Arrays of the shape that the latency is for.
        minimum_runs: Runs of each model over all rounds.
        minimum_seconds: Time of each model over all rounds.

    Raises:
        MeasurementError: A model cannot be run, or the process ended in another way than it should.
        HardwareError: There are fewer CPUs than threads.
    """
    if not models:
        return []
    assert min(minimum_runs, rounds) >= 1
    with scratch() as folder, measuring():
        np.savez(folder / "inputs.npz", *inputs.values())
        timing_process.Request(
            models=tuple(str(model.absolute()) for model in models),
            inputs=tuple(inputs),
            threads=setting.threads,
            spinning=setting.spinning,
            arena=setting.arena,
            cpus=_quiet_cpus(setting.threads),
            rounds=rounds,
            runs_per_turn=-(-minimum_runs // rounds),
            seconds_per_turn=minimum_seconds / rounds,
            keep_loaded=_fit_in_memory(models),
        ).write(folder)
        _run(folder)
        with np.load(folder / "times.npz") as stored:
            return [
                _summary([stored[f"{i}.{turn}"] for turn in range(rounds)], stored["core_share"][i])
                for i in range(len(models))
            ]


def disturbed(latencies: Sequence[Latency], setting: RuntimeSetting) -> bool:
    """Whether something else ran on the core while one of them was measured.

    Threads that sleep while they wait leave their cores of their own accord; there it cannot be told.
    """
    if setting.threads > 1 and not setting.spinning:
        return False
    return any(latency.core_share < timing_process.UNDISTURBED for latency in latencies)


def _summary(turns: Sequence[npt.NDArray[np.float64]], core_share: npt.NDArray[np.float64]) -> Latency:
    times = np.concatenate(turns)
    p90, p95, p99 = np.percentile(times, [90, 95, 99]).tolist()
    return Latency(
        median=float(np.median(times)),
        mean=float(times.mean()),
        std=float(times.std()),
        p90=p90,
        p95=p95,
        p99=p99,
        minimum=float(times.min()),
        runs=len(times),
        seconds=float(times.sum() / 1e3),
        round_medians=tuple(float(np.median(turn)) for turn in turns),
        core_share=float(core_share.mean()),
    )


def _run(folder: Path) -> None:
    """Runs the timing process on a folder, and once more when it was killed: a trial that failed is never tried again.

    Raises:
        MeasurementError: It ended in another way than it should.
    """
    status = _process(folder)
    if status < 0:
        status = _process(folder)
    if status == 0:
        return
    if (folder / "error").exists():
        raise MeasurementError((folder / "error").read_text(encoding="utf-8"))
    if status < 0:
        hint = "; the system may have run out of memory" if -status == signal.SIGKILL else ""
        raise MeasurementError(f"the timing process was ended twice, by {signal.Signals(-status).name}{hint}")
    lines = (folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise MeasurementError(f"the timing process ended with status {status}: {lines[-1] if lines else 'no message'}")


def _process(folder: Path) -> int:
    """The exit status of the timing process; when this ends in whatever way, so has the process."""
    # Its own session, so that Ctrl-C reaches this process alone, which then ends the other.
    with (
        (folder / "stderr").open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "qnas_plugin.measure.timing_process", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path)},
        ) as process,
    ):
        try:
            return _status(process)
        finally:
            process.kill()


def _status(process: subprocess.Popen[bytes]) -> int:
    """The exit status of the timing process, whose output is a sign of life after each long run.

    Raises:
        MeasurementError: It gave none for too long.
    """
    assert process.stdout is not None
    output = process.stdout.fileno()
    while select.select([output], [], [], SILENT_SECONDS)[0]:
        if not os.read(output, 4096):
            return process.wait()
    raise MeasurementError(
        f"the timing process was silent for {SILENT_SECONDS:g} s: it is stopped, or a model hangs when loaded or run"
    )


def _quiet_cpus(threads: int) -> tuple[int, ...]:
    """One CPU a thread: of different cores where possible, of one socket where possible, and the least busy."""
    usable = cores()
    if threads > sum(len(core.cpus) for core in usable):
        raise HardwareError(
            f"the setting asks for {threads} threads, and this process may use "
            f"{sum(len(core.cpus) for core in usable)} CPUs; lower 'threads'"
        )
    if not hasattr(psutil.Process, "cpu_affinity"):
        return ()
    busy = psutil.cpu_percent(interval=0.1, percpu=True)
    pools: dict[int, list[tuple[int, float, int]]] = {}
    for core in usable:
        load = sum(busy[cpu] for cpu in core.cpus if cpu < len(busy))
        pools.setdefault(core.socket, []).extend((sibling, load, cpu) for sibling, cpu in enumerate(core.cpus))
    everywhere = [place for pool in pools.values() for place in pool]
    choices = [
        sorted(pool)[:threads] for pool in (pools.values() if len(pools) > 1 else ()) if len(pool) >= threads
    ] or [sorted(everywhere)[:threads]]
    best = min(choices, key=lambda choice: [sum(column) for column in zip(*choice, strict=True)])
    return tuple(cpu for _, _, cpu in best)


def _fit_in_memory(models: Sequence[Path]) -> bool:
    return _MEMORY_PER_FILE * members_bytes(models) < psutil.virtual_memory().available / 2
