"""Detection of this machine, and of made-up ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import qnas_plugin
from qnas_plugin.hardware import machine as environment_module
from qnas_plugin.hardware.machine import Core, cores, detect, environment


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sockets of two cores of two threads; siblings are ``n`` and ``n + 4``."""
    for cpu in range(8):
        socket, core = cpu % 4 // 2, cpu % 2
        folder = tmp_path / f"cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology" / "physical_package_id").write_text(f"{socket}\n")
        (folder / "topology" / "core_id").write_text(f"{core}\n")
        siblings, package = f"{cpu % 4},{cpu % 4 + 4}", f"{2 * socket}-{2 * socket + 1}"
        for index, (level, kind, size, shared) in enumerate(
            [(1, "Data", "48K", siblings), (1, "Instruction", "32K", siblings), (2, "Unified", "2048K", siblings)]
            + ([(3, "Unified", "16M", package)] if socket == 0 else [(3, "Unified", "8M", siblings)])
        ):
            cache = folder / "cache" / f"index{index}"
            cache.mkdir(parents=True)
            for name, value in {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}.items():
                (cache / name).write_text(f"{value}\n")
    monkeypatch.setattr(environment_module, "_SYSTEM", tmp_path)
    return tmp_path


def allow(monkeypatch: pytest.MonkeyPatch, cpus: list[int]) -> None:
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: cpus)


def test_cores_groups_the_cpus_that_may_be_used(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, [7, 1, 2, 3, 5])
    assert cores() == (Core(0, (1, 5)), Core(1, (2,)), Core(1, (3, 7)))


def test_cores_takes_each_cpu_for_one_when_the_system_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment_module, "_SYSTEM", tmp_path / "none")
    allow(monkeypatch, [0, 3])
    assert cores() == (Core(0, (0,)), Core(0, (3,)))


@pytest.mark.parametrize(("cpus", "l3_mib"), [([0, 4], 16.0), ([2], 16.0)])
def test_detect_counts_cores_and_caches(
    cpus: list[int], l3_mib: float, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, cpus)
    machine = detect.__wrapped__()
    assert (machine.sockets, machine.cores_per_socket, machine.threads_per_core) == (2, 2, 2)
    assert (machine.usable_cores, machine.usable_cpus) == (1, len(cpus))
    assert (machine.l1d_kib, machine.l1i_kib, machine.l2_kib, machine.l3_mib) == (48, 32, 2048, l3_mib)


def test_detect_leaves_out_what_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_module, "_SYSTEM", tmp_path)
    monkeypatch.setattr(environment_module.cpuinfo, "get_cpu_info", dict)
    machine = detect.__wrapped__()
    assert (machine.vendor_id, machine.family, machine.isa, machine.l2_kib) == ("unknown", None, (), None)
    assert (machine.sockets, machine.threads_per_core) == (1, 1)
    assert machine.cores_per_socket == machine.usable_cores >= 1


def test_detect_reads_the_base_clock_from_the_brand(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = {
        "brand_raw": "Intel(R) Xeon(R) Platinum 8280 CPU @ 2.70GHz",
        "vendor_id_raw": "GenuineIntel",
        "flags": ["amx_int8", "fpu", "avx2"],
    }
    monkeypatch.setattr(environment_module.cpuinfo, "get_cpu_info", lambda: info)
    machine = detect.__wrapped__()
    assert (machine.base_ghz, machine.turbo_ghz, machine.isa) == (2.7, None, ("avx2", "amx_int8"))
    assert not machine.virtual


def test_environment_is_json_and_names_the_versions() -> None:
    block = environment()
    assert json.loads(json.dumps(block)) == block
    assert block["versions"]["qnas-plugin"] == qnas_plugin.__version__
    assert block["versions"]["onnxruntime"][0].isdigit()
    assert block["machine"]["usable_cpus"] >= 1


@pytest.mark.parametrize("ours", [False, True])
def test_onnxruntime_leaves_nothing_in_the_home_of_a_process_of_ours(ours: bool, tmp_path: Path) -> None:
    """Without the package it opens a database of events there as it is imported."""
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    imports = "qnas_plugin, onnxruntime" if ours else "onnxruntime"
    subprocess.run([sys.executable, "-c", f"import {imports}"], env=home, check=True, timeout=60)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    if not ours and not left:
        pytest.skip("this build of ONNX Runtime has no telemetry")
    assert bool(left) != ours
