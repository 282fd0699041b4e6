"""Locks that end with their process, temporary folders, and what dead processes left behind.

What a killed process left is removed by a later one: the locks of the system tell which of them are alive, also those
in other containers of the same machine.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qnas_plugin.errors import OutputError

SCRATCH, PART = "qnas-scratch-", ".qnas-part"
"""How the names of our temporary folders begin, and those of files that are being written end."""


@contextmanager
def alone_in(place: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, or from a file; ends with the process, however it ends.

    Raises:
        OutputError: Another process is at it, or the file system has no locks.
    """
    try:
        descriptor = _held(place)
    except BlockingIOError:
        raise OutputError(f"another process is writing to {place}; wait until it ends, or give another --out") from None
    except OSError as error:
        raise OutputError(f"cannot lock {place}: {error.strerror}; give another --out") from None
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def scratch(within: Path | None = None) -> Iterator[Path]:
    """A temporary folder that ends with the context; where a process was killed inside, the next one removes it.

    Args:
        within: The folder that it is made in; None is the system's for temporary files.

    Raises:
        OutputError: There is no place for it.
    """
    try:
        parent = Path(tempfile.gettempdir()) if within is None else within
        remove_left(parent)
        folder, descriptor = _scratch_in(parent)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot make a temporary folder ({reason}); set TMPDIR to one with space") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


@functools.cache
def remove_left(folder: Path) -> None:
    """Removes what dead processes of this user left in a folder: their temporary folders and half-written files.

    Once a process. What is locked is in use; where nothing can be locked, everything stays.
    """
    for path in [*folder.glob(f"{SCRATCH}*"), *folder.glob(f".*{PART}")]:
        with suppress(OSError):
            found = path.lstat()
            is_folder = stat.S_ISDIR(found.st_mode)
            if found.st_uid != os.geteuid() or not (is_folder or stat.S_ISREG(found.st_mode)):
                continue
            descriptor = _open_and_lock(path, os.O_NOFOLLOW | (os.O_RDONLY if is_folder else os.O_RDWR))
            try:
                if is_folder:
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(descriptor)


def _held(place: Path) -> int:
    """A file descriptor that locks a place while it is open.

    Raises:
        BlockingIOError: Another process has locked it.
        OSError: It cannot be locked.
    """
    try:
        return _open_and_lock(place, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.EBADF or not place.is_dir():
            raise
    # A network file system (NFS) locks only what is open for writing, and no folder can be.
    return _open_and_lock(place / ".qnas.lock", os.O_RDWR | os.O_CREAT)


def _open_and_lock(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _scratch_in(parent: Path) -> tuple[Path, int | None]:
    """A new folder and the descriptor that says it is in use; None where folders cannot be locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=parent))
        try:
            descriptor = _open_and_lock(folder, os.O_RDONLY)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process took it for a dead one's before it was locked
        except OSError:
            return folder, None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return folder, descriptor
        os.close(descriptor)


def part_of(path: Path) -> tuple[int, Path]:
    """A new file beside another one, open and locked, for its next content."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        with suppress(OSError):  # what cannot be locked, nobody removes
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)  # another process took it for a dead one's before it was locked
