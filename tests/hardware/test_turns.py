"""Who may use the machine: real processes that hold the lock, and what others may have laid in its way."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qnas_plugin.errors import HardwareError
from qnas_plugin.hardware import turns
from qnas_plugin.hardware.turns import between_measurements, measuring, private_folder

HOLD = (
    "import time; from qnas_plugin.hardware import turns\n"
    "with turns.{}():\n    print(1, flush=True)\n    time.sleep(60)"
)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of this test's own."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setattr(turns, "TELL_SECONDS", 0.2)
    return folder


@contextmanager
def holding(what: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLD.format(what)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        yield process
    finally:
        process.kill()
        process.wait()


def seconds_until(turn: object) -> float:
    began = time.monotonic()
    with turn:  # type: ignore[attr-defined]
        return time.monotonic() - began


@pytest.mark.usefixtures("runtime")
def test_between_measurements_is_together_and_measuring_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "STOPPED_SECONDS", 0.0)
    with holding("between_measurements") as other:
        assert seconds_until(between_measurements()) < 0.2
        os.kill(other.pid, signal.SIGSTOP)
        with pytest.raises(HardwareError), measuring():
            pass
    with holding("measuring") as other:
        os.kill(other.pid, signal.SIGSTOP)
        for turn in (measuring, between_measurements):
            with pytest.raises(HardwareError), turn():
                pass


@pytest.mark.usefixtures("runtime")
def test_waiting_says_for_which_process(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), holding("measuring") as other:
        subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.6); os.kill({other.pid}, 9)"])
        assert seconds_until(between_measurements()) > 0.3
    (said,) = caplog.messages
    assert f"waiting for the end of what process {other.pid} ({sys.executable} -c import time; from" in said


@pytest.mark.usefixtures("runtime")
def test_a_stopped_owner_is_named_instead_of_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "STOPPED_SECONDS", 0.3)
    with holding("measuring") as other:
        os.kill(other.pid, signal.SIGSTOP)
        expected = rf"process {other.pid} \(.*\) is stopped and .* continue it with kill -CONT {other.pid}, or end it"
        with pytest.raises(HardwareError, match=expected), measuring():
            pass


@pytest.mark.usefixtures("runtime")
def test_work_that_begins_anew_at_once_lets_a_measurement_in() -> None:
    code = (
        "import time; from qnas_plugin.hardware import turns\nprint(1, flush=True)\nwhile True:\n"
        "    with turns.between_measurements():\n        time.sleep(0.05)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdout is not None
            busy.stdout.readline()
            waited = [seconds_until(measuring()) for _ in range(5)]
        finally:
            busy.kill()
    assert max(waited) < 5


@pytest.mark.usefixtures("runtime")
def test_between_measurements_may_be_taken_again_inside_while_a_measurement_waits() -> None:
    code = "from qnas_plugin.hardware import turns\nprint(1, flush=True)\nwith turns.measuring():\n    pass"
    with between_measurements(), subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        waiting.stdout.readline()
        time.sleep(0.3)
        assert waiting.poll() is None
        with between_measurements():
            pass
        with pytest.raises(AssertionError), measuring():
            pass
        waiting.kill()


def test_the_lock_is_the_same_whatever_tmpdir_says(runtime: Path, tmp_path: Path) -> None:
    code = "from qnas_plugin.hardware.turns import private_folder; print(private_folder())"
    for environment in ({"XDG_RUNTIME_DIR": str(runtime)}, {}):
        variables = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"} | environment
        found = {
            subprocess.run(
                [sys.executable, "-c", code],
                env=variables | {"TMPDIR": folder},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for folder in ("/tmp", str(tmp_path))
        }
        assert len(found) == 1
        assert str(tmp_path) not in found.pop() or environment


@pytest.mark.parametrize("laid", ["open to all", "another user's", "link", "file"])
def test_private_folder_passes_over_what_another_user_may_have_laid(laid: str, runtime: Path, tmp_path: Path) -> None:
    folder = runtime / "qnas"
    if laid == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif laid == "file":
        folder.touch()
    else:
        folder.mkdir(mode=0o700)
    if laid == "open to all":
        folder.chmod(0o777)
    if laid == "another user's":
        if os.getuid():
            pytest.skip("only root can give a folder away")
        os.chown(folder, 12345, 12345)
    assert private_folder() != folder
    assert turns._is_ours(private_folder())


def test_private_folder_says_that_there_is_none(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(turns, "_made", lambda folder: False)
    with pytest.raises(HardwareError, match=r"no folder for the lock of measurements: /tmp/qnas-\d+ and .* mode 0700"):
        private_folder()
    assert not (runtime / "qnas").exists()


@pytest.mark.parametrize("laid", ["pipe", "link", "folder"])
def test_a_lock_that_is_no_file_is_refused_at_once(laid: str, runtime: Path, tmp_path: Path) -> None:
    lock = private_folder() / "measuring.lock"
    if laid == "pipe":
        os.mkfifo(lock)
    elif laid == "link":
        lock.symlink_to(tmp_path / "elsewhere")
    else:
        lock.mkdir()
    with pytest.raises(HardwareError, match=r"measuring\.lock.*remove it"), measuring():
        pass
    assert not (tmp_path / "elsewhere").exists()
