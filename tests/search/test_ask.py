"""The cost of a proposal, and what it follows from, in long searches."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.search.ask import OBJECTIVES, Made, ask, encoder, history
from qnas_plugin.predictors import JUDGED, LEARNED, few, ridge, svr
from qnas_plugin.search import Problem, linas


def test_few_are_all_while_they_are_few_then_the_newest_half_and_some_of_the_rest() -> None:
    assert few(300, 300).tolist() == list(range(300))
    rows = few(3000, 300)
    assert len(set(rows.tolist())) == 300
    assert (np.diff(rows) > 0).all()
    assert rows[0] == 0
    assert rows[150:].tolist() == list(range(2850, 3000))


@pytest.mark.parametrize("module", [ridge, svr])
def test_fit_on_many_rows_ranks_as_well_as_on_few(module: object) -> None:
    space = encoder(24)
    made = Made(space)
    genes = space.sample(1200, np.random.default_rng(0))
    X, y = space.features(genes), made(genes)[:, 0]
    unseen = slice(1000, 1200)
    errors = []
    for rows in (JUDGED, 1000):
        predictor = module.create()  # type: ignore[attr-defined]
        predictor.fit(X[1000 - rows : 1000], y[1000 - rows : 1000])
        errors.append(float(np.abs(predictor.predict(X[unseen]) - y[unseen]).mean()))
    assert errors[1] <= errors[0]
    assert LEARNED <= 1000


def test_a_long_search_that_was_resumed_proposes_what_the_uninterrupted_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linas, "INNER_GENERATIONS", 3)
    space = encoder(24)
    problem = Problem(space, OBJECTIVES)
    told = history(space, Made(space), LEARNED + 10)
    through, resumed = (linas.create(problem, seed=1, population=50) for _ in range(2))
    for first in range(0, len(told), 5):
        through.tell(told[first : first + 5])
        if first >= LEARNED:
            through.ask()
    resumed.tell(told)
    proposals = [through.ask(), resumed.ask()]
    assert proposals[0] is not None
    assert proposals[0] == proposals[1]
    assert len(ask(problem, told, 2)) == 2
