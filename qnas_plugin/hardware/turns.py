"""Who may use this machine now: one process of a user that measures, or any number that don't.

Two locks in a folder of this user's own keep the order. ``measuring.lock`` is held alone by what measures, and together
by what computes meanwhile. Whoever waits for it holds ``next.lock``, so that a measurement that waits is not passed by
others: work that lets go and begins anew at once, as a training does at each step, would keep it waiting for ever.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from qnas_plugin.errors import HardwareError

LOOK_SECONDS = 0.02
"""How often a process that waits looks whether its turn has come."""

TELL_SECONDS = 10.0
"""After how long it says for whom it waits, and how often it looks whether that one still runs."""

STOPPED_SECONDS = 60.0
"""How long it waits for a process that is stopped and holds the machine."""

_log = logging.getLogger(__name__)
_held = threading.local()


def private_folder() -> Path:
    """A folder of this machine that this user alone can enter, the same for all processes of the user.

    ``$XDG_RUNTIME_DIR`` or what the system has in its place, else one in ``/tmp``, whatever ``TMPDIR`` says, else one
    in the home folder, named after this start of the machine. One that another user owns, or may enter, or that is a
    link, is passed over: somebody may have laid it there.

    Raises:
        HardwareError: There is none.
    """
    user = os.getuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    parents = [Path(runtime)] if Path(runtime).is_absolute() else []
    for parent in [*parents, Path(f"/run/user/{user}")]:
        if _is_ours(parent) and _made(parent / "qnas"):
            return parent / "qnas"
    if _made(folder := Path(f"/tmp/qnas-{user}")):
        return folder
    started = Path("/proc/sys/kernel/random/boot_id")
    name = started.read_text(encoding="utf-8").strip() if started.exists() else os.uname().nodename
    name = name[:8]
    cache = Path.home() / ".cache" / "qnas"
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    if _made(folder := cache / name):
        return folder
    raise HardwareError(
        f"no folder for the lock of measurements: /tmp/qnas-{user} and {folder} are not yours alone, or cannot be "
        "made; remove them, or set XDG_RUNTIME_DIR to a folder of mode 0700"
    )


def _made(folder: Path) -> bool:
    """Whether a folder is there, made now or before, and ours."""
    with suppress(OSError):
        folder.mkdir(mode=0o700)
    return _is_ours(folder) and os.access(folder, os.W_OK)


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder, no link, of this user, and closed to all others."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


@contextmanager
def measuring() -> Iterator[None]:
    """Waits until no other process of this user computes or measures, and lets none begin.

    Raises:
        HardwareError: The process that is at it is stopped, or the lock cannot be used.
    """
    assert not getattr(_held, "between", False)
    with _turn(fcntl.LOCK_EX):
        yield


@contextmanager
def between_measurements() -> Iterator[None]:
    """Waits until no process of this user measures, and lets none begin; any number may be between together.

    Long work takes it in pieces: a measurement waits until the piece ends. What is between may be between again, and
    must not measure.

    Raises:
        HardwareError: The process that measures is stopped, or the lock cannot be used.
    """
    if getattr(_held, "between", False):  # to queue once more could mean to wait for oneself
        yield
        return
    with _turn(fcntl.LOCK_SH):
        _held.between = True
        try:
            yield
        finally:
            _held.between = False


@contextmanager
def _turn(how: int) -> Iterator[None]:
    folder = private_folder()
    lock = _opened(folder / "measuring.lock")
    try:
        queue = _opened(folder / "next.lock")
        try:
            _take(queue, fcntl.LOCK_EX, held=lock)
            _take(lock, how, held=lock)
        finally:
            os.close(queue)
        yield
    finally:
        os.close(lock)


def _opened(path: Path) -> int:
    """A descriptor of a file for locks: no link is followed, and no pipe is waited for."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HardwareError(f"cannot use the lock of measurements {path}: {error.strerror}; remove it") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise HardwareError(f"the lock of measurements {path} is no file; remove it")
    os.utime(descriptor)  # what cleans temporary folders goes by age
    return descriptor


def _take(descriptor: int, how: int, *, held: int) -> None:
    """Waits for a lock; says after a while who has the one that is ``held``, and gives up when that one is stopped."""
    told = stopped_since = None
    looked = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOOK_SECONDS)
        except OSError as error:
            raise HardwareError(f"cannot use the lock of measurements: {error.strerror}") from None
        else:
            return
        now = time.monotonic()
        if now - looked < TELL_SECONDS:
            continue
        looked = now
        owners = _owners(held)
        who = " and ".join(map(_described, owners)) or "another process of yours"
        if who != told and (owners or told is None):
            _log.warning("waiting for the end of what %s computes or measures on this machine", who)
            told = who
        stopped = [owner for owner in owners if _is_stopped(owner)]
        stopped_since = (stopped_since or now) if stopped else None
        if stopped_since is not None and now - stopped_since >= STOPPED_SECONDS:
            raise HardwareError(
                f"{_described(stopped[0])} is stopped and keeps others from measuring on this machine; continue it "
                f"with kill -CONT {stopped[0].pid}, or end it; then the same command goes on"
            )


def _owners(descriptor: int) -> list[psutil.Process]:
    """The processes that hold a lock, as far as the system tells."""
    found = os.fstat(descriptor)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    owners = []
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            fields = line.split()  # 1: FLOCK ADVISORY WRITE 17105 fe:00:5563906 0 EOF; waiting ones begin with 1: ->
            if fields[1] == "FLOCK" and fields[5] == place:
                with suppress(psutil.Error, ValueError):
                    owners.append(psutil.Process(int(fields[4])))
    return owners


def _described(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        command = " ".join(" ".join(process.cmdline()).split()) or process.name()
        return f"process {process.pid} ({command if len(command) <= 80 else command[:77] + '...'})"
    return f"process {process.pid}"


def _is_stopped(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_STOPPED)
    return False
