"""Files that arrive whole: a temporary name in the same folder, fsync, rename."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qnas_plugin.errors import OutputError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old content or all of the new one.

    Raises:
        OutputError: The folder cannot be made or written, or the disk is full.
    """
    write_parts(path, [content])


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes the pieces of a file; see ``write_bytes``."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a record as JSON with sorted keys; see ``write_bytes``.

    Raises:
        ValueError: A number in it is not finite.
    """
    write_bytes(path, (json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def make_folder(folder: Path) -> None:
    """Makes the output folder.

    Raises:
        OutputError: It cannot be made, or not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to the folder {folder}: {error.strerror}; give another --out") from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of an output folder; ends with the process, however it ends.

    Raises:
        OutputError: Another process is at it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise OutputError(
            f"another process is writing to {folder}; wait until it ends, or give another --out"
        ) from None
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
