"""Reads demonstrations in robomimic's HDF5 format into rows, and checks that they are of the task."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.runs.contract import one_line
from datasets.download.checksums import to_replace
from datasets.robomimic.tasks import (
    ACTION_DIM,
    ENV_KWARGS,
    ENV_NAMES,
    PUBLISHED,
    PUBLISHED_DEMONSTRATIONS,
    PUBLISHED_TRANSITIONS,
    ROBOSUITE_GENERATION,
    SUITE,
    obs_widths,
)
from datasets.source import Block, Rows
from datasets.spec import ACTION_LIMIT, DataError, Dataset, Origin, TaskSpec
from datasets.transitions import row_form

_DECISIVE_KWARGS = ("robots", "gripper_types", "control_freq", "reward_shaping")
_DECISIVE_GAINS = ("type", "input_max", "input_min", "output_max", "output_min", "kp", "impedance_mode", "input_type")
_SAME_OBS = 1e-5  # next_obs[t] and obs[t + 1] are the same observation


def origin(dataset: Dataset, files: list[Path]) -> Origin:
    """Generated if the name says so or a file does, whatever it has been renamed to; else published, or a user's.

    Raises DataError for a file that cannot be read.
    """
    if dataset.recipe is not None:
        return "generated"
    for file in files:
        with _demonstrations(file) as data:
            if data.attrs.get("origin") == "generated":
                return "generated"
    return "published" if dataset.suite == SUITE else "user"


def read(dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
    """The rows of a file's demonstrations, in order of their numbers; filter keys (`mask/…`) are not looked at.

    As published, each transition with `dones` = 1 ends an episode and is terminated: the few that follow the first
    success within a demonstration are episodes of their own. Raises DataError, also later on from the iterator, for a
    damaged file and for one of another environment.
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
    task_kwargs, file_kwargs = {"gripper_types": "default"} | ENV_KWARGS, dict(kwargs)
    if isinstance(file_kwargs.get("robots"), str):
        file_kwargs["robots"] = [file_kwargs["robots"]]
    pairs = {key: (file_kwargs.get(key, task_kwargs[key]), task_kwargs[key]) for key in _DECISIVE_KWARGS}
    task_arm = {"input_type": "delta"} | ENV_KWARGS["controller_configs"]["body_parts"]["right"]
    try:
        file_arm = file_kwargs["controller_configs"]["body_parts"]["right"]
        pairs |= {f"controller {key}": (file_arm.get(key, task_arm[key]), task_arm[key]) for key in _DECISIVE_GAINS}
    except (TypeError, KeyError, AttributeError):
        pairs["controller"] = (file_kwargs.get("controller_configs"), "OSC_POSE of the right arm")
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
    parts = [_numbers(file, data, f"{path}/{key}", (num, width)) for key, width in obs_widths(domain).items()]
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
