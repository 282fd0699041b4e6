"""Hostile folders: what is published beside a member, what is read, and code that a checkpoint brings along."""

from __future__ import annotations

import ast
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qnas_plugin
from qnas_plugin import registry
from qnas_plugin.errors import CheckpointError, QnasError
from qnas_plugin.files import beside
from qnas_plugin.supernets.onnx_file import onnx_model
from qnas_plugin.tasks import arrays, image_classification, text_classification

KEY = '{"type": "service_account", "private_key": "S3cr3t"}'


def model(folder: Path) -> Path:
    """A model of one layer with its weight beside it, in ``w.bin``."""
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 64]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")], "g", values[:1], values[1:], [weight]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, str(folder / "model.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    return folder / "model.onnx"


def published(folder: Path, out: Path) -> set[str]:
    """What a member gets of a folder with a model."""
    arrays.processor(str(model(folder))).save(out)
    return {path.name for path in out.iterdir()}


def test_members_get_what_the_configuration_and_the_tokenizer_name_and_nothing_else(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"dictionary_file": "keys.txt", "other_file": "../secret.txt"}))
    (folder / "keys.txt").write_text("a\nb")
    (tmp_path / "secret.txt").write_text(KEY)
    for name in ("service-account.json", "notes.txt", "private.model", "mail.jinja", ".env", "vocab.txt"):
        (folder / name).write_text(KEY)
    assert published(folder, out) == {"config.json", "keys.txt"}
    (folder / "tokenizer_config.json").write_text("{}")
    assert published(folder, out) == {"config.json", "keys.txt", "tokenizer_config.json", "vocab.txt"}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a_file": 1}', '{"a_file": "x\\u0000y"}', "[" * 100_000])
def test_a_configuration_that_names_nothing_is_no_obstacle(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert [path.name for path in beside.files(tmp_path)] == ["config.json"]


def test_members_get_nothing_through_links_and_no_pipe_is_waited_for(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (tmp_path / "key.json").write_text(KEY)
    (folder / "tokenizer.json").symlink_to(tmp_path / "key.json")
    (folder / "vocab.txt").symlink_to("../key.json")
    (folder / "merges.txt").symlink_to("nowhere")
    os.mkfifo(folder / "config.json")
    assert published(folder, out) == set()


def test_links_into_the_store_of_hugging_faces_cache_are_of_the_model(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (tmp_path / "key.json").write_text(KEY)
    (snapshot / "preprocessor_config.json").symlink_to(tmp_path / "key.json")
    assert [path.name for path in beside.files(snapshot)] == ["config.json"]


@pytest.mark.parametrize("way", ["link", "link of a folder", "pipe", "missing"])
def test_weights_that_are_no_file_of_the_folder_are_refused(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    file = model(folder)
    if way == "link of a folder":
        proto = onnx.load(str(file), load_external_data=False)
        proto.graph.initializer[0].external_data[0].value = "sub/w.bin"
        file.write_bytes(proto.SerializeToString())
        (tmp_path / "other").mkdir()
        shutil.move(folder / "w.bin", tmp_path / "other" / "w.bin")
        (folder / "sub").symlink_to(tmp_path / "other")
    else:
        shutil.move(folder / "w.bin", tmp_path / "secret.bin")
    if way == "link":
        (folder / "w.bin").symlink_to(tmp_path / "secret.bin")
    if way == "pipe":
        os.mkfifo(folder / "w.bin")
    with pytest.raises(CheckpointError, match=r"no file"):
        onnx_model.load(str(file))


@pytest.mark.parametrize("way", ["named", "link"])
def test_a_tokenizer_is_made_of_files_of_its_folder(way: str, bert_checkpoint: Path, tmp_path: Path) -> None:
    """Else a checkpoint could have any text file of the user copied beside the members, as its vocabulary."""
    shutil.copytree(bert_checkpoint, folder := tmp_path / "in")
    text_classification.processor(str(folder))
    (folder / "tokenizer.json").unlink()
    (tmp_path / "secret.txt").write_text((folder / "vocab.txt").read_text() + "\nS3cr3t")
    if way == "link":
        (folder / "vocab.txt").unlink()
        (folder / "vocab.txt").symlink_to(tmp_path / "secret.txt")
    else:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["vocab_file"] = str(tmp_path / "secret.txt")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"has its vocab(_file|\.txt) in .*, which is no file of its folder"):
        text_classification.processor(str(folder))


CODE = "import pathlib\npathlib.Path({!r}).touch()\n"
LOADERS: dict[str, Callable[[str], object]] = {
    "bert": lambda folder: registry.load("supernets", "bert").load(folder),
    "vit": lambda folder: registry.load("supernets", "vit").load(folder),
    "tokenizer": lambda folder: text_classification.processor(folder),
    "image processor": lambda folder: image_classification.processor(folder),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_checkpoint_is_never_run_and_never_offered(
    loader: str,
    known: bool,
    bert_checkpoint: Path,
    vit_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = bert_checkpoint if loader in ("bert", "tokenizer") else vit_checkpoint
    shutil.copytree(source, folder := tmp_path / "in")
    (folder / "mine.py").write_text(CODE.format(str(tmp_path / "ran")))
    classes = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoImageProcessor")
    mine = {"auto_map": dict.fromkeys(classes, "mine.A") | {"AutoTokenizer": ["mine.A", "mine.A"]}}
    if not known:
        mine |= {"model_type": "mine", "tokenizer_class": "A", "image_processor_type": "A"}
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | mine))
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    try:
        LOADERS[loader](str(folder))
    except QnasError:
        assert not known
    assert asked == []
    assert not (tmp_path / "ran").exists()
    assert "mine" not in sys.modules


def test_every_call_that_could_run_code_says_that_it_must_not() -> None:
    root = Path(qnas_plugin.__file__).parent
    seen = 0
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr == "load_dataset" or ast.unparse(node.func).startswith(("Auto", "config_class.from_pre")):
                seen += 1
                words = ast.unparse(node)
                assert "trust_remote_code=False" in words or "**options" in words, f"{path.name}:{node.lineno} {words}"
    assert seen >= 5
