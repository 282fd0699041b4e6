"""Contract suites: what every supernet, task, algorithm and predictor promises, as classes for pytest.

One derives a class and says which registered names it is about; nothing else is written for a module that has the
function ``tiny`` where its seam wants one:

    from qnas_plugin.testing.supernets import SupernetContract

    class TestMine(SupernetContract):
        names = ("my_family",)

pytest is needed here alone, and no other module of the package imports this one.
"""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{room}" for room in ("supernets", "tasks", "search", "predictors")))
