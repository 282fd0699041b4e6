"""Hardware profiles: what a CPU SKU is, which one this machine is, and the setting that latencies are for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qnas_plugin.errors import HardwareError, UnknownNameError, quoted
from qnas_plugin.files import write_bytes
from qnas_plugin.files.doors import read_toml
from qnas_plugin.hardware.machine import Isa, Machine

_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}

Count = Annotated[int, Field(ge=1)]
Size = Annotated[float, Field(gt=0)]


class _Checked(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), str_min_length=1
    )


class RuntimeSetting(_Checked):
    """How a model is run; a latency holds for one such setting.

    Args:
        threads: Threads that compute one operator together, each on its own core.
        batch_size: Examples a run.
        sequence_length: Tokens an example, for text.
        resolution: Height and width in pixels, for images.
        spinning: Whether threads wait for work in a loop rather than asleep.
        arena: Whether the runtime keeps freed memory for itself rather than give it back to the system.
    """

    threads: Count = 1
    batch_size: Count = 1
    sequence_length: Count | None = None
    resolution: Count | None = None
    spinning: bool = True
    arena: bool = True


class Recognition(_Checked):
    """How a CPU tells that it is this SKU; what is absent is not compared.

    Args:
        vendor_id: As CPUID gives it, ``GenuineIntel``.
        brand: A regular expression for the whole brand string.
        family: CPUID family, extended family added.
        model: CPUID model, extended model included.
        stepping: CPUID stepping.
    """

    vendor_id: str
    brand: str
    family: int | None = None
    model: int | None = None
    stepping: int | None = None

    @field_validator("brand")
    @classmethod
    def _compiles(cls, brand: str) -> str:
        try:
            re.compile(brand)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{brand!r} is not a regular expression: {error}") from None
        return brand


class HardwareProfile(_Checked):
    """One CPU SKU, how it is recognised, and the setting that latencies on it are for.

    Args:
        name: The SKU's id; also the name of its file and of its folder of latency tables.
        sockets: How many the machine has; in a profile from public facts, how many the SKU supports.
        base_ghz: The base clock.
        turbo_ghz: The highest clock of one core.
        l1d_kib: Data cache of a core; l1i_kib and l2_kib in the same way.
        l3_mib: Shared cache of a socket.
        memory_channels: Channels of a socket.
        isa: Exactly those of the known instruction sets that software can use on it.
        source: Where the facts are from: addresses, or ``detected``.
        notes: What a reader of the numbers should know, such as what is not known.
    """

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    vendor: str
    model: str
    microarchitecture: str | None = None
    sockets: Count
    cores_per_socket: Count
    threads_per_core: Count
    base_ghz: Size | None = None
    turbo_ghz: Size | None = None
    l1d_kib: Count | None = None
    l1i_kib: Count | None = None
    l2_kib: Count | None = None
    l3_mib: Size | None = None
    memory_channels: Count | None = None
    isa: Annotated[tuple[Isa, ...], Field(strict=False)]
    source: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    notes: str | None = None
    recognise: Recognition
    runtime: RuntimeSetting = RuntimeSetting()

    @field_validator("isa")
    @classmethod
    def _unique(cls, isa: tuple[Isa, ...]) -> tuple[Isa, ...]:
        if len(set(isa)) != len(isa):
            raise ValueError(f"an instruction set stands twice in {', '.join(isa)}")
        return isa


def data_folder(kind: Literal["hardware_profiles", "latency_tables"]) -> Path:
    """Where the files stand that come with this package: inside it when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_data"
    return (installed if installed.is_dir() else package.parent) / kind


def user_folder(kind: Literal["hardware_profiles", "latency_tables"]) -> Path:
    """Where the user's own files stand: in ``$QNAS_HOME``, or ``~/.config/qnas``."""
    home = os.environ.get("QNAS_HOME")
    return (Path(home) if home else Path.home() / ".config" / "qnas") / kind


def profiles() -> dict[str, HardwareProfile]:
    """All profiles by name, sorted: those that come with the package and the user's.

    Raises:
        HardwareError: A file is malformed, or a profile of the user takes the name of one that comes with the package.
    """
    return {name: profile for name, (_, profile) in sorted(_profiles().items())}


def _profiles() -> dict[str, tuple[Path, HardwareProfile]]:
    """The file and the content of each profile, by name."""
    found: dict[str, tuple[Path, HardwareProfile]] = {}
    for folder in (data_folder("hardware_profiles"), user_folder("hardware_profiles")):
        for path in sorted(folder.glob("*.toml")):
            profile = _read(path)
            if profile.name in found:
                raise HardwareError(
                    f"{path}: the name '{profile.name}' belongs to {found[profile.name][0]}; rename this profile"
                )
            found[profile.name] = path, profile
    return found


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """The profile of this name, or in this ``.toml`` file.

    Raises:
        UnknownNameError: No profile has the name.
        HardwareError: The file is missing or malformed.
    """
    if Path(name_or_path).suffix == ".toml":
        return _read(Path(name_or_path))
    known = profiles()
    if str(name_or_path) not in known:
        raise UnknownNameError("hardware profile", str(name_or_path), known)
    return known[str(name_or_path)]


def parse_profile(fields: Mapping[str, Any], where: str) -> HardwareProfile:
    """Checks the fields of a profile that was read from ``where``.

    Raises:
        HardwareError: One is missing, unknown, of the wrong type, or out of range.
    """
    try:
        return HardwareProfile.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(" ".join(str(part).split()) for part in first["loc"]) or "file"
        got = "" if first["type"] == "missing" else f", got {quoted(first['input'])}"
        raise HardwareError(f"{where}: '{field}': {first['msg']}{got}") from None


def write_profile(profile: HardwareProfile, folder: Path) -> Path:
    """Writes ``<name>.toml``, whole or not at all; its keys stand in the order of the class, for people.

    Raises:
        OutputError: The folder cannot be written to.
    """
    path = folder / f"{profile.name}.toml"
    write_bytes(path, tomli_w.dumps(profile.model_dump(mode="json", exclude_none=True)).encode())
    return path


def match(machine: Machine) -> HardwareProfile:
    """The profile of a machine; one of the user's own goes before one that comes with the package.

    Raises:
        HardwareError: No profile fits the machine, or more than one does.
    """
    found = _profiles()
    known = {name: profile for name, (_, profile) in sorted(found.items())}
    mismatches = {name: is_this_machine(profile, machine) for name, profile in known.items()}
    fitting = [name for name in known if not mismatches[name]]
    own = [name for name in fitting if found[name][0].parent == user_folder("hardware_profiles")]
    if len(own) == 1:
        fitting = own
    if len(fitting) > 1:
        raise HardwareError(f"several profiles fit this machine; choose one with --hardware: {', '.join(fitting)}")
    if not fitting:
        near = [name for name in known if _recognises(known[name].recognise, machine)]
        but = f"; '{near[0]}' is of this CPU, but {mismatches[near[0]][0]}" if near else ""
        raise HardwareError(f"no hardware profile fits {machine}{but}; make one with: qnas profile --detect")
    return known[fitting[0]]


def is_this_machine(profile: HardwareProfile, machine: Machine) -> list[str]:
    """What speaks against latencies for a profile being measured on a machine; empty when nothing does.

    The number of sockets and cores may differ, as in a virtual machine, as long as there are cores for the threads.
    """
    wrong = [
        f"{name} is {getattr(machine, name)!r}, not {wanted!r}"
        for name, wanted in profile.recognise.model_dump(exclude={"brand"}, exclude_none=True).items()
        if getattr(machine, name) != wanted
    ]
    if not re.fullmatch(profile.recognise.brand, machine.brand):
        wrong.append(f"the brand is {machine.brand!r}, not like {profile.recognise.brand!r}")
    wrong += [f"this machine has no {isa}" for isa in profile.isa if isa not in machine.isa]
    wrong += [f"this machine has {isa}, the profile has not" for isa in machine.isa if isa not in profile.isa]
    if profile.runtime.threads > machine.usable_cpus:
        wrong.append(f"it runs {profile.runtime.threads} threads and this process may use {machine.usable_cpus} CPUs")
    return wrong


def describe(machine: Machine, name: str) -> HardwareProfile:
    """A profile of a machine from what its system tells, to be completed by its owner.

    Raises:
        HardwareError: The name cannot be one.
    """
    fields = {
        field: getattr(machine, field)
        for field in HardwareProfile.model_fields
        if field in Machine.__dataclass_fields__ and field != "model"
    }
    virtual = "In a virtual machine, which may hide sockets, cores, caches and clocks. " if machine.virtual else ""
    return parse_profile(
        fields
        | {
            "schema_version": 1,
            "name": name,
            "vendor": _VENDORS.get(machine.vendor_id, machine.vendor_id),
            "model": machine.brand,
            "source": ("detected",),
            "notes": f"{virtual}Complete by hand what is absent: microarchitecture, memory channels, clocks.",
            "recognise": {
                field: getattr(machine, field)
                for field in ("vendor_id", "family", "model", "stepping")
                if getattr(machine, field) is not None
            }
            | {"brand": re.escape(machine.brand).replace("\\ ", " ")},
        },
        where="this machine",
    )


def suggest_name(machine: Machine) -> str:
    """A name for the profile of a machine: the words of its brand, ``intel-xeon-platinum-8480``."""
    words = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*", " ", machine.brand.lower())
    return "-".join(re.findall(r"[a-z0-9.]+", words)).strip(".-") or "unknown"


def _read(path: Path) -> HardwareProfile:
    fields = read_toml(path, HardwareError, f"{path}: cannot be read as TOML")
    profile = parse_profile(fields, str(path))
    if profile.name != path.stem:
        raise HardwareError(f"{path}: 'name': is '{profile.name}'; it must be the name of the file, '{path.stem}'")
    return profile


def _recognises(recognise: Recognition, machine: Machine) -> bool:
    return recognise.vendor_id == machine.vendor_id and re.fullmatch(recognise.brand, machine.brand) is not None
