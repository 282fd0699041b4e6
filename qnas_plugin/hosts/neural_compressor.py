"""Neural Compressor 3.7.1: the tuning strategy ``linas``, registered when this module is imported.

    conf = PostTrainingQuantConfig(quant_level=1, tuning_criterion=LinasCriterion("runs/out", max_trials=60))
    model = quantization.fit("model.onnx", conf, calib_dataloader=loader, eval_func=accuracy)
    conf.tuning_criterion.result().to_dataframe()

The whole search stands in place of Neural Compressor's own loop, which quantizes from scratch for each trial, takes one
objective, and calibrates anew each time. What comes out is in QDQ format whatever ``quant_format`` says.
"""

from __future__ import annotations

import glob
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qnas_plugin.commands.loading import assemble, load_hardware
from qnas_plugin.commands.tune import Progress as Searched
from qnas_plugin.commands.tune import tune
from qnas_plugin.data import Dataset, Examples
from qnas_plugin.errors import DataError, QnasError, StudyError, UsageError
from qnas_plugin.hardware.turns import between_measurements
from qnas_plugin.request import TuneRequest
from qnas_plugin.results.member import Result
from qnas_plugin.supernets.onnx_file import onnx_model
from qnas_plugin.tasks import content_key
from qnas_plugin.tasks._array_inputs import ArrayProcessor
from qnas_plugin.tasks.arrays import processor

with warnings.catch_warnings():  # 3.7.1 imports pkg_resources, which warns
    warnings.simplefilter("ignore")
    from neural_compressor import quantization
    from neural_compressor.config import AccuracyCriterion, PostTrainingQuantConfig, TuningCriterion, options
    from neural_compressor.model.onnx_model import ONNXModel
    from neural_compressor.strategy.strategy import TuneStrategy, strategy_registry

log = logging.getLogger("neural_compressor")

EvalFunction = Callable[[onnx.ModelProto], float]
"""Higher is better, in [0, 1]."""


class LinasCriterion(TuningCriterion):  # type: ignore[misc]
    """What Neural Compressor is told to run the strategy ``linas``, and where its result is afterwards.

    Neural Compressor's own criterion takes neither the strategy nor these objectives. The configuration must have
    ``quant_level=1``: with its default, ``"auto"``, another strategy runs.

    Args:
        out: The folder for the Pareto set, the report and the study, as ``qnas tune`` writes them.
        objectives: Two or three of ``accuracy``, ``latency_ms`` (ONNX Runtime on this machine) and ``size_mb``.
        max_trials: Candidates to evaluate in all, those of an earlier, stopped run in this folder included.
        timeout: Seconds after which the search ends with what it has; 0 is no limit.
        strategy_kwargs: Other fields of ``qnas_plugin.request.TuneRequest``: ``seed``, ``population``, ``limits`` ...
    """

    def __init__(
        self,
        out: Path | str,
        *,
        objectives: Sequence[str] = ("accuracy", "latency_ms"),
        max_trials: int = 250,
        timeout: float = 0,
        strategy_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(timeout=timeout, max_trials=max_trials, strategy_kwargs=dict(strategy_kwargs or {}))
        self.out, self.objectives = Path(out), tuple(objectives)
        self.outcome: Result | BaseException | None = None

    @property
    def strategy(self) -> str:
        """The strategy's name; nothing else can be set."""
        return "linas"

    @strategy.setter
    def strategy(self, name: str) -> None:
        pass

    def result(self) -> Result:
        """The outcome of the search; no property, since Neural Compressor reads each attribute before it runs.

        Raises:
            QnasError: What ended the search; Neural Compressor itself only prints it.
            UsageError: No search ran.
        """
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        if self.outcome is None:
            raise UsageError(
                "the strategy linas did not run; give PostTrainingQuantConfig(quant_level=1, ...), with its default "
                "'auto' Neural Compressor takes another strategy"
            )
        return self.outcome


@strategy_registry
class LinasTuneStrategy(TuneStrategy):  # type: ignore[misc]
    """The strategy ``linas``: the joint search of ``qnas tune``, for the model, data and evaluation of a ``fit``."""

    def traverse(self) -> None:
        """Searches, verifies, writes the Pareto set, and takes the recommended member as the best model."""
        criterion = self.config.tuning_criterion
        if not isinstance(criterion, LinasCriterion):
            raise UsageError("the strategy linas needs tuning_criterion=LinasCriterion(...)")
        try:
            result = _search(criterion, self.config, self.model, self.calib_dataloader, self.eval_func)
        except BaseException as error:
            criterion.outcome = error
            if not isinstance(error, QnasError):
                raise
            log.error(str(error))
            return
        criterion.outcome = result
        log.info(result.reason)
        if result.choice is not None and result.choice not in result.baselines:
            self.best_qmodel = ONNXModel(onnx.load(criterion.out / result.choice.folder / "model.onnx"))


def fit(
    model: Path | str | onnx.ModelProto,
    *,
    out: Path | str,
    calib_dataloader: Iterable[Any],
    eval_func: EvalFunction,
    objectives: Sequence[str] = ("accuracy", "latency_ms"),
    max_trials: int = 250,
    timeout: float = 0,
    tolerable_loss: float = 0.01,
    criterion: str = "relative",
    strategy_kwargs: Mapping[str, Any] | None = None,
) -> Result:
    """Neural Compressor's ``quantization.fit`` with the strategy ``linas``, set up as it has to be.

    Args:
        model: The FP32 model.
        calib_dataloader: Gives pairs of inputs and labels, and has a ``batch_size``; a list of pairs has 1.
        eval_func: Gives the accuracy of a model.
        tolerable_loss: How much accuracy the recommended member may lose against FP32.
        criterion: Whether that is ``relative`` or ``absolute``.
        out, objectives, max_trials, timeout, strategy_kwargs: See ``LinasCriterion``.

    Returns:
        The Pareto set; its ``choice`` is the best model within half of the accuracy criterion: ``eval_func`` gives one
        number, on data that the search chose by, so that the other half is margin. It is the FP32 model itself where
        nothing better was found, and None when that breaks a limit.

    Raises:
        QnasError: Something given is wrong.
    """
    linas = LinasCriterion(
        out, objectives=objectives, max_trials=max_trials, timeout=timeout, strategy_kwargs=strategy_kwargs
    )
    conf = PostTrainingQuantConfig(
        quant_level=1,
        tuning_criterion=linas,
        accuracy_criterion=AccuracyCriterion(criterion=criterion, tolerable_loss=tolerable_loss),
    )
    workspace, options.workspace = options.workspace, str(Path(out) / "nc_workspace")  # else in the current folder
    try:
        quantization.fit(
            str(model) if isinstance(model, Path) else model,
            conf,
            calib_dataloader=calib_dataloader if hasattr(calib_dataloader, "batch_size") else _Pairs(calib_dataloader),
            eval_func=_Opaque(eval_func),
        )
    finally:
        options.workspace = workspace
    return linas.result()


class _Pairs:
    """Pairs of inputs and labels as a data loader."""

    batch_size = 1

    def __init__(self, pairs: Iterable[Any]) -> None:
        self._pairs = pairs

    def __iter__(self) -> Any:
        return iter(self._pairs)


class _Opaque:
    """A function whose source Neural Compressor does not read: 3.7.1 refuses any that contains ``import os``."""

    def __init__(self, function: EvalFunction) -> None:
        self._function = function

    def __call__(self, model: onnx.ModelProto) -> float:
        return self._function(model)


def _search(
    criterion: LinasCriterion,
    config: Any,
    model: ONNXModel,
    loader: Iterable[Any] | None,
    evaluate: EvalFunction | None,
) -> Result:
    """The search of ``qnas tune`` for what ``fit`` was given."""
    if loader is None or evaluate is None:
        raise UsageError("the strategy linas needs a calib_dataloader and an eval_func")
    if config.approach != "post_training_static_quant":
        raise UsageError(f"the strategy linas quantizes statically, not by {config.approach}; leave approach out")
    if not config.accuracy_criterion.higher_is_better:
        raise UsageError("the strategy linas needs an accuracy of which more is better; give 1 minus the error")
    criterion.out.mkdir(parents=True, exist_ok=True)
    path = Path(model.model_path) if model.model_path else criterion.out / "original.onnx"
    if not model.model_path:
        onnx.save(model.model, str(path))

    def judge(file: Path) -> float:
        with between_measurements():
            accuracy = float(evaluate(onnx.load(file)))
        if not 0 <= accuracy <= 1:
            raise UsageError(f"eval_func gave {accuracy}; the strategy linas needs an accuracy in [0, 1]")
        return accuracy

    tolerable = float(config.accuracy_criterion.tolerable_loss)
    drop = tolerable * judge(path) if config.accuracy_criterion.relative else tolerable
    asked = {
        "model": str(path),
        "data": "calib_dataloader",
        "out": criterion.out,
        "objectives": criterion.objectives,
        "trials": criterion.max_trials,
        "calibration_samples": config.calibration_sampling_size[0],
        "max_accuracy_drop": drop,
        "keep_fp32": _kept(path, config),
    }
    request = TuneRequest.build(asked | criterion.strategy_kwargs)
    if request.workers is not None or request.cluster is not None:
        raise UsageError(
            "the strategy linas evaluates with eval_func, in this process; leave workers and cluster out, or use: qnas "
            "tune --model ... --data ... --workers ..."
        )
    profile, setting, here = load_hardware(request)
    puts = processor(request.source)
    dataset = _dataset(_examples(loader, puts, request.calibration_samples))
    network = onnx_model.load(request.source, precisions=request.precisions)
    lab = assemble(request, network, dataset, puts, profile, setting, here=here, judge=judge)
    done, began = 0, time.monotonic()

    def on_progress(searched: Searched) -> None:
        nonlocal done
        done = searched.done
        log.info(f"{done} of {searched.total} trials")

    try:
        return tune(request, lab=lab, on_stage=log.info, on_progress=on_progress)
    except KeyboardInterrupt:  # how 3.7.1 tells that the time is up; before that it is Ctrl-C
        if not _time_is_up(criterion, began):
            raise
        if not done:
            raise StudyError("stopped before a trial was finished; give more than these seconds as timeout") from None
        log.info(f"Stopped after {done} trials")
        return tune(request.model_copy(update={"trials": done}), lab=lab, on_stage=log.info)


def _time_is_up(criterion: LinasCriterion, began: float) -> bool:
    """Whether a search that began then has used the seconds that it was given; 0 is no limit."""
    return bool(criterion.timeout) and time.monotonic() - began >= criterion.timeout - 1


def _kept(path: Path, config: Any) -> tuple[str, ...]:
    """The layers that the configuration wants in FP32, as patterns that match nothing else.

    Raises:
        UsageError: It wants something other than FP32 of a layer, or names one that there is not.
    """
    model = onnx_model.load(str(path))
    nodes = [(node.name, node.op_type) for node in model.outline.model.graph.node]
    kept = []
    for which, wanted in ((0, config.op_name_dict), (1, config.op_type_dict)):
        for pattern, settings in (wanted or {}).items():
            if any(part.get("dtype") != ["fp32"] for part in settings.values()):
                raise UsageError(f"the strategy linas searches the precision itself; '{pattern}' can only be fp32")
            names = [node[0] for node in nodes if re.fullmatch(pattern, node[which])]
            if not names:
                raise UsageError(f"'{pattern}' matches no node of {path}; see the names with: qnas show {path}")
            kept += names
    layers = {name for names in model.groups.values() for name in names}
    return tuple(glob.escape(name) for name in kept if name in layers)


def _examples(loader: Iterable[Any], puts: ArrayProcessor, count: int) -> list[dict[str, Any]]:
    """The first examples of a data loader: apart where the model has a free batch axis, else a batch each.

    Raises:
        DataError: The loader gives something other than pairs of inputs and labels.
    """
    examples: list[dict[str, Any]] = []
    for item in loader:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"calib_dataloader gives {type(item).__name__}; it must give pairs of inputs and labels")
        given = item[0]
        if not isinstance(given, Mapping):
            given = dict(zip(puts.names, given if isinstance(given, tuple | list) else [given], strict=False))
        batch = {name: np.asarray(given[name]) for name in puts.names if name in given}
        sizes = {len(array) for array in batch.values() if array.ndim}
        if puts.batched and len(sizes) == 1:
            examples += [{name: array[i] for name, array in batch.items()} for i in range(sizes.pop())]
        else:
            examples.append(batch)
        if len(examples) >= count:
            break
    return examples[:count]


def _dataset(examples: Sequence[Mapping[str, Any]]) -> Dataset:
    """Calibration data alone: the host evaluates."""
    if not examples:
        raise DataError("calib_dataloader gives nothing")
    content = [
        part for example in examples for name, array in example.items() for part in (name.encode(), array.tobytes())
    ]
    none = Examples([], np.array([], dtype=np.int64))
    return Dataset(
        train=none,
        calibration=Examples(examples, np.zeros(len(examples), dtype=np.int64)),
        search=none,
        selection=none,
        report=none,
        label_names=(),
        metric="accuracy",
        fingerprint=content_key(*content).hex()[:12],
        source="calib_dataloader and eval_func of Neural Compressor",
    )
