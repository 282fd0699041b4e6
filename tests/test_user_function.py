from __future__ import annotations

import contextlib
import signal
import sys
import time
from pathlib import Path

import pytest

from qnas_plugin.errors import DataError, UsageError
from qnas_plugin.user_function import call, load_function


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError"),
        ("class Odd(BaseException): pass\nraise Odd('two\\nlines')", "Odd: two lines"),
        ("function = 5", "'mine:function' is no function, but int"),
        ("import time; time.sleep(60)", "no end within 0.2 seconds"),
    ],
)
def test_load_function_is_one_line_when_the_module_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setenv("QNAS_FUNCTION_SECONDS", "0.2")
    with pytest.raises(UsageError, match=message) as caught:
        load_function("mine:function")
    assert "\n" not in str(caught.value)


def test_call_cannot_be_held_by_a_function_that_catches_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QNAS_FUNCTION_SECONDS", "0.2")

    def stubborn() -> None:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(10)

    with pytest.raises(DataError, match="it failed: no end within"):
        call(stubborn, DataError, "it failed")


def test_call_leaves_ctrl_c_and_alarms_of_others_as_they_were() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt):
        call(interrupted, DataError, "it failed")
    assert call(lambda: 3, DataError, "it failed") == 3
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("text", ["", "many", "-1", "nan", "inf"])
def test_call_refuses_a_limit_that_is_no_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("QNAS_FUNCTION_SECONDS", text)
    with pytest.raises(UsageError, match="QNAS_FUNCTION_SECONDS must be a number of seconds above 0"):
        call(lambda: 3, DataError, "it failed")
