"""Training as a command: what it never loses, overwrites or mixes, on a tiny BERT."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from qnas_plugin.commands.train import train
from qnas_plugin.errors import CheckpointError, OutputError, UsageError
from qnas_plugin.files.locks import alone_in
from qnas_plugin.request import TrainRequest
from qnas_plugin.training import instatune
from qnas_plugin.training.state import RESUME_FILE


@pytest.fixture
def request_(bert_checkpoint: Path, sentences: Path, tmp_path: Path) -> TrainRequest:
    return TrainRequest.build(
        {
            "supernet": "bert",
            "checkpoint": str(bert_checkpoint),
            "task": "text_classification",
            "data": str(sentences),
            "out": tmp_path / "out",
            "epochs": 1,
            "batch_size": 64,
            "search_samples": 40,
            "calibration_samples": 16,
            "arithmetic": "fp32",
        }
    )


def changed(request: TrainRequest, **options: object) -> TrainRequest:
    return request.model_copy(update=options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_finished_command_says_so_and_another_one_is_refused(
    request_: TrainRequest, bert_checkpoint: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    record = train(request_)
    assert record is not None
    before = contents(request_.out)
    assert RESUME_FILE not in before
    assert train(request_, on_stage=said.append) == json.loads(before["supernet.json"])["training"]
    assert said[-1].startswith("Already finished")
    shutil.copytree(bert_checkpoint, tmp_path / "start")
    for options, what in (
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"max_length": 5}, "processor"),
        ({"teacher": str(bert_checkpoint)}, "teacher"),
        ({"checkpoint": str(_scaled(tmp_path / "start"))}, "start"),
    ):
        with pytest.raises(OutputError, match=f"a finished supernet, trained with another {what}; .* --overwrite"):
            train(changed(request_, **options))
    assert contents(request_.out) == before
    train(changed(request_, learning_rate=1e-3, overwrite=True))
    assert json.loads((request_.out / "supernet.json").read_text())["training"]["identity"]["learning_rate"] == 1e-3


def test_a_finished_training_of_an_older_version_is_known_by_its_request(request_: TrainRequest) -> None:
    train(request_)
    path = request_.out / "supernet.json"
    record = json.loads(path.read_text())
    del record["training"]["identity"], record["training"]["request"]["overwrite"]
    path.write_text(json.dumps(record))
    assert train(changed(request_, out=request_.out.parent / "out")) is not None
    with pytest.raises(OutputError, match="another epochs"):
        train(changed(request_, epochs=2))


@pytest.mark.parametrize("option", ["checkpoint", "teacher"])
def test_train_never_writes_onto_what_it_reads(
    option: str, request_: TrainRequest, bert_checkpoint: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(bert_checkpoint, own)
    (tmp_path / "link").symlink_to(own)
    before = contents(own)
    for out in (own, tmp_path / "link", own / ".." / "own"):
        with pytest.raises(UsageError, match=f"--out is the folder of --{option}"):
            train(changed(request_, **{option: str(own)}, out=out, overwrite=True))
    with pytest.raises(OutputError, match="holds a model that qnas train did not write"):
        train(changed(request_, out=own))
    assert contents(own) == before


def test_a_second_run_in_one_folder_is_refused(request_: TrainRequest) -> None:
    request_.out.mkdir()
    with alone_in(request_.out), pytest.raises(OutputError, match="another process is writing"):
        train(request_)


def test_a_full_disk_at_the_end_is_one_line_and_loses_nothing(request_: TrainRequest) -> None:
    def fill(text: str) -> None:
        if text == "Measuring accuracy":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        _limited(),
        pytest.raises(OutputError, match=r"cannot write the supernet to .* is kept in training\.pt") as error,
    ):
        train(request_, on_stage=fill)
    assert len(str(error.value).splitlines()) == 1
    assert {path.name for path in request_.out.iterdir()} == {RESUME_FILE}
    steps: list[instatune.Step] = []
    assert train(request_, on_step=steps.append) is not None
    assert steps == []
    assert not (request_.out / RESUME_FILE).exists()


def test_a_disk_that_is_full_while_it_trains_keeps_the_state_before(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(step: instatune.Step) -> None:
        if step.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))

    monkeypatch.setattr(instatune, "FIRST_SAVE_S", 0.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        _limited(),
        pytest.raises(OutputError, match=r"cannot write .*; what is kept is after 1 of \d+ steps; make room"),
    ):
        train(request_, on_step=fill)
    steps: list[instatune.Step] = []
    train(request_, on_step=steps.append)
    assert steps[0].done == 2


def test_a_state_is_of_one_start_and_teacher_and_older_ones_still_continue(
    request_: TrainRequest, bert_checkpoint: Path, tmp_path: Path
) -> None:
    def stop(step: instatune.Step) -> None:
        if step.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(changed(request_, teacher=str(bert_checkpoint)), on_step=stop)
    shutil.copytree(bert_checkpoint, tmp_path / "other")
    other = str(_scaled(tmp_path / "other"))
    for options, what in (({"teacher": other}, "teacher"), ({"checkpoint": other}, "start"), ({}, "teacher")):
        with pytest.raises(CheckpointError, match=f"is of a training with {what} = "):
            train(changed(request_, **{"teacher": str(bert_checkpoint)} | options if options else {}))
    path = request_.out / RESUME_FILE
    state = torch.load(path, weights_only=True)
    del state["identity"]["start"], state["identity"]["processor"]
    state["identity"]["teacher"] = True
    torch.save(state, path)
    steps: list[instatune.Step] = []
    train(changed(request_, teacher=str(bert_checkpoint)), on_step=steps.append)
    assert steps[0].done == 3


def test_a_teacher_needs_weights_and_a_head(request_: TrainRequest, bert_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_checkpoint, tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has a configuration but no weights"):
        train(changed(request_, teacher=str(tmp_path / "teacher")))


def test_sigterm_while_it_trains_ends_with_one_line_and_the_same_command_continues(request_: TrainRequest) -> None:
    """The whole program, stopped long before 120 seconds."""
    out = request_.out
    options = [
        *("--supernet", "bert", "--checkpoint", request_.checkpoint, "--task", request_.task, "--data", request_.data),
        *(
            "--out",
            str(out),
            "--epochs",
            "2000",
            "--batch-size",
            "64",
            "--search-samples",
            "40",
            "--arithmetic",
            "fp32",
        ),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "qnas_plugin", "train", *options], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "steps, about" in line:
                break
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.strip().splitlines()[-1].startswith("qnas: stopped")
    assert torch.load(out / RESUME_FILE, weights_only=True)["done"] > 20


@contextmanager
def _limited() -> Iterator[None]:
    """Lets the body set a limit to the size of files, which stands for the end of the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def _scaled(checkpoint: Path) -> Path:
    """The checkpoint with other weights."""
    from safetensors.torch import load_file, save_file

    path = checkpoint / "model.safetensors"
    tensors = {name: tensor * 1.1 for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return checkpoint
