"""False alarms and power of the verdicts on published rates per seed: `python -m tests.benchmarks.verdicts FILE`.

False alarms: the seeds of every method and task fall into two sides at random, as if one were ours; every below or
above is false. Power: another method's runs are put in the place of ours. A suite is a domain of the file, five tasks.
Without FILE: false alarms on simulated runs of five tasks, where initial states are hard or easy for all policies.
"""

import argparse
import itertools
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr

from analysis.published import verdicts
from analysis.published.equality import Sample, published_sample
from analysis.published.points import COMPARED_STEPS, PublishedPoint, read_file
from analysis.published.verdicts import ABOVE, BELOW, CONFORMANT
from tests.benchmarks.intervals import EPISODES, FIVE_TASKS, States, hardness_of, simulated

RESAMPLES = 2_000  # of a published bootstrap interval
WORST = 5  # suites that are split anew
DIFFERENCES = (0.0, 0.05, 0.10, 0.20, 0.30, 0.50, 1.01)  # bins of the true difference
ALARMS = (BELOW, ABOVE)

Array = np.ndarray
Suite = dict[tuple[str, int], dict[str, Array]]  # (method, step) -> task -> rates (seeds,)
Cell = tuple[str, tuple[str, int], dict[str, Array]]  # domain, (method, step), task -> rates


class Setting(NamedTuple):
    """What is compared: seeds of ours, seeds of theirs, and the form in which theirs are published."""

    ours: int
    theirs: int
    form: str


SETTINGS = (
    Setting(6, 6, "per seed"),
    Setting(3, 9, "per seed"),
    Setting(8, 4, "per seed"),
    Setting(8, 4, "mean, 95 % interval"),
    Setting(5, 4, "mean, 95 % interval"),
    Setting(6, 6, "mean, deviation"),
    Setting(8, 4, "mean alone"),
)


def read_suites(path: Path) -> dict[str, Suite]:
    """Rates by domain, at the steps that get a verdict."""
    suites: dict[str, Suite] = defaultdict(lambda: defaultdict(dict))
    for point in read_file(path):
        if point.step in COMPARED_STEPS:
            suites[point.task.rsplit("-", 1)[0]][point.method, point.step][point.task] = np.array(point.values)
    return {domain: dict(cells) for domain, cells in suites.items()}


def published(rates: Array, form: str, rng: np.random.Generator) -> Sample:
    """The runs that stand for `rates` once they are published in this form; the protocol is that of no known source."""
    low = high = std = float("nan")
    values: tuple[float, ...] = ()
    mean = float(rates.mean())
    if form == "per seed":
        values = tuple(rates.tolist())
    elif form == "mean, 95 % interval":
        resampled = rates[rng.integers(len(rates), size=(RESAMPLES, len(rates)))].mean(axis=1)
        low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    elif form == "mean, deviation":
        std = float(rates.std())
    point = PublishedPoint("benchmark", "", "", "", 0, mean, low, high, std, len(rates), values)
    return published_sample(point)


def our_sample(rates: Array) -> Sample:
    return Sample(float(rates.mean()), rates, EPISODES)


def welch(pairs: list[tuple[Sample, Sample]]) -> list[bool]:
    """For comparison: Welch's t test with Holm's correction; a task without any spread is equal."""
    p = []
    for ours, theirs in pairs:
        a, b = (sample.values.var(ddof=1) / len(sample.values) for sample in (ours, theirs))
        freedom = (a + b) ** 2 / (a**2 / (len(ours.values) - 1) + b**2 / (len(theirs.values) - 1)) if a + b else 1.0
        p.append(2 * stdtr(freedom, -abs(ours.mean - theirs.mean) / (a + b) ** 0.5) if a + b else 1.0)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1))
    return [bool(adjusted[np.flatnonzero(order == k)[0]] <= verdicts.ERROR_RATE) for k in range(len(p))]


# -------------------------------------------------------------------------------------------------- false alarms


def alarms_of(cell: Cell, splits: int, settings: Sequence[Setting] = SETTINGS, turn: int = 0) -> list[Array]:
    """Of one method, domain and step, by setting, (splits, 7): share of tasks that alarm; tasks with spread that alarm,
    whose interval covers 0, all; any alarm, Welch's, in the suite; share of tasks that are conformant."""
    domain, key, tasks = cell
    spread = np.array([np.ptp(rates) > 0 for rates in tasks.values()])
    rng = np.random.default_rng([*map(ord, domain + key[0]), key[1], turn])
    results = []
    for setting in settings:
        rows = []
        for _ in range(splits):
            pairs = []
            for rates in tasks.values():
                mixed = rng.permutation(rates)
                theirs = mixed[setting.ours : setting.ours + setting.theirs]
                pairs.append((our_sample(mixed[: setting.ours]), published(theirs, setting.form, rng)))
            found = verdicts.compare(pairs)
            alarm = np.array([row[2] in ALARMS for row in found])
            covered = np.array([row[0].low <= 0 <= row[0].high for row in found[:-1]])
            rows.append(
                [
                    alarm[:-1].mean(),
                    (alarm[:-1] & spread).sum(),
                    (covered & spread).sum(),
                    spread.sum(),
                    alarm.any(),
                    any(welch(pairs)),
                    np.mean([row[2] == CONFORMANT for row in found[:-1]]),
                ]
            )
        results.append(np.array(rows, dtype=float))
    return results


def false_alarms(suites: dict[str, Suite], splits: int, jobs: int) -> None:
    """Prints a row per setting. The suites with most alarms are split anew: of many shares the largest misleads."""
    cells = [(domain, key, tasks) for domain, suite in suites.items() for key, tasks in suite.items()]
    arrays = np.array(list(mapped(partial(alarms_of, splits=splits), cells, jobs)))  # (suites, settings, splits, 7)
    print(f"False alarms, {len(cells)} suites (method x domain x step), {splits} splits each, %:\n")
    heading = (
        "tasks",
        "tasks with spread",
        "suites",
        f"{WORST} worst suites",
        "suites by Welch",
        "covered",
        "conformant",
    )
    print(f"| ours v published | published as | {' | '.join(heading)} |\n|---|---|{'---:|' * len(heading)}")
    for k, setting in enumerate(SETTINGS):
        rows = arrays[:, k]
        means = rows.mean(axis=(0, 1))
        worst = [cells[place] for place in np.argsort(rows[:, :, 4].mean(axis=1), kind="stable")[-WORST:]]
        again = partial(alarms_of, splits=10 * splits, settings=[setting], turn=1)
        anew = np.mean([found[0][:, 4].mean() for found in mapped(again, worst, jobs)])
        numbers = (means[0], means[1] / means[3], means[4], anew, means[5], means[2] / means[3], means[6])
        cells_of_row = " | ".join(f"{100 * number:.1f}" for number in numbers)
        print(f"| {setting.ours} v {setting.theirs} | {setting.form} | {cells_of_row} |", flush=True)


def state_alarms(shares: Sequence[float], setting: Setting, states: States, trials: int) -> tuple[float, float]:
    """Share of suites with any alarm, and of intervals of a task that cover 0, for runs of one agent on both sides; the
    published ones play fresh episodes."""
    rng = np.random.default_rng([setting.ours, setting.theirs])
    alarms, covered = [], []
    for _ in range(trials):
        ours = simulated(shares, setting.ours, rng, hardness_of(states, shares, setting.ours, rng))
        theirs = simulated(shares, setting.theirs, rng, hardness_of("own", shares, setting.theirs, rng))
        pairs = [(our_sample(a), published(b, setting.form, rng)) for a, b in zip(ours, theirs, strict=True)]
        found = verdicts.compare(pairs)
        alarms.append(any(row[2] in ALARMS for row in found))
        covered += [row[0].low <= 0 <= row[0].high for row in found[: len(pairs)]]
    return float(np.mean(alarms)), float(np.mean(covered))


def initial_states(trials: int) -> None:
    """Prints false alarms against published runs with fixed and with own episodes of ours."""
    print(f"Simulated runs of one agent on both sides, fixed -> own episodes of ours, {trials} trials, %:\n")
    print("| tasks | ours v published | published as | suites with an alarm | tasks covered |\n|---|---|---|---:|---:|")
    for what, shares in (("all learn all five", (1.0,) * 5), ("some learn some", FIVE_TASKS)):
        for setting in (Setting(8, 8, "per seed"), Setting(20, 20, "per seed"), Setting(8, 4, "mean, 95 % interval")):
            rates = [state_alarms(shares, setting, states, trials) for states in ("fixed", "own")]
            cells = " | ".join(f"{100 * fixed:.1f} -> {100 * own:.1f}" for fixed, own in zip(*rates, strict=True))
            print(f"| {what} | {setting.ours} v {setting.theirs} | {setting.form} | {cells} |", flush=True)


# --------------------------------------------------------------------------------------------------------- power


def caught_of(
    swap: tuple[dict[str, Array], dict[str, Array]], sizes: tuple[int, ...], theirs: int, form: str, draws: int
) -> list[tuple[int, bool, float, str]]:
    """Of one pair of methods (published, ours): seeds of ours, over all tasks?, true difference, verdict."""
    one, other = swap
    rng = np.random.default_rng(int(1_000 * sum(rates.sum() for rates in (*one.values(), *other.values()))))
    gaps = [other[task].mean() - one[task].mean() for task in one]
    found = []
    for size in sizes:
        for _ in range(draws):
            pairs = []
            for task, rates in one.items():
                ours = rng.permutation(other[task])[:size]
                pairs.append((our_sample(ours), published(rng.permutation(rates)[:theirs], form, rng)))
            for gap, row in zip([*gaps, float(np.mean(gaps))], verdicts.compare(pairs), strict=True):
                found.append((size, False, abs(float(gap)), row[2]))
            found[-1] = (size, True, *found[-1][2:])
    return found


def power(suites: dict[str, Suite], theirs: int, form: str, draws: int, jobs: int) -> None:
    """Prints caught / called conformant by size of the true difference."""
    sizes = (3, 5, 8, 12)
    swaps = [
        (suite[one, step], suite[other, step])
        for suite in suites.values()
        for step in sorted({step for _, step in suite})
        for one, other in itertools.permutations(sorted({name for name, at in suite if at == step}), 2)
    ]
    rows = mapped(partial(caught_of, sizes=sizes, theirs=theirs, form=form, draws=draws), swaps, jobs)
    every = list(itertools.chain.from_iterable(rows))
    print(f"\nPublished: {theirs} seeds, {form}. {len(swaps)} swapped suites. % caught (% conformant):\n")
    print(f"| true difference | | {' | '.join(f'{size} seeds' for size in sizes)} | rows |\n|---|---|{'---:|' * 5}")
    for overall in (False, True):
        for low, high in itertools.pairwise(DIFFERENCES):
            kept = [row for row in every if row[1] == overall and low <= row[2] < high]
            if not kept:
                continue
            numbers = []
            for size in sizes:
                kinds = [row[3] for row in kept if row[0] == size]
                caught = np.mean([kind in ALARMS for kind in kinds])
                numbers.append(f"{100 * caught:.0f} ({100 * np.mean([kind == CONFORMANT for kind in kinds]):.0f})")
            name = f"{low:.2f} to {min(high, 1):.2f}"
            print(f"| {name} | {'all tasks' if overall else 'task'} | {' | '.join(numbers)} | {len(kept)} |")


def mapped(function: Callable[[Any], Any], items: Sequence[Any], jobs: int) -> Iterator[Any]:
    with multiprocessing.Pool(jobs) as pool:
        yield from pool.imap(function, items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="rates per seed")
    parser.add_argument("--trials", type=int, default=1_000, help="of simulated suites, without a file")
    parser.add_argument("--splits", type=int, default=100, help="of the seeds of each method, domain and step")
    parser.add_argument("--draws", type=int, default=1, help="of seeds per pair of methods")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.file is None:
        initial_states(options.trials)
        return
    started = time.perf_counter()
    suites = read_suites(options.file)
    false_alarms(suites, options.splits, options.jobs)
    power(suites, 12, "per seed", options.draws, options.jobs)
    power(suites, 4, "mean, 95 % interval", options.draws, options.jobs)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
