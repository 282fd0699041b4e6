"""What all contract suites share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import ClassVar

import pytest


class Contract:
    """Tests that take the argument ``name`` run for each of the class's names, one name after the other."""

    names: ClassVar[Sequence[str]] = ()
    """Registered names, as on the command line."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Called by pytest for each test of the class."""
        if "name" in metafunc.fixturenames:
            assert self.names, f"{type(self).__name__} needs the attribute 'names'"
            metafunc.parametrize("name", self.names, scope="class")


def printed_with(program: str, variable: str, values: tuple[str, ...], *arguments: str) -> str:
    """What a program prints in processes that differ in an environment variable, which must be the same.

    Args:
        program: Python code; it can import what this process can.
        variable: The environment variable.
        values: Its value in each process.
        arguments: The program's ``sys.argv[1:]``.
    """
    path = os.pathsep.join(entry for entry in ("", *sys.path))
    outputs = []
    for value in values:
        environment = {**os.environ, "PYTHONPATH": path, variable: value}
        command = [sys.executable, "-c", program, *arguments]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        outputs.append(ran.stdout)
    assert len(set(outputs)) == 1, outputs
    return outputs[0]
