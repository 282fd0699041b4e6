"""This machine: its CPU, the cores that may be used, and the versions of what runs on it."""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import cpuinfo
import psutil

from qnas_plugin._version import __version__

Isa = Literal[
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"
]
"""Instruction sets that change how fast inference is, by the names that Linux has for them."""

_ISA: tuple[Isa, ...] = get_args(Isa)
_PACKAGES = (
    "neural-compressor",
    "numpy",
    "onnx",
    "onnxruntime",
    "optimum",
    "optimum-onnx",
    "torch",
    "transformers",
)
_SYSTEM = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Core:
    """A physical core: its socket and those of its logical CPUs that this process may use."""

    socket: int
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class Machine:
    """This machine as its system describes it; None is what the system does not tell.

    Args:
        sockets: Those that the system shows; a virtual machine shows what it was given. So for the cores.
        usable_cores: Physical cores that this process may use.
        usable_cpus: Logical CPUs that this process may use.
        virtual: Whether a hypervisor is below.
    """

    vendor_id: str
    brand: str
    family: int | None
    model: int | None
    stepping: int | None
    isa: tuple[Isa, ...]
    sockets: int
    cores_per_socket: int
    threads_per_core: int
    usable_cores: int
    usable_cpus: int
    base_ghz: float | None
    turbo_ghz: float | None
    l1d_kib: int | None
    l1i_kib: int | None
    l2_kib: int | None
    l3_mib: float | None
    memory_gb: float
    virtual: bool

    def __str__(self) -> str:
        return (
            f"'{self.brand}' ({self.vendor_id}, family {self.family}, model {self.model}, stepping {self.stepping}, "
            f"{', '.join(self.isa) or 'no known instruction set'})"
        )


@functools.cache
def detect() -> Machine:
    """This machine. Takes a second, once a process."""
    info = cpuinfo.get_cpu_info()
    flags = info.get("flags", [])
    brand = info.get("brand_raw", "unknown")
    every = _topology(_SYSTEM)
    usable = cores()
    first = min((cpu for core in usable for cpu in core.cpus), default=0)
    sockets = {socket for socket, _ in every.values()} or {core.socket for core in usable}
    here = [place for place in every.values() if place[0] == every[first][0]] if first in every else []
    caches = _caches(_SYSTEM, first)
    advertised = re.search(r"@ ([0-9.]+)GHz", brand)
    turbo = _number(_SYSTEM / f"cpu{first}/cpufreq/cpuinfo_max_freq")
    return Machine(
        vendor_id=info.get("vendor_id_raw", "unknown"),
        brand=brand,
        family=info.get("family"),
        model=info.get("model"),
        stepping=info.get("stepping"),
        isa=tuple(isa for isa in _ISA if isa in flags),
        sockets=len(sockets),
        cores_per_socket=len(set(here)) or len(usable),
        threads_per_core=max((here.count(place) for place in here), default=1),
        usable_cores=len(usable),
        usable_cpus=sum(len(core.cpus) for core in usable),
        base_ghz=float(advertised.group(1)) if advertised else None,
        turbo_ghz=turbo / 1e6 if turbo else None,
        l1d_kib=caches.get("1 Data"),
        l1i_kib=caches.get("1 Instruction"),
        l2_kib=caches.get("2 Unified"),
        l3_mib=caches["3 Unified"] / 1024 if "3 Unified" in caches else None,
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        virtual="hypervisor" in flags,
    )


def cores() -> tuple[Core, ...]:
    """The physical cores that this process may use; where the system does not tell, each CPU is taken for one."""
    process = psutil.Process()
    allowed = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(psutil.cpu_count() or 1)
    topology = _topology(_SYSTEM)
    grouped: dict[tuple[int, int], list[int]] = {}
    for cpu in sorted(allowed or ()):
        grouped.setdefault(topology.get(cpu, (0, cpu)), []).append(cpu)
    return tuple(Core(socket, tuple(cpus)) for (socket, _), cpus in sorted(grouped.items()))


def environment() -> dict[str, Any]:
    """What a result depends on beside its request: the machine, the system, and versions; for JSON."""
    ours = {"python": platform.python_version(), "qnas-plugin": __version__}
    return {
        "machine": asdict(detect()) | {"isa": list(detect().isa)},
        "system": platform.platform(),
        "versions": ours | {name: _version(name) for name in _PACKAGES},
    }


@functools.cache
def described() -> Mapping[str, str]:
    """What the metrics of a trial depend on beside its candidate, in few words: versions and the CPU."""
    versions = {name: _version(name) for name in ("neural-compressor", "numpy", "onnx", "onnxruntime")}
    return {
        "cpu": detect().brand,
        "qnas-plugin": __version__,
        **{name: number for name, number in versions.items() if number is not None},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _topology(system: Path) -> dict[int, tuple[int, int]]:
    """Socket and core of each CPU that is online; empty where the system does not tell."""
    places: dict[int, tuple[int, int]] = {}
    for folder in system.glob("cpu[0-9]*/topology"):
        socket, core = _number(folder / "physical_package_id"), _number(folder / "core_id")
        if socket is not None and core is not None:
            places[int(folder.parent.name[3:])] = socket, core
    return places


def _caches(system: Path, cpu: int) -> dict[str, int]:
    """KiB by level and type (``2 Unified``): level 3 of the whole socket of a CPU, the others of its core."""
    topology = _topology(system)
    sizes: dict[tuple[str, str], int] = {}
    for other in sorted(topology):
        if topology[other][0] != topology.get(cpu, (None,))[0]:
            continue
        for folder in system.glob(f"cpu{other}/cache/index[0-9]*"):
            kind = f"{_text(folder / 'level')} {_text(folder / 'type')}"
            size = re.fullmatch(r"(\d+)([KM])", _text(folder / "size") or "")
            if size and (kind == "3 Unified" or other == cpu):
                sizes[kind, _text(folder / "shared_cpu_list") or ""] = int(size[1]) * (1024 if size[2] == "M" else 1)
    total: dict[str, int] = {}
    for (kind, _), kib in sizes.items():
        total[kind] = total.get(kind, 0) + kib
    return total


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None
