"""A study that is done, for a machine that is not here: no latency is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qnas_plugin.commands.tune import tune
from qnas_plugin.hardware import RuntimeSetting, load_profile
from qnas_plugin.latency import table as latency_table
from qnas_plugin.latency.rows import Decomposition, join
from qnas_plugin.latency.table import LatencyTable
from qnas_plugin.measure import latency
from qnas_plugin.request import TuneRequest
from qnas_plugin.supernets import Supernet
from qnas_plugin.supernets.bert import load as load_bert
from tests.latency.test_table import table

THERE, ELSEWHERE = "xeon-8280", "xeon-8380"
SETTING = RuntimeSetting(sequence_length=16)


def table_of(supernet: Supernet, sku: str, seed: int) -> LatencyTable:
    keys = Decomposition(supernet.space, join(supernet.parts, "linear")).keys
    times = np.random.default_rng(seed).uniform(0.1, 1, len(keys)).tolist()
    rows = {str(key): ms * (1 if "int8" in str(key) else 3) for key, ms in zip(keys, times, strict=True)}
    fields = {"supernet": "bert", "shape": supernet.shape, "hardware": load_profile(sku), "setting": SETTING}
    return table(rows, **fields)


@pytest.fixture(scope="session")
def supernet(bert_checkpoint: Path) -> Supernet:
    return load_bert(str(bert_checkpoint))


@pytest.fixture(scope="session")
def request_(
    bert_checkpoint: Path, sentences: Path, supernet: Supernet, tmp_path_factory: pytest.TempPathFactory
) -> TuneRequest:
    """Of a search that is done, for a machine that is not here."""
    folder = tmp_path_factory.mktemp("table")
    request = TuneRequest(
        supernet="bert",
        checkpoint=str(bert_checkpoint),
        task="text_classification",
        data=str(sentences),
        out=folder / "study",
        hardware=THERE,
        seq_len=16,
        latency="table",
        table=latency_table.write(table_of(supernet, THERE, 0), folder),
        trials=10,
        population=4,
        calibration_samples=8,
        search_samples=40,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "_process", lambda *_, **__: pytest.fail("a latency was measured"))
        tune(request)
    return request
