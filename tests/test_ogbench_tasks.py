"""OGBench's single tasks against the ogbench package itself; one environment for each domain."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from datasets import DataError, generate, load, make_env, task
from datasets.ogbench.source import NUM_SHARDS, parse
from datasets.ogbench.tasks import DOMAINS, PUBLISHED, TASK_IDS, TASKS, Goal, relabel
from datasets.spec import TaskSpec

ARM = [name for name in DOMAINS if "maze" not in name]
SPARSE = ["scene", "puzzle-3x3", "puzzle-4x4"]


@pytest.fixture(scope="module", params=DOMAINS)
def env(request: pytest.FixtureRequest) -> Any:
    """The default task of a domain, with the timing of the data."""
    env = make_env(request.param, success_timing="pre")
    yield env
    env.close()


@pytest.fixture(scope="module")
def spec(env: Any) -> TaskSpec:
    return env.task


@pytest.fixture(scope="module")
def goals(spec: TaskSpec) -> dict[int, Goal]:
    from datasets.ogbench.env import task_goals

    return task_goals(spec.domain)


def actions_of(spec: TaskSpec, count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.2, 1.2, (count, spec.action_dim))


def state_of(env: Any) -> dict[str, np.ndarray]:
    """The simulator's state as data sets hold it, in double precision."""
    simulator = env.unwrapped
    states = {"qpos": simulator.data.qpos.copy(), "qvel": simulator.data.qvel.copy()}
    if hasattr(simulator, "_cur_button_states"):
        states["button_states"] = simulator._cur_button_states.copy()
    return states


def at_goal(domain: str, goal: Goal, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state with all that the goal asks for."""
    state = {key: array.copy() for key, array in state.items()}
    for cube, place in enumerate(goal.cubes):
        state["qpos"][14 + 7 * cube : 17 + 7 * cube] = place
    if len(goal.buttons):
        state["button_states"] = goal.buttons.copy()
    if len(goal.slides):
        state["qpos"][-2:] = goal.slides
    if len(goal.place):
        state["qpos"][:2] = goal.place
    return state


# ------------------------------------------------------------------------------------------------- environments


@pytest.mark.thorough
def test_environment_matches_its_spec(spec: TaskSpec, env: Any) -> None:
    obs, info = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert (obs.shape, obs.dtype, info) == ((spec.obs_dim,), np.float32, {})
    assert env.action_space.shape == env.unwrapped.action_space.shape == (spec.action_dim,)
    assert env.spec.max_episode_steps == spec.max_episode_steps
    assert env.unwrapped.data.qpos.shape == (DOMAINS[spec.domain].qpos_dim,)
    obs, reward, terminated, truncated, info = env.step(np.zeros(spec.action_dim))
    assert env.observation_space.contains(obs)
    assert reward in range(-1 if spec.domain in SPARSE else -max(1, DOMAINS[spec.domain].num_cubes), 0)
    assert (terminated, truncated, info) == (False, False, {"success": False})


def test_bare_domain_is_the_task_that_ogbench_means_by_it(spec: TaskSpec) -> None:
    theirs: Any = gymnasium.make(f"{spec.domain}-singletask-v0", disable_env_checker=True)
    assert task(spec.domain).task_id == spec.task_id == theirs.unwrapped._reward_task_id


def test_reset_with_a_seed_repeats_the_episode(spec: TaskSpec, env: Any) -> None:
    actions = actions_of(spec, 12)

    def episode(env: Any, seed: int) -> np.ndarray:
        return np.stack([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])

    np.random.seed(1)
    first = episode(env, 3)
    assert np.random.random() == np.random.RandomState(1).random_sample()  # the caller's generator is left alone
    np.random.seed(2)
    other, again = episode(env, 4), episode(env, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.thorough
def test_steps_of_a_used_environment_equal_those_of_a_fresh_one_of_ogbench_to_the_last_bit(
    spec: TaskSpec, env: Any
) -> None:
    theirs: Any = gymnasium.make(f"{spec.domain}-singletask-task{spec.task_id}-v0", disable_env_checker=True)
    env.reset(seed=1)
    env.step(np.ones(spec.action_dim))
    obs, _ = env.reset(seed=7)
    np.random.seed(7)  # mazes draw the start from the global generator
    theirs.unwrapped.action_space.seed(7)
    expected_obs, _ = theirs.reset(seed=7)
    np.testing.assert_array_equal(obs, expected_obs.astype(np.float32))
    for action in actions_of(spec, 10):
        obs, reward, *_ = env.step(action)
        expected_obs, expected_reward, *_ = theirs.step(action.clip(-1, 1))
        np.testing.assert_array_equal(obs, expected_obs.astype(np.float32))
        assert reward == (-(expected_reward != 0) if spec.domain in SPARSE else expected_reward)
    theirs.close()


@pytest.mark.parametrize(
    ("domain", "timing", "first_step"),
    [
        ("cube-single", "post", (0.0, True, True)),
        ("cube-single", "pre", (-1.0, False, False)),
        ("antmaze-large", "post", (0.0, True, True)),
        ("antmaze-large", "pre", (-1.0, False, False)),
    ],
)
def test_success_is_that_of_the_state_the_timing_names(domain: str, timing: str, first_step: tuple) -> None:
    env: Any = make_env(f"{domain}-task1", success_timing=timing)
    env.reset(seed=0)
    state = state_of(env)
    if domain == "cube-single":  # half a centimetre too high to count: it falls to the goal in one step
        state["qpos"][14:17] = 0.425, -0.1, 0.02 + 0.045
    else:  # a millimetre too far away, at two metres per second towards it
        state["qpos"][:2] = env.unwrapped.task_infos[0]["goal_xy"] - np.array([0.501, 0])
        state["qvel"][0] = 2.0
    env.unwrapped.set_state(*state.values())
    steps = [env.step(np.zeros(env.task.action_dim)) for _ in range(2)]
    outcomes = [(reward, terminated, info["success"]) for _, reward, terminated, _, info in steps]
    assert outcomes == [first_step, (0.0, True, True)]
    env.close()


def test_episode_is_truncated_at_its_time_limit() -> None:
    env = make_env("cube-single-task4")
    env.reset(seed=0)
    truncations = [env.step(np.zeros(5))[3] for _ in range(200)]
    assert truncations == [False] * 199 + [True]


def test_action_that_is_not_as_many_finite_numbers_is_refused(spec: TaskSpec, env: Any) -> None:
    env.reset(seed=0)
    size = spec.action_dim
    for action in (np.full(size, np.nan), np.zeros(size - 1), np.zeros((1, size)), np.float32(0)):
        with pytest.raises(ValueError, match=f"{size} finite numbers"):
            env.step(action)


def test_mazes_leave_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    make_env("antmaze-giant-task5").close()
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- relabelling


def test_relabelling_equals_that_of_ogbench(spec: TaskSpec, env: Any, goals: dict[int, Goal]) -> None:
    from ogbench.relabel_utils import relabel_dataset

    rng = np.random.default_rng(spec.task_id)
    domain = DOMAINS[spec.domain]
    for task_id in TASK_IDS:
        goal = goals[task_id]
        data: dict[str, Any] = {"qpos": rng.normal(size=(300, domain.qpos_dim))}
        # All within twice their distance of the goal, so that some rows are solved and some are not.
        for cube, place in enumerate(goal.cubes):
            data["qpos"][:, 14 + 7 * cube : 17 + 7 * cube] = place + rng.uniform(-0.03, 0.03, (300, 3))
        if len(goal.slides):
            data["qpos"][:, -2:] = goal.slides + rng.uniform(-0.05, 0.05, (300, 2))
        if len(goal.place):
            data["qpos"][:, :2] = goal.place + rng.uniform(-0.6, 0.6, (300, 2))
        data["qpos"] = data["qpos"].astype(np.float32)
        if domain.num_buttons:
            data["button_states"] = goal.buttons ^ (rng.random((300, domain.num_buttons)) < 0.05)
        env.unwrapped._reward_task_id = task_id
        relabel_dataset(spec.domain, env, data)
        env.unwrapped._reward_task_id = spec.task_id
        reward, terminated = relabel(domain, data["qpos"], data.get("button_states"), goal)
        assert reward.dtype == np.float32
        if domain.sparse:
            assert set(data["rewards"]) > {0, -1}
            data["rewards"] = -(data["rewards"] != 0).astype(np.float32)
        np.testing.assert_array_equal(reward, data["rewards"])
        np.testing.assert_array_equal(terminated, data["masks"] == 0)
        assert 0 < terminated.sum() < len(terminated)


def test_offline_reward_equals_that_of_the_environment_on_replayed_states(
    spec: TaskSpec, env: Any, goals: dict[int, Goal]
) -> None:
    env.reset(seed=5)
    states, outcomes = [], []
    for number, action in enumerate(actions_of(spec, 16)):
        if number in (4, 10):
            # Put to the goal; from the step after on, the environment knows that it is there.
            env.unwrapped.set_state(*at_goal(spec.domain, goals[spec.task_id], state_of(env)).values())
            env.step(0 * action)
        states.append(state_of(env))
        _, reward, terminated, _, info = env.step(action * (0.2 if number in (4, 10) else 1))
        outcomes.append((reward, terminated, info["success"]))
    data = {key: np.stack([state[key] for state in states]) for key in states[0]}
    reward, terminated = relabel(DOMAINS[spec.domain], data["qpos"], data.get("button_states"), goals[spec.task_id])
    assert outcomes == list(zip(reward.tolist(), terminated.tolist(), terminated.tolist(), strict=True))
    assert terminated[[4, 10]].all() and not terminated.all()


# ------------------------------------------------------------------------------------------------ names and data


def test_there_are_the_fifty_tasks_of_qam() -> None:
    of_qam = [name for name, spec in TASKS.items() if spec.domain != "cube-single"]
    assert len(of_qam) == 50
    assert {TASKS[name].dataset for name in of_qam} == {
        "cube-double-play-v0",
        "cube-triple-play-v0",
        "cube-quadruple-play-100m-v0",
        "scene-play-v0",
        "puzzle-3x3-play-v0",
        "puzzle-4x4-play-100m-v0",
        "antmaze-large-navigate-v0",
        "antmaze-giant-navigate-v0",
        "humanoidmaze-medium-navigate-v0",
        "humanoidmaze-large-navigate-v0",
    }


def test_names_of_published_sets_are_taken_apart() -> None:
    for name in PUBLISHED:
        dataset = parse(name)
        assert dataset is not None and name.startswith(f"{dataset.domain}-")
        assert len(dataset.files) == (NUM_SHARDS if "100m" in name else 1)
        assert (dataset.substitute is None) == ("maze" in name)
    dataset = parse("puzzle-4x4-play-100m-v0")
    assert dataset is not None
    assert dataset.files[3].name == "puzzle-4x4-play-100m-v0/puzzle-4x4-play-v0-003.npz"
    assert dataset.substitute == "puzzle-4x4-play-generated-1000ep-seed0"


@pytest.mark.parametrize(
    "name",
    [
        "scene-task1-mixed-generated-2ep-seed0",
        "antmaze-large-navigate-generated-2ep-seed0",
        "puzzle-3x3-task1-play-generated-2ep-seed0",
        "cube-single-task6-mixed-generated-2ep-seed0",
    ],
)
def test_sets_that_cannot_be_made_have_no_name(name: str) -> None:
    assert parse(name) is None


def test_no_expert_of_a_maze_is_known() -> None:
    with pytest.raises(DataError, match="antmaze-large: use its published data, or a file of yours with --data FILE"):
        generate("antmaze-large", "navigate", 2)
    with pytest.raises(DataError, match="unknown kind 'mixed' of scene; kinds are play, noisy"):
        generate("scene", "mixed", 2, task_id=1)


def arrays_of(domain: str, rows: int = 6) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shape = DOMAINS[domain]
    arrays = {
        "observations": rng.normal(size=(rows, shape.obs_dim)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, shape.action_dim)).astype(np.float32),
        "terminals": np.arange(rows) == rows - 1,
        "qpos": rng.normal(size=(rows, shape.qpos_dim)).astype(np.float32),
    }
    if shape.num_buttons:
        arrays["button_states"] = rng.integers(0, 2, (rows, shape.num_buttons))
    return arrays


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("O2O_BENCH_DATA", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("domain", ["scene", "puzzle-3x3", "humanoidmaze-medium"])
def test_published_file_becomes_rows_with_rewards_of_the_task(domain: str, home: Path) -> None:
    from datasets.ogbench.env import task_goals

    spec = task(domain)
    name = f"{domain}-{'navigate' if 'maze' in domain else 'play'}-v0"
    arrays = arrays_of(domain)
    row = {key: arrays[key][2] for key in ("qpos", "button_states") if key in arrays}
    for key, array in at_goal(domain, task_goals(domain)[spec.task_id], row).items():
        arrays[key][2] = array
    np.savez(home / f"{name}.npz", **arrays)
    data = load(spec.name, name, home)
    assert (data.origin, data.num_transitions) == ("published", 5)
    np.testing.assert_array_equal(data.obs, arrays["observations"])
    np.testing.assert_array_equal(data.terminated, np.arange(6) == 2)
    np.testing.assert_array_equal(data.reward, np.where(np.arange(6) == 2, 0, -1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"button_states": None}, "key 'button_states' is missing"),
        (
            {"button_states": np.zeros((6, 9))},
            r"key 'button_states' is float64 \(6, 9\), expected states 0 or 1 \(6, 2",
        ),
        ({"button_states": np.full((6, 2), 2)}, "key 'button_states' is int64 .* expected states 0 or 1"),
        ({"qpos": np.zeros((6, 21), np.float32)}, r"key 'qpos' is float32 \(6, 21\), expected floats \(6, 25\)"),
    ],
)
def test_file_without_the_states_of_a_scene_is_refused(change: dict[str, Any], message: str, home: Path) -> None:
    arrays = {key: array for key, array in (arrays_of("scene") | change).items() if array is not None}
    np.savez(home / "scene-play-v0.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load("scene-task1", "scene-play-v0", home)


@pytest.mark.thorough
@pytest.mark.parametrize(("domain", "kind"), [("scene", "play"), ("scene", "noisy"), ("puzzle-3x3", "play")])
def test_generated_set_is_read_alike_by_ogbench(domain: str, kind: str, home: Path) -> None:
    from ogbench.relabel_utils import relabel_dataset
    from ogbench.utils import load_dataset

    file = generate(domain, kind, 1, seed=1, out=home)
    shape = DOMAINS[domain]
    with np.load(file) as arrays:
        assert arrays["button_states"].shape == (1001, shape.num_buttons)
        assert arrays["button_states"].dtype == np.int64
        assert arrays["qpos"].shape == (1001, shape.qpos_dim)
    expected = load_dataset(str(file), add_info=True)
    relabel_dataset(domain, make_env(f"{domain}-task4"), expected)
    data = load(f"{domain}-task4", file.stem, home)
    kept = np.flatnonzero(~data.final)
    np.testing.assert_array_equal(data.obs[kept], expected["observations"])
    np.testing.assert_array_equal(data.obs[kept + 1], expected["next_observations"])
    np.testing.assert_array_equal(data.reward[kept], -(expected["rewards"] != 0).astype(np.float32))
    np.testing.assert_array_equal(data.terminated[kept], expected["masks"] == 0)
    assert data.origin == "generated"


@pytest.mark.parametrize(("domain", "kind"), [("puzzle-3x3", "noisy"), ("puzzle-4x4", "play")])
def test_oracle_presses_the_button_that_it_is_asked_to(domain: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.ogbench import episodes as ogbench_episodes

    monkeypatch.setattr(ogbench_episodes, "PLAY_TRANSITIONS", 60)
    dataset = parse(f"{domain}-{kind}-generated-1ep-seed1")
    assert dataset is not None
    states = ogbench_episodes.make_episode(dataset, 0)["button_states"]
    toggled = np.abs(np.diff(states, axis=0)).sum(1)
    assert set(toggled[toggled > 0]) <= {3, 4, 5} and (toggled > 0).sum() >= 1  # a button with its neighbours


def test_episode_that_hides_its_cube_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.ogbench import episodes as ogbench_episodes

    qpos = np.zeros((4, 25), np.float32)
    qpos[:, 15:17] = [(0.0, 0.02), (-0.356, 0.066), (0.28, 0.1), (-0.29, 0.02)]
    assert ogbench_episodes._is_healthy({"qpos": qpos})
    for hidden in ((0.3, 0.02), (-0.31, 0.02), (-0.31, 0.09)):
        qpos[1, 15:17] = hidden
        assert not ogbench_episodes._is_healthy({"qpos": qpos})
    verdicts = iter([False, True, True])
    monkeypatch.setattr(ogbench_episodes, "_is_healthy", lambda episode: next(verdicts))
    monkeypatch.setattr(ogbench_episodes, "PLAY_TRANSITIONS", 3)
    dataset = parse("scene-play-generated-2ep-seed0")
    assert dataset is not None
    second, first = (ogbench_episodes.make_episode(dataset, 0) for _ in range(2))
    assert not np.array_equal(first["observations"], second["observations"])


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'cube-double-task3'"):
        task("cube-duoble-task3")
    with pytest.raises(DataError, match="did you mean 'puzzle-4x4-task1'"):
        task("puzzle-44-task1")
    with pytest.raises(DataError, match="success timing 'after'"):
        make_env("cube-single", success_timing="after")


def test_importing_the_tasks_imports_no_simulator() -> None:
    code = "import sys, datasets; print({'torch', 'ogbench', 'mujoco', 'gymnasium'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
