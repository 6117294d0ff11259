"""The faster cube environments against the package's own: equal to the last bit."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import gymnasium
import numpy as np
import pytest
from ogbench.manipspace.lie import SO3

from datasets.numpy_seed import seeded_numpy
from datasets.ogbench import fast as ogbench_fast
from datasets.ogbench import tasks as ogbench_tasks
from datasets.ogbench.env import SeededCubeEnv, SeededFastCubeEnv, SingleTask, play_env, task_env
from datasets.ogbench.episodes import MIXED, Directed, Episode, Noisy, Play, Policy, _goals, _plan_oracles, _record
from datasets.ogbench.tasks import TASK_IDS, TASKS

pytestmark = pytest.mark.thorough
DOMAINS = tuple(name for name in ogbench_tasks.DOMAINS if name.startswith("cube-"))
TIMINGS = ("post", "pre")


@cache
def task_pair(task_name: str, timing: str) -> tuple[gymnasium.Env, gymnasium.Env]:
    """The package's own environment and the faster one."""
    spec = TASKS[task_name]
    return task_env(spec, timing, package_step=True), task_env(spec, timing)


@cache
def play_pair(domain: str) -> tuple[gymnasium.Env, gymnasium.Env]:
    return play_env(domain, package_step=True), play_env(domain)


def bits(value: Any) -> Any:
    """A value in which any differing bit, type or key shows."""
    if isinstance(value, dict):
        return {key: bits(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return type(value), value


def state(env: gymnasium.Env) -> dict[str, Any]:
    """All that later steps and pictures depend on."""
    model, data = env.unwrapped._model, env.unwrapped._data  # type: ignore[attr-defined]
    names = ("qpos", "qvel", "act", "qacc_warmstart", "ctrl", "mocap_pos", "mocap_quat", "time")
    return {name: getattr(data, name) for name in names} | {"rgba": model.geom_rgba}


def agree(package: Any, fast: Any) -> None:
    """Fails unless both hold the same bits; names the entries that do not."""
    package, fast = bits(package), bits(fast)
    assert package.keys() == fast.keys()
    assert [key for key in package if package[key] != fast[key]] == []


class Both:
    """Steps both environments of a pair alike and compares all they tell and all they hold."""

    def __init__(self, pair: tuple[gymnasium.Env, gymnasium.Env]) -> None:
        self.package, self.fast = pair
        assert type(self.package.unwrapped) is SeededCubeEnv
        assert type(self.fast.unwrapped) is SeededFastCubeEnv

    def reset(self, seed: int) -> dict[str, Any]:
        obs, info = self.package.reset(seed=seed)
        fast_obs, fast_info = self.fast.reset(seed=seed)
        agree({"obs": obs, **info}, {"obs": fast_obs, **fast_info})
        agree(state(self.package), state(self.fast))
        return info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        names = ("obs", "reward", "terminated", "truncated", "info")
        step = self.package.step(action)
        agree(dict(zip(names, step, strict=True)), dict(zip(names, self.fast.step(action), strict=True)))
        agree(state(self.package), state(self.fast))
        return step  # type: ignore[return-value]


def random_actions(rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    for _ in range(count):
        yield rng.uniform(-1, 1, 5).astype(np.float32)


def held_actions(rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Extremes held long enough to reach the bounds of the workspace and to press on cubes, in several precisions."""
    dtypes = (np.float32, np.float64, np.int64)
    for i in range(count):
        if i % 25 == 0:
            action = rng.integers(-1, 2, size=5).astype(dtypes[i // 25 % 3])
        yield action


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("actions", [random_actions, held_actions])
def test_arbitrary_actions_and_resets_at_any_time(
    domain: str, timing: str, actions: Callable[[np.random.Generator, int], Iterator[np.ndarray]]
) -> None:
    both = Both(task_pair(f"{domain}-task1", timing))
    rng = np.random.default_rng(len(domain))
    for seed, count in enumerate((120, 3, 80)):
        both.reset(seed)
        for action in actions(rng, count):
            both.step(action)


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_expert_episodes_up_to_their_success(domain: str, timing: str) -> None:
    both = Both(task_pair(f"{domain}-task1", timing))
    with seeded_numpy(0):
        policy = Directed(both.package, _goals(domain)[1].cubes, MIXED[0], np.random.default_rng(0))
        info = both.reset(0)
        rewards, terminated, truncated = [], False, False
        while not (terminated or truncated):
            _, reward, terminated, truncated, info = both.step(np.clip(policy(info), -1, 1).astype(np.float32))
            rewards.append(reward)
    assert terminated
    assert info["success"]
    assert sorted(set(rewards)) == list(range(round(rewards[0]), 1))  # each cube's arrival has been seen


def test_truncation_comes_at_the_same_step() -> None:
    spec = TASKS["cube-single-task1"]
    package, fast = (SingleTask(env, spec) for env in task_pair(spec.name, "post"))
    names = ("obs", "reward", "terminated", "truncated", "info")
    try:
        for env in (package, fast):
            env.reset(seed=1)
        for number in range(1, spec.max_episode_steps + 1):
            step = package.step(np.zeros(5, np.float32))
            agree(dict(zip(names, step, strict=True)), dict(zip(names, fast.step(np.zeros(5)), strict=True)))
            assert step[3] == (number == spec.max_episode_steps)
    finally:
        fast.unwrapped.full_info = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["play", "noisy"])
def test_episodes_of_generated_data(kind: str) -> None:
    def episode(env: gymnasium.Env) -> Episode:
        rng = np.random.default_rng(0)
        policy: Policy = (
            Play(env, _plan_oracles(env, "cube", 0.1), 0.2) if kind == "play" else Noisy(env, "cube", 0.2, rng)
        )
        with seeded_numpy(3):
            return _record(env, policy, 3, 200)

    package, fast = play_pair("cube-double")
    assert type(fast.unwrapped) is SeededFastCubeEnv
    agree(episode(package), episode(fast))


@pytest.mark.parametrize("scale", [np.pi, 1e-4, 1e-6, 0.0])
def test_rotations_down_to_the_smallest(scale: float) -> None:
    for angle in np.random.default_rng(0).uniform(-scale, scale, 200):
        rotation, turn = SO3.exp(np.array([0.3, angle, -0.2])), SO3.from_z_radians(angle)
        w, x, y, z = rotation.wxyz.tolist()
        fast = ogbench_fast._product(ogbench_fast._about_z(float(angle)), (w, x, y, z))
        agree({"turn": turn.wxyz}, {"turn": np.array(ogbench_fast._about_z(float(angle)))})
        agree({"product": (turn @ rotation).wxyz}, {"product": np.array(fast)})
        agree({"yaw": float((turn @ rotation).compute_yaw_radians())}, {"yaw": ogbench_fast._yaw(fast)})


def test_an_unknown_package_is_stepped_by_itself_and_named_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ogbench_fast, "KNOWN_DIGESTS", frozenset({"0" * 64}))
    ogbench_fast.is_known.cache_clear()
    try:
        spec = TASKS["cube-single-task1"]
        unknown = task_env(spec, "post")
        play = play_env("cube-single")
        lines = capfd.readouterr().err.splitlines()
    finally:
        ogbench_fast.is_known.cache_clear()
    assert [type(env.unwrapped) for env in (unknown, play)] == [SeededCubeEnv, SeededCubeEnv]
    assert len(lines) == 1
    assert "ogbench 1.2.2" in lines[0]
    assert "1.6 times as long" in lines[0]

    both = Both((unknown, task_pair(spec.name, "post")[1]))
    both.reset(0)
    for action in random_actions(np.random.default_rng(0), 20):
        both.step(action)


def test_any_change_of_a_repeated_source_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ogbench_fast.source_digest() in ogbench_fast.KNOWN_DIGESTS
    monkeypatch.setattr(ogbench_fast, "REPEATED_SOURCES", ogbench_fast.REPEATED_SOURCES[::-1])
    assert ogbench_fast.source_digest() not in ogbench_fast.KNOWN_DIGESTS


@pytest.mark.slow
@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("task_id", TASK_IDS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_whole_episodes_of_every_task(domain: str, task_id: int, timing: str) -> None:
    task_name = f"{domain}-task{task_id}"
    both = Both((task_env(TASKS[task_name], timing, package_step=True), task_env(TASKS[task_name], timing)))
    for seed in range(2):
        with seeded_numpy(seed):
            policy = Directed(both.package, _goals(domain)[task_id].cubes, MIXED[seed], np.random.default_rng(seed))
            info = both.reset(seed)
            terminated = truncated = False
            while not (terminated or truncated):
                _, _, terminated, truncated, info = both.step(np.clip(policy(info), -1, 1).astype(np.float32))
