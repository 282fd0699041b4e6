"""Data for ``magika``, which tells what kind of file it sees: files of Python and of its packages on this machine."""

from __future__ import annotations

import json
import os
import sysconfig
from pathlib import Path

import numpy as np

MAGIKA = Path(os.environ["MAGIKA"])
FOLDERS = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib")), Path("/usr/share")]
KINDS = {
    **{".py": "python", ".json": "json", ".txt": "txt", ".html": "html", ".css": "css", ".js": "javascript"},
    **{".h": "c", ".c": "c", ".xml": "xml", ".md": "markdown", ".rst": "rst", ".toml": "toml", ".so": "elf"},
    **{".yaml": "yaml", ".png": "png", ".svg": "svg", ".csv": "csv", ".gz": "gzip", ".ini": "ini", ".pem": "pem"},
    **{".sh": "shell", ".pyc": "pythonbytecode", ".ttf": "ttf", ".whl": "zip", ".npz": "zip", ".pl": "perl"},
}
MOST, SIDE, PAD = 60, 1024, 256


def files() -> dict[str, np.ndarray]:
    """The first and the last 1024 bytes of up to 60 files of each kind, and the kind by the ending of the name."""
    labels = json.loads((MAGIKA / "models/standard_v3_3/config.min.json").read_text())["target_labels_space"]
    rng = np.random.default_rng(0)
    found: dict[str, list[Path]] = {ending: [] for ending in KINDS}
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*.*")):
            if path.suffix in found and path.is_file() and not path.is_symlink() and path.stat().st_size >= 64:
                found[path.suffix].append(path)
    rows, kinds = [], []
    for ending, paths in found.items():
        for i in rng.permutation(len(paths))[:MOST]:
            content = paths[i].read_bytes()
            begin = np.frombuffer(content[:4096].lstrip()[:SIDE], np.uint8)
            end = np.frombuffer(content[-4096:].rstrip()[-SIDE:], np.uint8)
            row = np.full(2 * SIDE, PAD, dtype=np.int32)
            row[: len(begin)] = begin
            row[2 * SIDE - len(end) :] = end
            rows.append(row)
            kinds.append(labels.index(KINDS[ending]))
    return {"bytes": np.stack(rows), "labels": np.array(kinds)}
