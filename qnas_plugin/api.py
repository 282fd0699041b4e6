"""The commands as Python functions: their keyword arguments are the options of the command line, with its defaults."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from qnas_plugin.commands import profile as _profile
from qnas_plugin.commands import train as _train
from qnas_plugin.commands import tune as _tune
from qnas_plugin.commands.export import export
from qnas_plugin.commands.retarget import retarget
from qnas_plugin.latency.table import LatencyTable
from qnas_plugin.request import Options, ProfileRequest, TrainRequest, TuneRequest
from qnas_plugin.results.member import Result

__all__ = ["export", "profile", "retarget", "train", "tune"]

P = ParamSpec("P")
R = TypeVar("R")
Asked = TypeVar("Asked", bound=Options)


def _taking(request: Callable[P, Asked]) -> Callable[[Callable[[Asked], R]], Callable[P, R]]:
    """Turns a function of a request into one of the request's fields, which stand and are documented there alone."""
    kind: Any = request

    def decorate(run: Callable[[Asked], R]) -> Callable[P, R]:
        signature = inspect.signature(kind)

        @functools.wraps(run)
        def call(*arguments: P.args, **options: P.kwargs) -> R:
            built: Asked = kind.build(signature.bind(*arguments, **options).arguments)
            return run(built)

        documented = [inspect.getdoc(base) or "" for base in kind.__mro__ if issubclass(base, Options)]
        options = [text.partition("Args:\n")[2].rstrip() for text in documented]
        call.__doc__ = "\n".join([inspect.getdoc(run) or "", "", "Args:", *filter(None, options)])
        returned = inspect.signature(run).return_annotation
        call.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
        return call

    return decorate


@_taking(TuneRequest)
def tune(request: TuneRequest) -> Result:
    """Searches sub-network and precision together; writes a Pareto set of ONNX models, each built, run and measured."""
    return _tune.tune(request)


@_taking(TrainRequest)
def train(request: TrainRequest) -> dict[str, Any] | None:
    """Gives a supernet its weights; what comes back is the record that is written beside them."""
    return _train.train(request)


@_taking(ProfileRequest)
def profile(request: ProfileRequest) -> LatencyTable:
    """Makes the latency table of a supernet on this machine."""
    return _profile.profile(request)[0]
