"""Tiny data sets and checkpoints, generated, one for each task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WORDS = ("good", "bad", "film", "plot", "the", "a", "was", "very", "##ly")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), encoding="utf-8")
    BertTokenizerFast(vocab_file=str(vocabulary), model_max_length=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_processor_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTImageProcessor

    folder = tmp_path_factory.mktemp("image_processor")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture
def write_texts(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of TSV files from rows of text and label."""

    def write(**splits: list[tuple[str, object]]) -> Path:
        for split, rows in splits.items():
            lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
            (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def sentences() -> Callable[..., list[tuple[str, int]]]:
    """``n`` different sentences of different lengths with labels 0 and 1; another ``tag`` gives others."""

    def make(n: int, tag: str = "the") -> list[tuple[str, int]]:
        return [(" ".join([tag] + [WORDS[int(digit) % 3] for digit in f"{i:b}"]), i % 2) for i in range(n)]

    return make


@pytest.fixture
def write_images() -> Callable[..., Path]:
    """Writes class folders of random 8x8 PNG files, all different."""

    def write(folder: Path, *, classes: tuple[str, ...] = ("cat", "dog", "owl"), each: int, seed: int) -> Path:
        rng = np.random.default_rng(seed)
        for name in classes:
            (folder / name).mkdir(parents=True)
            for i in range(each):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name / f"{i:03}.png")
        return folder

    return write
