"""The search sampler ``linas`` and the evaluator ``qnas``; Olive knows both once this module is imported.

Olive imports an evaluator's ``user_script`` before it reads the search strategy, and 0.13 drops ``sampler_config``: the
script that ``qnas olive-config`` writes imports this module and sets the sampler's seed and population.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import optuna
from olive.evaluator.metric import Metric, MetricType
from olive.evaluator.metric_result import MetricResult, joint_metric_key
from olive.evaluator.olive_evaluator import OliveEvaluator
from olive.evaluator.registry import Registry
from olive.hardware import Device
from olive.model import ONNXModelHandler
from olive.search.samplers.optuna_sampler import OptunaSampler
from olive.search.search_parameter import Categorical
from olive.search.search_point import SearchPoint
from optuna.distributions import CategoricalDistribution

from qnas_plugin.hosts.olive.request import lab
from qnas_plugin.hosts.optuna import LinasSampler


class LinasSearchSampler(OptunaSampler):  # type: ignore[misc]
    """Olive's sampler ``linas``.

    Attributes:
        seed: Of every random choice.
        population: Trials between two trainings of the predictors.
        algorithm: The registered search algorithm.
    """

    name = "linas"
    seed: ClassVar[int] = 0
    population: ClassVar[int] = 50
    algorithm: ClassVar[str] = "linas"

    def _create_sampler(self) -> optuna.samplers.BaseSampler:
        space = {
            name: CategoricalDistribution(list(range(len(parameter.get_support()))))
            for _, passes in self._search_space.parameters
            for options in passes.get_support()
            for name, parameter in options.parameters
            if isinstance(parameter, Categorical) and len(passes.get_support()) == 1
        }
        return LinasSampler(
            seed=self.seed, population=self.population, algorithm=self.algorithm, search_space=space or None
        )

    def suggest(self) -> SearchPoint | None:
        """The next point, numbered in the order of asking: Olive keeps a list as long as the largest number."""
        if self.should_stop:
            return None
        trial = self._study.ask()
        _, _, values = self._get_search_point_values("", "", self._search_space, trial, OrderedDict())
        number = self._num_samples_suggested
        self._search_point_index_to_trail_id[number] = trial.number
        self._num_samples_suggested += 1
        return SearchPoint(number, values)


@Registry.register("qnas")
class QnasEvaluator(OliveEvaluator):  # type: ignore[misc]
    """Measures as ``qnas tune`` does: accuracy on the search part, latency in a process of its own, size.

    Args:
        request: Options of ``qnas tune``.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        super().__init__()
        self._request = request

    def evaluate(
        self,
        model: ONNXModelHandler,
        metrics: Sequence[Metric],
        device: Device = Device.CPU,
        execution_providers: str | Sequence[str] | None = None,
    ) -> MetricResult:
        """The value of each metric, whatever its sub-type: what stands as accuracy, milliseconds, bytes."""
        measures, file = lab(self._request), Path(model.model_path)
        found: dict[str, dict[str, Any]] = {}
        for metric in metrics:
            if metric.type == MetricType.ACCURACY:
                value = float(measures.scores(file, "search").scores.mean())
            elif metric.type == MetricType.LATENCY:
                value = measures.latency([file])[0].median
            else:
                value = file.stat().st_size
            for part in metric.sub_types:
                better = metric.type == MetricType.ACCURACY and measures.metric.direction == "maximize"
                result = {"value": value, "priority": part.priority, "higher_is_better": better}
                found[joint_metric_key(metric.name, part.name)] = result
        return MetricResult.model_validate(found)
