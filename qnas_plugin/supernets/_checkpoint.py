"""What checkpoints of all supernets share: a record beside the weights, fingerprints, quiet and repeatable loading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qnas_plugin.errors import CheckpointError
from qnas_plugin.files import write_json
from qnas_plugin.space import SearchSpace
from qnas_plugin.supernets import Elastic

SUPERNET_FILE = "supernet.json"
SCHEMA_VERSION = 1
NAMED = 3
"""How many tensors an error names."""


def fingerprint(model: nn.Module, space: SearchSpace) -> str:
    """Twelve hexadecimal digits of the weights and the space."""
    digest = hashlib.sha256(space.fingerprint.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def write_record(folder: Path, family: str, elastic: Elastic, training: Mapping[str, Any]) -> None:
    """Writes what a checkpoint is beside its weights."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "supernet": family,
        "elastic": asdict(elastic),
        "training": dict(training),
    }
    write_json(folder / SUPERNET_FILE, record)


def read_record(checkpoint: str, family: str) -> dict[str, Any] | None:
    """What ``Supernet.save`` wrote beside the weights; None for a plain Hugging Face checkpoint.

    Raises:
        CheckpointError: The file is malformed, newer than this program, or of another family.
    """
    path = Path(checkpoint) / SUPERNET_FILE
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, found = int(record["schema_version"]), record["supernet"]
        record["elastic"] = Elastic(**{name: tuple(choices) for name, choices in record["elastic"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); train again or restore the file") from None
    if version > SCHEMA_VERSION:
        raise CheckpointError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; update it")
    if found != family:
        raise CheckpointError(f"{checkpoint} is a '{found}' supernet, not '{family}'; use --supernet {found}")
    return record


def check_tensors(
    source: str | Path,
    missing: Mapping[str, str],
    unexpected: Iterable[str],
    *,
    is_head: Callable[[str], bool],
    may_be_new: bool,
) -> tuple[str, ...]:
    """Checks that weights are those of a model; only its head may be new, and then replaces another one.

    Args:
        source: Where the weights are.
        missing: Tensors of the model that were not found, each with what is wrong: ``of shape (2, 32) is missing``.
        unexpected: Tensors that the model does not have.
        is_head: Whether a tensor belongs to a head, of this model or of another one.
        may_be_new: Whether the head may be new.

    Returns:
        The missing tensors, all of the head.

    Raises:
        CheckpointError: Others are missing or unexpected; it names them.
    """
    wrong = [f"tensor '{name}' {what}" for name, what in missing.items() if not (may_be_new and is_head(name))]
    stray = [f"the model has no tensor '{name}'" for name in unexpected if not (missing and is_head(name))]
    if wrong or stray:
        shown = [*wrong[:NAMED], *stray[:NAMED]]
        more = len(wrong) + len(stray) - len(shown)
        raise CheckpointError(
            f"{source}: {', '.join(shown)}{f', and {more} more' if more else ''}; check config.json, or whether the "
            "file of weights is whole"
        )
    return tuple(missing)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps notes about new or unused heads, and retries of downloads, from the user; errors still raise."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    before = [(log, log.get_verbosity()) for log in (logging, hub)]
    for log, _ in before:
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, verbosity in before:
            log.set_verbosity(verbosity)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A fixed torch seed inside, the caller's random state after: a new head gets the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
