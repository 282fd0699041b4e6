"""The doors, one by one; that every command uses them is what ``tests/fuzz`` tries."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qnas_plugin.data import SplitSizes
from qnas_plugin.errors import DataError, OutputError, StudyError, UsageError, door, quoted
from qnas_plugin.files.doors import check_files, opened, parse_json, read_json, read_npz, read_toml, unpacked
from qnas_plugin.tasks import arrays, image_classification, text_classification

MB = 1_000_000
Panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
"""What a library in Rust raises."""


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (KeyError("members"), "no file: there is no 'members'; mend it"),
        (OSError(5, "Input/output error", "x"), "no file: Input/output error; mend it"),
        (MemoryError(), "no file: it takes more memory than there is; mend it"),
        (RecursionError(), "no file: it is nested too deeply; mend it"),
        (ValueError("first\nsecond"), "no file: first; mend it"),
        (StopIteration(), "no file: StopIteration; mend it"),
        (
            type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})("no entry"),
            "no file: no entry; mend it",
        ),
    ],
)
def test_door_makes_one_line_of_whatever_a_parser_raises(cause: BaseException, message: str) -> None:
    with pytest.raises(StudyError) as caught, door(StudyError, "no file", "mend it"):
        raise cause
    assert str(caught.value) == message
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("cause", [UsageError("ours"), KeyboardInterrupt(), SystemExit(3)])
def test_door_lets_through_what_is_no_fault_of_a_parser(cause: BaseException) -> None:
    with pytest.raises(type(cause)) as caught, door(StudyError, "no file"):
        raise cause
    assert caught.value is cause


def test_opened_refuses_what_never_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path / "fifo", "a FIFO"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(OSError, match=f"it is {kind}, not a file"):
            opened(path)
    with pytest.raises(OSError, match="'fifo' is a FIFO"):
        check_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "the field 'a' stands twice"),
        (b'{"a": NaN}', "a number cannot be NaN"),
        (b'{"a": -Infinity}', "a number cannot be -Infinity"),
        (b'{"a": 1e999}', "a number cannot be 1e999"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\udfff": 1}', "surrogates not allowed"),
        (b"\xff\xfe{}", "can't decode"),
        (b"[]", "it holds no object, but list"),
        (b"", "Expecting value"),
    ],
)
def test_read_json_refuses_what_nobody_can_use(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StudyError, match=f"cannot read .*a.json as JSON: .*{message}.*; make it again"):
        read_json(tmp_path / "a.json", StudyError, "make it again")


def test_parse_json_takes_whole_characters_and_long_numbers() -> None:
    assert parse_json('{"a": "\\ud83d\\ude00", "b": 123456789012345678901234567890, "c": "\\\\ud800"}') == {
        "a": "\U0001f600",
        "b": 123456789012345678901234567890,
        "c": "\\ud800",
    }


@pytest.mark.parametrize(
    "content",
    [
        b"a." * 100_000 + b"a = 1",
        b"#" * 1_000_001,
        b"a = " + b"[" * 100_000,
        b"a = " + b"9" * 5000,
        b"a = \xff",
        b"a",
        b'a = "\\ud800"',
    ],
)
def test_read_toml_refuses_what_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(UsageError, match="no TOML: "):
        read_toml(tmp_path / "a.toml", UsageError, "no TOML")


def test_quoted_is_short_whatever_the_value_is() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert quoted(10**5000) == "a value of type int"
    assert quoted(deep) == "a value of type list"
    assert len(quoted("x" * 1000)) == 80


def _gz(path: Path) -> None:
    path.write_bytes(gzip.compress(b"sentence\tlabel\n" + bytes(3 * MB)))


def _npz(path: Path) -> None:
    np.savez_compressed(path, x=np.zeros((3, MB), dtype=np.uint8))


def _tar(packed: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            member = tarfile.TarInfo("train/cat/1.png")
            member.size = 3 * MB
            archive.addfile(member, io.BytesIO(bytes(3 * MB)))
        path.write_bytes(packed(out.getvalue()))

    return make


def _sparse(path: Path) -> None:
    """A tar file of a kilobyte with a file of three megabytes of nothing."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("train/cat/1.png")
        member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(3 * MB), "GNU.sparse.numblocks": "1"}
        archive.addfile(member)


@pytest.mark.parametrize(
    ("name", "make", "task"),
    [
        ("a.tsv.gz", _gz, text_classification),
        ("a.npz", _npz, arrays),
        ("b.npz", _npz, image_classification),
        ("a.tar.gz", _tar(gzip.compress), image_classification),
        ("a.tar.xz", _tar(lzma.compress), image_classification),
        ("a.tar", _sparse, image_classification),
    ],
)
def test_load_refuses_what_is_too_large_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], None], task: object
) -> None:
    make(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 20_000
    monkeypatch.setenv("QNAS_MAX_UNPACKED_GB", "0.002")
    with pytest.raises(DataError, match=r"more than 0.002 GB unpacked; if it may, set QNAS_MAX_UNPACKED_GB to more"):
        task.load(str(tmp_path / name), sizes=SplitSizes())  # type: ignore[attr-defined]
    monkeypatch.setenv("QNAS_MAX_UNPACKED_GB", "much")
    with pytest.raises(UsageError, match="QNAS_MAX_UNPACKED_GB must be a number of gigabytes above 0, got 'much'"):
        task.load(str(tmp_path / name), sizes=SplitSizes())  # type: ignore[attr-defined]


def test_read_npz_refuses_members_that_are_no_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"text")
    with pytest.raises(ValueError, match="'x' is no array"):
        read_npz(tmp_path / "a.npz")


def test_unpacked_reads_what_was_packed(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    for name, packed in (("a.gz", gzip.compress(content)), ("a.xz", lzma.compress(content)), ("a", content)):
        (tmp_path / name).write_bytes(packed)
        with unpacked(tmp_path / name) as file:
            assert file.read() == content
            file.seek(100)
            assert file.read(20) == content[100:120]


def test_output_error_keeps_its_message() -> None:
    with pytest.raises(OutputError, match="cannot store: No space left on device"), door(OutputError, "cannot store"):
        raise OSError(28, "No space left on device")
