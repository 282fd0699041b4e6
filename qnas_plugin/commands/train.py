"""Training as a command: a request in, a supernet checkpoint out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from qnas_plugin import registry
from qnas_plugin.data import Dataset, Processor
from qnas_plugin.errors import CheckpointError, OutputError, UsageError
from qnas_plugin.files import make_folder, move_files
from qnas_plugin.files.locks import alone_in, scratch
from qnas_plugin.hardware import machine
from qnas_plugin.measure.metrics import load as load_metric
from qnas_plugin.request import TrainRequest
from qnas_plugin.supernets import Elastic, Supernet, check_labels, check_trained
from qnas_plugin.supernets._checkpoint import SUPERNET_FILE, read_record
from qnas_plugin.training import instatune, state


def train(
    request: TrainRequest,
    *,
    on_stage: Callable[[str], None] = lambda text: None,
    on_step: Callable[[instatune.Step], None] = lambda step: None,
) -> dict[str, Any] | None:
    """Trains a supernet and writes it to ``request.out``; continues what a stopped run left there.

    A supernet that the same request finished is left as it is.

    Returns:
        What ``supernet.json`` records of the training; None in the helper processes of ``accelerate launch``.

    Raises:
        QnasError: The request cannot be met.
    """
    _check_apart(request)
    make_folder(request.out)
    main = os.environ.get("RANK", "0") == "0"
    with alone_in(request.out) if main else nullcontext():
        on_stage("Loading the data and the checkpoint")
        loaded = _Loaded.of(request)
        about = state.identity(
            loaded.supernet,
            loaded.dataset,
            loaded.processor,
            vars(loaded.settings),
            loaded.teacher.model if loaded.teacher else None,
            int(os.environ.get("WORLD_SIZE", "1")),
        )
        finished = _finished(request, about)
        if finished is not None:
            on_stage(f"Already finished: {request.out} holds the supernet of this very training")
            return finished if main else None
        return loaded.train(request, about, on_stage, on_step)


@dataclass(frozen=True)
class _Loaded:
    """What a request names."""

    dataset: Dataset
    processor: Processor
    supernet: Any
    teacher: Supernet | None
    settings: instatune.Settings

    @classmethod
    def of(cls, request: TrainRequest) -> _Loaded:
        task, family = registry.load("tasks", request.task), registry.load("supernets", request.supernet)
        dataset = task.load(request.data, sizes=request.sizes)
        processor = task.processor(request.checkpoint, max_length=request.max_length)
        elastic = Elastic(**{field.name: getattr(request, field.name) for field in fields(Elastic)})
        supernet = family.load(request.checkpoint, label_names=dataset.label_names, elastic=elastic)
        check_labels(supernet, dataset.label_names, request.data)
        teacher = None
        if request.teacher is not None:
            teacher = family.load(request.teacher)
            check_trained(teacher, request.teacher)
            check_labels(teacher, dataset.label_names, request.data)
        bfloat16 = request.arithmetic == "bf16" or (
            request.arithmetic == "auto" and not {"avx512_bf16", "amx_bf16"}.isdisjoint(machine.detect().isa)
        )
        names = {field.name for field in fields(instatune.Settings)} & set(type(request).model_fields)
        settings = instatune.Settings(bfloat16=bfloat16, **request.model_dump(include=names))
        return cls(dataset, processor, supernet, teacher, settings)

    def train(
        self,
        request: TrainRequest,
        about: Mapping[str, Any],
        on_stage: Callable[[str], None],
        on_step: Callable[[instatune.Step], None],
    ) -> dict[str, Any] | None:
        """Trains, measures and saves; the record."""
        supernet, dataset, processor = self.supernet, self.dataset, self.processor
        if supernet.new_head:
            on_stage(f"The head is new, the checkpoint has none for these classes: {', '.join(supernet.new_head)}")
        arithmetic = "bfloat16" if self.settings.bfloat16 else "float32"
        start = "from the checkpoint's weights" if supernet.pretrained else "from random weights"
        on_stage(f"Training on {len(dataset.train)} examples in {arithmetic}, {start}")
        began = time.monotonic()
        main = instatune.train(
            supernet,
            dataset,
            processor,
            self.settings,
            request.out,
            teacher=self.teacher.model if self.teacher is not None else None,
            on_step=on_step,
        )
        if not main:
            return None
        seconds = time.monotonic() - began
        on_stage("Measuring accuracy")
        metric = load_metric(dataset.metric)
        smallest = supernet.space.corners["smallest-fp32"]
        supernet.training = {
            "request": request.model_dump(mode="json"),
            "identity": dict(about),
            "bfloat16": self.settings.bfloat16,
            "seconds_in_last_run": seconds,
            "data": dataset.fingerprint,
            "accuracy": {
                "largest_search": instatune.accuracy(supernet, None, dataset.search, processor, metric=metric),
                "smallest_search": instatune.accuracy(
                    supernet, smallest, dataset.search, processor, metric=metric, statistics=dataset.calibration
                ),
            },
        }
        _save(supernet, processor, request.out)
        state.finish(request.out)
        return dict(supernet.training)


def _check_apart(request: TrainRequest) -> None:
    """Keeps a training from its own inputs.

    Raises:
        UsageError: What it reads would be overwritten.
    """
    for option, name in (("checkpoint", request.checkpoint), ("teacher", request.teacher)):
        if name is not None and Path(name).exists() and request.out.exists() and request.out.samefile(name):
            raise UsageError(f"--out is the folder of --{option}, {name}, and would overwrite it; give another --out")


def _finished(request: TrainRequest, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a supernet that the same training finished; None where this one is to begin or to go on.

    Raises:
        OutputError: The folder holds another model, which is not to be replaced.
    """
    weights = ("*.safetensors", "*.pth", "pytorch_model*.bin", SUPERNET_FILE)
    if (request.out / state.RESUME_FILE).exists() or not any(any(request.out.glob(name)) for name in weights):
        return None
    what = "a model that qnas train did not write"
    if (request.out / SUPERNET_FILE).is_file():
        try:
            record = read_record(str(request.out), request.supernet)
        except CheckpointError as error:
            what = f"a supernet that is not this one ({error})"
        else:
            assert record is not None
            found: dict[str, Any] = record["training"]
            names = _changed(found, request, about)
            if not names:
                return found
            what = f"a finished supernet, trained with another {names[0]}"
    if request.overwrite:
        return None
    raise OutputError(f"{request.out} holds {what}; give another --out, or --overwrite to replace it")


def _changed(found: Mapping[str, Any], request: TrainRequest, about: Mapping[str, Any]) -> list[str]:
    """What differs between a finished training and this one; older versions recorded the request alone."""
    if "identity" in found:
        return state.differing(found["identity"], about)
    then, now = (
        {name: value for name, value in record.items() if name not in ("out", "overwrite")}
        for record in (found.get("request", {}), request.model_dump(mode="json"))
    )
    defaults = {name: field.default for name, field in TrainRequest.model_fields.items()}  # of options added since
    return sorted(name for name in now if then.get(name, defaults[name]) != now[name])


def _save(supernet: Supernet, processor: Processor, out: Path) -> None:
    """Writes the checkpoint, its record last; what is there stays as it is until all of it is written.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        with scratch(out) as folder:
            supernet.save(folder)
            processor.save(folder)
            move_files(folder, out, last=SUPERNET_FILE)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(
            f"cannot write the supernet to {out}: {reason}; the training is kept in {state.RESUME_FILE}, make room and "
            "give the same command"
        ) from error
