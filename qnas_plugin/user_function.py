"""Functions of the user's, named ``module:function``: whatever they do, a run ends with one line, or goes on."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from qnas_plugin.errors import QnasError, UsageError

SECONDS = 600.0
"""That a call may take, unless ``QNAS_FUNCTION_SECONDS`` says another number."""

Result = TypeVar("Result")


def load_function(name: str) -> Any:
    """The function ``module:function``; modules of the current folder are found too.

    Raises:
        UsageError: There is no such module or function, or the module fails or never ends.
    """
    found = load_named(name)
    if not callable(found):
        raise UsageError(f"'{name}' is no function, but {type(found).__name__}")
    return found


def load_named(name: str) -> Any:
    """What ``module:name`` is, a function or something else.

    Raises:
        UsageError: There is no such module or name, or the module fails or never ends.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # the qnas command starts without it, python -m with it
        sys.path.append(here)
    return call(lambda: getattr(importlib.import_module(module), attribute), UsageError, f"cannot import '{name}'")


def call(function: Callable[[], Result], error: type[QnasError], problem: str) -> Result:
    """What a function of the user's returns.

    Args:
        function: Without arguments.
        error: What is raised when the function raises, ends the process, or does not return in time.
        problem: How the message begins.
    """
    seconds = _seconds()
    try:
        return _in_time(function, seconds)
    except _Late:
        raise error(
            f"{problem}: no end within {seconds:g} seconds; if it needs more, set QNAS_FUNCTION_SECONDS"
        ) from None
    except KeyboardInterrupt:
        raise
    except BaseException as cause:  # whatever a user's function raises, sys.exit too
        said = " ".join(str(cause).split())
        raise error(f"{problem}: {type(cause).__name__}{f': {said:.300}' if said else ''}") from cause


class _Late(BaseException):
    """A function took too long. No ``Exception``, which the function itself may catch."""


def _seconds() -> float:
    text = os.environ.get("QNAS_FUNCTION_SECONDS", str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise UsageError(f"QNAS_FUNCTION_SECONDS must be a number of seconds above 0, got '{text}'")
    return seconds


def _in_time(function: Callable[[], Result], seconds: float) -> Result:
    """Interrupts the function in the main thread; in another one, where signals do not go, stops waiting for it."""
    if threading.current_thread() is threading.main_thread():
        with _alarm(seconds):
            return function()
    done: list[Result | BaseException] = []

    def run() -> None:
        try:
            done.append(function())
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise _Late
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises ``_Late`` inside after so long; alarms of others are put off."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, ring)
    left, again = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, again)
        signal.signal(signal.SIGALRM, before)
