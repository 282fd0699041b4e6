"""Questions about images, each with one of a fixed number of answers: tables beside images, or easy-VQA.

``data`` is one of

- a folder with ``train.*``, a report split ``test.*`` or ``validation.*`` and, if there is one, ``train_holdout.*``
  (see `qnas_plugin.tasks.held_out_and_report`); each is a table (see `qnas_plugin.tasks._tables`) with the columns
  ``question``, ``answer`` and ``image``, the path in the folder of a PNG, JPEG or BMP file;
- ``easy-vqa``: the questions and images of the package of that name.

The answers of the training data are the classes. Where no training data are held out, some images are, with all their
questions: an answer that was learned about an image steers no search.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qnas_plugin.data import Batch, Dataset, Inputs, OnAccess, SplitSizes
from qnas_plugin.errors import DataError
from qnas_plugin.tasks import (
    SPLITS,
    Pool,
    Tiny,
    assemble,
    content_key,
    held_out_and_report,
    image_classification,
    text_classification,
)
from qnas_plugin.tasks._tables import Table, file_of, read, some
from qnas_plugin.tasks.image_classification import ImageFile, ImageProcessor, decode, opened
from qnas_plugin.tasks.text_classification import TextProcessor

_COLUMNS = ("question", "answer", "image")
_WORDS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class Question:
    """A raw example."""

    text: str
    image: ImageFile


def load(data: str, *, sizes: SplitSizes) -> Dataset:
    """The data set of that name or in that folder in four parts; an example is a `Question`.

    Raises:
        DataError: There is no such data set, or it is malformed.
    """
    if data == "easy-vqa":
        return _from_tables(_easy_vqa(), Path(), sizes, "easy-vqa")
    path = Path(data)
    if not path.is_dir():
        raise DataError(f"no folder '{data}'; allowed: easy-vqa, or a folder with tables of questions")
    tables = {split: read(file) for split in SPLITS if (file := file_of(path, split))}
    return _from_tables(tables, path, sizes, data)


def processor(checkpoint: str, *, max_length: int | None = None) -> QuestionProcessor:
    """The tokenizer and the image processor of a checkpoint: a folder or a Hugging Face name.

    Raises:
        CheckpointError: One of them is missing.
        UsageError: The length is not one that the tokenizer allows.
    """
    return QuestionProcessor(
        text_classification.processor(checkpoint, max_length=max_length), image_classification.processor(checkpoint)
    )


@dataclass(frozen=True)
class QuestionProcessor:
    """A tokenizer and an image processor."""

    text: TextProcessor
    images: ImageProcessor

    def batches(self, inputs: Sequence[Question], batch_size: int) -> Sequence[Batch]:
        """Questions in chunks of their order, each batch padded to its longest; encoded at each access.

        Not by length as texts are: questions of one length are of one kind, and steps of one kind each make training
        unsteady.

        ``pixel_values`` ``(b, c, h, w)``, ``input_ids`` and ``attention_mask`` ``(b, length)``.
        """
        positions = np.arange(len(inputs), dtype=np.int64)
        chunks = np.split(positions, range(batch_size, len(inputs), batch_size)) if len(inputs) else []
        return OnAccess(chunks, partial(self._batch, inputs))

    def timing_inputs(self, batch_size: int, sequence_length: int | None, examples: Sequence[Question] = ()) -> Inputs:
        """Noise for images, and full questions ``(batch_size, sequence_length)`` of ordinary tokens.

        Raises:
            UsageError: The tokenizer does not allow the length.
        """
        return self._joined(
            self.images.timing_inputs(batch_size, None), self.text.timing_inputs(batch_size, sequence_length)
        )

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files and ``preprocessor_config.json``."""
        self.text.save(folder)
        self.images.save(folder)

    def _batch(self, inputs: Sequence[Question], chunk: npt.NDArray[np.int64]) -> Batch:
        (texts,) = self.text.batches([inputs[i].text for i in chunk], len(chunk))
        positions = chunk[texts.positions]
        pixels = self.images.pixel_values([decode(inputs[i].image) for i in positions])
        return Batch(self._joined({"pixel_values": pixels}, texts.inputs), positions)

    @staticmethod
    def _joined(images: Inputs, words: Inputs) -> Inputs:
        return {**images, **{name: words[name] for name in _WORDS}}


def _easy_vqa() -> dict[str, Table]:
    try:
        import easy_vqa
    except ImportError as error:
        raise DataError("the package of easy-VQA is missing; pip install 'qnas-plugin[easy-vqa]'") from error
    tables = {}
    for split, (questions, answers, ids), paths in (
        ("train", easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        ("test", easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    ):
        columns = {"question": questions, "answer": answers, "image": [str(paths[i]) for i in ids]}
        tables[split] = Table(f"easy-vqa[{split}]", columns, range(1, len(questions) + 1))
    return tables


def _from_tables(tables: Mapping[str, Table], folder: Path, sizes: SplitSizes, source: str) -> Dataset:
    held_out, report = held_out_and_report(tables, source)
    names = tuple(sorted({answer.strip() for answer in _column(tables["train"], "answer")}))
    if len(names) < 2:
        raise DataError(f"{tables['train'].name}: two answers or more are needed, got only '{names[0]}'")
    digests: dict[str, bytes] = {}
    used = [split for split in ("train", held_out, report) if split is not None]
    pools = {split: _pool(tables[split], folder, names, digests) for split in used}
    if held_out is None:
        apart, train = _hold_out(pools["train"], sizes)
    else:
        apart, train = pools[held_out], pools["train"]
    return assemble(
        train,
        held_out=apart,
        report=pools[report],
        sizes=sizes,
        label_names=names,
        source=f"{source} ({', '.join(used)})",
    )


def _pool(table: Table, folder: Path, names: Sequence[str], digests: dict[str, bytes]) -> Pool:
    """The questions of a table; the content keys of new images are added by their paths."""
    numbers = {name: number for number, name in enumerate(names)}
    questions, labels, keys, images = [], [], [], []
    rows = zip(*(_column(table, name) for name in _COLUMNS), strict=True)
    for row, (text, answer, image) in enumerate(rows):
        if answer.strip() not in numbers:
            raise DataError(
                f"{table.where(row, 'answer')} is '{answer}', not an answer of the training data; have: {some(names)}"
            )
        file = ImageFile(str(folder / image), folder / image)
        if file.name not in digests:
            with opened(file) as (content, _):
                digests[file.name] = content_key(content)
        questions.append(Question(text, file))
        labels.append(numbers[answer.strip()])
        keys.append(content_key(" ".join(text.split()).encode(), digests[file.name]))
        images.append(digests[file.name])
    return Pool(questions, np.array(labels, dtype=np.int64), keys, images)


def _column(table: Table, name: str) -> Sequence[str]:
    if name not in table.columns:
        raise DataError(
            f"{table.name}: no column '{name}'; have: {', '.join(table.columns)}; needed: {', '.join(_COLUMNS)}"
        )
    for row, value in enumerate(table.columns[name]):
        if not value.strip():
            raise DataError(f"{table.where(row, name)} is empty; remove the line or fill it in")
    return table.columns[name]


def _hold_out(pool: Pool, sizes: SplitSizes) -> tuple[Pool, Pool]:
    """All questions about some images, enough of them for the sizes or a third of the images, and all others."""
    images = pool.clusters or ()
    questions = Counter(dict(zip(pool.keys, images, strict=True)).values())
    found, chosen = 0, []
    for image in sorted(questions)[: max(1, len(questions) // 3)]:
        if sizes.held_out is not None and found >= max(3 * sizes.calibration, sizes.calibration + sizes.held_out):
            break
        chosen.append(image)
        found += questions[image]
    apart = frozenset(chosen)
    positions: npt.NDArray[np.bool_] = np.array([image in apart for image in images])
    return pool.take(np.flatnonzero(positions).tolist()), pool.take(np.flatnonzero(~positions).tolist())


def tiny(folder: Path) -> Tiny:
    """See ``qnas_plugin.tasks``; two questions about each 8x8 grey image, whose answer depends on both."""
    from PIL import Image

    from qnas_plugin.tasks import _tiny

    rng = np.random.default_rng(0)
    for split, count in (("train", 90), ("test", 30)):
        rows: list[dict[str, str]] = []
        for i in range(count):
            dark = bool(rng.integers(2))
            pixels = rng.integers(0, 100, (8, 8)) + (0 if dark else 150)
            name = f"{split}{i}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            for asked in ("good", "bad"):
                answer = "the plot" if len(rows) % 11 == 10 else "yes" if (asked == "bad") == dark else "no"
                ending = " plot plot" if answer == "the plot" else " the" * int(rng.integers(4))
                rows.append({"question": f"{asked} film{ending}", "answer": answer, "image": name})
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    _tiny.write_question_tokenizer(folder)
    _tiny.write_image_processor(folder, channels=3)
    return Tiny(folder, folder)
