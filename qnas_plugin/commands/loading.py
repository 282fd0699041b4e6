"""What a request names, loaded and checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qnas_plugin import data, hardware, registry
from qnas_plugin.errors import HardwareError, LatencyTableError
from qnas_plugin.evaluate.lab import Lab, Timer
from qnas_plugin.hardware import machine
from qnas_plugin.latency import table as latency_table
from qnas_plugin.latency.table import Estimator
from qnas_plugin.measure.latency import Latency
from qnas_plugin.measure.metrics import load as load_metric
from qnas_plugin.quantizers import quantize
from qnas_plugin.request import TuneRequest
from qnas_plugin.runtimes import onnxruntime as runtime
from qnas_plugin.supernets import Network, Supernet, check_labels, check_trained

USUAL_METRICS = ("accuracy", "cosine")
"""Those that tasks here have; a study's identity names others."""


def load(request: TuneRequest, *, measures: bool = True) -> Lab:
    """Loads what a request names.

    Args:
        request: What is asked.
        measures: Whether latencies will be measured or looked up; else neither the SKU nor its table is needed.

    Raises:
        QnasError: Something is missing, malformed, or doesn't fit the rest.
    """
    if measures:
        profile, setting, here = load_hardware(request)
    else:  # any machine will do
        profile = hardware.describe(machine.detect(), "this-machine")
        setting, here = _setting(request, profile), True
    task = registry.load("tasks", request.task)
    dataset: data.Dataset = task.load(request.data, sizes=request.sizes)
    dataset = replace(dataset, metric=request.metric or dataset.metric)
    load_metric(dataset.metric)
    network = load_network(request)
    check_labels(network, dataset.label_names, request.data)
    processor = task.processor(request.source, max_length=request.max_length)
    if request.latency == "measured" or not measures:
        return assemble(request, network, dataset, processor, profile, setting, here=here)
    setting = latency_table.setting_of(processor.timing_inputs(setting.batch_size, setting.sequence_length), setting)
    estimator, notes = load_table(request, network, profile.name, setting)
    lab = assemble(request, network, dataset, processor, profile, setting, here=here, estimator=estimator)
    return replace(lab, notes=notes)


def assemble(
    request: TuneRequest,
    network: Network,
    dataset: data.Dataset,
    processor: data.Processor,
    profile: hardware.HardwareProfile,
    setting: hardware.RuntimeSetting,
    *,
    here: bool,
    estimator: Estimator | None = None,
    judge: Callable[[Path], float] | None = None,
) -> Lab:
    """The lab of a request whose parts are loaded, with what makes the trials of its study comparable.

    Latencies that are measured can be compared under one version of the runtime only; those of a table need none.
    """
    identity = {
        "supernet": request.supernet or "onnx",
        "checkpoint": network.fingerprint,
        "data": dataset.fingerprint,
        "processor": data.encoding(processor, dataset),
        "max_length": str(request.max_length or "default"),
        "hardware": profile.name,
        "setting": str(setting),
    }
    identity["quantizer"] = f"{request.quantizer} {quantize.load(request.quantizer).version()}"
    if request.metric or dataset.metric not in USUAL_METRICS:
        identity["metric"] = dataset.metric
    if estimator:
        identity["latency"] = f"table of {estimator.table.created}"
    else:
        identity["onnxruntime"] = runtime.version()
    return Lab(
        network,
        dataset,
        processor,
        profile,
        setting,
        estimator=estimator,
        here=here,
        timer=None if here or estimator or request.cluster is None else _timer(request.cluster, profile),
        judge=judge,
        reference=network.space.corners[request.reference],
        quantizer=request.quantizer,
        identity=identity,
        computes=request.computes,
    )


def _timer(cluster: str, profile: hardware.HardwareProfile) -> Timer:
    """What times files on a worker of a cluster that is the SKU."""

    def time_elsewhere(
        models: Sequence[Path], inputs: data.Inputs, setting: hardware.RuntimeSetting, rounds: int
    ) -> list[Latency]:
        from qnas_plugin.evaluate import cluster_latency, workers

        with workers.connect(None, cluster, profile.name) as client:
            return cluster_latency.latency(client, profile, models, inputs, setting, rounds)

    return time_elsewhere


def load_hardware(request: TuneRequest) -> tuple[hardware.HardwareProfile, hardware.RuntimeSetting, bool]:
    """The profile and the setting that a request is for, and whether this machine is that SKU.

    Raises:
        HardwareError: There is no such profile, or latencies are to be measured without a cluster and this is another
            machine.
    """
    auto = request.hardware == "auto"
    profile = hardware.match(machine.detect()) if auto else hardware.load_profile(request.hardware)
    wrong = hardware.is_this_machine(profile, machine.detect())
    if wrong and request.latency == "measured" and request.cluster is None:
        raise HardwareError(
            f"latencies are measured here, and this machine is not '{profile.name}': {wrong[0]}; give --hardware auto, "
            "--latency table, or a --cluster with a worker on such a machine"
        )
    return profile, _setting(request, profile), not wrong


def _setting(request: TuneRequest, profile: hardware.HardwareProfile) -> hardware.RuntimeSetting:
    asked = {"threads": request.threads, "batch_size": request.batch, "sequence_length": request.seq_len}
    return profile.runtime.model_copy(update={name: value for name, value in asked.items() if value is not None})


def load_network(request: TuneRequest) -> Any:
    """The supernet with its weights, or the ONNX model.

    Raises:
        CheckpointError: It cannot be used, or a supernet has no weights.
    """
    if request.model is not None:
        from qnas_plugin.supernets.onnx_file import onnx_model

        return onnx_model.load(request.model, precisions=request.precisions)
    assert request.supernet is not None
    supernet: Supernet = registry.load("supernets", request.supernet).load(
        request.checkpoint, precisions=request.precisions
    )
    check_trained(supernet, request.source)
    return supernet


def load_table(
    request: TuneRequest, supernet: Supernet, sku: str, setting: hardware.RuntimeSetting
) -> tuple[Estimator, tuple[str, ...]]:
    """The latency table of a SKU and setting, and what speaks against it.

    Raises:
        LatencyTableError: There is none, it lacks rows, or it does not fit and the user does not insist.
    """
    if request.supernet is None:
        raise LatencyTableError(
            f"{request.source} is one model; latency tables are of supernets, give --latency measured"
        )
    about = (request.supernet, supernet.shape, sku, setting)
    table = latency_table.load(request.table) if request.table else latency_table.find(*about)
    against = latency_table.check(table, *about)
    latency_table.accept(table, against, insist=request.insist)
    return Estimator(table, supernet), tuple(against)
