"""Doors: files from outside may be cut, forged, or no files at all. Each kind has one reader here.

`door` turns whatever a parser raises into one line.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import lzma
import math
import os
import re
import stat
import tomllib
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from qnas_plugin.errors import QnasError, UsageError, door

if TYPE_CHECKING:
    import numpy.typing as npt

TEXT_MB = 256
"""Megabytes that a JSON file or an image may have; those that are written here have a few."""

TOML_MB, _DOTS = 1, 2000
"""Megabytes that a TOML file may have, which people write, and dots in one of its lines."""

UNPACKED_GB = 16.0
"""Gigabytes that a data file may have when it is unpacked, unless ``QNAS_MAX_UNPACKED_GB`` says another number."""


def opened(path: Path) -> IO[bytes]:
    """A file, opened for reading; what is none, and may never end, is refused without waiting for it.

    Raises:
        OSError: It cannot be opened, or is a FIFO, a device, a socket or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {_kind(mode)}, not a file", str(path))
    return os.fdopen(descriptor, "rb")


def check_files(folder: str | Path) -> None:
    """Looks at what stands in a folder, or at one path, before a library opens it; what is missing is left to that.

    Raises:
        OSError: Something in it is a FIFO, a device or a socket, at which a reader would wait for ever.
    """
    path = Path(folder)
    for entry in [path, *(path.iterdir() if path.is_dir() else ())]:
        mode = entry.stat().st_mode if entry.exists() else stat.S_IFREG
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, f"'{entry.name}' is {_kind(mode)}, not a file", str(entry))


def read_bytes(path: Path) -> bytes:
    """The content of a file of at most ``TEXT_MB``.

    Raises:
        OSError: See ``opened``.
        ValueError: It is larger.
    """
    with opened(path) as file:
        content = file.read(TEXT_MB * 10**6 + 1)
    if len(content) > TEXT_MB * 10**6:
        raise ValueError(f"it has more than {TEXT_MB} MB")
    return content


def read_json(path: Path, error: type[QnasError], remedy: str) -> dict[str, Any]:
    """The object in a JSON file; see ``parse_json``.

    Args:
        path: Where it is.
        error: What is raised when it cannot be read.
        remedy: What to do then.
    """
    with door(error, f"cannot read {path} as JSON", remedy):
        record = parse_json(read_bytes(path))
        if not isinstance(record, dict):
            raise ValueError(f"it holds no object, but {type(record).__name__}")
        return record


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is not JSON in UTF-8, a field stands twice, a number is not finite or too long, or a text has
            half a character (a lone surrogate, which can neither be written nor printed).
        RecursionError: It is nested too deeply.
    """
    text = content.decode() if isinstance(content, bytes) else content
    value = _JSON.decode(text)
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_toml(path: Path, error: type[QnasError], problem: str) -> dict[str, Any]:
    """The table of a TOML file.

    Args:
        path: Where it is.
        error: What is raised when it cannot be read.
        problem: How the line begins then.
    """
    with door(error, problem):
        text = read_bytes(path).decode()
        # tomllib of Python 3.11 takes the square of the parts of a dotted name, 4 s for 20,000.
        if len(text) > TOML_MB * 10**6 or any(line.count(".") > _DOTS for line in text.splitlines()):
            raise ValueError(f"it has more than {TOML_MB} MB, or a line with more than {_DOTS} dots")
        return tomllib.loads(text)


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The plain arrays of an ``.npz`` file, no larger than the limit when they are unpacked.

    Raises:
        Exception: Of many kinds, when it is something else; call it inside a `door`.
    """
    import numpy as np

    with opened(path) as file, zipfile.ZipFile(file) as archive:
        check_unpacked(sum(member.file_size for member in archive.infolist()))
        with np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # the bytes of a member that is no array
            raise ValueError(f"'{name}' is no array")
    return arrays


def unpacked(path: Path) -> IO[bytes]:
    """A file as it was before gzip or xz, told by its name or how it begins; reading beyond the limit fails.

    Raises:
        OSError: See ``opened``.
        ValueError: While it is read, when more comes out than is allowed.
    """
    file = opened(path)
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b") or path.name.endswith((".gz", ".tgz")):
        return io.BufferedReader(_Limited(file, cast("IO[bytes]", gzip.GzipFile(fileobj=file))))
    if start == b"\xfd7zXZ\0" or path.name.endswith(".xz"):
        return io.BufferedReader(_Limited(file, cast("IO[bytes]", lzma.LZMAFile(file))))
    return file


def check_unpacked(size: int) -> None:
    """Stops what would fill the memory.

    Raises:
        ValueError: So many bytes are more than is allowed.
    """
    text = os.environ.get("QNAS_MAX_UNPACKED_GB", str(UNPACKED_GB))
    try:
        most = float(text)
    except ValueError:
        most = math.nan
    if not most > 0:
        raise UsageError(f"QNAS_MAX_UNPACKED_GB must be a number of gigabytes above 0, got '{text}'")
    if size > most * 1e9:
        raise ValueError(f"it has more than {most:g} GB unpacked; if it may, set QNAS_MAX_UNPACKED_GB to more")


class _Limited(io.RawIOBase):
    """An unpacked stream that ends with an error where more comes out than is allowed."""

    def __init__(self, packed: IO[bytes], stream: IO[bytes]) -> None:
        self._packed, self._stream = packed, stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        check_unpacked(self._stream.tell())
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            check_unpacked(offset)
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()
        self._packed.close()
        super().close()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field '{next(name for name in names if names.count(name) > 1)}' stands twice")
    return record


def _number(text: str) -> int:
    if len(text) > 40:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"a number cannot be {text:.20}")
    return value


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_number, parse_float=_finite, parse_constant=_finite)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _kind(mode: int) -> str:
    kinds = {"a folder": stat.S_ISDIR, "a FIFO": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((name for name, is_kind in kinds.items() if is_kind(mode)), "a device")
