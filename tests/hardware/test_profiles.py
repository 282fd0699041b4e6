"""Hardware profiles: the ones that ship, reading, recognising, and writing them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from qnas_plugin import hardware
from qnas_plugin.errors import HardwareError, UnknownNameError
from qnas_plugin.hardware import (
    HardwareProfile,
    RuntimeSetting,
    data_folder,
    describe,
    is_this_machine,
    load_profile,
    match,
    parse_profile,
    profiles,
    user_folder,
    write_profile,
)
from qnas_plugin.hardware.machine import Isa, Machine

SHIPPED = sorted(data_folder("hardware_profiles").glob("*.toml"))
XEON = Machine(
    vendor_id="GenuineIntel",
    brand="Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz",
    family=6,
    model=106,
    stepping=6,
    isa=("avx2", "avx512f", "avx512_vnni"),
    sockets=2,
    cores_per_socket=40,
    threads_per_core=2,
    usable_cores=80,
    usable_cpus=160,
    base_ghz=2.3,
    turbo_ghz=3.4,
    l1d_kib=48,
    l1i_kib=32,
    l2_kib=1280,
    l3_mib=60.0,
    memory_gb=512.0,
    virtual=False,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QNAS_HOME", str(tmp_path / "home"))
    return user_folder("hardware_profiles")


def fields(**changes: Any) -> dict[str, Any]:
    return describe(XEON, "mine").model_dump(mode="json", exclude_none=True) | changes


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_profile_is_written_as_this_package_writes_it(path: Path, tmp_path: Path) -> None:
    assert write_profile(load_profile(path), tmp_path).read_bytes() == path.read_bytes()


def test_profiles_has_the_machines_of_the_paper() -> None:
    assert {"xeon-8280", "xeon-8360y", "xeon-8380", "xeon-8480plus", "xeon-max-9480"} <= set(profiles())
    assert list(profiles()) == sorted(profiles())


@pytest.mark.parametrize(
    ("brand", "model", "name"),
    [
        ("Intel(R) Xeon(R) Platinum 8280 CPU @ 2.70GHz", 85, "xeon-8280"),
        ("Intel(R) Xeon(R) Platinum 8280L CPU @ 2.70GHz", 85, "xeon-8280"),
        ("Intel(R) Xeon(R) Platinum 8360Y CPU @ 2.40GHz", 106, "xeon-8360y"),
        ("Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz", 106, "xeon-8380"),
        ("Intel(R) Xeon(R) Platinum 8480+", 143, "xeon-8480plus"),
        ("Intel(R) Xeon(R) CPU Max 9480", 143, "xeon-max-9480"),
    ],
)
def test_match_recognises_a_brand(brand: str, model: int, name: str) -> None:
    machine = dataclasses.replace(XEON, brand=brand, model=model, isa=profiles()[name].isa)
    assert match(machine).name == name
    assert is_this_machine(profiles()[name], machine) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"brand": "Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz"},
            r"Gold 6148 .*family 6, model 106.*qnas profile --detect",
        ),
        ({"brand": "Intel(R) Xeon(R) Platinum 8480+"}, "'xeon-8480plus' is of this CPU, but model is 106, not 143"),
        ({"isa": ("avx2",)}, "'xeon-8380' is of this CPU, but this machine has no avx512f"),
        ({"vendor_id": "AuthenticAMD"}, "no hardware profile fits"),
    ],
)
def test_match_says_what_was_seen_when_no_profile_fits(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        match(dataclasses.replace(XEON, **changes))


def test_match_takes_the_users_own_profile_before_one_of_the_package(home: Path) -> None:
    write_profile(describe(XEON, "mine"), home)
    assert match(XEON).name == "mine"


def test_match_asks_when_two_profiles_of_the_user_fit(home: Path) -> None:
    write_profile(describe(XEON, "mine"), home)
    write_profile(describe(XEON, "mine-too"), home)
    with pytest.raises(HardwareError, match=r"several profiles fit .* --hardware: mine, mine-too, xeon-8380$"):
        match(XEON)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"family": 7}, "family is 7, not 6"),
        ({"isa": (*XEON.isa, "amx_int8")}, "this machine has amx_int8, the profile has not"),
        ({"usable_cpus": 0}, "it runs 1 threads and this process may use 0 CPUs"),
    ],
)
def test_is_this_machine_names_a_mismatch(changes: dict[str, Any], wrong: str) -> None:
    assert is_this_machine(load_profile("xeon-8380"), dataclasses.replace(XEON, **changes)) == [wrong]


def test_is_this_machine_allows_fewer_cores_as_in_a_virtual_machine() -> None:
    few = dataclasses.replace(XEON, sockets=1, cores_per_socket=2, usable_cores=2, usable_cpus=4, l3_mib=None)
    assert is_this_machine(load_profile("xeon-8380"), few) == []


def test_describe_gives_a_profile_of_the_machine(tmp_path: Path) -> None:
    profile = describe(XEON, "mine")
    assert is_this_machine(profile, XEON) == []
    assert (profile.vendor, profile.cores_per_socket, profile.l3_mib) == ("Intel", 40, 60.0)
    assert (profile.memory_channels, profile.source) == (None, ("detected",))
    assert load_profile(write_profile(profile, tmp_path)) == profile
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_describe_raises_when_the_name_cannot_be_a_file() -> None:
    with pytest.raises(HardwareError, match=r"'name': .*got '\.\./mine'"):
        describe(XEON, "../mine")


def test_load_profile_suggests_a_name() -> None:
    with pytest.raises(UnknownNameError, match="unknown hardware profile 'xeon-8830'; did you mean 'xeon-8380'"):
        load_profile("xeon-8830")


def test_profiles_has_those_of_the_user_too(home: Path) -> None:
    write_profile(describe(XEON, "mine"), home)
    assert profiles()["mine"] == load_profile("mine") == describe(XEON, "mine")


def test_profiles_raises_when_a_user_takes_a_name_of_the_package(home: Path) -> None:
    path = write_profile(describe(XEON, "xeon-8280"), home)
    with pytest.raises(HardwareError, match=f"{path}: the name 'xeon-8280' belongs to .*; rename"):
        profiles()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"isa": ["avx1024"]}, r"'isa\.0': .*'avx512f'.*got 'avx1024'"),
        ({"isa": ["avx2", "avx2"]}, "'isa': .*stands twice"),
        ({"sockets": "2"}, "'sockets': .*integer, got '2'"),
        ({"cores_per_socket": 0}, "'cores_per_socket': .*greater than or equal to 1, got 0"),
        ({"base_ghz": float("nan")}, "'base_ghz': .*got nan"),
        ({"colour": "blue"}, "'colour': .*not permitted, got 'blue'"),
        ({"schema_version": 2}, "'schema_version': .*got 2"),
        ({"source": []}, "'source': "),
        ({"recognise": {"vendor_id": "GenuineIntel", "brand": "("}}, r"'recognise\.brand': .*not a regular expression"),
        ({"runtime": {"threads": True}}, r"'runtime\.threads': .*got True"),
        ({"runtime": {"resolution": 1.5}}, r"'runtime\.resolution': .*got 1\.5"),
    ],
)
def test_parse_profile_names_file_and_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HardwareError, match=f"^here: {message}") as error:
        parse_profile(fields(**changes), "here")
    assert "\n" not in str(error.value)


def test_parse_profile_names_a_missing_field() -> None:
    with pytest.raises(HardwareError, match=r"^here: 'vendor': Field required$"):
        parse_profile({name: value for name, value in fields().items() if name != "vendor"}, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name = ", "cannot be read as TOML"),
        (b'name = "a"\nname = "b"', "cannot be read as TOML: .*overwrite"),
        (b"\xff", "cannot be read as TOML"),
        (None, "cannot be read as TOML: .*No such file"),
    ],
)
def test_load_profile_raises_when_the_file_is_no_toml(text: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(HardwareError, match=f"broken.toml: {message}"):
        load_profile(path)


def test_load_profile_raises_when_file_and_profile_have_different_names(tmp_path: Path) -> None:
    path = write_profile(describe(XEON, "mine"), tmp_path).rename(tmp_path / "yours.toml")
    with pytest.raises(HardwareError, match="'name': is 'mine'; it must be the name of the file, 'yours'"):
        load_profile(path)


def test_write_profile_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_profile(describe(XEON, "mine"), tmp_path)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(hardware.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_profile(describe(XEON, "mine"), tmp_path)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["mine.toml"]
    assert path.read_bytes() == before


def test_data_folder_is_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "qnas_plugin"
    package.mkdir(parents=True)
    monkeypatch.setattr(hardware, "__file__", str(package / "hardware" / "__init__.py"))
    assert data_folder("latency_tables") == tmp_path / "site-packages" / "latency_tables"
    (package / "_data").mkdir()
    assert data_folder("latency_tables") == package / "_data" / "latency_tables"


def test_runtime_setting_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RuntimeSetting().threads = 2  # type: ignore[misc]


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["avx2", "a"])
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
names = st.sampled_from(sorted(HardwareProfile.model_fields)) | st.text(max_size=6)


@given(st.dictionaries(names, values | st.dictionaries(st.sampled_from(["brand", "threads", "model"]), values)))
def test_parse_profile_gives_a_profile_or_a_hardware_error(changes: dict[str, Any]) -> None:
    for candidate in (changes, fields() | changes):
        try:
            parsed: object = parse_profile(candidate, "fuzz")
        except HardwareError as error:
            parsed = error
        assert isinstance(parsed, HardwareProfile) or "\n" not in str(parsed)


@given(st.binary(max_size=60) | st.text(alphabet='a="[]{}.,\n#1e_-+:', max_size=60).map(str.encode))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_load_profile_raises_a_hardware_error_for_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.toml"
    path.write_bytes(content)
    with pytest.raises(HardwareError, match=r"fuzz\.toml"):
        load_profile(path)


@given(
    brand=st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=30),
    isa=st.lists(st.sampled_from(get_args(Isa)), unique=True).map(tuple),
    stepping=st.none() | st.integers(0, 15),
    l3_mib=st.none() | st.floats(0.5, 1000),
    threads_per_core=st.integers(1, 8),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_write_profile_keeps_what_describe_gives(tmp_path: Path, **changes: Any) -> None:
    machine = dataclasses.replace(XEON, **changes)
    profile = describe(machine, "mine")
    assert load_profile(write_profile(profile, tmp_path)) == profile
    assert is_this_machine(profile, machine) == []
