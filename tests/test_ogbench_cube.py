"""The twenty OGBench cube tasks against the ogbench package itself."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from datasets import TASKS, DataError, make_env, task
from datasets.ogbench_cube import relabel
from datasets.spec import TaskSpec


@pytest.fixture(scope="module", params=sorted(TASKS))
def spec(request: pytest.FixtureRequest) -> TaskSpec:
    return TASKS[request.param]


@pytest.fixture(scope="module")
def env(spec: TaskSpec) -> Any:
    env = make_env(spec.name)
    yield env
    env.close()


def test_environment_matches_its_spec(spec: TaskSpec, env: Any) -> None:
    obs, info = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert obs.shape == (spec.obs_dim,)
    assert obs.dtype == np.float32
    assert info == {}
    assert env.action_space.shape == (spec.action_dim,)
    assert env.spec.max_episode_steps == spec.max_episode_steps
    obs, reward, terminated, truncated, info = env.step(np.zeros(spec.action_dim))
    assert env.observation_space.contains(obs)
    assert reward in range(-int(spec.obs_dim - 19) // 9, 0)
    assert (terminated, truncated, info) == (False, False, {"success": False})


def test_reset_with_a_seed_repeats_the_episode(env: Any) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 5))

    def episode(seed: int) -> np.ndarray:
        return np.stack([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])

    first, other, again = episode(3), episode(4), episode(3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_relabelling_equals_that_of_ogbench(spec: TaskSpec, env: Any) -> None:
    from ogbench.relabel_utils import relabel_dataset

    from datasets.ogbench_env import goal_positions

    rng = np.random.default_rng(spec.task_id)
    goals = goal_positions(spec.domain)[spec.task_id]
    qpos = rng.normal(size=(300, 14 + 7 * len(goals))).astype(np.float32)
    for cube, goal in enumerate(goals):  # most cubes within 4 cm of their goals, so that some rows are solved
        qpos[:, 14 + 7 * cube : 17 + 7 * cube] = goal + rng.uniform(-0.03, 0.03, (300, 3))
    expected = {"qpos": qpos}
    relabel_dataset(spec.domain, env, expected)
    reward, terminated = relabel(qpos, goals)
    np.testing.assert_array_equal(reward, expected["rewards"])
    np.testing.assert_array_equal(terminated, expected["masks"] == 0)
    assert 0 < terminated.sum() < len(terminated)


def test_steps_equal_those_of_ogbench_to_the_last_bit() -> None:
    import gymnasium

    ours = make_env("cube-double-task2", success_timing="pre")
    theirs = gymnasium.make("cube-double-singletask-task2-v0", disable_env_checker=True)
    obs, _ = ours.reset(seed=7)
    expected_obs, _ = theirs.reset(seed=7)
    np.testing.assert_array_equal(obs, expected_obs.astype(np.float32))
    for action in np.random.default_rng(0).uniform(-1.5, 1.5, (20, 5)):
        obs, reward, *_ = ours.step(action)
        expected_obs, expected_reward, *_ = theirs.step(action.clip(-1, 1))
        np.testing.assert_array_equal(obs, expected_obs.astype(np.float32))
        assert reward == expected_reward


@pytest.mark.parametrize(("timing", "first_step"), [("post", (0.0, True, True)), ("pre", (-1.0, False, False))])
def test_success_is_that_of_the_state_the_timing_names(timing: str, first_step: tuple) -> None:
    env: Any = make_env("cube-single-task1", success_timing=timing)
    env.reset(seed=0)
    qpos, qvel = env.unwrapped.data.qpos.copy(), env.unwrapped.data.qvel.copy()
    qpos[14:17] = 0.425, -0.1, 0.02 + 0.045  # half a centimetre too high to count: it falls to the goal in one step
    env.unwrapped.set_state(qpos, qvel)
    steps = [env.step(np.zeros(5)) for _ in range(2)]
    outcomes = [(reward, terminated, info["success"]) for _, reward, terminated, _, info in steps]
    assert outcomes == [first_step, (0.0, True, True)]


def test_episode_is_truncated_at_its_time_limit() -> None:
    env = make_env("cube-single-task4")
    env.reset(seed=0)
    truncations = [env.step(np.zeros(5))[3] for _ in range(200)]
    assert truncations == [False] * 199 + [True]


@pytest.mark.parametrize("action", [np.full(5, np.nan), np.zeros(4), np.zeros((1, 5)), np.float32(0)])
def test_action_that_is_not_five_finite_numbers_is_refused(action: np.ndarray) -> None:
    env = make_env("cube-single-task1")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="5 finite numbers"):
        env.step(action)


def test_bare_domain_is_its_second_task() -> None:
    assert task("cube-triple") is TASKS["cube-triple-task2"]


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'cube-double-task3'"):
        task("cube-duoble-task3")
    with pytest.raises(DataError, match="success timing 'after'"):
        make_env("cube-single", success_timing="after")


def test_importing_the_tasks_imports_no_simulator() -> None:
    code = "import sys, datasets; print({'torch', 'ogbench', 'mujoco', 'gymnasium'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
