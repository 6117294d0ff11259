"""Robomimic (arXiv 2108.03298), low-dimensional human demonstrations: Lift, Can and Square. Imports no simulator.

A Panda arm lifts a cube, drops a can into its bin, or fits a square nut onto its peg. Data sets are files of
demonstrations, by several humans of mixed proficiency (`mh`) or by one proficient human (`ph`). The protocol, with
rewards of -1 until success and an end at success, is that of Q-chunking (arXiv 2507.07969).
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.download.checksums import to_replace
from datasets.spec import (
    ACTION_LIMIT,
    Block,
    DataError,
    Dataset,
    Origin,
    Recipe,
    RemoteFile,
    Rows,
    TaskSpec,
    generated_name,
    one_line,
    parse_generated,
)
from datasets.transitions import row_form

if TYPE_CHECKING:
    import gymnasium

SUITE = "robomimic"
EXTRA = "robomimic"
NEEDS_OPENGL = True
PACKAGES = ("robosuite", "mujoco", "numpy")
KINDS = {"expert": False, "mixed": False}  # and whether a set is made for one task
FOLDER = "~/.robomimic"  # where Q-chunking and SAC Flow look for the files
URLS = (  # the official address and an older one that the documentation shows; neither tells sizes or checksums
    "https://huggingface.co/datasets/robomimic/robomimic_datasets/resolve/main/v1.5",
    "https://huggingface.co/datasets/amandlek/robomimic/resolve/main/v1.5",
)
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
_DECISIVE_KWARGS = ("robots", "gripper_types", "control_freq", "reward_shaping")
_DECISIVE_GAINS = ("type", "input_max", "input_min", "output_max", "output_min", "kp", "impedance_mode", "input_type")

_OBJECT_DIM = {"lift": 10, "can": 14, "square": 14}
_MAX_EPISODE_STEPS = {"lift": 300, "can": 300, "square": 400}
_PROFICIENCIES = ("mh", "ph")
_SUBSTITUTES = {"mh": "mixed", "ph": "expert"}  # of as many episodes as there are demonstrations
_SAME_OBS = 1e-5  # next_obs[t] and obs[t + 1] are the same observation


def _obs_widths(domain: str) -> dict[str, int]:
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
            obs_dim=sum(_obs_widths(domain).values()),
            action_dim=ACTION_DIM,
            max_episode_steps=_MAX_EPISODE_STEPS[domain],
            dataset=f"{domain}-{proficiency}-v15",
        )
        for domain in ENV_NAMES
        for proficiency in _PROFICIENCIES
    )
}
PUBLISHED = tuple(spec.dataset for spec in TASKS.values())


def task(name: str) -> TaskSpec | None:
    """The task of a name; `lift` is `lift-mh`, the one that is published for offline-to-online learning."""
    return TASKS.get(f"{name}-mh" if name in ENV_NAMES else name)


def parse(name: str) -> Dataset | None:
    """`lift-mh-v15`, or the name of a generated set."""
    if name in PUBLISHED:
        domain, proficiency, _ = name.split("-")
        path = f"{domain}/{proficiency}/low_dim_v15.hdf5"
        files = (RemoteFile(path, tuple(f"{url}/{path}" for url in URLS)),)
        substitute = generated_name(
            domain, Recipe(_SUBSTITUTES[proficiency], PUBLISHED_DEMONSTRATIONS[proficiency], seed=0)
        )
        return Dataset(name, SUITE, domain, files, (FOLDER,), substitute=substitute)
    if generated := parse_generated(name, ENV_NAMES, KINDS):
        domain, recipe = generated
        return Dataset(name, SUITE, domain, (RemoteFile(f"{name}.hdf5"),), recipe=recipe)
    return None


def origin(dataset: Dataset, files: list[Path]) -> Origin:
    """Generated if the name says so or a file does, whatever it has been renamed to; else published, or a user's."""
    if dataset.recipe is not None:
        return "generated"
    for file in files:
        with _demonstrations(file) as data:
            if data.attrs.get("origin") == "generated":
                return "generated"
    return "published" if dataset.suite == SUITE else "user"


def make_env(spec: TaskSpec, success_timing: str) -> "gymnasium.Env":
    from datasets.robomimic.env import RobomimicTask

    return RobomimicTask(spec)


def kinds(domain: str) -> dict[str, bool]:
    return KINDS


def recipe(dataset: Dataset) -> dict[str, Any]:
    from datasets.robomimic.experts import recipe

    return recipe(dataset)


def make_episode(dataset: Dataset, index: int) -> dict[str, np.ndarray]:
    from datasets.robomimic.experts import make_episode

    return make_episode(dataset, index)


def write_set(dataset: Dataset, parts: list[Path], file: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    from datasets.robomimic.files import write_set

    return write_set(dataset, parts, file, recipe)


def recipe_of(file: Path) -> object:
    from datasets.robomimic.files import recipe_of

    return recipe_of(file)


def read(dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
    """The rows of a file's demonstrations, in order of their numbers; filter keys (`mask/…`) are not looked at.

    As published, each transition with `dones` = 1 ends an episode and is terminated: the few that follow the first
    success within a demonstration are episodes of their own.
    """
    (file,) = files
    domain = tasks[0].domain
    with _demonstrations(file) as data:
        _check_environment(file, data, domain)
        names = _names(file, data)
        ends = [_ends(file, data, name) for name in names]
        num_transitions = sum(map(len, ends))
        if dataset.name in PUBLISHED and data.attrs.get("origin") != "generated":
            _check_published(file, dataset, {"transitions": num_transitions, "demonstrations": len(names)})
    num_rows = num_transitions + sum(int(end.sum()) for end in ends)
    return Rows(num_rows, _blocks(file, names, domain, [task.name for task in tasks]))


def _blocks(file: Path, names: list[str], domain: str, task_names: list[str]) -> Iterator[Block]:
    """A block for each demonstration."""
    with _demonstrations(file) as data:
        for name in names:
            done, end = _flags(file, data, f"{name}/dones"), _ends(file, data, name)
            num = len(end)
            obs, next_obs = (_observations(file, data, f"{name}/{key}", num, domain) for key in ("obs", "next_obs"))
            _check_succession(file, name, obs, next_obs)
            # Beyond [-1, 1], where devices of humans go, robosuite's controller clips as well.
            action = _numbers(file, data, f"{name}/actions", (num, ACTION_DIM)).clip(-ACTION_LIMIT, ACTION_LIMIT)
            reward = _flags(file, data, f"{name}/rewards", num).astype(np.float32) - 1
            obs, action, final, reward, done = row_form(obs, action, reward, done, next_obs=next_obs, ends=end)
            yield Block(obs, action, final, dict.fromkeys(task_names, reward), dict.fromkeys(task_names, done))


def _check_published(file: Path, dataset: Dataset, counts: dict[str, int]) -> None:
    """Raises DataError where a file under a published name holds something else."""
    name = dataset.name
    expected = {"demonstrations": PUBLISHED_DEMONSTRATIONS[name.split("-")[1]]}
    if name in PUBLISHED_TRANSITIONS:
        expected["transitions"] = PUBLISHED_TRANSITIONS[name]
    for what, count in counts.items():
        if count != expected.get(what, count):
            raise DataError(
                f"{file} holds {count:,} {what}, the published {name} has {expected[what]:,}; "
                f"{to_replace(name, dataset.files[0].name, file)}; a file of your own goes by --data FILE"
            )


def _check_environment(file: Path, data: Any, domain: str) -> None:
    """Raises DataError where the file's data come from another environment than the task's."""
    text = data.attrs.get("env_args")
    if text is None:
        raise DataError(f"{file}: attribute 'env_args' of group 'data' is missing; it tells the environment")
    try:
        env_args = json.loads(text)
        env_name, version, kwargs = env_args["env_name"], env_args.get("env_version"), env_args["env_kwargs"]
        differences = _differences(kwargs)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"{file}: attribute 'env_args' is no JSON object with env_name and env_kwargs ({one_line(error)})"
        ) from error
    if env_name != ENV_NAMES[domain]:
        raise DataError(f"{file} holds data of {env_name}, the task is {ENV_NAMES[domain]}")
    if ".".join(str(version).split(".")[:2]) != ROBOSUITE_GENERATION:
        since = "before 1.4" if version is None else version
        raise DataError(
            f"{file} was made with robosuite {since}, the task is that of {ROBOSUITE_GENERATION}: between them the "
            "order and signs of `object` and the controllers changed; get a file of version 1.5 (low_dim_v15.hdf5)"
        )
    for key, (has, needs) in differences.items():
        raise DataError(f"{file}: its environment has {key} {has}, the task's has {needs}")


def _differences(kwargs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Arguments of a file's environment that would make another task of it, and what the task has."""
    ours, theirs = {"gripper_types": "default"} | ENV_KWARGS, dict(kwargs)
    if isinstance(theirs.get("robots"), str):
        theirs["robots"] = [theirs["robots"]]
    pairs = {key: (theirs.get(key, ours[key]), ours[key]) for key in _DECISIVE_KWARGS}
    our_arm = {"input_type": "delta"} | ENV_KWARGS["controller_configs"]["body_parts"]["right"]
    try:
        their_arm = theirs["controller_configs"]["body_parts"]["right"]
        pairs |= {f"controller {key}": (their_arm.get(key, our_arm[key]), our_arm[key]) for key in _DECISIVE_GAINS}
    except (TypeError, KeyError, AttributeError):
        pairs["controller"] = (theirs.get("controller_configs"), "OSC_POSE of the right arm")
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _check_succession(file: Path, name: str, obs: np.ndarray, next_obs: np.ndarray) -> None:
    """Raises DataError unless a demonstration is one trajectory.

    Cutting it where it is not would leave nothing for chunks of actions to be learned from, and nobody would notice.
    """
    gaps = np.flatnonzero(np.abs(next_obs[:-1] - obs[1:]).max(1, initial=0) > _SAME_OBS)
    if len(gaps):
        row = int(gaps[0])
        raise DataError(
            f"{file}: '{name}/next_obs' of row {row} is not '{name}/obs' of row {row + 1}; "
            "a demonstration is one trajectory"
        )


# Reading arrays; whatever is wrong becomes a DataError that names file and key.


@contextmanager
def _demonstrations(file: Path) -> Iterator[Any]:
    """The group `data` of an open file."""
    import h5py

    try:
        with h5py.File(file) as content:
            if not isinstance(content.get("data"), h5py.Group):
                raise DataError(f"{file}: group 'data' is missing, it has {', '.join(map(str, content)) or 'nothing'}")
            yield content["data"]
    except (OSError, RuntimeError) as error:  # h5py's, of cut files and damaged parts
        raise DataError(f"{file} is not a whole HDF5 file ({one_line(error)}); delete it and get it again") from error


def _names(file: Path, data: Any) -> list[str]:
    """`demo_2` comes before `demo_10`."""
    numbers = sorted(int(match[1]) for name in map(str, data) if (match := re.fullmatch(r"demo_([0-9]+)", name)))
    if not numbers:
        raise DataError(f"{file}: no demonstration (demo_0, demo_1, …) in group 'data'")
    return [f"demo_{number}" for number in numbers]


def _array(file: Path, data: Any, path: str) -> np.ndarray:
    import h5py

    array = data.get(path)
    if not isinstance(array, h5py.Dataset):
        parent = data.get(path.rpartition("/")[0])
        has = f", beside it are {', '.join(map(str, parent))}" if isinstance(parent, h5py.Group) and len(parent) else ""
        raise DataError(f"{file}: key 'data/{path}' is missing{has}")
    return np.asarray(array[()])


def _numbers(file: Path, data: Any, path: str, shape: tuple[int, int]) -> np.ndarray:
    """Finite float32 numbers of the given shape."""
    array = _array(file, data, path)
    if array.shape != shape or array.dtype.kind != "f":
        raise DataError(f"{file}: key 'data/{path}' is {array.dtype} {array.shape}, expected floats {shape}")
    with np.errstate(over="ignore"):  # what is too large for single precision counts as infinite
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(1))[0])
        raise DataError(f"{file}: key 'data/{path}' is not finite in row {row}")
    return array


def _observations(file: Path, data: Any, path: str, num: int, domain: str) -> np.ndarray:
    """(T, O) float32, its parts in the published order."""
    parts = [_numbers(file, data, f"{path}/{key}", (num, width)) for key, width in _obs_widths(domain).items()]
    return np.concatenate(parts, axis=1)


def _flags(file: Path, data: Any, path: str, num: int | None = None) -> np.ndarray:
    """(T,) bool of zeros and ones; `num` is T where it is known."""
    array = _array(file, data, path)
    is_series = array.ndim == 1 and len(array) > 0 and num in (None, len(array))
    if not is_series or array.dtype.kind not in "bfiu" or not np.isin(array, (0, 1)).all():
        raise DataError(f"{file}: key 'data/{path}' is {array.dtype} {array.shape}, expected a 0 or 1 per step")
    return array.astype(bool)


def _ends(file: Path, data: Any, name: str) -> np.ndarray:
    """(T,) bool, the transitions that end an episode: those that are done, and the demonstration's last."""
    end = _flags(file, data, f"{name}/dones")
    end[-1] = True
    return end
