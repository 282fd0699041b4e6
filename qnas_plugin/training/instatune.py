"""Elastic fine-tuning: gives a supernet its weights while a pretrained model is fine-tuned for a task.

InstaTune (Sridhar et al. 2023, eq. 1): each step trains the whole supernet S and a random subnet S_i on one batch, S_i
learning from S and both, when there is one, from a strong teacher T:

    a (CE(S) + CE(S_i)) + (1 - a) (g KL(S, T) + (1 - g) KL(S_i, S) + g KL(S_i, T)),   g = 1 with a teacher, else 0

CE and KL are the task's (`data.Losses`): cross-entropy and relative entropy where labels are classes.

Differs: heads, units and channels are sorted by importance before the first step; the smallest subnet can be trained in
each step too (the sandwich rule of Yu and Huang 2019); and subnets can become smaller step by step (progressive
shrinking, Cai et al. 2020, here in all dimensions at once).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qnas_plugin.data import Batch, Dataset, Examples, OnAccess, Processor
from qnas_plugin.errors import UsageError
from qnas_plugin.hardware.turns import between_measurements
from qnas_plugin.space import Candidate
from qnas_plugin.supernets import Supernet
from qnas_plugin.training import state

FIRST_SAVE_S = 10.0
"""Seconds after which the state is kept for the first time."""

SAVE_SHARE = 0.05
"""The share of the time that keeping the state may take."""


IMAGES = "pixel_values"
"""The input that images are, by the name that Hugging Face's models have for it."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    Args:
        epochs: Passes over the training data.
        batch_size: Examples a step in each process.
        learning_rate: The highest, reached after ``warmup`` and then falling linearly to zero.
        weight_decay: Of AdamW.
        warmup: The share of all steps in which the learning rate rises.
        subnets: What is trained in each step beside the whole supernet; ``none`` is plain fine-tuning.
        shrinking: The share of all steps over which choices become allowed, from the largest to the smallest; 0 allows
            all from the start.
        task_weight: The share a of the loss of labels; distillation has the rest.
        augment: Whether each image is mirrored at random and moved by up to an eighth of its size, anew in each step.
        bfloat16: Whether matrix products run in bfloat16.
        seed: Of the data order, the subnets and dropout.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    warmup: float = 0.06
    subnets: Literal["none", "random", "sandwich"] = "random"
    shrinking: float = 0.0
    task_weight: float = 0.3
    augment: bool = False
    bfloat16: bool = False
    seed: int = 0


class Measure(Protocol):
    """The part of a metric (`measure.metrics.metric`) that networks in torch are measured with."""

    def statistics(self, outputs: Mapping[str, npt.NDArray[Any]], expected: Any) -> npt.NDArray[np.float64]:
        """Of each example of a batch, ``(b, s)``."""
        ...

    def scores(self, statistics: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Of all examples, ``(n,)``; their mean is the value."""
        ...


@dataclass(frozen=True)
class Step:
    """Where training stands: steps done of all, the loss of the whole supernet, seconds since this process began."""

    done: int
    total: int
    loss: float
    seconds: float


def train(
    supernet: Supernet,
    dataset: Dataset,
    processor: Processor,
    settings: Settings,
    out: Path,
    *,
    teacher: nn.Module | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    save_every_s: float = 120.0,
) -> bool:
    """Trains the supernet in place on ``dataset.train``; continues what an interrupted call left in ``out``.

    Under ``accelerate launch`` each process takes its share of the batches. The state is kept in ``out/training.pt``:
    first after ``FIRST_SAVE_S``, then every ``save_every_s`` seconds, on Ctrl-C and SIGTERM, and at the end; the caller
    removes it (``state.finish``) once the weights are saved.

    Returns:
        Whether this is the main process, the one that should save and report.

    Raises:
        CheckpointError: ``out`` holds the state of another training.
        OutputError: The state cannot be written.
        UsageError: Images are to be augmented, and the model takes none, or the data has no losses.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    if dataset.losses is None:
        raise UsageError(f"{dataset.source}: its task says no losses, so that nothing can be trained on it")
    inputs = processor.batches(dataset.train.inputs[:1], 1)[0].inputs
    if settings.augment and IMAGES not in inputs:
        raise UsageError(f"there are no images to augment in {', '.join(inputs)}; leave out --augment")
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    steps_an_epoch = -(-len(dataset.train) // (settings.batch_size * accelerator.num_processes))
    total = steps_an_epoch * settings.epochs
    about = state.identity(supernet, dataset, processor, asdict(settings), teacher, accelerator.num_processes)

    optimizer = torch.optim.AdamW(_groups(supernet.model, settings.weight_decay), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _linear(total, settings.warmup))
    done = 0
    stored = state.read(out, about)
    if stored is None:
        if settings.subnets != "none":
            supernet.order(_shuffled(dataset.train, processor, settings, epoch=-1, limit=16))
    else:
        supernet.activate(None)
        supernet.model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        schedule.load_state_dict(stored["schedule"])
        done = int(stored["done"])

    supernet.activate(None)
    model, optimizer = accelerator.prepare(supernet.model, optimizer)
    if teacher is not None:
        teacher = teacher.eval().to(accelerator.device)

    kept = done

    def save() -> None:
        nonlocal kept
        if accelerator.is_main_process:
            supernet.activate(None)
            content = {"identity": about, "done": done, "model": supernet.model.state_dict()}
            content |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            state.write(out, content, f"what is kept is after {kept} of {total} steps")
        kept = done

    rank, size = accelerator.process_index, accelerator.num_processes
    began = time.monotonic()
    due = began + min(FIRST_SAVE_S, save_every_s)
    with _interrupt_later() as interrupted:
        while done < total:
            epoch, first = divmod(done, steps_an_epoch)
            batches = _shuffled(dataset.train, processor, settings, epoch)
            for number in range(first, steps_an_epoch):
                batch = batches[(number * size + rank) % len(batches)]
                torch.manual_seed((settings.seed * total + done) * size + rank)
                subnets = _subnets(supernet, settings, done, total)
                with between_measurements() if size == 1 else nullcontext():  # several would wait for each other
                    loss = _step(supernet, model, teacher, accelerator, batch, dataset, settings, subnets)
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                done += 1
                on_step(Step(done, total, loss, time.monotonic() - began))
                if interrupted.is_set() or time.monotonic() > due:
                    start = time.monotonic()
                    save()
                    due = time.monotonic() + max(save_every_s, (time.monotonic() - start) / SAVE_SHARE)
                if interrupted.is_set():
                    raise KeyboardInterrupt
        if kept < total:
            save()
    supernet.activate(None)
    _estimate_statistics(supernet.model, _shuffled(dataset.train, processor, settings, epoch=-1, limit=64))
    supernet.model.to("cpu").eval()
    return bool(accelerator.is_main_process)


@contextmanager
def _interrupt_later() -> Iterator[threading.Event]:
    """Turns Ctrl-C, SIGTERM and SIGHUP into an event: a step is never left half done; only the main thread can."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@torch.no_grad()
def accuracy(
    supernet: Supernet,
    candidate: Candidate | None,
    examples: Examples,
    processor: Processor,
    *,
    metric: Measure,
    statistics: Examples | None = None,
) -> float:
    """What a candidate, in torch, is worth on some examples; None is the whole supernet.

    Statistics of BatchNorms are estimated anew on the examples given for it, and restored.
    """
    supernet.activate(candidate)
    before = {name: buffer.clone() for name, buffer in supernet.model.named_buffers()}
    if statistics is not None:
        _estimate_statistics(supernet.model, processor.batches(statistics.inputs, 64))
    supernet.model.eval()
    found = []
    for batch in processor.batches(examples.inputs, 64):
        with between_measurements():
            logits = supernet.model(**_tensors(batch, torch.device("cpu"))).logits
        found.append(metric.statistics({"logits": logits.numpy()}, examples.labels[batch.positions]))
    for name, buffer in supernet.model.named_buffers():
        buffer.copy_(before[name])
    supernet.activate(None)
    return float(metric.scores(np.concatenate(found)).mean())


def _step(
    supernet: Supernet,
    model: nn.Module,
    teacher: nn.Module | None,
    accelerator: Any,
    batch: Batch,
    dataset: Dataset,
    settings: Settings,
    subnets: Sequence[Candidate],
) -> float:
    """Adds the gradients of one batch to the whole supernet and some subnets; the loss of the whole supernet."""
    model.train()
    inputs = _tensors(batch, accelerator.device)
    if settings.augment:
        inputs[IMAGES] = _augmented(inputs[IMAGES])
    labels = torch.as_tensor(dataset.train.labels[batch.positions], device=accelerator.device)
    losses = dataset.losses
    assert losses is not None  # `train` checks it
    a = 1.0 if settings.subnets == "none" and teacher is None else settings.task_weight
    target = None

    def forward(network: nn.Module) -> torch.Tensor:
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=settings.bfloat16):
            logits: torch.Tensor = network(**inputs).logits
        return logits.float()

    if teacher is not None:
        with torch.no_grad():
            target = forward(teacher)

    def learn(logits: torch.Tensor, target: torch.Tensor | None) -> float:
        loss = a * losses.labels(logits, labels)
        if target is not None:
            loss = loss + (1 - a) * losses.teacher(logits, target)
        accelerator.backward(loss)
        return float(loss.detach())

    supernet.activate(None)
    whole = forward(model)
    loss = learn(whole, target)
    for subnet in subnets:
        supernet.activate(subnet)
        learn(forward(model), whole.detach() if target is None else target)
    return loss


def _subnets(supernet: Supernet, settings: Settings, done: int, total: int) -> list[Candidate]:
    """What a step trains beside the whole supernet; in the first step after ``done``, of ``total``."""
    space, rng = supernet.space, np.random.default_rng([settings.seed, done])
    genes = []
    if settings.subnets in ("random", "sandwich"):
        genes.append(space.sample(1, rng)[0])
    if settings.subnets == "sandwich":
        genes.append(space.encode(space.corners["smallest-fp32"]))
    allowed = min(1.0, done / (settings.shrinking * total)) if settings.shrinking else 1.0
    smallest = np.floor((1 - allowed) * space.sizes).clip(max=space.sizes - 1).astype(np.int64)
    return [space.decode(np.maximum(own, smallest)) for own in genes]


@torch.no_grad()
def _estimate_statistics(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Gives BatchNorms the average of the batches' statistics, in place of those left by all networks trained."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    device = next(model.parameters()).device
    momenta = [norm.momentum for norm in norms]
    model.train()
    for count, batch in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = 1 / count
        model(**_tensors(batch, device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _shuffled(
    examples: Examples, processor: Processor, settings: Settings, epoch: int, limit: int | None = None
) -> Sequence[Batch]:
    """Batches in a random order that depends on seed and epoch; texts of similar length share a batch.

    Positions are those in ``examples``. Images are encoded at each access: an epoch of them may not fit into memory.
    """
    rng = np.random.default_rng([settings.seed, epoch + 1])
    order = rng.permutation(len(examples))
    chunk = 64 * settings.batch_size
    sources: list[tuple[Sequence[Batch], int, npt.NDArray[np.int64]]] = []
    for start in range(0, len(order), chunk):
        if limit is not None and len(sources) >= limit:
            break
        chosen = order[start : start + chunk]
        batches = processor.batches([examples.inputs[i] for i in chosen], settings.batch_size)
        sources += [(batches, i, chosen) for i in rng.permutation(len(batches)).tolist()]

    def batch(source: tuple[Sequence[Batch], int, npt.NDArray[np.int64]]) -> Batch:
        batches, i, chosen = source
        found = batches[i]
        return Batch(found.inputs, chosen[found.positions])

    return OnAccess(sources[:limit], batch)


def _tensors(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """Inputs of the model; images have their channels last: convolutions on CPUs are 1.3 times as fast or more so."""
    tensors = {name: torch.as_tensor(array, device=device) for name, array in batch.inputs.items()}
    return {
        name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in tensors.items()
    }


def _augmented(images: torch.Tensor) -> torch.Tensor:
    """Images ``(n, c, h, w)``, half of them mirrored, moved by up to an eighth; what moves in is a reflection."""
    count, _, height, width = images.shape
    down, right = height // 8, width // 8
    mirrored = torch.rand(count, device=images.device) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    padded = nn.functional.pad(images, (right, right, down, down), mode="reflect")
    tops, lefts = (torch.randint(2 * most + 1, (count,)).tolist() for most in (down, right))
    moved = [
        image[:, top : top + height, left : left + width] for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    return torch.stack(moved).contiguous(memory_format=torch.channels_last)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and normalisation weights don't."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _linear(total: int, warmup: float) -> Callable[[int], float]:
    rise = max(1, round(total * warmup))
    return lambda step: min((step + 1) / rise, max(0.0, (total - step) / max(1, total - rise)))
