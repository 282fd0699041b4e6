from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qnas_plugin.errors import OutputError
from qnas_plugin.files import alone_in, make_folder, write_bytes, write_json


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


def test_alone_in_keeps_other_processes_out(tmp_path: Path) -> None:
    """Also where trials are in a database, which has no file to lock."""
    program = "from pathlib import Path\nfrom qnas_plugin.files import alone_in\nwith alone_in(Path.cwd()):\n  pass"
    with alone_in(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert f"OutputError: another process is writing to {tmp_path}; wait until it ends" in done.stderr
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_write_json_is_stable_and_refuses_what_is_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [2.5]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    2.5\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"a": float("nan")})


def test_make_folder_fails_clearly_when_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write to the folder"):
        make_folder(tmp_path / "file" / "sub")
