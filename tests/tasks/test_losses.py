"""What the task says is minimised, for one label each example and for maps of labels."""

from __future__ import annotations

import math

import pytest
import torch

from qnas_plugin.tasks._losses import of_classes

torch.manual_seed(0)
MAPS, TARGET = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)


def test_losses_of_labels_are_cross_entropy_and_relative_entropy() -> None:
    losses, logits, target = of_classes(), torch.randn(7, 3), torch.randn(7, 3)
    labels = torch.randint(0, 3, (7,))
    own = -logits.log_softmax(-1)[torch.arange(7), labels]
    assert losses.labels(logits, labels).item() == pytest.approx(own.mean().item(), rel=1e-6)
    p = target.softmax(-1)
    expected = (p * (p.log() - logits.log_softmax(-1))).sum() / 7
    assert losses.teacher(logits, target).item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses.teacher(logits, logits).item() == pytest.approx(0, abs=1e-6)


def test_losses_of_maps_are_those_of_all_pixels() -> None:
    """Over image columns, the last axis, it would be another number."""
    maps, rows = of_classes(1, ignored=255), of_classes()
    labels = torch.randint(0, 4, (3, 5, 6))
    labels[:, 0] = 255
    pixels, targets = (x.movedim(1, -1).reshape(-1, 4) for x in (MAPS, TARGET))
    known = labels.reshape(-1) != 255
    expected = rows.labels(pixels[known], labels.reshape(-1)[known]).item()
    assert maps.labels(MAPS, labels).item() == pytest.approx(expected, rel=1e-6)
    expected = rows.teacher(pixels, targets).item()
    assert maps.teacher(MAPS, TARGET).item() == pytest.approx(expected, rel=1e-5)
    assert not math.isclose(rows.teacher(MAPS, TARGET).item(), expected, rel_tol=1e-3)
