import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnas_plugin.errors import UsageError
from qnas_plugin.space import Condition, Precision, SearchSpace, Variable, unique_rows
from qnas_plugin.testing._spaces import encoder_space

PRECISIONS = (Precision.INT8.value, Precision.FP32.value)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Small spaces with conditions on conditions."""
    variables: list[Variable] = []
    for i in range(draw(st.integers(1, 6))):
        choices = draw(st.sampled_from([(1,), (1, 2), (1, 2, 3), (0.5, 1.0), PRECISIONS]))
        when = None
        if variables and draw(st.booleans()):
            parent = draw(st.sampled_from(variables))
            values = draw(st.lists(st.sampled_from(parent.choices), min_size=1, unique=True))
            when = Condition(parent.name, tuple(values))
        kind = "precision" if choices == PRECISIONS else "architecture"
        variables.append(Variable(f"v{i}", choices, kind, when))
    return SearchSpace(tuple(variables))


def every_genotype(space: SearchSpace) -> np.ndarray:
    return np.array(list(itertools.product(*(range(size) for size in space.sizes))), dtype=np.int64)


@given(spaces())
def test_networks_equals_brute_force(space: SearchSpace) -> None:
    genotypes = every_genotype(space)
    assert space.genotypes == len(genotypes)
    assert space.networks == len({space.decode(genes).key for genes in genotypes})


@given(spaces())
def test_key_is_equal_exactly_for_equal_canonical_genotypes(space: SearchSpace) -> None:
    genotypes = every_genotype(space)
    canonical = space.canonical(genotypes)
    keys = [space.decode(genes).key for genes in genotypes]
    by_row = {tuple(row): key for row, key in zip(canonical.tolist(), keys, strict=True)}
    assert [by_row[tuple(row)] for row in canonical.tolist()] == keys
    assert len(set(by_row.values())) == len(by_row)


@given(spaces(), st.integers(0, 2**32 - 1))
def test_sample_gives_valid_candidates_that_survive_encoding(space: SearchSpace, seed: int) -> None:
    for genes in space.sample(20, np.random.default_rng(seed)):
        candidate = space.decode(genes)
        assert space.candidate(dict(candidate)) == candidate
        assert space.decode(space.encode(candidate)) == candidate
        assert space.encode(candidate).tolist() == genes.tolist()


@given(spaces())
def test_active_follows_the_conditions(space: SearchSpace) -> None:
    for genes, active in zip(every_genotype(space), space.active(every_genotype(space)), strict=True):
        exists: dict[str, object] = {}
        for variable, gene in zip(space.variables, genes, strict=True):
            if variable.when is None or exists.get(variable.when.variable) in variable.when.values:
                exists[variable.name] = variable.choices[gene]
        assert dict(space.decode(genes)) == exists
        assert [v.name for v, on in zip(space.variables, active, strict=True) if on] == list(exists)


@given(spaces())
def test_features_are_one_hot_and_zero_when_inactive(space: SearchSpace) -> None:
    genotypes = every_genotype(space)
    features = space.features(genotypes)
    assert features.shape == (len(genotypes), space.sizes.sum())
    blocks = np.split(features, np.cumsum(space.sizes)[:-1], axis=1)
    for i, block in enumerate(blocks):
        active = space.active(genotypes)[:, i]
        assert (block.sum(axis=1) == active).all()
        assert (block.argmax(axis=1)[active] == genotypes[active, i]).all()


@given(spaces(), st.integers(0, 2**32 - 1))
def test_mutate_moves_every_gene_that_can_move_when_certain(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    genes = space.sample(10, rng)
    moved = space.mutate(genes, rng, 1.0)
    assert ((moved >= 0) & (moved < space.sizes)).all()
    assert ((moved != genes) == (space.sizes > 1)).all()
    assert (space.mutate(genes, rng, 0.0) == genes).all()


def test_mutate_flips_binary_genes_at_the_given_rate() -> None:
    space = SearchSpace(tuple(Variable(f"v{i}", PRECISIONS, "precision") for i in range(50)))
    genes = np.zeros((400, 50), dtype=np.int64)
    flipped = space.mutate(genes, np.random.default_rng(0), 0.1).mean()
    assert flipped == pytest.approx(0.1, abs=0.01)


def test_mutate_reaches_all_other_choices_alike() -> None:
    space = SearchSpace((Variable("v", (1, 2, 3, 4)),))
    moved = space.mutate(np.full((3000, 1), 1), np.random.default_rng(0), 1.0)
    assert np.bincount(moved[:, 0], minlength=4) == pytest.approx([1000, 0, 1000, 1000], abs=100)


def test_networks_and_genotypes_match_the_published_size_of_encoder_space() -> None:
    space = encoder_space()
    assert len(space) == 99
    assert math.log10(space.genotypes) == pytest.approx(36.07, abs=0.005)
    assert math.log10(space.networks) == pytest.approx(35.23, abs=0.005)


def test_corner_gives_the_extremes() -> None:
    space = encoder_space()
    largest = space.corner("largest", Precision.FP32)
    assert largest["depth"] == 12
    assert largest["heads_11"] == 12
    assert largest["ffn_0"] == 3072
    assert largest["classifier"] == largest["up_11"] == "fp32"
    smallest = space.corner("smallest", Precision.INT8)
    assert smallest["depth"] == 6
    assert "heads_6" not in smallest
    assert smallest["query_5"] == "int8"


def test_architecture_leaves_the_precision_policy_out() -> None:
    space = encoder_space()
    int8, fp32 = (space.corner("largest", precision) for precision in Precision)
    assert int8 != fp32
    assert space.architecture(int8) == space.architecture(fp32)


def test_candidate_drops_inactive_values() -> None:
    space = encoder_space()
    values = {**space.corner("largest", Precision.INT8), "depth": 6}
    assert len(space.candidate(values)) == 1 + 6 * 8 + 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": 1, "c": 1}, "no variable 'c'"),
        ({"a": 3, "b": "x"}, r"'a' cannot be 3; allowed: \[1, 2\]"),
        ({"a": True, "b": "x"}, "'a' cannot be True"),
        ({"a": 2}, r"no value for 'b'; allowed: \['x', 'y'\]"),
    ],
)
def test_candidate_refuses_values_outside_the_space(values: dict, message: str) -> None:
    space = SearchSpace((Variable("a", (1, 2)), Variable("b", ("x", "y"), when=Condition("a", (2,)))))
    with pytest.raises(UsageError, match=message):
        space.candidate(values)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ([Variable("a", (1,)), Variable("a", (2,))], "'a' stands twice"),
        ([Variable("a", ())], "at least one choice"),
        ([Variable("a", (1, 1))], "no repeats"),
        ([Variable("a", (1,), when=Condition("b", (1,))), Variable("b", (1,))], "must stand before"),
        ([Variable("a", (1,)), Variable("b", (1,), when=Condition("a", (7,)))], "values that 'a' does not have"),
    ],
)
def test_search_space_refuses_inconsistent_variables(variables: list[Variable], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SearchSpace(tuple(variables))


def test_key_and_fingerprint_are_equal_in_every_process() -> None:
    program = (
        "from qnas_plugin.space import *\n"
        "space = SearchSpace((Variable('a', (1, 2)), Variable('b', ('x', 0.5), when=Condition('a', (2,)))))\n"
        "print(space.fingerprint, space.candidate({'a': 2, 'b': 0.5}).key)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    space = SearchSpace((Variable("a", (1, 2)), Variable("b", ("x", 0.5), when=Condition("a", (2,)))))
    assert outputs == {f"{space.fingerprint} {space.candidate({'b': 0.5, 'a': 2}).key}\n"}


@given(spaces(), spaces())
def test_fingerprint_is_equal_exactly_for_equal_spaces(one: SearchSpace, other: SearchSpace) -> None:
    assert (one.fingerprint == other.fingerprint) == (one == other)


@given(st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3)))
def test_unique_rows_gives_first_occurrences_in_order(rows: list[list[int]]) -> None:
    expected = [i for i, row in enumerate(rows) if row not in rows[:i]]
    assert unique_rows(np.array(rows, dtype=np.int64).reshape(-1, 3)) == expected


APART = SearchSpace(
    (
        Variable("depth", (1, 2)),
        Variable.precision("a", ("int8", "fp32")),
        Variable("a2", ("a4", "a8"), "precision", Condition("depth", (2,)), "b", "activations"),
        Variable("w2", ("w2", "w4"), "precision", Condition("depth", (2,)), "b", "weights"),
    )
)
"""A group whose weights and activations are searched apart."""


def test_policy_gives_the_format_of_each_group_that_exists() -> None:
    values: dict[str, int | str] = {"depth": 2, "precision.a": "fp32", "a2": "a4", "w2": "w4"}
    assert APART.policy(APART.candidate(values)) == {"a": "fp32", "b": "w4a4"}
    assert APART.policy(APART.candidate({"depth": 1, "precision.a": "int8"})) == {"a": "int8"}
    assert APART.policy({**values, "unknown": 1}) == {"a": "fp32", "b": "w4a4"}


def test_with_policy_is_the_inverse_of_policy() -> None:
    for genes in APART.sample(30, np.random.default_rng(0)):
        for other in APART.sample(5, np.random.default_rng(1)):
            found = APART.with_policy(APART.decode(genes), APART.policy(APART.decode(other)))
            expected = APART.policy(APART.decode(genes)) | {
                group: format
                for group, format in APART.policy(APART.decode(other)).items()
                if group in APART.policy(APART.decode(genes))
            }
            assert APART.policy(found) == expected
            assert APART.architecture(found) == APART.architecture(APART.decode(genes))


def test_a_precision_that_a_group_lacks_is_an_error() -> None:
    largest = APART.corners["largest-fp32"]
    with pytest.raises(UsageError, match=r"the group 'a' cannot be 'w4a4'; allowed: \['int8', 'fp32'\]"):
        APART.with_policy(largest, {"a": "w4a4"})
    with pytest.raises(UsageError, match="the group 'b' cannot be int8"):
        APART.corner("largest", Precision.INT8)


def test_corners_take_what_is_nearest_where_a_group_lacks_a_precision() -> None:
    space = SearchSpace(
        (
            Variable.precision("usual", ("int8", "int8-asym", "fp32")),
            Variable.precision("turned", ("fp32", "int8-asym")),
            Variable.precision("low", ("w2a4", "w4a8")),
            Variable.precision("kept", ("fp32",)),
        )
    )
    assert {name: [*space.policy(corner).values()] for name, corner in space.corners.items()} == {
        "largest-fp32": ["fp32", "fp32", "w4a8", "fp32"],
        "largest-int8": ["int8", "int8-asym", "w2a4", "fp32"],
    }
    assert [*APART.corners] == ["largest-fp32", "largest-int8", "smallest-fp32", "smallest-int8"]
    assert APART.policy(APART.corners["largest-fp32"]) == {"a": "fp32", "b": "w4a8"}


def test_space_refuses_a_group_with_variables_that_make_no_format() -> None:
    for variables in (
        (Variable.precision("a", ("int8",)), Variable("b", ("w2",), "precision", None, "a", "weights")),
        (Variable("b", ("w2",), "precision", None, "a", "weights"),),
        (Variable.precision("a", ("int8",)), Variable("b", ("int8",), "precision", None, "a")),
    ):
        with pytest.raises(UsageError, match="the precision of 'a' needs one variable, or one of its weights"):
            SearchSpace(variables)


def test_fingerprint_depends_on_what_the_name_does_not_say() -> None:
    def fingerprint(**more: str) -> str:
        return SearchSpace(
            (
                Variable("x", ("w2",), "precision", None, more.get("group", "x"), "weights"),
                Variable("y", ("a2",), "precision", None, more.get("group", "x"), "activations"),
            )
        ).fingerprint

    assert fingerprint() != fingerprint(group="z")
    plain, named = Variable("precision.x", ("int8",), "precision"), Variable.precision("x", ("int8",))
    assert plain == named
