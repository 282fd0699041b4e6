import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest

from qnas_plugin.errors import CandidateError, OutputError, StudyError
from qnas_plugin.measure.belief import Halves
from qnas_plugin.measure.metrics import Scored
from qnas_plugin.search import Algorithm, Observation, Problem, random
from qnas_plugin.space import Candidate, Condition, SearchSpace, Variable
from qnas_plugin.study.drive import Here, drive
from qnas_plugin.study.evaluation import Evaluation
from qnas_plugin.study.study import RECORDED_LATER, Study, stored_identity

SPACE = SearchSpace(
    (
        Variable("depth", (1, 2, 3)),
        *(Variable(f"width_{i}", (8, 16, 32), when=Condition("depth", tuple(range(i + 1, 4)))) for i in range(3)),
        Variable("head", ("int8", "fp32"), "precision"),
    )
)
OBJECTIVES = ("accuracy", "latency_ms")
IDENTITY = {"dataset": "abc", "supernet": "toy"}


def open_study(storage: str, **changes: object) -> Study:
    arguments: dict = {"identity": IDENTITY} | changes
    return Study.open(storage, arguments.pop("space", SPACE), arguments.pop("objectives", OBJECTIVES), **arguments)


def evaluate(candidate: Candidate) -> Evaluation:
    total = sum(value for value in candidate.values() if isinstance(value, int))
    return Evaluation(
        {"accuracy": 1 - 1 / total, "latency_ms": float(total), "size_mb": total / 3},
        spread={"latency_ms": 0.1},
        seconds={"build": 0.5, "measure": 0.25},
        environment={"onnxruntime": "1.2"},
    )


def algorithm() -> Algorithm:
    return random.create(Problem(SPACE, OBJECTIVES), seed=0, population=5)


@pytest.fixture(params=["journal", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out/trials.journal") if request.param == "journal" else f"sqlite:///{tmp_path}/trials.db"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "trials.journal"


def candidates(count: int) -> list[Candidate]:
    return [SPACE.decode(genes) for genes in SPACE.sample(count, np.random.default_rng(0))]


def test_trials_gives_what_was_added_when_opened_again(storage: str) -> None:
    with open_study(storage) as study:
        added = [study.add(candidate, evaluate(candidate)) for candidate in candidates(3)]
        added.append(study.add(candidates(4)[3], Evaluation(error="QuantizationError: no", seconds={"build": 1.0})))
        assert study.trials() == added
    with open_study(storage) as study:
        assert study.trials() == added
    assert [trial.number for trial in added] == [0, 1, 2, 3]
    assert [trial.state for trial in added] == ["complete"] * 3 + ["failed"]
    assert added[3].metrics == {}
    assert added[3].observation.metrics is None
    assert added[0].observation.metrics == evaluate(candidates(1)[0]).metrics


def test_stored_trials_are_what_optuna_dashboard_shows(storage: str) -> None:
    candidate = candidates(1)[0]
    with open_study(storage) as study:
        study.add(candidate, evaluate(candidate))
    opened = (
        storage
        if storage.startswith("sqlite")
        else optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
    )
    seen = optuna.load_study(study_name="qnas", storage=opened)
    assert [direction.name for direction in seen.directions] == ["MAXIMIZE", "MINIMIZE"]
    trial = seen.trials[0]
    assert trial.params == dict(candidate)
    assert trial.values == [evaluate(candidate).metrics[name] for name in OBJECTIVES]
    assert trial.user_attrs["candidate"] == candidate.key
    assert trial.duration is not None
    assert trial.duration.total_seconds() == pytest.approx(0.75, abs=1e-3)


INF = float("inf")


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"accuracy": 0.5},
        {"accuracy": 0.5, "latency_ms": INF},
        {"accuracy": 0.5, "latency_ms": 1.0, "size_mb": INF},
    ],
)
def test_add_stores_a_failed_trial_when_a_metric_is_missing_or_not_finite(journal: Path, metrics: dict) -> None:
    with open_study(str(journal)) as study:
        trial = study.add(candidates(1)[0], Evaluation(metrics))
        assert trial.state == "failed"
        assert re.search(" is (missing|inf); ", str(trial.error))
        assert all(np.isfinite(value) for value in trial.metrics.values())
        assert study.trials() == [trial]


def test_add_takes_numbers_of_numpy(journal: Path) -> None:
    numbers = {"accuracy": np.float32(0.5), "latency_ms": np.float64(2)}
    with open_study(str(journal)) as study:
        study.add(candidates(1)[0], Evaluation(numbers, spread=numbers, seconds=numbers))
        assert study.trials()[0].spread == {"accuracy": 0.5, "latency_ms": 2.0}


def test_add_stores_halves_of_the_scores(journal: Path) -> None:
    halves = Halves.of(Scored(np.array([0.0, 1, 1, 1]), np.array([0.2, 0.7, 0.8, 0.9])))
    evaluation = Evaluation({"accuracy": 0.75, "accuracy_soft": 0.65, "latency_ms": 2.0}, halves=halves)
    with open_study(str(journal)) as study:
        study.add(candidates(1)[0], evaluation)
        study.add(candidates(2)[1], Evaluation({"accuracy": 0.75, "latency_ms": 2.0}))
        trials = study.trials()
    assert trials[0].halves == trials[0].observation.halves == halves
    assert trials[1].halves is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": {**IDENTITY, "dataset": "xyz"}}, "has dataset abc, this run has dataset xyz; use another --out"),
        ({"identity": {"supernet": "toy"}}, "has dataset abc, this run has dataset unset"),
        ({"identity": {**IDENTITY, "seed": "1"}}, "has seed unset, this run has seed 1"),
        (
            {"objectives": ("accuracy", "size_mb")},
            "objectives accuracy,latency_ms, this run has objectives accuracy,size",
        ),
        ({"space": SearchSpace(SPACE.variables[:1])}, f"has space {SPACE.fingerprint}"),
    ],
)
def test_open_refuses_trials_of_another_request(storage: str, changes: dict, message: str) -> None:
    open_study(storage).close()
    for write in (True, False):
        with pytest.raises(StudyError, match=message):
            open_study(storage, write=write, **changes)
    open_study(storage).close()


@pytest.mark.parametrize("name", [name for name, before in RECORDED_LATER.items() if before is None])
def test_open_takes_what_an_older_version_did_not_record_from_the_run_that_goes_on(storage: str, name: str) -> None:
    open_study(storage).close()
    asked = {"identity": {**IDENTITY, name: "1"}}
    with open_study(storage, write=False, **asked) as study:
        assert study.taken == (name,)
    with open_study(storage, **asked) as study:
        assert study.taken == (name,)
    with open_study(storage, **asked) as study:
        assert study.taken == ()
        assert study.identity[name] == "1"
    with pytest.raises(StudyError, match=f"has {name} 1, this run has {name} 2"):
        open_study(storage, identity={**IDENTITY, name: "2"})


def test_open_knows_what_quantized_a_study_that_does_not_say(storage: str) -> None:
    open_study(storage).close()
    with pytest.raises(StudyError, match="has quantizer unset, this run has quantizer onnxruntime 1"):
        open_study(storage, identity={**IDENTITY, "quantizer": "onnxruntime 1"})
    with open_study(storage, identity={**IDENTITY, "quantizer": "neural_compressor 3.7.1"}) as study:
        assert study.taken == ()
        assert "quantizer" not in study.identity


def test_open_never_starts_anew_behind_trials_without_their_study(journal: Path) -> None:
    with open_study(str(journal)) as study:
        study.add(candidates(1)[0], evaluate(candidates(1)[0]))
    content = journal.read_bytes().split(b"\n", 1)[1]
    journal.write_bytes(content)
    for write in (True, False):
        with pytest.raises(StudyError, match="its first line, which says of which study, is lost"):
            open_study(str(journal), write=write)
    assert journal.read_bytes() == content


def test_open_reads_while_another_writes_and_refuses_a_second_writer(storage: str) -> None:
    with open_study(storage) as study:
        study.add(candidates(1)[0], evaluate(candidates(1)[0]))
        with pytest.raises(OutputError, match="another process is writing"):
            open_study(storage)
        with open_study(storage, write=False) as reader:
            assert reader.trials() == study.trials()
    open_study(storage).close()


def test_open_names_the_driver_that_a_database_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(
        StudyError, match=r"^no driver for 'postgresql://\*\*\*@host/name' .* pip install psycopg2-binary"
    ):
        open_study("postgresql://user:secret@host/name")


def test_open_creates_nothing_when_it_only_reads(storage: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"there is no study in .*; make one with: qnas tune"):
        open_study(storage, write=False)
    with pytest.raises(StudyError, match="there is no study in"):
        stored_identity(storage)
    assert not list(tmp_path.iterdir())


def test_stored_identity_names_the_request(storage: str) -> None:
    open_study(storage).close()
    assert stored_identity(storage) == {
        **IDENTITY,
        "space": SPACE.fingerprint,
        "objectives": "accuracy,latency_ms",
    }


@pytest.mark.parametrize("content", ["hello", "hello\nworld\n", '{"a": 1}\n', '{"op_code":0}\n{"op_\n{"op_code":0}\n'])
def test_open_leaves_a_file_alone_that_is_no_journal(journal: Path, content: str) -> None:
    journal.write_text(content)
    with pytest.raises(StudyError, match=r"trials\.journal"):
        open_study(str(journal))
    assert journal.read_text() == content


def test_open_refuses_a_database_that_it_cannot_reach_without_showing_the_password() -> None:
    with pytest.raises(StudyError, match="cannot read the study") as caught:
        open_study("nodatabase://me:secret@host/db")
    assert "secret" not in str(caught.value)


def test_open_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Is a directory"):
        open_study(str(tmp_path))


def test_open_is_quiet(storage: str) -> None:
    program = (
        "import warnings; warnings.simplefilter('error')\n"
        "from tests.study.test_study import *\n"
        f"study = open_study({storage!r}); study.add(candidates(1)[0], evaluate(candidates(1)[0])); study.close()\n"
        f"open_study({storage!r}).close()"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("", "")


def test_trials_refuses_a_trial_that_was_edited(journal: Path) -> None:
    candidate = SPACE.candidate({"depth": 1, "width_0": 8, "head": "int8"})
    with open_study(str(journal)) as study:
        study.add(candidate, evaluate(candidate))
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[-1]["params"].pop("width_0")
    lines[-1]["distributions"].pop("width_0")
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with open_study(str(journal)) as study, pytest.raises(StudyError, match=r"stored trial 0 .*no value for 'width_0'"):
        study.trials()


def test_add_is_one_error_when_the_disk_is_full_and_the_study_goes_on_later(journal: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_study(str(journal)) as study:
        study.add(candidates(1)[0], evaluate(candidates(1)[0]))
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 50, limit[1]))
        try:
            with pytest.raises(OutputError, match=r"cannot store a trial: .+; those before it are stored"):
                study.add(candidates(2)[1], evaluate(candidates(2)[1]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, ignored)
    assert not journal.read_bytes().endswith(b"\n")
    with open_study(str(journal)) as study:
        study.add(candidates(3)[2], evaluate(candidates(3)[2]))
        assert [trial.candidate for trial in study.trials()] == [candidates(3)[i] for i in (0, 2)]


@pytest.mark.parametrize("cut", [1, 20, 400])
def test_open_mends_a_line_that_was_half_written(journal: Path, cut: int) -> None:
    with open_study(str(journal)) as study:
        for candidate in candidates(3):
            study.add(candidate, evaluate(candidate))
    journal.write_bytes(journal.read_bytes()[:-cut])
    with open_study(str(journal), write=False) as study:
        assert len(study.trials()) == 2
    with open_study(str(journal)) as study:
        study.add(candidates(4)[3], evaluate(candidates(4)[3]))
    with open_study(str(journal)) as study:
        assert [trial.candidate for trial in study.trials()] == [candidates(4)[i] for i in (0, 1, 3)]


def test_open_starts_anew_when_killed_while_creating(journal: Path) -> None:
    open_study(str(journal)).close()
    created = journal.read_bytes().splitlines(keepends=True)
    for kept in range(len(created)):
        journal.write_bytes(b"".join(created[:kept]))
        with open_study(str(journal)) as study:
            assert study.trials() == []


def test_drive_goes_on_where_it_stopped(storage: str) -> None:
    seen: list[int] = []
    with open_study(storage) as study:
        drive(study, algorithm(), Here(evaluate), trials=4, on_trial=lambda trial: seen.append(trial.number))
    with open_study(storage) as study:
        drive(study, algorithm(), Here(evaluate), trials=9, on_trial=lambda trial: seen.append(trial.number))
        drive(study, algorithm(), Here(evaluate), trials=9)
        resumed = [trial.candidate for trial in study.trials()]
    assert seen == list(range(9))
    reference = algorithm()
    for candidate in resumed:
        assert reference.ask() == candidate
        reference.tell([Observation(candidate, evaluate(candidate).metrics)])


def test_drive_ends_when_no_candidate_is_left(journal: Path) -> None:
    with open_study(str(journal)) as study:
        drive(study, algorithm(), Here(evaluate), trials=1000)
        assert len(study.trials()) == SPACE.networks


def test_drive_goes_on_after_a_candidate_error_and_stops_at_others(journal: Path) -> None:
    calls = 0

    def sometimes(candidate: Candidate) -> Evaluation:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        if calls % 2:
            raise CandidateError("cannot be built")
        return evaluate(candidate)

    with open_study(str(journal)) as study:
        with pytest.raises(KeyboardInterrupt):
            drive(study, algorithm(), Here(sometimes), trials=1000)
        stored = study.trials()
        assert [trial.state for trial in stored] == ["failed", "complete"] * 3 + ["failed"]
        assert stored[0].error == "CandidateError: cannot be built"
    with open_study(str(journal)) as study:
        assert study.trials() == stored


def test_study_loses_and_repeats_nothing_when_killed_again_and_again(storage: str) -> None:
    program = (
        "from tests.study.test_study import *\n"
        f"study = open_study({storage!r})\n"
        "drive(study, algorithm(), Here(evaluate), trials=60, "
        "on_trial=lambda trial: print(trial.candidate.key, flush=True))"
    )
    finished: list[str] = []
    for lines in (1, 7, 15, 1000):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(lines):
            line = process.stdout.readline()
            if not line:
                break
            finished.append(line.strip())
        time.sleep(0.003 * lines)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        finished += process.stdout.read().split()
        process.wait()
    with open_study(storage) as study:
        keys = [trial.candidate.key for trial in study.trials()]
    assert len(keys) == len(set(keys)) == 60
    assert set(finished) <= set(keys)
    assert [key for key in keys if key in finished] == finished
