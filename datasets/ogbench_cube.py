"""OGBench cube (arXiv 2410.20092), single-task form: the twenty tasks and their rewards. Imports no simulator.

A robot arm with a gripper moves one to four cubes to the goal positions of a task. All five tasks of a domain share
their data: rewards are not stored in it but follow from the cube positions in the simulator state `qpos`.
"""

import numpy as np

from datasets.spec import TaskSpec

SUITE = "ogbench-cube"
URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
NUM_CUBES = {"cube-single": 1, "cube-double": 2, "cube-triple": 3, "cube-quadruple": 4}
TASK_IDS = (1, 2, 3, 4, 5)
DEFAULT_TASK_ID = 2  # the one OGBench means by a domain's bare name
ACTION_DIM = 5  # effector x, y, z, yaw and gripper opening, all relative
PUBLISHED_EPISODES = {"cube-single": 1000, "cube-double": 1000, "cube-triple": 3000, "cube-quadruple": 5000}

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
