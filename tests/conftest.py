"""Tiny models of the real classes, and tiny real data, that many tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_cnn

from qnas_plugin.supernets import beit3, bert, mobilenet_v3, resnet50, vit
from qnas_plugin.tasks import visual_question_answering
from qnas_plugin.tasks._tiny import WORDS

# Whoever starts the suite in the background of a shell has it ignore Ctrl-C, and so all processes that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ranges of other runs stay out of the tests, and those of the tests out of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def bert_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 4 layers, width 32, 4 heads, with a word tokenizer."""
    return bert.tiny(tmp_path_factory.mktemp("bert")).checkpoint


@pytest.fixture(scope="session")
def vit_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT of 4 layers, width 32, 4 heads, for the 8x8 grey images of scikit-learn's digits."""
    return vit.tiny(tmp_path_factory.mktemp("vit")).checkpoint


@pytest.fixture(scope="session")
def beit3_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BEiT-3 of 4 layers, width 32, 4 heads, for questions about 8x8 images, with a word tokenizer."""
    return beit3.tiny(tmp_path_factory.mktemp("beit3")).checkpoint


@pytest.fixture(scope="session")
def beit3_images_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the digits."""
    return beit3.tiny_images(tmp_path_factory.mktemp("beit3_images")).checkpoint


@pytest.fixture(scope="session")
def resnet50_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ResNet of 2, 2, 3 and 2 blocks and up to 48 channels, for the digits."""
    return resnet50.tiny(tmp_path_factory.mktemp("resnet50")).checkpoint


@pytest.fixture(scope="session")
def mobilenet_v3_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random MobileNetV3 of 5 stages with up to 2 blocks and 16 channels, for the digits."""
    return mobilenet_v3.tiny(tmp_path_factory.mktemp("mobilenet_v3")).checkpoint


@pytest.fixture(scope="session")
def tiny_cnn_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of docs/add_a_supernet.md with random weights."""
    return tiny_cnn.tiny(tmp_path_factory.mktemp("tiny_cnn")).checkpoint


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about 8x8 grey images in train.jsonl and test.jsonl; the answer depends on image and question."""
    return visual_question_answering.tiny(tmp_path_factory.mktemp("questions")).data


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.tsv and validation.tsv; the label says which of good and bad words a sentence has more of."""
    folder = tmp_path_factory.mktemp("sentences")
    rng = np.random.default_rng(0)
    lines: dict[str, int] = {}
    while len(lines) < 500:
        words = [str(word) for word in rng.choice(WORDS, size=int(rng.integers(3, 12)))]
        score = sum((word in WORDS[:4]) - (word in WORDS[4:8]) for word in words)
        if score:
            lines[" ".join(words)] = int(score > 0)
    rows = [f"{sentence}\t{label}" for sentence, label in lines.items()]
    for name, part in (("train", rows[:400]), ("validation", rows[400:])):
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *part]) + "\n")
    return folder
