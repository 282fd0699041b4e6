"""Sentences or sentence pairs with one class each, from TSV, CSV or JSON lines or a Hugging Face data set name.

``data`` is one of

- a folder with ``train.*``, a report split ``test.*`` or ``validation.*`` and, if there is one, ``train_holdout.*``
  (see `qnas_plugin.tasks.held_out_and_report`); a test split without labels, or with -1 for each, is passed over;
- one file, from which all parts are cut;
- the name of a Hugging Face data set, ``name/config`` or ``owner/name/config``, where no such path exists.

Files are tables as in `qnas_plugin.tasks._tables`. Labels are class numbers from 0, or names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qnas_plugin.data import Batch, Dataset, Inputs, SplitSizes
from qnas_plugin.errors import CheckpointError, DataError, UsageError, door, reason
from qnas_plugin.files.beside import check_tokenizer
from qnas_plugin.files.doors import check_files
from qnas_plugin.tasks import SPLITS, Pool, Tiny, assemble, checkpoint_folder, content_key, held_out_and_report
from qnas_plugin.tasks._tables import SUFFIXES, Table, file_of, read, some

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
    ("sentence1",),
)
_LABEL_COLUMNS = ("label", "labels")
_INTEGER = re.compile(r"[+-]?\d{1,18}")


def load(data: str, *, sizes: SplitSizes) -> Dataset:
    """The data set at a path, or with a Hugging Face name, in four parts; an example is a text or a pair of texts.

    Raises:
        DataError: There is no such data set, or a file is malformed.
    """
    path = Path(data)
    if path.is_dir():
        tables = {split: read(file) for split in SPLITS if (file := file_of(path, split))}
        return _from_splits(tables, sizes=sizes, source=data)
    if path.is_file():
        table = read(path)
        columns, names = _text_columns(table), _label_names(table)
        pool = _pool(table, columns, names)
        return assemble(pool, held_out=None, report=None, sizes=sizes, label_names=names, source=data)
    return _from_splits(_download(data), sizes=sizes, source=data)


def processor(checkpoint: str, *, max_length: int | None = None) -> TextProcessor:
    """The tokenizer of a checkpoint: a folder or a Hugging Face name.

    Args:
        checkpoint: Where the tokenizer files are.
        max_length: Tokens after which a text is cut off; None is what the tokenizer allows, but no more than 512.

    Raises:
        CheckpointError: There is no usable tokenizer.
        UsageError: The length is not one that the tokenizer allows.
    """
    from transformers import AutoTokenizer

    folder = checkpoint_folder(checkpoint)
    with door(
        CheckpointError, f"no usable tokenizer in '{checkpoint}'", "save one there with tokenizer.save_pretrained"
    ):
        check_files(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        check_tokenizer(folder)
        if tokenizer.pad_token is not None:
            tokenizer.num_special_tokens_to_add(pair=True)
            TextProcessor(tokenizer, min(tokenizer.model_max_length, 512)).batches(["a", "a a"], 2)
    if tokenizer.pad_token is None:
        raise CheckpointError(f"the tokenizer of '{checkpoint}' has no padding token; set pad_token and save it again")
    shortest, longest = tokenizer.num_special_tokens_to_add(pair=True) + 2, tokenizer.model_max_length
    if max_length is not None and not shortest <= max_length <= longest:
        raise UsageError(
            f"the tokenizer of '{checkpoint}' allows max_length {shortest} to {longest:g}, got {max_length}"
        )
    return TextProcessor(tokenizer, max_length or min(longest, 512))


@dataclass(frozen=True)
class TextProcessor:
    """A tokenizer that cuts texts off after ``max_length`` tokens."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def batches(self, inputs: Sequence[Any], batch_size: int) -> list[Batch]:
        """Texts by their number of tokens, each batch padded to its longest; ``int64`` arrays ``(b, length)``."""
        if not len(inputs):
            return []
        lengths = [len(ids) for ids in self._encode(inputs)["input_ids"]]
        order = np.argsort(lengths, kind="stable")
        return [
            Batch(self._arrays(self._encode([inputs[i] for i in chunk], padding=True)), chunk)
            for chunk in np.split(order, range(batch_size, len(order), batch_size))
        ]

    def timing_inputs(self, batch_size: int, sequence_length: int | None, examples: Sequence[Any] = ()) -> Inputs:
        """Full sequences ``(batch_size, sequence_length)`` of ordinary tokens between the special ones.

        Args:
            batch_size: The number of sequences.
            sequence_length: Tokens with the special ones; None is ``max_length``.

        Raises:
            UsageError: The length is beyond ``max_length``, or leaves no room for an ordinary token.
        """
        length = self.max_length if sequence_length is None else sequence_length
        shortest = self.tokenizer.num_special_tokens_to_add() + 1
        if not shortest <= length <= self.max_length:
            raise UsageError(f"the sequence length must be {shortest} to {self.max_length}, got {length}")
        encoded = self.tokenizer(
            ["a " * length] * batch_size, truncation=True, max_length=length, return_special_tokens_mask=True
        )
        special_ids = frozenset(self.tokenizer.all_special_ids)
        ordinary = sorted(i for i in self.tokenizer.get_vocab().values() if i not in special_ids)
        arrays = self._arrays(encoded)
        if not ordinary:
            raise CheckpointError("the tokenizer has no tokens but special ones; save another one")
        drawn = np.random.default_rng(0).choice(ordinary, size=(batch_size, length))
        special = np.array(encoded["special_tokens_mask"], dtype=bool)
        return {**arrays, "input_ids": np.where(special, arrays["input_ids"], drawn)}

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files."""
        self.tokenizer.save_pretrained(str(folder))

    def _encode(self, inputs: Sequence[Any], *, padding: bool = False) -> Mapping[str, Any]:
        texts, pairs = list(inputs), None
        if isinstance(texts[0], tuple):
            texts, pairs = [first for first, _ in inputs], [second for _, second in inputs]
        encoded: Mapping[str, Any] = self.tokenizer(
            texts, pairs, truncation=True, max_length=self.max_length, padding=padding
        )
        return encoded

    def _arrays(self, encoded: Mapping[str, Any]) -> dict[str, npt.NDArray[np.int64]]:
        return {name: np.array(encoded[name], dtype=np.int64) for name in self.tokenizer.model_input_names}


def _from_splits(tables: dict[str, Table], *, sizes: SplitSizes, source: str) -> Dataset:
    if "test" in tables and not _is_labelled(tables["test"]):
        del tables["test"]
    held_out, report = held_out_and_report(tables, source)
    columns, names = _text_columns(tables["train"]), _label_names(tables["train"])
    return assemble(
        _pool(tables["train"], columns, names),
        held_out=_pool(tables[held_out], columns, names) if held_out else None,
        report=_pool(tables[report], columns, names),
        sizes=sizes,
        label_names=names,
        source=f"{source} ({', '.join(split for split in ('train', held_out, report) if split)})",
    )


def _pool(table: Table, columns: Sequence[str], names: tuple[str, ...]) -> Pool:
    for column in columns:
        if column not in table.columns:
            raise DataError(f"{table.name}: no column '{column}', as the training data has it; have: {_found(table)}")
        for row, text in enumerate(table.columns[column]):
            if not text.strip():
                raise DataError(f"{table.where(row, column)} is empty; remove the line or fill it in")
    rows = list(zip(*(table.columns[column] for column in columns), strict=True))
    # Tokenizers make nothing of the amount of white space, so it makes no other content.
    keys = [content_key(*(" ".join(text.split()).encode() for text in row)) for row in rows]
    return Pool(rows if len(columns) > 1 else [text for (text,) in rows], _labels(table, names), keys)


def _text_columns(table: Table) -> tuple[str, ...]:
    for columns in _TEXT_COLUMNS:
        if all(column in table.columns for column in columns):
            return columns
    allowed = ", ".join("+".join(columns) for columns in _TEXT_COLUMNS)
    raise DataError(f"{table.name}: no text column; have: {_found(table)}; allowed: {allowed}")


def _label_column(table: Table) -> str | None:
    return next((column for column in _LABEL_COLUMNS if column in table.columns), None)


def _is_labelled(table: Table) -> bool:
    column = _label_column(table)
    return column is not None and any(label.strip() != "-1" for label in table.columns[column])


def _label_names(table: Table) -> tuple[str, ...]:
    """The classes of the training data; all its labels are numbers, or all are names."""
    if table.label_names:
        return table.label_names
    values = _label_values(table)
    numeric = [_INTEGER.fullmatch(value) is not None for value in values]
    if not any(numeric):
        names = tuple(sorted(set(values)))
    elif all(numeric):
        numbers = sorted({int(value) for value in values})
        if numbers != list(range(len(numbers))):
            raise DataError(f"{table.name}: class numbers must count from 0 without a gap, got {some(numbers)}")
        names = tuple(str(number) for number in numbers)
    else:
        row = numeric.index(not numeric[0])
        kinds = "a class number" if numeric[0] else "a class name"
        raise DataError(f"{_where_label(table, row)} is '{values[row]}', the labels before it are each {kinds}")
    if len(names) < 2:
        raise DataError(f"{table.name}: two classes or more are needed, got only {names[0]!r}")
    return names


def _labels(table: Table, names: tuple[str, ...]) -> npt.NDArray[np.int64]:
    numbers = {name: number for number, name in enumerate(names)}
    if table.label_names:
        numbers = {str(number): number for number in range(len(names))}
    labels = []
    for row, value in enumerate(_label_values(table)):
        value = str(int(value)) if _INTEGER.fullmatch(value) else value
        if value not in numbers:
            raise DataError(
                f"{_where_label(table, row)} is '{value}', not a class of the training data; have: {some(numbers)}"
            )
        labels.append(numbers[value])
    return np.array(labels, dtype=np.int64)


def _label_values(table: Table) -> list[str]:
    """The labels as they stand, without white space around them."""
    column = _label_column(table)
    if column is None:
        raise DataError(f"{table.name}: no column 'label' or 'labels'; have: {_found(table)}")
    values = [value.strip() for value in table.columns[column]]
    for row, value in enumerate(values):
        if not value:
            raise DataError(f"{table.where(row, column)} is empty; each line needs a class number or name")
        if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|nan)([eE][+-]?\d+)?", value, re.IGNORECASE):
            raise DataError(f"{table.where(row, column)} is '{value}'; allowed are class numbers or names")
    return values


def _where_label(table: Table, row: int) -> str:
    return table.where(row, _label_column(table) or "label")


def _found(table: Table) -> str:
    return ", ".join(table.columns)


def _download(data: str) -> dict[str, Table]:
    """The splits of a Hugging Face data set."""
    name, *config = data.rsplit("/", 1)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+){0,2}", data) or data.startswith(".") or data.endswith(SUFFIXES):
        raise DataError(f"no file or folder '{data}'")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"no file or folder '{data}'; to take it as a Hugging Face data set: pip install 'qnas-plugin[datasets]'"
        ) from error
    try:
        splits = datasets.load_dataset(name, *config, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"no file or folder '{data}', and as a Hugging Face data set (name/config or owner/name/config) it cannot "
            f"be loaded: {reason(error)}"
        ) from error
    return {split: _from_hugging_face(f"{data}[{split}]", splits[split]) for split in SPLITS if split in splits}


def _from_hugging_face(name: str, split: Any) -> Table:
    wanted = {column for columns in (*_TEXT_COLUMNS, _LABEL_COLUMNS) for column in columns}
    columns = {
        column: ["" if value is None else str(value) for value in split[column]]
        for column in split.column_names
        if column in wanted
    }
    table = Table(name, columns, range(1, len(split) + 1))
    names = getattr(split.features.get(_label_column(table)), "names", None)
    return Table(name, columns, table.lines, tuple(names) if names else None)


def tiny(folder: Path) -> Tiny:
    """See ``qnas_plugin.tasks``; sentences of different lengths, in two files."""
    from qnas_plugin.tasks import _tiny

    for split, count, first in (("train", 60, "the"), ("validation", 14, "a")):
        rows = [f"{first} {' '.join(_tiny.WORDS[int(digit)] for digit in f'{i:b}')}\t{i % 2}" for i in range(count)]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
    _tiny.write_tokenizer(folder)
    return Tiny(folder, folder)
