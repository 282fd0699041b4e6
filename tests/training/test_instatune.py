from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_cnn
import torch

from qnas_plugin import registry
from qnas_plugin.data import Dataset, Losses, Processor, SplitSizes
from qnas_plugin.errors import CheckpointError, UsageError
from qnas_plugin.measure.metrics import METRICS
from qnas_plugin.space import Candidate
from qnas_plugin.supernets import Elastic, Supernet
from qnas_plugin.training.instatune import Settings, Step, _augmented, _subnets, accuracy, train
from qnas_plugin.training.state import RESUME_FILE, finish

SETTINGS = Settings(epochs=2, batch_size=16, learning_rate=1e-3, subnets="sandwich")


@pytest.fixture
def supernet(bert_checkpoint: Path) -> Supernet:
    loaded: Supernet = registry.load("supernets", "bert").load(
        str(bert_checkpoint), elastic=Elastic((2, 3, 4), (1, 2, 4), (16, 32, 48))
    )
    return loaded


@pytest.fixture(scope="module")
def dataset(sentences: Path) -> Dataset:
    loaded: Dataset = registry.load("tasks", "text_classification").load(
        str(sentences), sizes=SplitSizes(calibration=16, search=80, selection=0)
    )
    return loaded


@pytest.fixture(scope="module")
def processor(bert_checkpoint: Path) -> Processor:
    loaded: Processor = registry.load("tasks", "text_classification").processor(str(bert_checkpoint))
    return loaded


def weights(supernet: Supernet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in supernet.model.state_dict().items()}


def test_train_teaches_the_whole_supernet_and_its_smallest_subnet(
    supernet: Supernet, dataset: Dataset, processor: Processor, tmp_path: Path
) -> None:
    smallest = supernet.space.corners["smallest-fp32"]
    steps: list[Step] = []
    assert train(
        supernet, dataset, processor, Settings(**vars(SETTINGS) | {"epochs": 20}), tmp_path, on_step=steps.append
    )
    assert [step.done for step in steps] == list(range(1, steps[-1].total + 1))
    assert accuracy(supernet, None, dataset.report, processor, metric=METRICS["accuracy"]) > 0.9
    assert accuracy(supernet, smallest, dataset.report, processor, metric=METRICS["accuracy"]) > 0.9


@pytest.mark.parametrize("subnets", ["none", "random"])
def test_train_changes_only_what_its_setting_says(
    subnets: str, supernet: Supernet, dataset: Dataset, processor: Processor, tmp_path: Path
) -> None:
    before = weights(supernet)
    settings = Settings(epochs=1, batch_size=64, subnets=subnets)  # type: ignore[arg-type]
    train(supernet, dataset, processor, settings, tmp_path)
    ordered = not torch.equal(
        before["bert.encoder.layer.0.intermediate.dense.weight"].sum(1).argsort(),
        weights(supernet)["bert.encoder.layer.0.intermediate.dense.weight"].sum(1).argsort(),
    )
    assert ordered == (subnets == "random")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_train_continues_exactly_when_interrupted(
    stop: signal.Signals,
    supernet: Supernet,
    dataset: Dataset,
    processor: Processor,
    bert_checkpoint: Path,
    tmp_path: Path,
) -> None:
    train(supernet, dataset, processor, SETTINGS, tmp_path / "whole")
    expected = weights(supernet)

    def interrupt(step: Step) -> None:
        if step.done == 20:
            os.kill(os.getpid(), stop)

    def fresh() -> Supernet:
        loaded: Supernet = registry.load("supernets", "bert").load(
            str(bert_checkpoint), elastic=Elastic((2, 3, 4), (1, 2, 4), (16, 32, 48))
        )
        return loaded

    with pytest.raises(KeyboardInterrupt):
        train(fresh(), dataset, processor, SETTINGS, tmp_path / "parts", on_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed, steps = fresh(), []
    train(resumed, dataset, processor, SETTINGS, tmp_path / "parts", on_step=steps.append)
    assert steps[0].done == 21
    for name, tensor in weights(resumed).items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
    finish(tmp_path / "parts")
    assert list((tmp_path / "parts").iterdir()) == []


def test_train_refuses_the_state_of_another_training(
    supernet: Supernet, dataset: Dataset, processor: Processor, tmp_path: Path
) -> None:
    train(supernet, dataset, processor, Settings(epochs=1, batch_size=128), tmp_path, save_every_s=0)
    with pytest.raises(CheckpointError, match=r"learning_rate = 5e-05, now it is 0\.1"):
        train(supernet, dataset, processor, Settings(epochs=1, batch_size=128, learning_rate=0.1), tmp_path)
    (tmp_path / RESUME_FILE).write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="damaged"):
        train(supernet, dataset, processor, Settings(epochs=1, batch_size=128), tmp_path)


def test_train_distils_from_a_teacher(
    supernet: Supernet, dataset: Dataset, processor: Processor, bert_checkpoint: Path, tmp_path: Path
) -> None:
    """With all weight on distillation the labels don't matter: the student learns the opposite of what it said."""
    teacher = registry.load("supernets", "bert").load(str(bert_checkpoint)).model
    with torch.no_grad():
        teacher.classifier.weight.mul_(-3)
        teacher.classifier.bias.mul_(-3)
    batch = processor.batches(dataset.report.inputs, 128)[0]
    inputs = {name: torch.as_tensor(array) for name, array in batch.inputs.items()}

    def agreement() -> float:
        with torch.no_grad():
            student, expected = (model.eval()(**inputs).logits.argmax(-1) for model in (supernet.model, teacher))
        return float((student == expected).float().mean())

    assert agreement() == 0
    settings = Settings(epochs=24, batch_size=16, learning_rate=1e-3, task_weight=0.0)
    train(supernet, dataset, processor, settings, tmp_path, teacher=teacher)
    assert agreement() > 0.8


def test_train_teaches_a_convolutional_supernet(tiny_cnn_checkpoint: Path, tmp_path: Path) -> None:
    supernet: Supernet = tiny_cnn.load(str(tiny_cnn_checkpoint), elastic=Elastic(depth=(1, 3), expand=(1, 4)))
    images: Dataset = registry.load("tasks", "image_classification").load(
        "digits", sizes=SplitSizes(calibration=128, search=200, selection=0, report=200)
    )
    encode: Processor = registry.load("tasks", "image_classification").processor(str(tiny_cnn_checkpoint))
    settings = Settings(epochs=6, batch_size=64, learning_rate=5e-3, subnets="sandwich", shrinking=0.5)
    train(supernet, images, encode, settings, tmp_path)
    assert accuracy(supernet, None, images.report, encode, metric=METRICS["accuracy"]) > 0.85
    smallest = supernet.space.corners["smallest-fp32"]
    state = weights(supernet)
    own = accuracy(supernet, smallest, images.report, encode, metric=METRICS["accuracy"], statistics=images.calibration)
    assert own > 0.5
    assert own > accuracy(supernet, smallest, images.report, encode, metric=METRICS["accuracy"])
    for name, tensor in weights(supernet).items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0, msg=name)


def test_augmented_images_are_mirrored_and_moved_by_an_eighth_at_most() -> None:
    torch.manual_seed(0)
    image = torch.arange(2.0 * 16 * 24).view(2, 16, 24)
    wide = [torch.nn.functional.pad(own, (3, 3, 2, 2), mode="reflect") for own in (image, image.flip(-1))]
    moved = [
        own[:, top : top + 16, left : left + 24]
        for own in wide
        for top in range(2 * 2 + 1)
        for left in range(2 * 3 + 1)
    ]
    found = [
        next(i for i, expected in enumerate(moved) if torch.equal(expected, own))
        for own in _augmented(image.repeat(2000, 1, 1, 1))
    ]
    counts = np.bincount(found, minlength=len(moved))
    assert counts.min() > 0  # of 70, each expected 29 times
    assert sum(counts[:35]) == pytest.approx(1000, abs=100)


def test_train_augments_images_the_same_way_each_time_and_no_texts(
    supernet: Supernet, dataset: Dataset, processor: Processor, tiny_cnn_checkpoint: Path, tmp_path: Path
) -> None:
    images: Dataset = registry.load("tasks", "image_classification").load(
        "digits", sizes=SplitSizes(calibration=128, search=1400, selection=0, report=200)
    )
    encode: Processor = registry.load("tasks", "image_classification").processor(str(tiny_cnn_checkpoint))
    found = []
    for number, augment in enumerate((True, True, False)):
        cnn: Supernet = tiny_cnn.load(str(tiny_cnn_checkpoint))
        train(cnn, images, encode, Settings(epochs=1, augment=augment), tmp_path / f"images-{number}")
        found.append(weights(cnn)["classifier.weight"])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.allclose(found[0], found[2])
    with pytest.raises(UsageError, match="no images to augment in input_ids"):
        train(supernet, dataset, processor, Settings(augment=True), tmp_path / "texts")


def test_subnets_shrink_step_by_step(supernet: Supernet) -> None:
    settings = Settings(subnets="sandwich", shrinking=0.5)
    whole = supernet.cut(supernet.space.corners["largest-fp32"])
    smallest = supernet.space.corners["smallest-fp32"]
    sizes = []
    for done in range(100):
        subnets = _subnets(supernet, settings, done, 100)
        assert len(subnets) == 2
        cuts = [supernet.cut(subnet) for subnet in subnets]
        sizes.append(sum(inputs * outputs for inputs, outputs in cuts[1].widths.values()))
    assert [supernet.cut(subnet) for subnet in _subnets(supernet, settings, 0, 100)] == [whole, whole]
    assert cuts[1] == supernet.cut(smallest)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_what_is_trained_knows_its_policy(
    supernet: Supernet, dataset: Dataset, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family that trains quantized networks gets the format of each group of each subnet."""
    activate, trained = supernet.activate, []

    def record(candidate: Candidate | None) -> None:
        trained.append(candidate)
        activate(candidate)

    monkeypatch.setattr(supernet, "activate", record)
    train(supernet, dataset, processor, Settings(epochs=2, batch_size=16), tmp_path)
    policies = [supernet.space.policy(candidate) for candidate in trained if candidate is not None]
    assert len(policies) > 5
    assert {format for policy in policies for format in policy.values()} == {"int8", "fp32"}
    assert all({"layer.0.query", "classifier"} <= policy.keys() for policy in policies)


def test_accuracy_is_the_share_of_right_predictions(supernet: Supernet, dataset: Dataset, processor: Processor) -> None:
    with torch.no_grad():
        supernet.model.classifier.weight.zero_()
        supernet.model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    assert accuracy(supernet, None, dataset.report, processor, metric=METRICS["accuracy"]) == pytest.approx(
        np.mean(dataset.report.labels == 1)
    )


def test_train_minimises_what_the_task_says(
    supernet: Supernet, dataset: Dataset, processor: Processor, tmp_path: Path
) -> None:
    assert dataset.losses is not None
    of_classes, asked = dataset.losses, []

    def labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        asked.append("labels")
        return of_classes.labels(logits, labels)

    def teacher(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        asked.append("teacher")
        return of_classes.teacher(logits, target)

    settings = Settings(epochs=1, batch_size=512)
    train(supernet, replace(dataset, losses=Losses(labels, teacher)), processor, settings, tmp_path / "own")
    assert asked == ["labels", "labels", "teacher"]  # the whole supernet, then a subnet that learns from it too
    with pytest.raises(UsageError, match="its task says no losses"):
        train(supernet, replace(dataset, losses=None), processor, settings, tmp_path / "none")
