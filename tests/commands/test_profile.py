"""Making tables: the design, the fit, parts alone, and the whole job on tiny real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from qnas_plugin import registry
from qnas_plugin.commands import profile
from qnas_plugin.errors import HardwareError, LatencyTableError, OutputError, UsageError
from qnas_plugin.files.locks import alone_in
from qnas_plugin.hardware import RuntimeSetting, describe
from qnas_plugin.hardware.machine import detect
from qnas_plugin.latency import plot
from qnas_plugin.latency import table as latency_table
from qnas_plugin.latency.fit import design, errors, fit
from qnas_plugin.latency.measurements import Measured, Timing, append, joined, resume, steady
from qnas_plugin.latency.parts_alone import build, isolate
from qnas_plugin.latency.rows import GRANULARITIES, Decomposition, join
from qnas_plugin.latency.table import Estimator
from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.quantizers.quantize import verify
from qnas_plugin.request import ProfileRequest, parse_duration
from qnas_plugin.space import Precision
from qnas_plugin.supernets import Elastic, Supernet
from tests.latency.test_table import stack, table

ELASTIC = Elastic((2, 3, 4), (1, 2, 4), (16, 32, 48))
SETTING = RuntimeSetting(sequence_length=16)


@pytest.fixture(scope="module", params=["bert", "vit"])
def supernet(request: pytest.FixtureRequest) -> Supernet:
    checkpoint: Path = request.getfixturevalue(f"{request.param}_checkpoint")
    loaded: Supernet = registry.load("supernets", request.param).load(str(checkpoint), elastic=ELASTIC)
    return loaded


def random_rows(decomposition: Decomposition, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 1.5, len(decomposition.keys))


def test_design_has_each_row_early_and_no_network_twice(supernet: Supernet) -> None:
    decomposition = Decomposition(supernet.space, join(supernet.parts, "half-block"))
    genes = design(decomposition, 120, np.random.default_rng(0))
    assert len({tuple(row) for row in genes.tolist()}) == 120
    np.testing.assert_array_equal(genes, supernet.space.canonical(genes))
    assert (decomposition.counts(genes[:60]) > 0).any(axis=0).all()


def test_design_tells_more_than_as_many_random_networks() -> None:
    supernet = stack()
    decomposition = Decomposition(supernet.space, join(supernet.parts, "half-block"))

    def information(genes: Any) -> float:
        X = decomposition.counts(genes)
        return float(np.linalg.slogdet(X.T @ X + 1e-4 * np.eye(X.shape[1]))[1])

    rng = np.random.default_rng(0)
    designed = information(design(decomposition, 20, rng))
    assert all(designed > information(supernet.space.sample(20, rng)) for _ in range(20))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_fit_predicts_new_networks_when_rows_add_up(granularity: Any) -> None:
    supernet = stack()
    decomposition = Decomposition(supernet.space, join(supernet.parts, granularity))
    truth = random_rows(decomposition, 0)
    rng = np.random.default_rng(1)
    counts = decomposition.counts(design(decomposition, 60, rng))
    noisy = counts @ truth * rng.normal(1, 0.005, len(counts))
    alone = truth * rng.uniform(0.5, 0.9, len(truth))
    fitted = fit(counts, noisy, alone, decomposition.keys)
    new = decomposition.counts(supernet.space.sample(50, rng))
    assert errors(fitted(new), new @ truth).mean_error < 0.01
    assert (fitted.ms >= 0).all()


def test_fit_falls_back_on_scaled_times_alone_when_networks_are_few() -> None:
    supernet = stack()
    decomposition = Decomposition(supernet.space, join(supernet.parts, "linear"))
    truth = random_rows(decomposition, 2)
    counts = decomposition.counts(supernet.space.sample(3, np.random.default_rng(0)))
    fitted = fit(counts, counts @ truth, 0.5 * truth, decomposition.keys)
    np.testing.assert_allclose(fitted.ms, truth, rtol=1e-3)
    assert fitted.offset_ms == pytest.approx(0, abs=1e-2)


def test_fit_gives_no_negative_row_when_least_squares_would() -> None:
    decomposition = Decomposition(stack().space, join(stack().parts, "linear"))
    rng = np.random.default_rng(0)
    counts = decomposition.counts(stack().space.sample(30, rng))
    alone = np.full(len(decomposition.keys), 0.01)
    fitted = fit(counts, rng.uniform(1, 50, 30), alone, decomposition.keys)
    assert (fitted.ms >= 0).all()


def test_errors_are_those_of_a_worked_example() -> None:
    got = errors(np.array([1.0, 2.1, 3.6, 3.5]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert got.mean_error == pytest.approx((0 + 0.05 + 0.2 + 0.125) / 4)
    assert got.bias == pytest.approx((0 + 0.05 + 0.2 - 0.125) / 4)
    assert got.within_10 == 0.5
    assert got.kendall_tau == pytest.approx(4 / 6)


def test_steady_is_not_moved_by_a_machine_that_is_slow_at_times() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, 30)
    machine = np.where(rng.random(80) < 0.4, 1.3, 1.0)
    rounds = truth[:, None] * machine * rng.normal(1, 0.02, (30, 80))
    ms, spreads = steady(rounds)
    np.testing.assert_allclose(ms / ms.mean(), truth / truth.mean(), rtol=0.015)
    assert (spreads < 0.03).all()


def test_steady_is_not_moved_by_what_disturbs_single_turns() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, 30)
    disturbed = np.where(rng.random((30, 12)) < 0.25, rng.uniform(1.1, 1.8, (30, 12)), 1.0)
    ms, _ = steady(truth[:, None] * disturbed * rng.normal(1, 0.005, (30, 12)))
    off = np.log(ms / truth)
    assert np.abs(off - np.median(off)).mean() < 0.005


def test_joined_tells_a_machine_that_drifts_from_its_networks() -> None:
    rng = np.random.default_rng(1)
    truth, slower = rng.uniform(1, 5, 40), rng.normal(1, 0.1, 8)
    measured = Measured(visits=8)
    for visit in range(8):
        for i in [0, *(rng.permutation(39)[:20] + 1)]:
            ms = float(truth[i] * slower[visit] * rng.normal(1, 0.002))
            measured.timings.append(Timing("test" if i % 2 else "fit", (int(i),), ms, 0.0, 1.0, visit))
    networks = joined(measured)
    steadied = networks.ms / truth[networks.genes[:, 0]]
    np.testing.assert_allclose(steadied / steadied.mean(), 1, atol=0.005)
    np.testing.assert_allclose(1 + networks.slower, slower / np.exp(np.log(slower).mean()), rtol=0.005)
    assert 0 < networks.noise < 0.005
    assert (networks.tests == networks.genes[:, 0] % 2).all()


def test_isolate_splits_a_network_into_parts_that_run(supernet: Supernet, tmp_path: Path) -> None:
    inputs = supernet.example(SETTING)
    graph = supernet.graph(inputs)
    decomposition = Decomposition(supernet.space, join(supernet.parts, "linear"))
    alone = list(isolate(graph, supernet, decomposition, inputs, tmp_path))
    assert [part.key for part in alone] != []
    assert {part.key for part in alone} == set(decomposition.keys)
    for part in alone:
        session = onnxruntime.InferenceSession(part.model.SerializeToString(), providers=["CPUExecutionProvider"])
        session.run(None, dict(part.inputs))
        int8 = ("precision", "int8") in part.key.values
        assert any(node.op_type == "DequantizeLinear" for node in part.model.graph.node) == int8


def test_isolate_gives_each_node_to_one_part(supernet: Supernet, tmp_path: Path) -> None:
    """The parts of the largest FP32 network have its nodes, each once; constants may be in several."""
    inputs = supernet.example(SETTING)
    graph = supernet.graph(inputs)
    largest = supernet.space.corner("largest", Precision.FP32)
    decomposition = Decomposition(supernet.space, join(supernet.parts, "linear"))
    counts = dict(
        zip(decomposition.keys, decomposition.counts(supernet.space.encode(largest)[None])[0].tolist(), strict=True)
    )

    def size(model: Any) -> int:
        return sum(node.op_type != "Constant" for node in model.graph.node)

    parts = isolate(graph, supernet, decomposition, inputs, tmp_path)
    assert sum(counts[part.key] * size(part.model) for part in parts) == size(build(graph, supernet, largest))


@pytest.mark.parametrize("choices", [("int8-asym", "fp32"), ("fp32", "int8-dynamic"), ("int8", "int8-asym")])
def test_profile_works_for_groups_without_int8_or_fp32(
    choices: tuple[str, ...], bert_checkpoint: Path, tmp_path: Path
) -> None:
    kept = ("classifier",) if "fp32" in choices else ()
    network: Supernet = registry.load("supernets", "bert").load(
        str(bert_checkpoint), precisions=Precisions(choices, kept)
    )
    inputs = network.example(SETTING)
    graph = network.graph(inputs)
    bench = profile.Bench(network, graph, inputs, SETTING)
    policies = [network.space.policy(network.space.decode(genes)) for _, genes in bench.networks(0)]
    assert len(policies) == profile.FITTED + profile.HELD_OUT
    first = next(name for name in choices if name != "fp32")
    assert set(policies[0].values()) == {first, *(["fp32"] if kept else [])}  # what each batch is compared by
    decomposition = Decomposition(network.space, join(network.parts, "linear"))
    found = {alone.key for alone in isolate(graph, network, decomposition, inputs, tmp_path)}
    assert found == set(decomposition.keys)
    build(graph, network, network.space.corners["smallest-int8"])


def test_build_lands_the_policy_without_data(supernet: Supernet) -> None:
    graph = supernet.graph(supernet.example(SETTING))
    candidate = supernet.space.decode(supernet.space.sample(1, np.random.default_rng(0))[0])
    policy = supernet.space.policy(candidate)
    groups = {group: nodes for group, nodes in graph.groups.items() if group in policy}
    verify(build(graph, supernet, candidate), groups, policy)


def measured_with(supernet: Supernet, slower: Any = lambda visit: 1.0, noise: float = 0.005) -> Measured:
    """What a machine would measure on which the rows of half-blocks add up."""
    fine = Decomposition(supernet.space, join(supernet.parts, "linear"))
    truth = Decomposition(supernet.space, join(supernet.parts, "shared-input"))
    rows = random_rows(truth, 3)
    rng = np.random.default_rng(4)
    bench = profile.Bench(supernet, None, {}, SETTING)  # type: ignore[arg-type]
    measured = Measured(alone={str(key): 0.3 for key in fine.keys})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "BATCH_MB", 40 * sum(4e-6 * p.numel() for p in supernet.model.parameters()))
        for visit, batch in zip(range(12), bench.batches(bench.networks(0), 0), strict=False):
            for purpose, genes in batch:
                ms = float(truth.counts(genes[None])[0] @ rows) * rng.normal(slower(visit), noise)
                measured.timings.append(Timing(purpose, tuple(genes.tolist()), ms, 0.01, 1.0, visit))
            measured.visits += 1
            measured.seconds += 10
    return measured


@pytest.fixture(scope="module")
def bert(bert_checkpoint: Path) -> Supernet:
    loaded: Supernet = registry.load("supernets", "bert").load(str(bert_checkpoint), elastic=ELASTIC)
    return loaded


def concluded(bert: Supernet, measured: Measured) -> latency_table.LatencyTable:
    return profile.conclude("bert", bert, describe(detect(), "here"), SETTING, measured)


def test_conclude_states_the_error_that_its_estimates_have(bert: Supernet) -> None:
    measured = measured_with(bert)
    table = concluded(bert, measured)
    assert table.problems == ()
    assert table.fidelity.errors.mean_error < 0.015
    assert table.fidelity.errors.mean_error < table.fidelity.alone.mean_error / 5
    networks = joined(measured)
    tests = networks.genes[networks.tests]
    estimates = Estimator(table, bert)(tests)
    np.testing.assert_allclose(estimates, [predicted for _, predicted in table.tested])
    assert len(tests) == table.fidelity.held_out >= 50
    assert {tuple(genes) for genes in tests.tolist()}.isdisjoint(
        t.genes for t in measured.timings if t.purpose == "fit"
    )
    assert latency_table.parse(latency_table.dumps(table).encode(), "t").fidelity.held_out == len(tests)


def test_conclude_follows_a_machine_that_drifts_as_one(bert: Supernet) -> None:
    table = concluded(bert, measured_with(bert, slower=lambda visit: 1.1 if visit % 2 else 1.0))
    assert table.fidelity.errors.mean_error < 0.015
    assert any("varied by" in problem for problem in table.problems)


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"noise": 0.05}, "the machine is noisy"), ({"slower": lambda visit: 1 + 0.02 * visit}, "it may throttle")],
)
def test_conclude_says_what_is_wrong_with_the_machine(bert: Supernet, options: Any, problem: str) -> None:
    assert any(problem in sentence for sentence in concluded(bert, measured_with(bert, **options)).problems)


def test_conclude_refuses_too_few_measurements(bert: Supernet) -> None:
    with pytest.raises(LatencyTableError, match="longer --budget"):
        concluded(bert, Measured())


def test_profile_makes_a_table_and_goes_on_where_it_stopped(
    bert_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QNAS_HOME", str(tmp_path))
    monkeypatch.setattr(profile, "SECONDS_ALONE", 0.01)
    monkeypatch.setattr(profile, "FITTED", 12)
    monkeypatch.setattr(profile, "HELD_OUT", 4)
    path = tmp_path / "hardware_profiles"
    from qnas_plugin.hardware import match, write_profile

    try:
        sku = match(detect()).name
    except HardwareError:
        write_profile(describe(detect(), "here"), path)
        sku = "here"
    request = ProfileRequest(
        supernet="bert", checkpoint=str(bert_checkpoint), out=tmp_path / "out", budget="1s", seq_len=16
    )
    table, file = profile.profile(request)
    assert file.parent.name == sku
    assert latency_table.load(file).rows
    assert table.setting.sequence_length == 16
    work = file.with_suffix(".measured.jsonl")
    lines = work.read_text().splitlines()
    work.write_text("\n".join([*lines[:-1], lines[-1][:50]]))  # killed while it wrote
    profile.profile(request)
    again = work.read_text().splitlines()
    assert again[: len(lines) - 1] == lines[:-1]
    assert len(again) == len(lines)
    assert "held-out" in plot.render(table)
    with pytest.raises(LatencyTableError, match="another seed"):
        profile.profile(request.model_copy(update={"seed": 1}))
    with alone_in(work), pytest.raises(OutputError, match="another process is writing"):
        profile.profile(request)
    second = work.read_text().splitlines()[3]
    work.write_text(work.read_text().replace(f"{second}\n", "x\n"))
    said: list[str] = []
    profile.profile(request, on_stage=said.append)
    assert any(text.startswith("1 damaged lines of") for text in said)
    assert json.loads(work.read_text().splitlines()[-1])["batch"] == json.loads(second)["batch"]
    content = file.read_bytes()
    work.rename(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"a table that other measurements made; .* --overwrite"):
        profile.profile(request)
    assert file.read_bytes() == content
    assert not work.exists()


def test_profile_command_compares_merges_and_plots(tmp_path: Path) -> None:
    from qnas_plugin.cli import main

    old = latency_table.write(table({"a": 1.0, "b": 2.0}), tmp_path / "old")
    new = latency_table.write(table({"a": 1.5, "c": 2.0}), tmp_path / "new")
    main_ = lambda *arguments: main(["profile", *map(str, arguments)])  # noqa: E731
    for arguments in (["--compare", old, new], ["--merge", old, new, "--out", tmp_path], ["--plot", old]):
        with pytest.raises(SystemExit) as stop:
            main_(*arguments)
        assert not stop.value.code
    merged = tmp_path / "xeon-8280" / old.name
    assert set(latency_table.load(merged).by_key()) == {"a", "b", "c"}
    for arguments in (["--merge", old, new, "--out", tmp_path / "old"], ["--plot", old, "--out", old]):
        before = old.read_bytes()
        with pytest.raises(SystemExit) as stop:
            main_(*arguments)
        assert stop.value.code == 1
        assert old.read_bytes() == before
    assert "plotly" in old.with_suffix(".html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got none"),
        (["--detect", "--plot", "x"], "got --detect and --plot"),
        (["--plot", "x", "--name", "y"], "--name"),
    ],
)
def test_profile_command_takes_one_job_at_a_time(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from qnas_plugin.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["profile", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_profile_refuses_another_machine(bert_checkpoint: Path, tmp_path: Path) -> None:
    request = ProfileRequest(supernet="bert", checkpoint=str(bert_checkpoint), out=tmp_path, hardware="xeon-max-9480")
    with pytest.raises(HardwareError, match="this machine is not 'xeon-max-9480'"):
        profile.profile(request)


def test_example_refuses_a_setting_that_the_model_does_not_take(supernet: Supernet) -> None:
    with pytest.raises(UsageError, match="--seq-len|--resolution"):
        supernet.example(RuntimeSetting(sequence_length=1000, resolution=1000))


def visit(number: int, **changes: Any) -> str:
    network = {"purpose": "fit", "genes": [0, 1], "ms": 1.0 + number, "spread": 0.1, "core_share": 1.0} | changes
    return json.dumps({"networks": [network], "seconds": 1.0, "batch": number})


DAMAGED = [
    "{",
    "[]",
    "7",
    "\x00\xff",
    json.dumps({"networks": [{"ms": 1}]}),
    visit(3, ms=-1.0),
    visit(3, ms=float("nan")),
    visit(3, ms=True),
    visit(3, ms=10**400),
    visit(3, genes=[0]),
    visit(3, genes=[0, 5]),
    visit(3, purpose="none"),
    json.dumps({"alone": {"a": "fast"}}),
    "[" * 100_000,
]


def test_resume_leaves_damaged_lines_out_and_keeps_the_rest(tmp_path: Path) -> None:
    """Wherever they are; the batch that a line had is timed again."""
    work = tmp_path / "work.jsonl"
    lines = [json.dumps({"seed": 0}), json.dumps({"alone": {"a": 1.0}}), visit(0), visit(1), visit(2)]
    for at in (1, 2, 4):
        for damage in DAMAGED:
            content = "\n".join([*lines[:at], damage, *lines[at + 1 :], ""])
            work.write_text(content)
            measured = resume(work, {"seed": 0}, [2, 2])
            assert measured.damaged == 1
            assert measured.batches == {number for number in range(3) if number + 2 != at}
            assert [timing.ms for timing in measured.timings] == [1.0 + number for number in sorted(measured.batches)]
            assert work.read_text() == content


def test_resume_ends_a_last_line_that_lacks_its_newline_and_drops_a_torn_one(tmp_path: Path) -> None:
    work = tmp_path / "work.jsonl"
    for last, kept in ((visit(1), 2), (visit(1)[:-9], 1), ('{"networks"', 1)):
        work.write_text("\n".join([json.dumps({"seed": 0}), visit(0), last]))
        measured = resume(work, {"seed": 0}, [2, 2])
        assert (measured.visits, measured.damaged) == (kept, 0)
        append(work, measured, lambda: json.loads(visit(5)))
        assert resume(work, {"seed": 0}, [2, 2]).visits == kept + 1


def test_resume_starts_anew_only_where_nothing_was_measured(tmp_path: Path) -> None:
    work = tmp_path / "work.jsonl"
    for content in ("", '{"se'):  # killed while it wrote the first line
        work.write_text(content)
        assert resume(work, {"seed": 0}).visits == 0
        assert work.read_text() == '{"seed": 0}\n'
    for content in ("{\n" + visit(0) + "\n", visit(0) + "\n", "\n\n[]\n"):
        work.write_text(content)
        with pytest.raises(LatencyTableError, match="first line .* damaged|measured with another seed"):
            resume(work, {"seed": 0})
        assert work.read_text() == content


def test_resume_takes_lines_of_an_older_version(tmp_path: Path) -> None:
    """They don't tell the number of their batch."""
    work = tmp_path / "work.jsonl"
    old = [{name: value for name, value in json.loads(visit(i)).items() if name != "batch"} for i in range(3)]
    work.write_text("\n".join([json.dumps({"seed": 0}), *map(json.dumps, old), ""]))
    assert resume(work, {"seed": 0}, [2, 2]).batches == {0, 1, 2}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_parse_duration_reads_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "-1s", "0s", "1e3s", "nanm", "10 minutes"])
def test_parse_duration_refuses_anything_else(text: str) -> None:
    with pytest.raises(UsageError, match="write it like"):
        parse_duration(text)
