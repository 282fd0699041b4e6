"""Candidates evaluated by other processes: some of this machine, or the workers of a Dask cluster.

One driver, this process, asks and tells and owns the storage. The bench goes to each worker once, named by its
content, as a Dask plugin: the scheduler keeps it, so a worker that comes later or comes back has it too. A worker that
ends takes nothing with it: Dask runs its trial again on another.
"""

from __future__ import annotations

import logging
import pickle
import platform
import queue
import signal
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TypeVar

from distributed import Client, Future, KilledWorker, Worker, WorkerPlugin, get_worker
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError, get_address_host
from threadpoolctl import threadpool_limits

from qnas_plugin._version import __version__
from qnas_plugin.errors import ClusterError
from qnas_plugin.evaluate._private_transport import private_cluster
from qnas_plugin.evaluate.bench import Bench, Job
from qnas_plugin.hardware import HardwareProfile, is_this_machine
from qnas_plugin.hardware.machine import cores, detect
from qnas_plugin.search import Algorithm, Observation
from qnas_plugin.space import Candidate
from qnas_plugin.study.drive import attempt
from qnas_plugin.study.evaluation import Evaluation, Trial
from qnas_plugin.study.study import Study

CONNECT_SECONDS = 15
"""How long a scheduler may take to answer, and its first worker to be there."""

ALONE_SECONDS = 60
"""How long a search waits for a worker when the last one is gone."""

LOOK_SECONDS = 2.0
"""How often a wait looks whether workers are still there."""

AHEAD = 2
"""Candidates under way for each worker."""

SETUP_SECONDS = 60.0
"""How long a trial waits on its worker for the bench to be opened there."""

MOST = 4_000_000_000
"""Bytes of weights that workers are sent: Dask sends them as one, of which msgpack 1.2 takes less than 2 ** 32."""

Awaited = TypeVar("Awaited")
_PACKAGES = ("neural-compressor", "numpy", "onnx", "onnxruntime")


@contextmanager
def connect(count: int | None, address: str | None, sku: str | None) -> Iterator[Client]:
    """The workers of an existing scheduler, or so many processes of this machine that end with the context.

    Args:
        count: Processes to start here; each has the SKU's resource.
        address: Of a scheduler, instead.
        sku: The name of the hardware profile that latencies are measured for; None where they are looked up.

    Raises:
        ClusterError: The scheduler does not answer, it has no worker, or one that is started here ends before it is
            there.
        HardwareError: There is no folder that this user alone can enter, which workers of this machine need.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is raised, or mended by Dask
    if address is None:
        assert count is not None
        with ExitStack() as stack:
            with _hidden_from_the_terminal():
                # No memory limit: Dask would pause a worker at 80 % of it, for ever if what it holds is the bench.
                offers = {} if sku is None else {sku: 1}
                try:
                    started = stack.enter_context(private_cluster(count, memory_limit=0, resources=offers))
                except ClusterError:
                    raise
                except RuntimeError as error:  # of distributed 2026.8: "Nanny failed to start."
                    raise ClusterError("a worker ended while it started; the same command continues") from error
            yield stack.enter_context(Client(started))
        return
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no scheduler answers at {address}; start one with: dask scheduler") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError:
            raise ClusterError(
                f"the scheduler at {address} has no workers; start one with: dask worker {address} --nthreads 1"
            ) from None
        yield client


def drive(
    client: Client,
    study: Study,
    algorithm: Algorithm,
    bench: Bench,
    job: Callable[[Candidate], Job],
    profile: HardwareProfile,
    *,
    trials: int,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> None:
    """Keeps all workers busy, stores and tells each trial as it finishes, until the study has so many trials.

    The algorithm is told of trials in the order in which it was asked for them, and asked for the next candidate each
    time that it was told of one. So what it proposes does not depend on which worker was faster: where metrics are the
    same and no worker ends, a seed and a number of workers give the same trials. Twice as many candidates as there are
    workers are under way, so that a worker rarely waits for a slower one, and never for this process.

    Args:
        client: From ``connect``.
        study: Opened for writing; the trials that it has are told first and count.
        algorithm: Fresh.
        bench: What the workers need.
        job: What the bench is told of a candidate.
        profile: The SKU; trials whose latency is measured go to workers with a resource of its name.
        trials: The total, stored ones included.
        on_trial: Called after each new trial.

    Raises:
        ClusterError: The scheduler is gone, no worker is there or offers the SKU, or one has other versions or is not
            the SKU that it says.
    """
    stored = study.trials()
    algorithm.tell([trial.observation for trial in stored])
    asked, exhausted = len(stored), False
    untold: deque[Candidate] = deque()
    outcomes: dict[str, Observation] = {}
    in_flight: dict[Future, Candidate] = {}
    finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
    place = _Place.of(bench, profile)
    # The workers have all cores; threads of linear algebra in the search would wait for theirs, spinning.
    with reachable(client), _placed(client, place, bench), threadpool_limits(1):

        def submit(candidate: Candidate) -> None:
            what = job(candidate)
            if what.latency is None and not in_flight:
                check_offered(client, profile.name)
            future = client.submit(
                _evaluate,
                place.name,
                what,
                _crowd(client),
                pure=False,
                resources={profile.name: 1} if what.latency is None else None,
            )
            in_flight[future] = candidate
            future.add_done_callback(finished.put)

        while True:
            while not exhausted and asked < trials and len(untold) < AHEAD * _workers(client):
                candidate = algorithm.ask([candidate.key for candidate in untold])
                if candidate is None:
                    exhausted = True
                else:
                    asked += 1
                    untold.append(candidate)
                    submit(candidate)
            if untold and untold[0].key in outcomes:
                algorithm.tell([outcomes.pop(untold.popleft().key)])
                continue
            if not in_flight:
                return
            future = _waited(client, partial(_next, finished))
            candidate = in_flight.pop(future)
            evaluation = _outcome(client, future)
            if evaluation is None:
                place.send(client, bench)
                submit(candidate)
                continue
            trial = study.add(candidate, evaluation)
            outcomes[candidate.key] = trial.observation
            on_trial(trial)


@contextmanager
def _hidden_from_the_terminal() -> Iterator[None]:
    """Keeps Ctrl-C, which reaches all processes of a terminal, from threads begun here and what they ever start."""
    resource_tracker.ensure_running()  # else multiprocessing starts it in one of those threads, and unblocks there
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _waited(client: Client, wait: Callable[[float], Awaited]) -> Awaited:
    """What a function gives that waits for some seconds, then raises ``TimeoutError``; looks after the workers."""
    alone_since = time.monotonic()
    while True:
        with suppress(TimeoutError):
            return wait(LOOK_SECONDS)
        if client.status != "running":
            raise _gone(client)
        if (
            client.cluster is not None
        ):  # distributed 2026.8 replaces a worker that ended while it started on request only
            client.cluster.scale(len(client.cluster.worker_spec))
        if _crowd(client):
            alone_since = time.monotonic()
        elif time.monotonic() - alone_since > ALONE_SECONDS:
            raise ClusterError(
                f"no worker was there for {ALONE_SECONDS} s; what was finished is stored, with workers the same "
                "command continues"
            )


def _next(finished: queue.SimpleQueue[Future], seconds: float) -> Future:
    try:
        return finished.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None


def _workers(client: Client) -> int:
    """How many workers there are, or will be again: a process of this machine that ends is replaced."""
    return _crowd(client).total() if client.cluster is None else len(client.cluster.worker_spec)


def _crowd(client: Client) -> Counter[str]:
    """How many workers each host has."""
    try:
        return Counter(map(get_address_host, client.nthreads()))
    except OSError as error:
        raise _gone(client) from error


def check_offered(client: Client, sku: str) -> str:
    """The address of a worker that offers the SKU."""
    offering = [str(address) for address, offers in sorted(client.run(_offers, sku).items()) if offers]
    if not offering:
        raise ClusterError(
            f"no worker offers '{sku}', the SKU that latencies are measured for; start one on such a machine with: "
            f'dask worker {client.scheduler.address} --nthreads 1 --resources "{sku}=1"'
        )
    return offering[0]


def _offers(sku: str, dask_worker: Worker) -> bool:
    return sku in dask_worker.state.total_resources


def _outcome(client: Client, future: Future) -> Evaluation | None:
    """What came of a trial; None where its worker had no bench.

    A worker that ends before it has handed it over is waited for like any other: the trial runs again.
    """
    try:
        evaluation: Evaluation = _waited(client, future.result)
    except FutureCancelledError:
        raise _gone(client) from None
    except KilledWorker as error:
        return Evaluation(error=f"KilledWorker: {error.allowed_failures + 1} workers ended while they evaluated it")
    except _NotPlacedError:
        return None
    return evaluation


def _gone(client: Client) -> ClusterError:
    where = client.scheduler.address if client.scheduler else "of this search"
    return ClusterError(
        f"the scheduler {where} is gone; what was finished is stored, with a scheduler the same command continues"
    )


class _NotPlacedError(Exception):
    """The worker has no bench of this content: another search with the same one has ended meanwhile."""


@dataclass
class _Place(WorkerPlugin):  # type: ignore[misc]
    """A bench on its way to a worker, and there.

    Args:
        name: The content.
        versions: Of what the results depend on, at the driver.
        profile: Of the SKU.
        content: The bench, packed so that versions can be compared before it is opened; empty at the driver.
    """

    name: str
    versions: Mapping[str, str | None]
    profile: HardwareProfile
    content: bytes = b""
    idempotent = True
    settled = False
    """Whether ``setup`` has ended; Dask shows a plugin to running trials before that."""

    @classmethod
    def of(cls, bench: Bench, profile: HardwareProfile) -> _Place:
        """The place of a bench, named after all that it depends on."""
        versions = _versions()
        return cls("-".join(["qnas", bench.fingerprint, profile.name, *map(str, versions.values())]), versions, profile)

    def send(self, client: Client, bench: Bench) -> None:
        """Gives it to the scheduler and all workers, those to come included.

        Raises:
            ClusterError: A worker lacks this package, has other versions, or is not the SKU that it says; or it is too
                large to be sent.
        """
        weights = sum(array.nbytes for array in bench.graph.weights.values())
        if weights > MOST:
            raise ClusterError(
                f"the weights are {weights / 1e9:.1f} GB, workers get up to {MOST / 1e9:g}; search without them"
            )
        try:
            client.register_plugin(replace(self, content=pickle.dumps(bench.packed())), name=self.name)
        except ImportError as error:
            raise ClusterError(
                f"a worker cannot import {error.name}; install qnas-plugin {__version__} there"
            ) from error

    def setup(self, worker: Worker) -> None:
        """Opens the bench on a worker.

        Raises:
            ClusterError: The worker must not evaluate.
        """
        self.refusal = _refusal(worker, self.versions, self.profile)
        if self.refusal is not None:
            self.settled = True
            raise ClusterError(self.refusal)
        self.bench: Bench = pickle.loads(self.content)
        self.content = b""
        self.one_at_a_time = threading.Lock()
        self.settled = True

    def evaluate(self, job: Job, neighbours: int, scratch: Path) -> Evaluation:
        """Evaluates on this worker's share of its machine."""
        threads = max(1, len(cores()) // neighbours)
        with self.one_at_a_time, tempfile.TemporaryDirectory(dir=scratch) as folder:
            return attempt(partial(self.bench.evaluate, folder=Path(folder), threads=threads), job)


@contextmanager
def _placed(client: Client, place: _Place, bench: Bench) -> Iterator[None]:
    try:
        place.send(client, bench)
        yield
    finally:
        if client.status == "running":
            with suppress(OSError, ValueError):
                client.unregister_worker_plugin(place.name)


@contextmanager
def reachable(client: Client) -> Iterator[None]:
    """Turns what Dask raises when the scheduler is gone into one error."""
    try:
        yield
    except (CommClosedError, TimeoutError) as error:
        raise _gone(client) from error


def _evaluate(name: str, job: Job, crowd: Mapping[str, int]) -> Evaluation:
    """A trial, on a worker; the crowd says how many workers a host has."""
    worker = get_worker()
    place, began = worker.plugins.get(name), time.monotonic()
    while place is not None and not place.settled and time.monotonic() - began < SETUP_SECONDS:
        time.sleep(0.02)
    if place is None or not place.settled:
        raise _NotPlacedError(name)
    if place.refusal is not None:
        raise ClusterError(place.refusal)
    evaluation: Evaluation = place.evaluate(
        job, max(1, crowd[get_address_host(worker.address)]), Path(worker.local_directory)
    )
    return evaluation


def _refusal(worker: Worker, versions: Mapping[str, str | None], profile: HardwareProfile) -> str | None:
    for package, here in _versions().items():
        if here != versions[package]:
            return (
                f"the worker {worker.address} has {package} {here}, this search {versions[package]}; "
                "install the same there"
            )
    return another_machine(worker, profile)


def another_machine(worker: Worker, profile: HardwareProfile) -> str | None:
    """Why a worker is not the SKU that it offers; None when it is, or offers none."""
    if _offers(profile.name, worker):
        for wrong in is_this_machine(profile, detect()):
            return (
                f"the worker {worker.address} offers the resource '{profile.name}', and is another machine: {wrong}; "
                "start it without"
            )
    return None


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "qnas-plugin": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
