"""How often intervals hold what they promise: coverage of nominal 95 % intervals, and false alarms of comparisons.

Simulated runs of known truth: on each task a share of runs has learned it and the others have collapsed, and each is
evaluated in 50 episodes. Then the same with initial states that are hard or easy for all policies: of each run's own
(`episode_seeds=own`), or the same 50 for all (`fixed`). Run as `python -m tests.benchmarks.intervals [--trials N]`.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from analysis.statistics import metrics
from analysis.statistics.comparisons import improvement_probability, mean_difference
from analysis.statistics.metrics import Array, Interval

EPISODES = 50
LEARNED, COLLAPSED = (12.0, 3.0), (0.6, 8.0)  # parameters of Beta distributions of true success rates
FIVE_TASKS = (1.0, 0.85, 0.6, 0.3, 0.1)  # share of runs that learn each task
ONE_TASK = (0.6,)
EASY_TASK = (1.0,)
STATE_EFFECT = 0.5  # share of what decides about an episode, besides the run's rate, that is its initial state's
States = Literal["alike", "own", "fixed"]  # all as hard; others for each run; the same ones for all
Method = Callable[[Sequence[Array]], Interval]


def simulated(
    shares: Sequence[float],
    seeds: int,
    generator: np.random.Generator,
    hardness: Sequence[Array] | None = None,
) -> list[Array]:
    """Success rates (seeds,) of the runs of an agent on each task; `hardness`: see `hardness_of`."""
    tasks = []
    for task, share in enumerate(shares):
        learned = generator.random(seeds) < share
        rates = np.where(learned, generator.beta(*LEARNED, seeds), generator.beta(*COLLAPSED, seeds))
        if hardness is None:
            tasks.append(generator.binomial(EPISODES, rates) / EPISODES)
        else:
            # Over all initial states a run solves the share `rates` of them.
            ease = (ndtri(rates)[:, None] - STATE_EFFECT**0.5 * hardness[task]) / (1 - STATE_EFFECT) ** 0.5
            tasks.append((generator.random((seeds, EPISODES)) < ndtr(ease)).mean(axis=1))
    return tasks


def hardness_of(
    states: States, shares: Sequence[float], seeds: int, generator: np.random.Generator
) -> list[Array] | None:
    """Standard normal, (seeds, EPISODES) or (1, EPISODES) for each task; None where all states are as hard."""
    if states == "alike":
        return None
    return [generator.standard_normal((1 if states == "fixed" else seeds, EPISODES)) for _ in shares]


def percentile(statistic: Callable[[Sequence[Array]], Array]) -> Method:
    """The usual bootstrap: runs drawn anew within tasks, quantiles of what comes out. For comparison only."""

    def interval(strata: Sequence[Array]) -> Interval:
        generator = metrics.generator_of(strata)
        drawn = statistic([runs[generator.integers(len(runs), size=(1_000, len(runs)))] for runs in strata])
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Interval(statistic([runs[None] for runs in strata])[0], low, high)

    return interval


def mean_over_tasks(strata: Sequence[Array]) -> Array:
    """(R, n_k) of each task -> (R,)."""
    return np.mean([runs.mean(axis=1) for runs in strata], axis=0)


MEANS: dict[str, Method] = {
    "mean, percentile bootstrap": percentile(mean_over_tasks),
    "mean, stratified t (ours)": lambda strata: metrics.mean_interval(strata, (0.0, 1.0)),
}
IQMS: dict[str, Method] = {
    "IQM, percentile bootstrap": percentile(metrics.pooled_iqm),
    "IQM, widened percentile (ours)": lambda strata: metrics.spread_or_wilson(
        metrics.iqm_interval(strata, bounds=(0.0, 1.0)), strata, (0.0, 1.0)
    ),
}


def coverage(
    methods: dict[str, Method],
    truth: float,
    shares: Sequence[float],
    seeds: int,
    trials: int,
    states: States = "alike",
) -> dict[str, tuple[float, float]]:
    """Share of trials in which each interval holds the truth, and its mean width."""
    generator = np.random.default_rng(seeds)
    held: dict[str, list[bool]] = {name: [] for name in methods}
    widths: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(trials):
        strata = simulated(shares, seeds, generator, hardness_of(states, shares, seeds, generator))
        for name, method in methods.items():
            interval = method(strata)
            held[name].append(bool(interval.low <= truth <= interval.high))
            widths[name].append(float(interval.high - interval.low))
    return {name: (float(np.mean(held[name])), float(np.mean(widths[name]))) for name in methods}


def exact_coverage(method: Method, seeds: int, shares: NDArray[np.float64]) -> Array:
    """Coverage (p,) of the mean of runs of which shares (p,) always succeed and the others always fail."""
    runs = np.arange(seeds)
    intervals = [method([(runs < solved).astype(np.float64)]) for solved in range(seeds + 1)]
    holds = np.array([(interval.low <= shares) & (shares <= interval.high) for interval in intervals])
    chances = binom.pmf(np.arange(seeds + 1)[:, None], seeds, shares)
    return (holds * chances).sum(axis=0)


def true_values(shares: Sequence[float]) -> tuple[float, float]:
    """Mean and interquartile mean of infinitely many runs."""
    many = simulated(shares, 400_000, np.random.default_rng(0))
    return float(np.mean([runs.mean() for runs in many])), float(metrics.interquartile_mean(np.concatenate(many)))


def false_alarms(shares: Sequence[float], seeds: int, trials: int, states: States = "alike") -> tuple[float, float]:
    """Share of comparisons of an agent with itself that find a difference: by its interval, by the probability's.

    Both sides play the same episodes, run by run.
    """
    generator = np.random.default_rng(seeds)
    by_mean: NDArray[np.bool_] = np.zeros(trials, dtype=bool)
    by_probability = np.zeros(trials, dtype=bool)
    for trial in range(trials):
        hardness = hardness_of(states, shares, seeds, generator)
        first, second = (simulated(shares, seeds, generator, hardness) for _ in range(2))
        by_mean[trial] = mean_difference(first, second, episodes=EPISODES)[1] < 0.05
        interval, _ = improvement_probability(first, second)
        by_probability[trial] = interval.low > 0.5 or interval.high < 0.5
    return float(by_mean.mean()), float(by_probability.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of the intervals and false alarms of the comparisons.")
    parser.add_argument("--trials", type=int, default=1_500)
    trials = parser.parse_args().trials
    for what, shares, seed_counts in (
        ("5 tasks", FIVE_TASKS, (3, 4, 5, 8, 10)),
        ("1 task", ONE_TASK, (3, 4, 5, 8, 10, 20)),
    ):
        mean, iqm = true_values(shares)
        print(f"\n{what}: coverage of nominal 95 % intervals (width), {trials} trials\n")
        print("| seeds | " + " | ".join((*MEANS, *IQMS)) + " |")
        print("|---|" + "---|" * (len(MEANS) + len(IQMS)))
        for seeds in seed_counts:
            found = coverage(MEANS, mean, shares, seeds, trials) | coverage(IQMS, iqm, shares, seeds, trials)
            print(f"| {seeds} | " + " | ".join(f"{held:.3f} ({width:.2f})" for held, width in found.values()) + " |")
    print(
        "\nruns that all succeed or all fail: coverage of their mean, exact; mean and least over shares of 1 to 99 %\n"
    )
    print("| seeds | t alone | t, or Wilson's where runs score alike (ours) |")
    print("|---|---|---|")
    shares = np.linspace(0.01, 0.99, 99)
    for seeds in (3, 4, 5, 8, 10, 20):
        methods = (lambda strata: metrics.stratified_t(strata, bounds=(0.0, 1.0)), MEANS["mean, stratified t (ours)"])
        held = [exact_coverage(method, seeds, shares) for method in methods]
        print(f"| {seeds} | " + " | ".join(f"{one.mean():.3f} ({one.min():.3f})" for one in held) + " |")
    print(f"\nfalse alarms of comparing an agent with itself at 5 %, {trials} trials\n")
    print("| seeds | 5 tasks, difference | 5 tasks, probability | 1 task, difference | 1 task, probability |")
    print("|---|---|---|---|---|")
    for seeds in (3, 5, 8, 10):
        rates = (*false_alarms(FIVE_TASKS, seeds, trials), *false_alarms(ONE_TASK, seeds, trials))
        print(f"| {seeds} | " + " | ".join(f"{rate:.3f}" for rate in rates) + " |")
    initial_states(trials)


def initial_states(trials: int) -> None:
    """Prints coverage of the mean and the interquartile mean, and false alarms, fixed -> own."""
    print(f"\ninitial states that are hard or easy for all: fixed -> own episodes, {trials} trials\n")
    print("| | seeds | mean | IQM | difference | probability |\n|---|---|---|---|---|---|")
    ours = [{name: method for name, method in methods.items() if "ours" in name} for methods in (MEANS, IQMS)]
    for what, shares in (("5 tasks", FIVE_TASKS), ("1 task", ONE_TASK), ("1 task that all learn", EASY_TASK)):
        truths = true_values(shares)
        for seeds in (3, 5, 10, 20):
            rules: tuple[States, ...] = ("fixed", "own")
            rows = []
            for states in rules:
                held = [
                    next(iter(coverage(methods, truth, shares, seeds, trials, states).values()))[0]
                    for methods, truth in zip(ours, truths, strict=True)
                ]
                rows.append([*held, *false_alarms(shares, seeds, trials, states)])
            cells = " | ".join(f"{fixed:.3f} -> {own:.3f}" for fixed, own in zip(*rows, strict=True))
            print(f"| {what} | {seeds} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
