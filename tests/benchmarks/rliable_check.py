"""Our intervals beside those of rliable (Agarwal et al. 2021) on the same arrays: estimates, limits and time.

rliable does not install beside a current pandas, so it runs in an environment of its own, which `--python` names:

    python3 -m venv /some/folder && /some/folder/bin/pip install rliable "pandas<3"
    python -m tests.benchmarks.rliable_check --python /some/folder/bin/python

Point estimates have to be equal. Its limits are plain percentiles: ours must be theirs once the factor for few runs is
taken out again, up to the error of resampling, which rliable's own repetitions show.
"""

import argparse
import json
import subprocess
import time

import numpy as np

from analysis.statistics import metrics
from analysis.statistics.comparisons import improvement_probability
from analysis.statistics.metrics import Array, Interval

TASKS = 5
RESAMPLES = 2_000
# What the other interpreter runs: scores (runs, tasks) of two agents from stdin, results to stdout.
THEIRS = """
import json, sys, time
import numpy as np
from rliable import library, metrics
given = json.load(sys.stdin)
scores = {name: np.array(rows) for name, rows in given["scores"].items()}
taus = np.array(given["taus"])
def both(x):
    return np.array([metrics.aggregate_mean(x), metrics.aggregate_iqm(x)])
def intervals():
    return library.get_interval_estimates({"a": scores["a"]}, both, reps=given["reps"])
started = time.perf_counter()
points, limits = intervals()
seconds = time.perf_counter() - started
again = [intervals()[1]["a"].tolist() for _ in range(4)]
profile, band = library.create_performance_profile({"a": scores["a"]}, taus, reps=given["reps"])
pair = {"pair": (scores["a"], scores["b"])}
started = time.perf_counter()
better, better_limits = library.get_interval_estimates(pair, metrics.probability_of_improvement, reps=given["reps"])
pair_seconds = time.perf_counter() - started
print(json.dumps({
    "points": points["a"].tolist(), "limits": [limits["a"].tolist(), *again], "seconds": seconds,
    "profile": profile["a"].tolist(), "band": band["a"].tolist(),
    "better": float(np.ravel(better["pair"])[0]), "better_limits": np.ravel(better_limits["pair"]).tolist(),
    "pair_seconds": pair_seconds,
}))
"""


def narrowed(interval: Interval, counts: list[int]) -> tuple[float, float]:
    """Limits without what is added for few runs: plain percentiles."""
    factor = metrics.small_sample_factor(counts)
    low, high = (interval.mean + (limit - interval.mean) / factor for limit in (interval.low, interval.high))
    return float(low), float(high)


def compare(python: str, seeds: int) -> list[list[str]]:
    """Rows of a table for agents of `seeds` runs per task."""
    generator = np.random.default_rng(seeds)
    scores = {name: generator.uniform(0.2, 0.9, size=(seeds, TASKS)) for name in ("a", "b")}
    taus = np.linspace(0.0, 1.0, 21)
    given = {"scores": {k: v.tolist() for k, v in scores.items()}, "taus": taus.tolist(), "reps": RESAMPLES}
    done = subprocess.run([python, "-c", THEIRS], input=json.dumps(given), capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    first, second = ([scores[name][:, task] for task in range(TASKS)] for name in ("a", "b"))
    counts = [seeds] * TASKS

    def mean_over_tasks(strata: list[Array]) -> Array:
        return np.mean([runs.mean(axis=1) for runs in strata], axis=0)

    started = time.perf_counter()
    mean = metrics.bootstrap(first, mean_over_tasks)  # pyright: ignore[reportArgumentType]
    iqm = metrics.iqm_interval(first)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    better, _ = improvement_probability(first, second)
    pair_seconds = time.perf_counter() - started
    profile = metrics.performance_profile(first, taus)
    rows = []
    limits = np.array(theirs["limits"])  # (repetitions, [low, high], [mean, IQM])
    for index, (name, ours) in enumerate((("mean", mean), ("IQM", iqm))):
        estimate = f"{abs(float(ours.mean) - theirs['points'][index]):.1e}"
        gap = f"{np.abs(np.array(narrowed(ours, counts)) - limits[:, :, index].mean(axis=0)).max():.4f}"
        between = f"{np.ptp(limits[:, :, index], axis=0).max():.4f}"
        rows.append([str(seeds), name, estimate, gap, between, f"{theirs['seconds'] / seconds:.0f}x"])
    estimate = f"{abs(float(better.mean) - theirs['better']):.1e}"
    gap = f"{np.abs(np.array(narrowed(better, counts * 2)) - np.array(theirs['better_limits'])).max():.4f}"
    rows.append([str(seeds), "P(a better)", estimate, gap, "", f"{theirs['pair_seconds'] / pair_seconds:.0f}x"])
    estimate = f"{np.abs(profile.mean - np.array(theirs['profile'])).max():.1e}"
    rows.append([str(seeds), "profile", estimate, "", "", ""])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Our intervals beside those of rliable.")
    parser.add_argument("--python", required=True, help="an interpreter that has rliable")
    python = parser.parse_args().python
    columns = ["seeds", "statistic", "difference of estimates", "of limits", "between repetitions of theirs", "time"]
    print(f"| {' | '.join(columns)} |")
    print("|---:|---|---:|---:|---:|---:|")
    for seeds in (3, 5, 10):
        for row in compare(python, seeds):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
