"""Scripted episodes in OGBench's arm environments. Imports the simulator: import this module inside a function."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import gymnasium
import numpy as np
from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

from datasets.numpy_seed import seeded_numpy
from datasets.ogbench.env import play_env, task_env, task_goals
from datasets.ogbench.tasks import ARM_ACTION_DIM, TASKS, cube_positions
from datasets.spec import Dataset

Info = dict[str, Any]  # what the simulator says about itself, under its own names
Policy = Callable[[Info], np.ndarray]
Oracles = dict[str, Any]  # what an oracle moves -> the oracle
Episode = dict[str, np.ndarray]  # the arrays of the published format, for the rows of one episode


@dataclass(frozen=True)
class Behaviour:
    """How a share of the episodes of a mixed set comes about.

    Directed episodes that reach the goal of cube-single task 1 in time, of 25: all up to a plan noise of 0.3, 76 % at
    0.4, 28 % at 0.5; with misses 72 % at (0.3, 0.4), 52 % at (0.4, 0.3), 20 % at (0.5, 0.4), 4 % at (0.6, 0.5).
    """

    share: float
    directed: bool = True  # carries cubes to the goals of the task, else to random places
    plan_noise: float = 0.1  # 0.1 is that of the published play data
    p_miss: float = 0.0  # probability that a cube is carried to a random place instead of its goal


MIXED = (
    Behaviour(share=0.4),
    Behaviour(share=0.4, plan_noise=0.45),
    Behaviour(share=0.2, directed=False),
)

RECIPE_VERSION = 2  # raise it when a change to this module changes the data
PLAY_TRANSITIONS = 1000  # per episode of play and noisy data
P_STACK = {  # of cubes: range from which an episode draws its probability of stacking one cube on another
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}
PLAN_NOISE, NOISE_SMOOTHING = 0.1, 0.5  # play: on the plan's way points; width of its smoothing in control steps
MAX_ACTION_NOISE, ACTION_NOISE_SCALE = 0.1, (1.0, 1.0, 1.0, 3.0, 10.0)  # noisy: drawn per episode; per action dimension
P_RANDOM_ACTION, P_RANDOM_PUZZLE_ACTION = 0.1, 0.2  # noisy: probability of a uniform action instead
MIN_NORM = 0.4  # noisy: metres, shortest step the oracle aims for

# Directed moves. Cubes are 4 cm wide, so 3 cm off a goal is not yet one layer of a stack too low.
_TABLE = ((0.3, -0.3), (0.55, 0.3))  # the part on which OGBench places targets: lower and upper x, y
_ON_TABLE = 0.02  # height of a cube's centre
_PLACED = 0.03
_STACKED = 0.03  # horizontal distance of cubes that rest on each other
_CLEARANCE = 0.06  # between the centres of cubes on the table that the gripper can tell apart


def recipe(dataset: Dataset) -> dict[str, Any]:
    """Every number that shapes a data set, as JSON."""
    common: dict[str, Any] = {"version": RECIPE_VERSION, "seed": dataset.made_by.seed}
    if dataset.domain in P_STACK:
        common["p_stack"] = list(P_STACK[dataset.domain])
    plan = {"noise_smoothing": NOISE_SMOOTHING}
    noisy = {
        "max_action_noise": MAX_ACTION_NOISE,
        "action_noise_scale": list(ACTION_NOISE_SCALE),
        "p_random_action": _p_random_action(dataset.domain),
        "min_norm": MIN_NORM,
    }
    of_kind = {
        "play": plan | {"transitions": PLAY_TRANSITIONS, "plan_noise": PLAN_NOISE},
        "noisy": noisy | {"transitions": PLAY_TRANSITIONS},
        "mixed": plan | {"behaviours": [asdict(behaviour) for behaviour in MIXED]},
    }
    return common | of_kind[dataset.made_by.kind]


def make_episode(dataset: Dataset, index: int) -> Episode:
    """Episode `index` of a generated data set: a function of the recipe, the seed and the index alone."""
    key = (dataset.made_by.seed, index)
    attempt = 0
    while True:
        rng = np.random.default_rng((*key, attempt) if attempt else key)
        env_seed, oracle_seed = (int(number) for number in rng.integers(2**32, size=2))
        env, policy, num_transitions = _setting(dataset, index, rng)
        with seeded_numpy(oracle_seed):
            episode = _record(env, policy, env_seed, num_transitions)
        if dataset.domain != "scene" or _is_healthy(episode):
            return episode
        attempt += 1


def behaviour_of(index: int) -> Behaviour:
    """Behaviour of episode `index` of a mixed set; any run of consecutive episodes holds the shares closely."""
    golden_ratio = (5**0.5 - 1) / 2  # its multiples modulo 1 fill [0, 1) evenly
    position = (index * golden_ratio) % 1 * sum(behaviour.share for behaviour in MIXED)
    for behaviour in MIXED:
        position -= behaviour.share
        if position < 0:
            return behaviour
    return MIXED[-1]


class Play:
    """Pursues one random target after the other: a place for a cube, a button, a drawer or a window."""

    def __init__(self, env: gymnasium.Env, oracles: Oracles, p_stack: float = 0.0) -> None:
        self.env: Any = env.unwrapped
        self.oracles = oracles
        self.oracle: Any = None  # the one that pursues the current target
        self.p_stack = p_stack

    def __call__(self, info: Info) -> np.ndarray:
        if self.oracle is not None and self.oracle.done:
            _, info = self.env.set_new_target(p_stack=self.p_stack)
            self.oracle = None
        if self.oracle is None:
            self.oracle = self.oracles[info["privileged/target_task"]]
            self.oracle.reset(None, info)
        return self.oracle.select_action(None, info)


class Noisy(Play):
    """Play by oracles that look at the state alone, with noise and random actions on top."""

    def __init__(self, env: gymnasium.Env, domain: str, p_stack: float, rng: np.random.Generator) -> None:
        super().__init__(env, _markov_oracles(env, domain), p_stack)
        self.rng = rng
        self.p_random_action = _p_random_action(domain)
        self.scale = rng.uniform(0, MAX_ACTION_NOISE) * np.array(ACTION_NOISE_SCALE)

    def __call__(self, info: Info) -> np.ndarray:
        if self.rng.random() < self.p_random_action:
            return self.rng.uniform(-1, 1, ARM_ACTION_DIM)
        return super().__call__(info) + self.rng.normal(0, self.scale)


class Directed:
    """Carries one cube after the other to the goals of a task, parking those that are in the way."""

    def __init__(self, env: gymnasium.Env, goals: np.ndarray, behaviour: Behaviour, rng: np.random.Generator) -> None:
        self.oracle = _plan_oracles(env, "cube", behaviour.plan_noise)["cube"]
        self.goals = goals
        self.p_miss = behaviour.p_miss
        self.rng = rng
        self.started = False

    def __call__(self, info: Info) -> np.ndarray:
        if self.oracle.done or not self.started:
            cube, place = self.next_move(cube_positions(info["qpos"], len(self.goals)))
            target = {"target_block": cube, "target_block_pos": place, "target_block_yaw": np.zeros(1)}
            self.oracle.reset(None, info | {f"privileged/{key}": value for key, value in target.items()})
            self.started = True
        return self.oracle.select_action(None, info)

    def next_move(self, positions: np.ndarray) -> tuple[int, np.ndarray]:
        """A cube and the place (3,) to carry it to, in a scene of cubes at `positions` (cubes, 3), all in metres."""
        cubes = range(len(positions))
        placed = np.linalg.norm(positions - self.goals, axis=1) < _PLACED
        on_top = [cube for cube in cubes if not any(_rests_on(other, positions[cube]) for other in positions)]
        ready = [cube for cube in on_top if not placed[cube] and self.is_free(cube, positions, placed)]
        if ready and self.rng.random() >= self.p_miss:
            cube = self.rng.choice(ready)
            return int(cube), self.goals[cube]
        # A miss, or a knot such as two cubes at each other's goals: away with a cube that has to move anyway.
        cube = self.rng.choice(ready or [cube for cube in on_top if not placed[cube]] or on_top)
        others = np.delete(positions, cube, axis=0)
        return int(cube), self.free_place(np.concatenate([others, self.goals]))

    def is_free(self, cube: int, positions: np.ndarray, placed: np.ndarray) -> bool:
        """No other cube occupies the goal of `cube`, and the goals below it are filled."""
        for other in range(len(positions)):
            if other == cube:
                continue
            if np.linalg.norm(positions[other] - self.goals[cube]) < _PLACED:
                return False
            if _rests_on(self.goals[cube], self.goals[other]) and not placed[other]:
                return False
        return True

    def free_place(self, occupied: np.ndarray) -> np.ndarray:
        """A random place (3,) on the table that keeps clear of `occupied` (n, 3), as far as there is one."""
        places = self.rng.uniform(*_TABLE, size=(64, 2))
        clearance = np.linalg.norm(places[:, None] - occupied[:, :2], axis=-1).min(1)
        clear = np.flatnonzero(clearance > _CLEARANCE)
        return np.array([*places[clear[0] if len(clear) else clearance.argmax()], _ON_TABLE])


def _p_random_action(domain: str) -> float:
    return P_RANDOM_PUZZLE_ACTION if domain.startswith("puzzle-") else P_RANDOM_ACTION


def _plan_oracles(env: gymnasium.Env, domain: str, plan_noise: float) -> Oracles:
    """Oracles that follow a plan made beforehand, by what they move."""
    settings: dict[str, Any] = {"env": env, "noise": plan_noise, "noise_smoothing": NOISE_SMOOTHING}
    if domain.startswith("puzzle-"):
        return {"button": ButtonPlanOracle(gripper_always_closed=True, **settings)}
    oracles: Oracles = {"cube": CubePlanOracle(**settings)}
    if domain == "scene":
        oracles["button"] = ButtonPlanOracle(**settings)
        oracles["drawer"] = DrawerPlanOracle(**settings)
        oracles["window"] = WindowPlanOracle(**settings)
    return oracles


def _markov_oracles(env: gymnasium.Env, domain: str) -> Oracles:
    """Oracles that look at the state alone, by what they move."""
    settings: dict[str, Any] = {"env": env, "min_norm": MIN_NORM}
    if domain.startswith("puzzle-"):
        return {"button": ButtonMarkovOracle(gripper_always_closed=True, **settings)}
    oracles: Oracles = {"cube": CubeMarkovOracle(**settings)}
    if domain == "scene":
        oracles["button"] = ButtonMarkovOracle(**settings)
        oracles["drawer"] = DrawerMarkovOracle(**settings)
        oracles["window"] = WindowMarkovOracle(**settings)
    return oracles


def _is_healthy(episode: Episode) -> bool:
    """The cube of a scene stays where it can be seen, unless it is in the drawer; others are left out, as published."""
    _, y, z = episode["qpos"][:, 14:17].T
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return not ((y >= 0.29) | ((y <= -0.3) & ~in_drawer)).any()


def _rests_on(upper: np.ndarray, lower: np.ndarray) -> bool:
    return bool(upper[2] > lower[2] and np.linalg.norm(upper[:2] - lower[:2]) < _STACKED)


def _setting(dataset: Dataset, index: int, rng: np.random.Generator) -> tuple[gymnasium.Env, Policy, int]:
    """Environment, policy and greatest number of transitions of an episode."""
    p_stack = rng.uniform(*P_STACK[dataset.domain]) if dataset.domain in P_STACK else 0.0
    recipe = dataset.made_by
    if recipe.kind == "play":
        env = _play_env(dataset.domain)
        return env, Play(env, _plan_oracles(env, dataset.domain, PLAN_NOISE), p_stack), PLAY_TRANSITIONS
    if recipe.kind == "noisy":
        env = _play_env(dataset.domain)
        return env, Noisy(env, dataset.domain, p_stack, rng), PLAY_TRANSITIONS
    task_name = f"{dataset.domain}-task{recipe.task_id}"
    behaviour = behaviour_of(index)
    if behaviour.directed:
        env = _task_env(task_name)
        policy = Directed(env, _goals(dataset.domain)[recipe.task_id].cubes, behaviour, rng)
    else:
        env = _play_env(dataset.domain)
        policy = Play(env, _plan_oracles(env, dataset.domain, behaviour.plan_noise), p_stack)
    return env, policy, TASKS[task_name].max_episode_steps


def _record(env: gymnasium.Env, policy: Policy, seed: int, num_transitions: int) -> Episode:
    """The rows of one episode, until it ends or has `num_transitions`; the last row holds only the final state."""
    rows: defaultdict[str, list[np.ndarray]] = defaultdict(list)

    def add(obs: np.ndarray, action: np.ndarray, info: Info) -> None:
        arrays = {"observations": obs, "actions": action, "qpos": info["qpos"], "qvel": info["qvel"]}
        for key, value in arrays.items():
            rows[key].append(value.astype(np.float32))
        if "button_states" in info:
            rows["button_states"].append(info["button_states"].astype(np.int64))

    obs, info = env.reset(seed=seed)
    for _ in range(num_transitions):
        # Stored and executed action are the same number to the last bit.
        action = np.clip(policy(info), -1, 1).astype(np.float32)
        add(obs, action, info)
        obs, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
    add(obs, np.zeros(ARM_ACTION_DIM), info)
    arrays = {key: np.stack(values) for key, values in rows.items()}
    arrays["terminals"] = np.arange(len(arrays["actions"])) == len(arrays["actions"]) - 1
    return arrays


@cache
def _task_env(task_name: str) -> gymnasium.Env:
    # Timing "pre" steps once more from the goal, so that some row of the data is at the goal and terminates.
    return task_env(TASKS[task_name], success_timing="pre")


_play_env = cache(play_env)
_goals = cache(task_goals)
