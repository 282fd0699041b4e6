"""What each single decision does to a network's score: one variable changed at a time around a centre.

The score is the mean soft score over the search examples where the metric has one, else the mean score. Changes of
single decisions, added up over the variables that a candidate has, rank candidates before any of them was evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qnas_plugin.additive import Term
from qnas_plugin.errors import StudyError, door, quoted
from qnas_plugin.files import write_json
from qnas_plugin.files.doors import read_json
from qnas_plugin.space import Candidate, Genes, SearchSpace, Value

SCHEMA_VERSION = 1
REMEDY = "make it anew with: qnas sensitivity"


@dataclass(frozen=True)
class Change:
    """What one choice of one variable does.

    Args:
        variable: Its name.
        choice: The value that it was set to.
        mean: The mean of the examples' scores minus that of the centre.
        error: The standard error of that, paired example by example.
        accuracy: The same difference of the metric itself.
    """

    variable: str
    choice: Value
    mean: float
    error: float
    accuracy: float


@dataclass(frozen=True)
class Sensitivity:
    """The changes around a centre.

    Args:
        centre: The candidate of which one variable at a time was changed.
        score: What was averaged, ``accuracy_soft`` or the metric's name.
        value: The centre's.
        examples: How many were scored.
        identity: What the numbers depend on: network, data, metric.
        changes: One for each choice that the centre does not have.
    """

    centre: Mapping[str, Value]
    score: str
    value: float
    examples: int
    identity: Mapping[str, str]
    changes: tuple[Change, ...] = field(default=())

    def terms(self, space: SearchSpace) -> tuple[Term, ...]:
        """What each decision takes away from the score, as something that is to be small.

        Raises:
            StudyError: A variable of the space was not measured.
        """
        known = {(change.variable, change.choice): change.mean for change in self.changes}
        terms = []
        for variable in space.variables:
            losses = []
            for choice in variable.choices:
                if (variable.name, choice) not in known and self.centre.get(variable.name) != choice:
                    raise StudyError(
                        f"the sensitivity table has nothing of '{variable.name}' = {quoted(choice)}; measure it with: "
                        "qnas sensitivity"
                    )
                losses.append(-known.get((variable.name, choice), 0.0))
            terms.append(Term((variable.name,), np.array(losses)[:, None]))
        return tuple(terms)

    def ranked(self) -> list[Change]:
        """The changes, what loses most first."""
        return sorted(self.changes, key=lambda change: (change.mean, change.variable, str(change.choice)))

    def fragile(self) -> tuple[str, ...]:
        """The precision groups that lose more than three standard errors in some format, what loses most first."""
        lost = [
            change for change in self.ranked() if change.mean < -3 * change.error and "precision." in change.variable
        ]
        return tuple(dict.fromkeys(change.variable.removeprefix("precision.") for change in lost))

    def write(self, path: Path) -> None:
        """Writes it as JSON.

        Raises:
            OutputError: The folder cannot be written.
        """
        write_json(
            path,
            {
                "schema_version": SCHEMA_VERSION,
                "centre": dict(self.centre),
                "score": self.score,
                "value": self.value,
                "examples": self.examples,
                "identity": dict(self.identity),
                "changes": [vars(change) for change in self.changes],
            },
        )

    @classmethod
    def read(cls, path: Path) -> Sensitivity:
        """What ``write`` wrote.

        Raises:
            StudyError: It cannot be read.
        """
        record = read_json(path, StudyError, REMEDY)
        with door(StudyError, f"{path} is not a sensitivity table of this version", REMEDY):
            if record["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"its schema_version is {quoted(record['schema_version'])}")
            changes = tuple(
                Change(str(entry["variable"]), entry["choice"], *(_number(entry[name]) for name in _NUMBERS))
                for entry in record["changes"]
            )
            return cls(
                dict(record["centre"]),
                str(record["score"]),
                _number(record["value"]),
                int(record["examples"]),
                {str(name): str(value) for name, value in record["identity"].items()},
                changes,
            )


_NUMBERS = ("mean", "error", "accuracy")


def single_changes(space: SearchSpace, centre: Candidate) -> Iterator[tuple[str, Value, Candidate]]:
    """Each choice that a centre does not have, and the centre with it; variables that it lacks are left out."""
    genes: Genes = space.encode(centre)
    for i, variable in enumerate(space.variables):
        if variable.name not in centre:
            continue
        for k, choice in enumerate(variable.choices):
            if choice != centre[variable.name]:
                changed = genes.copy()
                changed[i] = k
                yield variable.name, choice, space.decode(changed)


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{quoted(value)} is no number")
    return number
