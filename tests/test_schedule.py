"""What is due at a point of a run, and how many updates follow a step: properties of pure functions."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bench.protocol.config import RunConfig
from bench.protocol.schedule import (
    evaluation_is_due,
    gradient_norms_are_due,
    is_over,
    log_is_due,
    offline_updates_to_event,
    phase_ends,
    total_updates,
    updates_after,
    updates_per_step,
)
from tests.tiny_runs import tiny_config

COUNT, INTERVAL = st.integers(0, 60), st.integers(1, 25)
SETTINGS = st.fixed_dictionaries(
    {
        "offline_updates": st.integers(1, 60),
        "online_steps": COUNT,
        "warmup_steps": COUNT,
        "utd_ratio": st.integers(1, 3),
        "eval_interval_updates": INTERVAL,
        "eval_interval_steps": INTERVAL,
        "log_interval": INTERVAL,
        "gradient_norm_interval": st.integers(0, 25),
    }
)


def config_of(settings: dict[str, Any], agent: str = "fql") -> RunConfig:
    return tiny_config(agent, **settings)


@given(SETTINGS)
def test_evaluations_are_at_zero_every_interval_the_hand_over_and_the_end(settings):
    config = config_of(settings)
    offline = [n for n in range(config.offline_updates + 1) if evaluation_is_due(config, n, 0)]
    assert {0, config.offline_updates} <= set(offline)
    assert all(n % config.eval_interval_updates == 0 for n in offline[:-1])
    assert len(offline) == -(-config.offline_updates // config.eval_interval_updates) + 1
    updates = config.offline_updates
    online = [step for step in range(1, config.online_steps + 1) if evaluation_is_due(config, updates + step, step)]
    assert len(online) == -(-config.online_steps // config.eval_interval_steps)
    assert not config.online_steps or online[-1] == config.online_steps


@given(SETTINGS, st.one_of(st.none(), st.integers(0, 60)), st.integers(1, 32))
def test_bursts_of_offline_updates_pass_no_event_by(settings, stop_at, burst):
    """Whatever the size of a burst, every point at which something is due is a point at which the driver stops."""
    config, updates, visited = config_of(settings), 0, [0]
    while updates < config.offline_updates:
        count = min(burst, offline_updates_to_event(config, updates, stop_at))
        assert count >= 1
        updates += count
        visited.append(updates)
    assert updates == config.offline_updates
    due = {n for n in range(updates + 1) if evaluation_is_due(config, n, 0) or (n and log_is_due(config, n, 0))}
    assert due <= set(visited)
    assert stop_at is None or stop_at > updates or stop_at in visited


@given(SETTINGS, st.integers(1, 32))
def test_norms_of_gradients_are_due_once_for_each_multiple_of_their_interval(settings, burst):
    config, updates, measured = config_of(settings), 0, []
    while updates < config.offline_updates:
        count = min(burst, offline_updates_to_event(config, updates))
        updates += count
        if gradient_norms_are_due(config, updates, 0, count):
            measured.append(updates)
    interval = config.gradient_norm_interval
    expected = {*range(interval, updates + 1, interval), updates} if interval else set()
    assert measured == sorted(expected)


@given(SETTINGS)
def test_the_updates_of_all_steps_are_those_of_the_run(settings):
    config = config_of(settings)
    online = [updates_after(config, step) for step in range(1, config.online_steps + 1)]
    assert config.offline_updates + sum(online) == total_updates(config)
    # With no warm-up the first step is followed by updates as well as any other.
    assert all(count in (0, config.utd_ratio) for count in online) and sorted(online) == online
    assert updates_per_step(config) == config.utd_ratio


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 200))
def test_an_on_policy_agent_updates_after_each_rollout_alone(epochs, num_envs, online_steps):
    config = tiny_config("dppo", online_steps=online_steps)
    agent = config.agent_config
    config = config.replace(
        agent_config=type(agent)(
            **{**vars(agent), "epochs": epochs, "num_envs": num_envs, "rollout_decisions": 2 * num_envs}
        )
    )
    online = {step: updates_after(config, step) for step in range(1, online_steps + 1)}
    assert {step for step, count in online.items() if count} == set(
        range(10 * num_envs, online_steps + 1, 10 * num_envs)
    )
    assert config.offline_updates + sum(online.values()) == total_updates(config)


@given(SETTINGS)
def test_a_run_is_over_at_one_point_which_ends_its_last_phase(settings):
    config = config_of(settings)
    last = total_updates(config)
    assert is_over(config, last, config.online_steps)
    assert phase_ends(config, last if config.online_steps else config.offline_updates, config.online_steps)
    assert not is_over(config, config.offline_updates - 1, 0)
    assert config.online_steps == 0 or not is_over(config, last, config.online_steps - 1)
