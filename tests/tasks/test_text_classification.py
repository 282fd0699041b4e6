from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qnas_plugin.data import SplitSizes
from qnas_plugin.errors import CheckpointError, DataError, UsageError
from qnas_plugin.tasks.text_classification import load, processor

SIZES = SplitSizes(calibration=4, search=6)
Rows = list[tuple[str, Any]]


def test_load_reports_exactly_the_official_split(
    write_texts: Callable[..., Path], sentences: Callable[..., Rows]
) -> None:
    report = [*sentences(8, "a"), sentences(8, "a")[3]]
    folder = write_texts(train=sentences(40) + report[:2], validation=report)
    dataset = load(str(folder), sizes=SIZES)
    assert dataset.report.inputs == [text for text, _ in report]
    assert dataset.report.labels.tolist() == [label for _, label in report]
    assert len(dataset.train) == 40 - 4 - 6 - 6
    assert dataset.label_names == ("0", "1")
    assert dataset.metric == "accuracy"
    assert dataset.source == f"{folder} (train, validation)"


def test_load_takes_calibration_and_search_from_the_held_out_file(
    write_texts: Callable[..., Path], sentences: Callable[..., Rows]
) -> None:
    train, held_out = sentences(20), sentences(20, "very")
    folder = write_texts(train=train + held_out[:3], train_holdout=held_out, validation=sentences(8, "a"))
    dataset = load(str(folder), sizes=SIZES)
    assert dataset.train.inputs == [text for text, _ in train]
    assert {*dataset.calibration.inputs, *dataset.search.inputs} <= {text for text, _ in held_out}


@pytest.mark.parametrize("label", ["-1", None])
def test_load_reports_validation_when_test_is_unlabelled(
    write_texts: Callable[..., Path], sentences: Callable[..., Rows], label: str | None
) -> None:
    validation = sentences(8, "a")
    folder = write_texts(train=sentences(40), validation=validation)
    test = ["sentence\tlabel", "bad\t-1"] if label else ["index\tsentence", "0\tbad"]
    (folder / "test.tsv").write_text("\n".join(test), encoding="utf-8")
    assert load(str(folder), sizes=SIZES).report.inputs == [text for text, _ in validation]


def test_load_searches_on_validation_when_test_is_labelled(
    write_texts: Callable[..., Path], sentences: Callable[..., Rows]
) -> None:
    validation, test = sentences(20, "very"), sentences(8, "a")
    dataset = load(str(write_texts(train=sentences(40), validation=validation, test=test)), sizes=SIZES)
    assert dataset.report.inputs == [text for text, _ in test]
    assert set(dataset.search.inputs) <= {text for text, _ in validation}
    assert len(dataset.train) == 40


def test_load_takes_white_space_for_no_difference(
    write_texts: Callable[..., Path], sentences: Callable[..., Rows]
) -> None:
    folder = write_texts(train=[*sentences(40), ("a  good film ", 1)], validation=[("a good film", 1)])
    assert not any("good film" in text for text in load(str(folder), sizes=SIZES).train.inputs)


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".tsv.gz", ".csv.gz"])
def test_load_cuts_all_parts_from_one_file(tmp_path: Path, suffix: str) -> None:
    separator = "\t" if ".tsv" in suffix else ","
    lines = [f"text{separator}label", *(f"film {i}{separator}{i % 2}" for i in range(60))]
    content = "\ufeff" + "\r\n".join(lines)
    path = tmp_path / f"reviews{suffix}"
    path.write_bytes(gzip.compress(content.encode()) if suffix.endswith(".gz") else content.encode())
    dataset = load(str(path), sizes=SplitSizes(calibration=4, search=6, report=10))
    parts = (dataset.train, dataset.calibration, dataset.search, dataset.selection, dataset.report)
    assert [len(part) for part in parts] == [34, 4, 6, 6, 10]
    assert sorted(int(text.split()[1]) for part in parts for text in part.inputs) == list(range(60))
    assert all(
        int(text.split()[1]) % 2 == label
        for part in parts
        for text, label in zip(part.inputs, part.labels, strict=True)
    )


def test_load_reads_json_lines(tmp_path: Path) -> None:
    rows = [{"sentence": f"film {i}", "label": i % 2, "source": "x"} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    dataset = load(str(tmp_path / "a.jsonl"), sizes=SIZES)
    assert dataset.label_names == ("0", "1")
    assert all(
        int(text.split()[1]) % 2 == n for text, n in zip(dataset.train.inputs, dataset.train.labels, strict=True)
    )


def test_load_keeps_quotes_of_tsv_and_reads_those_of_csv(tmp_path: Path) -> None:
    rows = "".join(f'"a, ""film"" {i}",{i % 2}\n' for i in range(30))
    (tmp_path / "a.csv").write_text("sentence,label\n" + rows, encoding="utf-8")
    (tmp_path / "a.tsv").write_text('sentence\tlabel\n"a\t0\n' + "film\t1\n" * 3 + 'a"b\t0\nthe\t1\n', encoding="utf-8")
    assert all(text.startswith('a, "film" ') for text in load(str(tmp_path / "a.csv"), sizes=SIZES).train.inputs)
    dataset = load(str(tmp_path / "a.tsv"), sizes=SplitSizes(calibration=1, search=1, report=1))
    texts = {*dataset.train.inputs, *dataset.calibration.inputs, *dataset.search.inputs, *dataset.report.inputs}
    texts |= set(dataset.selection.inputs)
    assert texts == {'"a', "film", 'a"b', "the"}


def test_load_gives_pairs_and_sorted_label_names(tmp_path: Path, tokenizer_folder: Path) -> None:
    labels = ("neutral", "entailment", "contradiction", "unrelated", "unclear")
    rows = "".join(f"the film {i}\ta plot\t{labels[i % 5]}\n" for i in range(40))
    (tmp_path / "nli.tsv").write_text("premise\thypothesis\tlabel\n" + rows, encoding="utf-8")
    dataset = load(str(tmp_path / "nli.tsv"), sizes=SIZES)
    assert dataset.label_names == ("contradiction", "entailment", "neutral", "unclear", "unrelated")
    for (premise, hypothesis), label in zip(dataset.train.inputs, dataset.train.labels, strict=True):
        assert hypothesis == "a plot"
        assert dataset.label_names[label] == labels[int(premise.split()[2]) % 5]
    (batch,) = processor(str(tokenizer_folder)).batches(dataset.search.inputs, 10)
    assert batch.inputs["token_type_ids"].max() == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.tsv: the file is empty"),
        (b"sentence\tlabel\n", "a.tsv: the file is empty"),
        (b"words\tlabel\na\t0\n", "a.tsv: no text column; have: words, label; allowed: .*sentence"),
        (b"sentence\tclass\na\t0\n", "a.tsv: no column 'label' or 'labels'; have: sentence, class"),
        (b"sentence\tlabel\tlabel\na\t0\t0\n", "a.tsv:1: a column is named twice"),
        (b"sentence\tlabel\na\t0\n \t1\n", "a.tsv:3: column 'sentence' is empty"),
        (b"sentence\tlabel\na\t0\nb\t\n", "a.tsv:3: column 'label' is empty"),
        (b"sentence\tlabel\na\t0\nb\tgood\n", "a.tsv:3: column 'label' is 'good', the labels before it are .* number"),
        (b"sentence\tlabel\na\tgood\nb\t1\n", "a.tsv:3: column 'label' is '1', the labels before it are .* name"),
        (b"sentence\tlabel\na\t0\nb\t0.5\n", "a.tsv:3: column 'label' is '0.5'"),
        (b"sentence\tlabel\na\t1\nb\t2\n", "a.tsv: class numbers must count from 0 without a gap, got 1, 2"),
        (b"sentence\tlabel\na\t0\nb\t-1\n", "a.tsv: class numbers must count from 0 without a gap, got -1, 0"),
        (b"sentence\tlabel\na\t0\nb\t0\n", "a.tsv: two classes or more are needed"),
        (b"sentence\tlabel\na\t0\n\nb\t1\tc\n", "a.tsv:4: 3 fields, the first line names 2"),
        (b"sentence\tlabel\na\t0\nb\xff\t1\n", "a.tsv:3: not UTF-8"),
    ],
)
def test_load_raises_with_file_and_line_when_a_file_is_malformed(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(str(tmp_path / "a.tsv"), sizes=SIZES)
    assert "\n" not in str(error.value)


def test_load_raises_when_a_quote_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('sentence,label\n"a,0\nb,1\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a.csv:3: unexpected end of data"):
        load(str(tmp_path / "a.csv"), sizes=SIZES)


@pytest.mark.parametrize("damage", ["truncated", "no gzip"])
def test_load_raises_when_a_packed_file_is_damaged(tmp_path: Path, damage: str) -> None:
    packed = gzip.compress("".join(["sentence\tlabel\n", *(f"film {i}\t{i % 2}\n" for i in range(999))]).encode())
    (tmp_path / "a.tsv.gz").write_bytes(packed[:-400] if damage == "truncated" else b"sentence\tlabel\n")
    with pytest.raises(DataError, match=r"a.tsv.gz:\d+: cannot be read: .*; fetch the file again"):
        load(str(tmp_path / "a.tsv.gz"), sizes=SIZES)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ("text\tlabel\na\t0\n", "validation.tsv: no column 'sentence', as the training data has it; have: text, label"),
        ("sentence\tlabel\na\t7\n", "validation.tsv:2: column 'label' is '7', not a class .*; have: 0, 1"),
        ("sentence\tlabel\na\t-1\n", "validation.tsv:2: column 'label' is '-1', not a class"),
    ],
)
def test_load_raises_when_the_report_does_not_fit_the_training_data(
    write_texts: Callable[..., Path], sentences: Callable[..., Rows], validation: str, message: str
) -> None:
    folder = write_texts(train=sentences(40))
    (folder / "validation.tsv").write_text(validation, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(str(folder), sizes=SIZES)


def test_load_raises_when_a_split_is_missing_or_there_twice(
    write_texts: Callable[..., Path], sentences: Callable[..., Rows]
) -> None:
    folder = write_texts(train=sentences(40))
    with pytest.raises(DataError, match="a split is missing: a labelled 'test' or 'validation'; have: train"):
        load(str(folder), sizes=SIZES)
    (folder / "train.csv").write_text("sentence,label\na,0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train.tsv and train.csv are the same split; keep one"):
        load(str(folder), sizes=SIZES)


@pytest.mark.parametrize("data", ["./absent", "/no/such/place", "reviews.tsv", "a b"])
def test_load_raises_when_there_is_no_such_path(data: str) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        load(data, sizes=SIZES)


def test_load_raises_when_the_format_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot tell the format; the name must end in .tsv"):
        load(str(tmp_path / "a.json"), sizes=SIZES)


def test_load_takes_a_hugging_face_name(monkeypatch: pytest.MonkeyPatch, sentences: Callable[..., Rows]) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        sentence=datasets.Value("string"), label=datasets.ClassLabel(names=["negative", "positive"])
    )

    def split(rows: Rows, *, labelled: bool = True) -> Any:
        labels = [label if labelled else -1 for _, label in rows]
        return datasets.Dataset.from_dict({"sentence": [text for text, _ in rows], "label": labels}, features=features)

    asked = []

    def load_dataset(*name: str) -> Any:
        asked.append(name)
        return datasets.DatasetDict(
            train=split(sentences(40)),
            validation=split(sentences(8, "a")),
            test=split(sentences(5, "bad"), labelled=False),
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    dataset = load("glue/sst2", sizes=SIZES)
    load("stanfordnlp/sst2/default", sizes=SIZES)
    assert asked == [("glue", "sst2"), ("stanfordnlp/sst2", "default")]
    assert dataset.label_names == ("negative", "positive")
    assert dataset.report.inputs == [text for text, _ in sentences(8, "a")]
    assert dataset.report.labels.tolist() == [label for _, label in sentences(8, "a")]


def test_load_raises_when_a_hugging_face_name_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*name: str) -> Any:
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"no file or folder 'glue/sst2', and as a Hugging Face .*: no network$"):
        load("glue/sst2", sizes=SIZES)


def test_load_names_the_extra_when_datasets_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'qnas-plugin\[datasets\]'"):
        load("glue/sst2", sizes=SIZES)


def test_batches_pad_to_the_longest_of_the_batch(tokenizer_folder: Path) -> None:
    texts = ["the film was very bad", "good", "a film", "bad", "the plot"]
    batches = processor(str(tokenizer_folder)).batches(texts, 2)
    assert [batch.positions.tolist() for batch in batches] == [[1, 3], [2, 4], [0]]
    assert [batch.inputs["input_ids"].shape for batch in batches] == [(2, 3), (2, 4), (1, 7)]
    assert list(batches[0].inputs) == ["input_ids", "token_type_ids", "attention_mask"]
    assert {array.dtype for batch in batches for array in batch.inputs.values()} == {np.dtype(np.int64)}


def test_batches_cut_texts_off_after_max_length(tokenizer_folder: Path) -> None:
    text = "very " * 100
    (short,) = processor(str(tokenizer_folder), max_length=8).batches([text], 1)
    (default,) = processor(str(tokenizer_folder)).batches([text], 1)
    assert short.inputs["input_ids"].shape == (1, 8)
    assert default.inputs["input_ids"].shape == (1, 32)


def test_timing_inputs_are_full_sequences_of_ordinary_tokens(tokenizer_folder: Path) -> None:
    text_processor = processor(str(tokenizer_folder))
    inputs = text_processor.timing_inputs(4, 16)
    tokenizer = text_processor.tokenizer
    ids = inputs["input_ids"]
    assert {array.shape for array in inputs.values()} == {(4, 16)}
    assert (inputs["attention_mask"] == 1).all()
    assert (ids[:, 0] == tokenizer.cls_token_id).all()
    assert (ids[:, -1] == tokenizer.sep_token_id).all()
    assert not np.isin(ids[:, 1:-1], tokenizer.all_special_ids).any()
    assert ids[:, 1:-1].max() < len(tokenizer)
    assert text_processor.timing_inputs(1, None)["input_ids"].shape == (1, 32)


@pytest.mark.parametrize("length", [2, 33])
def test_timing_inputs_raise_when_the_length_is_impossible(tokenizer_folder: Path, length: int) -> None:
    with pytest.raises(UsageError, match=f"sequence length must be 3 to 32, got {length}"):
        processor(str(tokenizer_folder)).timing_inputs(1, length)


@pytest.mark.parametrize("max_length", [0, 4, 33])
def test_processor_raises_when_max_length_is_impossible(tokenizer_folder: Path, max_length: int) -> None:
    with pytest.raises(UsageError, match=f"allows max_length 5 to 32, got {max_length}"):
        processor(str(tokenizer_folder), max_length=max_length)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_processor_raises_when_the_tokenizer_is_missing_or_corrupt(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizerFast"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"no usable tokenizer in '{tmp_path}': .*save_pretrained") as error:
        processor(str(tmp_path))
    assert "\n" not in str(error.value)


def test_processor_raises_when_there_is_no_padding_token(tokenizer_folder: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_folder / "tokenizer.json")).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="has no padding token"):
        processor(str(tmp_path))
