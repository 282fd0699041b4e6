"""A channel whose weights are next to nothing keeps its bias, whatever layer it is in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qnas_plugin.build.shared_model import Outline
from qnas_plugin.errors import QuantizationError
from qnas_plugin.quantizers import _bias
from qnas_plugin.quantizers.quantize import Calibrated, calibrate
from tests.quantizers.test_kernels import FORMS
from tests.sessions import session

pytestmark = pytest.mark.filterwarnings("ignore:::neural_compressor")

DEAD = 3
CHANNEL = {"gemm-transposed": (0, 1), "conv": (0, 1), "depthwise": (0, 1)}  # axes of channel in weight and in output


def with_a_dead_channel(name: str, weight: float, bias: float) -> tuple[Calibrated, dict[str, np.ndarray]]:
    form = FORMS[name][0]
    model = form.model
    for initializer in model.graph.initializer:
        array = numpy_helper.to_array(initializer).copy()
        channel = np.moveaxis(array, CHANNEL.get(name, (array.ndim - 1, 1))[0] if array.ndim > 1 else 0, 0)
        if initializer.name == "b":
            channel[DEAD] = bias
        else:
            channel[DEAD] *= weight
        initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
    return calibrate(model, form.groups, [form.batch]), dict(form.batch.inputs)


@pytest.mark.parametrize("name", ["conv", "depthwise", "gemm", "gemm-transposed", "added", "added-to-text"])
@pytest.mark.parametrize("precision", ["int8", "int8-asym", "int8-per-tensor"])
@pytest.mark.parametrize(("weight", "bias"), [(1e-8, 1.0), (1e-30, -3.0), (0.0, 2.0), (1e-4, 1e6), (1.0, 1e12)])
def test_a_dead_channel_is_its_bias(name, precision, weight, bias):
    calibrated, inputs = with_a_dead_channel(name, weight, bias)
    emitted = calibrated.emit(dict.fromkeys(calibrated.groups, precision))
    (wanted,), (got,) = (session(model).run(None, inputs) for model in (Outline.of(calibrated.model).whole(), emitted))
    axis = 1 if name in ("conv", "depthwise") else wanted.ndim - 1
    wanted, got = (np.moveaxis(array, axis, 0) for array in (wanted, got))
    step = np.ptp(wanted) / 255 if "conv" in name or name == "depthwise" else 0.0  # these round what they write
    np.testing.assert_allclose(got[DEAD], wanted[DEAD], rtol=1e-4, atol=step + (3 if weight == 1 else 0.05))


@pytest.mark.parametrize("name", ["conv", "gemm"])
def test_the_other_channels_are_as_without_it(name):
    """Only a scale that is too small is raised."""
    alive, dead = (with_a_dead_channel(name, weight, 100.0)[0] for weight in (1.0, 1e-8))
    emitted = [calibrated.emit(dict.fromkeys(calibrated.groups, "int8")) for calibrated in (alive, dead)]
    weight = "k" if name == "conv" else "w"
    for stored in (f"{weight}_quantized", f"{weight}_scale"):
        first, second = (
            next(numpy_helper.to_array(i) for i in model.graph.initializer if i.name == stored) for model in emitted
        )
        axis = 0 if name == "conv" or first.ndim == 1 else 1
        np.testing.assert_array_equal(np.delete(first, DEAD, axis), np.delete(second, DEAD, axis))
        assert not np.array_equal(first, second)


def test_weights_that_several_models_share_are_kept_as_they_are():
    """What is raised depends on what a layer reads, which differs between subnets."""
    calibrated, _ = with_a_dead_channel("gemm", 1e-8, 100.0)
    policy = dict.fromkeys(calibrated.groups, "int8")
    first = calibrated.emit(policy)
    (kept,) = calibrated.quantized.values()
    raised = next(numpy_helper.to_array(i) for i in first.graph.initializer if i.name == "w_scale")
    assert kept.scales[DEAD] < raised[DEAD]
    assert calibrated.emit(policy).SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)


def test_a_bias_that_wrapped_around_is_refused():
    form = FORMS["gemm"][0]
    policy = dict.fromkeys(form.groups, "int8")
    model = form.model
    emitted = calibrate(model, form.groups, [form.batch]).emit(policy)
    _bias.check(emitted.graph, model.graph, {"/y/Gemm"})
    stored = next(initializer for initializer in emitted.graph.initializer if initializer.name == "b_quantized")
    integers = numpy_helper.to_array(stored).copy()
    integers[DEAD] = np.iinfo(np.int32).min
    stored.CopyFrom(onnx.numpy_helper.from_array(integers, stored.name))
    with pytest.raises(QuantizationError, match=rf"the bias of '/y/Gemm' is .* in channel {DEAD}, and .* as INT32"):
        _bias.check(emitted.graph, model.graph, {"/y/Gemm"})
