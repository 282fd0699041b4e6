from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.doors import Door, doors


@pytest.fixture(scope="session")
def all_doors(
    bert_checkpoint: Path,
    vit_checkpoint: Path,
    beit3_images_checkpoint: Path,
    resnet50_checkpoint: Path,
    mobilenet_v3_checkpoint: Path,
    sentences: Path,
    questions: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Door, Path]]:
    """Every door with its sound folder."""
    checkpoints = {
        "bert": bert_checkpoint,
        "vit": vit_checkpoint,
        "beit3": beit3_images_checkpoint,
        "resnet50": resnet50_checkpoint,
        "mobilenet_v3": mobilenet_v3_checkpoint,
    }
    return doors(checkpoints, sentences, questions, tmp_path_factory.mktemp("doors"))
