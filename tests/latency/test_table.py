"""Tables as data: what is read, refused, merged, compared and estimated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnas_plugin.additive import total
from qnas_plugin.errors import LatencyTableError
from qnas_plugin.hardware import RuntimeSetting, load_profile
from qnas_plugin.hardware.machine import environment
from qnas_plugin.latency import merge
from qnas_plugin.latency import table as latency_table
from qnas_plugin.latency.rows import GRANULARITIES, Decomposition, Key, join
from qnas_plugin.latency.table import Errors, Estimator, Fidelity, LatencyTable, Row
from qnas_plugin.space import Condition, SearchSpace, Variable
from qnas_plugin.supernets import Part
from qnas_plugin.supernets.bert import load as load_bert

PRECISIONS = ("int8", "fp32")


@dataclass(frozen=True)
class Stack:
    """A supernet of one or two layers, each with a width and two linear layers, as far as a table looks at it."""

    shape: Mapping[str, int | str]
    space: SearchSpace
    parts: tuple[Part, ...]


def stack() -> Stack:
    variables = [Variable("depth", (1, 2))]
    parts = [Part("rest")]
    for i, when in enumerate((None, Condition("depth", (2,)))):
        variables.append(Variable(f"layer.{i}.width", (8, 16), when=when))
        parts.append(Part("core", {"width": f"layer.{i}.width"}, (f"{i}",), f"layer.{i}", ("layer",)))
        for group in ("up", "down"):
            variables.append(Variable(f"precision.layer.{i}.{group}", PRECISIONS, "precision", when))
            names = {"width": f"layer.{i}.width", "precision": f"precision.layer.{i}.{group}"}
            parts.append(Part(group, names, (f"{i}.{group}",), f"layer.{i}", ("layer", "half")))
    return Stack({"hidden": 4, "activation": "gelu"}, SearchSpace(tuple(variables)), tuple(parts))


ERRORS = Errors(mean_error=0.01, bias=0.001, within_5=1.0, within_10=1.0, kendall_tau=0.98)
SETTING = RuntimeSetting(threads=1, batch_size=1, sequence_length=64)


def table(rows: Mapping[str, float] | None = None, **changes: Any) -> LatencyTable:
    if rows is None:
        parts = Decomposition(stack().space, join(stack().parts, "linear"))
        rows = {str(key): 0.1 + i for i, key in enumerate(parts.keys)}
    fidelity = Fidelity(
        held_out=2,
        errors=ERRORS,
        noise=0.01,
        repeated=1,
        alone=ERRORS,
        by_granularity={"linear": ERRORS},
        by_networks=((10, 0.02), (20, 0.01)),
    )
    fields: dict[str, Any] = {
        "schema_version": 1,
        "supernet": "stack",
        "shape": dict(stack().shape),
        "granularity": "linear",
        "hardware": load_profile("xeon-8280"),
        "setting": SETTING,
        "machine": {"brand": "a CPU", "isa": ["avx2"], "family": 6, "l3_mib": None},
        "system": "Linux",
        "versions": {"onnxruntime": environment()["versions"]["onnxruntime"]},
        "created": "2026-01-01T00:00:00+00:00",
        "networks": 20,
        "seconds": 60.0,
        "disturbance": 0.01,
        "problems": (),
        "fidelity": fidelity,
        "offset_ms": 0.0,
        "tested": ((1.0, 1.01), (2.0, 1.98)),
        "rows": tuple(Row(key=key, ms=ms, spread_ms=0.01, networks=5, alone_ms=ms) for key, ms in rows.items()),
    }
    return LatencyTable.model_validate(fields | changes)


def text(record: Any) -> bytes:
    return json.dumps(record).encode()


@pytest.fixture
def record() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(latency_table.dumps(table()))
    return parsed


def test_load_gives_what_write_wrote(tmp_path: Path) -> None:
    path = latency_table.write(table(), tmp_path)
    assert path == tmp_path / "xeon-8280" / "stack-hidden4-threads1-batch1-seq64.json"
    assert latency_table.load(path) == table()
    before = path.read_bytes()
    latency_table.write(latency_table.load(path), tmp_path)
    assert path.read_bytes() == before


def test_dumps_has_a_line_for_each_row_in_the_order_of_keys() -> None:
    lines = latency_table.dumps(table({"b": 1.0, "a": 0.123456789})).splitlines()
    rows = [json.loads(line.strip().rstrip(",")) for line in lines if '"key"' in line]
    assert [(row["key"], row["ms"]) for row in rows] == [("a", 0.123457), ("b", 1.0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "this program reads version 1; update it"),
        ({"schema_version": "1"}, "'schema_version'"),
        ({"surprise": 1}, "'surprise'"),
        ({"supernet": ""}, "'supernet'"),
        ({"granularity": "brick"}, "'granularity'"),
        ({"rows": []}, "'rows'"),
        ({"setting": {"threads": 0}}, "'setting.threads'"),
        ({"tested": [[0.0, 1.0]]}, "'tested.0.0'"),
    ],
)
def test_parse_names_the_field_when_one_is_wrong(record: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(LatencyTableError, match="t.json is no latency table") as caught:
        latency_table.parse(text(record | change), "t.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ms", ["-0.1", "NaN", "Infinity", "1e999", '"1"', "null", "true"])
def test_parse_refuses_a_row_when_its_time_is_no_time(record: dict[str, Any], ms: str) -> None:
    record["rows"][0]["ms"] = "@"
    with pytest.raises(LatencyTableError, match=r"'rows\.0\.ms'|cannot"):
        latency_table.parse(text(record).replace(b'"@"', ms.encode()), "t.json")


def test_parse_refuses_repeated_rows_and_fields(record: dict[str, Any]) -> None:
    record["rows"].append(record["rows"][0])
    with pytest.raises(LatencyTableError, match="stands twice"):
        latency_table.parse(text(record), "t.json")
    with pytest.raises(LatencyTableError, match="the field 'supernet' stands twice"):
        latency_table.parse(b'{"supernet": 1, "supernet": 2}', "t.json")


def test_parse_refuses_an_unknown_instruction_set(record: dict[str, Any]) -> None:
    record["hardware"]["isa"] = ["avx1024"]
    with pytest.raises(LatencyTableError, match="avx1024"):
        latency_table.parse(text(record), "t.json")


def test_load_says_so_when_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(LatencyTableError, match="No such file"):
        latency_table.load(tmp_path / "none.json")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_parse_gives_a_table_or_one_line_when_bytes_are_cut_or_changed(data: st.DataObject) -> None:
    content = bytearray(latency_table.dumps(table({"a": 1.0})).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(content) - 1))
        content[i : i + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        got = latency_table.parse(bytes(content[: data.draw(st.integers(0, len(content)))]), "t.json")
    except LatencyTableError as error:
        assert "\n" not in str(error)
    else:
        assert all(np.isfinite(row.ms) and row.ms >= 0 for row in got.rows)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_parse_gives_a_table_or_one_line_when_a_field_is_anything(data: st.DataObject) -> None:
    changed = json.loads(latency_table.dumps(table({"a": 1.0})))
    where = changed
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(where)))
        if not isinstance(where[name], dict) or not where[name]:
            break
        where, name = where[name], data.draw(st.sampled_from(sorted(where[name])))
    where[name] = data.draw(JSON)
    try:
        latency_table.parse(text(changed), "t.json")
    except LatencyTableError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}"])
def test_parse_refuses_what_is_no_table(content: bytes) -> None:
    with pytest.raises(LatencyTableError, match="no latency table"):
        latency_table.parse(content, "t.json")


def test_estimate_is_the_sum_of_the_rows() -> None:
    supernet = stack()
    estimate = Estimator(table(), supernet)  # type: ignore[arg-type]
    genes = supernet.space.sample(50, np.random.default_rng(0))
    ms = {row.key: row.ms for row in table().rows}
    for row, got in zip(genes, estimate(genes), strict=True):
        candidate = supernet.space.decode(row)
        expected = ms["rest"]
        for i in range(int(candidate["depth"])):
            width = candidate[f"layer.{i}.width"]
            expected += ms[f"core width={width}"]
            for group in ("up", "down"):
                expected += ms[f"{group} width={width} precision={candidate[f'precision.layer.{i}.{group}']}"]
        assert got == pytest.approx(expected)


def test_estimator_names_all_missing_rows_and_the_command() -> None:
    rows = {row.key: row.ms for row in table().rows if "width=16 precision=int8" not in row.key}
    with pytest.raises(LatencyTableError) as caught:
        Estimator(table(rows), stack())  # type: ignore[arg-type]
    for wanted in ("up width=16 precision=int8", "down width=16 precision=int8", "qnas profile --supernet stack"):
        assert wanted in str(caught.value)
    assert "width=8" not in str(caught.value)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_counts_have_each_part_of_a_network_once(granularity: Any) -> None:
    supernet = stack()
    decomposition = Decomposition(supernet.space, join(supernet.parts, granularity))
    genes = supernet.space.sample(30, np.random.default_rng(1))
    layers = 1 + genes[:, 0]
    parts = {"block": 1, "half-block": 2, "shared-input": 3, "linear": 3}[granularity]
    assert decomposition.counts(genes).sum(axis=1).tolist() == (1 + parts * layers).tolist()
    for key in decomposition.keys:
        part, example = decomposition.example(key)
        assert decomposition.key(part, example) == key
        assert decomposition.counts(example[None])[0, decomposition.index[key]] >= 1


def test_join_labels_precisions_by_the_linear_layer() -> None:
    supernet = stack()
    keys = Decomposition(supernet.space, join(supernet.parts, "block")).keys
    assert Key("layer", (("width", 8), ("up", "int8"), ("down", "fp32"))) in keys


def check(table_: LatencyTable, **changes: Any) -> list[str]:
    arguments = {"supernet": "stack", "shape": stack().shape, "hardware": "xeon-8280", "setting": SETTING} | changes
    return latency_table.check(table_, **arguments)


def test_check_finds_nothing_when_the_table_fits() -> None:
    assert check(table()) == []


def test_check_names_another_sku_setting_and_runtime() -> None:
    against = check(
        table(versions={"onnxruntime": "1.2.3"}), hardware="xeon-8480plus", setting=RuntimeSetting(threads=2)
    )
    assert [word in " ".join(against) for word in ("xeon-8280", "threads is 1, not 2", "1.2.3")] == [True] * 3
    with pytest.raises(LatencyTableError, match="insist"):
        latency_table.accept(table(), against, insist=False)
    latency_table.accept(table(), against, insist=True)


def test_check_carries_the_problems_of_the_machine() -> None:
    assert check(table(problems=("the machine is noisy",))) == ["the machine is noisy"]


def test_check_refuses_another_shape_in_any_case() -> None:
    with pytest.raises(LatencyTableError, match="hidden 4.*hidden 8"):
        check(table(), shape={"hidden": 8, "activation": "gelu"})


def test_find_prefers_the_users_table_and_names_the_command_when_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QNAS_HOME", str(tmp_path))
    latency_table.write(table(), tmp_path / "latency_tables")
    assert latency_table.find("stack", stack().shape, "xeon-8280", SETTING) == table()
    with pytest.raises(LatencyTableError, match="have: .*stack-hidden4.*qnas profile --supernet stack .*--threads 2"):
        latency_table.find("stack", stack().shape, "xeon-8280", RuntimeSetting(threads=2))


def test_merge_unites_rows_and_weighs_common_ones_by_certainty() -> None:
    first = table({"a": 1.0, "b": 2.0})
    second = table({"b": 3.0, "c": 4.0})
    merged = merge.merge(first, second)
    assert {row.key: row.ms for row in merged.rows} == {"a": 1.0, "b": 2.5, "c": 4.0}
    assert merged.by_key()["b"].spread_ms == pytest.approx(0.01 / np.sqrt(2))
    assert merged.merged == (first.created, second.created)
    assert check(merged) == []
    rows = (*first.rows[:1], first.rows[1].model_copy(update={"spread_ms": 0.001}))
    certain = merge.merge(first.model_copy(update={"rows": rows}), second)
    assert certain.by_key()["b"].ms == pytest.approx((100 * 2 + 3) / 101)


def test_merge_refuses_tables_of_two_machines() -> None:
    with pytest.raises(LatencyTableError, match="their hardware differs"):
        merge.merge(table(), table(hardware=load_profile("xeon-8380")))


def test_compare_puts_what_got_slower_first_and_knows_noise() -> None:
    changes = merge.compare(table({"a": 1.0, "b": 2.0, "c": 3.0}), table({"a": 1.5, "b": 2.01, "c": 2.0}))
    assert [(change.key, change.certain) for change in changes] == [("a", True), ("b", False), ("c", True)]


def test_compare_refuses_tables_without_a_common_row() -> None:
    with pytest.raises(LatencyTableError, match="no row in common"):
        merge.compare(table({"a": 1.0}), table({"b": 1.0}))


def test_tables_that_come_with_the_package_are_good_and_named_after_what_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QNAS_HOME", str(tmp_path))
    for path in latency_table.tables():
        shipped = latency_table.load(path)
        assert (path.parent.name, path.stem) == (shipped.hardware.name, shipped.name)
        assert shipped.hardware == load_profile(shipped.hardware.name)
        assert latency_table.dumps(shipped) == path.read_text()
        assert not shipped.problems


def test_setting_of_takes_lengths_from_the_inputs() -> None:
    assert latency_table.setting_of({"x": np.zeros((2, 7))}, RuntimeSetting()).sequence_length == 7
    assert latency_table.setting_of({"x": np.zeros((2, 3, 9, 9))}, SETTING).resolution == 9
    both = latency_table.setting_of({"x": np.zeros((2, 3, 9, 9)), "ids": np.zeros((2, 7))}, RuntimeSetting())
    assert (both.sequence_length, both.resolution) == (7, 9)


@pytest.mark.parametrize(
    "changes",
    [
        {"supernet": "../../x"},
        {"supernet": "a/b"},
        {"supernet": ""},
        {"supernet": "@rows"},
        {"shape": {"../../x": 1}},
        {"supernet": "x\n"},
        {"supernet": ".."},
    ],
)
def test_parse_refuses_names_that_would_lead_out_of_the_folder(changes: dict[str, Any], tmp_path: Path) -> None:
    record = json.loads(latency_table.dumps(table())) | changes
    with pytest.raises(LatencyTableError, match="supernet|shape"):
        latency_table.parse(json.dumps(record).encode(), "table.json")


def test_terms_of_an_estimator_add_up_to_what_it_says(bert_checkpoint: Path) -> None:
    supernet = load_bert(str(bert_checkpoint))
    keys = Decomposition(supernet.space, join(supernet.parts, "linear")).keys
    rows = {str(key): 0.1 + i / 7 for i, key in enumerate(keys)}
    estimate = Estimator(table(rows, supernet="bert", shape=supernet.shape, setting=SETTING), supernet)
    genes = supernet.space.sample(20, np.random.default_rng(0))
    sums = total(supernet.space, estimate.terms, genes)[:, 0] + estimate.table.offset_ms
    np.testing.assert_allclose(sums, estimate(genes))
