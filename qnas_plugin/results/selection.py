"""Which member to recommend: tests on examples that nothing was searched on, with a stated chance of error.

Pareto Testing (Laufer-Goldshtein et al., ICLR 2023). Members that the search believes to be on the front of accuracy
and gain (how many times faster or smaller than the reference they are) are tested on the selection part, the most
accurate first, each against "it truly loses more accuracy than allowed", each at the level 1 - confidence, until one
fails (`plan`, `pick`). The fastest that passed is recommended. The first member of the chain that really loses too much
passes with at most this probability, and unless it passes nothing behind it is tested: so the chance that the
recommended member loses too much is at most 1 - confidence, whatever the search believed. ``docs/recommendation.md``
has what other rules gained in comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import betainc
from scipy.stats import beta, binom, norm

from qnas_plugin.results.statistics import Paired

Floats = npt.NDArray[np.float64]
Clusters = npt.NDArray[np.int64]

CONFIDENCE = 0.9
NUISANCE = 0.001
"""Part of each p-value that pays for not knowing how many examples two models differ on (Berger and Boos 1994)."""
SHARES = 16
"""The worst share of differing examples is sought among so many, and again around the worst of them."""
VARIANCES = np.geomspace(0.002, 0.05, 3)
"""Bets are the best ones for differences of these variances."""
MOST = 1 - 1e-9
CHANCE = 0.8
"""With which a member as good as it looks would pass, were there as many examples as `Missing` says."""


@dataclass(frozen=True)
class Test:
    """One member on the selection part.

    Args:
        member: Its position among the members.
        difference: The mean of its scores minus those of the reference, above 0 when it is better.
        p_value: How likely so good a result is, at most, when it truly loses more than allowed.
        passed: Whether it was shown to lose no more.
    """

    member: int
    difference: float
    p_value: float
    passed: bool


@dataclass(frozen=True)
class Missing:
    """What it would have taken for the first member of the chain, the most accurate one, to pass.

    Args:
        limit: The smallest loss of accuracy that it was shown to keep, at the same confidence, in units of the metric.
        examples: Selection examples with which it would probably pass, if it is as good as it looked; None when it
            looked worse than allowed, so that more examples would not help.
    """

    limit: float
    examples: int | None


@dataclass(frozen=True)
class Pick:
    """The outcome of all tests.

    Args:
        chosen: Position of the member to recommend; None when none passed and the reference stays.
        tests: Of the chain, in its order, up to the first that failed.
        allowed: Loss of accuracy.
        confidence: That the chosen member loses no more.
        examples: On which they were tested.
        missing: When none passed; None also when there was no member to test.
    """

    chosen: int | None
    tests: tuple[Test, ...]
    allowed: float
    confidence: float
    examples: int
    missing: Missing | None


def plan(accuracies: Floats, gains: Floats) -> tuple[int, ...]:
    """The chain of members to test, in order, as positions among the members.

    These are the members that gain something and that no other one is believed to beat in both accuracy and gain; the
    one with the smallest gain, which is the most accurate, comes first. What is given must not depend on the selection
    part. It decides how much is found, never how often that is wrong.

    Args:
        accuracies: Believed accuracy of each member, ``(m,)``, or its difference from the reference's.
        gains: How many times faster or smaller than the reference each member is, ``(m,)``.
    """
    chain: list[int] = []
    best = -math.inf
    for i in np.lexsort((accuracies, gains))[::-1].tolist():
        if gains[i] > 1 and accuracies[i] > best:
            chain.append(i)
            best = accuracies[i]
    return tuple(reversed(chain))


def pick(
    chain: Sequence[int],
    paired: Callable[[int], Paired],
    gains: Floats,
    *,
    allowed: float,
    confidence: float = CONFIDENCE,
    clusters: Clusters | None = None,
    others: Callable[[int], float] = lambda member: 0.0,
) -> Pick:
    """Tests members of a chain until one fails, and chooses the one with the largest gain that passed.

    Args:
        chain: Positions of members, in an order that does not depend on the selection part.
        paired: Gives how much better a member is than the reference on each of ``n`` examples of the selection part.
            Asked for the members of the chain only, one after another.
        gains: How many times faster or smaller than the reference each member is, ``(m,)``.
        allowed: Loss of accuracy, at least 0.
        confidence: That what is chosen loses no more.
        clusters: As for `p_value`.
        others: Gives the p-value of a member's other limits; it passes with all of them.
    """
    tests: list[Test] = []
    count, first = 0, None
    for member in chain:
        pair = paired(member)
        count, first = len(pair.differences), pair if first is None else first
        p = max(p_value(pair.differences, _share(allowed, pair), clusters), others(member))
        tests.append(Test(member, pair.scale * float(pair.differences.mean()), p, p <= 1 - confidence + 1e-12))
        if not tests[-1].passed:
            break
    passed = [test.member for test in tests if test.passed]
    chosen = max(passed, key=lambda member: gains[member], default=None)
    missing = None
    if chosen is None and first is not None:
        needed = examples_needed(first.differences, _share(allowed, first), confidence, clusters)
        missing = Missing(first.scale * kept_limit(first.differences, confidence, clusters), needed)
    return Pick(chosen, tuple(tests), allowed, confidence, count, missing)


def _share(allowed: float, pair: Paired) -> float:
    """What is allowed in units of the scale; losses of less than all can be tested."""
    return min(allowed / pair.scale, MOST)


def p_value(differences: Floats, allowed: float, clusters: Clusters | None = None) -> float:
    """The p-value of "the candidate truly loses more than allowed", valid for any number of examples.

    Differences of right and wrong answers, which are -1, 0 and 1, get an exact test (`exact_p_value`); other bounded
    ones, and those of dependent examples, one by betting (`betting_p_value`).

    Args:
        differences: The candidate's scores minus the reference's, ``(n,)`` in [-1, 1].
        allowed: Loss of the mean score, in [0, 1).
        clusters: For each example the number ``(n,)`` of its group, where examples of one group depend on each other
            (questions about one image); groups are independent.
    """
    if clusters is not None and len(np.unique(clusters)) < len(differences):
        _, group = np.unique(clusters, return_inverse=True)
        sums = np.bincount(group, weights=differences + allowed)
        return betting_p_value(sums / np.bincount(group).max(), 1 - allowed)
    if np.isin(differences, (-1.0, 0.0, 1.0)).all():
        return exact_p_value(int((differences > 0).sum()), int((differences < 0).sum()), len(differences), allowed)
    return betting_p_value(differences + allowed, 1 - allowed)


def exact_p_value(gained: int, lost: int, count: int, allowed: float) -> float:
    """The exact p-value of paired right and wrong answers against "loses more than allowed".

    Outcomes are ordered by the difference over its standard error, to whose square some examples are added that differ.
    The p-value is the probability of this outcome and all better ones where the loss is exactly as allowed and the
    share of differing examples is the worst in its 99.9 % interval (Berger and Boos 1994). Larger losses make them no
    likelier: with an example more that is gained, or one fewer that is lost, the statistic never falls.

    Args:
        gained: Examples that only the candidate gets right.
        lost: Examples that only the reference gets right.
        count: All examples.
        allowed: Loss of accuracy, in [0, 1).
    """
    differing = gained + lost
    added = max(count * allowed, 1.0) / 2
    statistic = (gained - lost + count * allowed) / math.sqrt(differing + added)
    low = float(beta.ppf(NUISANCE / 2, differing, count - differing + 1)) if differing else 0.0
    high = float(beta.ppf(1 - NUISANCE / 2, differing + 1, count - differing)) if differing < count else 1.0
    low = max(low, allowed, 1e-12)
    if high < low:
        return NUISANCE
    fewest = math.floor(count * low - 7 * math.sqrt(count * low)) - 20  # others have no chance
    most = math.ceil(count * high + 7 * math.sqrt(count * high)) + 20
    numbers = np.arange(max(0, fewest), min(count, most) + 1)
    most_lost = np.floor((numbers + count * allowed - statistic * np.sqrt(numbers + added)) / 2 + 1e-9)

    def chances(shares: Floats) -> Floats:
        gaining = (shares - allowed) / (2 * shares)
        below = betainc(np.maximum(numbers - most_lost, 1e-9), np.maximum(most_lost, 0) + 1, gaining[:, None])
        below = np.where(most_lost < 0, 0.0, np.where(most_lost >= numbers, 1.0, below))
        return np.asarray((binom.pmf(numbers, count, shares[:, None]) * below).sum(axis=1))

    shares = np.linspace(low, high, SHARES)
    worst = int(chances(shares).argmax())
    near = np.linspace(shares[max(0, worst - 1)], shares[min(SHARES, worst + 2) - 1], SHARES)
    return min(1.0, float(chances(near).max()) + NUISANCE)


def betting_p_value(values: Floats, bound: float) -> float:
    """The p-value of "the true mean is at most 0" from independent values that are never below ``-bound``.

    One over the wealth of a gambler who stakes the same part of it on each of the values: where their mean is at most
    0, its expectation is at most 1 (Waudby-Smith and Ramdas 2024). It is the mean over several stakes, which only the
    number of values decides.

    Args:
        values: ``(n,)``, in any order.
        bound: Above 0.
    """
    stakes = np.minimum(np.sqrt(2 * math.log(10) / (len(values) * VARIANCES)), 1.0) / bound
    wealth = np.log1p(np.maximum(stakes[:, None] * values, -1.0 + 1e-12)).sum(axis=1)
    top = float(wealth.max())
    return min(1.0, math.exp(-min(top, 700.0)) / float(np.exp(wealth - top).mean()))


def kept_limit(differences: Floats, confidence: float, clusters: Clusters | None = None) -> float:
    """The smallest loss of which it is shown, at this confidence, that the candidate loses no more; at least 0.

    Args:
        differences: As for `p_value`.
        confidence: In (0, 1).
        clusters: As for `p_value`.
    """

    def beyond(allowed: float) -> float:
        return p_value(differences, allowed, clusters) - (1 - confidence)

    if beyond(0.0) <= 0:
        return 0.0
    highest = 1 - 1e-9
    return float(brentq(beyond, 0.0, highest, xtol=1e-5)) if beyond(highest) < 0 else 1.0


def examples_needed(
    differences: Floats, allowed: float, confidence: float, clusters: Clusters | None = None
) -> int | None:
    """With how many examples a member with such differences would pass with a probability of `CHANCE`.

    By the normal approximation, and at least as many as a member without any loss needs. None when it looks worse than
    allowed.
    """
    room = float(differences.mean()) + allowed
    if room <= 0 or allowed <= 0:
        return None
    values, size = differences - differences.mean(), 1.0
    if clusters is not None:
        _, group = np.unique(clusters, return_inverse=True)
        values = np.bincount(group, weights=values)
        size = len(differences) / len(values)
    variance = max(float(np.mean(values**2)) / size, allowed)
    needed = variance * float((norm.ppf(confidence) + norm.ppf(CHANCE)) / room) ** 2
    return math.ceil(max(needed, math.log(1 - confidence) / math.log1p(-allowed)))
