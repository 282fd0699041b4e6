"""A command of ``qnas`` that is stopped at random moments and given again until it is done, and what that breaks."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from qnas_plugin import cli
from qnas_plugin.files.locks import PART, SCRATCH

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
STOPS = (KILL, TERM, KILL, INT, KILL)
FINISHED = (0, 3, 4)
"""Exit codes of what is done; the last two say that no member keeps the limits."""

FAULTS = ("lost", "differ", "torn", "refused", "traceback", "code", "left")
COLUMNS = ("kills", "of parts", "runs", "resumed", *FAULTS, "MB", "seconds")
MOST_MB = 6000
"""Memory at which a process counts as running away, and everything ends."""


@dataclass(frozen=True)
class Command:
    """A command line of ``qnas`` and how to see what became of it.

    Args:
        arguments: Without the output folder.
        work: What the command says when its work begins.
        kept: What of the work is on disk and must stay there.
        result: The result in a folder, None before there is one; what is torn raises an error or is in it as None.
        exact: Whether ``kept`` ends as it does undisturbed.
        start: The folder that each run begins with a copy of.
        fork: Whether it may begin in a process that has its libraries loaded already.
    """

    arguments: list[str]
    work: str
    kept: Callable[[Path], Collection[Any]]
    result: Callable[[Path], object]
    exact: bool = True
    start: Path | None = None
    fork: bool = True


class Chain:
    """The runs of one command, their counts, and the times of the undisturbed run."""

    def __init__(self, folder: Path, name: str, command: Command, kills: int, minutes: float, seed: int) -> None:
        self.folder, self.name, self.command, self.kills = folder, name, command, kills
        self.rng, self.counts = np.random.default_rng(seed), Counter(dict.fromkeys(COLUMNS, 0))
        began = time.monotonic()
        whole = self._fresh("whole")
        self._start(whole, afresh=True)
        self._watch(self._has_begun)
        self.start_up = time.monotonic() - began
        self._watch(lambda: False)
        if self.process.exitcode not in FINISHED:
            raise SystemExit(f"{name} fails undisturbed: {self.log.read_text()}")
        self.span = time.monotonic() - began - self.start_up
        self.expected, self.steps = command.result(whole), command.kept(whole)
        self.before = None if command.start is None else command.result(command.start)
        self.end = time.monotonic() + 60 * minutes

    def row(self) -> Counter[str]:
        """Runs until it was stopped often enough; the counts."""
        began = time.monotonic()
        while self._may_kill():
            out = self._fresh(str(self.counts["runs"]))
            self._one_run(out)
            self.counts["runs"] += 1
            kept = self.command.kept(out)
            self.counts["differ"] += self._result(out) != self.expected
            self.counts["differ"] += self.command.exact and kept != self.steps
            self.counts["left"] += len(found := left(self.folder, out))
            for path in found:
                self._say(f"left behind: {path}")
        self.counts["seconds"] = round(time.monotonic() - began)
        return self.counts

    def _one_run(self, out: Path) -> None:
        """One run to its end, stopped on the way."""
        steps: Collection[Any] = ()
        for number in range(1000):
            self._start(out, afresh=number == 0 or self.rng.random() < 0.2 or not self.command.fork)
            stopped = self._stopped_once()
            now = self.command.kept(out)
            self.counts["lost"] += (lost := sum(step not in now for step in steps))
            if lost:
                self._say(f"lost {lost} of {len(steps)}")
            self.counts["resumed"] += number > 0 and (stopped or self.process.exitcode in FINISHED)
            steps = now
            self.counts["torn"] += self._result(out) not in (None, self.before, self.expected)
            if not stopped:
                if self.process.exitcode not in FINISHED:
                    self.counts["refused"] += 1
                    self._say(f"refused: {self.log.read_text()[-2000:]}")
                return

    def _stopped_once(self) -> bool:
        """Whether the running process was stopped before it was done; a process of its own may be killed before."""
        apart = False
        while self._may_kill():
            self._wait()
            family = self._family()
            parts = [part for part in family if re.search(r"timing_process|multiprocessing.spawn", line(part))]
            if self.process.exitcode is not None:
                return False
            if parts and not apart and self.rng.random() < 0.4:
                parts[int(self.rng.integers(len(parts)))].kill()
                self.counts["kills"] += 1
                self.counts["of parts"] += 1
                apart = True
                continue
            self._stop(STOPS[self.counts["kills"] % len(STOPS)], family)
            return self.process.exitcode not in FINISHED  # else it was done before
        self._watch(lambda: False)
        return False

    def _stop(self, stop: signal.Signals, family: list[psutil.Process]) -> None:
        os.kill(self.process.pid or 0, stop)
        end = time.monotonic() + 60
        if self._watch(lambda: time.monotonic() > end):
            self.counts["code"] += 1
            self._say(f"runs on 60 s after {stop.name}")
            self.process.kill()
        self.process.join()
        status, text = self.process.exitcode, self.log.read_text()
        if status in FINISHED:
            return
        self.counts["kills"] += 1
        said = text.partition("Traceback")[0].strip() or "in main" in text
        # Before the program has begun, the interpreter's own way to end by a signal is what happens.
        if stop != KILL and (said or status != -stop) and (status != 130 or "Traceback" in text):
            self.counts["code"] += status != 130
            self.counts["traceback"] += "Traceback" in text
            self._say(f"status {status} after {stop.name}: {text[-2000:]}")
        alive = [child for child in psutil.wait_procs(family, timeout=20)[1] if line(child)]
        self.counts["left"] += len(alive)
        self._say(f"{stop.name}, {len(alive)} processes left" if alive else stop.name)

    def _wait(self) -> None:
        """Waits for the moment of a kill."""
        if self.rng.random() < 0.25:
            span = self.start_up
        else:
            self._watch(self._has_begun)
            span = self.span if self.rng.random() < 0.5 else 2 * self.span / self.kills
        moment = time.monotonic() + self.rng.uniform(0, span)
        self._watch(lambda: time.monotonic() > moment)

    def _watch(self, until: Callable[[], bool]) -> bool:
        """Whether something came true before the process ended; notes the memory of the largest process meanwhile."""
        while self.process.exitcode is None:
            if until():
                return True
            for each in (psutil.Process(self.process.pid), *self._family()):
                with suppress(psutil.NoSuchProcess):
                    megabytes = each.memory_info().rss // 10**6
                    self.counts["MB"] = max(self.counts["MB"], megabytes)
                    if megabytes > MOST_MB:
                        self._say(f"{megabytes} MB: {line(each)}")
                        self.process.kill()
                        raise SystemExit("a process runs away with the memory")
            time.sleep(0.05)
        return False

    def _family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def _fresh(self, name: str) -> Path:
        out = self.folder / f"{self.name}-{name}"
        if self.command.start is not None:
            shutil.copytree(self.command.start, out)
        return out

    def _start(self, out: Path, afresh: bool) -> None:
        self.log = out.with_suffix(".log")
        self.log.touch()
        arguments = [*self.command.arguments, "--out", str(out)]
        self.process = get_context("fork").Process(target=run, args=(arguments, self.log, afresh))
        self.process.start()

    def _has_begun(self) -> bool:
        return self.command.work in self.log.read_text()

    def _may_kill(self) -> bool:
        return self.counts["kills"] < self.kills and time.monotonic() < self.end

    def _result(self, out: Path) -> object:
        try:
            return self.command.result(out)
        except (OSError, ValueError, KeyError) as error:
            return error

    def _say(self, text: str) -> None:
        print(f"{self.name}, run {self.counts['runs']}, {self.counts['kills']} kills: {text}", file=sys.stderr)


def run(arguments: list[str], log: Path, afresh: bool) -> None:
    """The command in this process, or in the program that it is."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if afresh:
        os.execv(sys.executable, [sys.executable, "-m", "qnas_plugin", *arguments])
    cli.main(arguments)


def left(folder: Path, out: Path) -> list[Path]:
    """What is neither a result nor something to go on with."""
    found = [path for path in out.rglob(".*") if path.name.endswith(PART) or path.name == ".verifying"]
    found += [path for path in folder.rglob(f"{SCRATCH}*") if path.is_dir()]
    return [*found, *folder.glob("run/qnas/workers-*"), *folder.glob("cache/qnas/**/.*")]


def line(process: psutil.Process) -> str:
    """The command line; empty when the process has ended."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""
