from __future__ import annotations

import resource
import signal
import tempfile
from pathlib import Path

import pytest

from qnas_plugin.errors import OutputError
from qnas_plugin.files import make_folder, write_bytes, write_json
from qnas_plugin.files.locks import PART


def test_write_bytes_leaves_only_the_whole_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "deep" / "file", b"one")
    write_bytes(tmp_path / "deep" / "file", b"two")
    assert (tmp_path / "deep" / "file").read_bytes() == b"two"
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_write_bytes_keeps_the_old_file_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_bytes(tmp_path / "file", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_write_bytes_keeps_the_old_file_when_a_file_can_grow_no_further(tmp_path: Path) -> None:
    """In the middle of a write, for real: the limit of a process stands for the end of the disk."""
    write_bytes(tmp_path / "file", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot write .* File too large"):
            write_bytes(tmp_path / "file", bytes(300_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_write_bytes_starts_again_when_its_file_was_taken_for_a_dead_process_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making and locking it: another process may look just then."""
    real, made = tempfile.mkstemp, []

    def mkstemp(**options: object) -> tuple[int, str]:
        descriptor, name = real(**options)  # type: ignore[call-overload]
        made.append(name)
        if len(made) == 1:
            Path(name).unlink()
        return descriptor, name

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    write_bytes(tmp_path / "file", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]
    assert len(made) == 2
    assert all(name.endswith(PART) for name in made)


def test_write_json_is_stable_and_refuses_what_is_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [2.5]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    2.5\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"a": float("nan")})


def test_make_folder_fails_clearly_when_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write to the folder"):
        make_folder(tmp_path / "file" / "sub")
