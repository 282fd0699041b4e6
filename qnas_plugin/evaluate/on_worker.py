"""What runs on a worker: the bench in its place there, and trials by it.

A worker needs neither torch nor what stores trials, and loads neither: this module is what it imports first.
"""

from __future__ import annotations

import pickle
import platform
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from distributed import Worker, WorkerPlugin, get_worker
from distributed.comm import get_address_host

from qnas_plugin._version import __version__
from qnas_plugin.errors import ClusterError
from qnas_plugin.evaluate.bench import Bench, Job
from qnas_plugin.hardware import HardwareProfile, is_this_machine
from qnas_plugin.hardware.machine import cores, detect
from qnas_plugin.study.evaluation import Evaluation, attempt

SETUP_SECONDS = 60.0
"""How long a trial waits on its worker for the bench to be opened there."""

_PACKAGES = ("neural-compressor", "numpy", "onnx", "onnxruntime")


class NotPlacedError(Exception):
    """The worker has no bench of this content: another search with the same one has ended meanwhile."""


@dataclass
class Place(WorkerPlugin):  # type: ignore[misc]
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
    def of(cls, bench: Bench, profile: HardwareProfile) -> Place:
        """The place of a bench, named after all that it depends on."""
        known = versions()
        return cls("-".join(["qnas", bench.fingerprint, profile.name, *map(str, known.values())]), known, profile)

    def setup(self, worker: Worker) -> None:
        """Opens the bench on a worker.

        Raises:
            ClusterError: The worker must not evaluate.
        """
        self.refusal = refusal(worker, self.versions, self.profile)
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


def evaluate(name: str, job: Job, crowd: Mapping[str, int]) -> Evaluation:
    """A trial, on a worker; the crowd says how many workers a host has."""
    worker = get_worker()
    place, began = worker.plugins.get(name), time.monotonic()
    while place is not None and not place.settled and time.monotonic() - began < SETUP_SECONDS:
        time.sleep(0.02)
    if place is None or not place.settled:
        raise NotPlacedError(name)
    if place.refusal is not None:
        raise ClusterError(place.refusal)
    evaluation: Evaluation = place.evaluate(
        job, max(1, crowd[get_address_host(worker.address)]), Path(worker.local_directory)
    )
    return evaluation


def refusal(worker: Worker, expected: Mapping[str, str | None], profile: HardwareProfile) -> str | None:
    """Why a worker must not evaluate; None when it may."""
    for package, here in versions().items():
        if here != expected[package]:
            return (
                f"the worker {worker.address} has {package} {here}, this search {expected[package]}; "
                "install the same there"
            )
    return another_machine(worker, profile)


def another_machine(worker: Worker, profile: HardwareProfile) -> str | None:
    """Why a worker is not the SKU that it offers; None when it is, or offers none."""
    if offers(profile.name, worker):
        for wrong in is_this_machine(profile, detect()):
            return (
                f"the worker {worker.address} offers the resource '{profile.name}', and is another machine: {wrong}; "
                "start it without"
            )
    return None


def versions() -> dict[str, str | None]:
    """Of what results depend on, by package; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "qnas-plugin": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def offers(sku: str, dask_worker: Worker) -> bool:
    """Whether a worker has the resource of a SKU."""
    return sku in dask_worker.state.total_resources
