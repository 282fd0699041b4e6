from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from qnas_plugin import batch_norm, registry
from qnas_plugin.materialize import export, materialize
from qnas_plugin.supernets import Supernet
from qnas_plugin.tasks import Batch

PIXELS = np.random.default_rng(0).normal(size=(96, 1, 8, 8)).astype(np.float32)
BATCHES = [Batch({"pixel_values": PIXELS[i : i + 8]}, np.arange(i, i + 8)) for i in range(0, 96, 8)]


@pytest.fixture(params=["mobilenet_v3", "resnet50"])
def supernet(request: pytest.FixtureRequest) -> Supernet:
    checkpoint = request.getfixturevalue(f"{request.param}_checkpoint")
    loaded: Supernet = registry.load("supernets", request.param).load(str(checkpoint))
    return loaded


def test_estimate_gives_what_torch_normalises_by_in_training(supernet: Supernet) -> None:
    graph = export(supernet, BATCHES[0].inputs)
    for genes in supernet.space.sample(4, np.random.default_rng(0)):
        cut = supernet.cut(supernet.space.decode(genes))
        statistics = batch_norm.estimate(graph, cut, BATCHES)
        supernet.activate(cut)
        model = copy.deepcopy(supernet.model).train()
        supernet.activate(None)
        with torch.no_grad():
            expected = model(pixel_values=torch.as_tensor(PIXELS)).logits.numpy()
        own = onnxruntime.InferenceSession(materialize(graph, cut, statistics).SerializeToString())
        (got,) = own.run(["logits"], {"pixel_values": PIXELS})
        np.testing.assert_allclose(got, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


def test_estimate_averages_batches_of_at_least_64(supernet: Supernet) -> None:
    graph = export(supernet, BATCHES[0].inputs)
    cut = supernet.cut(supernet.space.decode(supernet.space.sample(1, np.random.default_rng(0))[0]))
    twice = batch_norm.estimate(graph, cut, [*BATCHES[:8], *BATCHES[:8]])
    once = batch_norm.estimate(graph, cut, BATCHES[:8])
    other = batch_norm.estimate(graph, cut, BATCHES[4:])
    assert once.keys() == twice.keys() == {path for path in once if path.endswith(".bn")}
    for path in once:
        for a, b in zip(once[path], twice[path], strict=True):
            np.testing.assert_array_equal(a, b)
    assert any(not np.allclose(once[path][0], other[path][0]) for path in once)


def test_estimate_gives_nothing_without_norms(vit_checkpoint: Path) -> None:
    supernet = registry.load("supernets", "vit").load(str(vit_checkpoint))
    graph = export(supernet, {"pixel_values": PIXELS[:1]})
    cut = supernet.cut(supernet.space.decode(supernet.space.sample(1, np.random.default_rng(0))[0]))
    assert batch_norm.estimate(graph, cut, BATCHES) == {}
