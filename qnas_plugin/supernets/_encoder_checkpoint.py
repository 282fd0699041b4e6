"""Checkpoints of Hugging Face encoders, plain ones and those of supernets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qnas_plugin.errors import CheckpointError, door
from qnas_plugin.files.doors import check_files
from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.supernets import Elastic
from qnas_plugin.supernets._checkpoint import check_size, check_tensors, quiet_transformers, read_record, seeded
from qnas_plugin.supernets._encoder import EncoderSupernet, Layout

POOLER = re.compile(r"(^|\.)pooler\.")
"""The part of a body that only some heads use."""

UNUSED = re.compile(r"(^|\.)(mask_token|position_ids)$")
"""Tensors that no classifier computes with."""


def load_encoder(
    layouts: Mapping[str, tuple[Any, Layout]],
    checkpoint: str,
    label_names: Sequence[str] | None,
    default: Callable[[int, int, int], Elastic],
    elastic: Elastic | None,
    precisions: Precisions | None,
    config_class: Any = None,
) -> EncoderSupernet:
    """Loads a Hugging Face checkpoint, or one that ``EncoderSupernet.save`` wrote, as a supernet.

    Args:
        layouts: A ``model_type`` or architecture, as the configuration names it, to the class whose
            ``from_pretrained`` builds the model with its head, and to where the parts are.
        checkpoint: A name or a folder; a folder with a configuration and no weights gives random ones.
        label_names: For a checkpoint without a trained head: the classes that a new one is for.
        default: Number of layers, heads and feed-forward width to the choices of a checkpoint that records none.
        elastic: Choices asked for; they replace the recorded ones.
        precisions: What the user says of the precision of groups.
        config_class: Of the configuration; None leaves it to Transformers.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged or of another model type.
        UsageError: The choices don't fit the model.
    """
    from transformers import AutoConfig

    config_class = config_class or AutoConfig
    family = next(layout.family for _, layout in layouts.values())
    record = read_record(checkpoint, family)
    folder = Path(checkpoint)
    options: dict[str, Any] = {"attn_implementation": "eager", "trust_remote_code": False}
    if label_names is not None and record is None:
        options |= {
            "num_labels": len(label_names),
            "id2label": dict(enumerate(label_names)),
            "label2id": {name: i for i, name in enumerate(label_names)},
        }
    new_head: tuple[str, ...] = ()
    problem = f"cannot load the checkpoint '{checkpoint}'"
    if not folder.exists():
        problem += ": there is no such folder, and as a Hugging Face name"
    with door(CheckpointError, problem):
        check_files(folder)
        with quiet_transformers(), seeded(0):
            config = config_class.from_pretrained(checkpoint, trust_remote_code=False)
            known = [name for name in (config.model_type, *(config.architectures or ())) if name in layouts]
            if not known:
                raise CheckpointError(
                    f"{checkpoint} is a '{config.model_type}' model; the supernet '{family}' takes {', '.join(layouts)}"
                )
            model_class, layout = layouts[known[0]]
            check_size(config, lambda: model_class._from_config(config, attn_implementation="eager"))
            pretrained = not folder.is_dir() or any(
                [*folder.glob("*.safetensors*"), *folder.glob("pytorch_model*.bin*")]
            )
            if pretrained:
                model, found = model_class.from_pretrained(
                    checkpoint, ignore_mismatched_sizes=True, output_loading_info=True, **options
                )
                new_head = _check_weights(model, checkpoint, found, trained=record is not None, labels=label_names)
            else:
                config = config_class.from_pretrained(checkpoint, **options)
                model = model_class._from_config(config, attn_implementation="eager")
    try:
        ffn = int(model.get_submodule(f"{layout.layers}.0.{layout.linears['intermediate'][0]}").out_features)
    except AttributeError as error:
        raise CheckpointError(
            f"the layers of '{checkpoint}' are of a kind that '{family}' does not have: {error}"
        ) from None
    with door(CheckpointError, problem):
        chosen = record["elastic"] if record else default(config.num_hidden_layers, config.num_attention_heads, ffn)
        if elastic is not None:
            chosen = replace(chosen, **{name: choices for name, choices in asdict(elastic).items() if choices})
        supernet = EncoderSupernet(
            model.float().eval(),
            layout,
            chosen,
            precisions=precisions,
            pretrained=pretrained,
            new_head=new_head,
            training=record["training"] if record else None,
        )
        supernet.precisions.check(tuple(supernet.groups))
        return supernet


def _check_weights(
    model: Any, checkpoint: str, found: Mapping[str, Any], *, trained: bool, labels: Sequence[str] | None
) -> tuple[str, ...]:
    """Checks what Transformers says of the tensors of a checkpoint, which it otherwise makes up for by random ones.

    Args:
        model: As it was loaded.
        checkpoint: Where from.
        found: The loading information.
        trained: Whether training of ours wrote it: then nothing may be missing.
        labels: The classes that a new head is for, where the caller has some.

    Returns:
        The tensors of the head, where it is new.

    Raises:
        CheckpointError: Other tensors are missing, of another shape, or unexpected.
    """
    body = model.base_model_prefix
    parts = tuple(f"{name}." for name, _ in getattr(model, body).named_children())

    def is_head(name: str) -> bool:
        """Of names with the body's prefix, and of those without in checkpoints of the body alone."""
        return POOLER.search(name) is not None or not name.startswith((f"{body}.", *parts))

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = {
        name: f"of shape {shapes.get(name, '?')} is missing"
        for name in sorted(found["missing_keys"])
        if not UNUSED.search(name)
    }
    reshaped = sorted(key if isinstance(key, str) else key[0] for key in found["mismatched_keys"])
    others = {name: f"of shape {shapes[name]} has another shape" for name in reshaped}
    stray = [name for name in sorted(found["unexpected_keys"]) if not (UNUSED.search(name) or POOLER.search(name))]
    if labels is None:
        check_tensors(checkpoint, others, (), is_head=is_head, may_be_new=False)
    return check_tensors(checkpoint, missing | others, stray, is_head=is_head, may_be_new=not trained)


def scaled(largest: int, fractions: Sequence[float], multiple: int = 1) -> tuple[int, ...]:
    """Fractions of a size, rounded to a multiple, ascending, without repeats; ends with the size itself."""
    sizes = {max(multiple, round(largest * fraction / multiple) * multiple) for fraction in fractions}
    return (*sorted(size for size in sizes if size < largest), largest)
