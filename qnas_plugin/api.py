"""The commands as Python functions: their keyword arguments are the options of the command line, with its defaults."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from qnas_plugin.commands import export as _export
from qnas_plugin.commands import profile as _profile
from qnas_plugin.commands import retarget as _retarget
from qnas_plugin.commands import train as _train
from qnas_plugin.commands import tune as _tune
from qnas_plugin.commands.retarget import Retargeted
from qnas_plugin.latency.table import LatencyTable
from qnas_plugin.request import ExportRequest, Options, ProfileRequest, RetargetRequest, TrainRequest, TuneRequest
from qnas_plugin.results.member import Result
from qnas_plugin.space import Candidate

__all__ = ["export", "profile", "retarget", "train", "tune"]

P = ParamSpec("P")
R = TypeVar("R")
Asked = TypeVar("Asked", bound=Options)
Stage = Callable[[str], None]


def _taking(request: Callable[P, Asked]) -> Callable[[Callable[[Asked], R]], Callable[P, R]]:
    """Turns a function of a request into one of the request's fields, which are declared and described there alone."""
    return lambda run: _function(request, run)


def _told(request: type[Asked], *first: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Like ``_taking``, with ``first`` also by position, and ``on_stage``, which is told what happens."""
    return lambda run: _function(request, run, first, on_stage="Is told what happens.")


def _function(request: Any, run: Callable[..., R], first: tuple[str, ...] = (), **more: str) -> Callable[..., R]:
    request.model_rebuild()
    own, declared = inspect.signature(run), inspect.signature(request).parameters
    fields = {
        name: parameter.replace(annotation=request.model_fields[name].annotation)
        for name, parameter in declared.items()
    }
    parameters = [
        *(fields[name].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in first),
        *(parameter for name, parameter in fields.items() if name not in first),
        *(own.parameters[name] for name in more),
    ]
    signature = own.replace(parameters=parameters)

    @functools.wraps(run)
    def call(*arguments: Any, **options: Any) -> R:
        given = signature.bind(*arguments, **options).arguments
        others = {name: given.pop(name) for name in more if name in given}
        return run(request.build(given), **others)

    described = [*request.documented(), *(f"{name}: {text}" for name, text in more.items())]
    call.__doc__ = "\n".join([inspect.getdoc(run) or "", "", "Args:", *(f"    {line}" for line in described)])
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


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


@_told(RetargetRequest, "study", "hardware")
def retarget(request: RetargetRequest, *, on_stage: Stage = lambda text: None) -> Retargeted:
    """Finds the Pareto set of another CPU or setting and writes ``retarget.json`` and a file for each candidate."""
    return _retarget.retarget(request, on_stage)


@_told(ExportRequest, "study", "out")
def export(request: ExportRequest, *, on_stage: Stage = lambda text: None) -> Candidate:
    """Builds one candidate of a study's supernet and writes it with its files; nothing is measured."""
    return _export.export(request, on_stage)
