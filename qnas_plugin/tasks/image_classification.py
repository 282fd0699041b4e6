"""Images with one class each: scikit-learn's digits, a folder or tar file of class folders, or an .npz file.

``data`` is one of

- ``digits``: 1,797 grey images of 8x8 pixels, of which a third is reported;
- a folder with ``train/<class>/*`` and ``test/<class>/*`` or ``validation/<class>/*`` (see
  `qnas_plugin.tasks.held_out_and_report`), where each split may be a tar file, or one tar file of such a folder;
  images are PNG, JPEG or BMP files;
- an ``.npz`` file with ``x_train`` and ``x_test``, ``uint8`` of shape ``(n, h, w)`` or ``(n, h, w, c)`` with 1 or 3
  channels, and their class numbers ``y_train`` and ``y_test``.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from qnas_plugin.data import Batch, Dataset, Inputs, OnAccess, SplitSizes
from qnas_plugin.errors import CheckpointError, DataError, UsageError, door, reason
from qnas_plugin.files.doors import check_files, check_unpacked, read_bytes, read_npz, unpacked
from qnas_plugin.tasks import SPLITS, Pool, Tiny, assemble, checkpoint_folder, content_key, held_out_and_report

if TYPE_CHECKING:
    from transformers.image_processing_utils import BaseImageProcessor

Pixels = npt.NDArray[np.uint8]
"""One image, shape ``(h, w, c)`` with 1 or 3 channels."""

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_LARGEST = 8192
"""Pixels of a side that an image processor may ask for."""

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz")


def load(data: str, *, sizes: SplitSizes) -> Dataset:
    """The data set of that name or at that path in four parts; an example is an image ``(h, w, c)``.

    Images of files are decoded to RGB when they are accessed.

    Raises:
        DataError: There is no such data set, or it is malformed; a damaged image may show at its access only.
    """
    path = Path(data)
    if data == "digits":
        return _digits(sizes)
    if path.is_dir() or (path.is_file() and path.name.endswith(_TAR_SUFFIXES)):
        return _from_files(path, sizes)
    if path.is_file() and path.suffix == ".npz":
        return _from_npz(path, sizes)
    problem = "cannot tell the format of" if path.exists() else "no file or folder"
    raise DataError(f"{problem} '{data}'; allowed: digits, a folder or tar file of class folders, an .npz file")


def processor(checkpoint: str, *, max_length: int | None = None) -> ImageProcessor:
    """The image processor of a checkpoint: a folder or a Hugging Face name.

    Raises:
        CheckpointError: There is no usable image processor.
        UsageError: A maximal length is given, which images do not have.
    """
    if max_length is not None:
        raise UsageError(f"images have no max_length, got {max_length}; leave it out")
    from transformers import AutoImageProcessor

    folder = checkpoint_folder(checkpoint)
    with door(
        CheckpointError,
        f"no usable image processor in '{checkpoint}'",
        "save one there as preprocessor_config.json with image_processor.save_pretrained",
    ):
        check_files(folder)
        # The fast processors of transformers 4.57 need torchvision.
        made = ImageProcessor(AutoImageProcessor.from_pretrained(folder, use_fast=False, trust_remote_code=False))
        made.check()
        return made


@dataclass(frozen=True)
class ImageProcessor:
    """A Hugging Face image processor. ``image_mean`` tells the number of channels; grey images are repeated to it."""

    image_processor: BaseImageProcessor

    def batches(self, inputs: Sequence[Any], batch_size: int) -> Sequence[Batch]:
        """Images in their order, encoded at each access: ``pixel_values``, ``float32`` ``(b, c, h, w)``."""
        positions = np.arange(len(inputs), dtype=np.int64)
        chunks = np.split(positions, range(batch_size, len(inputs), batch_size)) if len(inputs) else []
        return OnAccess(chunks, partial(self._batch, inputs))

    def timing_inputs(self, batch_size: int, sequence_length: int | None, examples: Sequence[Any] = ()) -> Inputs:
        """Noise of the shape that the image processor gives; ``sequence_length`` means nothing here."""
        shape = self.pixel_values([self._blank()]).shape[1:]
        return {"pixel_values": np.random.default_rng(0).standard_normal((batch_size, *shape), dtype=np.float32)}

    def check(self) -> None:
        """Takes one blank image through it.

        Raises:
            Exception: Of many kinds, when what it was made from is damaged.
        """
        sizes = [*dict(self.image_processor.size or {}).values()]
        sizes += [*dict(getattr(self.image_processor, "crop_size", None) or {}).values()]
        if not all(isinstance(size, int) and 0 < size <= _LARGEST for size in sizes):
            raise ValueError(f"it makes images of {sizes} pixels, allowed is up to {_LARGEST}")
        if not np.isfinite(self.pixel_values([self._blank()])).all():
            raise ValueError("it gives numbers that are not finite")

    def save(self, folder: Path) -> None:
        """Writes ``preprocessor_config.json``."""
        self.image_processor.save_pretrained(str(folder))

    def _blank(self) -> Pixels:
        """An image of the size that is asked for."""
        size = self.image_processor.size
        edge = size.get("shortest_edge", 224)
        return np.zeros((size.get("height", edge), size.get("width", edge), self._channels), dtype=np.uint8)

    @property
    def _channels(self) -> int:
        mean = getattr(self.image_processor, "image_mean", None)
        return len(mean) if mean else 3

    def _batch(self, inputs: Sequence[Any], positions: npt.NDArray[np.int64]) -> Batch:
        return Batch({"pixel_values": self.pixel_values([inputs[i] for i in positions])}, positions)

    def pixel_values(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """``(b, c, h, w)``.

        Raises:
            DataError: They cannot be one batch.
        """
        images = [image.repeat(self._channels, axis=2) if image.shape[2] == 1 else image for image in images]
        try:
            encoded = self.image_processor(images, return_tensors="np", input_data_format="channels_last")
        except ValueError as error:
            shapes = ", ".join(str(shape) for shape in sorted({image.shape for image in images})[:4])
            raise DataError(
                f"the image processor cannot make one batch of images of shape {shapes}: {reason(error)}; give images "
                f"of one size and {self._channels} channels, or an image processor with do_resize"
            ) from error
        return np.asarray(encoded["pixel_values"], dtype=np.float32)


@dataclass(frozen=True)
class ImageFile:
    """An encoded image: its path for people, and its bytes or where they are."""

    name: str
    content: bytes | Path

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else read_bytes(self.content)


@contextmanager
def opened(file: ImageFile) -> Iterator[tuple[bytes, Image.Image]]:
    """The bytes of a file and its image, of which Pillow has read the header only.

    Raises:
        DataError: It is not readable.
    """
    with door(DataError, f"{file.name}: not a readable image", "remove or replace it"):
        content = file.read()
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "BMP")) as image:
            yield content, image


def decode(file: ImageFile) -> Pixels:
    """The image in RGB.

    Raises:
        DataError: It is not readable.
    """
    with opened(file) as (_, image):
        return np.asarray(image.convert("RGB"))


def _digits(sizes: SplitSizes) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    pool = _array_pool(images, digits.target.astype(np.int64))
    names = tuple(str(name) for name in digits.target_names)
    return assemble(pool, held_out=None, report=None, sizes=sizes, label_names=names, source="scikit-learn digits")


def _array_pool(images: Pixels, labels: npt.NDArray[np.int64]) -> Pool:
    shape = str(images.shape[1:]).encode()
    return Pool(list(images), labels, [content_key(shape, image.tobytes()) for image in images])


def _from_npz(path: Path, sizes: SplitSizes) -> Dataset:
    needed = ("x_train", "y_train", "x_test", "y_test")
    with door(DataError, f"{path}: not a readable .npz file", "save it with numpy.savez"):
        arrays = read_npz(path)
    if missing := [name for name in needed if name not in arrays]:
        raise DataError(f"{path}: no array {', '.join(missing)}; have: {', '.join(arrays) or 'none'}")
    pools = {}
    for split in ("train", "test"):
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
            raise DataError(
                f"{path}: x_{split} is {arrays[f'x_{split}'].dtype} of shape {arrays[f'x_{split}'].shape}; it must be "
                "uint8 of shape (n, h, w), (n, h, w, 1) or (n, h, w, 3)"
            )
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise DataError(
                f"{path}: y_{split} is {labels.dtype} of shape {labels.shape}; it must be integers of shape "
                f"{images.shape[:1]}, one for each image"
            )
        pools[split] = _array_pool(images, labels.astype(np.int64))
    classes = np.unique(pools["train"].labels)
    if len(classes) < 2 or classes[0] != 0 or classes[-1] != len(classes) - 1:
        raise DataError(f"{path}: y_train must hold two classes or more, counted from 0 without a gap, got {classes}")
    if not np.array_equal(classes, np.unique(pools["test"].labels)):
        raise DataError(
            f"{path}: y_test must hold the classes of y_train, {classes}; got {np.unique(arrays['y_test'])}"
        )
    names = tuple(str(number) for number in classes)
    return assemble(
        pools["train"], held_out=None, report=pools["test"], sizes=sizes, label_names=names, source=str(path)
    )


def _from_files(path: Path, sizes: SplitSizes) -> Dataset:
    splits: dict[str, dict[str, list[ImageFile]]] = {}
    for split, class_name, file in _image_files(path):
        splits.setdefault(split, {}).setdefault(class_name, []).append(file)
    held_out, report = held_out_and_report(splits, str(path))
    names = tuple(sorted(splits["train"]))
    if len(names) < 2:
        raise DataError(f"{path}: two class folders or more are needed in train, got only '{names[0]}'")
    used = [split for split in ("train", held_out, report) if split]
    for split in used:
        if odd := sorted(splits[split].keys() ^ splits["train"].keys()):
            raise DataError(f"{path}: train and {split} must have the same class folders; only one has '{odd[0]}'")
    return assemble(
        _file_pool(splits["train"], names),
        held_out=_file_pool(splits[held_out], names) if held_out else None,
        report=_file_pool(splits[report], names),
        sizes=sizes,
        label_names=names,
        source=f"{path} ({', '.join(used)})",
        view=partial(OnAccess, make=decode),
    )


def _file_pool(classes: Mapping[str, Sequence[ImageFile]], names: Sequence[str]) -> Pool:
    files, labels, keys = [], [], []
    for label, name in enumerate(names):
        for file in sorted(classes[name], key=lambda file: file.name):
            with opened(file) as (content, _):
                keys.append(content_key(content))
            files.append(file)
            labels.append(label)
    return Pool(files, np.array(labels, dtype=np.int64), keys)


def _image_files(path: Path) -> Iterator[tuple[str, str, ImageFile]]:
    """Split, class and file of each image of a folder or tar file."""
    if path.is_file():
        yield from _tar_files(path, None)
        return
    for split in SPLITS:
        found = [entry for suffix in ("", *_TAR_SUFFIXES) if (entry := path / f"{split}{suffix}").exists()]
        if len(found) > 1:
            raise DataError(f"{path}: {' and '.join(entry.name for entry in found)} are the same split; keep one")
        for entry in found:
            yield from _tar_files(entry, split) if entry.is_file() else _folder_files(entry)


def _folder_files(folder: Path) -> Iterator[tuple[str, str, ImageFile]]:
    for class_folder in sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."):
        files = [file for file in class_folder.iterdir() if _is_image(file)]
        if not files:
            raise DataError(f"{class_folder}: no image in this class folder; allowed: {', '.join(_IMAGE_SUFFIXES)}")
        for file in files:
            yield folder.name, class_folder.name, ImageFile(str(file), file)


def _tar_files(path: Path, split: str | None) -> Iterator[tuple[str, str, ImageFile]]:
    """The images of a tar file, read without writing any; ``split`` is None where the folders in it name the split."""
    bytes_ = 0
    with (
        door(DataError, f"{path}: not a readable tar file", "fetch it again"),
        unpacked(path) as plain,
        tarfile.open(fileobj=plain, mode="r:") as archive,
    ):
        for member in archive:
            name = PurePosixPath(member.name)
            if not member.isfile() or not _is_image(name):
                continue
            *outer, class_name, _ = ("", "", *name.parts)
            bytes_ += member.size  # of a sparse file: what it becomes, not what it takes in the archive
            check_unpacked(bytes_)
            content = archive.extractfile(member)
            if not class_name or not (split or outer[-1]) or content is None:
                raise DataError(f"{path}: '{name}' must be in {'' if split else '<split>/'}<class>/")
            yield split or outer[-1], class_name, ImageFile(f"{path}:{name}", content.read())
        # tarfile of Python 3.11 takes a cut or broken header for the end, which is a block of zeros.
        plain.seek(archive.offset)
        if plain.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end after {archive.offset} bytes")


def _is_image(path: PurePath) -> bool:
    return path.suffix.lower() in _IMAGE_SUFFIXES and not path.name.startswith(".")


def tiny(folder: Path) -> Tiny:
    """See ``qnas_plugin.tasks``; PNG files of noise in three classes, 8x8 pixels, which the processor makes 16x16."""
    from transformers import ViTImageProcessor

    for split, each, seed in (("train", 20, 0), ("test", 5, 1)):
        rng = np.random.default_rng(seed)
        for name in ("cat", "dog", "owl"):
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i:03}.png")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return Tiny(folder, folder)
