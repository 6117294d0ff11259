"""Reads demonstrations in robomimic's HDF5 format into rows, and checks that they are of the task."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.runs.contract import nearest, one_line
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
from datasets.scale import ActionScale, share_of
from datasets.source import Block, Rows
from datasets.spec import DataError, Dataset, Origin, TaskSpec
from datasets.transitions import row_form
from datasets.unreadable import in_place_of_array, why_unreadable

_DECISIVE_KWARGS = ("robots", "gripper_types", "control_freq", "reward_shaping")
_DECISIVE_GAINS = (
    *("type", "input_max", "input_min", "output_max", "output_min", "kp", "impedance_mode", "input_type"),
    "control_delta",  # the older name of input_type
)
_DEMO = re.compile(r"demo_([0-9]+)")
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
    """The rows of a file's demonstrations, or of those of the filter key asked for, in order of their numbers.

    As published, each transition with `dones` = 1 ends an episode and is terminated: the few that follow the first
    success within a demonstration are episodes of their own. In a user's file the reward tells where the task ends,
    since `dones` may tell ends of recordings. Without `next_obs` the next row's observation is taken. Raises DataError,
    also later on from the iterator, for a damaged file and for one of another environment.
    """
    (file,) = files
    domain = tasks[0].domain
    with _demonstrations(file) as data:
        _check_recording(file, data)
        _check_environment(file, data, domain)
        names, left_out = _names(file, data, dataset.options.filter_key), _left_out(data)
        demos = [_told(file, data, name, success_ends=not dataset.domain) for name in names]
        num_transitions = sum(len(demo.ends) for demo in demos)
        if dataset.name in PUBLISHED and data.attrs.get("origin") != "generated":
            _check_published(file, dataset, {"transitions": num_transitions, "demonstrations": len(names)})
    if not num_transitions:
        raise DataError(f"{file}: no transition's next observation is known: there is no next_obs, and no second step")
    num_rows = num_transitions + sum(int(demo.ends.sum()) for demo in demos)
    warnings = [f"{file}: {line}" for line in (*left_out, *_doubts(demos))]
    # Beyond [-1, 1], where devices of humans go, robosuite's controller clips as well.
    scale = ActionScale(dataset, file, refuses=not dataset.domain)
    return Rows(num_rows, _blocks(file, demos, domain, [task.name for task in tasks], scale, warnings), warnings)


class _Demo(NamedTuple):
    """What a demonstration of T steps tells of the n of them whose next observation is known."""

    name: str
    num_steps: int  # T
    knows_next: bool  # there is next_obs
    reward: np.ndarray  # (n,) float32, -1 until solved
    terminated: np.ndarray  # (n,) bool
    ends: np.ndarray  # (n,) bool, the transitions that end an episode: the last one, and those that are done
    misread: tuple[int, int]  # steps that succeed and are not done, and that are done without success


def _told(file: Path, data: Any, name: str, *, success_ends: bool) -> _Demo:
    done = _flags(file, data, f"{name}/dones")
    solved = _flags(file, data, f"{name}/rewards", len(done))
    terminated, ends = (solved, done | solved) if success_ends else (done, done.copy())
    samples = data[name].attrs.get("num_samples", len(done))
    if samples != len(done):
        raise DataError(
            f"{file}: attribute 'num_samples' of 'data/{name}' is {samples}, but its arrays have {len(done)} steps"
        )
    knows_next = bool(len(data[name].get("next_obs", ())))
    # Nothing is bootstrapped from beyond a last step that terminated; one that did not is of no use without its next
    # observation.
    num = len(done) - int(not knows_next and not terminated[-1])
    ends[num - 1 :] = True
    misread = (int((solved & ~done).sum()), int((done & ~solved).sum())) if success_ends else (0, 0)
    return _Demo(name, len(done), knows_next, solved[:num] - np.float32(1), terminated[:num], ends[:num], misread)


def _doubts(demos: list[_Demo]) -> Iterator[str]:
    """A line each on what is read in another way than a file may mean it."""
    steps = sum(demo.num_steps for demo in demos)
    late, early = (sum(demo.misread[kind] for demo in demos) for kind in (0, 1))
    if late:
        yield f"'dones' is 0 in {share_of(late, steps)} that succeed: read as ends of the task"
    if early:
        yield f"'dones' is 1 in {share_of(early, steps)} without success: episodes end there, the task does not"
    if without := sum(not demo.knows_next for demo in demos):
        dropped = sum(demo.num_steps - len(demo.ends) for demo in demos)
        yield (
            f"{without:,} of {len(demos):,} demonstrations have no 'next_obs': read as the next row's 'obs', without "
            f"{dropped:,} last steps that do not succeed"
        )


def _blocks(
    file: Path, demos: list[_Demo], domain: str, task_names: list[str], scale: ActionScale, warnings: list[str]
) -> Iterator[Block]:
    """A block for each demonstration."""
    with _demonstrations(file) as data:
        for name, num_steps, knows_next, reward, terminated, ends, _ in demos:
            obs = _observations(file, data, f"{name}/obs", num_steps, domain)
            if knows_next:
                next_obs = _observations(file, data, f"{name}/next_obs", num_steps, domain)
                _check_succession(file, name, obs, next_obs)
            else:
                next_obs = np.concatenate([obs[1:], obs[-1:]])
            num = len(ends)
            action = _numbers(file, data, f"{name}/actions", (num_steps, ACTION_DIM))[:num]
            action = scale.clipped(action, f"data/{name}/actions")
            if not num:
                continue
            obs, action, final, reward, terminated = row_form(
                obs[:num], action, reward, terminated, next_obs=next_obs[:num], ends=ends
            )
            yield Block(obs, action, final, dict.fromkeys(task_names, reward), dict.fromkeys(task_names, terminated))
    warnings += scale.lines()


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


def _check_recording(file: Path, data: Any) -> None:
    """Raises DataError for a recording whose states have not been made into observations."""
    names = [name for name in map(str, data) if name.startswith("demo_")]
    if not names or "obs" in data[names[0]] or "states" not in data[names[0]]:
        return
    scripts = (
        f"python -m robomimic.scripts.dataset_states_to_obs --dataset {file} --output_name low_dim.hdf5 --done_mode 2"
    )
    if "env_args" not in data.attrs:  # as robosuite writes it
        scripts = f"python -m robomimic.scripts.conversion.convert_robosuite --dataset {file}, then {scripts}"
    raise DataError(f"{file} is a raw recording, states without observations; convert it with robomimic: {scripts}")


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
        found = f"was made with robosuite {version}"
        if version is None:
            found = "was made with robosuite before 1.4 or by other tools: its 'env_args' have no env_version"
        raise DataError(
            f"{file} {found}, the task is that of {ROBOSUITE_GENERATION}: between them the order and signs of `object` "
            "and the controllers changed; get a file of version 1.5 (low_dim_v15.hdf5)"
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
        damage = "is not a whole HDF5 file"
        raise DataError(why_unreadable(file, error, "delete it and get it again", damage=damage)) from error


def _names(file: Path, data: Any, filter_key: str | None) -> list[str]:
    """Of all demonstrations, or those of a filter key; `demo_2` comes before `demo_10`."""
    numbered = sorted((int(match[1]), match[0]) for name in map(str, data) if (match := _DEMO.fullmatch(name)))
    if not numbered:
        raise DataError(f"{file}: no demonstration (demo_0, demo_1, …) in group 'data'")
    names = [name for _, name in numbered]
    if filter_key is None:
        return names
    members = _members(file, data.file, filter_key)
    if absent := [name for name in members if name not in names]:
        raise DataError(f"{file}: filter key '{filter_key}' names {absent[0]}, which is not in group 'data'")
    return [name for name in names if name in members]


def _left_out(data: Any) -> list[str]:
    """A line on what lies beside the demonstrations."""
    others = [name for name in map(str, data) if not _DEMO.fullmatch(name)]
    few = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
    return (
        [f"{len(others):,} of {len(data):,} groups in 'data' are left out, which are no demo_<number>: {few}"]
        if others
        else []
    )


def _members(file: Path, content: Any, filter_key: str) -> set[str]:
    """The demonstrations of a filter key, `mask/KEY` in the file."""
    import h5py

    masks = content.get("mask")
    known = sorted(map(str, masks)) if isinstance(masks, h5py.Group) else []
    mask = masks[filter_key] if filter_key in known else None
    if not isinstance(mask, h5py.Dataset):
        has = f"it has {', '.join(known)}" if known else "it has none (no group 'mask')"
        raise DataError(f"{file}: no filter key {filter_key!r}{nearest(filter_key, known)}; {has}")
    names = np.asarray(mask[()]).reshape(-1).tolist()
    if not names:
        raise DataError(f"{file}: filter key '{filter_key}' names no demonstration")
    return {name.decode() if isinstance(name, bytes) else str(name) for name in names}


def _array(file: Path, data: Any, path: str) -> np.ndarray:
    import h5py

    array = data.get(path)
    if isinstance(array, h5py.Group):
        raise DataError(in_place_of_array(f"{file}: key 'data/{path}'", map(str, array)))
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
    where = f"{file}: key 'data/{path}' is {array.dtype} {array.shape}"
    if not is_series or array.dtype.kind not in "bfiu":
        raise DataError(f"{where}, expected a 0 or 1 per step")
    wrong = ~np.isin(array, (0, 1))
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{where}, expected a 0 or 1 per step, but it is {array[row]:g} in row {row}")
    return array.astype(bool)
