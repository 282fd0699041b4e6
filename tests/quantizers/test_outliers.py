from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qnas_plugin.build.shared_model import Outline
from qnas_plugin.data import Batch
from qnas_plugin.quantizers.outliers import find
from qnas_plugin.quantizers.quantize import calibrate

pytestmark = pytest.mark.filterwarnings("ignore:::neural_compressor")
WIDTH = 64


def found(x: np.ndarray, before: str = "Identity", calibration: int = 1) -> list:
    """A MatMul behind one operator, calibrated on as many copies of its input."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node(before, ["x"], ["h"], "before"), helper.make_node("MatMul", ["h", "w"], ["y"], "fc")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(rng.standard_normal((WIDTH, 4)).astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    batches = [Batch({"x": x.astype(np.float32)}, np.arange(len(x)))] * calibration
    calibrated = calibrate(model, {"fc": ("fc",)}, batches)
    return find(Outline.of(model), {"fc": ("fc",)}, calibrated.ranges, batches[0])


NORMAL = np.random.default_rng(1).standard_normal((2000, WIDTH))


def test_find_names_a_tensor_with_a_mask() -> None:
    masked = NORMAL.copy()
    masked[:, 50:] = np.finfo(np.float32).min
    (outlier,) = found(masked)
    assert (outlier.tensor, outlier.layer, outlier.few) == ("h", "fc", False)
    assert 0.5 < outlier.typical < 1.1
    assert str(outlier) == (
        f"'h' ranges from -3.4e+38 to {masked.max():.3g} and its usual values are about {outlier.typical:.2g}, less "
        "than a step of INT8; keep its layer FP32 with --keep-fp32 'fc'"
    )


def test_find_offers_to_clip_a_single_outlier() -> None:
    spoiled = NORMAL.copy()
    spoiled[3, 3] = 1e5
    (outlier,) = found(spoiled)
    assert outlier.few
    assert "or clip what it reads with --precision int8-percentile" in str(outlier)


def test_find_names_a_channel_that_dwarfs_the_others() -> None:
    channel = NORMAL.copy()
    channel[:, 5] *= 200
    assert [outlier.tensor for outlier in found(channel)] == ["h"]


@pytest.mark.parametrize("shape", ["normal", "sparse", "skewed", "long tails", "zeros"])
def test_find_is_silent_about_usual_activations(shape: str) -> None:
    rng = np.random.default_rng(2)
    x = {
        "normal": NORMAL,
        "sparse": NORMAL * (rng.random(NORMAL.shape) < 0.02),
        "skewed": np.exp(NORMAL),
        "long tails": rng.standard_t(5, NORMAL.shape),
        "zeros": np.zeros((4, WIDTH)),
    }[shape]
    assert found(x) == []
    assert found(x, "Relu") == []
