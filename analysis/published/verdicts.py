"""Do our runs reproduce published numbers? One verdict per agent, task and step, and one over all tasks of a suite.

A run counts by its success rate at the step. The rule, with d = ours - published and a margin of 0.10:

* below, above: equality is rejected, the 95 % interval of d leaves out 0, and it is not within the margin.
* conformant: the interval of d lies within -margin .. +margin, from at least 5 seeds of ours.
* not enough seeds: neither; the interval reaches beyond the margin, and the data speak for nothing.
* not comparable: other critics (how many, and how they become one value), chunks, offline updates, updates per step,
  success timing, or data that are not the published ones; or a source that may report the best checkpoint of a curve.

**False alarms.** A method that is truly equal is called below or above on any task of a suite, or over all of them,
with probability 5 % at most, at each step for itself. Equality is tested by permutation: if runs of both sides come
from one distribution, every split of them into two sides was as likely as the one that was seen. That is exact for
few seeds, for success that is all or nothing, and without any spread, where a t test is not. Splits are counted, not
drawn, so that a verdict is a pure function of the numbers. Over the tasks of a suite, Holm's step-down, in which a task
counts with what its splits can reach at all (Tarone 1990): where all runs agree it costs the others nothing.

Where only a mean and a spread are published, runs that have both stand for the published ones: half of them on either
side of the mean (fewer on one side where success has no room), the spread of a bootstrap interval corrected for the
number of seeds. Without a spread it is the widest that the mean allows: runs that either solve the task or do not.
Then 5 % is measured, not proven (tests/benchmarks/README.md).

**Interval of d**: Welch's, where the variance of a side is at least that of its evaluation episodes, (s + 1) / (N + 2)
successes of N episodes: runs that all reached 1.0 are not known to the last digit. It speaks of the mean: n runs that
all succeed say nothing of a failure that strikes one run in n.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from analysis.labels.style import styles_of
from analysis.labels.wording import count_label, counted
from analysis.loading.load import Cell, Suite
from analysis.loading.read import SUCCESS
from analysis.published.sources import (
    COMPARED_STEPS,
    Point,
    Protocol,
    Series,
    differences,
    protocol_of,
    series_of,
    source_of,
)
from analysis.statistics.metrics import CONFIDENCE, FLOOR_SEEDS, Array, stratified_t
from analysis.tables.success import ALL_TASKS, aligned, csv_text, write_texts

MARGIN = 0.10
ERROR_RATE = 1.0 - CONFIDENCE
CONFORMANT, BELOW, ABOVE = "conformant", "below", "above"
NOT_ENOUGH, NOT_COMPARABLE = "not enough seeds", "not comparable"
RATE_GRID = 1_000  # success rates are counted in thousandths
DIFFERENCE_GRID = 500  # differences of a task, where they are summed over tasks, in steps of 0.002
BOOTSTRAP_Z = 1.959964  # half width of a 95 % bootstrap interval in standard errors


@dataclass(frozen=True)
class Sample:
    """Success rates of the runs of one side at one point, or runs that stand for them."""

    mean: float
    values: Array  # (n,)
    eval_episodes: int | None  # per run; None: not known

    @property
    def squared_error(self) -> float:
        """Of the mean; not below what the evaluation episodes alone would give. NaN for a single run."""
        n = len(self.values)
        if n < 2:
            return math.nan
        episodes = self.eval_episodes or 50
        likely = (self.values.sum() * episodes + 1) / (n * episodes + 2)
        return float(max(self.values.var(ddof=1), likely * (1 - likely) / episodes) / n)


def published_sample(point: Point) -> Sample:
    """The runs of a published point; where only mean and spread are known, runs that have both."""
    episodes = protocol_of(point.source, point.method).eval_episodes
    n = point.num_seeds
    if point.values:
        return Sample(point.mean, np.array(point.values), episodes)
    if n == 1:
        return Sample(point.mean, np.array([point.mean]), episodes)
    if not math.isnan(point.low):
        error = (point.high - point.low) / 2 / BOOTSTRAP_Z
        spread = error * math.sqrt(n) * math.sqrt(n / (n - 1))  # resamples of n runs are too close to each other
    elif not math.isnan(point.std):
        spread = point.std * math.sqrt(n / (n - 1))  # sources do not say which of the two deviations they give
    else:
        whole, part = divmod(n * point.mean, 1)
        solved = np.r_[np.ones(int(whole)), part, np.zeros(n)][:n]
        return Sample(point.mean, solved, episodes)
    return Sample(point.mean, spread_out(point.mean, spread, n), episodes)


def spread_out(mean: float, spread: float, count: int) -> Array:
    """(count,): rates in [0, 1] on two places, with this mean and standard deviation, as even as there is room."""
    best, missed = np.full(count, mean), math.inf
    for below in sorted(range(1, count), key=lambda k: abs(2 * k - count)):
        above = count - below
        unit = np.r_[np.full(below, -math.sqrt(above / below)), np.full(above, math.sqrt(below / above))]
        values = mean + spread * math.sqrt((count - 1) / count) * unit
        outside = float(max(-values.min(), values.max() - 1.0, 0.0))
        if outside < missed - 1e-9:
            best, missed = values, outside
    return np.clip(best, 0.0, 1.0)


# ------------------------------------------------------------------------------------------ the permutation test


@dataclass(frozen=True)
class Splits:
    """Every split of the runs of both sides into two sides of these sizes: the differences of means they give.

    size (m,): |difference| of a split, descending; tail (m,): share of splits with at least that size. `observed` is
    the index of the one that was seen.
    """

    size: Array
    tail: Array
    observed: int

    @property
    def p(self) -> float:
        return float(self.tail[self.observed])

    def reachable(self, p: float) -> float:
        """Probability, under equality, of a p-value of at most `p`."""
        below = self.tail[self.tail <= p * (1 + 1e-9)]
        return float(below[-1]) if len(below) else 0.0


def split_differences(ours: Array, theirs: Array) -> tuple[Array, Array, int]:
    """Differences of means (m,), their probabilities (m,), and the index of the observed one.

    Counts the subsets of len(ours) runs by their sum: exact for rates on RATE_GRID, in no time for dozens of runs.
    """
    rates = np.rint(np.concatenate([ours, theirs]) * RATE_GRID).astype(np.int64)
    unit = max(1, int(np.gcd.reduce(rates)))
    rates //= unit
    n, m, total = len(ours), len(theirs), int(rates.sum())
    ways = np.zeros((n + 1, total + 1))  # [runs taken, their sum]
    ways[0, 0] = 1.0
    for rate in rates:
        ways[1:, rate:] += ways[:-1, : total + 1 - rate].copy()
    sums = np.flatnonzero(ways[n])
    counts = ways[n, sums]
    values = (sums / n - (total - sums) / m) * unit / RATE_GRID
    return values, counts / counts.sum(), int(np.searchsorted(sums, rates[:n].sum()))


def ranked(values: Array, shares: Array, observed: int) -> Splits:
    """Splits by the size of their difference, equal sizes put together."""
    size: Array = np.round(np.abs(values), 9).astype(np.float64)
    seen = size[observed]
    size, place = np.unique(size, return_inverse=True)
    share = np.zeros(len(size))
    np.add.at(share, place, shares)
    return Splits(size[::-1], np.minimum(np.cumsum(share[::-1]), 1.0), int(np.flatnonzero(size[::-1] == seen)[0]))


def equality_test(pairs: Sequence[tuple[Sample, Sample]]) -> Splits:
    """The test of equality on `pairs` (ours, published), one per task: splits of each task, differences summed."""
    tasks = [split_differences(ours.values, theirs.values) for ours, theirs in pairs]
    if len(tasks) == 1:
        return ranked(*tasks[0])
    total, observed = np.ones(1), 0
    for values, shares, seen in tasks:
        places = np.rint(values * DIFFERENCE_GRID).astype(np.int64) + DIFFERENCE_GRID
        own = np.zeros(2 * DIFFERENCE_GRID + 1)
        np.add.at(own, places, shares)
        total = np.convolve(total, own)
        observed += int(places[seen])
    differences_of_sum = (np.arange(len(total)) / DIFFERENCE_GRID - len(tasks)) / len(tasks)
    possible = total > 0.0
    place = int(possible[:observed].sum())
    return ranked(differences_of_sum[possible], total[possible], place)


def holm(tests: Sequence[Splits]) -> list[float]:
    """Adjusted p-values: of the smallest, the probability that any test reaches it under equality; and so on.

    Bonferroni with n times p where every test can reach every p-value; less where it cannot.
    """
    order = sorted(range(len(tests)), key=lambda k: tests[k].p)
    adjusted, so_far = [1.0] * len(tests), 0.0
    for rank, k in enumerate(order):
        so_far = max(so_far, min(1.0, sum(tests[other].reachable(tests[k].p) for other in order[rank:])))
        adjusted[k] = so_far
    return adjusted


# ------------------------------------------------------------------------------------------------------ verdicts


@dataclass(frozen=True)
class Difference:
    """Ours minus published, with its 95 % interval; `half_published` is the half width if ours had no error."""

    mean: float
    low: float
    high: float
    half_published: float


def difference(pairs: Sequence[tuple[Sample, Sample]]) -> Difference:
    """Mean over tasks of the differences of means; Welch's interval with Satterthwaite's freedom over all sides."""
    mean = float(np.mean([ours.mean - theirs.mean for ours, theirs in pairs]))
    scale = len(pairs) ** 2

    def half(samples: Sequence[Sample]) -> float:
        parts = np.array([sample.squared_error for sample in samples]) / scale
        if np.isnan(parts).any():
            return math.nan
        freedom = parts.sum() ** 2 / (parts**2 / np.array([len(sample.values) - 1 for sample in samples])).sum()
        return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2) * math.sqrt(parts.sum()))

    width = half([sample for pair in pairs for sample in pair])
    low, high = max(-1.0, mean - width), min(1.0, mean + width)
    if math.isnan(width):
        low = high = math.nan
    return Difference(mean, low, high, half([theirs for _, theirs in pairs]))


@dataclass(frozen=True)
class Shown:
    """A mean with its limits and the seeds behind it; NaN limits where there are none."""

    mean: float
    low: float
    high: float
    seeds: tuple[int, int]  # fewest and most per task


@dataclass(frozen=True)
class Row:
    """One verdict; task = ALL_TASKS for the one over `num_tasks` tasks. None: there is nothing to compare."""

    agent: str
    source: str
    method: str
    task: str
    num_tasks: int
    step: int
    ours: Shown | None
    published: Shown
    difference: Difference | None
    p_adjusted: float | None
    verdict: str
    reason: str


def decide(gap: Difference, p_adjusted: float, seeds: int, margin: float = MARGIN) -> tuple[str, str]:
    """The verdict and its reason; seeds = fewest of ours."""
    if math.isnan(gap.low):
        return NOT_ENOUGH, "no interval from a single run"
    within = -margin <= gap.low and gap.high <= margin
    apart = gap.low > 0.0 or gap.high < 0.0
    if apart and not within and p_adjusted <= ERROR_RATE:
        return (ABOVE if gap.mean > 0 else BELOW), f"adjusted p = {p_adjusted:.2g}"
    if within and seeds >= FLOOR_SEEDS:
        return CONFORMANT, f"within {margin:.2f}"
    if within:
        return NOT_ENOUGH, f"{counted(seeds, 'seed')}: conformant takes {FLOOR_SEEDS}"
    if apart:
        return NOT_ENOUGH, f"apart, but adjusted p = {p_adjusted:.2g} is above {ERROR_RATE:.2f}"
    if gap.half_published > margin:
        return NOT_ENOUGH, f"published seeds alone leave {gap.half_published:.2f} either way"
    return NOT_ENOUGH, f"interval reaches beyond {margin:.2f}"


def compare(pairs: Sequence[tuple[Sample, Sample]], margin: float = MARGIN) -> list[tuple[Difference, float, str, str]]:
    """Difference, adjusted p, verdict and reason of each task; last, with several tasks, of their mean."""
    groups = [[pair] for pair in pairs] + [list(pairs)] * (len(pairs) > 1)
    results = []
    for group, p in zip(groups, holm([equality_test(group) for group in groups]), strict=True):
        gap = difference(group)
        results.append((gap, p, *decide(gap, p, min(len(ours.values) for ours, _ in group), margin)))
    return results


def judge(suite: Suite, points: Sequence[Point], margin: float = MARGIN) -> list[Row]:
    """Every verdict on a suite of success rates; none where nothing is published for its agents and tasks."""
    rows: list[Row] = []
    if suite.measure != SUCCESS:
        return rows
    families = counterparts(suite, points)
    for (agent, source, method), curves in families.items():
        ours = our_protocol(suite, agent)
        forbidding, remarks = differences(ours, protocol_of(source, method))
        if source_of(source).best_of_curve:
            forbidding.append("may be the best checkpoint of each curve")
        steps = compared_steps(curves, untrained_start=not ours.offline_updates)
        cells = [suite.cells[curve.task, agent] for curve in curves]
        shared = [step for step in steps if any(scores_at(cell, step) is not None for cell in cells)]
        if not shared:
            forbidding.append(f"no evaluation of ours at {' or '.join(map(step_label, steps))}")
        if forbidding:
            last = (shared or steps)[-1]
            rows += [unlike(suite, agent, curve, last, forbidding) for curve in curves if at(curve, last)]
            continue
        for step in shared:
            rows += judge_step(suite, agent, [curve for curve in curves if at(curve, step)], step, remarks, margin)
    return rows


def counterparts(suite: Suite, points: Sequence[Point]) -> dict[tuple[str, str, str], list[Series]]:
    """Published curves by (our agent, source, method), in the order of agents in legends and of the suite's tasks.

    Of two methods of a source that are one agent here, the one whose actions come in chunks of the same length.
    """
    found: dict[tuple[str, str, str], list[Series]] = {}
    curves = [curve for curve in series_of(points) if (curve.task, curve.agent) in suite.cells]
    curves.sort(key=lambda curve: suite.tasks.index(curve.task))
    for agent in styles_of(suite.agents):
        own = [curve for curve in curves if curve.agent == agent]
        for source in sorted({curve.source for curve in own}, key=source_order):
            methods = sorted({curve.method for curve in own if curve.source == source})
            if len(methods) > 1:
                chunk = our_protocol(suite, agent).chunk_length
                methods = [m for m in methods if protocol_of(source, m).chunk_length == chunk] or methods
            for method in methods:
                found[agent, source, method] = [c for c in own if (c.source, c.method) == (source, method)]
    return found


def source_order(source: str) -> tuple[bool, str]:
    """Sources that may be maxima come last."""
    return source_of(source).best_of_curve, source


def our_protocol(suite: Suite, agent: str) -> Protocol:
    """How our numbers were made, from the config of a run; the runs of an agent are checked to be alike by `load`."""
    cell = suite.cells_of(agent)[0]
    config = next(run.config for run in suite.runs if (run.config["task"], run.agent) == (cell.task, agent))
    settings = config.get("agent_config", {})
    return Protocol(
        num_critics=settings.get("num_critics"),
        q_aggregation=settings.get("q_aggregation"),
        pessimism=settings.get("pessimism"),
        chunk_length=settings.get("chunk_length"),
        offline_updates=config["offline_updates"],
        critic_updates_per_offline_step=settings.get("critic_updates_per_offline_step"),
        utd_ratio=config.get("utd_ratio"),
        online_steps=suite.online_steps,
        success_timing=None if suite.success_timing == "unknown" else suite.success_timing,
        eval_episodes=suite.eval_episodes,
        data_origin=suite.origin,
    )


def compared_steps(curves: Sequence[Series], untrained_start: bool = False) -> list[int]:
    """The published steps that get a verdict: a few fixed in advance, else the last one.

    untrained_start: our agent has no offline phase, and nothing is reproduced by a policy that nobody has trained.
    """
    steps = {point.step for curve in curves for point in curve.points}
    steps = steps - {0} or steps if untrained_start else steps
    return sorted(steps & set(COMPARED_STEPS)) or [max(steps)]


def at(curve: Series, step: int) -> Point | None:
    return next((point for point in curve.points if point.step == step), None)


def scores_at(cell: Cell, step: int) -> Array | None:
    """(n,): success of the runs that have come to an online step; None where there is no such evaluation."""
    column = np.flatnonzero(cell.online_steps == step)
    if not len(column):
        return None
    scores = cell.online_score[:, column[0]]
    scores = scores[~np.isnan(scores)]
    return scores if len(scores) else None


def judge_step(
    suite: Suite, agent: str, curves: Sequence[Series], step: int, remarks: Sequence[str], margin: float
) -> list[Row]:
    """The verdicts at one step: a row per task, and one over all tasks where there are several."""
    pairs, points, tasks = [], [], []
    for curve in curves:
        point, scores = at(curve, step), scores_at(suite.cells[curve.task, agent], step)
        if point is not None and scores is not None:
            pairs.append((Sample(float(scores.mean()), scores, suite.eval_episodes), published_sample(point)))
            points.append(point)
            tasks.append(curve.task)
    rows = []
    for k, (gap, p, verdict, reason) in enumerate(compare(pairs, margin)):
        one = k < len(tasks)
        chosen = slice(k, k + 1) if one else slice(None)
        rows.append(
            Row(
                agent=agent,
                source=curves[0].source,
                method=curves[0].method,
                task=tasks[k] if one else ALL_TASKS,
                num_tasks=1 if one else len(tasks),
                step=step,
                ours=shown([ours.values for ours, _ in pairs[chosen]]),
                published=shown_published(points[chosen]),
                difference=gap,
                p_adjusted=p,
                verdict=verdict,
                reason="; ".join([reason, *remarks]),
            )
        )
    return rows


def unlike(suite: Suite, agent: str, curve: Series, step: int, reasons: Sequence[str]) -> Row:
    """A row without a comparison; ours is shown where it was evaluated there."""
    point = at(curve, step)
    assert point is not None
    scores = scores_at(suite.cells[curve.task, agent], step)
    return Row(
        agent=agent,
        source=curve.source,
        method=curve.method,
        task=curve.task,
        num_tasks=1,
        step=step,
        ours=None if scores is None else shown([scores]),
        published=shown_published([point]),
        difference=None,
        p_adjusted=None,
        verdict=NOT_COMPARABLE,
        reason="; ".join(reasons),
    )


def shown(strata: Sequence[Array]) -> Shown:
    limits = stratified_t(strata, bounds=(0.0, 1.0))
    numbers = [len(values) for values in strata]
    return Shown(float(limits.mean), float(limits.low), float(limits.high), (min(numbers), max(numbers)))


def shown_published(points: Sequence[Point]) -> Shown:
    """As published for one task; over several, the t interval of the runs that stand for them."""
    numbers = [point.num_seeds for point in points]
    seeds = (min(numbers), max(numbers))
    if len(points) == 1:
        return Shown(points[0].mean, *points[0].interval, seeds)
    mean = float(np.mean([point.mean for point in points]))
    if any(math.isnan(point.interval[0]) for point in points):
        return Shown(mean, math.nan, math.nan, seeds)
    limits = stratified_t([published_sample(point).values for point in points], bounds=(0.0, 1.0))
    return Shown(mean, float(limits.low), float(limits.high), seeds)


def step_label(step: int) -> str:
    return f"+{count_label(step)}" if step else "end of offline"


# -------------------------------------------------------------------------------------------------------- tables


def write_verdicts(suite: Suite, rows: Sequence[Row], out: Path, margin: float = MARGIN) -> list[Path]:
    """Writes `<suite>_verdicts.csv` and `.md` into `out`; returns their paths, none without rows."""
    if not rows:
        return []
    texts = {
        f"{suite.name}_verdicts.csv": to_csv(suite, rows),
        f"{suite.name}_verdicts.md": to_markdown(suite, rows, margin),
    }
    return write_texts(texts, out)


def to_csv(suite: Suite, rows: Sequence[Row]) -> str:
    """Numbers with six digits, an empty field where undefined."""
    parts = ("", "_low", "_high", "_seeds_min", "_seeds_max")
    sides = [f"{side}{part}" for side in ("ours", "published") for part in parts]
    gap = ["difference", "difference_low", "difference_high", "p_adjusted"]
    where = ["suite", "agent", "source", "method", "task", "num_tasks", "step"]
    lines: list[list[object]] = []

    def number(value: float | None) -> str:
        return "" if value is None or math.isnan(value) else f"{value:.6f}"

    for row in rows:
        fields: list[object] = [suite.name, row.agent, row.source, row.method, row.task, row.num_tasks, row.step]
        for side in (row.ours, row.published):
            fields += [number(side.mean), number(side.low), number(side.high), *side.seeds] if side else [""] * 5
        d = row.difference
        fields += [number(d.mean), number(d.low), number(d.high)] if d else [""] * 3
        lines.append([*fields, number(row.p_adjusted), row.verdict, row.reason])
    return csv_text([*where, *sides, *gap, "verdict", "reason"], lines)


def to_markdown(suite: Suite, rows: Sequence[Row], margin: float = MARGIN) -> str:
    """A summary at the last step, and one table per agent and source."""
    blocks = [summarised(suite, rows, margin)]
    families: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        families.setdefault((row.agent, row.source, row.method), []).append(row)
    for (agent, source, method), members in families.items():
        blocks.append(f"### {agent} against {method}, {source_of(source).label}")
        lines = [["task", "step", "ours", "seeds", "published", "seeds", "difference", "verdict", "reason"]]
        for row in members:
            lines.append(
                [
                    row.task if row.num_tasks == 1 else f"{ALL_TASKS} ({row.num_tasks})",
                    step_label(row.step),
                    *((estimate(row.ours), between(row.ours.seeds)) if row.ours else ("-", "-")),
                    estimate(row.published),
                    between(row.published.seeds),
                    estimate(row.difference) if row.difference else "-",
                    row.verdict,
                    row.reason,
                ]
            )
        blocks.append(aligned(lines))
    return "\n\n".join(blocks) + "\n"


def summarised(suite: Suite, rows: Sequence[Row], margin: float = MARGIN) -> str:
    """One line per agent and source, the verdicts at the last compared step, below what they rest on."""
    last: dict[tuple[str, str, str], int] = {}
    for row in rows:
        key = (row.agent, row.source, row.method)
        last[key] = max(row.step, last.get(key, row.step))
    lines = [["agent", "published", "step", "mean over tasks", "by task"]]
    for (agent, source, method), step in last.items():
        members = [r for r in rows if (r.agent, r.source, r.method, r.step) == (agent, source, method, step)]
        overall = [row.verdict for row in members if row.task == ALL_TASKS]
        single = [row for row in members if row.task != ALL_TASKS]
        kinds = (BELOW, ABOVE, CONFORMANT, NOT_ENOUGH, NOT_COMPARABLE)
        counts = [f"{n} {kind}" for kind in kinds if (n := sum(row.verdict == kind for row in single))]
        name = f"{method}, {source_of(source).label}"
        lines.append([agent, name, step_label(step), overall[0] if overall else "-", ", ".join(counts)])
    rule = (
        f"Margin {margin:.2f}. A method that is truly equal is called below or above on any task of the suite with "
        f"probability {ERROR_RATE:.0%} at most, at each step. The rule: results/README.md."
    )
    return "\n\n".join([f"## {suite.name}: against published numbers", rule, aligned(lines)])


def estimate(value: Shown | Difference) -> str:
    """0.62 [0.48, 0.76], or the mean alone."""
    limits = "" if math.isnan(value.low) else f" [{value.low + 0.0:.2f}, {value.high + 0.0:.2f}]"
    return f"{value.mean + 0.0:.2f}{limits}".replace("-0.00", "0.00")


def between(seeds: tuple[int, int]) -> str:
    return str(seeds[0]) if seeds[0] == seeds[1] else f"{seeds[0]}-{seeds[1]}"
