"""OGBench (arXiv 2410.20092), single-task form: names, data sets and rewards of its tasks. Imports no simulator.

`cube-*`, `scene` and `puzzle-*`: a robot arm with a gripper brings cubes, buttons, a drawer and a window into the state
that a task asks for. `antmaze-*` and `humanoidmaze-*`: a walking body goes to a place in a maze. All five tasks of a
domain share their data: rewards are not stored in it but follow from the simulator state.

Tasks are also known by the names that OGBench registers (`cube-double-play-singletask-task2-v0`): `named_task`.

The 50 tasks of QAM (arXiv 2601.14234) are those of all domains but cube-single.
"""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from datasets.spec import TaskSpec

SUITE = "ogbench"
TASK_IDS = (1, 2, 3, 4, 5)
ARM_ACTION_DIM = 5  # effector x, y, z, yaw and gripper opening, all relative
_ARM_QPOS = 14  # arm and gripper joints come first in qpos, then cubes, buttons, drawer and window
_CUBE_QPOS = 7  # position and quaternion
_REACH = 0.04  # metres: a cube, a drawer or a window this near its goal is there
_MAZE_REACH = 0.5  # metres


@dataclass(frozen=True)
class Domain:
    """An environment with five tasks, and the data sets that fit it."""

    obs_dim: int
    action_dim: int
    max_episode_steps: int
    qpos_dim: int  # length of the simulator's position vector
    default_task_id: int  # the one OGBench means by the domain's bare name
    published: tuple[str, ...]  # kinds of its published data
    dataset: str  # kind of the data its tasks are trained on
    episodes: int = 0  # of a published play or noisy set
    num_cubes: int = 0
    num_buttons: int = 0  # their states are in the data, beside qpos
    has_slides: bool = False  # a drawer and a window
    sparse: bool = False
    kinds: tuple[str, ...] = ()  # of data that can be made here


def _cubes(num_cubes: int, max_episode_steps: int, episodes: int, *large: str, dataset: str = "play") -> Domain:
    # An observation is 19 numbers of arm and gripper, here and below, and 9 of each cube.
    return Domain(
        obs_dim=19 + 9 * num_cubes,
        action_dim=ARM_ACTION_DIM,
        max_episode_steps=max_episode_steps,
        qpos_dim=_ARM_QPOS + _CUBE_QPOS * num_cubes,
        default_task_id=2,
        published=("play", "noisy", *large),
        dataset=dataset,
        episodes=episodes,
        num_cubes=num_cubes,
        kinds=("play", "noisy", "mixed"),
    )


def _puzzle(num_buttons: int, *large: str, dataset: str = "play") -> Domain:
    return Domain(
        obs_dim=19 + 4 * num_buttons,
        action_dim=ARM_ACTION_DIM,
        max_episode_steps=500,
        qpos_dim=_ARM_QPOS + num_buttons,
        default_task_id=4,
        published=("play", "noisy", *large),
        dataset=dataset,
        episodes=1000,
        num_buttons=num_buttons,
        sparse=True,
        kinds=("play", "noisy"),
    )


def _maze(body: str, *published: str) -> Domain:
    ant = body == "ant"
    return Domain(
        obs_dim=29 if ant else 69,
        action_dim=8 if ant else 21,
        max_episode_steps=1000 if ant else 2000,
        qpos_dim=15 if ant else 28,
        default_task_id=1,
        published=published,
        dataset="navigate",
    )


# Q-chunking and SAC Flow train cube-quadruple on the hundredfold data set, QAM puzzle-4x4 as well; both train all other
# domains on the standard one. All three train scene and puzzles, and those alone, with a sparse reward (flag `--sparse`
# of github.com/ColinQiyangLi/qc and qam, main.py): every reward but 0 becomes -1, in the data and in the environment.
DOMAINS = {
    "cube-single": _cubes(1, 200, 1000),
    "cube-double": _cubes(2, 500, 1000, "play-100m"),
    "cube-triple": _cubes(3, 1000, 3000, "play-100m"),
    "cube-quadruple": _cubes(4, 1000, 5000, "play-100m", "noisy-100m", dataset="play-100m"),
    "scene": Domain(
        obs_dim=19 + 9 + 2 * 4 + 4,
        action_dim=ARM_ACTION_DIM,
        max_episode_steps=750,
        qpos_dim=_ARM_QPOS + _CUBE_QPOS + 2 + 2,
        default_task_id=2,
        published=("play", "noisy"),
        dataset="play",
        episodes=1000,
        num_cubes=1,
        num_buttons=2,
        has_slides=True,
        sparse=True,
        kinds=("play", "noisy"),
    ),
    "puzzle-3x3": _puzzle(9),
    "puzzle-4x4": _puzzle(16, "play-100m", dataset="play-100m"),
    "antmaze-large": _maze("ant", "navigate", "stitch", "explore"),
    "antmaze-giant": _maze("ant", "navigate", "stitch"),
    "humanoidmaze-medium": _maze("humanoid", "navigate", "stitch"),
    "humanoidmaze-large": _maze("humanoid", "navigate", "stitch"),
}
PUBLISHED = tuple(f"{name}-{kind}-v0" for name, domain in DOMAINS.items() for kind in domain.published)
TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name=f"{name}-task{task_id}",
            suite=SUITE,
            domain=name,
            task_id=task_id,
            obs_dim=domain.obs_dim,
            action_dim=domain.action_dim,
            max_episode_steps=domain.max_episode_steps,
            dataset=f"{name}-{domain.dataset}-v0",
            success_timings=("post", "pre"),
            success_rule="last",  # as OGBench's evaluation reads it; an episode ends at its first success
            least_reward=-1 if domain.sparse else -max(1, domain.num_cubes),
        )
        for name, domain in DOMAINS.items()
        for task_id in TASK_IDS
    )
}


# What else OGBench has: its domains without tasks here, and the kinds of all its data.
ABSENT = (
    *(f"pointmaze-{maze}" for maze in ("medium", "large", "giant", "teleport")),
    *("antmaze-medium", "antmaze-teleport", "humanoidmaze-giant", "humanoidmaze-teleport"),
    *("antsoccer-arena", "antsoccer-medium", "cube-octuple", "puzzle-4x5", "puzzle-4x6"),
    *(f"powderworld-{level}" for level in ("easy", "medium", "hard")),
)
KINDS = ("navigate", "stitch", "explore", "play-100m", "play-1b", "play", "noisy-100m", "noisy")
_NAME = re.compile(
    rf"(?P<pixels>visual-)?(?P<domain>{'|'.join([*DOMAINS, *ABSENT])})(-(?P<kind>{'|'.join(KINDS)}))?"
    r"(?P<oracle>-oraclerep)?(?P<single>-singletask)?(-task(?P<task>\d+))?(?P<version>-v0)?"
)


def named_task(name: str) -> TaskSpec | None:
    """The task of a name: ours (`cube-double-task2`), a bare domain, or OGBench's own, whose kind of data it takes
    (`cube-double-noisy-singletask-task2-v0`). None for any other name.
    """
    found = _NAME.fullmatch(name)
    if found is None or _problem(found):
        return None
    domain = DOMAINS[found["domain"]]
    spec = TASKS[f"{found['domain']}-task{found['task'] or domain.default_task_id}"]
    return replace(spec, dataset=f"{spec.domain}-{found['kind']}-v0") if found["kind"] else spec


def dataset_of(name: str) -> str:
    """The data set that a name of OGBench's single-task form stands for; any other name as it is."""
    spec = named_task(name) if "-singletask" in name else None
    return (spec and spec.dataset) or name


def unsupported(name: str) -> str | None:
    """Why a name of OGBench is no task here; None for any other name."""
    found = _NAME.fullmatch(name)
    return _problem(found) if found else None


def _problem(name: re.Match[str]) -> str | None:
    domain, kind = name["domain"], name["kind"]
    if name["pixels"]:
        return "OGBench's tasks from pixels (visual-…) are not supported, those from states are"
    if domain not in DOMAINS:
        return f"OGBench's {domain} is not supported"
    tasks = f"{domain}-task1 … -task5"
    if kind and kind not in DOMAINS[domain].published:
        kinds = ", ".join(DOMAINS[domain].published)
        return f"OGBench's {kind} data of {domain} are not supported; its tasks {tasks} have {kinds}"
    if name["oracle"]:
        return f"OGBench's goal-conditioned form (oraclerep) is not supported; tasks of one goal are {tasks}"
    if name["task"] and int(name["task"]) not in TASK_IDS:
        return f"{domain} has the tasks {tasks}"
    if not (name["single"] or name["task"]) and (kind or name["version"]):
        what = (
            f"a data set, to be named with --dataset {domain}-{kind}-v0" if kind else "OGBench's goal-conditioned form"
        )
        return f"that is {what}; tasks are {tasks}"
    return None


class Goal(NamedTuple):
    """What solves a task; parts that its domain lacks are empty."""

    cubes: np.ndarray = np.zeros((0, 3))  # (cubes, 3) positions in metres
    buttons: np.ndarray = np.zeros(0, dtype=np.int64)  # (buttons,) states, 0 or 1
    slides: np.ndarray = np.zeros(0)  # (2,) openings of drawer and window in metres
    place: np.ndarray = np.zeros(0)  # (2,) position in a maze, in metres


def cube_positions(qpos: np.ndarray, num_cubes: int) -> np.ndarray:
    """Positions in metres, (..., cubes, 3), in simulator states (..., Q)."""
    cubes = qpos[..., _ARM_QPOS : _ARM_QPOS + _CUBE_QPOS * num_cubes]
    return cubes.reshape(*cubes.shape[:-1], num_cubes, _CUBE_QPOS)[..., :3]


def relabel(
    domain: Domain, qpos: np.ndarray, button_states: np.ndarray | None, goal: Goal
) -> tuple[np.ndarray, np.ndarray]:
    """Reward (R,) float32 and terminated (R,) bool of simulator states (R, Q) with button states (R, buttons).

    The reward is minus the number of objects that are not as the goal asks, or -1 in its place where the domain's
    reward is sparse; the task is solved when there are none.
    """
    parts = []
    if len(goal.cubes):
        parts.append(np.linalg.norm(cube_positions(qpos, len(goal.cubes)) - goal.cubes, axis=-1) <= _REACH)
    if len(goal.buttons):
        assert button_states is not None
        parts.append(button_states == goal.buttons)
    if len(goal.slides):
        parts.append(np.abs(qpos[..., -len(goal.slides) :] - goal.slides) <= _REACH)
    if len(goal.place):
        parts.append(np.linalg.norm(qpos[..., :2] - goal.place, axis=-1, keepdims=True) <= _MAZE_REACH)
    at_goal: np.ndarray = np.concatenate(parts, axis=-1)  # (R, objects)
    solved = np.logical_and.reduce(at_goal, axis=-1)
    reward: np.ndarray = solved - 1.0 if domain.sparse else at_goal.sum(axis=-1) - at_goal.shape[-1]
    return reward.astype(np.float32), solved
