"""ONNX Runtime: a model opened in a setting, with integer products that are exact."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnxruntime

from qnas_plugin.errors import MeasurementError, door
from qnas_plugin.files.locks import scratch

if TYPE_CHECKING:
    import onnx

_FATAL = 4
_CPUS = Path("/proc/cpuinfo")


def version() -> str:
    """Of ONNX Runtime."""
    return str(onnxruntime.__version__)


@functools.cache
def int8_overflows() -> bool:
    """Whether ONNX Runtime's INT8 products overflow here by default: on x86 CPUs without VNNI.

    They sum two products of UINT8 and INT8 in 16 bits.
    """
    try:
        lines = _CPUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set[str]())
    return "avx2" in flags and flags.isdisjoint({"avx512_vnni", "avx_vnni"})


def make_exact(options: onnxruntime.SessionOptions) -> None:
    """Lets a session compute INT8 products that don't overflow; slower where they would, elsewhere nothing changes."""
    if int8_overflows():  # by its source, ONNX Runtime heeds the entry on CPUs with VNNI too, and uses other kernels
        options.add_session_config_entry("session.x64quantprecision", "1")


def session(
    model: str | Path,
    threads: int,
    *,
    spinning: bool,
    arena: bool = True,
    prepack: bool = True,
    cpus: Sequence[int] = (),
) -> onnxruntime.InferenceSession:
    """A session on the CPU with fixed threads and exact INT8 products that logs nothing.

    Args:
        prepack: Whether weights are copied into the order in which products read them; else they stay in their file.
        cpus: One for each thread, the calling thread's first; none leaves threads where the system puts them.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.disable_prepacking", str(int(not prepack)))
    make_exact(options)
    if len(cpus) > 1:  # counted from 1; without it threads of many sessions meet on one core
        affinities = ";".join(str(cpu + 1) for cpu in cpus[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def feed(model: onnxruntime.InferenceSession, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The inputs that the graph has, and those of its optional ones that are given.

    Raises:
        ValueError: The graph has one that is not given.
    """
    names = [node.name for node in model.get_inputs()]
    missing = [name for name in names if name not in inputs]
    if missing:
        raise ValueError(f"the graph has an input '{missing[0]}', given are: {', '.join(inputs)}")
    names += [node.name for node in model.get_overridable_initializers() if node.name in inputs]
    return {name: inputs[name] for name in names}


def optimised(model: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime makes of a file when it is loaded for deployment; large weights have no values.

    Raises:
        MeasurementError: It cannot run the file.
    """
    import onnx  # processes that time do not need it

    with scratch() as folder:
        path = folder / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        make_exact(options)
        with door(MeasurementError, f"ONNX Runtime cannot run '{model.name}'"):
            onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        return onnx.load(str(path), load_external_data=False)
