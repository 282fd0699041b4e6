"""Latencies of ONNX files on the worker of a Dask cluster that is the SKU, where the driver is not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from distributed import Client, Future, KilledWorker, Worker, get_worker

from qnas_plugin.data import Inputs
from qnas_plugin.errors import ClusterError
from qnas_plugin.evaluate.on_worker import another_machine
from qnas_plugin.evaluate.workers import LOOK_SECONDS, check_offered, reachable
from qnas_plugin.hardware import HardwareProfile, RuntimeSetting
from qnas_plugin.measure.accuracy import files
from qnas_plugin.measure.latency import Latency, time_models

_AT_ONCE = 1 << 23  # bytes; Dask warns of more than 10 MB


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
        models: Here; they are sent to the worker for as long as it takes, with the weights that lie beside them.
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
                for file in files(model):
                    for offset, piece in _pieces(file):
                        place = f"{name}/{i}/{file.name}"
                        _waited(client, address, client.submit(_keep, place, offset, piece, profile, **here))
            timed: list[Latency] = _waited(
                client,
                address,
                client.submit(
                    *(_time, name, [model.name for model in models], inputs, setting, rounds),
                    resources={profile.name: 1},
                    **here,
                ),
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


def _pieces(file: Path) -> Iterator[tuple[int, bytes]]:
    """The content of a file in pieces that Dask sends at once, and where each begins."""
    with file.open("rb") as stored:
        while True:
            offset, piece = stored.tell(), stored.read(_AT_ONCE)
            if not piece and offset:
                return
            yield offset, piece


def _keep(name: str, offset: int, piece: bytes, profile: HardwareProfile) -> None:
    """Writes a piece of a file that was sent to this worker; again, where Dask sends it again."""
    worker = get_worker()
    if refusal := another_machine(worker, profile):
        raise ClusterError(refusal)
    path = Path(worker.local_directory) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(piece)
    except OSError as error:
        raise ClusterError(
            f"the worker {worker.address} cannot keep {path.name} to time it: {error.strerror or error}; start it "
            "with a --local-directory that has space"
        ) from None


def _time(name: str, names: Sequence[str], inputs: Inputs, setting: RuntimeSetting, rounds: int) -> list[Latency]:
    folder = Path(get_worker().local_directory) / name
    models = [folder / str(i) / file for i, file in enumerate(names)]
    return time_models(models, inputs, setting, rounds=rounds)


def _forget(name: str, dask_worker: Worker) -> None:
    shutil.rmtree(Path(dask_worker.local_directory) / name, ignore_errors=True)
