"""Gymnasium's MuJoCo robots: names, environments that a seed decides, time limits, and the returns that score 0."""

import warnings

import gymnasium
import numpy as np
import pytest

import datasets
from datasets.gymnasium_mujoco.source import TASKS
from datasets.gymnasium_mujoco.tasks import environment_id
from datasets.spec import DataError

# The rest of the twelve compiles models of humanoids, or is the same but for its version.
NAMES = [
    pytest.param(name, marks=[] if name in ("hopper-v4", "ant-v5", "halfcheetah-v4") else pytest.mark.thorough)
    for name in TASKS
]


def actions(name: str, count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, TASKS[name].action_dim)).astype(np.float32)


def played(env: gymnasium.Env, seed: int, moves: np.ndarray) -> list[tuple]:
    """What the environment says, as bytes, until its episode or the moves end."""
    said = [env.reset(seed=seed)[0].tobytes()]
    for move in moves:
        obs, reward, terminated, truncated, _ = env.step(move)
        said.append((obs.tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            break
    return said


def test_the_twelve_tasks_are_known_by_their_names_and_by_gymnasiums() -> None:
    assert len(TASKS) == 12
    for name, spec in TASKS.items():
        assert datasets.task(name) == datasets.task(environment_id(name)) == spec
        assert spec.dataset is None and spec.max_episode_steps == 1000 and not spec.tells_success
    assert TASKS["humanoidstandup-v4"].reference_returns is None
    assert [name for name, spec in TASKS.items() if spec.reference_returns] == [
        *("hopper-v4", "walker2d-v4", "halfcheetah-v4", "ant-v4", "humanoid-v4")
    ]


@pytest.mark.parametrize("name", ["hopper", "Ant-v2", "Swimmer-v4", "humanoid"])
def test_a_robot_without_its_version_and_one_that_is_no_task_are_told_what_there_is(name: str) -> None:
    with pytest.raises(DataError, match=f"unsupported task '{name}': .* each as -v4 and as -v5"):
        datasets.task(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_says_what_its_environment_observes_and_how_far_it_acts(name: str) -> None:
    spec = TASKS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # v4 is out of date, which is meant
        env = datasets.make_env(name)
    inner: gymnasium.spaces.Box = env.unwrapped.action_space  # pyright: ignore[reportAssignmentType]
    assert env.unwrapped.observation_space.shape == (spec.obs_dim,)
    assert inner.shape == (spec.action_dim,)
    np.testing.assert_array_equal(inner.high, np.float32(spec.action_scale))
    np.testing.assert_array_equal(inner.low, -inner.high)
    assert env.spec is not None and env.spec.max_episode_steps == spec.max_episode_steps


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_is_gymnasiums_at_the_scaled_action(name: str) -> None:
    moves = actions(name, 30)
    moves[3] *= 5  # beyond the bounds
    env = datasets.make_env(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        plain = gymnasium.make(environment_id(name))
    theirs = [plain.reset(seed=7)[0].astype(np.float32).tobytes()]
    space = plain.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    for move in moves:
        obs, reward, terminated, truncated, _ = plain.step((move.clip(-1, 1) * space.high).astype(np.float32))
        theirs.append((obs.astype(np.float32).tobytes(), float(reward), terminated, truncated))
        if terminated or truncated:
            break
    assert played(env, 7, moves) == theirs


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_depends_on_its_seed_and_actions_alone(name: str) -> None:
    moves = actions(name, 60)
    used = datasets.make_env(name)
    first = played(used, 3, moves)
    other = played(used, 4, moves)
    assert other != first
    assert played(used, 3, moves) == first == played(datasets.make_env(name), 3, moves)


def test_the_time_limit_truncates_and_a_fall_terminates() -> None:
    still = datasets.make_env("halfcheetah-v4")
    said = played(still, 0, np.zeros((1100, 6), np.float32))
    assert len(said) == 1001 and said[-1][2:] == (False, True)
    falling = played(datasets.make_env("hopper-v4"), 0, np.ones((1100, 3), np.float32))
    assert len(falling) < 1000 and falling[-1][2:] == (True, False)


def test_an_action_that_is_not_finite_is_refused() -> None:
    env = datasets.make_env("hopper-v5")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"\(3,\) finite numbers"):
        env.step(np.array([0.0, np.nan, 0.0]))


@pytest.mark.parametrize(
    ("name", "deviation"),  # of returns of uniform random actions
    [
        ("hopper-v4", 20.0),
        pytest.param("walker2d-v4", 7.2, marks=pytest.mark.thorough),
        pytest.param("halfcheetah-v4", 81.1, marks=pytest.mark.thorough),
        pytest.param("ant-v4", 106.6, marks=pytest.mark.thorough),
        pytest.param("humanoid-v4", 36.3, marks=pytest.mark.thorough),
    ],
)
def test_the_return_that_scores_0_is_that_of_random_actions(name: str, deviation: float) -> None:
    episodes = 30
    env, rng, returns = datasets.make_env(name), np.random.default_rng(1), []
    for number in range(episodes):
        env.reset(seed=1_000_000 + number)
        returns.append(0.0)
        ended = False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, TASKS[name].action_dim))
            returns[-1] += reward
            ended = terminated or truncated
    references = TASKS[name].reference_returns
    assert references is not None
    standard_error = deviation * (1 / episodes + 1 / 100) ** 0.5
    assert abs(np.mean(returns) - references[0]) < 4 * standard_error
