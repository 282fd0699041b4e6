"""The recorded spaces: what was evaluated, on which data, and where the records lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qnas_plugin import registry
from qnas_plugin.data import SplitSizes
from qnas_plugin.latency.table import Estimator, load
from qnas_plugin.measure.costs import Costs
from qnas_plugin.space import Genes
from qnas_plugin.supernets import Elastic, Supernet

RECORDED = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Recorded:
    """A supernet and its data, whose candidates were evaluated once.

    Args:
        name: Of the files in ``recorded/``.
        supernet: The registered family.
        config: A folder with the supernet's configuration; its weights are needed to record, not to replay.
        elastic: The choices of the elastic dimensions.
        task: The registered task.
        sizes: How many examples a candidate is evaluated on.
        policies: How many candidates share a subnet, and so its calibration.
        soft: Whether the probability of the label was kept of each example, beside right and wrong.
    """

    name: str
    supernet: str
    config: Path
    elastic: Elastic
    task: str
    sizes: SplitSizes
    policies: int
    soft: bool = False

    @property
    def records(self) -> Path:
        """The evaluated candidates."""
        return RECORDED / f"{self.name}{'-soft' if self.soft else ''}.npz"

    @property
    def table(self) -> Path:
        """The latency table."""
        return RECORDED / f"{self.name}-latency.json"

    @cached_property
    def shape(self) -> Supernet:
        """The supernet with random weights: it knows the space, sizes and what its time is made of."""
        supernet: Supernet = registry.load("supernets", self.supernet).load(str(self.config), elastic=self.elastic)
        return supernet

    @cached_property
    def size_mb(self) -> Callable[[Genes], npt.NDArray[np.float64]]:
        """Canonical genotypes ``(m, n)`` to the megabytes ``(m,)`` of their files."""
        inputs = self.shape.example(self.latency.table.setting)
        return Costs(self.shape, self.shape.graph(inputs), inputs).size_mb

    @cached_property
    def latency(self) -> Estimator:
        """Canonical genotypes to milliseconds."""
        return Estimator(load(self.table), self.shape)


_EXAMPLES = Path(__file__).parents[2] / "examples"

SPACES = {
    space.name: space
    for space in (
        Recorded(
            "digits",
            "vit",
            _EXAMPLES / "digits-vit",
            Elastic(depth=(3, 4, 5, 6)),
            "image_classification",
            SplitSizes(search=300),
            policies=2,
        ),
        Recorded(
            "minilm",
            "bert",
            _EXAMPLES / "shapes" / "minilm-l6",
            Elastic(),
            "text_classification",
            SplitSizes(search=400, report=256),
            policies=4,
        ),
    )
}

SOFT = {
    "digits": replace(SPACES["digits"], soft=True),
    "minilm": replace(SPACES["minilm"], soft=True, sizes=SplitSizes(search=1000, report=872)),
}
"""Fewer candidates of the same spaces, from supernets trained anew, with soft scores."""
