"""The files of weights that Microsoft publishes for BEiT-3."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qnas_plugin.errors import CheckpointError, door
from qnas_plugin.files.doors import check_files
from qnas_plugin.supernets._beit3_model import FIRST_POSITION
from qnas_plugin.supernets._checkpoint import check_tensors

POSITIONS = "beit3.encoder.embed_positions.A.weight"
BODY, HEADS = "beit3.", ("head.", "pooler.", "fc_norm.")
LEFT_OUT = re.compile(r"\.B\.|^beit3\.text_embed\.|\.mask_token$")
"""What of the body a model for images lacks, or any model that is not pretrained further."""


def published(folder: Path) -> Path | None:
    """The file of a folder.

    Raises:
        CheckpointError: There are several.
    """
    files = sorted(folder.glob("*.pth"))
    if len(files) > 1:
        raise CheckpointError(f"{folder} has {len(files)} .pth files; leave one")
    return files[0] if files else None


@torch.no_grad()
def fill(model: nn.Module, path: Path, *, new_head: bool) -> tuple[str, ...]:
    """Copies the weights of a file into a model.

    What the model has no place for stays out: the words' experts in a model for images, and what only pretraining has.
    Positions of another number of patches are stretched.

    Args:
        model: With the file's names.
        path: Of the file.
        new_head: Whether a head that is missing, or of other classes, stays as it is.

    Returns:
        The tensors of the head that stayed as they are.

    Raises:
        CheckpointError: The file is damaged, or a tensor is missing, of another shape, or one that the model lacks.
    """
    with door(CheckpointError, f"cannot read the weights in {path}", "restore the file"):
        check_files(path)
        content: Any = torch.load(path, weights_only=True, map_location="cpu")
        state = content.get("model", content.get("module", content))
        state = {name: tensor.float() for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    wanted = model.state_dict()
    if POSITIONS in state:
        state[POSITIONS] = _stretched(state[POSITIONS], len(wanted[POSITIONS]))
    missing: dict[str, str] = {}
    for name, tensor in wanted.items():
        if name in state and state[name].shape == tensor.shape:
            tensor.copy_(state[name])
        else:
            got = f"has the shape {tuple(state[name].shape)}" if name in state else "is missing"
            missing[name] = f"of shape {tuple(tensor.shape)} {got}"
    stray = [name for name in state if name not in wanted and name.startswith(BODY) and not LEFT_OUT.search(name)]
    return check_tensors(path, missing, stray, is_head=lambda name: name.startswith(HEADS), may_be_new=new_head)


def _stretched(positions: torch.Tensor, rows: int) -> torch.Tensor:
    """Positions of a square of patches for another square, after those of padding and the class token."""
    first = FIRST_POSITION + 1
    before, after = (round((count - first) ** 0.5) for count in (len(positions), rows))
    if before == after or first + before**2 != len(positions):
        return positions
    square = positions[first:].T.reshape(1, -1, before, before)
    square = nn.functional.interpolate(square, size=(after, after), mode="bicubic", align_corners=False)
    return torch.cat([positions[:first], square.flatten(2)[0].T])
