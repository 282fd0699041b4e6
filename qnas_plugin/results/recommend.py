"""Which member to deploy, and the sentence that says so: what was allowed, what was shown, what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.measure.metrics import METRICS, shown
from qnas_plugin.measure.metrics.metric import Metric
from qnas_plugin.objectives import Limit, sign
from qnas_plugin.request import TuneRequest
from qnas_plugin.results.member import Member
from qnas_plugin.results.selection import MOST, Pick, p_value, pick, plan
from qnas_plugin.results.statistics import Paired, gain, interval

Floats = npt.NDArray[np.float64]

INTERVAL = 0.9
"""The confidence of the interval of what was found on the report part."""

BETTER = {"latency_ms": "faster", "size_mb": "smaller", "gmacs": "less work", "gbitops": "less work"}
"""What a member is that gains in an objective."""

MARGIN = 0.5
"""Without examples that nothing was searched on, a member may lose this share of what is allowed."""


@dataclass(frozen=True)
class Part:
    """A part of the data as the recommendation sees it.

    Args:
        count: Its examples; 0 where there is none.
        scores: The scores ``(count,)`` of a member.
        clusters: For each example the number of its group, where examples of a group depend on each other.
    """

    count: int
    scores: Callable[[Member], Floats]
    clusters: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Told:
    """The metric that stands as accuracy, and how people are told of it.

    Args:
        metric: What it is.
        name: What it is called.
    """

    metric: Metric = METRICS["accuracy"]
    name: str = "accuracy"

    @classmethod
    def of(cls, metric: Metric, name: str) -> Told:
        """The metric of that name, as `measure.metrics.load` takes it."""
        return cls(metric, shown(name))

    def better(self, value: float, other: float) -> float:
        """By how much a value is better than another one."""
        return gain(value, other, self.metric.direction)

    def amount(self, value: float) -> str:
        """Some accuracy, in points or in units of the metric."""
        return f"{100 * value:.2f} points of {self.name}" if self.metric.points else f"{value:.4g} of {self.name}"

    def bare(self, value: float, *, sign: bool = True) -> str:
        """A difference without its unit."""
        scaled = 100 * value if self.metric.points else value
        digits = ".2f" if self.metric.points else ".4g"
        return f"{scaled:+{digits}}" if sign else f"{scaled:{digits}}"

    @property
    def unit(self) -> str:
        """What stands behind a bare difference."""
        return "points" if self.metric.points else f"of {self.name}"


@dataclass(frozen=True)
class Recommendation:
    """What to deploy.

    Args:
        name: Of a member, or of the reference where nothing better was shown; None when nothing keeps all limits.
        reason: One sentence.
        kept: Whether it keeps all limits on the report part; None without a name.
        selection: How it was chosen, as it stands in ``pareto.json``.
        limit: What was allowed and found on the report part, as it stands in ``pareto.json``.
    """

    name: str | None
    reason: str
    kept: bool | None
    selection: Mapping[str, Any]
    limit: Mapping[str, Any]


def goal(request: TuneRequest) -> str:
    """The objective that the recommended member is best in: the first one after accuracy."""
    return next(name for name in request.objectives if name != "accuracy")


def recommend(
    members: Sequence[Member],
    reference: Member,
    request: TuneRequest,
    *,
    selection: Part,
    report: Part,
    told: Told = Told(),
) -> Recommendation:
    """Chooses the member that is best in the objective after accuracy and was shown to lose no more than allowed.

    Latency and size of a member are known from verification. Its accuracy is tested on the selection part: members are
    tested in an order that the search's beliefs decide, each against "it loses more than allowed", and the rest is
    `results.selection`'s. Where there is no such part, a member is taken at what the search believes of it, with
    half of the allowed loss as margin.

    Args:
        members: The verified Pareto set.
        reference: The baseline that they are compared with.
        request: Has limits, allowed loss and confidence.
        selection: On which nothing was searched.
        report: What the choice is judged by; it chooses nothing.
        told: What stands as accuracy.
    """
    fitting = [member for member in members if member.candidate != reference.candidate and _fits(member, request)]
    gains = np.array([reference.report[goal(request)] / member.report[goal(request)] for member in fitting])
    if selection.count:
        outcome = _tested(fitting, gains, reference, request, selection, told)
        chosen = None if outcome.chosen is None else fitting[outcome.chosen]
        how = _selection_record(outcome, fitting, selection, told)
    else:
        outcome, chosen = None, _believed(fitting, gains, reference, request, told)
        how = {"rule": "margin", "examples": 0, "margin": MARGIN, "allowed": request.max_accuracy_drop}
    if chosen is None and _fits(reference, request) and not _floors_broken(reference, request):
        chosen = reference  # nothing better was shown
    if chosen is None:
        return Recommendation(
            None, _none(members, reference, request, told), None, how, _limit_record(None, request, None)
        )
    between = None
    if chosen is not reference:
        pair = Paired.of(report.scores(chosen), report.scores(reference), told.metric)
        between = interval(pair, INTERVAL, report.clusters)
        if between is not None and told.metric.direction == "minimize":  # a difference, like the one beside it
            between = -between[1], -between[0]
    lost = told.better(reference.report["accuracy"], chosen.report["accuracy"])
    kept = lost <= request.max_accuracy_drop + 1e-12 and not _floors_broken(chosen, request)
    if chosen is reference:
        why = _nothing_better(outcome, fitting, gains, request, told)
        reason = f"keep {_full(request)}, {reference.folder}/model.onnx: {why}"
    else:
        found = _found(chosen, between, report, request, kept, told)
        reason = f"deploy {_ratios(chosen, request)}; {_shown(request, selection, told)}; {found}"
    return Recommendation(chosen.name, reason, kept, how, _limit_record(chosen, request, between, kept))


def _fits(member: Member, request: TuneRequest) -> bool:
    """Whether a member keeps the limits on latency and size, which are known."""
    return all(limit.violation(member.report) == 0 for limit in request.parsed_limits if limit.metric != "accuracy")


def _floors(request: TuneRequest) -> list[Limit]:
    return [limit for limit in request.parsed_limits if limit.metric == "accuracy"]


def _floors_broken(member: Member, request: TuneRequest) -> bool:
    return any(limit.violation(member.report) > 0 for limit in _floors(request))


def _tested(
    fitting: Sequence[Member],
    gains: Floats,
    reference: Member,
    request: TuneRequest,
    selection: Part,
    told: Told,
) -> Pick:
    known: dict[str, Floats] = {}

    def scores(member: Member) -> Floats:
        if member.name not in known:
            known[member.name] = selection.scores(member)
        return known[member.name]

    def other_limits(i: int) -> float:
        """The worst p-value of "its accuracy is beyond a limit"."""
        return max((_beyond(scores(fitting[i]), limit, selection, told) for limit in _floors(request)), default=0.0)

    believed = np.array([member.search["accuracy"] for member in fitting])
    chain = plan(-sign(told.metric.direction) * believed, gains)
    return pick(
        chain,
        lambda i: Paired.of(scores(fitting[i]), scores(reference), told.metric),
        gains,
        allowed=request.max_accuracy_drop if not told.metric.mean else min(request.max_accuracy_drop, MOST),
        confidence=request.confidence,
        clusters=selection.clusters,
        others=other_limits,
    )


def _beyond(scores: Floats, limit: Limit, selection: Part, told: Told) -> float:
    """The p-value of "the accuracy is truly beyond a limit"; for a mean that of a loss against an ideal model."""
    if told.metric.mean:
        return p_value(scores - 1, float(np.clip(1 - limit.value, 0, MOST)), selection.clusters)
    pair = Paired.of(scores, np.full(len(scores), limit.value), told.metric)
    better = pair.differences * (1 if (limit.comparison == ">=") == (told.metric.direction == "maximize") else -1)
    return p_value(better, 0.0, selection.clusters)


def _believed(
    fitting: Sequence[Member], gains: Floats, reference: Member, request: TuneRequest, told: Told
) -> Member | None:
    most = MARGIN * request.max_accuracy_drop + 1e-12
    allowed = [
        i
        for i, member in enumerate(fitting)
        if told.better(reference.search["accuracy"], member.search["accuracy"]) <= most
        and all(limit.violation(member.search) <= 1e-12 for limit in _floors(request))
        and gains[i] > 1
    ]
    return fitting[max(allowed, key=lambda i: gains[i])] if allowed else None


def _selection_record(outcome: Pick, fitting: Sequence[Member], selection: Part, told: Told) -> dict[str, Any]:
    towards = -sign(told.metric.direction)
    return {
        "rule": "tests",
        "examples": selection.count,
        "groups": None if selection.clusters is None else len(np.unique(selection.clusters)),
        "allowed": outcome.allowed,
        "confidence": outcome.confidence,
        "tests": [
            {
                "name": fitting[test.member].name,
                "difference": towards * test.difference,
                "p_value": test.p_value,
                "passed": test.passed,
            }
            for test in outcome.tests
        ],
        "missing": None
        if outcome.missing is None
        else {"limit": outcome.missing.limit, "examples": outcome.missing.examples},
    }


def _limit_record(
    chosen: Member | None, request: TuneRequest, between: tuple[float, float] | None, kept: bool | None = None
) -> dict[str, Any]:
    return {
        "allowed": request.max_accuracy_drop,
        "against": request.reference,
        "found": None if chosen is None else chosen.against.get(request.reference, {}).get("accuracy_difference", 0.0),
        "interval": None if between is None else list(between),
        "interval_confidence": INTERVAL,
        "kept": kept,
    }


def _ratios(member: Member, request: TuneRequest) -> str:
    ratio = member.against[request.reference]
    size = ratio["size_ratio"]
    sized = f"{size:.2f}x smaller" if size >= 1 else f"{1 / size:.2f}x larger"
    return f"{member.folder}/model.onnx: {ratio['latency_ratio']:.2f}x as fast and {sized} than {_full(request)}"


def _shown(request: TuneRequest, selection: Part, told: Told) -> str:
    allowed = told.amount(request.max_accuracy_drop)
    if selection.count:
        return (
            f"{selection.count} examples that nothing was searched on show at {request.confidence:.0%} confidence that "
            f"it loses no more than the allowed {allowed}"
        )
    return (
        f"it was chosen on the data that was searched on, with half of the allowed {allowed} as margin, so that "
        "nothing is promised for other data"
    )


def _found(
    member: Member,
    between: tuple[float, float] | None,
    report: Part,
    request: TuneRequest,
    kept: bool,
    told: Told,
) -> str:
    difference = member.against.get(request.reference, {}).get("accuracy_difference", 0.0)
    spanned = f" ({told.bare(between[0])} to {told.bare(between[1])})" if between else ""
    where = f"on the {report.count} report examples" if report.count else "where it was chosen"
    verdict = "the limit is kept" if kept else "more than allowed: the limit is not kept there"
    return f"{where} the difference is {told.bare(difference)} {told.unit}{spanned}, {verdict}"


def _nothing_better(
    outcome: Pick | None, fitting: Sequence[Member], gains: Floats, request: TuneRequest, told: Told
) -> str:
    allowed = told.amount(request.max_accuracy_drop)
    if not (gains > 1).any():
        return f"no member is {BETTER[goal(request)]} and keeps the other limits"
    if outcome is None:
        return (
            f"nothing faster or smaller loses less than {MARGIN:.0%} of the allowed {allowed} on the data searched on"
        )
    begin = (
        f"nothing better was shown to lose no more than {allowed}, at {outcome.confidence:.0%} confidence on "
        f"{outcome.examples} selection examples"
    )
    nearest, missing = fitting[outcome.tests[0].member], outcome.missing
    assert missing is not None  # a member was tested and none passed
    there = -sign(told.metric.direction) * outcome.tests[0].difference
    end = f"; nearest is {nearest.folder}, at {told.bare(there)} {told.unit} there"
    more = "" if missing.examples is None else f", or with about {missing.examples} examples"
    return f"{begin}{end}: it would pass with {told.bare(missing.limit, sign=False)} {told.unit} allowed{more}"


def _none(members: Sequence[Member], reference: Member, request: TuneRequest, told: Told) -> str:
    def known(member: Member) -> dict[str, float]:
        return {**member.report, "accuracy": member.search["accuracy"]}

    worse = sign(told.metric.direction) * request.max_accuracy_drop
    value = round(reference.search["accuracy"] + worse, 6)
    floor = Limit("accuracy", ">=" if told.metric.direction == "maximize" else "<=", value)
    limits = [*request.parsed_limits, floor]
    nearest = min(members, key=lambda member: sum(limit.violation(known(member)) for limit in limits))
    broken = [limit for limit in limits if limit.violation(known(nearest)) > 0]
    if broken:
        why = f"{broken[0].metric} {known(nearest)[broken[0].metric]:.4g} against {broken[0]}"
    else:
        why = f"not enough shown of its accuracy at {request.confidence:.0%} confidence"
    return (
        f"no member keeps {' and '.join(map(str, limits))}; nearest is {nearest.folder} with {why}; relax the limit or "
        "raise --trials"
    )


def _full(request: TuneRequest) -> str:
    return f"the full network in {request.against.upper()}"
