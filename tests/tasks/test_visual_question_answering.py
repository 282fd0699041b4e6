from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qnas_plugin.data import SplitSizes
from qnas_plugin.errors import CheckpointError, DataError
from qnas_plugin.tasks.visual_question_answering import load, processor

SIZES = SplitSizes(calibration=2, search=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three questions about each of 20 images in train.jsonl, and about each of 4 in test.jsonl."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        rows: list[dict[str, Any]] = []
        for i in range(count):
            name = f"images/{split}{i}.png"
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / name)
            rows += [{"question": f"q{n}", "answer": ["no", "yes"][(i + n) % 2], "image": name} for n in range(3)]
        write(tmp_path, split, rows)
    return tmp_path


def write(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_load_holds_out_images_with_all_their_questions(folder: Path) -> None:
    dataset = load(str(folder), sizes=SIZES)
    assert dataset.label_names == ("no", "yes")
    images = {
        part: {question.image.name for question in getattr(dataset, part).inputs}
        for part in ("train", "calibration", "search", "selection", "report")
    }
    assert not images["train"].intersection(*[names for part, names in images.items() if part != "train"])
    assert not images["search"] & images["selection"]
    assert len(images["train"]) == 16  # four more have 12 questions: to calibrate, to search and to choose with
    assert len(dataset.train) == 48
    assert len(dataset.calibration) == 2
    assert 4 <= len(dataset.search) <= 6
    assert 2 <= len(dataset.selection) <= 4
    assert len(dataset.report) == 12


def test_load_takes_the_held_out_questions_of_a_folder(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    write(folder, "train", rows[:30])
    write(folder, "train_holdout", rows[30:])
    dataset = load(str(folder), sizes=SIZES)
    assert len(dataset.train) == 30
    assert dataset.source == f"{folder} (train, train_holdout, test)"


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_load_reads_other_tables(folder: Path, suffix: str, separator: str) -> None:
    expected = load(str(folder), sizes=SIZES).fingerprint
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        lines = [separator.join(values) for values in (rows[0], *(row.values() for row in rows))]
        (folder / f"{split}{suffix}").write_text("\n".join(lines))
        (folder / f"{split}.jsonl").unlink()
    assert load(str(folder), sizes=SIZES).fingerprint == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": "q", "answer": "maybe", "image": "images/test0.png"}', "13: column 'answer' is 'maybe', not an"),
        ('{"question": " ", "answer": "yes", "image": "images/test0.png"}', "13: column 'question' is empty"),
        ('{"question": "q", "answer": "yes", "image": "images/none.png"}', "none.png: not a readable image"),
        ('{"question": "q", "answer": "yes", "image": "test.jsonl"}', "test.jsonl: not a readable image"),
        ('{"question": "q", "answer": "yes"}', "13: its fields are question, answer, those before it question,"),
        ('{"question": "q", "answer": null, "image": "a.png"}', "13: not an object of texts and numbers"),
        ('["q"]', "13: not an object of texts and numbers"),
        ("{", "13: no JSON"),
    ],
)
def test_load_names_the_line_that_is_wrong(folder: Path, row: str, message: str) -> None:
    with (folder / "test.jsonl").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(DataError, match=message):
        load(str(folder), sizes=SIZES)


def test_load_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder 'nowhere'; allowed: easy-vqa, or a folder"):
        load("nowhere", sizes=SIZES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a split is missing: 'train'"):
        load(str(tmp_path / "empty"), sizes=SIZES)
    write(folder, "train", [{"question": "q", "answer": "yes", "image": "images/train0.png"}])
    with pytest.raises(DataError, match="two answers or more are needed, got only 'yes'"):
        load(str(folder), sizes=SIZES)
    write(folder, "train", [{"question": "q", "label": "yes", "image": "images/train0.png"}])
    with pytest.raises(DataError, match="no column 'answer'; have: question, label, image; needed: question, answer"):
        load(str(folder), sizes=SIZES)
    (folder / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        load(str(folder), sizes=SIZES)


def test_processor_needs_a_tokenizer_and_an_image_processor(vit_checkpoint: Path, bert_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="no usable image processor"):
        processor(str(bert_checkpoint))
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        processor(str(vit_checkpoint))


def test_batches_keep_the_order_and_pad_to_their_longest_question(beit3_checkpoint: Path, questions: Path) -> None:
    examples = load(str(questions), sizes=SIZES).report
    batches = processor(str(beit3_checkpoint)).batches(examples.inputs, 8)
    lengths = [batch.inputs["attention_mask"].sum(1) for batch in batches]
    assert len({length.max() for length in lengths}) > 1
    for number, (batch, length) in enumerate(zip(batches, lengths, strict=True)):
        assert sorted(batch.positions.tolist()) == list(range(len(examples)))[8 * number : 8 * number + 8]
        assert list(batch.inputs) == ["pixel_values", "input_ids", "attention_mask"]
        assert batch.inputs["pixel_values"].shape == (len(batch.positions), 3, 8, 8)
        assert batch.inputs["input_ids"].shape == (len(batch.positions), length.max())


def test_load_takes_easy_vqa_from_its_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {i: str(folder / f"images/train{i}.png") for i in range(20)}
    train = ([f"q{n}" for n in range(60)], ["yes", "no"] * 30, [i for i in range(20) for _ in range(3)])
    package = SimpleNamespace(
        get_train_questions=lambda: train,
        get_train_image_paths=lambda: paths,
        get_test_questions=lambda: (["is it?"], ["yes"], [0]),
        get_test_image_paths=lambda: {0: str(folder / "images/test0.png")},
    )
    monkeypatch.setitem(sys.modules, "easy_vqa", package)
    dataset = load("easy-vqa", sizes=SIZES)
    assert (len(dataset.train), len(dataset.report)) == (48, 1)
    assert dataset.source == "easy-vqa (train, test)"
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(DataError, match=r"pip install 'qnas-plugin\[easy-vqa\]'"):
        load("easy-vqa", sizes=SIZES)
