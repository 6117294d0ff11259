"""Robomimic (arXiv 2108.03298), low-dimensional human demonstrations: Lift, Can and Square. Imports no simulator.

A Panda arm lifts a cube, drops a can into its bin, or fits a square nut onto its peg. Data sets are files of
demonstrations, by several humans of mixed proficiency (`mh`) or by one proficient human (`ph`). The protocol, with
rewards of -1 until success and an end at success, is that of Q-chunking (arXiv 2507.07969).
"""

import re
from typing import Any

from datasets.spec import TaskSpec

SUITE = "robomimic"
ROBOSUITE_GENERATION = "1.5"  # of the data sets' observations and dynamics
ENV_NAMES = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare"}
OBS_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
ACTION_DIM = 7  # change of the hand's position and of its orientation, and the gripper
PUBLISHED_TRANSITIONS = {"lift-mh-v15": 31_127, "can-mh-v15": 62_756, "square-mh-v15": 80_731}
PUBLISHED_DEMONSTRATIONS = {"mh": 300, "ph": 200}

# What the published files' `env_args` say of the environment.
ENV_KWARGS: dict[str, Any] = {
    "has_renderer": False,
    "has_offscreen_renderer": False,
    "ignore_done": True,
    "use_object_obs": True,
    "use_camera_obs": False,
    "control_freq": 20,
    "controller_configs": {
        "type": "BASIC",
        "body_parts": {
            "right": {
                "type": "OSC_POSE",
                "input_max": 1,
                "input_min": -1,
                "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
                "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
                "kp": 150,
                "damping": 1,
                "impedance_mode": "fixed",
                "kp_limits": [0, 300],
                "damping_limits": [0, 10],
                "position_limits": None,
                "orientation_limits": None,
                "uncouple_pos_ori": True,
                "control_delta": True,
                "interpolation": None,
                "ramp_ratio": 0.2,
                "input_ref_frame": "world",
                "gripper": {"type": "GRIP"},
            }
        },
    },
    "robots": ["Panda"],
    "camera_depths": False,
    "camera_heights": 84,
    "camera_widths": 84,
    "lite_physics": False,
    "reward_shaping": False,
}

_OBJECT_DIM = {"lift": 10, "can": 14, "square": 14}
_MAX_EPISODE_STEPS = {"lift": 300, "can": 300, "square": 400}
_PROFICIENCIES = ("mh", "ph")


def obs_widths(domain: str) -> dict[str, int]:
    """Length of each part of an observation."""
    return dict(zip(OBS_KEYS, (3, 4, 2, _OBJECT_DIM[domain]), strict=True))


TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name=f"{domain}-{proficiency}",
            suite=SUITE,
            domain=domain,
            task_id=1,
            obs_dim=sum(obs_widths(domain).values()),
            action_dim=ACTION_DIM,
            max_episode_steps=_MAX_EPISODE_STEPS[domain],
            dataset=f"{domain}-{proficiency}-v15",
            success_rule="last",  # an episode ends at its first success, as in Q-chunking's evaluation
            least_reward=-1,
        )
        for domain in ENV_NAMES
        for proficiency in _PROFICIENCIES
    )
}
PUBLISHED = tuple(spec.dataset for spec in TASKS.values() if spec.dataset)

# Names of robosuite's environments, robomimic's and Q-chunking's (`square-mh-low_dim`), in small letters with hyphens.
_ALIASES = {"pickplacecan": "can", "nutassemblysquare": "square"}
_OURS = "|".join([*ENV_NAMES, *_ALIASES])
_NAME = re.compile(rf"({_OURS})(?:-({'|'.join(_PROFICIENCIES)}))?(?:-low-dim)?(?:-v15)?")
_ABSENT = re.compile(
    rf"({_OURS})-((mg|paired|image).*|(mh|ph)-(low-dim|image|raw|demo).*)"
    r"|(tool-?hang|transport|twoarm|nutassembly|pickplace|stack|wipe|door).*"
)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def named_task(name: str) -> TaskSpec | None:
    """The task of a name of the field; `lift` is `lift-mh`, which is published for offline-to-online learning."""
    found = _NAME.fullmatch(_plain(name))
    return TASKS[f"{_ALIASES.get(found[1], found[1])}-{found[2] or 'mh'}"] if found else None


def dataset_of(name: str) -> str:
    """The data set that a name of the field with `low_dim` in it stands for; any other name as it is."""
    spec = named_task(name) if "low-dim" in _plain(name) else None
    return (spec and spec.dataset) or name


def unsupported(name: str) -> str | None:
    """Why a name of robomimic or robosuite is no task here; None for any other name."""
    if named_task(name) or not _ABSENT.fullmatch(_plain(name)):
        return None
    return (
        "of robomimic, Lift, Can and Square are supported, from low-dimensional states and with mh or ph data of "
        f"version 1.5: {', '.join(TASKS)}"
    )
