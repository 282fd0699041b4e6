"""The process that times models: ``python -m qnas_plugin.measure.timing_process FOLDER``, started by
``qnas_plugin.measure.latency``.

It imports numpy, onnxruntime and psutil only, so that it starts fast and nothing else runs in it. In the folder it
finds ``request.json`` and ``inputs.npz``; it leaves ``times.npz``, or ``error`` with one line. A dot on standard output
says that it still runs.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import psutil

from qnas_plugin.errors import reason
from qnas_plugin.runtimes.onnxruntime import feed, session

_SPIN = 0.08  # seconds in which threads of ONNX Runtime 1.31 look for work after a run: they would slow the next model
UNDISTURBED = 0.97


@dataclass(frozen=True)
class Request:
    """What to time and how.

    Args:
        models: ONNX files.
        inputs: Names of the arrays in ``inputs.npz``, in their order.
        threads: Threads that compute one operator together.
        spinning: Whether these threads wait for work in a loop rather than asleep.
        arena: Whether the runtime keeps freed memory for itself.
        cpus: Logical CPUs to run on; empty for all.
        rounds: How often each model has its turn.
        runs_per_turn: Runs that a turn has at least.
        seconds_per_turn: Seconds that a turn lasts at least.
        keep_loaded: Whether all models stay in memory; otherwise each is loaded for its turn.
    """

    models: Sequence[str]
    inputs: Sequence[str]
    threads: int
    spinning: bool
    arena: bool
    cpus: Sequence[int]
    rounds: int
    runs_per_turn: int
    seconds_per_turn: float
    keep_loaded: bool

    @classmethod
    def read(cls, folder: Path) -> Request:
        """What ``write`` put there."""
        return cls(**json.loads((folder / "request.json").read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """Puts it where the process looks for it."""
        (folder / "request.json").write_text(json.dumps(asdict(self)), encoding="utf-8")


def main(folder: Path) -> int:
    """Times what the request says; 0 when ``times.npz`` is there.

    ``times.npz`` has the milliseconds of each run as ``{model}.{turn}``, and as ``core_share``, shape
    ``(models, rounds)``, the part of each turn in which the main thread had its core.
    """
    request = Request.read(folder)
    with np.load(folder / "inputs.npz") as stored:
        inputs = dict(zip(request.inputs, stored.values(), strict=True))
    if request.cpus:
        psutil.Process().cpu_affinity([request.cpus[0]])  # of this thread; others are pinned by their sessions
    loaded: dict[int, onnxruntime.InferenceSession] = {}
    arrays: dict[str, npt.NDArray[np.float64]] = {}
    core_share = np.empty((len(request.models), request.rounds))
    gc.disable()
    for turn in range(request.rounds):
        # Back and forth, so that no model always comes first or always follows the same one.
        for i in range(len(request.models))[:: 1 if turn % 2 == 0 else -1]:
            try:
                model = loaded.get(i) or session(
                    request.models[i],
                    request.threads,
                    spinning=request.spinning,
                    arena=request.arena,
                    cpus=request.cpus,
                )
                _tell()
                warm_up = 1 if i in loaded else 10
                arrays[f"{i}.{turn}"], core_share[i, turn] = _undisturbed_turn(
                    model, feed(model, inputs), request, warm_up
                )
            except Exception as error:  # what ONNX Runtime 1.31 raises has no common class
                message = f"cannot time '{Path(request.models[i]).name}': {reason(error)}"
                (folder / "error").write_text(message, encoding="utf-8")
                return 1
            if request.keep_loaded:
                loaded[i] = model
            del model
    np.savez(folder / "times.npz", core_share=core_share, **arrays)
    return 0


def _undisturbed_turn(
    model: onnxruntime.InferenceSession, inputs: dict[str, npt.NDArray[Any]], request: Request, warm_up: int
) -> tuple[npt.NDArray[np.float64], float]:
    """The first of three turns that had its core for itself, or the one that had most of it."""
    best = _turn(model, inputs, request, warm_up)
    for _ in range(2):
        # A thread that may sleep leaves its core of its own accord.
        if best[1] >= UNDISTURBED or (request.threads > 1 and not request.spinning):
            break
        best = max(best, _turn(model, inputs, request, 1), key=lambda turn: turn[1])
    return best


def _turn(
    model: onnxruntime.InferenceSession, inputs: dict[str, npt.NDArray[Any]], request: Request, warm_up: int
) -> tuple[npt.NDArray[np.float64], float]:
    """Milliseconds of each run, and the part of the time in which the main thread had its core."""
    if request.threads > 1 and request.spinning:
        time.sleep(_SPIN)
    begin, runs = time.perf_counter(), 0
    while runs < 1 or (runs < warm_up and time.perf_counter() - begin < 0.2):
        model.run(None, inputs)
        runs += 1
    _tell()
    times: list[int] = []
    least = int(request.seconds_per_turn * 1e9)
    on_core = time.thread_time_ns()
    start = end = told = time.perf_counter_ns()
    while len(times) < request.runs_per_turn or end - start < least:
        before = time.perf_counter_ns()
        model.run(None, inputs)
        end = time.perf_counter_ns()
        times.append(end - before)
        if end - told > 1e9:
            _tell()
            told = end
    share = (time.thread_time_ns() - on_core) / (end - start)
    return np.array(times) / 1e6, min(share, 1.0)


def _tell() -> None:
    """A sign of life for the parent."""
    sys.stdout.write(".")
    sys.stdout.flush()


def _end_with_parent() -> None:
    """Ends this process when the parent, which holds the other end of stdin, is gone in whatever way."""

    def wait() -> None:
        # Not sys.stdin: its lock, held by this thread, aborts the interpreter's shutdown.
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    sys.exit(main(Path(sys.argv[1])))
