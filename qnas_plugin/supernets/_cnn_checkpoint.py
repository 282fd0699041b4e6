"""Checkpoints of convolutional supernets: our own folders, and the layout that Once-for-All publishes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qnas_plugin.errors import CheckpointError, UsageError, door
from qnas_plugin.files.doors import check_files, read_json
from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.supernets import Elastic
from qnas_plugin.supernets._checkpoint import check_size, check_tensors, read_record, seeded
from qnas_plugin.supernets._cnn import WEIGHTS_FILE, CnnSupernet, Plan
from qnas_plugin.supernets._cnn_layers import start

Build = Callable[[Any, Elastic], tuple[nn.Module, Plan]]
"""Configuration and choices to the network and its plan."""


def load_cnn(
    family: str,
    config_class: Any,
    defaults: Mapping[str, Any],
    elastic_of: Callable[[Any], Elastic],
    build: Build,
    checkpoint: str,
    label_names: Sequence[str] | None,
    elastic: Elastic | None,
    precisions: Precisions | None,
) -> CnnSupernet:
    """Loads a folder with a configuration and, unless random ones are wanted, weights.

    Weights are what ``CnnSupernet.save`` wrote, or one ``*.pth`` file in the layout that OFA publishes.

    Args:
        family: The registered name.
        config_class: The Hugging Face configuration that stands beside the weights.
        defaults: Fields of ours in it, and what they are where the file has none.
        elastic_of: The choices of a configuration that records none.
        build: Makes the network.
        checkpoint: The folder.
        label_names: For a checkpoint that no training of ours wrote: the classes that a new classifier is for.
        elastic: Choices asked for; they replace the recorded ones.
        precisions: What the user says of the precision of groups.

    Raises:
        CheckpointError: There is no such folder, or it is damaged or of another model type.
        UsageError: The choices don't fit the model.
    """
    folder = Path(checkpoint)
    path = folder / "config.json"
    if not path.is_file():
        what = "a folder without config.json" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"cannot load the checkpoint '{checkpoint}': {what}; examples/shapes has configurations")
    record = read_record(checkpoint, family)
    values = read_json(path, CheckpointError, "restore the file")
    with door(CheckpointError, f"{path} is no configuration of '{family}'"):
        if values.get("model_type") != config_class.model_type:
            raise CheckpointError(
                f"{checkpoint} is a '{values.get('model_type')}' model; the supernet '{family}' takes "
                f"{config_class.model_type}"
            )
        config = config_class(**{**defaults, **values})
        if record is None and label_names is not None:
            config.id2label = dict(enumerate(label_names))
            config.label2id = {name: i for i, name in enumerate(label_names)}
        largest = elastic_of(config)
        chosen = record["elastic"] if record else largest
        if elastic is not None:
            chosen = replace(chosen, **{name: choices for name, choices in asdict(elastic).items() if choices})
        _check(chosen, largest, family)
        check_size(config, lambda: build(config, chosen)[0])
        with seeded(0):
            model, plan = build(config, chosen)
            start(model)
    model.config = config
    state = _read_weights(folder)
    new_head: tuple[str, ...] = ()
    if state is not None:
        new_head = _fill(model, state, folder, new_classes=record is None and label_names is not None)
    training = record["training"] if record else None
    supernet = CnnSupernet(
        model.eval(),
        plan,
        family,
        chosen,
        precisions=precisions,
        pretrained=state is not None,
        new_head=new_head,
        training=training,
    )
    supernet.precisions.check(tuple(supernet.groups))
    return supernet


def ofa_name(name: str) -> str:
    """Our name of a tensor of an OFA checkpoint.

    OFA (github.com/mit-han-lab/once-for-all, ``elastic_nn/modules``) wraps each layer in modules of the same name, more
    of them in its elastic networks than in plain ones, and blocks in a residual module whose name changed.
    """
    name = (
        name.removeprefix("module.").replace(".mobile_inverted_conv.", ".conv.").replace(".depth_conv.se.fc.", ".se.")
    )
    name = re.sub(r"^(blocks\.\d+)\.conv\.", r"\1.", name)
    name = re.sub(r"(\.conv)+\.weight$", ".conv.weight", name)
    name = re.sub(r"(\.conv)+\.(\d+to\d+_matrix)$", r".conv.\2", name)
    name = re.sub(r"(\.conv)*(\.bn)+\.", ".bn.", name)
    return re.sub(r"(\.linear)+\.", ".", name)


def _read_weights(folder: Path) -> dict[str, torch.Tensor] | None:
    """Tensors by our names; None where there is no file."""
    from safetensors.torch import load_file

    own, published = folder / WEIGHTS_FILE, sorted(folder.glob("*.pth"))
    with door(CheckpointError, f"cannot read the weights in {folder}", "restore the file"):
        check_files(folder)
        if own.is_file():
            return dict(load_file(own))
        if len(published) > 1:
            raise CheckpointError(f"{folder} has {len(published)} .pth files; leave one")
        if not published:
            return None
        content: Any = torch.load(published[0], weights_only=True, map_location="cpu")
        state = content.get("state_dict", content)
        return {ofa_name(name): tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def _fill(model: nn.Module, state: dict[str, torch.Tensor], folder: Path, *, new_classes: bool) -> tuple[str, ...]:
    """Copies weights into a model; with new classes, a classifier of other ones is left out.

    Returns:
        The tensors of the classifier that stay as they are.

    Raises:
        CheckpointError: A tensor is missing, unknown, or of another shape.
    """
    wanted = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    missing: dict[str, str] = {}
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            state[name] = tensor
        elif name not in state or state[name].shape != tensor.shape:
            got = f"has the shape {tuple(state[name].shape)}" if name in state else "is missing"
            missing[name] = f"of shape {tuple(tensor.shape)} {got}"
            state[name] = tensor
    stray = sorted(state.keys() - wanted.keys())
    new = check_tensors(
        folder, missing, stray, is_head=lambda name: name.startswith("classifier."), may_be_new=new_classes
    )
    model.load_state_dict(state)
    return new


def _check(chosen: Elastic, largest: Elastic, family: str) -> None:
    allowed = [name for name, choices in asdict(largest).items() if choices]
    for name, choices in asdict(chosen).items():
        if choices and name not in allowed:
            raise UsageError(f"'{family}' has no elastic {name}; it has: {', '.join(allowed)}")
        own = asdict(largest)[name]
        if own and (list(choices) != sorted(set(choices)) or choices[0] < 0 or choices[-1] != own[-1]):
            raise UsageError(
                f"the choices for {name} must be ascending, positive and end with the model's own {own[-1]}; "
                f"got {', '.join(map(str, choices))}"
            )
