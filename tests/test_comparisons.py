"""Who is better: differences, probability of improvement, corrections and power, against scipy and by hand."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import comparisons
from analysis.statistics.comparisons import (
    compare,
    holm,
    improvement_probability,
    leaders,
    mean_difference,
    seeds_to_separate,
)
from analysis.statistics.metrics import Array
from tests.benchmarks.intervals import FIVE_TASKS, ONE_TASK, false_alarms


def runs_of(seed: int, sizes: tuple[int, ...], shift: float = 0.0) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.uniform(size=size) + shift for size in sizes]


def test_difference_on_one_task_is_welchs():
    (a,), (b,) = runs_of(0, (5,)), runs_of(1, (9,), 0.4)
    ours, p_value = mean_difference([a], [b])
    theirs = stats.ttest_ind(a, b, equal_var=False)
    limits = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high, p_value) == pytest.approx((limits.low, limits.high, theirs[1]))


def test_difference_of_runs_that_share_offline_phases_is_paired():
    (a,), (b,) = runs_of(2, (7,)), runs_of(3, (7,), 0.2)
    ours, p_value = mean_difference([a], [b], paired=True)
    theirs = stats.ttest_rel(a, b)
    limits = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high, p_value) == pytest.approx((limits.low, limits.high, theirs[1]))


def test_paired_runs_come_in_equal_numbers():
    with pytest.raises(ValueError, match="equal numbers"):
        mean_difference([np.zeros(3)], [np.zeros(4)], paired=True)


def test_tasks_must_be_the_same_on_both_sides():
    with pytest.raises(ValueError, match="same tasks"):
        compare([np.zeros(3)], [np.zeros(3), np.zeros(3)])


def test_difference_over_tasks_is_the_mean_of_their_differences():
    first, second = runs_of(4, (4, 6, 5)), runs_of(5, (5, 3, 8))
    difference, _ = mean_difference(first, second)
    expected = np.mean([a.mean() - b.mean() for a, b in zip(first, second, strict=True)])
    error = np.sqrt(sum(runs.var(ddof=1) / len(runs) for runs in (*first, *second))) / 3
    assert difference.mean == pytest.approx(expected)
    # Degrees of freedom lie between the fewest of a sample and all together.
    half = (difference.high - difference.low) / 2
    assert stats.t.ppf(0.975, 25) * error < half < stats.t.ppf(0.975, 2) * error


def test_runs_that_all_succeed_are_not_without_any_noise():
    all_solved, nearly = [np.ones(5)], [np.array([1.0, 0.98, 1.0, 1.0, 1.0])]
    certain, p_certain = mean_difference(all_solved, [np.full(5, 0.98)])
    assert certain.high - certain.low < 1e-12 and p_certain < 1e-12
    noisy, p_noisy = mean_difference(all_solved, [np.full(5, 0.98)], episodes=50)
    assert noisy.low < noisy.mean < noisy.high and p_noisy > 0.01
    assert mean_difference(all_solved, nearly, episodes=50)[1] > 0.1
    assert mean_difference(all_solved, all_solved, episodes=50)[1] == 1.0


def test_probability_of_improvement_is_mann_whitneys():
    (a,), (b,) = runs_of(6, (6,), 0.1), runs_of(7, (8,))
    a[0] = b[0]
    interval, ties = improvement_probability([a], [b])
    assert interval.mean == pytest.approx(stats.mannwhitneyu(a, b).statistic / (6 * 8))
    assert ties == pytest.approx(1 / 48)
    assert 0.0 <= interval.low <= interval.mean <= interval.high <= 1.0


def test_probability_of_improvement_is_a_mean_over_tasks():
    interval, ties = improvement_probability([np.ones(4), np.zeros(4)], [np.zeros(4), np.zeros(4)])
    assert (interval.mean, ties) == (pytest.approx(0.75), pytest.approx(0.5))


def test_runs_that_never_meet_leave_the_probability_open():
    interval, _ = improvement_probability([np.array([0.7, 0.8, 0.9])], [np.array([0.1, 0.2, 0.3, 0.3])])
    assert (interval.mean, interval.high, interval.wilson) == (1.0, 1.0, True)
    assert interval.low == pytest.approx(stats.binomtest(3, 3).proportion_ci(method="wilson").low)


def test_one_run_has_a_probability_without_limits():
    interval, _ = improvement_probability([np.ones(1)], [np.zeros(3)])
    assert interval.mean == 1.0 and np.isnan(interval.low)


def test_holms_correction_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1, and never falling.
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.02, float("nan"), 0.01]) == pytest.approx([0.04, 1.0, 0.03])  # of one run: nobody is told apart
    assert holm([]).shape == (0,)


def test_bold_are_the_best_and_whoever_cannot_be_told_from_it():
    spread = np.array([-0.02, 0.0, 0.02, 0.01, -0.01])
    best, tie, worse = ([center + spread] for center in (0.80, 0.79, 0.40))
    unpaired = np.zeros((3, 3), dtype=bool)
    assert leaders([best, tie, worse], unpaired).tolist() == [True, True, False]
    assert leaders([worse, tie, best], unpaired).tolist() == [False, True, True]


def test_nobody_is_bold_where_nobody_can_be_told_apart():
    spread = np.array([-0.3, 0.0, 0.3])
    assert not leaders([[0.6 + spread], [0.5 + spread], [0.4 + spread]], np.zeros((3, 3), dtype=bool)).any()
    assert not leaders([[np.array([0.9])], [np.array([0.1])]], np.zeros((2, 2), dtype=bool)).any()


def test_agent_without_a_number_is_not_bold():
    marks = leaders([[np.full(4, 0.9)], [np.full(4, np.nan)], [np.full(4, 0.1)]], np.zeros((3, 3), dtype=bool), 50)
    assert marks.tolist() == [True, False, False]


def test_seeds_for_an_effect_of_one_standard_deviation_are_the_textbooks():
    # Cohen's table: 17 per group for d = 1, 64 for d = 0.5 (two-sided 5 %, power 0.8).
    unit = np.array([-1.0, 1.0]) / np.sqrt(2)
    assert seeds_to_separate([unit + 1.0], [unit]) == 17
    assert seeds_to_separate([unit + 0.5], [unit]) == 64


def test_seeds_that_are_said_to_do_find_the_difference_as_often_as_promised():
    unit = np.array([-1.0, 1.0]) / np.sqrt(2)
    seeds = seeds_to_separate([unit + 1.0, unit * 2 + 1.0], [unit, unit])
    assert seeds is not None
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(1_000):
        first = [generator.normal(1.0, 1.0, seeds), generator.normal(1.0, 2.0, seeds)]
        second = [generator.normal(0.0, 1.0, seeds), generator.normal(0.0, 1.0, seeds)]
        found += bool(mean_difference(first, second)[1] < 0.05)
    assert 0.76 <= found / 1_000 <= 0.86


def test_a_larger_difference_never_takes_more_seeds() -> None:
    unit = np.random.default_rng(0).normal(size=10)
    unit = (unit - unit.mean()) / unit.std(ddof=1)
    needed = [seeds_to_separate([unit + gap], [unit]) for gap in np.linspace(0.3, 30, 1500)]
    assert None not in needed and needed[-1] == 2
    assert all(after <= before for before, after in pairwise(needed))  # type: ignore[operator]


def test_no_number_of_seeds_separates_what_does_not_differ():
    assert seeds_to_separate([np.array([0.4, 0.6])], [np.array([0.4, 0.6])]) is None
    assert seeds_to_separate([np.array([0.4])], [np.array([0.6])]) is None
    assert comparisons.MOST_SEEDS < 10_000
    wide = np.array([-1.0, 1.0])
    assert seeds_to_separate([wide + 0.001], [wide]) is None


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("shares", [FIVE_TASKS, ONE_TASK], ids=["5 tasks", "1 task"])
def test_an_agent_seldom_differs_from_itself(seeds: int, shares: tuple[float, ...]):
    by_mean, _ = false_alarms(shares, seeds, trials=300)
    assert by_mean <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
