"""Errors of claims that are looked at after every seed, and the seeds they take, against t tests; simulated.

    python -m tests.benchmarks.claims

A run's success is that of its policy plus that of its evaluation episodes (3 x 50).
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy.stats import t as student

from analysis.statistics.metrics import CONFIDENCE, Array
from analysis.statistics.sequences import difference_sequence
from tests.benchmarks.measure import table

EPISODES = 150
MOST = 30  # seeds
FIXED = 10  # seeds of a study that decides their number in advance
FROM = 3  # seeds, the first look of the t test
Scores = Callable[[np.random.Generator, float, tuple[int, int]], Array]


def spread(deviation: float) -> Scores:
    """Policies whose success has this standard deviation."""

    def draw(rng: np.random.Generator, mean: float, size: tuple[int, int]) -> Array:
        total = max(mean * (1 - mean) / deviation**2 - 1, 0.3)
        return rng.beta(mean * total, (1 - mean) * total, size)

    return draw


def collapse(rng: np.random.Generator, mean: float, size: tuple[int, int]) -> Array:
    """Policies that solve 90 % or 5 %."""
    return np.where(rng.random(size) < (mean - 0.05) / 0.85, 0.9, 0.05)


SCORES: dict[str, Scores] = {"alike": spread(0.05), "spread": spread(0.12), "collapse": collapse}


def draw_scores(kind: str, mean: float, runs: int, most: int, rng: np.random.Generator) -> Array:
    return rng.binomial(EPISODES, np.clip(SCORES[kind](rng, mean, (runs, most)), 0, 1)) / EPISODES


def welch(first: Array, second: Array) -> tuple[Array, Array]:
    """One-sided p-values that the first mean is higher, and that the second one is, of scores (runs, n)."""
    n = first.shape[1]
    errors = [scores.var(1, ddof=1) / n + 1e-12 for scores in (first, second)]
    degrees = (errors[0] + errors[1]) ** 2 / (sum(error**2 for error in errors) / (n - 1))
    ratio = (first.mean(1) - second.mean(1)) / np.sqrt(errors[0] + errors[1])
    return student.sf(ratio, degrees), student.cdf(ratio, degrees)


def first_looks(first: Array, second: Array) -> Array:
    """The number of seeds at which a claim is decided in each simulated study, (runs,); infinite where it never is."""
    found = [difference_sequence(a, b).decided for a, b in zip(first, second, strict=True)]
    return np.array([np.inf if number is None else number for number in found])


def errors(kind: str, means: tuple[float, float], runs: int, most: int, seed: int) -> tuple[float, float]:
    """How often 'the first is better' is said at any look although the means are equal: ours, and a t test's."""
    rng = np.random.default_rng(seed)
    first, second = (draw_scores(kind, mean, runs, most, rng) for mean in means)
    ours = np.mean([difference_sequence(a, b).low[-1] > 0 for a, b in zip(first, second, strict=True)])
    looks = [welch(first[:, :n], second[:, :n])[0] < 1 - CONFIDENCE for n in range(FROM, most + 1)]
    return float(ours), float(np.any(looks, 0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2_000, help="simulated studies per row")
    args = parser.parse_args()
    rows = []
    for kind in SCORES:
        for means in ((0.5, 0.5), (0.85, 0.85)):
            found = errors(kind, means, args.runs, MOST, seed=0)
            rows.append((kind, f"{means[0]:g}", *(f"{share:.1%}" for share in found)))
    columns = ("scores", "both means", "limits of a claim", "t test, peeked")
    print(table(f"equal agents called better, looking after each of {MOST} seeds", columns, rows), flush=True)
    rows = []
    for kind in SCORES:
        for means in ((0.55, 0.45), (0.6, 0.4), (0.65, 0.35), (0.75, 0.25), (0.9, 0.7), (0.9, 0.5)):
            rng = np.random.default_rng(1)
            first, second = (draw_scores(kind, mean, args.runs, MOST, rng) for mean in means)
            looks = first_looks(first, second)
            spent = np.minimum(looks, MOST)
            power = (welch(first[:, :FIXED], second[:, :FIXED])[0] < 1 - CONFIDENCE).mean()
            rows.append(
                (
                    kind,
                    f"{means[0]:g}, {means[1]:g}",
                    f"{np.isfinite(looks).mean():.0%}",
                    f"{spent.mean():.1f}",
                    f"{np.quantile(spent, 0.9):.0f}",
                    f"{FIXED - spent.mean():+.1f}",
                    f"{power:.0%}",
                )
            )
    columns = ("scores", "means", "decided", "seeds", "9 in 10", f"saved of {FIXED}", f"t test of {FIXED} finds it")
    print(table(f"seeds of each agent that a claim takes, at most {MOST}", columns, rows), flush=True)


if __name__ == "__main__":
    main()
