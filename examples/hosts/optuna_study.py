"""The sampler in a study of one's own: which of 24 switches to set, for two objectives that pull apart."""

import optuna

from qnas_plugin import LinasSampler


def objective(trial: optuna.Trial) -> tuple[float, float]:
    on = [trial.suggest_categorical(f"switch_{i:02}", [False, True]) for i in range(24)]
    cost = sum((i % 5 + 1) * switch for i, switch in enumerate(on))
    gain = sum((i % 7 + 1) * switch for i, switch in enumerate(on)) - 6 * (on[0] and on[1])
    return cost, gain


for sampler in (LinasSampler(seed=0, population=20), optuna.samplers.TPESampler(seed=0)):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    study.optimize(objective, n_trials=100)
    best = sorted(tuple(trial.values) for trial in study.best_trials)
    print(type(sampler).__name__, len(best), "trials in the front; most gain for a cost of 30 or less:", end=" ")
    print(max(gain for cost, gain in best if cost <= 30))
