"""Makes a latency table on this machine: parts timed alone, whole networks timed in context, rows fitted and tested.

Networks are timed in groups, each in a process of its own and in interleaved rounds, with one network that is in all
groups. What was measured is kept in a file beside the table, so that a stopped run goes on and a longer one adds to it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from qnas_plugin import hardware, measure, registry
from qnas_plugin.decompose import GRANULARITIES, Decomposition, Granularity, join
from qnas_plugin.environment import environment
from qnas_plugin.errors import HardwareError, LatencyTableError
from qnas_plugin.files import make_folder
from qnas_plugin.hardware import HardwareProfile, RuntimeSetting
from qnas_plugin.isolate import build, isolate
from qnas_plugin.latency_fit import Fit, Floats, design, errors, fit
from qnas_plugin.latency_table import Fidelity, LatencyTable, Row, setting_of, table_name, write
from qnas_plugin.materialize import Graph, export
from qnas_plugin.measured import Arrays, Measured, Purpose, append, disagreement, resume
from qnas_plugin.request import ProfileRequest, parse_duration
from qnas_plugin.space import Genes, Precision, unique_rows
from qnas_plugin.supernets import Supernet
from qnas_plugin.tasks import Inputs

ROUNDS, ATTEMPTS, RESTLESS = 6, 3, 0.02
"""Rounds of a network; how often it may get as many again, and from which disagreement on it does."""

SECONDS = 0.9
"""Time of a network over all rounds."""

GROUP = 9
"""Networks in a group, beside the reference."""
HELD_OUT = 60
"""Networks that rows are tested on; when there are so many, the rest of the time goes to the fit."""
MINIMUM = 3
"""Groups without which there is no table."""

MAX_NOISE, MAX_DRIFT, MIN_CORE_SHARE = 0.03, 0.08, 0.95
"""What a machine that is measured on should keep: repetition, the reference's range, time that it had for itself."""


@dataclass(frozen=True)
class Progress:
    """Where a profile stands.

    Args:
        networks: Networks timed.
        seconds: Time used.
        budget: Time allowed.
    """

    networks: int
    seconds: float
    budget: float


def profile(
    request: ProfileRequest,
    *,
    on_stage: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[LatencyTable, Path]:
    """Makes a latency table on this machine and writes it; goes on where a stopped run was.

    Returns:
        The table, and the file that it is in.

    Raises:
        QnasError: The request cannot be met; what was measured stays.
    """
    make_folder(request.out)
    machine = hardware.detect()
    sku = hardware.match(machine) if request.hardware == "auto" else hardware.load_profile(request.hardware)
    asked = {
        "threads": request.threads,
        "batch_size": request.batch,
        "sequence_length": request.seq_len,
        "resolution": request.resolution,
    }
    setting = sku.runtime.model_copy(update={name: value for name, value in asked.items() if value is not None})
    if setting.threads > machine.usable_cpus:
        raise HardwareError(
            f"the setting asks for {setting.threads} threads, and this process may use {machine.usable_cpus} CPUs; "
            "lower --threads"
        )
    wrong = hardware.is_this_machine(sku.model_copy(update={"runtime": setting}), machine)
    if wrong and not request.insist:
        raise HardwareError(
            f"a table is measured here, and this machine is not '{sku.name}': {wrong[0]}; give --hardware auto, or "
            "--insist for a table that says so"
        )
    on_stage("Loading and exporting the supernet")
    supernet: Supernet = registry.load("supernets", request.supernet).load(request.checkpoint)
    inputs = supernet.example(setting)
    setting = setting_of(inputs, setting)
    identity = {
        "schema_version": 1,
        "space": supernet.space.fingerprint,
        "shape": dict(supernet.shape),
        "setting": setting.model_dump(mode="json"),
        "machine": str(machine),
        "onnxruntime": environment()["versions"]["onnxruntime"],
        "seed": request.seed,
    }
    name = table_name(request.supernet, supernet.shape, setting)
    work = request.out / sku.name / f"{name}.measured.jsonl"
    measured = resume(work, identity)
    if measured.timings:
        on_stage(f"Going on after {len(measured.timings)} networks of an earlier run")
    bench = Bench(supernet, export(supernet, inputs), inputs, setting)
    if not measured.alone:
        on_stage("Timing the parts alone")
        append(work, measured, bench.alone)
    on_stage("Timing whole networks")
    budget = parse_duration(request.budget)
    for group in islice(bench.groups(request.seed), measured.groups, None):
        on_progress(Progress(len(measured.timings), measured.seconds, budget))
        pace = measured.seconds / (measured.groups + 1)
        if measured.seconds + pace > budget and measured.groups >= MINIMUM:
            break
        append(work, measured, lambda group=group: bench.time(group))  # type: ignore[misc]
    on_progress(Progress(len(measured.timings), budget, budget))
    on_stage("Fitting rows and testing them")
    table = conclude(request.supernet, supernet, sku, setting, measured, wrong)
    return table, write(table, request.out)


@dataclass(frozen=True)
class Bench:
    """A supernet with what is needed to time its networks and parts."""

    supernet: Supernet
    graph: Graph
    inputs: Inputs
    setting: RuntimeSetting

    def alone(self) -> dict[str, Any]:
        """The line of the parts timed alone."""
        parts = _decomposition(self.supernet, "linear")
        with tempfile.TemporaryDirectory(prefix="qnas-") as name:
            alone = isolate(self.graph, self.supernet, parts, self.inputs, Path(name))
            paths = [Path(name) / f"{i}.onnx" for i in range(len(alone))]
            for path, part in zip(paths, alone, strict=True):
                path.write_bytes(part.model.SerializeToString())
            inputs = {name: array for part in alone for name, array in part.inputs.items()}
            latencies = measure.latency(
                paths, inputs, self.setting, minimum_runs=20, minimum_seconds=SECONDS / 6, rounds=2
            )
        times = {str(part.key): latency.median for part, latency in zip(alone, latencies, strict=True)}
        return {"alone": {str(key): times.get(str(key), 0.0) for key in parts.keys}}

    def groups(self, seed: int) -> Iterator[list[tuple[Purpose, Genes]]]:
        """The networks of each group, without end: half to fit and half to test, then all to fit."""
        space, rng = self.supernet.space, np.random.default_rng(seed)
        tests = space.sample(10 * HELD_OUT, rng)
        tests = tests[unique_rows(tests)][:HELD_OUT]
        designed = design(_decomposition(self.supernet, "half-block"), 1000, rng)
        designed = designed[~(designed[:, None] == tests).all(axis=2).any(axis=1)]
        to_fit, to_test, again = iter(designed), iter(tests), iter(tests)
        for number in count():
            group: list[tuple[Purpose, Genes]] = [("test", genes) for genes in islice(to_test, GROUP // 2)]
            if number:
                group += [("repeat", genes) for genes in islice(again, 1)]
            group += [("fit", genes) for genes in islice(to_fit, GROUP - len(group))]
            if not any(purpose == "fit" for purpose, _ in group):
                return
            yield group

    def time(self, group: list[tuple[Purpose, Genes]]) -> dict[str, Any]:
        """The line of a group of networks and the reference, which is the largest in INT8."""
        space = self.supernet.space
        group = [("reference", space.encode(space.corner("largest", Precision.INT8))), *group]
        candidates = [space.decode(genes) for _, genes in group]
        with tempfile.TemporaryDirectory(prefix="qnas-") as name:
            paths = [Path(name) / f"{i}.onnx" for i in range(len(candidates))]
            for path, candidate in zip(paths, candidates, strict=True):
                path.write_bytes(build(self.graph, self.supernet, candidate).SerializeToString())
            timed = zip(group, *self._settled(paths), strict=True)
        return {
            "networks": [
                {"purpose": purpose, "genes": genes.tolist(), "rounds": rounds, "core_share": core_share}
                for (purpose, genes), rounds, core_share in timed
            ]
        }

    def _settled(self, paths: Sequence[Path]) -> tuple[list[list[float]], list[float]]:
        """Medians of the rounds of each model, and its core share; models whose rounds disagree get more of them."""
        rounds: list[list[float]] = [[] for _ in paths]
        core_shares = [0.0] * len(paths)
        for _ in range(ATTEMPTS):
            again = [i for i, own in enumerate(rounds) if not own or disagreement(own) > RESTLESS]
            latencies = measure.latency(
                [paths[i] for i in again],
                self.inputs,
                self.setting,
                minimum_runs=4 * ROUNDS,
                minimum_seconds=SECONDS,
                rounds=ROUNDS,
            )
            for i, latency in zip(again, latencies, strict=True):
                rounds[i] += latency.round_medians
                core_shares[i] = max(core_shares[i], latency.core_share)
        return rounds, core_shares


def conclude(
    name: str,
    supernet: Supernet,
    sku: HardwareProfile,
    setting: RuntimeSetting,
    measured: Measured,
    problems: Sequence[str] = (),
) -> LatencyTable:
    """The table that measurements give.

    What is chosen (granularity, regularisation, how much the machine's speed varied between groups) is chosen by
    cross-validation over the networks to fit to; those held out are touched once.

    Raises:
        LatencyTableError: There are too few measurements.
    """
    began = time.monotonic()
    if measured.groups < MINIMUM:
        raise LatencyTableError(f"{measured.groups} groups of networks are too few; allow a longer --budget")
    to_fit, to_test, again = (
        Arrays.of(measured, *purposes) for purposes in (("fit", "reference"), ("test",), ("repeat",))
    )
    decompositions = {granularity: _decomposition(supernet, granularity) for granularity in GRANULARITIES}
    alone = {granularity: _alone(supernet, d, measured.alone) for granularity, d in decompositions.items()}

    def fitted(granularity: Granularity, data: Arrays) -> Fit:
        d = decompositions[granularity]
        return fit(d.counts(data.genes), data.ms, alone[granularity], d.keys, data.groups, measured.groups)

    fits = {granularity: fitted(granularity, to_fit) for granularity in GRANULARITIES}
    best: Granularity = min(fits, key=lambda granularity: fits[granularity].error)
    ms = fits[best].undrifted(to_test.ms, to_test.groups)
    tested = {granularity: d.counts(to_test.genes) @ fits[granularity].ms for granularity, d in decompositions.items()}
    position = {genes: i for i, genes in enumerate(map(tuple, to_test.genes.tolist()))}
    first = ms[[position[tuple(genes)] for genes in again.genes.tolist()]]
    second = fits[best].undrifted(again.ms, again.groups)
    noise = float(np.abs(2 * (first - second) / (first + second)).mean()) if len(again) else 0.0
    sizes = sorted({*(n for n in (10, 20, 40, 80, 160, 320) if n < len(to_fit)), len(to_fit)})
    d, rows = decompositions[best], fits[best]
    appears = (d.counts(to_fit.genes) > 0).sum(axis=0)
    facts = environment()
    return LatencyTable(
        schema_version=1,
        supernet=name,
        shape=dict(supernet.shape),
        granularity=best,
        hardware=sku,
        setting=setting,
        machine=facts["machine"],
        system=facts["system"],
        versions=facts["versions"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        networks=len(to_fit),
        seconds=measured.seconds + time.monotonic() - began,
        disturbance=float(np.median([timing.spread for timing in measured.timings])),
        problems=(*(f"not measured on this SKU: {reason}" for reason in problems), *_problems(measured, noise)),
        fidelity=Fidelity(
            held_out=len(ms),
            errors=errors(tested[best], ms),
            noise=noise,
            repeated=len(first),
            alone=errors(decompositions["linear"].counts(to_test.genes) @ alone["linear"], ms),
            by_granularity={
                granularity: errors(predicted, fits[granularity].undrifted(to_test.ms, to_test.groups))
                for granularity, predicted in tested.items()
            },
            by_networks=tuple(
                (n, errors(d.counts(to_test.genes) @ fitted(best, to_fit.first(n)).ms, ms).mean_error) for n in sizes
            ),
        ),
        tested=tuple(zip(ms.tolist(), tested[best].tolist(), strict=True)),
        rows=tuple(
            Row(key=str(key), ms=row, spread_ms=spread, networks=n, alone_ms=own)
            for key, row, spread, n, own in zip(
                d.keys, rows.ms.tolist(), rows.spread_ms.tolist(), appears.tolist(), alone[best].tolist(), strict=True
            )
        ),
    )


def _decomposition(supernet: Supernet, granularity: Granularity) -> Decomposition:
    return Decomposition(supernet.space, join(supernet.parts, granularity))


def _alone(supernet: Supernet, decomposition: Decomposition, times: Mapping[str, float]) -> Floats:
    """The sum of the parts, timed alone, of each row."""
    fine = _decomposition(supernet, "linear")
    sums = []
    for key in decomposition.keys:
        part, genes = decomposition.example(key)
        inside = [own for own in fine.parts if own.paths[0] in part.paths]
        sums.append(sum(times[str(fine.key(own, genes))] for own in inside))
    return np.array(sums)


def _problems(measured: Measured, noise: float) -> list[str]:
    """What is wrong with the machine that was measured on, a sentence each."""
    reference = Arrays.of(measured, "reference").ms
    share = float(np.median([timing.core_share for timing in measured.timings]))
    problems = []
    if noise > MAX_NOISE:
        problems.append(f"the machine is noisy: two measurements of a network differ by {noise:.1%}")
    third = max(1, len(reference) // 3)
    slower = float(np.median(reference[-third:]) / np.median(reference[:third]) - 1)
    if slower > MAX_DRIFT / 2:
        problems.append(f"the machine became {slower:.1%} slower while it was measured; it may throttle")
    apart = float(np.percentile(reference, 90) / np.percentile(reference, 10) - 1)
    if apart > MAX_DRIFT:
        problems.append(f"the speed of the machine varied by {apart:.1%} between groups of networks")
    if share < MIN_CORE_SHARE:
        problems.append(f"other work ran on the cores that were measured: they were free {share:.0%} of the time")
    return problems
