"""A verified candidate, and the outcome of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qnas_plugin.space import Candidate

if TYPE_CHECKING:
    import pandas

REFERENCES = ("largest-int8", "largest-fp32")
"""The baselines that every model is compared with."""


@dataclass(frozen=True)
class Member:
    """A candidate that was built, run and measured on the report part.

    Args:
        name: Unique in the result.
        candidate: What it is.
        search: What the search believes of it; without a latency where the search did not ask for it.
        report: Accuracy on the report part, latency, size.
        latency: All about the latency.
        against: Comparison with each reference, by its name.
        folder: Relative to the output folder.
        dominated: Whether another verified model is at least as good in all objectives and better in one.
        baseline: The name of the baseline that is the same candidate.
        kernels: What each precision group runs as, and the INT8 groups that are not computed in integers.
    """

    name: str
    candidate: Candidate
    search: Mapping[str, float]
    report: Mapping[str, float]
    latency: Mapping[str, Any]
    against: Mapping[str, Mapping[str, float]]
    folder: str
    dominated: bool = False
    baseline: str | None = None
    kernels: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in ``pareto.json``."""
        return {
            "name": self.name,
            "key": self.candidate.key,
            "candidate": dict(self.candidate),
            "search": dict(self.search),
            "report": dict(self.report),
            "latency": dict(self.latency),
            "against": {name: dict(values) for name, values in self.against.items()},
            "folder": self.folder,
            "dominated": self.dominated,
            "baseline": self.baseline,
            "kernels": dict(self.kernels),
        }


@dataclass(frozen=True)
class Result:
    """The outcome of a search.

    Args:
        members: The Pareto set, the best in the first objective after accuracy first.
        baselines: The corners of the space.
        recommended: The name of the member or baseline to deploy; None when none keeps all limits.
        reason: One sentence that says what was allowed and found, or what keeps the nearest members from it.
        kept: Whether the recommended one keeps all limits on the report part too; None without a recommended one.
        record: Everything, as it stands in ``pareto.json``.
    """

    members: tuple[Member, ...]
    baselines: tuple[Member, ...]
    recommended: str | None
    reason: str
    kept: bool | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def choice(self) -> Member | None:
        """The recommended member, or the baseline that nothing better was shown than."""
        return next((each for each in (*self.members, *self.baselines) if each.name == self.recommended), None)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each member and baseline, by name: verified metrics, and how it stands against all-INT8."""
        import pandas

        rows = [
            {
                "name": member.name,
                "key": member.candidate.key,
                "baseline": member in self.baselines,
                "recommended": member.name == self.recommended,
                "dominated": member.dominated,
                **member.report,
                **{f"search_{metric}": value for metric, value in member.search.items()},
                **member.against.get(REFERENCES[0], {}),
                "folder": member.folder,
            }
            for member in (*self.members, *self.baselines)
        ]
        return pandas.DataFrame(rows).set_index("name")
