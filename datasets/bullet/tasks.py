"""d4rl-pybullet (github.com/takuseno/d4rl-pybullet): twelve data sets of four robots that walk. Imports no simulator.

Tasks are named by the data they start from: `hopper-bullet-medium` trains on `hopper-bullet-medium-v0` and goes on in
pybullet_envs_gymnasium's HopperBulletEnv-v0 (the data's own package needs a gym that no longer installs). Success has
no meaning here, episodes are scored by their returns. There are no reference returns: neither d4rl-pybullet nor d3rlpy
states any, and the data's authors had no expert (issue 2 of d4rl-pybullet).
"""

import re

from datasets.spec import TaskSpec

SUITE = "bullet"
MAX_EPISODE_STEPS = 1000
DIMS = {  # of an observation and of an action
    "hopper-bullet": (15, 3),
    "halfcheetah-bullet": (26, 6),
    "ant-bullet": (28, 8),
    "walker2d-bullet": (22, 6),
}
QUALITIES = ("medium", "mixed", "random")  # of a half-trained policy; of its training so far; of an untrained one
URLS = {  # d4rl_pybullet/__init__.py; no upstream tells sizes or checksums
    "hopper-bullet-medium-v0": "w22kgzldn6eng7j",
    "hopper-bullet-mixed-v0": "xv3p0h7dzgxt8xb",
    "hopper-bullet-random-v0": "bino8ojd7iq4p4d",
    "halfcheetah-bullet-medium-v0": "v4xgssp1w968a9l",
    "halfcheetah-bullet-mixed-v0": "scj1rqun963aw90",
    "halfcheetah-bullet-random-v0": "jnvpb1hp60zt2ak",
    "ant-bullet-medium-v0": "6n79kwd94xthr1t",
    "ant-bullet-mixed-v0": "pmy3dzab35g4whk",
    "ant-bullet-random-v0": "2xpmh4wk2m7i8xh",
    "walker2d-bullet-medium-v0": "v0f2kz48b1hw6or",
    "walker2d-bullet-mixed-v0": "i4u2ii0d85iblou",
    "walker2d-bullet-random-v0": "1gwcfl2nmx6878m",
}
PUBLISHED = tuple(URLS)

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name=f"{domain}-{quality}",
            suite=SUITE,
            domain=domain,
            task_id=1,  # one reward
            obs_dim=obs_dim,
            action_dim=action_dim,
            max_episode_steps=MAX_EPISODE_STEPS,
            dataset=f"{domain}-{quality}-v0",
            tells_success=False,
            success_rule="last",
        )
        for domain, (obs_dim, action_dim) in DIMS.items()
        for quality in QUALITIES
    )
}


def named_task(name: str) -> TaskSpec | None:
    """The task of a name: ours, a bare robot, d4rl-pybullet's (`hopper-bullet-medium-v0`) or PyBullet's environment."""
    robot = re.fullmatch(r"(\w+)BulletEnv-v0", name)
    if robot:
        name = f"{robot[1].lower()}-bullet"
    elif name in PUBLISHED:
        name = name.removesuffix("-v0")
    return TASKS.get(f"{name}-{QUALITIES[0]}" if name in DIMS else name)


def unsupported(name: str) -> str | None:
    """Why a name of PyBullet is no task here; None for any other name."""
    if named_task(name) or not re.fullmatch(r"\w+BulletEnv-v\d+|[\w-]+-bullet(-[\w-]+)?-v\d+", name):
        return None
    return f"of PyBullet, {', '.join(DIMS)} are supported, each with the data {', '.join(QUALITIES)}"
