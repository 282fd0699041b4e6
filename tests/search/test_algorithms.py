"""Every registered search algorithm keeps its contract, and what those of this package keep besides."""

from __future__ import annotations

import itertools
import os

import pytest

from qnas_plugin import registry
from qnas_plugin.search import linas
from qnas_plugin.space import Precision
from qnas_plugin.testing.search import TWO, WIDE, AlgorithmContract, create, run


def quicken(patch: pytest.MonkeyPatch) -> None:
    """A short inner search."""
    patch.setattr(linas, "INNER_POPULATION", 50)
    patch.setattr(linas, "INNER_GENERATIONS", 10)
    patch.setattr(linas, "BATCHES", 2)


class TestAlgorithms(AlgorithmContract):
    names = registry.names("search")
    unguided = ("random",)

    def quicken(self, patch: pytest.MonkeyPatch) -> None:
        quicken(patch)

    @pytest.mark.skipif("OPENBLAS_CORETYPE" in os.environ, reason="the environment chooses the kernels of OpenBLAS")
    def test_linas_asks_for_the_same_whatever_the_kernels_of_blas(self) -> None:
        """CPUs add in another order, by which, without rounded predictions, one trial in ten or so differs."""
        program = (
            "asked = [run(create('linas', problem), 40) for problem in PROBLEMS.values()]\n"
            "print([candidate.key for each in asked for candidate in each])"
        )
        assert len(self.printed(program, "OPENBLAS_CORETYPE", ("Prescott", "Haswell"))) > 800

    def test_ask_starts_with_the_baselines(self, name: str) -> None:
        if name in self.unguided:
            pytest.skip("draws from the start")
        asked = run(create(name, TWO), 4)
        sizes = itertools.product(("largest", "smallest"), Precision)
        corners = [WIDE.corner(size, precision) for size, precision in sizes]
        assert {candidate.key for candidate in asked} == {corner.key for corner in corners}
