"""Runs mutants through doors and counts what came of them."""

from __future__ import annotations

import contextlib
import math
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Literal

from qnas_plugin.errors import QnasError
from tests.fuzz.doors import Door
from tests.fuzz.mutators import Mutant, place

Outcome = Literal["refused", "accepted", "traceback", "hang", "wrong"]
MEMORY = 3 * 10**9
"""Bytes that reading a mutant may take; sound files take megabytes."""
SECONDS = 20
"""After which a mutant counts as a hang; sound files are read in a tenth of a second."""


class Hang(BaseException):
    """Reading took too long."""


@dataclass
class Counts:
    """What came of the mutants of one kind of file.

    Args:
        outcomes: How many had each outcome.
        faults: Where each kind of fault was first seen, and how often.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)


def outcome(door: Door, folder: Path, mutant: Mutant) -> tuple[Outcome, str]:
    """What comes of one mutant, and the fault, or the message of the refusal, in a line.

    Args:
        door: How the file is read.
        folder: A sound folder, which is left as it was.
        mutant: The file in place of the sound one.
    """
    with tempfile.TemporaryDirectory(prefix="qnas-fuzz-") as name:
        copy = Path(name) / folder.name
        shutil.copytree(folder, copy)
        place(copy / door.file, mutant)
        try:
            with limited(SECONDS), little_memory():
                door.read(copy)
        except QnasError as error:
            text = str(error)
            return ("refused", text) if text.strip() and len(text) < 2000 else ("wrong", f"a message of {len(text)}")
        except Hang:
            return "hang", f"{door.kind}: {mutant if isinstance(mutant, str) else 'content'}"
        except AssertionError as error:
            return "wrong", f"{door.kind}: {_place(error)}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # what must not come out of a door
            return "traceback", f"{door.kind}: {type(error).__name__} at {_place(error)}: {str(error)[:80]!r}"
    return "accepted", ""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises ``Hang`` inside when it takes longer."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Lets this process have some gigabytes more than it has, so that a bomb is a ``MemoryError`` and no more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def run(
    doors: Mapping[str, tuple[Door, Path]], *, seconds: float = math.inf, rounds: float = math.inf, seed: int = 0
) -> dict[str, Counts]:
    """A mutant of each door in turn, for so long or so many rounds; the counts by kind of file."""
    counts = {door.kind: Counts() for door, _ in doors.values()}
    rng, end = Random(seed), time.monotonic() + seconds
    sound = {name: (folder / door.file).read_bytes() for name, (door, folder) in doors.items()}
    while time.monotonic() < end and (rounds := rounds - 1) >= 0:
        for name, (door, folder) in doors.items():
            mutant = door.mutant(rng, sound[name])
            if mutant == sound[name]:
                continue
            came, fault = outcome(door, folder, mutant)
            counts[door.kind].outcomes[came] += 1
            if came not in ("refused", "accepted"):
                counts[door.kind].faults[fault] += 1
    return counts


def report(counts: Mapping[str, Counts]) -> str:
    """The counts as a Markdown table, and the faults below it."""
    names = ("refused", "accepted", "traceback", "hang", "wrong")
    lines = [
        "| file | inputs | refused | accepted | tracebacks | hangs | wrongly accepted |",
        "|---|---|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    for kind, count in counts.items():
        total += count.outcomes
        cells = [sum(count.outcomes.values()), *(count.outcomes[name] for name in names)]
        lines.append(f"| {kind} | " + " | ".join(str(cell) for cell in cells) + " |")
    lines.append(f"| **all** | {sum(total.values())} | " + " | ".join(str(total[name]) for name in names) + " |")
    faults = sum((count.faults for count in counts.values()), Counter[str]())
    return "\n".join([*lines, "", *(f"{number:5} {fault}" for fault, number in faults.most_common())])


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "qnas_plugin" in frame.filename]
    where = ours[-1] if ours else frames[-1]
    return f"{Path(where.filename).name}:{where.lineno} ({where.name})"
