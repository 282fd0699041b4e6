"""What training minimises where labels are classes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from qnas_plugin.data import Losses

if TYPE_CHECKING:
    import torch


def of_classes(axis: int = -1, *, ignored: int = -100) -> Losses:
    """Cross-entropy with labels, and relative entropy to what a teacher gives; each the mean over labels.

    Args:
        axis: That of the classes in the logits: the last, or 1 for maps ``(b, classes, h, w)``.
        ignored: The label of what is not to be learnt.
    """
    return Losses(partial(_cross_entropy, axis=axis, ignored=ignored), partial(_divergence, axis=axis))


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, *, axis: int, ignored: int) -> torch.Tensor:
    from torch.nn import functional

    return functional.cross_entropy(logits.movedim(axis, 1), labels, ignore_index=ignored)


def _divergence(logits: torch.Tensor, target: torch.Tensor, *, axis: int) -> torch.Tensor:
    """KL(target || logits)."""
    from torch.nn import functional

    summed = functional.kl_div(logits.log_softmax(axis), target.log_softmax(axis), log_target=True, reduction="sum")
    return summed / (logits.numel() // logits.shape[axis])
