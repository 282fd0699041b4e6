from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qnas_plugin.cli import main
from qnas_plugin.errors import DataError, MeasurementError
from qnas_plugin.measure import operator_times
from tests.quantizers.test_kernels import FORMS, dequantized_in_each_run, written

pytestmark = pytest.mark.filterwarnings("ignore:::neural_compressor")


def test_measure_gives_the_time_of_each_node_and_operator(tmp_path: Path) -> None:
    path = written(FORMS["two-convs"][0], "int8", tmp_path)
    times = operator_times.measure(path, operator_times.made_up(path, 2, 5), runs=7)
    assert times.counts["QLinearConv"] == 2
    assert times.counts["DequantizeLinear"] == 2
    assert list(times.operators.values()) == sorted(times.operators.values(), reverse=True)
    assert 0 < sum(times.operators.values()) < 2 * times.run  # medians need not add up
    convs = [ms for name, ms in times.nodes.items() if "Conv" in name and "Linear" not in name.rpartition("_quant")[2]]
    assert sum(convs) >= times.operators["QLinearConv"] / 2


def test_made_up_inputs_have_types_and_shapes_of_the_model(tmp_path: Path) -> None:
    values = [
        helper.make_tensor_value_info("i", TensorProto.INT64, ["n", "t"]),
        helper.make_tensor_value_info("b", TensorProto.BOOL, ["n"]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, "t"]),
    ]
    nodes = [helper.make_node("Identity", [value.name], [f"{value.name}2"]) for value in values]
    outputs = [onnx.ValueInfoProto(name=f"{value.name}2") for value in values]
    graph = helper.make_graph(nodes, "g", values, outputs)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    made = operator_times.made_up(path, 2, 7)
    assert {name: (array.dtype.name, array.shape) for name, array in made.items()} == {
        "i": ("int64", (2, 7)),
        "b": ("bool", (2,)),
        "x": ("float32", (3, 7)),
    }
    assert made["i"].all()
    values[0].type.tensor_type.elem_type = TensorProto.STRING
    graph = helper.make_graph(nodes, "g", values, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(MeasurementError, match=r"the input 'i' is a tensor\(string\); give the inputs with --data"):
        operator_times.made_up(path, 2, 7)


def test_read_inputs_refuses_what_is_no_npz_file(tmp_path: Path) -> None:
    for content in (None, b"", b"text", b"PK\x03\x04"):
        path = tmp_path / "inputs.npz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read '.*inputs.npz' as an .npz file"):
            operator_times.read_inputs(path)


def show(*arguments: str | Path) -> int:
    try:
        main(["show", *map(str, arguments)])
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return 0


def test_show_kernels_names_the_kernels_and_what_is_int8_by_name_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "model.onnx"
    dequantized_in_each_run(path)
    assert show(path, "--kernels", "--batch", "3") == 0
    text = capsys.readouterr().out
    assert "Gemm in FP32, the weight is converted in every run" in text
    assert "1 of 1 layers are stored as INT8 and 0 of these are computed in integers." in text
    assert "In FP32 on weights that are converted in every run: /h/MatMul_quant." in text
    np.savez(tmp_path / "inputs.npz", x=np.ones((2, 8), np.float32))
    written(FORMS["added"][0], "int8", tmp_path)
    assert show(path, "--kernels", "--data", tmp_path / "inputs.npz") == 0
    text = capsys.readouterr().out
    assert "QGemm" in text
    assert "1 of 1 layers are stored as INT8 and 1 of these are computed in integers." in text
    written(FORMS["added"][0], "fp32", tmp_path)
    assert show(path, "--kernels") == 0
    assert "1 layers, none of them INT8." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tasks", "--kernels"], 2, "--kernels is for an ONNX file"),
        (["model.onnx", "--threads", "2"], 2, "the other options are for --kernels"),
        (["none.onnx", "--kernels"], 1, "cannot read 'none.onnx' as an ONNX model"),
        (["model.onnx", "--kernels", "--data", "none.npz"], 1, "cannot read 'none.npz' as an .npz file"),
        (["model.onnx", "--kernels", "--data", "wrong.npz"], 1, "the graph has an input 'x'"),
        (["model.onnx", "--kernels", "--batch", "0"], 2, "--batch"),
    ],
)
def test_show_kernels_refuses_in_one_line(tmp_path, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    written(FORMS["added"][0], "int8", tmp_path)
    np.savez("wrong.npz", z=np.ones(3))
    assert show(*arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1 or code == 2
