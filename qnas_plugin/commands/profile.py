"""Makes a latency table on this machine: parts timed alone, whole networks timed in context, rows fitted and tested.

Networks are timed in batches, each in a process of its own and in interleaved rounds of short turns; in each pass over
them batches are other ones. What was measured is kept in a file beside the table, so that a stopped run goes on and a
longer one adds to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qnas_plugin import hardware, quantizers, registry
from qnas_plugin.build.graph import Graph
from qnas_plugin.data import Inputs
from qnas_plugin.errors import HardwareError, LatencyTableError, OutputError, QnasError
from qnas_plugin.files import make_folder
from qnas_plugin.files.locks import alone_in, scratch
from qnas_plugin.hardware import HardwareProfile, RuntimeSetting
from qnas_plugin.hardware.machine import detect, environment
from qnas_plugin.latency.fit import Fit, Floats, design, errors, fit
from qnas_plugin.latency.measurements import Measured, Networks, Purpose, append, joined, resume, steady
from qnas_plugin.latency.parts_alone import build, isolate
from qnas_plugin.latency.rows import GRANULARITIES, Decomposition, Granularity, join
from qnas_plugin.latency.table import Fidelity, LatencyTable, Row, setting_of, table_name, write
from qnas_plugin.measure.latency import time_models
from qnas_plugin.quantizers import quantize
from qnas_plugin.request import ProfileRequest, parse_duration
from qnas_plugin.space import Genes, unique_rows
from qnas_plugin.supernets import Supernet

FITTED, HELD_OUT = 80, 60
"""Networks that rows are fitted to, and tested on."""

BATCH_MB = 4000
"""Megabytes of weights that a batch of networks would have if all were the largest."""

PASSES = 4
"""How often a budget should be enough to time each network; each is timed at least once, and some twice."""

RUNS, TURN, ROUNDS = 3, 0.015, (6, 100)
"""Least timed runs of a network's turn, and least seconds; least and most rounds of a visit."""

SECONDS_ALONE = 0.15
"""Time of a part alone."""

MAX_NOISE, MAX_DRIFT, MIN_CORE_SHARE = 0.03, 0.08, 0.95
"""What a machine that is measured on should keep: repetition, range of its speed, time that it had for itself."""


@dataclass(frozen=True)
class Progress:
    """Where a profile stands.

    Args:
        visits: Batches of networks timed.
        seconds: Time used.
        budget: Time allowed.
    """

    visits: int
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
    machine = detect()
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
        "schema_version": 3,
        "space": supernet.space.fingerprint,
        "shape": dict(supernet.shape),
        "setting": setting.model_dump(mode="json"),
        "machine": str(machine),
        "onnxruntime": environment()["versions"]["onnxruntime"],
        "seed": request.seed,
    }
    quantizer = quantize.load(request.quantizer)
    if request.quantizer != quantizers.DEFAULT:
        identity["quantizer"] = f"{request.quantizer} {quantizer.version()}"
    name = table_name(request.supernet, supernet.shape, setting)
    make_folder(request.out / sku.name)
    work = request.out / sku.name / f"{name}.measured.jsonl"
    began = work.exists()
    try:
        work.touch()
    except OSError as error:
        raise OutputError(f"cannot write {work}: {error.strerror}; give another --out") from None
    with alone_in(work):
        try:
            measured = resume(work, identity, supernet.space.sizes.tolist())
            table_file = work.with_name(f"{name}.json")
            if table_file.exists() and not measured.seconds and not request.overwrite:
                raise OutputError(
                    f"{table_file} is a table that other measurements made; give another --out, or --overwrite to "
                    "replace it"
                )
        except QnasError:
            if not began:
                work.unlink()
            raise
        bench = Bench(supernet, supernet.graph(inputs), inputs, setting, request.quantizer)
        _measure(bench, request, work, measured, on_stage, on_progress)
        on_stage("Fitting rows and testing them")
        table = conclude(request.supernet, supernet, sku, setting, measured, wrong)
        made = {"quantizer": f"{request.quantizer} {quantizer.version()}"}
        table = table.model_copy(update={"versions": {**table.versions, **made}})
        return table, write(table, request.out)


def _measure(
    bench: Bench,
    request: ProfileRequest,
    work: Path,
    measured: Measured,
    on_stage: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> None:
    """Times what is missing, within the budget, and adds it to the file and to what was measured."""
    if measured.damaged:
        on_stage(f"{measured.damaged} damaged lines of {work} are left out; what they had is measured again")
    if measured.timings:
        on_stage(f"Going on after {measured.visits} batches of networks that an earlier run timed")
    if not {str(key) for key in _decomposition(bench.supernet, "linear").keys} <= measured.alone.keys():
        on_stage("Timing the parts alone")
        append(work, measured, bench.alone)
    on_stage("Timing whole networks")
    budget, least = parse_duration(request.budget), bench.batches_a_pass + 1
    own = budget / (PASSES * bench.batches_a_pass)
    networks = bench.networks(request.seed)
    for number, batch in enumerate(bench.batches(networks, request.seed)):
        if number in measured.batches:
            continue
        on_progress(Progress(measured.visits, measured.seconds, budget))
        pace = measured.seconds / (measured.visits + 1)
        if measured.seconds + pace > budget and number >= least:
            break
        append(
            work,
            measured,
            lambda batch=batch, number=number: bench.visit(batch, measured.alone, own) | {"batch": number},  # type: ignore[misc]
        )
    on_progress(Progress(measured.visits, budget, budget))


@dataclass(frozen=True)
class Bench:
    """A supernet with what is needed to time its networks and parts."""

    supernet: Supernet
    graph: Graph
    inputs: Inputs
    setting: RuntimeSetting
    quantizer: str = quantizers.DEFAULT

    def alone(self) -> dict[str, Any]:
        """The line of the parts timed alone."""
        parts = _decomposition(self.supernet, "linear")
        with scratch() as folder:
            paths: dict[str, Path] = {}
            inputs: dict[str, npt.NDArray[Any]] = {}
            for part in isolate(self.graph, self.supernet, parts, self.inputs, folder, quantizer=self.quantizer):
                path = paths[str(part.key)] = folder / f"{len(paths)}.onnx"
                path.write_bytes(part.model.SerializeToString())
                inputs |= part.inputs
            latencies = time_models(
                [*paths.values()], inputs, self.setting, minimum_runs=20, minimum_seconds=SECONDS_ALONE, rounds=2
            )
        times = {key: latency.median for key, latency in zip(paths, latencies, strict=True)}
        return {"alone": {str(key): times.get(str(key), 0.0) for key in parts.keys}}

    @property
    def batches_a_pass(self) -> int:
        """How many batches all networks are timed in."""
        megabytes = sum(4e-6 * parameter.numel() for parameter in self.supernet.model.parameters())
        return -(-(FITTED + HELD_OUT) // max(4, int(BATCH_MB / megabytes)))

    def networks(self, seed: int) -> list[tuple[Purpose, Genes]]:
        """Those to fit to, half of them designed and half uniformly random, and those to test on; none is twice there.

        A design alone consists of extremes, and what is fitted to it is a percent or two off in between.
        """
        space, rng = self.supernet.space, np.random.default_rng(seed)
        random = space.sample(10 * (FITTED + HELD_OUT), rng)
        random = random[unique_rows(random)]
        tests, rest = random[:HELD_OUT], random[HELD_OUT:]
        designed = design(_decomposition(self.supernet, "half-block"), FITTED // 2 + HELD_OUT, rng)
        designed = designed[~(designed[:, None] == tests).all(axis=2).any(axis=1)][: FITTED // 2]
        fitted = np.concatenate([designed, rest])
        fitted = fitted[unique_rows(fitted)][:FITTED]
        return [*(("fit", genes) for genes in fitted), *(("test", genes) for genes in tests)]

    def batches(self, networks: Sequence[tuple[Purpose, Genes]], seed: int) -> Iterator[list[tuple[Purpose, Genes]]]:
        """The networks of each visit, without end: in each pass all of them, with other companions.

        The largest in INT8, which the fitted networks begin with, is in each batch, so that batches of one pass can be
        compared.
        """
        reference, others = networks[0], networks[1:]
        for number in count():
            order = np.random.default_rng((seed, number)).permutation(len(others))
            for indices in np.array_split(order, self.batches_a_pass):
                yield [reference, *(others[i] for i in indices)]

    def visit(
        self, batch: Sequence[tuple[Purpose, Genes]], alone: Mapping[str, float], seconds: float
    ) -> dict[str, Any]:
        """The line of a batch of networks.

        Args:
            batch: Purposes and canonical genotypes.
            alone: Milliseconds of each part's key; they say how many rounds there is time for.
            seconds: How long it should take, building the networks included.
        """
        began, space, fine = time.monotonic(), self.supernet.space, _decomposition(self.supernet, "linear")
        counts = fine.counts(np.array([genes for _, genes in batch]))
        typical = counts @ [alone[str(key)] for key in fine.keys] / 1e3
        a_round = float(np.maximum((RUNS + 1) * typical, TURN + typical).sum())
        with scratch() as folder:
            paths = [folder / f"{i}.onnx" for i in range(len(batch))]
            for path, (_, genes) in zip(paths, batch, strict=True):
                model = build(self.graph, self.supernet, space.decode(genes), quantizer=self.quantizer)
                path.write_bytes(model.SerializeToString())
            left = seconds - 1.5 * (time.monotonic() - began)  # loading takes about half as long as building
            rounds = int(np.clip(left / a_round, *ROUNDS))
            latencies = time_models(
                paths,
                self.inputs,
                self.setting,
                minimum_runs=RUNS * rounds,
                minimum_seconds=TURN * rounds,
                rounds=rounds,
            )
        times, spreads = steady(np.array([latency.round_medians for latency in latencies]))
        return {
            "networks": [
                {
                    "purpose": purpose,
                    "genes": genes.tolist(),
                    "ms": ms,
                    "spread": spread,
                    "core_share": latency.core_share,
                }
                for (purpose, genes), ms, spread, latency in zip(
                    batch, times.tolist(), spreads.tolist(), latencies, strict=True
                )
            ]
        }


def conclude(
    name: str,
    supernet: Supernet,
    sku: HardwareProfile,
    setting: RuntimeSetting,
    measured: Measured,
    problems: Sequence[str] = (),
) -> LatencyTable:
    """The table that measurements give.

    What is chosen (granularity, regularisation) is chosen by cross-validation over the networks to fit to; those held
    out are touched once.

    Raises:
        LatencyTableError: There are too few measurements.
    """
    began = time.monotonic()
    networks = joined(measured) if measured.timings else None
    if networks is None or networks.tests.sum() < HELD_OUT:
        raise LatencyTableError(f"{measured.visits} batches of networks are too few; allow a longer --budget")
    fit_genes, fit_ms = networks.genes[~networks.tests], networks.ms[~networks.tests]
    genes, ms = networks.genes[networks.tests], networks.ms[networks.tests]
    decompositions = {granularity: _decomposition(supernet, granularity) for granularity in GRANULARITIES}
    alone = {granularity: _alone(supernet, d, measured.alone) for granularity, d in decompositions.items()}

    def fitted(granularity: Granularity, number: int) -> Fit:
        d = decompositions[granularity]
        return fit(d.counts(fit_genes[:number]), fit_ms[:number], alone[granularity], d.keys)

    fits = {granularity: fitted(granularity, len(fit_ms)) for granularity in GRANULARITIES}
    best: Granularity = min(fits, key=lambda granularity: fits[granularity].error)
    tested = {granularity: fits[granularity](d.counts(genes)) for granularity, d in decompositions.items()}
    sizes = sorted({*(n for n in (10, 20, 40) if n < len(fit_ms)), len(fit_ms)})
    d, rows = decompositions[best], fits[best]
    appears = (d.counts(fit_genes) > 0).sum(axis=0)
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
        networks=len(fit_ms),
        seconds=measured.seconds + time.monotonic() - began,
        disturbance=float(np.median([timing.spread for timing in measured.timings])),
        problems=(*(f"not measured on this SKU: {reason}" for reason in problems), *_problems(measured, networks)),
        fidelity=Fidelity(
            held_out=len(ms),
            errors=errors(tested[best], ms),
            noise=networks.noise,
            repeated=networks.repeated,
            alone=errors(decompositions["linear"].counts(genes) @ alone["linear"], ms),
            by_granularity={granularity: errors(predicted, ms) for granularity, predicted in tested.items()},
            by_networks=tuple((n, errors(fitted(best, n)(d.counts(genes)), ms).mean_error) for n in sizes),
        ),
        offset_ms=rows.offset_ms,
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
        inside = [own for own in fine.parts if own.reader == part.reader and {*own.paths[:1]} <= {*part.paths}]
        sums.append(sum(times[str(fine.key(own, genes))] for own in inside))
    return np.array(sums)


def _problems(measured: Measured, networks: Networks) -> list[str]:
    """What is wrong with the machine that was measured on, a sentence each."""
    share = float(np.median([timing.core_share for timing in measured.timings]))
    speed = 1 + networks.slower
    problems = []
    if networks.noise > MAX_NOISE:
        problems.append(f"the machine is noisy: two measurements of a network differ by {networks.noise:.1%}")
    third = max(1, len(speed) // 3)
    slower = float(np.median(speed[-third:]) / np.median(speed[:third]) - 1)
    if slower > MAX_DRIFT / 2:
        problems.append(f"the machine became {slower:.1%} slower while it was measured; it may throttle")
    apart = float(np.percentile(speed, 90) / np.percentile(speed, 10) - 1)
    if apart > MAX_DRIFT:
        problems.append(f"the speed of the machine varied by {apart:.1%} between batches of networks")
    if share < MIN_CORE_SHARE:
        problems.append(f"other work ran on the cores that were measured: they were free {share:.0%} of the time")
    return problems
