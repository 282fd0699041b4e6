"""What each single decision does to the accuracy: the additive table of a network and its data."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qnas_plugin.additive.sensitivity import Change, Sensitivity, single_changes
from qnas_plugin.commands.loading import load
from qnas_plugin.errors import CandidateError, StudyError
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.files import make_folder, write_bytes
from qnas_plugin.files.doors import opened
from qnas_plugin.files.locks import alone_in, scratch
from qnas_plugin.measure.belief import SOFT
from qnas_plugin.measure.metrics import Scored
from qnas_plugin.objectives import sign
from qnas_plugin.request import TuneRequest
from qnas_plugin.space import Candidate

FILE = "sensitivity.json"
IDENTITY = ("supernet", "checkpoint", "data", "processor", "max_length", "metric", "quantizer")
"""What of a study's identity the numbers depend on: no hardware."""


def sensitivity(
    request: TuneRequest,
    *,
    lab: Lab | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
    on_change: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """Builds and scores the full network in FP32 with each single decision changed, and writes ``sensitivity.json``.

    Each score is on disk before the next one is measured, so a stopped run goes on where it was.

    Args:
        request: What is asked, as of a search; latencies are not needed.
        lab: What it names, where it is loaded already.
        on_stage: Is told what begins.
        on_change: Is told how many of how many are done.

    Raises:
        QnasError: The request cannot be met; what was measured stays.
    """
    make_folder(request.out)
    if lab is None:
        on_stage("Loading the data and the network")
        lab = load(request, measures=False)
    space = lab.network.space
    centre = space.corners["largest-fp32"]
    identity = _identity(lab)
    single = list(single_changes(space, centre))
    with alone_in(request.out), scratch() as folder:
        known = _Scores(request.out / "sensitivity.jsonl", identity)
        on_stage(
            f"Scoring the full network and {len(single)} single changes of it on {len(lab.dataset.search)} examples"
        )
        whole = known.get(lab, centre, folder)
        base, name = _of(whole)
        changes = []
        for done, (variable, choice, candidate) in enumerate(single, 1):
            scored = known.get(lab, candidate, folder)
            difference = (_of(scored)[0] - base) * (1 if name == SOFT else -sign(lab.metric.direction))
            changes.append(
                Change(
                    variable,
                    choice,
                    float(difference.mean()),
                    float(difference.std() / len(difference) ** 0.5),
                    float((scored.scores - whole.scores).mean()),
                )
            )
            on_change(done, len(single))
        found = Sensitivity(dict(centre), name, float(base.mean()), len(base), identity, tuple(changes))
        found.write(request.out / FILE)
        write_bytes(request.out / "sensitivity.csv", _csv(found).encode())
    return found


def _csv(found: Sensitivity) -> str:
    """A line for each change, what loses most first."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["variable", "choice", "change", "standard_error", "change_of_accuracy"])
    lines.writerows([c.variable, c.choice, c.mean, c.error, c.accuracy] for c in found.ranked())
    return text.getvalue()


def sensitivity_in(folder: Path, lab: Lab) -> Sensitivity:
    """The table in a folder, of this network and these data.

    Raises:
        StudyError: There is none, or it is of other ones.
    """
    found = Sensitivity.read(folder / FILE)
    now = _identity(lab)
    if differing := [name for name in sorted({*now, *found.identity}) if now.get(name) != found.identity.get(name)]:
        raise StudyError(
            f"{folder / FILE} is of another {differing[0]}: {found.identity.get(differing[0], 'unset')}, not "
            f"{now.get(differing[0], 'unset')}; make it anew with: qnas sensitivity"
        )
    return found


def _identity(lab: Lab) -> dict[str, str]:
    """What the numbers depend on, by name."""
    known = {name: lab.identity[name] for name in IDENTITY if name in lab.identity}
    return known | {"space": lab.network.space.fingerprint}


def _of(scored: Scored) -> tuple[np.ndarray[Any, np.dtype[np.float64]], str]:
    """The scores that count, and their name."""
    return (scored.scores, "accuracy") if scored.soft is None else (scored.soft, SOFT)


class _Scores:
    """Scores of candidates, kept line by line; a damaged line, and scores of another state, are measured again."""

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path, self.identity = path, dict(identity)
        self.known: dict[str, Scored] = {}
        if self.path.exists():
            with opened(self.path) as file:
                content = file.read()
            for line in content.decode("utf-8", "replace").splitlines():
                self._take(line)
            if content and not content.endswith(b"\n"):  # a cut line must not swallow the next one
                with self.path.open("a", encoding="utf-8") as lines:
                    lines.write("\n")

    def get(self, lab: Lab, candidate: Candidate, folder: Path) -> Scored:
        """The scores of a candidate, measured where they are not known.

        Raises:
            CandidateError: It cannot be built or run.
        """
        if candidate.key not in self.known:
            path = folder / "model.onnx"
            try:
                lab.write(candidate, path)
                scored = lab.scores(path, "search")
            except CandidateError as error:
                raise type(error)(f"candidate {candidate.key}: {error}") from error
            soft = None if scored.soft is None else scored.soft.round(6).tolist()
            record = {"key": candidate.key, "identity": self.identity, "scores": scored.scores.tolist(), "soft": soft}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record | {"at": round(time.time())}) + "\n")
            self._keep(record)
        return self.known[candidate.key]

    def _take(self, line: str) -> None:
        try:
            record = json.loads(line)
            if record["identity"] == self.identity:
                self._keep(record)
        except (ValueError, TypeError, KeyError, RecursionError):
            return

    def _keep(self, record: Mapping[str, Any]) -> None:
        soft = None if record["soft"] is None else np.array(record["soft"], dtype=np.float64)
        self.known[str(record["key"])] = Scored(np.array(record["scores"], dtype=np.float64), soft)
