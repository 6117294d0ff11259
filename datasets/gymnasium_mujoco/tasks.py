"""Six robots of Gymnasium's MuJoCo, as -v4 and -v5: tasks without data, scored by return. Imports no simulator.

-v4 is what SAC Flow's figure 4 and the public curves of SAC and CrossQ ran, -v5 what newer papers run. They differ in
what Ant and the humanoids observe and pay (v4 leaves out Ant's contact forces) and in the reward of a fall.

A score of 0 is uniform random actions (100 episodes of seeds 1,000,000 on, measured here), a score of 1 SAC after 1M
steps in ten public seeds (analysis/published/sources.toml, `simbav2`). HumanoidStandup and all of -v5 have no public
seeds, and so no score but the return.
"""

import re

from datasets.spec import TaskSpec

SUITE = "gymnasium_mujoco"
MAX_EPISODE_STEPS = 1000
VERSIONS = ("v4", "v5")
ROBOTS = {  # by domain: the environment of Gymnasium
    "hopper": "Hopper",
    "walker2d": "Walker2d",
    "halfcheetah": "HalfCheetah",
    "ant": "Ant",
    "humanoid": "Humanoid",
    "humanoidstandup": "HumanoidStandup",
}
ACTION_DIM = {"hopper": 3, "walker2d": 6, "halfcheetah": 6, "ant": 8, "humanoid": 17, "humanoidstandup": 17}
OBS_DIM = {  # by version
    "v4": {"hopper": 11, "walker2d": 17, "halfcheetah": 17, "ant": 27, "humanoid": 376, "humanoidstandup": 376},
    "v5": {"hopper": 11, "walker2d": 17, "halfcheetah": 17, "ant": 105, "humanoid": 348, "humanoidstandup": 348},
}
ACTION_SCALE = {"humanoid": 0.4, "humanoidstandup": 0.4}  # the largest action; 1 for the others
REFERENCE_RETURNS = {  # uniform random, SAC at 1M
    "hopper-v4": (18.67, 2787.0),
    "walker2d-v4": (3.07, 4536.0),
    "halfcheetah-v4": (-287.7, 11321.0),
    "ant-v4": (-69.0, 5734.0),
    "humanoid-v4": (120.6, 4826.0),
}

TASKS = {
    name: TaskSpec(
        name=name,
        suite=SUITE,
        domain=name,
        task_id=1,  # one reward
        obs_dim=OBS_DIM[version][robot],
        action_dim=ACTION_DIM[robot],
        max_episode_steps=MAX_EPISODE_STEPS,
        dataset=None,
        tells_success=False,
        success_rule="last",
        reference_returns=REFERENCE_RETURNS.get(name),
        action_scale=ACTION_SCALE.get(robot, 1.0),
    )
    for version in VERSIONS
    for robot in ROBOTS
    for name in [f"{robot}-{version}"]
}
_KNOWN = (*ROBOTS, "swimmer", "reacher", "pusher", "invertedpendulum", "inverteddoublependulum")


def environment_id(task_name: str) -> str:
    """Gymnasium's name of the environment: Hopper-v4."""
    robot, version = task_name.split("-")
    return f"{ROBOTS[robot]}-{version}"


def named_task(name: str) -> TaskSpec | None:
    """The task of a name: ours, or Gymnasium's (`HalfCheetah-v4`)."""
    return TASKS.get(name.lower())


def unsupported(name: str) -> str | None:
    """Why a robot's name is no task here; None for any other name."""
    robot = re.fullmatch(r"(\w+?)(-v\d)?", name.lower())
    if named_task(name) or robot is None or robot[1] not in _KNOWN:
        return None
    return f"of Gymnasium's MuJoCo, {', '.join(ROBOTS)} are supported, each as -v4 and as -v5: name one of these"
