"""Accuracy, size and latency of small ONNX models, and what happens when they or the timing process break."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from qnas_plugin.data import Batch
from qnas_plugin.errors import HardwareError, MeasurementError, UsageError
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.hardware.machine import Core, cores
from qnas_plugin.hardware.turns import measuring
from qnas_plugin.measure import accuracy, timing_process
from qnas_plugin.measure import latency as timing
from qnas_plugin.measure.accuracy import run, scores, size_mb
from qnas_plugin.measure.latency import Latency, _quiet_cpus, time_models
from qnas_plugin.measure.metrics import Scorer
from qnas_plugin.quantizers.quantize import calibrate
from qnas_plugin.runtimes import onnxruntime as runtime

SHORT = {"minimum_runs": 6, "minimum_seconds": 0.01, "rounds": 3}


def write_model(
    path: Path,
    weight: np.ndarray | None = None,
    *,
    node: str = "MatMul",
    output: str = "logits",
    external: bool = False,
) -> Path:
    """``x (b, 3)`` times a weight; the identity by default, so that the class is where the largest number stands."""
    weight = np.eye(3, dtype=np.float32) if weight is None else weight
    kind = TensorProto.FLOAT if node == "MatMul" else TensorProto.INT64
    graph = helper.make_graph(
        [helper.make_node(node, ["x", "w"] if node == "MatMul" else ["w", "x"], [output])],
        "tiny",
        [helper.make_tensor_value_info("x", kind, ["b", 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


def labels(*values: int) -> Scorer:
    return Scorer("accuracy", np.array(values))


def batch(x: list[list[float]], positions: list[int]) -> Batch:
    return Batch({"x": np.array(x, dtype=np.float32), "unused": np.zeros(len(x))}, np.array(positions))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    return {"x": np.ones((1, 3), dtype=np.float32), "unused": np.zeros(1)}


def test_scores_stand_in_the_order_of_the_data_set(model: Path) -> None:
    batches = [batch([[0, 0, 1], [1, 0, 0]], [2, 0]), batch([[0, 1, 0]], [1])]
    assert scores(model, batches, labels(0, 1, 2), threads=1).scores.tolist() == [1, 1, 1]
    assert scores(model, batches, labels(0, 1, 1), threads=1).scores.tolist() == [1, 1, 0]


def test_scores_raises_when_logits_are_not_finite(model: Path) -> None:
    with pytest.raises(MeasurementError, match=r"'model\.onnx' gives logits that are not finite"):
        scores(model, [batch([[0, np.nan, 1]], [0])], labels(0), threads=1)


def test_scores_raises_when_an_input_is_missing(model: Path) -> None:
    with pytest.raises(MeasurementError, match="has an input 'x', given are: y"):
        scores(model, [Batch({"y": np.ones((1, 3))}, np.array([0]))], labels(0), threads=1)


def test_scores_raises_when_the_metric_does_not_fit_the_output(tmp_path: Path) -> None:
    model = write_model(tmp_path / "flat.onnx", np.ones(3, dtype=np.float32))
    with pytest.raises(UsageError, match=r"'logits' has shape \(1,\); classes need"):
        scores(model, [batch([[1, 2, 3]], [0])], labels(0), threads=1)


@pytest.mark.parametrize("case", ["missing", "no onnx", "wrong type", "wrong shape", "in a kernel"])
def test_scores_raises_one_line_and_logs_nothing_when_the_runtime_fails(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, wrong = tmp_path / "broken.onnx", batch([[1, 2, 3]], [0])
    if case == "no onnx":
        path.write_bytes(b"not a model")
    elif case == "wrong type":
        write_model(path)
        wrong = Batch({"x": np.ones((1, 3), dtype=np.int64)}, np.array([0]))
    elif case == "wrong shape":
        write_model(path)
        wrong = batch([[1, 2]], [0])
    elif case == "in a kernel":
        write_model(path, node="Gather")
        wrong = Batch({"x": np.full((1, 3), 10**6)}, np.array([0]))
    with pytest.raises(MeasurementError, match=r"^cannot run 'broken\.onnx': \S") as error:
        scores(path, [wrong], labels(0), threads=1)
    assert "\n" not in str(error.value)
    assert "[ONNXRuntimeError]" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_size_mb_counts_files_with_weights(tmp_path: Path) -> None:
    weight = np.ones((3, 50_000), dtype=np.float32)
    inside = write_model(tmp_path / "inside.onnx", weight)
    outside = write_model(tmp_path / "outside.onnx", weight, external=True)
    assert outside.stat().st_size < 1000
    assert size_mb(inside) == inside.stat().st_size / 1e6 == pytest.approx(0.6, rel=0.01)
    assert size_mb(outside) == pytest.approx(0.6, rel=0.01)
    (tmp_path / "outside.onnx.data").unlink()
    with pytest.raises(MeasurementError, match=r"cannot take the size of 'outside\.onnx'"):
        size_mb(outside)


def test_latency_times_each_model_in_each_round(tmp_path: Path, inputs: dict[str, np.ndarray]) -> None:
    models = [write_model(tmp_path / name) for name in ("a.onnx", "b.onnx")]
    results = time_models(models, inputs, RuntimeSetting(), minimum_runs=20, minimum_seconds=0.03, rounds=3)
    assert len(results) == 2
    for result in results:
        assert 0 < result.minimum <= result.median <= result.p90 <= result.p95 <= result.p99
        assert result.minimum <= result.mean
        assert len(result.round_medians) == 3
        assert result.runs >= 21
        assert 0 <= result.core_share <= 1
        assert result.to_dict()["median"] == result.median
        assert result.to_dict()["spread"] == result.spread >= 0


def test_latency_goes_back_and_forth_between_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    load = runtime.session
    monkeypatch.setattr(
        timing_process, "session", lambda path, *a, **k: order.append(Path(path).stem) or load(path, *a, **k)
    )
    models = [str(write_model(tmp_path / name)) for name in ("a.onnx", "b.onnx")]
    np.savez(tmp_path / "inputs.npz", np.ones((1, 3), dtype=np.float32))
    timing_process.Request(
        models=models, inputs=["x"], threads=1, spinning=True, arena=True, cpus=[], rounds=3, runs_per_turn=2,
        seconds_per_turn=0, keep_loaded=False,
    ).write(tmp_path)  # fmt: skip
    try:
        assert timing_process.main(tmp_path) == 0
    finally:
        gc.enable()
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_latency_gives_nothing_when_there_is_no_model(inputs: dict[str, np.ndarray]) -> None:
    assert time_models([], inputs, RuntimeSetting()) == []


def test_latency_names_the_model_that_fails(tmp_path: Path, model: Path, inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(MeasurementError, match=r"^cannot time 'gone\.onnx': .*exist"):
        time_models([model, tmp_path / "gone.onnx"], inputs, RuntimeSetting(), **SHORT)
    with pytest.raises(MeasurementError, match=r"^cannot time 'model\.onnx': .*input 'x', given are: y"):
        time_models([model], {"y": inputs["x"]}, RuntimeSetting(), **SHORT)


def test_latency_raises_when_there_are_fewer_cpus_than_threads(model: Path, inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(HardwareError, match="asks for 100000 threads, and this process may use"):
        time_models([model], inputs, RuntimeSetting(threads=100_000), **SHORT)


@pytest.mark.parametrize(
    ("threads", "chosen"),
    [
        (1, (3,)),  # the only idle core
        (2, (1, 0)),  # two cores of the quieter socket, no siblings
        (3, (1, 0, 5)),  # one socket with a sibling rather than two sockets
        (5, (3, 1, 0, 2, 7)),  # all cores, then the least busy sibling
    ],
)
def test_latency_chooses_the_least_busy_cores_of_one_socket(
    threads: int, chosen: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = [30.0, 10.0, 40.0, 0.0, 0.0, 0.0, 60.0, 0.0]
    machine = (Core(0, (0, 4)), Core(0, (1, 5)), Core(1, (2, 6)), Core(1, (3, 7)))
    monkeypatch.setattr(timing, "cores", lambda: machine)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: busy)
    assert _quiet_cpus(threads) == chosen


@pytest.mark.parametrize("spinning", [True, False])
def test_latency_runs_on_several_threads(spinning: bool, model: Path, inputs: dict[str, np.ndarray]) -> None:
    if len(cores()) < 2:
        pytest.skip("needs two cores")
    (result,) = time_models([model], inputs, RuntimeSetting(threads=2, spinning=spinning), **SHORT)
    assert result.runs >= 6


def test_latency_imports_nothing_from_the_working_folder(
    tmp_path: Path, model: Path, inputs: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('wrong numpy')")
    monkeypatch.chdir(tmp_path)
    assert time_models([Path(model.name)], inputs, RuntimeSetting(), **SHORT)[0].runs >= 6


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_latency_names_the_signal_when_the_process_is_killed(
    name: str, model: Path, inputs: dict[str, np.ndarray]
) -> None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            time_models([model], inputs, RuntimeSetting(), minimum_seconds=60)
        except MeasurementError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    first = timing_child(os.getpid())
    os.kill(first.pid, getattr(signal, name))
    os.kill(timing_child(os.getpid(), but=first.pid).pid, getattr(signal, name))
    thread.join(timeout=10)
    assert f"the timing process was ended twice, by {name}" in str(errors[0])


def test_latency_tries_again_when_the_process_is_killed_once(model: Path, inputs: dict[str, np.ndarray]) -> None:
    results: list[Latency] = []
    thread = threading.Thread(
        target=lambda: results.extend(time_models([model], inputs, RuntimeSetting(), minimum_seconds=2))
    )
    thread.start()
    timing_child(os.getpid()).kill()
    thread.join(timeout=60)
    assert results[0].runs >= 30


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_latency_leaves_no_process_when_it_is_stopped(name: str, tmp_path: Path, model: Path) -> None:
    script = f"""
        import numpy, pathlib
        from qnas_plugin.hardware import RuntimeSetting
        from qnas_plugin.measure.latency import time_models
        inputs = {{"x": numpy.ones((1, 3), dtype="float32")}}
        time_models([pathlib.Path({str(model)!r})], inputs, RuntimeSetting(), minimum_seconds=60)
    """
    folder = tmp_path / "temporary"
    folder.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    child = timing_child(parent.pid)
    parent.send_signal(getattr(signal, name))
    parent.wait(timeout=10)
    _, alive = psutil.wait_procs([child], timeout=10)
    for process in alive:
        process.kill()
    assert not alive
    if name == "SIGINT":
        assert not list(folder.glob("qnas-*/"))


def test_latency_waits_while_another_one_measures(model: Path, inputs: dict[str, np.ndarray]) -> None:
    done = threading.Event()

    def run() -> None:
        time_models([model], inputs, RuntimeSetting(), **SHORT)
        done.set()

    thread = threading.Thread(target=run)
    with measuring():
        thread.start()
        assert not done.wait(1.5)
    thread.join(timeout=20)
    assert done.is_set()


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A model whose loop never ends."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Identity", ["h"], ["h_next"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("h", TensorProto.FLOAT, None)],
        [value("still", TensorProto.BOOL, []), value("h_next", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)],
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.array(2**62), "times")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "endless.onnx"))
    return tmp_path / "endless.onnx"


def test_run_ends_a_model_that_never_ends(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "SILENT_SECONDS", 0.5)
    batch = Batch({"x": np.ones((1, 4), np.float32)}, np.arange(1))
    with pytest.raises(MeasurementError, match=r"'endless\.onnx' ran for more than 0\.5 s on one batch"):
        list(run(endless, [batch], threads=1))


def test_latency_ends_a_timing_process_that_is_silent(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SILENT_SECONDS", 4)
    with pytest.raises(
        MeasurementError, match=r"the timing process was silent for 4 s: it is stopped, or a model hangs"
    ):
        time_models([endless], {"x": np.ones((1, 4), np.float32)}, RuntimeSetting(), **SHORT)
    assert not [
        child for child in psutil.Process().children() if "qnas_plugin.measure.timing_process" in child.cmdline()
    ]


def test_a_turn_shows_each_second_that_it_runs(
    model: Path, inputs: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    session = runtime.session(model, 1, spinning=True)
    request = timing_process.Request(
        models=[], inputs=["x"], threads=1, spinning=True, arena=True, cpus=[], rounds=1, runs_per_turn=1,
        seconds_per_turn=1.5, keep_loaded=False,
    )  # fmt: skip
    timing_process._turn(session, runtime.feed(session, inputs), request, 1)
    assert capsys.readouterr().out.startswith("..")


def test_timing_imports_none_of_the_heavy_libraries() -> None:
    heavy = ["torch", "transformers", "neural_compressor", "onnx", "pydantic", "sklearn"]
    code = f"import sys, qnas_plugin.measure.timing_process; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def timing_child(parent: int, but: int = 0) -> psutil.Process:
    """The timing process of this parent, once it times; not the one with this number."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for child in (child for child in psutil.Process(parent).children() if child.pid != but):
            # The model is open, or its runtime's threads run.
            if "qnas_plugin.measure.timing_process" in child.cmdline() and child.cpu_times().user > 0.5:
                return child
        time.sleep(0.05)
    raise AssertionError("the timing process did not start")


def test_session_sums_int8_products_without_overflow(tmp_path: Path) -> None:
    """Two products of the largest numbers do not fit into 16 bits, in which CPUs without VNNI would sum them."""
    weight = numpy_helper.from_array(np.full((64, 8), 0.5, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.ones((2, 64), dtype=np.float32)
    onnx.save(calibrate(model, {"m": ("m",)}, [Batch({"x": x}, np.arange(2))]).emit({"m": "int8"}), tmp_path / "m.onnx")
    (found,) = runtime.session(tmp_path / "m.onnx", 1, spinning=False).run(None, {"x": x})
    np.testing.assert_allclose(found, 32, rtol=0.01)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu avx2 fma", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", False),
        ("flags\t\t: fpu avx2 avx_vnni", False),
        ("Features\t: fp asimd", False),
        (None, False),
    ],
)
def test_int8_overflows_on_x86_without_vnni(
    cpuinfo: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(f"processor\t: 0\n{cpuinfo}\n")
    monkeypatch.setattr(runtime, "_CPUS", path)
    assert runtime.int8_overflows.__wrapped__() == expected
