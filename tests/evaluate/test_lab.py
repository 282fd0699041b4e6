from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qnas_plugin import registry
from qnas_plugin.data import SplitSizes
from qnas_plugin.errors import MaterializeError
from qnas_plugin.evaluate.bench import CORE_SHARE
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.measure.accuracy import scores
from qnas_plugin.measure.belief import RATIO, SOFT, Halves
from qnas_plugin.measure.metrics import Scorer
from qnas_plugin.quantizers.formats import Precisions
from qnas_plugin.space import Precision
from qnas_plugin.supernets import Elastic
from tests.sessions import HERE


def make(family: str, checkpoint: Path, data: str, precisions: Precisions | None = None, reference: Any = None) -> Lab:
    task = registry.load("tasks", "text_classification" if family == "bert" else "image_classification")
    elastic = Elastic((2, 3, 4), (1, 2, 4), (16, 32, 48))
    supernet = registry.load("supernets", family).load(str(checkpoint), elastic=elastic, precisions=precisions)
    dataset = task.load(data, sizes=SplitSizes(calibration=16, search=60))
    setting = RuntimeSetting(sequence_length=16 if family == "bert" else None)
    corner = None if reference is None else supernet.space.corner(reference, Precision.INT8)
    return Lab(supernet, dataset, task.processor(str(checkpoint)), HERE, setting, reference=corner)


@pytest.fixture(scope="module", params=["bert", "vit"])
def lab(request: pytest.FixtureRequest, bert_checkpoint: Path, vit_checkpoint: Path, sentences: Path) -> Lab:
    if request.param == "bert":
        return make("bert", bert_checkpoint, str(sentences))
    return make("vit", vit_checkpoint, "digits")


def test_evaluate_measures_the_file_that_it_leaves(lab: Lab, tmp_path: Path) -> None:
    space = lab.network.space
    candidate = space.decode(space.sample(1, np.random.default_rng(0))[0])
    evaluation = lab.evaluate(candidate, tmp_path)
    assert set(evaluation.metrics) - {CORE_SHARE} == {"accuracy", SOFT, "latency_ms", "size_mb"}
    assert evaluation.metrics["size_mb"] == (tmp_path / "model.onnx").stat().st_size / 1e6
    scored = lab.scores(tmp_path / "model.onnx", "search")
    assert len(scored.scores) == len(lab.dataset.search)
    assert evaluation.metrics["accuracy"] == np.mean(scored.scores)
    assert scored.soft is not None
    assert evaluation.metrics[SOFT] == np.mean(scored.soft)
    assert evaluation.halves == Halves.of(scored)
    assert set(evaluation.seconds) == {"slice", "calibrate", "quantize", "write", "accuracy", "latency"}
    assert evaluation.spread["latency_ms"] >= 0


def test_evaluate_times_in_turns_with_the_reference(bert_checkpoint: Path, sentences: Path, tmp_path: Path) -> None:
    lab = make("bert", bert_checkpoint, str(sentences), reference="largest")
    space = lab.network.space
    metrics = lab.evaluate(space.corner("smallest", Precision.INT8), tmp_path).metrics
    assert metrics[RATIO] > 0
    reference = (tmp_path / "reference.onnx").read_bytes()
    lab.write(space.corner("largest", Precision.INT8), tmp_path / "largest.onnx")
    assert reference == (tmp_path / "largest.onnx").read_bytes()
    lab.evaluate(space.corner("smallest", Precision.FP32), tmp_path)
    assert (tmp_path / "reference.onnx").read_bytes() == reference


def test_scores_agree_with_one_example_at_a_time(lab: Lab, tmp_path: Path) -> None:
    """Batches by length are padded; one example alone is not."""
    space = lab.network.space
    model = lab.build(space.corner("largest", Precision.FP32))
    onnx.save(model, tmp_path / "model.onnx")
    examples = lab.dataset.report
    together = lab.scores(tmp_path / "model.onnx", "report")
    batches = lab.processor.batches(examples.inputs, 1)
    alone = scores(tmp_path / "model.onnx", batches, Scorer("accuracy", examples.labels), threads=1)
    np.testing.assert_array_equal(together.scores, alone.scores)
    assert together.soft is not None
    assert alone.soft is not None
    np.testing.assert_allclose(together.soft, alone.soft, atol=1e-5)


def test_build_gives_the_same_bytes_in_a_fresh_lab(bert_checkpoint: Path, sentences: Path, lab: Lab) -> None:
    first, second = (make("bert", bert_checkpoint, str(sentences)) for _ in range(2))
    space = first.network.space
    candidates = [space.decode(genes) for genes in space.sample(3, np.random.default_rng(1))]
    for candidate in candidates[::-1]:
        second.build(candidate)
    for candidate in candidates:
        files = [e.build(candidate).SerializeToString(deterministic=True) for e in (first, second)]
        assert files[0] == files[1]


def test_build_quantizes_what_the_policy_says(lab: Lab) -> None:
    space = lab.network.space
    sizes = {precision: lab.build(space.corner("largest", precision)).ByteSize() for precision in Precision}
    assert sizes[Precision.INT8] < sizes[Precision.FP32]
    int8 = lab.build(space.corner("largest", Precision.INT8))
    stored = {i.name for i in int8.graph.initializer if i.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)}
    assert len([name for name in stored if name.endswith("_quantized")]) >= len(lab.network.groups)


def test_check_catches_a_graph_that_differs_from_the_model(lab: Lab) -> None:
    candidate = lab.network.space.corner("largest", Precision.FP32)
    lab.check(candidate)
    bias = lab.network.model.classifier.bias.data
    bias[0] += 1
    try:
        with pytest.raises(MaterializeError, match="differs by 1 from what the model gives"):
            lab.check(candidate)
    finally:
        bias[0] -= 1


@pytest.mark.parametrize("metric", ["agreement", "cosine"])
def test_a_bench_makes_the_fp32_outputs_again_where_it_is_sent(lab: Lab, tmp_path: Path, metric: str) -> None:
    """The same scores, though what is sent does not hold them."""
    other = replace(lab, dataset=replace(lab.dataset, metric=metric))
    lab.write(lab.network.space.corner("largest", Precision.INT8), tmp_path / "model.onnx")
    here = other.bench.scores(tmp_path / "model.onnx", threads=1)
    there = pickle.loads(other.bench.packed()).scores(tmp_path / "model.onnx", threads=1)
    np.testing.assert_array_equal(here.scores, there.scores)
    assert here.scores.min() >= 0
    exact = other.bench.scores(_written(other, tmp_path), threads=1).scores
    np.testing.assert_allclose(exact, 1, atol=1e-6)


def _written(lab: Lab, folder: Path) -> Path:
    lab.write(lab.network.space.corner("largest", Precision.FP32), folder / "fp32.onnx")
    return folder / "fp32.onnx"
