"""Latencies of ONNX files on the worker of a Dask cluster that is the SKU, where the driver is not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from distributed import Client, Future, KilledWorker, Worker, get_worker

from qnas_plugin.data import Inputs
from qnas_plugin.errors import ClusterError
from qnas_plugin.evaluate.workers import LOOK_SECONDS, another_machine, check_offered, reachable
from qnas_plugin.files import write_bytes
from qnas_plugin.hardware import HardwareProfile, RuntimeSetting
from qnas_plugin.measure.latency import Latency, time_models


def latency(
    client: Client,
    profile: HardwareProfile,
    models: Sequence[Path],
    inputs: Inputs,
    setting: RuntimeSetting,
    rounds: int,
) -> list[Latency]:
    """The latencies of ONNX files on a worker that is the SKU, all on the same one and in turns.

    Args:
        client: From ``connect``.
        profile: The SKU.
        models: Here; they are sent to the worker for as long as it takes.
        inputs: Of the models.
        setting: What latencies are measured at.
        rounds: As ``measure.latency`` has them.

    Raises:
        ClusterError: No worker offers the SKU, it is another machine, or it is gone.
        MeasurementError: A model cannot be run.
    """
    with reachable(client):
        address = check_offered(client, profile.name)
        here, name = {"workers": [address], "pure": False}, f"qnas-timed-{uuid4().hex}"
        try:
            for i, model in enumerate(models):
                _waited(client, address, client.submit(_keep, name, i, model.read_bytes(), profile, **here))
            timed: list[Latency] = _waited(
                client,
                address,
                client.submit(_time, name, len(models), inputs, setting, rounds, resources={profile.name: 1}, **here),
            )
            return timed
        except (KilledWorker, CancelledError) as error:
            raise ClusterError(
                f"the worker {address} ended while it measured; the search is stored, the same command continues"
            ) from error
        finally:
            with suppress(OSError, CancelledError, KilledWorker):
                client.run(_forget, name)


def _waited(client: Client, address: str, future: Future) -> Any:
    """What a future gives that only this worker can give: Dask waits for ever for one that is gone."""
    while True:
        with suppress(TimeoutError):
            return future.result(timeout=LOOK_SECONDS)
        if address not in client.nthreads():
            raise CancelledError


def _keep(name: str, number: int, content: bytes, profile: HardwareProfile) -> None:
    """Writes a model that was sent to this worker."""
    worker = get_worker()
    if refusal := another_machine(worker, profile):
        raise ClusterError(refusal)
    write_bytes(Path(worker.local_directory) / name / f"{number}.onnx", content)


def _time(name: str, count: int, inputs: Inputs, setting: RuntimeSetting, rounds: int) -> list[Latency]:
    folder = Path(get_worker().local_directory) / name
    return time_models([folder / f"{i}.onnx" for i in range(count)], inputs, setting, rounds=rounds)


def _forget(name: str, dask_worker: Worker) -> None:
    shutil.rmtree(Path(dask_worker.local_directory) / name, ignore_errors=True)
