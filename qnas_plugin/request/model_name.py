"""What ``--model`` can name: an ONNX file, a folder with one, or a Hugging Face model of a known supernet family."""

from __future__ import annotations

import re
from pathlib import Path

from qnas_plugin import registry
from qnas_plugin.errors import UsageError, door
from qnas_plugin.files.doors import parse_json, read_bytes


def resolve(name: str) -> dict[str, str]:
    """The options ``model``, or ``supernet`` and ``checkpoint``, that a name stands for.

    A folder with ``model.onnx``, or with one other ONNX file, is what ``optimum-cli export onnx`` writes.

    Raises:
        UsageError: There is no such model, the folder has several ONNX files, or no supernet takes the model.
    """
    path = Path(name)
    if path.is_file() or path.suffix == ".onnx":
        return {"model": name}
    if path.is_dir():
        files = sorted(path.glob("*.onnx"))
        if path / "model.onnx" in files or len(files) == 1:
            return {"model": str(path / "model.onnx" if len(files) != 1 else files[0])}
        if files:
            raise UsageError(f"{name} has several ONNX files, {', '.join(f.name for f in files)}; name one")
    kind = _model_type(name)
    known = registry.names("supernets")
    if kind not in known:
        raise UsageError(
            f"{name} is a '{kind}' model, and the supernets are {', '.join(known)}; export it with: optimum-cli export "
            f"onnx --model {name} FOLDER, then give --model FOLDER"
        )
    return {"supernet": kind, "checkpoint": name}


def _model_type(name: str) -> str:
    """The ``model_type`` in a Hugging Face model's configuration, from a folder, the cache or the hub."""
    with door(UsageError, f"'{name}' is no ONNX file, no folder with one, and no Hugging Face model"):
        if Path(name).is_dir():
            path = Path(name) / "config.json"
        elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise ValueError("those are named organisation/name")
        else:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(name, "config.json"))
        return str(parse_json(read_bytes(path))["model_type"])
