"""OGBench cube (arXiv 2410.20092), single-task form: the twenty tasks and their rewards. Imports no simulator.

A robot arm with a gripper moves one to four cubes to the goal positions of a task. All five tasks of a domain share
their data: rewards are not stored in it but follow from the cube positions in the simulator state `qpos`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.spec import Dataset, Origin, Recipe, RemoteFile, Rows, TaskSpec, generated_name, parse_generated

if TYPE_CHECKING:
    import gymnasium

SUITE = "ogbench"
EXTRA = None
PACKAGES = ("ogbench", "mujoco", "numpy")
KINDS = {"play": False, "noisy": False, "mixed": True}  # and whether a set is made for one task
FOLDER = "~/.ogbench/data"  # where the ogbench package keeps its downloads
NUM_SHARDS = 100
URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
NUM_CUBES = {"cube-single": 1, "cube-double": 2, "cube-triple": 3, "cube-quadruple": 4}
TASK_IDS = (1, 2, 3, 4, 5)
DEFAULT_TASK_ID = 2  # the one OGBench means by a domain's bare name
ACTION_DIM = 5  # effector x, y, z, yaw and gripper opening, all relative
PUBLISHED_EPISODES = {"cube-single": 1000, "cube-double": 1000, "cube-triple": 3000, "cube-quadruple": 5000}

PUBLISHED = (
    *(f"{domain}-{kind}-v0" for domain in NUM_CUBES for kind in ("play", "noisy")),
    "cube-double-play-100m-v0",
    "cube-triple-play-100m-v0",
    "cube-quadruple-play-100m-v0",
    "cube-quadruple-noisy-100m-v0",
)

# Q-chunking and SAC Flow train cube-quadruple on the hundredfold data set, all other domains on the standard one.
_PLAY = {domain: f"{domain}-play-v0" for domain in NUM_CUBES} | {"cube-quadruple": "cube-quadruple-play-100m-v0"}
_MAX_EPISODE_STEPS = {"cube-single": 200, "cube-double": 500, "cube-triple": 1000, "cube-quadruple": 1000}
_FIRST_CUBE = 14  # arm and gripper joints come first in qpos
_QPOS_PER_CUBE = 7  # position and quaternion
_GOAL_RADIUS = 0.04  # metres


def obs_dim(domain: str) -> int:
    """Length of an observation: 19 numbers of arm and gripper, 9 of each cube."""
    return 19 + 9 * NUM_CUBES[domain]


def qpos_dim(domain: str) -> int:
    """Length of the simulator's position vector."""
    return _FIRST_CUBE + _QPOS_PER_CUBE * NUM_CUBES[domain]


TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name=f"{domain}-task{task_id}",
            suite=SUITE,
            domain=domain,
            task_id=task_id,
            obs_dim=obs_dim(domain),
            action_dim=ACTION_DIM,
            max_episode_steps=_MAX_EPISODE_STEPS[domain],
            dataset=_PLAY[domain],
            success_timings=("post", "pre"),
        )
        for domain in NUM_CUBES
        for task_id in TASK_IDS
    )
}


def cube_positions(qpos: np.ndarray) -> np.ndarray:
    """Positions in metres, (..., cubes, 3), in simulator states (..., Q)."""
    cubes = qpos[..., _FIRST_CUBE:]
    return cubes.reshape(*cubes.shape[:-1], -1, _QPOS_PER_CUBE)[..., :3]


def relabel(qpos: np.ndarray, goals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reward (R,) float32 and terminated (R,) bool of simulator states (R, Q) for goal positions (cubes, 3), metres.

    The reward is minus the number of cubes away from their goals; the task is solved when none is.
    """
    at_goal = np.linalg.norm(cube_positions(qpos) - goals, axis=-1) <= _GOAL_RADIUS  # (R, cubes)
    return (at_goal.sum(-1) - at_goal.shape[-1]).astype(np.float32), at_goal.all(-1)


def task(name: str) -> TaskSpec | None:
    return TASKS.get(f"{name}-task{DEFAULT_TASK_ID}" if name in NUM_CUBES else name)


def parse(name: str) -> Dataset | None:
    """`cube-double-play-v0`, `cube-quadruple-play-100m-v0` (100 files), or the name of a generated set."""
    if name in PUBLISHED:
        domain, kind = name.removesuffix("-v0").removesuffix("-100m").rsplit("-", 1)
        names = [f"{name}.npz"]
        if "-100m-" in name:  # without the validation twins (`…-val.npz`)
            names = [f"{name}/{name.replace('-100m', '')}-{shard:03}.npz" for shard in range(NUM_SHARDS)]
        substitute = generated_name(domain, Recipe(kind, PUBLISHED_EPISODES[domain], seed=0))
        files = tuple(RemoteFile(file, (f"{URL}/{file}",)) for file in names)
        return Dataset(name, SUITE, domain, files, (FOLDER,), substitute=substitute)
    if generated := parse_generated(name, NUM_CUBES, KINDS):
        domain, recipe = generated
        if recipe.task_id in (0, *TASK_IDS):
            return Dataset(name, SUITE, domain, (RemoteFile(f"{name}.npz"),), recipe=recipe)
    return None


def origin(dataset: Dataset, files: list[Path]) -> Origin:
    from datasets.ogbench_files import origin

    return origin(dataset, files)


def read(dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
    from datasets.ogbench_files import read

    return read(dataset, files, tasks)


def make_env(spec: TaskSpec, success_timing: str) -> "gymnasium.Env":
    from datasets.ogbench_env import CubeTask, task_env

    return CubeTask(task_env(spec, success_timing), spec)


def kinds(domain: str) -> dict[str, bool]:
    return KINDS


def recipe(dataset: Dataset) -> dict[str, Any]:
    from datasets.ogbench_episodes import recipe

    return recipe(dataset)


def make_episode(dataset: Dataset, index: int) -> dict[str, np.ndarray]:
    from datasets.ogbench_episodes import make_episode

    return make_episode(dataset, index)


def write_set(dataset: Dataset, parts: list[Path], file: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    from datasets.ogbench_files import write_set

    return write_set(dataset, parts, file, recipe)


def recipe_of(file: Path) -> object:
    from datasets.ogbench_files import recipe_of

    return recipe_of(file)
