"""Passwords of database URLs: used, and neither written nor shown."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnas_plugin.errors import StudyError, UsageError
from qnas_plugin.request import TuneRequest
from qnas_plugin.study import storage_url
from qnas_plugin.study.storage_url import scrubbed, shown, with_password, without_password
from qnas_plugin.study.study import stored_identity

SECRET = "S3cr3t"
URLS = (
    f"postgresql://me:{SECRET}@db:5432/x",
    f"postgresql://me:a%40{SECRET}@db/x",
    f"postgresql://me:a/{SECRET}@db/x",
    f"postgresql://me:a?{SECRET}@db/x",
    f"postgresql+psycopg://me@db/x?password={SECRET}",
    f"postgresql://db/x?sslmode=require&sslpassword={SECRET}&user=me",
    f"mysql+pymysql://me:{SECRET}@db/x?charset=utf8",
)
UNREADABLE = (
    f"postgresql://me:a@{SECRET}@db/x",
    f"postgresql://me:a@{SECRET}/b@db/x",
    f"postgresql://me:{SECRET}@db:port/x",
    f"//me:{SECRET}@db/x://",
    f"postgresql:/me:{SECRET}@db/x",
)


def request(tmp_path: Path, storage: str) -> TuneRequest:
    """A request with that storage."""
    options: dict[str, Any] = {"supernet": "bert", "checkpoint": "c", "task": "text_classification", "data": "d"}
    return TuneRequest.build(options | {"out": tmp_path, "storage": storage})


@pytest.mark.parametrize("url", URLS)
def test_a_request_is_written_without_the_password(url: str, tmp_path: Path) -> None:
    asked = request(tmp_path, url)
    assert asked.storage == url
    asked.write(tmp_path / "request.toml")
    text = (tmp_path / "request.toml").read_text() + json.dumps(asked.model_dump(mode="json"))
    assert SECRET not in text
    stored = tomllib.loads((tmp_path / "request.toml").read_text())["storage"]
    assert "db" in stored
    assert without_password(stored) == stored
    assert SECRET not in shown(url)


@pytest.mark.parametrize("url", UNREADABLE)
def test_a_url_whose_password_would_be_taken_for_something_else_is_refused_and_not_shown(
    url: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="in a password @ is written as %40") as raised:
        request(tmp_path, url)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("storage", ["trials.journal", "sqlite:///a@b.db", "postgresql://me@db/x", "postgresql:///x"])
def test_a_storage_without_a_password_stays_as_it_is(storage: str, tmp_path: Path) -> None:
    assert without_password(storage) == storage
    assert request(tmp_path, storage).storage == storage


def test_the_password_comes_from_the_environment_on_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(storage_url.VARIABLE, f"@/{SECRET}")
    assert with_password(without_password(URLS[0])) == f"postgresql://me:%40%2F{SECRET}@db:5432/x"
    assert with_password(URLS[0]) == URLS[0]
    for storage in ("trials.journal", "sqlite:///trials.db", "postgresql://db/x"):
        assert with_password(storage) == storage


def test_a_database_gets_it_and_no_message_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def refuse(url: str) -> None:
        given.append(url)
        raise ValueError(f"cannot log in with {url} or {SECRET}")

    monkeypatch.setattr(optuna.storages, "get_storage", refuse)
    with pytest.raises(StudyError, match=rf"its password in {storage_url.VARIABLE}") as raised:
        stored_identity("postgresql://me@db/x")
    monkeypatch.setenv(storage_url.VARIABLE, SECRET)
    for url in ("postgresql://me@db/x", *URLS):
        with pytest.raises(StudyError, match=r"cannot read the study in 'postgresql|mysql") as raised:
            stored_identity(url)
        assert SECRET in given[-1]
        assert SECRET not in str(raised.value)


@given(st.text(min_size=8, max_size=20).filter(lambda text: text.isprintable()))
def test_no_form_of_a_password_is_left(password: str) -> None:
    url = f"postgresql://me:{quote(password, safe='')}@db/x"
    assert storage_url.secrets(url) == (password,)
    assert without_password(url) == "postgresql://me@db/x"
    assert shown(url) == "postgresql://***@db/x"
    assert scrubbed(f"no {password} or {quote(password, safe='')}", url) == "no *** or ***"
