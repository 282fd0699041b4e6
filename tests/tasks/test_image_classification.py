from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qnas_plugin.data import SplitSizes
from qnas_plugin.errors import CheckpointError, DataError, UsageError
from qnas_plugin.tasks.image_classification import load, processor

SIZES = SplitSizes(calibration=4, search=6)


@pytest.fixture
def image_folder(tmp_path: Path, write_images: Callable[..., Path]) -> Path:
    write_images(tmp_path / "data" / "train", each=12, seed=0)
    write_images(tmp_path / "data" / "test", each=4, seed=1)
    return tmp_path / "data"


@pytest.fixture
def grey_processor_folder(tmp_path: Path) -> Path:
    from transformers import ViTImageProcessor

    folder = tmp_path / "grey"
    size = {"height": 8, "width": 8}
    ViTImageProcessor(do_resize=False, size=size, image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)
    return folder


def _arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (40, 8, 8), dtype=np.uint8),
        "y_train": np.arange(40) % 3,
        "x_test": rng.integers(0, 256, (9, 8, 8), dtype=np.uint8),
        "y_test": np.arange(9) % 3,
    }
    return {name: changes.get(name, array) for name, array in arrays.items()}


def test_load_gives_digits_scaled_to_bytes() -> None:
    dataset = load("digits", sizes=SplitSizes())
    parts = (dataset.train, dataset.calibration, dataset.search, dataset.selection, dataset.report)
    assert sum(map(len, parts)) == 1797
    assert len(dataset.report) == 599
    assert dataset.label_names == tuple("0123456789")
    for part in parts:
        images = np.stack(part.inputs)
        assert images.dtype == np.uint8
        assert images.shape == (len(part), 8, 8, 1)
        assert images.min() == 0
        assert images.max() == 255


def test_load_gives_images_of_folders_as_rgb(image_folder: Path) -> None:
    dataset = load(str(image_folder), sizes=SIZES)
    assert dataset.label_names == ("cat", "dog", "owl")
    assert len(dataset.train) == 36 - 4 - 6 - 6
    assert dataset.source == f"{image_folder} (train, test)"
    files = sorted((image_folder / "test").glob("*/*.png"))
    assert len(files) == len(dataset.report)
    for file, image, label in zip(files, dataset.report.inputs, dataset.report.labels, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(file)))
        assert dataset.label_names[label] == file.parent.name


def test_load_decodes_jpeg_bmp_and_grey_files(image_folder: Path) -> None:
    for i, mode in enumerate(("RGB", "L", "P", "RGBA")):
        image = Image.fromarray(np.full((8, 8, 3), 40 * i + 40, dtype=np.uint8)).convert(mode)
        image.save(image_folder / "test" / "cat" / f"x{mode}.png")
    Image.new("L", (5, 6), 99).save(image_folder / "test" / "cat" / "y.JPG")
    Image.new("RGB", (5, 6), 7).save(image_folder / "test" / "cat" / "y.bmp")
    (image_folder / "test" / "cat" / "notes.txt").write_text("not an image", encoding="utf-8")
    (image_folder / "test" / "cat" / "._x.png").write_text("not an image", encoding="utf-8")
    images = list(load(str(image_folder), sizes=SIZES).report.inputs)
    assert len(images) == 12 + 6
    assert {(image.shape, str(image.dtype)) for image in images} == {((8, 8, 3), "uint8"), ((6, 5, 3), "uint8")}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", "one.tar"])
def test_load_gives_the_same_from_tar_files(image_folder: Path, tmp_path: Path, suffix: str) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    if suffix == "one.tar":
        packed /= "one.tar"
        with tarfile.open(packed, "w") as archive:
            archive.add(image_folder, arcname="somewhere")
    else:
        for split in ("train", "test"):
            with tarfile.open(packed / f"{split}{suffix}", f"w:{suffix[5:]}") as archive:
                archive.add(image_folder / split, arcname=".")
    assert load(str(packed), sizes=SIZES).fingerprint == load(str(image_folder), sizes=SIZES).fingerprint


def test_load_passes_over_links_in_tar_files(image_folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), 1).save(secret)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(image_folder, arcname=".")
        link = tarfile.TarInfo("test/cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    assert len(load(str(tmp_path / "a.tar"), sizes=SIZES).report) == 12


def test_load_searches_on_validation_when_there_is_a_test_folder(
    image_folder: Path, write_images: Callable[..., Path]
) -> None:
    write_images(image_folder / "val", each=8, seed=2)
    dataset = load(str(image_folder), sizes=SIZES)
    assert len(dataset.train) == 36
    validation = {np.asarray(Image.open(file)).tobytes() for file in (image_folder / "val").glob("*/*")}
    assert {image.tobytes() for image in dataset.search.inputs} <= validation


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_load_gives_the_arrays_of_an_npz_file(tmp_path: Path, channels: int | None) -> None:
    arrays = _arrays()
    if channels:
        arrays |= {name: np.repeat(arrays[name][..., None], channels, axis=3) for name in ("x_train", "x_test")}
    np.savez(tmp_path / "a.npz", **arrays)
    dataset = load(str(tmp_path / "a.npz"), sizes=SIZES)
    np.testing.assert_array_equal(np.stack(dataset.report.inputs), arrays["x_test"].reshape(9, 8, 8, channels or 1))
    np.testing.assert_array_equal(dataset.report.labels, arrays["y_test"])
    assert dataset.label_names == ("0", "1", "2")
    assert len(dataset.train) == 40 - 4 - 6 - 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": np.zeros((9, 8, 8))}, r"x_test is float64 of shape \(9, 8, 8\); it must be uint8"),
        ({"x_train": np.zeros((40, 64), np.uint8)}, r"x_train is uint8 of shape \(40, 64\)"),
        ({"x_train": np.zeros((40, 8, 8, 2), np.uint8)}, r"x_train is uint8 of shape \(40, 8, 8, 2\)"),
        ({"x_test": np.zeros((0, 8, 8), np.uint8)}, r"x_test is uint8 of shape \(0, 8, 8\)"),
        ({"y_train": np.zeros(39, int)}, r"y_train is int64 of shape \(39,\); it must be integers of shape \(40,\)"),
        ({"y_test": np.zeros(9)}, "y_test is float64"),
        ({"y_train": np.arange(40) % 3 + 1}, r"y_train must hold two classes or more, .*got \[1 2 3\]"),
        ({"y_test": np.zeros(9, int)}, r"y_test must hold the classes of y_train, \[0 1 2\]; got \[0\]"),
        ({"y_test": np.array([{}] * 9)}, "not a readable .npz file: Object arrays cannot be loaded"),
    ],
)
def test_load_raises_when_an_array_is_malformed(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **_arrays(**changes))
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "a.npz"), sizes=SIZES)


def test_load_raises_when_an_array_is_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(DataError, match="no array y_train, x_test, y_test; have: x_train"):
        load(str(tmp_path / "a.npz"), sizes=SIZES)


@pytest.mark.parametrize("content", ["empty", "text", "npy", "truncated"])
def test_load_raises_when_an_npz_file_is_damaged(tmp_path: Path, content: str) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **_arrays())
    plain = io.BytesIO()
    np.save(plain, np.zeros(3))
    contents = {"empty": b"", "text": b"hello", "npy": plain.getvalue(), "truncated": buffer.getvalue()[:500]}
    (tmp_path / "a.npz").write_bytes(contents[content])
    with pytest.raises(DataError, match=r"not a readable .npz file"):
        load(str(tmp_path / "a.npz"), sizes=SIZES)


@pytest.mark.parametrize(
    ("suffix", "kept"), [("", 5000), ("", 5120), ("", 5700), (".xz", 5000), (".gz", 5000), ("", 0)]
)
def test_load_raises_when_a_tar_file_is_truncated(image_folder: Path, tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"a.tar{suffix}"
    with tarfile.open(path, f"w:{suffix[1:]}") as archive:
        archive.add(image_folder, arcname=".")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"a.tar.*: not a readable tar file: .*; fetch it again"):
        load(str(path), sizes=SIZES)


def test_load_raises_when_a_tar_file_has_no_class_folders(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        archive.add(tmp_path / "a.png", arcname="./a.png")
    with pytest.raises(DataError, match=r"train.tar: 'a.png' must be in <class>/"):
        load(str(tmp_path), sizes=SIZES)


def test_load_raises_when_a_file_is_no_image(image_folder: Path) -> None:
    (image_folder / "train" / "dog" / "003.png").write_text("hello", encoding="utf-8")
    with pytest.raises(DataError, match=r"train/dog/003.png: not a readable image: .*; remove or replace it"):
        load(str(image_folder), sizes=SIZES)


def test_load_raises_at_the_access_of_an_image_when_it_is_truncated(image_folder: Path) -> None:
    file = image_folder / "test" / "cat" / "000.png"
    file.write_bytes(file.read_bytes()[:100])
    images = load(str(image_folder), sizes=SIZES).report.inputs
    with pytest.raises(DataError, match=r"test/cat/000.png: not a readable image"):
        images[0]


def test_load_raises_when_a_class_folder_is_empty(image_folder: Path) -> None:
    (image_folder / "train" / "ape").mkdir()
    with pytest.raises(DataError, match=r"train/ape: no image in this class folder"):
        load(str(image_folder), sizes=SIZES)


def test_load_raises_when_the_splits_have_other_classes(image_folder: Path, write_images: Callable[..., Path]) -> None:
    write_images(image_folder / "test", classes=("ape",), each=2, seed=3)
    with pytest.raises(DataError, match="train and test must have the same class folders; only one has 'ape'"):
        load(str(image_folder), sizes=SIZES)


def test_load_raises_when_there_is_one_class(tmp_path: Path, write_images: Callable[..., Path]) -> None:
    for seed, split in enumerate(("train", "test")):
        write_images(tmp_path / split, classes=("cat",), each=9, seed=seed)
    with pytest.raises(DataError, match="two class folders or more are needed in train, got only 'cat'"):
        load(str(tmp_path), sizes=SIZES)


def test_load_raises_when_a_split_is_there_twice(image_folder: Path) -> None:
    (image_folder / "test.tar.xz").touch()
    with pytest.raises(DataError, match=r"test and test.tar.xz are the same split; keep one"):
        load(str(image_folder), sizes=SIZES)


@pytest.mark.parametrize(("data", "message"), [("absent", "no file or folder 'absent'"), ("a.txt", "cannot tell")])
def test_load_raises_when_there_is_no_such_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").touch()
    with pytest.raises(DataError, match=f"{message}.*; allowed: digits"):
        load(data, sizes=SIZES)


def test_batches_are_encoded_at_their_access(image_processor_folder: Path) -> None:
    images = [np.full((8, 8, 3), 10 * i, dtype=np.uint8) for i in range(5)]
    batches = processor(str(image_processor_folder)).batches(images, 2)
    assert len(batches) == 3
    assert batches[2].positions.tolist() == [4]
    assert batches[1].inputs["pixel_values"] is not batches[1].inputs["pixel_values"]
    pixels = batches[1].inputs["pixel_values"]
    assert pixels.dtype == np.float32
    assert pixels.shape == (2, 3, 16, 16)
    np.testing.assert_allclose(pixels[1], 30 / 255 / 0.5 - 1, atol=1e-6)


def test_batches_keep_the_pixels_of_grey_digits(grey_processor_folder: Path) -> None:
    images = list(load("digits", sizes=SIZES).search.inputs)
    (batch,) = processor(str(grey_processor_folder)).batches(images, 10)
    expected = np.stack(images).astype(np.float32).transpose(0, 3, 1, 2) / 255 / 0.5 - 1
    np.testing.assert_allclose(batch.inputs["pixel_values"], expected, atol=1e-6)


def test_batches_repeat_grey_when_three_channels_are_expected(image_processor_folder: Path) -> None:
    (batch,) = processor(str(image_processor_folder)).batches([np.full((8, 8, 1), 255, dtype=np.uint8)], 1)
    np.testing.assert_allclose(batch.inputs["pixel_values"], np.ones((1, 3, 16, 16)), atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 8, 1), (8, 8, 3)])
def test_batches_raise_when_images_do_not_fit(grey_processor_folder: Path, shape: tuple[int, int, int]) -> None:
    images = [np.zeros((8, 8, 1), dtype=np.uint8), np.zeros(shape, dtype=np.uint8)]
    with pytest.raises(DataError, match=r"cannot make one batch of images of shape \(8, 8, 1\), "):
        list(processor(str(grey_processor_folder)).batches(images, 2))


def test_timing_inputs_have_the_size_of_the_model(
    grey_processor_folder: Path, image_processor_folder: Path, tmp_path: Path
) -> None:
    from transformers import BitImageProcessor

    cropped = BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
    cropped.save_pretrained(tmp_path / "bit")
    shapes = {
        folder: processor(str(folder)).timing_inputs(2, None)["pixel_values"].shape
        for folder in (grey_processor_folder, image_processor_folder, tmp_path / "bit")
    }
    assert list(shapes.values()) == [(2, 1, 8, 8), (2, 3, 16, 16), (2, 3, 28, 28)]


def test_processor_raises_when_a_max_length_is_given(image_processor_folder: Path) -> None:
    with pytest.raises(UsageError, match="images have no max_length, got 8"):
        processor(str(image_processor_folder), max_length=8)


@pytest.mark.parametrize("content", [None, "{", "{}", '{"image_processor_type": "Unknown"}'])
def test_processor_raises_when_its_file_is_missing_or_corrupt(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "preprocessor_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"no usable image processor in '{tmp_path}': .*save_pretrained") as error:
        processor(str(tmp_path))
    assert "\n" not in str(error.value)
