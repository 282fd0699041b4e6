"""What stands beside a model file and belongs to it: weights, configuration, tokenizer, processor; nothing else is.

The folder of a model may hold anything, a key or a link to one too, and members of a Pareto set are published.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from qnas_plugin.errors import CheckpointError

CONFIGURATIONS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)
TOKENIZER = (
    "added_tokens.json",
    "bpe.codes",
    "chat_template.jinja",
    "chat_template.json",
    "dict.txt",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
"""Names that the tokenizers of transformers 4.57 give their files, taken where there is a tokenizer."""


def files(folder: Path) -> list[Path]:
    """The files that clients of a model load from beside it.

    Configurations, those of a tokenizer where there is one, and those that a configuration names in a field that ends
    in ``_file``; never one that a link brings in from elsewhere.
    """
    names = list(CONFIGURATIONS)
    if (folder / "tokenizer.json").exists() or (folder / "tokenizer_config.json").exists():
        names += TOKENIZER
    for name in CONFIGURATIONS:
        names += [value for _, value in _fields(folder / name) if Path(value).name == value]
    return [folder / name for name in sorted(set(names)) if _is_inside(folder / name, folder)]


def check_weights(model: onnx.ModelProto, file: Path) -> None:
    """Makes sure that weights beside a model file are files of its folder.

    Args:
        model: Without these weights.
        file: Where it came from.

    Raises:
        CheckpointError: They are elsewhere, or a link leads there, or there is no such file.
    """
    for tensor in _tensors(model.graph):
        if not uses_external_data(tensor):
            continue
        path = file.parent / ExternalDataInfo(tensor).location
        if not path.exists():
            raise CheckpointError(f"no file '{path}', in which '{file.name}' has '{tensor.name}'")
        if not _is_inside(path, file.parent):
            raise CheckpointError(
                f"'{file.name}' has '{tensor.name}' in '{path}', which is no file of its folder; if you trust it, copy "
                "it there"
            )


def check_tokenizer(checkpoint: str) -> None:
    """Makes sure that a tokenizer, which will be saved beside members, is made of files of its checkpoint.

    Args:
        checkpoint: A folder, or a Hugging Face name that has been loaded.

    Raises:
        CheckpointError: Its configuration names a file elsewhere, or a link leads there.
    """
    from huggingface_hub import try_to_load_from_cache

    folder = Path(checkpoint)
    if not folder.is_dir():
        stored = try_to_load_from_cache(checkpoint, "tokenizer_config.json")
        if not isinstance(stored, str):
            return
        folder = Path(stored).parent
    used = {name: folder / name for name in (*CONFIGURATIONS, *TOKENIZER)}
    # Transformers 4.57 reads such a path as it is; this one it only writes.
    fields = _fields(folder / "tokenizer_config.json")
    used |= {field: Path(value) for field, value in fields if field != "special_tokens_map_file"}
    for name, path in used.items():
        if "\0" not in str(path) and path.exists() and not _is_inside(path, folder):
            raise CheckpointError(
                f"the tokenizer of '{checkpoint}' has its {name} in {path.resolve()}, which is no file of its folder; "
                "if you trust it, copy it there"
            )


def _fields(configuration: Path) -> Iterator[tuple[str, str]]:
    """The fields of a configuration that name files."""
    if not _is_inside(configuration, configuration.parent):
        return
    try:
        record = json.loads(configuration.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # who needs it will say so
    for field, value in record.items() if isinstance(record, dict) else ():
        if field.endswith("_file") and isinstance(value, str):
            yield field, value


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether it is a file that really is in a folder, or in the store of a model of Hugging Face's cache."""
    real = folder.resolve()
    root = real.parent.parent if real.parent.name == "snapshots" else real
    try:
        return path.is_file() and path.resolve().is_relative_to(root)
    except (OSError, ValueError):  # a NUL in the name
        return False


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner) if inner.node or inner.initializer or inner.sparse_initializer else ()
