"""The errors that a caller can expect.

    QnasError
    ├── UsageError (ValueError)           an option, a limit or a configuration file is wrong
    │   ├── MissingOptionsError           options that must be given are not
    │   └── UnknownNameError              a name that nothing is registered under
    ├── DataError (ValueError)            a data set is missing, malformed, or does not fit the model
    ├── CheckpointError (ValueError)      a checkpoint cannot be used as this supernet
    ├── CandidateError (RuntimeError)     one candidate cannot be built or measured; the study goes on
    │   ├── MaterializeError              its ONNX graph cannot be made
    │   ├── QuantizationError             its policy did not land in the graph
    │   └── MeasurementError              it cannot be run, or gives a number that is not finite
    ├── HardwareError (ValueError)        a hardware profile is missing, malformed, or of another machine
    ├── LatencyTableError (ValueError)    a latency table is missing, malformed, or does not fit
    ├── ClusterError (RuntimeError)       workers or their scheduler cannot be used
    ├── StudyError (ValueError)           stored trials belong to another request
    └── OutputError (OSError)             the output folder cannot be used

Every message is one line that says what is wrong, the value got, what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class QnasError(Exception):
    """Root of all errors that this package raises on purpose."""


class UsageError(QnasError, ValueError):
    """An option, a limit or a configuration file is wrong."""


class MissingOptionsError(UsageError):
    """Options that must be given are not.

    Args:
        options: All of them, as a sentence names them.
    """

    def __init__(self, options: Sequence[str]) -> None:
        named = " and ".join(filter(None, (", ".join(options[:-1]), options[-1])))
        super().__init__(f"{named} {'is' if len(options) == 1 and ' ' not in named else 'are'} missing")
        self.options = tuple(options)

    def __reduce__(self) -> tuple[type[MissingOptionsError], tuple[tuple[str, ...]]]:
        """As workers send it: an exception is rebuilt from its message otherwise."""
        return MissingOptionsError, (self.options,)


class UnknownNameError(UsageError, LookupError):
    """A name that nothing is registered under; the message suggests the nearest one.

    Args:
        kind: What was looked up, in the singular ("supernet").
        name: The name got.
        known: The names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = [other for other in known if name and other.startswith(name)]
        near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        super().__init__(f"unknown {kind} '{name}'; {hint}have: {', '.join(known) or 'none'}")
        self.kind, self.name, self.known = kind, name, known

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str]]]:
        """As workers send it: an exception is rebuilt from its message otherwise."""
        return UnknownNameError, (self.kind, self.name, self.known)


class DataError(QnasError, ValueError):
    """A data set is missing, malformed, or does not fit the model."""


class CheckpointError(QnasError, ValueError):
    """A checkpoint cannot be used as this supernet."""


class CandidateError(QnasError, RuntimeError):
    """One candidate cannot be built or measured; the study records a failed trial and goes on."""


class MaterializeError(CandidateError):
    """The candidate's ONNX graph cannot be made."""


class MissingPackageError(QnasError, ImportError):
    """A package that is asked for is not installed."""


class QuantizationError(CandidateError):
    """The candidate's precision policy did not land in the graph."""


class MeasurementError(CandidateError):
    """The candidate cannot be run, or a metric is not finite."""


class HardwareError(QnasError, ValueError):
    """A hardware profile is missing, malformed, or describes another machine."""


class LatencyTableError(QnasError, ValueError):
    """A latency table is missing, malformed, or does not fit the request."""


class ClusterError(QnasError, RuntimeError):
    """Workers or their scheduler cannot be used."""


class StudyError(QnasError, ValueError):
    """Stored trials belong to another request."""


class OutputError(QnasError, OSError):
    """The output folder cannot be used."""


@contextmanager
def door(error: type[QnasError], problem: str, remedy: str = "") -> Iterator[None]:
    """The one way in which other people's code meets what a user gives: whatever it raises is one line of ours.

    Libraries that parse files, and read, convert, quantize and run models, raise errors without a common class. Our own
    errors and a stop by the user pass. Nothing but their work, and checking what they gave, belongs inside: a fault of
    this program would look like one of the file.

    Args:
        error: What is raised in their place.
        problem: How the line begins: what could not be done, with the name of the file or tensor.
        remedy: How it ends: what to do.
    """
    hint = f"; {remedy}" if remedy else ""
    try:
        yield
    except QnasError:
        raise
    except MemoryError as cause:
        raise error(f"{problem}: it takes more memory than there is{hint}") from cause
    except RecursionError as cause:
        raise error(f"{problem}: it is nested too deeply{hint}") from cause
    except Exception as cause:
        raise error(f"{problem}: {reason(cause)}{hint}") from cause
    except BaseException as cause:
        if type(cause).__module__ != "pyo3_runtime":  # a panic of a library in Rust, like tokenizers 0.22
            raise
        raise error(f"{problem}: {reason(cause)}{hint}") from cause


def reason(error: BaseException) -> str:
    """What a library's error says, in one line of at most 300 characters; its class too where that says little."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = str(error).strip()
    if said.startswith("[ONNXRuntimeError]"):
        said = said.split(" : ", 3)[-1]
    line = re.sub(r"^/\S+\.(cc|h):\d+ ", "", (said or type(error).__name__).splitlines()[0])  # where in its sources
    if isinstance(error, KeyError):
        line = f"there is no {line}"
    elif len(line) < 30 and said and isinstance(error, Exception) and not isinstance(error, ValueError):
        line = f"{type(error).__name__}: {line}"
    return line if len(line) <= 300 else f"{line[:297]}..."


def quoted(value: object) -> str:
    """A value as a message shows it: one line of at most 80 characters, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists without end
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
