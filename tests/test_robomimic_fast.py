"""robosuite's own environments and the faster ones agree to the last bit in all they tell and all they hold."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from datasets.robomimic.tasks import ENV_NAMES

pytestmark = pytest.mark.extra("robomimic")

KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object-state")
STATE = ("qpos", "qvel", "qacc_warmstart", "ctrl", "time", "xpos", "xquat", "site_xpos", "qfrc_bias")


@cache
def pair(domain: str) -> tuple[Any, Any]:
    """The package's own environment and the faster one."""
    from datasets.robomimic.env import robosuite_env

    package, fast = (robosuite_env(ENV_NAMES[domain], package=package) for package in (True, False))
    assert type(package).__name__ == ENV_NAMES[domain]
    assert type(fast).__name__ == f"Fast{domain.capitalize()}"
    return package, fast


def bits(value: Any) -> tuple:
    array = np.asarray(value)
    return array.dtype.str, array.shape, array.tobytes()


def agree(package: dict[str, Any], fast: dict[str, Any]) -> None:
    """Fails unless both hold the same bits; names the entries that do not."""
    assert package.keys() == fast.keys()
    assert [key for key in package if bits(package[key]) != bits(fast[key])] == []


def numbers(struct: Any) -> dict[str, Any]:
    """All arrays and numbers of one of MuJoCo's structures."""
    members = {name: getattr(struct, name) for name in dir(struct) if not name.startswith("_")}
    return {name: np.copy(member) for name, member in members.items() if isinstance(member, np.ndarray | float | int)}


class Both:
    """Resets and steps both environments of a pair alike and compares all they tell and all they hold."""

    def __init__(self, domain: str) -> None:
        self.package, self.fast = self.envs = pair(domain)

    def reset(self, seed: int) -> None:
        from datasets.numpy_seed import seeded_numpy

        drawn = []
        for env in self.envs:
            with seeded_numpy(seed):
                env.reset()
                drawn.append(np.random.random())
        assert drawn[0] == drawn[1]  # both have drawn as many numbers
        self.models_agree()
        self.observe_again()

    def models_agree(self) -> None:
        package, fast = (env.sim.model._model for env in self.envs)
        agree(numbers(package), numbers(fast))
        agree(numbers(package.opt), numbers(fast.opt))
        agree(numbers(package.stat), numbers(fast.stat))

    def observe_again(self) -> None:
        package, fast = (env._get_observations(force_update=True) for env in self.envs)
        agree(package, fast)
        self.states_agree()

    def states_agree(self) -> None:
        package, fast = ({key: getattr(env.sim.data._data, key) for key in STATE} for env in self.envs)
        agree(package, fast)

    def step(self, action: np.ndarray) -> float:
        (package, reward, *done), (fast, fast_reward, *fast_done) = (env.step(action) for env in self.envs)
        agree({key: package[key] for key in KEYS}, dict(fast))
        assert (float(reward), *done) == (float(fast_reward), *fast_done)
        self.states_agree()
        return float(reward)


def random_actions(rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    for _ in range(count):
        yield rng.uniform(-1, 1, 7).astype(np.float32)


def held_actions(rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Extremes held long enough to reach joint limits and to press on table, walls and objects."""
    for i in range(count):
        if i % 25 == 0:
            action = rng.integers(-1, 2, size=7).astype(np.float64)
        yield action


@pytest.mark.parametrize("domain", ENV_NAMES)
@pytest.mark.parametrize("actions", [random_actions, held_actions])
def test_arbitrary_actions_and_resets_at_any_time(
    domain: str, actions: Callable[[np.random.Generator, int], Iterator[np.ndarray]]
) -> None:
    both = Both(domain)
    rng = np.random.default_rng(len(domain))
    for seed, count in enumerate((40, 2, 20)):
        both.reset(seed)
        for action in actions(rng, count):
            both.step(action)


def test_reaching_down_and_grasping() -> None:
    both = Both("lift")
    for seed in (11, 12):
        both.reset(seed)
        for number in range(60):
            cube = both.package.sim.data.body_xpos[both.package.cube_body_id]
            hand = both.package.sim.data.site_xpos[both.package.robots[0].eef_site_id["right"]]
            action = np.zeros(7)
            action[:3] = np.clip((cube - hand) * 10, -1, 1) if number < 40 else (0, 0, 1)
            action[6] = 1.0 if number > 30 else -1.0
            reward = both.step(action)
        assert reward == 1.0  # both have lifted the cube


@pytest.mark.parametrize(("domain", "thing", "place"), [("can", "Can", "bin2"), ("square", "SquareNut", "peg1")])
def test_rewards_where_the_thing_belongs(domain: str, thing: str, place: str) -> None:
    both = Both(domain)
    both.reset(0)
    rewards = [both.step(np.zeros(7))]
    for env in both.envs:
        goal = env.target_bin_placements[3] if domain == "can" else env.sim.data.body_xpos[env.peg1_body_id]
        env.sim.data.set_joint_qpos(f"{thing}_joint0", [goal[0], goal[1], goal[2] + 0.01, 1, 0, 0, 0])
    rewards += [both.step(np.zeros(7)) for _ in range(10)]
    assert rewards[0] == 0.0
    assert 1.0 in rewards


def test_the_cube_has_many_sizes() -> None:
    both = Both("lift")
    sizes = set()
    for seed in range(8):
        both.reset(seed)
        assert list(both.package.cube.size) == list(both.fast.cube.size)
        sizes.add(tuple(both.fast.cube.size))
    assert len(sizes) == 8


def test_a_state_that_is_set_amid_an_episode() -> None:
    both = Both("can")
    both.reset(5)
    rng = np.random.default_rng(5)
    for action in random_actions(rng, 5):
        both.step(action)
    state = both.package.sim.get_state().flatten()
    for action in random_actions(rng, 5):
        both.step(action)
    for env in both.envs:
        env.sim.set_state_from_flattened(state)
        env.sim.forward()
    both.observe_again()
    for action in random_actions(rng, 5):
        both.step(action)


def test_an_unknown_package_is_used_by_itself_and_named_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from datasets.robomimic import fast as robomimic_fast
    from datasets.robomimic.env import robosuite_env

    monkeypatch.setattr(robomimic_fast, "KNOWN_DIGESTS", frozenset({"0" * 64}))
    robomimic_fast.is_known.cache_clear()
    try:
        envs = [robosuite_env("Lift"), robosuite_env("PickPlaceCan")]
        lines = capfd.readouterr().err.splitlines()
    finally:
        robomimic_fast.is_known.cache_clear()
    assert [type(env).__name__ for env in envs] == ["Lift", "PickPlaceCan"]
    assert len(lines) == 1
    assert "robosuite 1.5.1" in lines[0]


def test_another_controller_is_the_package_s_own() -> None:
    from datasets.robomimic.env import robosuite_env
    from datasets.robomimic.tasks import ENV_KWARGS

    assert type(robosuite_env("Lift", ENV_KWARGS | {"lite_physics": True})).__name__ == "Lift"


def test_any_change_of_a_repeated_source_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.robomimic import env as robomimic_env
    from datasets.robomimic import fast as robomimic_fast

    assert robomimic_env.robosuite.__version__ == "1.5.1"
    assert robomimic_fast.source_digest() in robomimic_fast.KNOWN_DIGESTS
    monkeypatch.setattr(robomimic_fast, "REPEATED_SOURCES", robomimic_fast.REPEATED_SOURCES[::-1])
    assert robomimic_fast.source_digest() not in robomimic_fast.KNOWN_DIGESTS


@pytest.mark.slow
@pytest.mark.parametrize("domain", ENV_NAMES)
def test_whole_episodes(domain: str) -> None:
    both = Both(domain)
    rng = np.random.default_rng(7)
    for seed in range(6):
        both.reset(100 + seed)
        for action in (random_actions if seed % 2 else held_actions)(rng, 400):
            both.step(action)
