"""Evaluations of 50 episodes against the truth, fixed and own ones: `python -m tests.benchmarks.initial_states`.

Three runs on toy-reach, trained twice, with either rule. The policies are the same, so that one truth serves both:
that of 2,000 fresh episodes of each policy at each point. One set of 50 may be a lucky one. Hence the fresh episodes
are also cut into sets of 50: each takes the place of the fixed ones, and one drawn for each run and point that of
own ones.
"""

import argparse
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from scipy.stats import binomtest

import datasets
from bench.protocol.config import RunConfig
from bench.protocol.suites import SUITES
from bench.training.evaluate import Evaluation, Evaluator, prepare_worker, score_of
from bench.training.execution import Execution, available_cores
from bench.training.train import run
from bench.training.workers import Template
from tests.benchmarks.measure import table

Array = np.ndarray

EPISODES = 50
FRESH = 2_000_000  # first seed of the episodes that make the truth
SEEDS = (0, 1, 2)
INTERVAL = 40  # environment steps between evaluations
OPEN = (0.05, 0.95)  # true success rates that leave room for an error


def evaluations_of(configs: list[RunConfig]) -> list[Evaluation]:
    """What the runs were evaluated by, in order."""
    seen: list[Evaluation] = []

    class Seen(Evaluator):
        def submit(self, evaluation: Evaluation) -> None:
            seen.append(evaluation)
            super().submit(evaluation)

    with tempfile.TemporaryDirectory() as folder, mock.patch("bench.training.train.Evaluator", Seen):
        run(configs, Path(folder), Execution(device="cpu", env_workers=0), lambda: False)
    return seen


def success_rate(evaluation: Evaluation, index: int) -> float:
    rate = score_of(evaluation.rows_of(index))["success_rate"]
    assert rate is not None
    return rate


def fresh_successes(config: RunConfig, evaluations: list[Evaluation], episodes: int) -> Array:
    """(points, seeds, episodes) of each policy of each evaluation."""
    fresh = range(FRESH, FRESH + episodes)
    template = Template(prepare_worker, config)
    try:
        evaluator = Evaluator(template, available_cores(), config.success_rule)
        played = []
        for one in evaluations:
            played.append(Evaluation(one.phase, one.updates, one.env_steps, one.policies, dict.fromkeys(SEEDS, fresh)))
            evaluator.submit(played[-1])
            while evaluator.pending:
                evaluator.finished(timeout=1.0)
    finally:
        template.close()
    rows = [[[row["success"] for row in one.rows_of(index)] for index in SEEDS] for one in played]
    return np.array(rows, dtype=float)


def holds(rate: float, truth: float) -> bool:
    """Whether Wilson's 95 % interval of an evaluation holds the truth."""
    limits = binomtest(round(rate * EPISODES), EPISODES).proportion_ci(method="wilson")
    return bool(limits.low <= truth <= limits.high)


def by_sets(successes: Array) -> dict[str, list[str]]:
    """By rule: share of evaluations whose interval holds the truth, over all sets and in the worst one, and the
    deviation between sets of the mean error over runs and points."""
    points, seeds, episodes = successes.shape
    number = episodes // EPISODES
    rates = successes[:, :, : number * EPISODES].reshape(points, seeds, number, EPISODES).mean(axis=3)
    truth = successes.mean(axis=2)
    kept = (truth > OPEN[0]) & (truth < OPEN[1])
    shuffled = np.random.default_rng(0).permuted(rates, axis=2)  # each policy's sets in an order of its own
    found = {}
    for rule, of_rule in (("fixed", rates[kept]), ("own", shuffled[kept])):  # (policies, sets)
        held = np.array([[holds(rate, true) for rate in row] for row, true in zip(of_rule, truth[kept], strict=True)])
        deviation = (of_rule - truth[kept][:, None]).mean(axis=0).std()
        found[rule] = [f"{100 * held.mean():.1f} %", f"{100 * held.mean(axis=0).min():.0f} %", f"{deviation:.4f}"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluations of 50 episodes against 2,000 fresh ones.")
    parser.add_argument("--episodes", type=int, default=2_000)
    parser.add_argument("--points", type=int, default=40, help="evaluations online")
    options = parser.parse_args()
    datasets.ensure(datasets.default_dataset("toy-reach"))
    base = next(config for config in SUITES["toy"]() if config.agent == "qc_fql")
    base = base.replace(online_steps=INTERVAL * options.points, eval_interval_steps=INTERVAL, gradient_norm_interval=0)
    base = base.replace(eval_episodes=EPISODES, eval_interval_updates=base.offline_updates)
    packs = {rule: [base.replace(seed=seed, episode_seeds=rule) for seed in SEEDS] for rule in ("fixed", "own")}
    found = {rule: evaluations_of(pack) for rule, pack in packs.items()}
    fresh = fresh_successes(base, found["own"], options.episodes)
    truth = fresh.mean(axis=2)
    rows = []
    for seed in SEEDS:
        kept = (truth[:, seed] > OPEN[0]) & (truth[:, seed] < OPEN[1])
        row: list[object] = [seed, kept.sum(), f"{truth[-1, seed]:.3f}"]
        for evaluations in found.values():
            rates = np.array([success_rate(evaluation, seed) for evaluation in evaluations])
            pairs = [*zip(rates[kept], truth[kept, seed], strict=True)]
            errors = [rate - true for rate, true in pairs]
            row += [f"{rates[-1]:.2f}", sum(holds(*pair) for pair in pairs), f"{np.mean(errors):+.3f}"]
        rows.append(row)
    heading = ["seed", "points", "truth, last point"]
    heading += [f"{rule}: {what}" for rule in found for what in ("last point", "truth held", "mean error")]
    print(table("Three runs", heading, rows))
    rows = [[rule, *numbers] for rule, numbers in by_sets(fresh).items()]
    print(
        table("Sets of 50 fresh episodes", ["rule", "truth held", "in the worst case", "mean error, deviation"], rows)
    )


if __name__ == "__main__":
    main()
