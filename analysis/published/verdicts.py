"""Do our runs reproduce published numbers? One verdict per agent, task and step, and one over all tasks of a suite.

A run counts by its success rate at the step, or by its return on the scale of the task's reference returns. The rule,
with d = ours - published and a margin of 0.10:

* below, above: equality is rejected, the 95 % interval of d leaves out 0, and it is not within the margin.
* conformant: the interval of d lies within -margin .. +margin, from at least 5 seeds of ours.
* not enough seeds: neither; the interval reaches beyond the margin, and the data speak for nothing.
* not comparable: other critics (how many, and how they become one value), chunks, offline updates, updates per step,
  success timing, or data that are not the published ones; or a source that may report the best checkpoint of a curve.

**False alarms.** A method that is truly equal is called below or above on any task of a suite, or over all of them,
with probability 5 % at most, at each step for itself. Equality is tested by permutation (`equality.py`). Over the tasks
of a suite, Holm's step-down, in which a task counts with what its splits can reach at all (Tarone 1990): where all runs
agree it costs the others nothing. Where only a mean and a spread are published, 5 % is measured, not proven
(tests/benchmarks/README.md).

**Interval of d**: Welch's, where the variance of a side is at least that of its evaluation episodes, (s + 1) / (N + 2)
successes of N episodes: runs that all reached 1.0 are not known to the last digit. It speaks of the mean: n runs that
all succeed say nothing of a failure that strikes one run in n.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit

from analysis.labels.style import styles_of
from analysis.labels.wording import count_label, counted
from analysis.loading.load import Cell, Suite
from analysis.loading.read import NORMALISED_RETURN, SUCCESS
from analysis.published.equality import Sample, equality_test, published_sample
from analysis.published.points import COMPARED_STEPS, RETURN_STEPS, PublishedPoint, Series, series_of
from analysis.published.sources import Protocol, differences, protocol_of, source_of
from analysis.statistics.comparisons import holm
from analysis.statistics.metrics import CONFIDENCE, FLOOR_SEEDS, Array, mean_interval
from analysis.statistics.scores import ALL_TASKS

MARGIN = 0.10
ERROR_RATE = 1.0 - CONFIDENCE
CONFORMANT, BELOW, ABOVE = "conformant", "below", "above"
NOT_ENOUGH, NOT_COMPARABLE = "not enough seeds", "not comparable"


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
    span = np.ptp(pairs[0][0].bounds)
    low, high = max(-span, mean - width), min(span, mean + width)
    if math.isnan(width):
        low = high = math.nan
    return Difference(mean, low, high, half([theirs for _, theirs in pairs]))


@dataclass(frozen=True)
class SideMean:
    """The mean of ours or of the published runs, with its limits (NaN where there are none) and the seeds behind it."""

    mean: float
    low: float
    high: float
    seeds: tuple[int, int]  # fewest and most per task
    wilson: bool = False  # the limits are Wilson's


@dataclass(frozen=True)
class Verdict:
    """On one agent, task and step; task = ALL_TASKS: over `num_tasks` tasks. None: there is nothing to compare."""

    agent: str
    source: str
    method: str
    task: str
    num_tasks: int
    step: int
    ours: SideMean | None
    published: SideMean
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
    tests = [equality_test(group) for group in groups]
    adjusted = holm([test.p for test in tests], [test.reachable for test in tests])
    results = []
    for group, p in zip(groups, adjusted.tolist(), strict=True):
        gap = difference(group)
        results.append((gap, p, *decide(gap, p, min(len(ours.values) for ours, _ in group), margin)))
    return results


def judge(suite: Suite, points: Sequence[PublishedPoint], margin: float = MARGIN) -> list[Verdict]:
    """Every verdict on a suite of success rates or normalised returns; none where nothing is published for it."""
    rows: list[Verdict] = []
    families = counterparts(suite, points)
    for (agent, source, method), curves in families.items():
        ours = our_protocol(suite, agent)
        forbidding, remarks = differences(ours, protocol_of(source, method))
        if suite.episode_seeds == "fixed":
            remarks.append("our runs share their evaluation episodes: that error is not in the interval")
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


def counterparts(suite: Suite, points: Sequence[PublishedPoint]) -> dict[tuple[str, str, str], list[Series]]:
    """Published curves by (our agent, source, method), in the order of agents in legends and of the suite's tasks.

    Of two methods of a source that are one agent here, the one whose actions come in chunks of the same length.
    """
    found: dict[tuple[str, str, str], list[Series]] = {}
    curves = [curve for curve in series_of(on_our_scale(suite, points)) if (curve.task, curve.agent) in suite.cells]
    curves.sort(key=lambda curve: suite.tasks.index(curve.task))
    for agent in styles_of(suite.agents):
        of_agent = [curve for curve in curves if curve.agent == agent]
        for source in sorted({curve.source for curve in of_agent}, key=source_order):
            methods = sorted({curve.method for curve in of_agent if curve.source == source})
            if len(methods) > 1:
                chunk = our_protocol(suite, agent).chunk_length
                methods = [m for m in methods if protocol_of(source, m).chunk_length == chunk] or methods
            for method in methods:
                found[agent, source, method] = [c for c in of_agent if (c.source, c.method) == (source, method)]
    return found


def on_our_scale(suite: Suite, points: Sequence[PublishedPoint]) -> Iterator[PublishedPoint]:
    """The points of the suite's tasks: success rates of tasks with success, returns of those with reference returns."""
    for point in points:
        measure, by_return = suite.measures.get(point.task), source_of(point.source).by_return
        if measure == SUCCESS and not by_return:
            yield point
        elif measure == NORMALISED_RETURN and by_return:
            yield point.scaled(*suite.references(point.task))


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
        critic_layers=", ".join(map(str, settings.get("critic_hidden_dims", ()))) or None,
        chunk_length=settings.get("chunk_length"),
        offline_updates=config["offline_updates"],
        critic_updates_per_offline_step=settings.get("critic_updates_per_offline_step"),
        utd_ratio=config.get("utd_ratio"),
        learning_rate=settings.get("learning_rate"),
        warmup_steps=config.get("warmup_steps"),
        online_steps=suite.online_steps,
        success_timing=None if suite.success_timing == "unknown" else suite.success_timing,
        eval_episodes=suite.eval_episodes,
        data_origin=suite.origin,
        episodes="evaluation",
    )


def compared_steps(curves: Sequence[Series], untrained_start: bool = False) -> list[int]:
    """The published steps that get a verdict: a few fixed in advance, else the last one.

    untrained_start: our agent has no offline phase, and nothing is reproduced by a policy that nobody has trained.
    """
    steps = {point.step for curve in curves for point in curve.points}
    steps = steps - {0} or steps if untrained_start else steps
    fixed = RETURN_STEPS if source_of(curves[0].source).by_return else COMPARED_STEPS
    return sorted(steps & set(fixed)) or [max(steps)]


def at(curve: Series, step: int) -> PublishedPoint | None:
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
) -> list[Verdict]:
    """The verdicts at one step: a row per task, and one over all tasks where there are several."""
    pairs, points, tasks = [], [], []
    for curve in curves:
        point, scores = at(curve, step), scores_at(suite.cells[curve.task, agent], step)
        if point is not None and scores is not None:
            ours = Sample(float(scores.mean()), scores, suite.eval_episodes, point.bounds)
            pairs.append((ours, published_sample(point)))
            points.append(point)
            tasks.append(curve.task)
    rows = []
    for k, (gap, p, verdict, reason) in enumerate(compare(pairs, margin)):
        one = k < len(tasks)
        chosen = slice(k, k + 1) if one else slice(None)
        rows.append(
            Verdict(
                agent=agent,
                source=curves[0].source,
                method=curves[0].method,
                task=tasks[k] if one else ALL_TASKS,
                num_tasks=1 if one else len(tasks),
                step=step,
                ours=side_mean([ours.values for ours, _ in pairs[chosen]], points[0].bounds),
                published=published_mean(points[chosen]),
                difference=gap,
                p_adjusted=p,
                verdict=verdict,
                reason="; ".join([reason, *remarks]),
            )
        )
    return rows


def unlike(suite: Suite, agent: str, curve: Series, step: int, reasons: Sequence[str]) -> Verdict:
    """A row without a comparison; ours is shown where it was evaluated there."""
    point = at(curve, step)
    assert point is not None
    scores = scores_at(suite.cells[curve.task, agent], step)
    return Verdict(
        agent=agent,
        source=curve.source,
        method=curve.method,
        task=curve.task,
        num_tasks=1,
        step=step,
        ours=None if scores is None else side_mean([scores], point.bounds),
        published=published_mean([point]),
        difference=None,
        p_adjusted=None,
        verdict=NOT_COMPARABLE,
        reason="; ".join(reasons),
    )


def side_mean(strata: Sequence[Array], bounds: tuple[float, float]) -> SideMean:
    limits = mean_interval(strata, bounds)
    numbers = [len(values) for values in strata]
    seeds = (min(numbers), max(numbers))
    return SideMean(float(limits.mean), float(limits.low), float(limits.high), seeds, limits.wilson)


def published_mean(points: Sequence[PublishedPoint]) -> SideMean:
    """As published for one task; over several, the t interval of the runs that stand for them."""
    numbers = [point.num_seeds for point in points]
    seeds = (min(numbers), max(numbers))
    if len(points) == 1:
        return SideMean(points[0].mean, *points[0].interval, seeds)
    mean = float(np.mean([point.mean for point in points]))
    if any(math.isnan(point.interval[0]) for point in points):
        return SideMean(mean, math.nan, math.nan, seeds)
    strata = [published_sample(point).values for point in points]
    return replace(side_mean(strata, points[0].bounds), mean=mean, seeds=seeds)


def step_label(step: int) -> str:
    return f"+{count_label(step)}" if step else "end of offline"
