"""Data and metrics for the text models of ``rapidocr-onnxruntime``: words rendered by Pillow, with its own font."""

from __future__ import annotations

import pydoc_data.topics
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFilter, ImageFont

MODELS = Path(str(find_spec("rapidocr_onnxruntime").origin)).parent / "models"  # not imported: it needs OpenCV
RECOGNISER = MODELS / "ch_PP-OCRv4_rec_infer.onnx"
DIRECTION = MODELS / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
LINES = 600


def lines() -> dict[str, np.ndarray]:
    """Images ``x``, ``(n, 3, 48, 320)``, of two or three words, and the words."""
    rng = np.random.default_rng(0)
    texts = [_text(rng) for _ in range(LINES)]
    return {"x": np.stack([_encode(_draw(text, rng), 320) for text in texts]), "labels": np.array(texts)}


def directions() -> dict[str, np.ndarray]:
    """Images ``x``, ``(n, 3, 48, 192)``, of one or two words, and whether they stand upside down."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 2 * LINES)
    images = [_draw(_text(rng, longest=2), rng).rotate(180 * int(label)) for label in labels]
    return {"x": np.stack([_encode(image, 192) for image in images]), "labels": labels}


def characters(outputs: dict[str, np.ndarray], labels: np.ndarray) -> list[float]:
    """One minus the edit distance between what is read and what was written, by the length of the longer."""
    (scores,) = outputs.values()
    read = [_decode(row) for row in scores.argmax(axis=-1)]
    return [1 - _distance(text, label) / max(len(text), len(label)) for text, label in zip(read, labels, strict=True)]


@cache
def _words() -> list[str]:
    return sorted(set(re.findall(r"\b[A-Za-z]{3,10}\b", " ".join(pydoc_data.topics.topics.values()))))


def _text(rng: np.random.Generator, longest: int = 3) -> str:
    return " ".join(str(word) for word in rng.choice(_words(), size=int(rng.integers(longest - 1, longest + 1))))


def _draw(text: str, rng: np.random.Generator) -> Image.Image:
    """Dark text on light ground, tilted, blurred and noisy."""
    font = ImageFont.load_default(size=int(rng.integers(16, 34)))
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("L", (int(right - left) + 24, int(bottom - top) + 16), int(rng.integers(150, 256)))
    ImageDraw.Draw(image).text((12 - left, 8 - top), text, int(rng.integers(0, 90)), font)
    image = image.rotate(float(rng.uniform(-3, 3)), Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0)))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.6))))
    noisy = np.asarray(image) + rng.normal(0, rng.uniform(0, 25), image.size[::-1])
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _encode(image: Image.Image, width: int) -> np.ndarray:
    """As rapidocr does: height 48, values in [-1, 1], zeros to the right."""
    resized = image.resize((min(width, round(48 * image.width / image.height)), 48), Image.Resampling.BILINEAR)
    pixels = np.zeros((3, 48, width), dtype=np.float32)
    pixels[:, :, : resized.width] = np.asarray(resized, dtype=np.float32) / 127.5 - 1
    return pixels


@cache
def _alphabet() -> list[str]:
    stored = {entry.key: entry.value for entry in onnx.load(str(RECOGNISER)).metadata_props}
    return ["", *stored["character"].splitlines(), " "]


def _decode(classes: Any) -> str:
    """CTC: repeated classes once, without the blank."""
    kept = [c for c, before in zip(classes, [0, *classes[:-1]], strict=True) if c != before and c != 0]
    return "".join(_alphabet()[c] for c in kept)


def _distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]
