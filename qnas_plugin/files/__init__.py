"""Files that arrive whole: a temporary name in the same folder, fsync, rename."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from qnas_plugin.errors import OutputError
from qnas_plugin.files.locks import part_of, remove_left


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old content or all of the new one.

    Raises:
        OutputError: The folder cannot be made or written, or the disk is full.
    """
    write_parts(path, [content])


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes the pieces of a file; see ``write_bytes``."""
    with whole_file(path) as file:
        file.writelines(parts)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which becomes the one of that name when the context ends without an error.

    Raises:
        OutputError: The folder cannot be made or written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left(path.parent)
        descriptor, temporary = part_of(path)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a record as JSON with sorted keys; see ``write_bytes``.

    Raises:
        ValueError: A number in it is not finite.
    """
    write_bytes(path, (json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Keeps a file that another run wrote, unless it is meant.

    Raises:
        OutputError: It is there.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; give another --out, or --overwrite to replace it")


def move_files(source: Path, target: Path, *, last: str) -> None:
    """Moves the files of one folder to another of the same file system, replacing those of their names.

    Args:
        source: Where they are.
        target: Where they go.
        last: The file that says that the others are there.

    Raises:
        OSError: One cannot be moved.
    """
    for path in sorted(source.iterdir(), key=lambda path: (path.name == last, path.name)):
        if path.is_dir():
            (target / path.name).mkdir(exist_ok=True)
            move_files(path, target / path.name, last=last)
        else:
            path.replace(target / path.name)


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
