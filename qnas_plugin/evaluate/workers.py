"""Candidates evaluated by other processes: some of this machine, or the workers of a Dask cluster.

One driver, this process, asks and tells and owns the storage. The bench goes to each worker once, named by its
content, as a Dask plugin: the scheduler keeps it, so a worker that comes later or comes back has it too. A worker that
ends takes nothing with it: Dask runs its trial again on another.
"""

from __future__ import annotations

import logging
import queue
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from typing import TypeVar

from distributed import Client, Future, KilledWorker
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError, get_address_host
from threadpoolctl import threadpool_limits

from qnas_plugin._version import __version__
from qnas_plugin.errors import ClusterError
from qnas_plugin.evaluate import on_worker
from qnas_plugin.evaluate._private_transport import private_cluster
from qnas_plugin.evaluate.bench import Bench, Job
from qnas_plugin.evaluate.on_worker import Place
from qnas_plugin.hardware import HardwareProfile
from qnas_plugin.space import Candidate
from qnas_plugin.study.evaluation import Evaluation

CONNECT_SECONDS = 15
"""How long a scheduler may take to answer, and its first worker to be there."""

ALONE_SECONDS = 60
"""How long a search waits for a worker when the last one is gone."""

LOOK_SECONDS = 2.0
"""How often a wait looks whether workers are still there."""

AHEAD = 2
"""Candidates under way for each worker."""

MOST = 4_000_000_000
"""Bytes of weights that workers are sent: Dask sends them as one, of which msgpack 1.2 takes less than 2 ** 32."""

Awaited = TypeVar("Awaited")


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


class Workers:
    """Evaluates on all workers at once; made by ``executor``.

    Twice as many candidates as there are workers are under way, so that a worker rarely waits for a slower one, and
    never for this process.
    """

    def __init__(
        self, client: Client, place: Place, bench: Bench, job: Callable[[Candidate], Job], profile: HardwareProfile
    ) -> None:
        self._client, self._place, self._bench, self._job, self._profile = client, place, bench, job, profile
        self._in_flight: dict[Future, Candidate] = {}
        self._finished: queue.SimpleQueue[Future] = queue.SimpleQueue()

    def room(self) -> int:
        """``AHEAD`` for each worker."""
        return AHEAD * _workers(self._client)

    def submit(self, candidate: Candidate) -> None:
        """Sends a candidate to the next worker; one whose latency is measured to a worker of the SKU.

        Raises:
            ClusterError: No worker offers the SKU.
        """
        what, sku = self._job(candidate), self._profile.name
        if what.latency is None and not self._in_flight:
            check_offered(self._client, sku)
        resources = {sku: 1} if what.latency is None else None
        future = self._client.submit(
            on_worker.evaluate, self._place.name, what, _crowd(self._client), pure=False, resources=resources
        )
        self._in_flight[future] = candidate
        future.add_done_callback(self._finished.put)

    def finished(self) -> tuple[Candidate, Evaluation]:
        """Waits for the next that is finished; a trial whose worker ended, or had lost the bench, runs again.

        Raises:
            ClusterError: The scheduler is gone, or no worker is there.
        """
        while True:
            future = _waited(self._client, partial(_next, self._finished))
            candidate = self._in_flight.pop(future)
            evaluation = _outcome(self._client, future)
            if evaluation is not None:
                return candidate, evaluation
            _send(self._client, self._place, self._bench)
            self.submit(candidate)


@contextmanager
def executor(
    client: Client, bench: Bench, job: Callable[[Candidate], Job], profile: HardwareProfile
) -> Iterator[Workers]:
    """Workers that have a bench for as long as the context lasts.

    Args:
        client: From ``connect``.
        bench: What the workers need.
        job: What the bench is told of a candidate.
        profile: The SKU; trials whose latency is measured go to workers with a resource of its name.

    Raises:
        ClusterError: The scheduler is gone, no worker is there or offers the SKU, or one has other versions or is not
            the SKU that it says.
        UsageError: The bench has what cannot be sent.
    """
    place = Place.of(bench, profile)
    # The workers have all cores; threads of linear algebra in the search would wait for theirs, spinning.
    with reachable(client), _placed(client, place, bench), threadpool_limits(1):
        yield Workers(client, place, bench, job, profile)


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
    offering = [str(address) for address, offers in sorted(client.run(on_worker.offers, sku).items()) if offers]
    if not offering:
        raise ClusterError(
            f"no worker offers '{sku}', the SKU that latencies are measured for; start one on such a machine with: "
            f'dask worker {client.scheduler.address} --nthreads 1 --resources "{sku}=1"'
        )
    return offering[0]


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
    except on_worker.NotPlacedError:
        return None
    return evaluation


def _gone(client: Client) -> ClusterError:
    where = client.scheduler.address if client.scheduler else "of this search"
    return ClusterError(
        f"the scheduler {where} is gone; what was finished is stored, with a scheduler the same command continues"
    )


def _send(client: Client, place: Place, bench: Bench) -> None:
    """Gives a bench to the scheduler and all workers, those to come included.

    Raises:
        ClusterError: A worker lacks this package, has other versions, or is not the SKU that it says; or the bench is
            too large to be sent.
        UsageError: The bench has what cannot be sent.
    """
    weights = sum(array.nbytes for array in bench.graph.weights.values())
    if weights > MOST:
        raise ClusterError(
            f"the weights are {weights / 1e9:.1f} GB, workers get up to {MOST / 1e9:g}; search without them"
        )
    try:
        client.register_plugin(replace(place, content=bench.packed()), name=place.name)
    except ImportError as error:
        raise ClusterError(f"a worker cannot import {error.name}; install qnas-plugin {__version__} there") from error


@contextmanager
def _placed(client: Client, place: Place, bench: Bench) -> Iterator[None]:
    try:
        _send(client, place, bench)
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
