from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tiny_cnn
import torch

from qnas_plugin import registry
from qnas_plugin.build import batch_norm
from qnas_plugin.build.graph import Cut
from qnas_plugin.build.slice import materialize, subnet
from qnas_plugin.data import Batch, SplitSizes
from qnas_plugin.errors import QuantizationError
from qnas_plugin.evaluate.lab import Lab
from qnas_plugin.hardware import RuntimeSetting
from qnas_plugin.quantizers.quantize import observe
from qnas_plugin.space import Precision
from qnas_plugin.supernets import Supernet
from tests.sessions import HERE

PIXELS = np.random.default_rng(0).normal(size=(96, 1, 8, 8)).astype(np.float32)
BATCHES = [Batch({"pixel_values": PIXELS[i : i + 8]}, np.arange(i, i + 8)) for i in range(0, 96, 8)]


@pytest.fixture(params=["mobilenet_v3", "resnet50"])
def supernet(request: pytest.FixtureRequest) -> Supernet:
    checkpoint = request.getfixturevalue(f"{request.param}_checkpoint")
    loaded: Supernet = registry.load("supernets", request.param).load(str(checkpoint))
    return loaded


def test_estimate_gives_what_torch_normalises_by_in_training(supernet: Supernet) -> None:
    graph = supernet.graph(BATCHES[0].inputs)
    for genes in supernet.space.sample(4, np.random.default_rng(0)):
        candidate = supernet.space.decode(genes)
        cut = supernet.cut(candidate)
        statistics, _ = batch_norm.estimate(graph, cut, BATCHES)
        supernet.activate(candidate)
        model = copy.deepcopy(supernet.model).train()
        supernet.activate(None)
        with torch.no_grad():
            expected = model(pixel_values=torch.as_tensor(PIXELS)).logits.numpy()
        own = onnxruntime.InferenceSession(materialize(graph, cut, statistics).SerializeToString())
        (got,) = own.run(["logits"], {"pixel_values": PIXELS})
        np.testing.assert_allclose(got, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


def test_estimate_sees_the_ranges_of_the_network_that_ships(supernet: Supernet) -> None:
    """One batch normalises by what is estimated: the extremes are those of the folded network, but for rounding."""
    graph = supernet.graph(BATCHES[0].inputs)
    for genes in supernet.space.sample(2, np.random.default_rng(0)):
        candidate = supernet.space.decode(genes)
        cut = supernet.cut(candidate)
        policy = supernet.space.policy(candidate)
        groups = {group: nodes for group, nodes in graph.groups.items() if group in policy}
        statistics, seen = batch_norm.estimate(graph, cut, BATCHES)
        expected = observe(subnet(graph, cut, statistics), groups, BATCHES)
        assert expected.keys() <= seen.keys()
        for name, pair in expected.items():
            np.testing.assert_allclose(seen[name], pair, rtol=1e-4, atol=1e-4 * max(map(abs, pair)))


def test_estimate_does_not_depend_on_the_threads(supernet: Supernet) -> None:
    graph = supernet.graph(BATCHES[0].inputs)
    cut = supernet.cut(supernet.space.corner("largest", Precision.FP32))
    (one, seen), (two, seen_by_two) = (batch_norm.estimate(graph, cut, BATCHES, threads=n) for n in (1, 2))
    assert seen == seen_by_two
    for path in one:
        np.testing.assert_array_equal(one[path], two[path])


def test_estimate_refuses_what_is_not_finite(supernet: Supernet) -> None:
    graph = supernet.graph(BATCHES[0].inputs)
    pixels = PIXELS.copy()
    pixels[3, 0, 2, 2] = np.nan
    cut = supernet.cut(supernet.space.corner("smallest", Precision.FP32))
    with pytest.raises(QuantizationError, match=r"batch_mean' is not finite"):
        batch_norm.estimate(graph, cut, [Batch({"pixel_values": pixels}, np.arange(96))])


def test_estimate_averages_batches_of_at_least_64(supernet: Supernet) -> None:
    graph = supernet.graph(BATCHES[0].inputs)
    cut = supernet.cut(supernet.space.decode(supernet.space.sample(1, np.random.default_rng(0))[0]))
    twice, _ = batch_norm.estimate(graph, cut, [*BATCHES[:8], *BATCHES[:8]])
    once, _ = batch_norm.estimate(graph, cut, BATCHES[:8])
    other, _ = batch_norm.estimate(graph, cut, BATCHES[4:])
    assert once.keys() == twice.keys() == {path for path in once if path.endswith(".bn")}
    for path in once:
        for a, b in zip(once[path], twice[path], strict=True):
            np.testing.assert_array_equal(a, b)
    assert any(not np.allclose(once[path][0], other[path][0]) for path in once)


def test_needed_where_a_supernet_has_norms(supernet: Supernet, vit_checkpoint: Path) -> None:
    encoder: Supernet = registry.load("supernets", "vit").load(str(vit_checkpoint))
    for network, expected in ((supernet, True), (encoder, False)):
        cut = network.cut(network.space.corner("largest", Precision.FP32))
        graph = network.graph({"pixel_values": PIXELS[:1]})
        assert batch_norm.needed(graph, cut) == expected
        assert not batch_norm.needed(graph, Cut((), {}))


def make(checkpoint: Path) -> Lab:
    task = registry.load("tasks", "image_classification")
    dataset = task.load("digits", sizes=SplitSizes(calibration=96, search=20))
    return Lab(tiny_cnn.load(str(checkpoint)), dataset, task.processor(str(checkpoint)), HERE, RuntimeSetting())


def test_build_has_the_statistics_of_its_subnet(tiny_cnn_checkpoint: Path) -> None:
    """All data in one batch: what comes out is normalised as torch normalises that batch in training."""
    lab = make(tiny_cnn_checkpoint)
    supernet, space = lab.network, lab.network.space
    genes = np.minimum(space.encode(space.corner("largest", Precision.FP32)), space.sizes // 2)
    candidate = space.candidate({name: "fp32" if isinstance(v, str) else v for name, v in space.decode(genes).items()})
    (batch,) = lab.processor.batches(lab.dataset.calibration.inputs, 96)
    session = onnxruntime.InferenceSession(lab.build(candidate).SerializeToString())
    (got,) = session.run(["logits"], dict(batch.inputs))
    supernet.activate(candidate)
    model = copy.deepcopy(supernet.model).train()
    with torch.no_grad():
        expected = model(pixel_values=torch.as_tensor(batch.inputs["pixel_values"])).logits.numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_build_quantizes_the_weights_of_its_subnet(tiny_cnn_checkpoint: Path) -> None:
    """BatchNorms of other statistics make other weights of one name and shape."""
    first, second = make(tiny_cnn_checkpoint), make(tiny_cnn_checkpoint)
    space = first.network.space
    candidates = [space.corner(size, Precision.INT8) for size in ("largest", "smallest")]
    candidates += [space.decode(genes) for genes in space.sample(3, np.random.default_rng(0))]
    for candidate in candidates[::-1]:
        second.build(candidate)
    for candidate in candidates:
        assert first.build(candidate) == second.build(candidate)
