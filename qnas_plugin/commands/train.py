"""Training as a command: a request in, a supernet checkpoint out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from qnas_plugin import hardware, registry
from qnas_plugin.files import make_folder
from qnas_plugin.request import TrainRequest
from qnas_plugin.space import Precision
from qnas_plugin.supernets import Elastic, check_labels, check_trained
from qnas_plugin.training import instatune


def train(
    request: TrainRequest,
    *,
    on_stage: Callable[[str], None] = lambda text: None,
    on_step: Callable[[instatune.Step], None] = lambda step: None,
) -> dict[str, Any] | None:
    """Trains a supernet and writes it to ``request.out``; continues what a stopped run left there.

    Returns:
        What ``supernet.json`` records of the training; None in the helper processes of ``accelerate launch``.

    Raises:
        QnasError: The request cannot be met.
    """
    on_stage("Loading the data and the checkpoint")
    make_folder(request.out)
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
        request.arithmetic == "auto" and not {"avx512_bf16", "amx_bf16"}.isdisjoint(hardware.detect().isa)
    )
    names = {field.name for field in fields(instatune.Settings)} & set(type(request).model_fields)
    settings = instatune.Settings(bfloat16=bfloat16, **request.model_dump(include=names))

    if supernet.new_head:
        on_stage(f"The head is new, the checkpoint has none for these classes: {', '.join(supernet.new_head)}")
    start = "from the checkpoint's weights" if supernet.pretrained else "from random weights"
    on_stage(f"Training on {len(dataset.train)} examples in {'bfloat16' if bfloat16 else 'float32'}, {start}")
    began = time.monotonic()
    main = instatune.train(
        supernet,
        dataset,
        processor,
        settings,
        request.out,
        teacher=teacher.model if teacher is not None else None,
        on_step=on_step,
    )
    if not main:
        return None
    seconds = time.monotonic() - began
    on_stage("Measuring accuracy")
    space = supernet.space
    smallest = supernet.cut(space.corner("smallest", Precision.FP32))
    supernet.training = {
        "request": request.model_dump(mode="json"),
        "bfloat16": bfloat16,
        "seconds_in_last_run": seconds,
        "data": dataset.fingerprint,
        "accuracy": {
            "largest_search": instatune.accuracy(supernet, None, dataset.search, processor),
            "smallest_search": instatune.accuracy(
                supernet, smallest, dataset.search, processor, statistics=dataset.calibration
            ),
        },
    }
    supernet.save(request.out)
    processor.save(request.out)
    instatune.finish(request.out)
    return dict(supernet.training)
