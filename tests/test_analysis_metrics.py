"""Numbers of the analysis: scalars of a run and intervals, on arrays small enough to check by hand."""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import metrics
from analysis.statistics.metrics import stratified_t
from tests.benchmarks import intervals


def test_scalars_of_a_run_by_hand():
    offline = np.array([[0.0, 0.1, 0.4]])
    online = np.array([[0.4, 0.2, 0.6, 0.8, 1.0]])
    steps = np.array([0, 10, 20, 30, 40])
    assert metrics.score_offline_end(offline) == pytest.approx([0.4])
    assert metrics.score_final(online) == pytest.approx([0.8])
    assert metrics.improvement(offline, online) == pytest.approx([0.4])
    assert metrics.online_auc(steps, online) == pytest.approx([(0.3 + 0.4 + 0.7 + 0.9) / 4])


def test_auc_weighs_points_by_the_steps_between_them():
    assert metrics.online_auc(np.array([0, 10, 40]), np.array([[0.0, 1.0, 1.0]])) == pytest.approx([35 / 40])


def test_final_success_leaves_out_the_hand_over():
    assert metrics.score_final(np.array([[0.0, 0.5, 0.7]])) == pytest.approx([0.6])


def test_run_without_online_phase_has_no_online_scalars():
    only_hand_over = np.array([[0.5], [0.7]])
    assert np.isnan(metrics.score_final(only_hand_over)).tolist() == [True, True]
    assert np.isnan(metrics.online_auc(np.array([0]), only_hand_over)).tolist() == [True, True]


def test_unfinished_run_has_no_final_success_and_no_area():
    online = np.array([[0.1, 0.2, 0.3, np.nan], [0.1, 0.2, 0.3, 0.4]])
    assert np.isnan(metrics.score_final(online)).tolist() == [True, False]
    assert np.isnan(metrics.online_auc(np.array([0, 1, 2, 3]), online)).tolist() == [True, False]


def test_interval_of_two_runs_by_hand():
    # Mean 0.5, standard error 0.1, t(0.975, 1) = 12.7062.
    interval = stratified_t([np.array([0.4, 0.6])])
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.5, 0.5 - 1.27062, 0.5 + 1.27062), abs=1e-5)


def test_interval_of_one_task_is_students():
    values = np.random.default_rng(0).uniform(size=7)
    ours, theirs = stratified_t([values]), stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_interval_of_two_tasks_is_welchs():
    # mean(a) / 2 + mean(b) / 2 is half of Welch's difference between a and -b, same degrees of freedom.
    rng = np.random.default_rng(1)
    a, b = rng.uniform(size=4), rng.normal(0.3, 0.02, size=9)
    theirs = stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    ours = stratified_t([a, b])
    assert (ours.low, ours.high) == pytest.approx((theirs.low / 2, theirs.high / 2))


def test_improvement_interval_is_scipys_paired_t():
    rng = np.random.default_rng(2)
    before, after = rng.uniform(0, 0.4, size=(6, 1)), rng.uniform(0.3, 1.0, size=(6, 4))
    ours = stratified_t([metrics.improvement(before, after)])
    theirs = stats.ttest_rel(after[:, 1:].mean(axis=1), before[:, 0]).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_tasks_weigh_alike_however_many_runs_they_have():
    assert stratified_t([np.full(2, 0.0), np.full(50, 1.0)]).mean == pytest.approx(0.5)


def test_differences_between_tasks_do_not_widen_the_interval():
    spread = np.array([-0.05, 0.0, 0.05])
    near, far = stratified_t([0.5 + spread, 0.5 + spread]), stratified_t([0.1 + spread, 0.9 + spread])
    assert far.high - far.low == pytest.approx(near.high - near.low)


def test_interval_is_clipped_and_its_mean_is_not():
    interval = stratified_t([np.array([0.5, 1.0, 1.0])], bounds=(0.0, 1.0))
    assert interval.high == 1.0
    assert interval.mean == pytest.approx(2.5 / 3)


def test_runs_without_spread_give_no_width():
    interval = stratified_t([np.ones(4), np.ones(3)])
    assert (interval.low, interval.high) == (1.0, 1.0)


@pytest.mark.parametrize(("solved", "runs"), [(0, 9), (9, 9), (0, 3), (2, 5), (8, 8)])
def test_wilsons_interval_is_scipys(solved: int, runs: int):
    ours, theirs = metrics.wilson(solved / runs, runs), stats.binomtest(solved, runs).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.low == 0.0 if solved == 0 else ours.low > 0.0
    assert ours.high == 1.0 if solved == runs else ours.high < 1.0


def test_runs_that_score_alike_have_wilsons_interval_and_others_their_t():
    alike = metrics.mean_interval([np.zeros(3), np.zeros(4)], (0.0, 1.0))
    assert (alike.mean, alike.low, alike.high) == (0.0, 0.0, metrics.wilson(0.0, 6).high) and alike.wilson
    steps = metrics.mean_interval([np.full(5, 600.0)], (0.0, 600.0))
    assert (steps.low, steps.high) == (pytest.approx(600 * metrics.wilson(1.0, 5).low), 600.0)
    spread = [np.array([0.2, 0.2, 0.4]), np.zeros(3)]
    assert metrics.mean_interval(spread, (0.0, 1.0)) == stratified_t(spread, bounds=(0.0, 1.0))
    assert np.isnan(metrics.mean_interval([np.zeros(1)], (0.0, 1.0)).low), "one run tells nothing of others"
    returns = metrics.mean_interval([np.full(3, -9.0)], (-np.inf, np.inf))
    assert not returns.wilson and (returns.low, returns.high) == (-9.0, -9.0)


def test_runs_that_improve_alike_leave_open_what_both_ends_do():
    start, final = (metrics.mean_interval([np.full(3, value)], (0.0, 1.0)) for value in (0.0, 1.0))
    whole = metrics.improvement_interval([np.ones(3)], final, start, span=1.0)
    assert (whole.mean, whole.high, whole.wilson) == (1.0, 1.0, True)
    assert whole.low == pytest.approx(1.0 - np.sqrt(2) * start.high)
    nothing = metrics.improvement_interval([np.zeros(3)], start, start, span=1.0)
    assert (nothing.low, nothing.high) == pytest.approx((-start.high, start.high))


@pytest.mark.parametrize(("seeds", "t_alone"), [(3, 0.55), (5, 0.70), (8, 0.80), (10, 0.83)])
def test_interval_covers_the_mean_of_runs_that_are_all_or_nothing(seeds: int, t_alone: float):
    shares = np.linspace(0.01, 0.99, 99)
    ours = intervals.exact_coverage(intervals.MEANS["mean, stratified t (ours)"], seeds, shares)
    assert ours.mean() > 0.95 and ours.min() > 0.85
    without = intervals.exact_coverage(lambda strata: stratified_t(strata, bounds=(0.0, 1.0)), seeds, shares)
    assert without.mean() < t_alone


def test_single_run_of_a_task_gives_a_mean_without_limits():
    interval = stratified_t([np.array([0.2]), np.array([0.4, 0.6])])
    assert interval.mean == pytest.approx(0.35)
    assert np.isnan(interval.low)
    assert np.isnan(interval.high)


def test_task_without_any_run_gives_no_mean():
    assert np.isnan(stratified_t([np.array([np.nan, np.nan]), np.array([0.4, 0.6])]).mean)


def test_band_is_the_interval_of_each_point_with_absent_runs_left_out():
    rng = np.random.default_rng(3)
    curves = [rng.uniform(size=(4, 6)), rng.uniform(size=(5, 6))]
    curves[0][2, 3:] = np.nan
    band = stratified_t(curves)
    for point in range(6):
        alone = stratified_t([curve[:, point][~np.isnan(curve[:, point])] for curve in curves])
        got = (band.mean[point], band.low[point], band.high[point])
        assert got == pytest.approx((alone.mean, alone.low, alone.high))


def test_no_strata_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        stratified_t([])


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_interval_covers_the_mean_of_learned_and_collapsed_runs(seeds: int):
    # Five tasks; a run of task k is a learned one with probability p_k; 50 evaluation episodes; nominal 95 %.
    rng = np.random.default_rng(4)
    trials, learned, collapsed = 20_000, 0.8, 0.1
    shares = np.array([0.2, 0.4, 0.6, 0.8, 0.95])
    strata = []
    for share in shares:
        mean = np.where(rng.random((seeds, trials)) < share, learned, collapsed)
        rates = np.clip(mean + rng.normal(0, 0.1, size=mean.shape), 0, 1)
        strata.append(rng.binomial(50, rates) / 50)
    # Clipping moves the means a little: the truth is taken from many runs instead of from the formula.
    many = [
        np.clip(np.where(rng.random(10**6) < share, learned, collapsed) + rng.normal(0, 0.1, size=10**6), 0, 1).mean()
        for share in shares
    ]
    interval = stratified_t(strata, bounds=(0.0, 1.0))
    truth = np.mean(many)
    coverage = ((interval.low <= truth) & (truth <= interval.high)).mean()
    assert 0.925 < coverage < 0.98


def test_dip_and_regret_of_a_run_by_hand():
    steps, online = np.array([0, 10, 20]), np.array([[0.5, 0.2, 0.9], [0.0, 0.4, 0.8]])
    assert metrics.worst_dip(online) == pytest.approx([0.3, 0.0])
    assert metrics.regret(steps, online) == pytest.approx([1 - (0.35 + 0.55) / 2, 1 - (0.2 + 0.6) / 2])
    assert np.isnan(metrics.worst_dip(np.array([[0.5]]))).all()


def test_run_that_never_gets_there_counts_with_the_whole_budget():
    steps = np.array([0, 10, 20, 30])
    online = np.array([[0.0, 0.5, 0.9, 0.4], [0.0, 0.1, 0.2, 0.3], [0.9, 0.9, 0.9, 0.9], [0.1, np.nan, np.nan, np.nan]])
    taken, reached = metrics.steps_to(steps, online, 0.5)
    assert taken[:3].tolist() == [10.0, 30.0, 0.0] and np.isnan(taken[3])
    assert reached.tolist() == [True, False, True, False]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 15, 60])
def test_interquartile_mean_is_scipys_trimmed_mean(count: int):
    values = np.random.default_rng(count).uniform(size=(3, count))
    assert metrics.interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=1))
    with_gaps = np.concatenate([values, np.full((3, 5), np.nan)], axis=1)
    assert metrics.interquartile_mean(with_gaps) == pytest.approx(stats.trim_mean(values, 0.25, axis=1))
    assert metrics.interquartile_mean(values.T, axis=0) == pytest.approx(stats.trim_mean(values, 0.25, axis=1))


def test_interval_is_a_function_of_the_numbers_alone():
    strata = [np.random.default_rng(k).uniform(size=5) for k in range(3)]
    first, again = metrics.iqm_interval(strata), metrics.iqm_interval([runs.copy() for runs in strata])
    assert (first.low, first.high) == (again.low, again.high)
    strata[0][0] += 1e-9
    other = metrics.iqm_interval(strata)
    assert (first.low, first.high) != (other.low, other.high)


def test_resampled_runs_keep_all_their_points():
    # Curves that are constant in time, each run at its own height: the band has to be constant as well.
    heights = np.random.default_rng(0).uniform(size=(6, 1))
    band = metrics.iqm_interval([np.tile(heights, (1, 9))])
    assert np.ptp(band.low) == 0.0 and np.ptp(band.high) == 0.0
    assert band.high[0] > band.low[0]


def test_resampling_in_parts_draws_the_same_distribution(monkeypatch: pytest.MonkeyPatch):
    strata = [np.random.default_rng(k).uniform(size=8) for k in range(3)]
    whole = metrics.bootstrap(strata, metrics.pooled_iqm, resamples=20_000)
    monkeypatch.setattr(metrics, "CHUNK", 24 * 700)
    parts = metrics.bootstrap(strata, metrics.pooled_iqm, resamples=20_000)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.01)
    assert parts.mean == whole.mean


def test_widened_interval_of_a_mean_is_students_for_many_resamples():
    # sqrt(n / (n - 1)) t / z makes of the bootstrap's normal interval Student's.
    values = np.concatenate([np.linspace(-1.0, 1.0, 12)] * 2)
    ours = metrics.bootstrap([values], lambda strata: strata[0].mean(axis=1), resamples=200_000)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_factor_for_few_runs_by_hand():
    assert metrics.small_sample_factor([3] * 5) == pytest.approx(np.sqrt(1.5) * 2.2281389 / 1.9599640, abs=1e-6)
    assert metrics.small_sample_factor([10_000]) == pytest.approx(1.0, abs=1e-3)


def test_one_run_has_no_resampled_interval():
    interval = metrics.iqm_interval([np.array([0.5]), np.array([0.1, 0.2])])
    assert interval.mean == pytest.approx(stats.trim_mean([0.5, 0.1, 0.2], 0.25))
    assert np.isnan(interval.low) and np.isnan(interval.high)


def test_profile_weighs_tasks_alike_and_counts_runs_above_a_threshold():
    profile = metrics.performance_profile([np.array([0.2, 0.4]), np.array([0.0, 0.0, 0.0, 0.8])], np.array([0.0, 0.3]))
    assert profile.mean == pytest.approx([(1.0 + 0.25) / 2, (0.5 + 0.25) / 2])
    assert (profile.low <= profile.mean).all() and (profile.high >= profile.mean).all()
    assert profile.low.min() >= 0.0 and profile.high.max() <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_hold_the_truth_as_often_as_they_promise(seeds: int):
    mean, iqm = intervals.true_values(intervals.FIVE_TASKS)
    found = intervals.coverage(intervals.MEANS, mean, intervals.FIVE_TASKS, seeds, trials=1_500)
    found |= intervals.coverage(intervals.IQMS, iqm, intervals.FIVE_TASKS, seeds, trials=1_500)
    for name, (held, _) in found.items():
        if "ours" in name:
            assert 0.93 <= held <= 0.975, name
        elif seeds < 10:
            assert held < 0.93, f"{name} does as well: then why not ours"


def test_intervals_cover_the_error_of_initial_states_only_where_runs_have_episodes_of_their_own():
    truth, _ = intervals.true_values(intervals.EASY_TASK)
    ours = {"t": intervals.MEANS["mean, stratified t (ours)"]}
    held = {
        states: intervals.coverage(ours, truth, intervals.EASY_TASK, 20, trials=400, states=states)["t"][0]
        for states in ("fixed", "own")
    }
    assert held["fixed"] < 0.88 and held["own"] > 0.92
