"""Tiny models of the real classes, and tiny real data, that many tests share."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from qnas_plugin.supernets import mobilenet_v3, resnet50
from qnas_plugin.supernets._beit3_model import Beit3Config, Beit3ForImageClassification, Beit3ForVisualQuestionAnswering
from tests.supernets import tiny_cnn

# Whoever starts the suite in the background of a shell has it ignore Ctrl-C, and so all processes that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
"""The sizes of every random encoder."""

WORDS = [
    *("good", "great", "fine", "lovely"),
    *("bad", "awful", "poor", "dull"),
    *("film", "plot", "actor", "scene", "the", "a", "very", "not"),
]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ranges of other runs stay out of the tests, and those of the tests out of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def bert_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 4 layers, width 32, 4 heads, with a word tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        **SMALL,
        max_position_embeddings=64,
        id2label={0: "0", 1: "1"},
        label2id={"0": 0, "1": 1},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vit_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT of 4 layers, width 32, 4 heads, for the 8x8 grey images of scikit-learn's digits."""
    return save_vit(tmp_path_factory.mktemp("vit"))


def save_vit(folder: Path) -> Path:
    """Saves that ViT and its image processor in a folder."""
    torch.manual_seed(0)
    config = ViTConfig(
        **SMALL,
        image_size=8,
        patch_size=4,
        num_channels=1,
        id2label={i: str(i) for i in range(10)},
        label2id={str(i): i for i in range(10)},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(
        do_resize=False, image_mean=[0.5], image_std=[0.5], size={"height": 8, "width": 8}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def beit3_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BEiT-3 of 4 layers, width 32, 4 heads, for questions about 8x8 images, with a word tokenizer."""
    folder = tmp_path_factory.mktemp("beit3")
    words = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=30,
    ).save_pretrained(folder)
    config = _beit3_config(4, num_channels=3, vocab_size=len(words), max_position_embeddings=32)
    return _beit3(folder, Beit3ForVisualQuestionAnswering(config))


@pytest.fixture(scope="session")
def beit3_images_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the digits."""
    return _beit3(
        tmp_path_factory.mktemp("beit3_images"), Beit3ForImageClassification(_beit3_config(10, num_channels=1))
    )


def _beit3_config(labels: int, **own: Any) -> Beit3Config:
    torch.manual_seed(0)
    return Beit3Config(
        **SMALL,
        image_size=8,
        patch_size=4,
        id2label={i: str(i) for i in range(labels)},
        label2id={str(i): i for i in range(labels)},
        **own,
    )


def _beit3(folder: Path, model: PreTrainedModel) -> Path:
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    model.save_pretrained(folder)
    half = [0.5] * model.config.num_channels
    ViTImageProcessor(do_resize=False, image_mean=half, image_std=half, size={"height": 8, "width": 8}).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def resnet50_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ResNet of 2, 2, 3 and 2 blocks and up to 48 channels, for the digits."""
    config = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [32, 32, 48, 48], "depths": [2, 2, 3, 2]}
    return _cnn_checkpoint(tmp_path_factory.mktemp("resnet50"), config, resnet50)


@pytest.fixture(scope="session")
def mobilenet_v3_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random MobileNetV3 of 5 stages with up to 2 blocks and 16 channels, for the digits."""
    config = {"model_type": "mobilenet_v2", "widths": [8, 8, 8, 8, 16, 16, 16, 32, 48], "depths": [2, 2, 2, 2, 2]}
    return _cnn_checkpoint(tmp_path_factory.mktemp("mobilenet_v3"), config, mobilenet_v3)


@pytest.fixture(scope="session")
def tiny_cnn_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of docs/add_a_supernet.md with random weights."""
    return _cnn_checkpoint(tmp_path_factory.mktemp("tiny_cnn"), {"model_type": "resnet"}, tiny_cnn)


def _cnn_checkpoint(folder: Path, config: dict[str, Any], family: Any) -> Path:
    config |= {"num_channels": 1, "image_size": 8, "id2label": {str(i): str(i) for i in range(10)}, "stem_stride": 1}
    (folder / "config.json").write_text(json.dumps(config))
    model = family.load(str(folder)).model
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("_matrix"):
            torch.nn.init.normal_(parameter, std=0.3)
    save_file(model.state_dict(), folder / "model.safetensors")
    ViTImageProcessor(
        do_resize=False, image_mean=[0.3], image_std=[0.38], size={"height": 8, "width": 8}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about 8x8 grey images in train.jsonl and test.jsonl; the answer depends on image and question."""
    folder = tmp_path_factory.mktemp("questions")
    rng = np.random.default_rng(0)
    for split, count in (("train", 90), ("test", 30)):
        rows = []
        for i in range(count):
            dark = bool(rng.integers(2))
            pixels = rng.integers(0, 100, (8, 8)) + (0 if dark else 150)
            name = f"{split}{i}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            for asked in ("good", "bad"):
                answer = "the plot" if len(rows) % 11 == 10 else "yes" if (asked == "bad") == dark else "no"
                ending = " plot plot" if answer == "the plot" else " the" * int(rng.integers(4))
                rows.append({"question": f"{asked} film{ending}", "answer": answer, "image": name})
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


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
