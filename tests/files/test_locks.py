from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from qnas_plugin.errors import OutputError
from qnas_plugin.files import write_bytes
from qnas_plugin.files.locks import SCRATCH, alone_in, remove_left, scratch


def test_alone_in_keeps_other_processes_out(tmp_path: Path) -> None:
    """Also where trials are in a database, which has no file to lock."""
    program = (
        "from pathlib import Path\nfrom qnas_plugin.files.locks import alone_in\nwith alone_in(Path.cwd()):\n  pass"
    )
    with alone_in(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert f"OutputError: another process is writing to {tmp_path}; wait until it ends" in done.stderr
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_alone_in_lets_errors_of_the_body_through(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="of the body"), alone_in(tmp_path):
        raise BlockingIOError("of the body")
    with alone_in(tmp_path):
        pass


def test_alone_in_works_where_folders_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, which locks only what is open for writing."""
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone_in(tmp_path), pytest.raises(OutputError, match="another process is writing"), alone_in(tmp_path):
        pass

    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OutputError, match=r"cannot lock .*No locks available"), alone_in(tmp_path):
        pass


KILLED = """
import os, pathlib, signal, sys
from qnas_plugin.files import write_parts
from qnas_plugin.files.locks import scratch
def parts():
    yield b"half"
    print(flush=True)
    sys.stdin.read(1)
    os.kill(os.getpid(), signal.SIGKILL)
with scratch() as folder:
    (folder / "big.onnx").write_bytes(b"big")
    write_parts(pathlib.Path("file"), parts())
"""


def test_what_a_killed_process_left_goes_when_the_next_one_starts_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    write_bytes(tmp_path / "file", b"old")
    others = [tmp_path / "qnas-other", tmp_path / f"{SCRATCH}a-file", tmp_path / ".video.part", tmp_path / "keep"]
    others[0].mkdir()
    (others[0] / "model.onnx").touch()
    others[1].touch()
    others[2].touch()
    others[3].mkdir()
    (others[3] / "precious").touch()
    (tmp_path / f"{SCRATCH}link").symlink_to(others[3])
    expected = {*others, tmp_path / "file", tmp_path / f"{SCRATCH}link"}

    def left() -> set[Path]:
        return {*tmp_path.iterdir()} - expected

    with subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.read(1)
        remove_left.cache_clear()
        with scratch() as own:
            assert left() > {own}  # those of the living process stay
            assert len(left()) == 3
        process.stdin.write(b"x")
        process.stdin.close()
    assert process.returncode == -signal.SIGKILL
    assert len(left()) == 2
    remove_left.cache_clear()
    with scratch() as own:
        assert left() == {own}
    assert left() == set()
    assert (others[3] / "precious").exists()
    assert (tmp_path / "file").read_bytes() == b"old"


def test_scratch_is_one_error_where_there_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OutputError, match=r"cannot make a temporary folder .* set TMPDIR"), scratch():
        pass
