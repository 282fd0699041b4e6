"""What a worker loads, and what cannot be sent to one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qnas_plugin.errors import UsageError
from qnas_plugin.evaluate.bench import check_sendable


def test_a_worker_loads_neither_torch_nor_what_stores_trials() -> None:
    code = (
        "import sys, qnas_plugin.evaluate.on_worker\n"
        "from qnas_plugin import registry\n"
        "registry.load('quantizers', 'neural_compressor')\n"
        "print([name for name in ('torch', 'transformers', 'optuna', 'sqlalchemy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def a_judge(model: Path) -> float:
    return 1.0


def test_what_cannot_be_sent_is_one_line() -> None:
    check_sendable(None, "accuracy")
    check_sendable(a_judge, "module:function")
    with pytest.raises(UsageError, match="the metric '__main__:mine' is in __main__, workers cannot import it"):
        check_sendable(None, "__main__:mine")
    with pytest.raises(UsageError, match="the function .*<lambda> that gives the accuracy cannot be pickled"):
        check_sendable(lambda model: 1.0, "accuracy")
