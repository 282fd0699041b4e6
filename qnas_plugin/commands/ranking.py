"""How well the predictors rank the trials of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qnas_plugin import predictors, registry
from qnas_plugin.commands.loading import load_network
from qnas_plugin.commands.study_folder import request_in, trials_in
from qnas_plugin.errors import StudyError
from qnas_plugin.predictors._curve import LEAST_UNSEEN, Point, curve

SIZES = (10, 20, 50, 100, 200, 400)


def ranking(study: Path, *, seed: int = 0) -> Mapping[str, Sequence[Point]]:
    """For each measured metric, all predictors at several numbers of trials.

    Args:
        study: The folder that ``tune`` wrote; the search may still be running.
        seed: Draws the trials to learn from.

    Raises:
        UsageError: It is no such folder.
        StudyError: There are too few trials, or they are of another state of the network.
    """
    request = request_in(study)
    network = load_network(request)
    identity, trials = trials_in(study, request, network)
    least = SIZES[0] + LEAST_UNSEEN
    if len(trials) < least:
        raise StudyError(f"{study} has {len(trials)} finished trials, {least} are needed; run qnas tune longer")
    genes = np.array([network.space.encode(trial.candidate) for trial in trials])
    X = predictors.features(network.space, genes)
    measured = [name for name in ("accuracy", "latency_ms") if name in request.objectives]
    if identity.get("latency", "").startswith("table"):
        measured.remove("latency_ms")
    return {
        metric: list(
            curve(
                {name: registry.load("predictors", name).create for name in registry.names("predictors")},
                X,
                np.array([trial.metrics[metric] for trial in trials]),
                SIZES,
                np.random.default_rng(seed),
            )
        )
        for metric in measured
    }
