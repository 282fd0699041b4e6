"""Where a study is stored: a journal file that one process writes at a time, or any database of Optuna's by URL."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from qnas_plugin.errors import OutputError, QnasError, StudyError, door, reason
from qnas_plugin.files.doors import check_files
from qnas_plugin.objectives import METRICS, Objectives
from qnas_plugin.study.storage_url import VARIABLE, lacks_password, scrubbed, secrets, shown, with_password

CREATE_STUDY, CREATE_TRIAL = 0, 4
"""Codes of lines in a journal."""


def load_study(storage: str, name: str, objectives: Objectives | None) -> tuple[BaseStorage, optuna.Study]:
    """The opened storage and the study in it, created for these objectives when there is none; None creates nothing."""
    path = _file(storage)
    if objectives is None and path is not None and not path.exists():
        raise StudyError(f"there is no study in '{storage}'; make one with: qnas tune")
    if path is not None and path.exists():
        _check_file(path)
        if "://" not in storage:
            _check_header(path)
    if "://" in storage:
        opened = optuna.storages.get_storage(with_password(storage))
    else:
        opened = JournalStorage(JournalFileBackend(storage, lock_obj=_NoLock()))  # type: ignore[arg-type]
    try:
        return opened, optuna.load_study(study_name=name, storage=opened)
    except KeyError:
        if objectives is None:
            raise StudyError(f"there is no study '{name}' in '{shown(storage)}'; make one with: qnas tune") from None
    known = objectives if isinstance(objectives, Mapping) else METRICS
    directions = [known[objective] for objective in objectives]
    return opened, optuna.create_study(study_name=name, storage=opened, directions=directions)


def studies_in(journal: Path) -> list[str]:
    """The names of the studies that a journal begins; none where there is no journal."""
    if not journal.is_file():
        return []
    return [str(record.get("study_name")) for record in _operations(journal, CREATE_STUDY)]


def _check_header(journal: Path) -> None:
    """Keeps a study from starting anew behind trials whose first line is lost.

    Raises:
        StudyError: There are trials, and no study.
    """
    if not _operations(journal, CREATE_STUDY) and _operations(journal, CREATE_TRIAL):
        raise StudyError(
            f"the journal '{journal}' has trials, and its first line, which says of which study, is lost; restore that "
            "line, or use another --out"
        )


def _operations(journal: Path, code: int) -> list[dict[str, Any]]:
    """The lines of a journal of Optuna 5.0 with one code."""
    start = f'{{"op_code":{code},'.encode()
    found: list[dict[str, Any]] = []
    for line in journal.read_bytes().splitlines():
        with suppress(ValueError):
            if line.replace(b" ", b"", 1).startswith(start):
                found.append(json.loads(line))
    return found


@contextmanager
def errors_of(storage: str) -> Iterator[None]:
    """Keeps Optuna quiet, and turns what it raises on a storage that cannot be read into one line."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    except QnasError:
        raise
    except ImportError as error:
        raise StudyError(
            f"no driver for '{shown(storage)}' is installed; for PostgreSQL: pip install psycopg2-binary, or "
            "pip install 'psycopg[binary]' and begin the URL with postgresql+psycopg://"
        ) from error
    except OSError as error:
        raise OutputError(f"cannot use '{shown(storage)}': {reason(error)}") from error
    except Exception as error:  # Optuna 5.0 and SQLAlchemy 2.1 raise many kinds for a damaged file
        hint = f", its password in {VARIABLE}" if lacks_password(storage) else ""
        raise StudyError(
            f"cannot read the study in '{shown(storage)}' ({scrubbed(reason(error), storage)}); give a .journal file "
            f"or a database URL of Optuna{hint}"
        ) from (error if not secrets(storage) else None)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _file(storage: str) -> Path | None:
    """The journal or SQLite file of a storage; None for another database."""
    if "://" not in storage:
        return Path(storage)
    if storage.startswith("sqlite:///") and not storage.endswith(":memory:"):
        return Path(storage.removeprefix("sqlite:///"))
    return None


def _check_file(path: Path) -> None:
    """Keeps readers from waiting for ever.

    Raises:
        OutputError: It is no file.
    """
    with door(OutputError, f"cannot use '{path}'", "give another --out"):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        check_files(path)


class _NoLock:
    """In place of Optuna's lock files, which stay behind when their process is killed (5.0: 30 s until they expire).

    The study's own lock is held while it is open, and an append is a single write, so readers need none.
    """

    def acquire(self) -> bool:
        """Succeeds."""
        return True

    def release(self) -> None:
        """Does nothing."""


def lock_file(storage: str) -> IO[bytes] | None:
    """Makes this process the only one that writes a journal or SQLite file; ends with the process, however it ends."""
    path = _file(storage)
    if path is None:
        return None
    if is_database := "://" in storage:
        path = path.with_name(path.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        _check_file(path)
    handle = path.open("a+b")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_database:
            _mend(handle)
    except BlockingIOError:
        handle.close()
        raise OutputError(f"another process is writing '{path}'; wait until it ends, or use another --out") from None
    except BaseException:
        handle.close()
        raise
    return handle


def _mend(journal: IO[bytes]) -> None:
    """Cuts off a last line that a killed process left half written; Optuna 5.0 would glue the next one to it.

    Raises:
        StudyError: The file is no journal.
    """
    journal.seek(0)
    content = journal.read()
    whole = content.rfind(b"\n") + 1
    try:
        if not content.startswith(b'{"op_code"'[: len(content)]):
            raise ValueError
        for line in content[:whole].splitlines():
            json.loads(line)
    except ValueError:
        raise StudyError(f"'{journal.name}' is not a journal of trials; use another --out") from None
    if whole < len(content):
        journal.truncate(whole)
        journal.flush()
