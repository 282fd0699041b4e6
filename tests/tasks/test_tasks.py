"""The split that the accuracy tasks share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnas_plugin.data import Dataset, OnAccess, SplitSizes
from qnas_plugin.errors import DataError, UsageError
from qnas_plugin.tasks import Pool, assemble, content_key, held_out_and_report

PARTS = ("train", "calibration", "search", "selection", "report")


def _pool(numbers: list[int], labels: list[int] | None = None) -> Pool:
    labels = [n % 2 for n in numbers] if labels is None else labels
    return Pool(numbers, np.array(labels, dtype=np.int64), [content_key(str(n).encode()) for n in numbers])


def _assemble(
    train: list[int],
    *,
    held_out: list[int] | None = None,
    report: list[int] | None = None,
    sizes: SplitSizes | None = None,
) -> Dataset:
    return assemble(
        _pool(train),
        held_out=None if held_out is None else _pool(held_out),
        report=None if report is None else _pool(report),
        sizes=sizes or SplitSizes(),
        label_names=("even", "odd"),
        source="numbers",
    )


numbers = st.lists(st.integers(0, 200), min_size=60, max_size=120)


@given(
    train=numbers,
    held_out=st.none() | st.lists(st.integers(300, 400), min_size=30, max_size=50, unique=True),
    report=st.none() | st.lists(st.integers(0, 20) | st.integers(300, 400), min_size=1, max_size=10),
    sizes=st.builds(
        SplitSizes,
        st.integers(1, 10),
        st.none() | st.integers(1, 40),
        st.none() | st.integers(0, 40),
        st.none() | st.integers(1, 5),
    ),
)
def test_assemble_keeps_contents_apart(
    train: list[int], held_out: list[int] | None, report: list[int] | None, sizes: SplitSizes
) -> None:
    try:
        dataset = _assemble(train, held_out=held_out, report=report, sizes=sizes)
    except DataError:  # Hypothesis likes lists of one repeated number.
        assert len(set(train) - set(report or [])) < 4
        return
    contents = [set(getattr(dataset, part).inputs) for part in PARTS]
    assert len(set().union(*contents)) == sum(map(len, contents))
    for part in PARTS:
        examples = getattr(dataset, part)
        assert [n % 2 for n in examples.inputs] == examples.labels.tolist()
    assert contents[0] <= set(train)
    assert contents[1] | contents[2] | contents[3] <= set(train if held_out is None else held_out)
    assert contents[4] <= set(train if report is None else report)
    assert len(dataset.calibration) <= sizes.calibration
    assert len(dataset.search) <= (sizes.search or len(train))
    assert len(dataset.selection) <= (len(train) if sizes.selection is None else sizes.selection)
    if sizes.selection is None:
        assert 0 <= len(dataset.search) - len(dataset.selection) <= 1


@given(train=st.permutations(range(40)))
def test_assemble_cuts_the_same_parts_from_any_order(train: list[int]) -> None:
    ordered, shuffled = _assemble(list(range(40))), _assemble(train)
    for part in PARTS[1:]:
        assert list(getattr(ordered, part).inputs) == list(getattr(shuffled, part).inputs)


def test_assemble_keeps_the_official_report_as_it_is() -> None:
    report = [7, 3, 3, 9]
    dataset = _assemble(list(range(50)), report=report)
    assert dataset.report.inputs == report
    assert not {7, 3, 9} & set(dataset.train.inputs)


def test_assemble_trains_on_the_same_for_all_sizes_when_data_is_held_out() -> None:
    splits = {"held_out": list(range(40, 90)), "report": [1, 2]}
    small = _assemble(list(range(50)), **splits, sizes=SplitSizes(calibration=3, search=5))
    large = _assemble(list(range(50)), **splits, sizes=SplitSizes(calibration=9, search=None))
    assert small.train.inputs == large.train.inputs == [0, *range(3, 40)]
    assert len(large.search) + len(large.selection) == 50 - 9


def test_assemble_takes_a_third_or_half_at_most_from_what_must_be_left() -> None:
    dataset = _assemble(list(range(90)), sizes=SplitSizes(calibration=1000, search=None, report=None))
    assert [len(getattr(dataset, part)) for part in PARTS] == [20, 10, 15, 15, 30]


@pytest.mark.parametrize(
    ("search", "selection", "expected"), [(10, None, (10, 10)), (10, 5, (10, 5)), (30, 60, (10, 20)), (40, 0, (30, 0))]
)
def test_assemble_shrinks_search_and_selection_alike(
    search: int, selection: int | None, expected: tuple[int, int]
) -> None:
    sizes = SplitSizes(calibration=5, search=search, selection=selection, report=1)
    dataset = _assemble(list(range(50)), held_out=list(range(100, 135)), sizes=sizes)
    assert (len(dataset.search), len(dataset.selection)) == expected


def test_assemble_keeps_clusters_together() -> None:
    """Questions about one image are not searched on and chosen by."""
    images = [content_key(str(i // 4).encode()) for i in range(200)]
    pool = replace(_pool(list(range(200))), clusters=images)
    dataset = assemble(
        _pool(list(range(300, 340))),
        held_out=pool,
        report=None,
        sizes=SplitSizes(calibration=8, search=50),
        label_names=("even", "odd"),
        source="numbers",
    )
    assert dataset.search.clusters is not None
    assert not {n // 4 for n in dataset.search.inputs} & {n // 4 for n in dataset.selection.inputs}
    assert 50 <= len(dataset.search) <= 53
    same = dataset.search.clusters[:, None] == dataset.search.clusters
    numbers = np.array(dataset.search.inputs) // 4
    np.testing.assert_array_equal(same, numbers[:, None] == numbers)


def test_assemble_keeps_one_label_of_a_content_that_has_two() -> None:
    labels = np.array([1, 0, 1, 0] + [0] * 30)
    train = Pool([5] * 4 + list(range(10, 40)), labels, [b"a"] * 4 + [b"%d" % i for i in range(30)])
    first, rest = train.cut(None)
    assert len(first) == 31
    assert first.labels[list(first.items).index(5)] == 0
    assert len(rest) == 0


@pytest.mark.parametrize("change", ["content", "label", "part", "names"])
def test_fingerprint_changes_when_the_data_changes(change: str) -> None:
    train = list(range(60))
    before = _assemble(train)
    pool = _pool(train)
    if change == "content":
        pool = _pool([*train[:-1], 1000])
    if change == "label":
        pool = _pool(train, [1, *(n % 2 for n in train[1:])])
    after = assemble(
        pool,
        held_out=None,
        report=None,
        sizes=SplitSizes(calibration=1) if change == "part" else SplitSizes(),
        label_names=("a", "b") if change == "names" else ("even", "odd"),
        source="numbers",
    )
    assert len(before.fingerprint) == 12
    assert int(before.fingerprint, 16) >= 0
    assert after.fingerprint != before.fingerprint


def test_assemble_raises_when_a_part_would_be_empty() -> None:
    with pytest.raises(DataError, match="no example is left for train"):
        _assemble([1, 2, 3], report=[1, 2, 3, 4])


@pytest.mark.parametrize("sizes", [SplitSizes(calibration=0), SplitSizes(search=-1), SplitSizes(report=0)])
def test_assemble_raises_when_a_size_is_below_one(sizes: SplitSizes) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        _assemble(list(range(50)), sizes=sizes)


def test_content_key_tells_apart_where_fields_end() -> None:
    assert content_key(b"ab", b"c") != content_key(b"a", b"bc")


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train", "validation"], (None, "validation")),
        (["train", "dev"], (None, "dev")),
        (["train", "test"], (None, "test")),
        (["train", "validation", "test"], ("validation", "test")),
        (["train", "train_holdout", "validation"], ("train_holdout", "validation")),
        (["train", "train_holdout", "validation", "test"], ("train_holdout", "test")),
    ],
)
def test_held_out_and_report_prefers_test(splits: list[str], expected: tuple[str | None, str]) -> None:
    assert held_out_and_report(splits, "here") == expected


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["test"], "missing: 'train'; have: test"),
        (["train"], "missing: a labelled 'test' or 'validation'; have: train"),
        (["train", "val", "dev"], "val and dev name the same split"),
    ],
)
def test_held_out_and_report_raises_when_a_split_is_missing_or_ambiguous(splits: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        held_out_and_report(splits, "here")


def test_on_access_makes_items_when_they_are_accessed() -> None:
    made: list[int] = []

    def make(n: int) -> int:
        made.append(n)
        return n * n

    squares = OnAccess([1, 2, 3], make)
    assert len(squares[1:]) == 2
    assert made == []
    assert list(squares[1:]) == [4, 9]
    assert squares[-1] == 9
