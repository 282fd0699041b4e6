"""Real worker processes on a tiny BERT; latencies are given, as from a table, except where measuring is the point."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import onnx
import psutil
import pytest
from distributed import Client, LocalCluster, Worker, wait
from distributed.nanny import WorkerProcess
from threadpoolctl import threadpool_info

from qnas_plugin.build import shared_model
from qnas_plugin.build.graph import Cut
from qnas_plugin.errors import ClusterError, MeasurementError, OutputError
from qnas_plugin.evaluate import cluster_latency, on_worker, workers
from qnas_plugin.evaluate.bench import Job
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.files.locks import alone_in
from qnas_plugin.hardware import HardwareProfile, describe
from qnas_plugin.hardware.machine import detect
from qnas_plugin.hardware.turns import private_folder
from qnas_plugin.quantizers.quantize import Policy
from qnas_plugin.search import Algorithm, Problem, nsga2, random
from qnas_plugin.space import Candidate, Precision
from qnas_plugin.study.drive import drive
from qnas_plugin.study.evaluation import Trial
from qnas_plugin.study.study import Study
from tests.evaluate.test_lab import make

OBJECTIVES = ("accuracy", "size_mb")


@pytest.fixture(scope="module")
def lab(bert_checkpoint: Path, sentences: Path) -> Lab:
    return make("bert", bert_checkpoint, str(sentences))


@pytest.fixture(scope="module")
def profile() -> HardwareProfile:
    return describe(detect(), "this-machine")


@pytest.fixture(scope="module")
def client(profile: HardwareProfile) -> Iterator[Client]:
    with workers.connect(2, None, profile.name) as client:
        yield client


class Search:
    """A search of a lab's space, with latencies that need no measurement."""

    def __init__(self, lab: Lab, profile: HardwareProfile, storage: Path) -> None:
        self.lab, self.profile, self.storage = lab, profile, str(storage)
        self.done: list[Trial] = []
        self.create = random.create

    def job(self, candidate: Candidate) -> Job:
        return replace(self.lab.job(candidate), latency=(1.0, 0.0))

    def algorithm(self) -> Algorithm:
        return self.create(Problem(self.lab.network.space, OBJECTIVES), seed=0, population=5)

    def study(self) -> Study:
        return Study.open(self.storage, self.lab.network.space, OBJECTIVES, identity={"a": "b"})

    def run(self, client: Client, trials: int) -> list[Trial]:
        with (
            self.study() as study,
            workers.executor(client, self.lab.bench, self.job, self.profile) as executor,
        ):
            drive(study, self.algorithm(), executor, trials=trials, on_trial=self.on_trial)
            return study.trials()

    def on_trial(self, trial: Trial) -> None:
        self.done.append(trial)


def test_nobody_else_reaches_the_workers_of_this_machine(client: Client) -> None:
    """Another user can open no socket of theirs; what listens on ports is no Dask and shows nothing."""
    address = client.scheduler.address
    folder = Path(address.removeprefix("qnas-private://").rpartition(":")[0])
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder, folder.parent, *folder.iterdir()))
    if not os.getuid():
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(next(folder.iterdir()))!r})"
        tried = subprocess.run(["/usr/bin/env", "python3", "-c", code], user=12345, capture_output=True, text=True)
        assert "PermissionError" in tried.stderr
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    ports = [
        connection.laddr.port
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    for port in ports:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):  # one of Dask's begins to talk
                connection.recv(1)
        for page in ("/", "/info/main/workers.html", "/json/identity.json", "/api/v1", "/status"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=5)


def test_a_port_without_proof_is_what_dask_opens_by_default() -> None:
    """What the test above would find: the attack works on Dask's own cluster."""
    with LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address="127.0.0.1:0") as cluster:
        address = cluster.scheduler_address
        with socket.create_connection(urlsplit(address)[1].split(":")) as connection:
            assert connection.recv(1)
        code = f"from distributed import Client; print(Client({address!r}).run_on_scheduler(lambda: 'run as you'))"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "run as you" in ran.stdout


def test_connect_removes_what_a_killed_driver_left_and_leaves_others_alone(profile: HardwareProfile) -> None:
    left = Path(tempfile.mkdtemp(dir=private_folder(), prefix="workers-"))
    (left / "a").touch()
    alive = Path(tempfile.mkdtemp(dir=private_folder(), prefix="workers-"))
    with alone_in(alive), workers.connect(1, None, profile.name):
        assert not left.exists()
        assert alive.exists()
    alive.rmdir()


def test_connect_says_that_a_worker_ended_while_it_started(
    profile: HardwareProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = WorkerProcess._wait_until_connected

    async def kill(self: WorkerProcess, *arguments: object) -> object:
        os.kill(self.process.pid, signal.SIGKILL)
        return await plain(self, *arguments)

    monkeypatch.setattr(WorkerProcess, "_wait_until_connected", kill)
    with pytest.raises(ClusterError, match="a worker ended while it started"), workers.connect(1, None, profile.name):
        pass


def test_connect_says_that_the_name_of_the_folder_is_too_long(
    tmp_path: Path, profile: HardwareProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    (long := tmp_path / ("x" * 100)).mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with pytest.raises(ClusterError, match="too long for the sockets"), workers.connect(1, None, profile.name):
        pass


@pytest.fixture
def search(lab: Lab, profile: HardwareProfile, tmp_path: Path) -> Search:
    return Search(lab, profile, tmp_path / "trials.journal")


def by_key(trials: list[Trial]) -> dict[str, dict[str, float]]:
    return {trial.candidate.key: dict(trial.metrics) for trial in trials}


def pids(client: Client) -> dict[str, int]:
    found: dict[str, int] = client.run(os.getpid)
    return found


def test_drive_measures_what_one_process_does(client: Client, search: Search, tmp_path: Path) -> None:
    trials = search.run(client, 12)
    assert len(by_key(trials)) == len(trials) == 12
    assert all(trial.state == "complete" for trial in trials)
    alone = {
        trial.candidate.key: search.lab.bench.evaluate(search.job(trial.candidate), tmp_path, threads=1).metrics
        for trial in trials
    }
    assert by_key(trials) == alone
    assert search.done == trials


def test_drive_proposes_the_same_whichever_worker_is_faster(client: Client, search: Search, tmp_path: Path) -> None:
    """Two searches that learn after each pair of trials; in one of them each third trial takes longer."""
    found = []
    search.create = nsga2.create
    for number, seconds in enumerate((0.0, 1.5)):
        job, search.storage = search.job, str(tmp_path / f"{number}.journal")

        def slow(candidate: Candidate, job: Any = job, seconds: float = seconds) -> Job:
            late = int(candidate.key, 16) % 3 == 0
            return _Late(**vars(job(candidate)), seconds=seconds if late else 0.0)

        search.job = slow  # type: ignore[method-assign]
        trials = search.run(client, 14)
        search.job = job  # type: ignore[method-assign]
        found.append([trial.candidate.key for trial in trials])
    assert found[0] != found[1]  # stored as they finished
    assert sorted(found[0]) == sorted(found[1])


@dataclass(frozen=True)
class _Late(Job):
    """A candidate whose description takes long to arrive at the worker."""

    seconds: float = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return _late, (self.candidate, self.cut, self.policy, self.latency, self.seconds)


def _late(candidate: Candidate, cut: Cut, policy: Policy, latency: tuple[float, float] | None, seconds: float) -> Job:
    time.sleep(seconds)
    return Job(candidate, cut, policy, latency)


def test_drive_gives_work_to_every_worker_and_leaves_nothing_there(client: Client, search: Search) -> None:
    search.run(client, 10)
    assert min(client.run(lambda dask_worker: dask_worker.state.executed_count).values()) > 0
    assert not any(client.run(lambda dask_worker: list(Path(dask_worker.local_directory).iterdir())).values())
    assert not any(client.run(_places).values())


def _places(dask_worker: Worker) -> list[str]:
    return [name for name in dask_worker.plugins if name.startswith("qnas")]


def test_drive_runs_a_trial_again_when_its_worker_is_killed(client: Client, search: Search) -> None:
    killed: list[int] = []

    def kill(trial: Trial) -> None:
        search.done.append(trial)
        if trial.number in (2, 6):
            killed.append(sorted(pids(client).values())[0])
            os.kill(killed[-1], signal.SIGKILL)

    search.on_trial = kill  # type: ignore[method-assign]
    trials = search.run(client, 12)
    assert len(by_key(trials)) == len(trials) == 12
    assert all(trial.state == "complete" for trial in trials)
    assert len(set(killed)) == 2
    assert not any(psutil.pid_exists(pid) for pid in killed)
    client.wait_for_workers(2, timeout=30)


def test_outcome_is_computed_again_when_the_worker_ends_before_it_hands_it_over(profile: HardwareProfile) -> None:
    with workers.connect(1, None, profile.name) as client:
        future = client.submit(os.getpid, pure=False)
        wait(future)
        (nanny,) = client.cluster.workers.values()
        before = nanny.pid
        client.cluster.sync(nanny.close)  # so that nobody but the driver replaces it
        assert workers._outcome(client, future) not in (None, before)


def test_drive_leaves_the_cores_to_the_workers(client: Client, search: Search) -> None:
    seen: list[int] = []
    search.on_trial = lambda trial: seen.extend(  # type: ignore[method-assign]
        pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"
    )
    search.run(client, 2)
    assert seen
    assert set(seen) == {1}


def test_drive_goes_on_where_it_stopped(client: Client, search: Search) -> None:
    def stop(trial: Trial) -> None:
        raise KeyboardInterrupt

    first = search.run(client, 4)
    on_trial, search.on_trial = search.on_trial, stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        search.run(client, 9)
    search.on_trial = on_trial  # type: ignore[method-assign]
    trials = search.run(client, 9)
    assert trials[:4] == first
    assert len(by_key(trials)) == len(trials) == 9


def test_drive_sends_the_bench_again_when_another_search_took_it_away(client: Client, search: Search) -> None:
    def take_away(trial: Trial) -> None:
        if trial.number == 1:
            (name,) = next(iter(client.run(_places).values()))
            client.unregister_worker_plugin(name)

    search.on_trial = take_away  # type: ignore[method-assign]
    trials = search.run(client, 8)
    assert len(by_key(trials)) == 8
    assert all(trial.state == "complete" for trial in trials)


@pytest.mark.parametrize("settles", [True, False])
def test_evaluate_waits_for_a_bench_that_is_being_opened(
    settles: bool, profile: HardwareProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = on_worker.Place("name", {}, profile)
    monkeypatch.setattr(on_worker, "get_worker", lambda: SimpleNamespace(plugins={"name": place}))
    monkeypatch.setattr(on_worker, "SETUP_SECONDS", 10.0 if settles else 0.1)

    def settle() -> None:
        place.refusal = "not here"
        place.settled = True

    if settles:
        threading.Timer(0.2, settle).start()
    with pytest.raises(ClusterError if settles else on_worker.NotPlacedError):
        on_worker.evaluate("name", cast("Job", None), {})


def test_drive_stores_a_failed_trial_when_a_candidate_cannot_be_built(client: Client, search: Search) -> None:
    job = search.job

    def broken(candidate: Candidate) -> Job:
        right = job(candidate)
        return replace(right, cut=replace(right.cut, skipped=("bert",)))

    search.job = broken  # type: ignore[method-assign]
    trials = search.run(client, 3)
    assert [trial.state for trial in trials] == ["failed"] * 3
    assert "MaterializeError: block 'bert' cannot be bypassed" in str(trials[0].error)


def test_drive_measures_latency_on_workers_with_the_resource(client: Client, search: Search) -> None:
    search.job = search.lab.job  # type: ignore[method-assign]
    trials = search.run(client, 3)
    assert all(trial.metrics["latency_ms"] > 0 for trial in trials)
    assert all(trial.seconds["latency"] > 0.5 for trial in trials)


def test_drive_says_that_no_worker_offers_the_sku(client: Client, search: Search) -> None:
    search.job = search.lab.job  # type: ignore[method-assign]
    search.profile = search.profile.model_copy(update={"name": "xeon-9999"})
    with pytest.raises(ClusterError, match=r'no worker offers \'xeon-9999\'.* --resources "xeon-9999=1"'):
        search.run(client, 3)


def test_latency_measures_files_on_a_worker_of_the_sku(
    client: Client, search: Search, profile: HardwareProfile, tmp_path: Path
) -> None:
    bench = search.lab.bench
    paths = [tmp_path / f"{size}.onnx" for size in ("largest", "smallest")]
    for path in paths:
        search.lab.write(search.lab.network.space.corner(path.stem, Precision.FP32), path)
    timed = cluster_latency.latency(client, profile, paths, bench.timing_inputs, bench.setting, 2)
    assert [len(latency.round_medians) for latency in timed] == [2, 2]
    assert all(latency.median > 0 for latency in timed)
    assert not any(client.run(lambda dask_worker: list(Path(dask_worker.local_directory).iterdir())).values())
    paths[1].write_bytes(b"no model")
    with pytest.raises(MeasurementError, match=r"cannot read 'smallest\.onnx'"):
        cluster_latency.latency(client, profile, paths, bench.timing_inputs, bench.setting, 2)
    unknown = onnx.helper.make_graph([onnx.helper.make_node("Unknown", [], ["y"])], "g", [], [])
    paths[1].write_bytes(onnx.helper.make_model(unknown).SerializeToString())
    with pytest.raises(MeasurementError, match=r"cannot time 'smallest\.onnx'"):
        cluster_latency.latency(client, profile, paths, bench.timing_inputs, bench.setting, 2)
    another = profile.model_copy(update={"recognise": profile.recognise.model_copy(update={"brand": "another"})})
    with pytest.raises(ClusterError, match=r"offers the resource 'this-machine', and is another machine"):
        cluster_latency.latency(client, another, paths, bench.timing_inputs, bench.setting, 2)


def test_latency_sends_the_weights_beside_a_model_piece_by_piece(
    client: Client, search: Search, profile: HardwareProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of models over 2 GB, with a small one."""
    monkeypatch.setattr(shared_model, "_LARGE", 10_000)
    monkeypatch.setattr(cluster_latency, "_AT_ONCE", 30_000)
    monkeypatch.setattr(cluster_latency, "_forget", lambda name, dask_worker: None)
    bench, path = search.lab.bench, tmp_path / "model.onnx"
    search.lab.write(search.lab.network.space.corner("largest", Precision.FP32), path)
    assert path.with_name("model.onnx_data").stat().st_size > 60_000
    (timed,) = cluster_latency.latency(client, profile, [path], bench.timing_inputs, bench.setting, 2)
    assert timed.median > 0
    folders = client.run(lambda dask_worker: dask_worker.local_directory).values()
    (sent,) = [found for folder in folders for found in Path(folder).glob("qnas-timed-*")]
    for file in tmp_path.iterdir():
        assert (sent / "0" / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(sent)


def test_drive_says_that_weights_are_too_large_to_be_sent(
    client: Client, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MOST", 10_000)
    with pytest.raises(ClusterError, match=r"the weights are .* GB, workers get up to .*; search without them"):
        search.run(client, 1)


def test_latency_says_that_its_worker_ended(
    search: Search, profile: HardwareProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    search.lab.write(search.lab.network.space.corner("largest", Precision.FP32), path)
    bench = search.lab.bench
    with existing(profile) as (address, processes), workers.connect(None, address, profile.name) as client:

        def check_offered(client: Client, sku: str) -> str:
            worker = workers.check_offered(client, sku)
            threading.Timer(1, processes[1].kill).start()
            return worker

        monkeypatch.setattr(cluster_latency, "check_offered", check_offered)
        with pytest.raises(ClusterError, match=r"the worker tcp://\S+ ended while it measured"):
            cluster_latency.latency(client, profile, [path], bench.timing_inputs, bench.setting, 10_000)


def test_drive_says_that_no_worker_is_left(
    search: Search, profile: HardwareProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ALONE_SECONDS", 1)
    with existing(profile) as (address, processes), workers.connect(None, address, profile.name) as client:
        search.on_trial = lambda trial: processes[1].kill()  # type: ignore[method-assign]
        with pytest.raises(ClusterError, match="no worker was there for 1 s; what was finished is stored"):
            search.run(client, 50)


@pytest.mark.parametrize("package", ["qnas-plugin", "onnxruntime", "neural-compressor"])
def test_drive_refuses_a_worker_with_another_version(
    client: Client, search: Search, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    versions = on_worker.versions()
    monkeypatch.setattr(on_worker, "versions", lambda: versions | {package: "9.9"})
    with pytest.raises(ClusterError, match=rf"the worker \S+://\S+ has {package} \S+, this search 9\.9; install"):
        search.run(client, 3)
    assert search.done == []


def test_drive_refuses_a_worker_that_is_not_the_sku_that_it_offers(client: Client, search: Search) -> None:
    search.profile = search.profile.model_copy(
        update={"recognise": search.profile.recognise.model_copy(update={"brand": "another"})}
    )
    with pytest.raises(ClusterError, match=r"offers the resource 'this-machine', and is another machine: the brand is"):
        search.run(client, 3)


def test_drive_reports_errors_of_a_worker_that_are_no_fault_of_the_candidate(
    client: Client, search: Search, tmp_path: Path
) -> None:
    """A disk that is full where the worker writes: a file can grow no further after its first bytes."""
    full = client.run(_fill_disk)
    assert len(full) == 2
    try:
        with pytest.raises(OutputError, match=r"cannot write \S+model\.onnx: File too large"):
            search.run(client, 3)
    finally:
        client.run(_empty_disk)
    assert len(search.run(client, 3)) == 3


def _fill_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def _empty_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_drive_goes_on_when_the_scheduler_is_silent_for_a_while(search: Search, profile: HardwareProfile) -> None:
    """Stopped and continued, as a machine that was suspended, or a network that was gone."""
    with existing(profile) as (address, processes), workers.connect(None, address, profile.name) as client:

        def pause(trial: Trial) -> None:
            search.done.append(trial)
            if trial.number == 1:
                processes[0].send_signal(signal.SIGSTOP)
                threading.Timer(5, processes[0].send_signal, [signal.SIGCONT]).start()

        search.on_trial = pause  # type: ignore[method-assign]
        trials = search.run(client, 6)
    assert len(by_key(trials)) == len(trials) == 6
    assert all(trial.state == "complete" for trial in trials)


def test_drive_gives_workers_the_data_of_its_own_search(
    client: Client, search: Search, profile: HardwareProfile, tmp_path: Path
) -> None:
    """A worker that still holds other data of the same shape, as another search on the cluster has them."""
    batches = [replace(batch, positions=batch.positions[::-1]) for batch in search.lab.bench.search]
    other = replace(search.lab.bench, search=batches)
    with workers._placed(client, place := on_worker.Place.of(other, profile), other):
        assert place.name != on_worker.Place.of(search.lab.bench, profile).name
        (trial,) = search.run(client, 1)
    job = search.job(trial.candidate)
    assert trial.metrics == search.lab.bench.evaluate(job, tmp_path, threads=1).metrics
    assert trial.metrics != other.evaluate(job, tmp_path, threads=1).metrics


def test_a_scheduler_that_goes_away_is_one_error_and_the_search_goes_on_with_another(
    client: Client, search: Search, profile: HardwareProfile
) -> None:
    with existing(profile) as (address, processes), workers.connect(None, address, profile.name) as lost:

        def end(trial: Trial) -> None:
            if trial.number == 2:
                processes[0].kill()

        search.on_trial = end  # type: ignore[method-assign]
        with pytest.raises(ClusterError, match=r"the scheduler tcp://\S+ is gone; what was finished is stored, with a"):
            search.run(lost, 50)
    search.on_trial = search.done.append  # type: ignore[method-assign]
    trials = search.run(client, 8)
    assert len(by_key(trials)) == len(trials) == 8
    assert len(search.done) < 6


@contextmanager
def existing(profile: HardwareProfile) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and a worker, each a process of its own, as ``docs/cluster.md`` has them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dask = (
        [sys.executable, "-m", "distributed.cli.dask_scheduler"],
        [sys.executable, "-m", "distributed.cli.dask_worker"],
    )
    options = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    processes = [
        subprocess.Popen([*dask[0], "--host", address, "--no-dashboard"], **options),
        subprocess.Popen(
            [*dask[1], address, "--nthreads", "1", "--no-nanny", "--resources", f"{profile.name}=1"], **options
        ),
    ]
    try:
        yield address, processes
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(20)


def test_connect_says_that_no_scheduler_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 1)
    with (
        pytest.raises(ClusterError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1; start one with: dask"),
        workers.connect(None, "tcp://127.0.0.1:1", "this-machine"),
    ):
        pass
