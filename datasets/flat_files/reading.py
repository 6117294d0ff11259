"""Flat D4RL-like files, npz or HDF5: one row per step in arrays of equal length; which layout a file has; writing one.

Files differ in how they tell an episode's end and in what is known beyond it, so that not every row is a transition:
`_plan` decides. Rewards and observations are taken as they are, in whatever scale.
"""

import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from datasets.cache import hdf5_file
from datasets.minari.source import SUITE as MINARI
from datasets.minari.source import played_task
from datasets.registry import task as task_of
from datasets.spec import ACTION_LIMIT, Block, DataError, Dataset, Origin, Rows, TaskSpec, one_line

Layout = Literal["ogbench", "robomimic", "minari", "flat"]

KEYS = {  # what an array means: the keys it goes by; where a file has several of a line, the first counts
    "obs": ("observations", "observation", "obs", "states"),  # (N, O)
    "action": ("actions", "action"),  # (N, A), within [-1, 1]
    "reward": ("rewards", "reward"),  # (N,) or (N, 1), as all below but the last
    "terminated": ("terminals", "terminal", "terminations", "terminated", "dones", "done"),
    "truncated": ("timeouts", "timeout", "truncations", "truncated"),  # may be absent
    "next_obs": ("next_observations", "next_observation", "next_obs"),  # (N, O); may be absent
}
_REQUIRED = ("obs", "action", "reward", "terminated")
_ANY_END = ("dones", "done")  # beside a key of time limits, these flag both kinds of ends

_BLOCK_ROWS = 16_384
_ACTION_SLACK = 1e-3  # of rounding beyond [-1, 1]
_SAME_OBS = 1e-5  # relative to max(1, |x|): next_obs[t] and obs[t + 1] are the same state, rounded differently
_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def layout(file: Path) -> Layout:
    """The layout that a file's keys tell. Raises DataError for a damaged file and for one of no known layout."""
    with _open(file) as content:
        keys = set(content.columns)
        if content.is_hdf5 and any(name.startswith("data/demo_") for name in content.groups):
            return "robomimic"
        if content.is_hdf5 and any(name.startswith("episode_") for name in content.groups):
            return "minari"
        if not content.is_hdf5 and {"observations", "qpos"} <= keys and not keys.intersection(KEYS["reward"]):
            return "ogbench"
        missing = [KEYS[meaning][0] for meaning in _REQUIRED if not keys.intersection(KEYS[meaning])]
        if not missing:
            return "flat"
        found = ", ".join(sorted({*keys, *(name.split("/")[0] for name in content.groups)})) or "none"
        if len(missing) < len(_REQUIRED):
            raise DataError(f"{file}: no key for {' and '.join(missing)} among its keys {found}")
        raise DataError(
            f"{file}: no known layout has its keys {found}; known are {', '.join(KEYS[m][0] for m in _REQUIRED)} "
            "(flat npz or HDF5), observations and qpos (OGBench npz), data/demo_0 (robomimic HDF5) and episode_0 "
            "(Minari HDF5)"
        )


def origin(dataset: Dataset, files: list[Path]) -> Origin:
    """Generated if the name says so or a file does; else published, or a user's own."""
    if dataset.recipe is not None or any(_notes(file).get("origin") == "generated" for file in files):
        return "generated"
    return "user" if dataset.suite == "user" else "published"


def recipe_of(file: Path) -> object:
    """The recipe that a generated file says it follows; None where it says none or cannot be read."""
    try:
        return _recipe(_notes(file))
    except DataError:
        return None


def _recipe(notes: dict[str, str]) -> object:
    try:
        return json.loads(notes["recipe"])
    except (KeyError, ValueError):
        return None


def read(dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
    """The rows of a flat file, which all tasks reward alike; twice through the file, little of it in memory.

    Raises DataError, naming file, key and row, for arrays that are missing, damaged, of the wrong shape, not finite, or
    beyond [-1, 1] where they are actions; and for a file that was written here with the rewards of another task.
    """
    (file,) = files
    task = tasks[0]
    with _open(file) as content:
        for own in tasks:
            _check_rewards(content, own)
        columns = content.meanings()
        num_rows = _check_shapes(columns, task)
        plan = _plan(columns, num_rows, task.max_episode_steps)
    if not (plan.copies.astype(bool) & ~plan.is_final).any():
        raise DataError(f"{file} holds no transition whose end is known, only {num_rows} rows that end episodes")
    return Rows(int(plan.copies.sum()), _blocks(file, plan, tasks))


def is_told_on_arrival(file: Path) -> bool:
    """The file pairs each state with the reward and the end that came with it, as d4rl-pybullet wrote its data.

    A row there is (observation, action taken in it, reward and flags received on arriving in it), and every episode
    has a row more than transitions: its final observation beside an action of zeros. Told from that action, and from
    the first reward of each episode, which is 0. Read as D4RL's own files are, every reward would go to the action
    after the one that earned it.
    """
    with _open(file) as content:
        columns = content.meanings()
        if "next_obs" in columns:
            return False
        ends = _flags(columns["terminated"])
        if "truncated" in columns:
            ends |= _flags(columns["truncated"])
        return _tells_on_arrival(columns, ends, columns["reward"].scalars())


class Step(NamedTuple):
    """One transition to be written."""

    obs: np.ndarray  # (O,)
    action: np.ndarray  # (A,)
    reward: float
    terminated: bool
    truncated: bool
    next_obs: np.ndarray  # (O,)


def episode_arrays(steps: list[Step]) -> dict[str, np.ndarray]:
    """An episode under the keys of D4RL's later files."""
    dtypes = (np.float32, np.float32, np.float32, np.bool_, np.bool_, np.float32)
    columns = zip(KEYS.values(), zip(*steps, strict=True), dtypes, strict=True)
    return {keys[0]: np.array(column, dtype) for keys, column, dtype in columns}


def write(parts: list[Path], file: Path, recipe: dict[str, Any]) -> int:
    """Merges npz files of episodes (keys of D4RL) into one HDF5 file that tells its origin and recipe; its rows.

    Equal parts give equal bytes. Whoever calls puts the file in place (`datasets.cache.replacing`). Raises OSError.
    """
    with np.load(parts[0]) as episode:
        headers = {key: (array.dtype, array.shape[1:]) for key, array in episode.items()}
    lengths = []
    for part in parts:
        with np.load(part) as episode:
            lengths.append(len(episode["rewards"]))
    with hdf5_file(file) as out:
        shapes = {key: (sum(lengths), *columns) for key, (_, columns) in headers.items()}
        arrays = {key: out.create_dataset(key, shapes[key], dtype) for key, (dtype, _) in headers.items()}
        # As attributes: readers of D4RL files load every data set in them as an array of rows.
        out.attrs["origin"], out.attrs["recipe"] = "generated", json.dumps(recipe)
        start = 0
        for part, length in zip(parts, lengths, strict=True):
            with np.load(part) as episode:
                for key, array in arrays.items():
                    array[start : start + length] = episode[key]
            start += length
    return start


# Which rows are transitions.


class _Plan(NamedTuple):
    """What becomes of each of a file's N rows."""

    copies: np.ndarray  # (N,) uint8: 0 dropped, 1 one row, 2 a transition and the final row after it
    is_final: np.ndarray  # (N,) bool: the one row holds only a final observation
    reward: np.ndarray  # (N,) float32, of the transition from this row
    terminated: np.ndarray  # (N,) bool, likewise


def _plan(columns: "dict[str, _Column]", num_rows: int, max_episode_steps: int) -> _Plan:
    reward = columns["reward"].scalars()
    terminated = _flags(columns["terminated"])
    truncated = _flags(columns["truncated"]) if "truncated" in columns else None
    ends = terminated.copy() if truncated is None else terminated | truncated
    if "next_obs" not in columns and _tells_on_arrival(columns, ends, reward):
        return _plan_on_arrival(reward, terminated, truncated, ends, max_episode_steps)
    if truncated is not None and columns["terminated"].key in _ANY_END:
        terminated &= ~truncated
    if "next_obs" in columns:
        ends |= _discontinuities(columns, num_rows)
    elif truncated is None:  # D4RL's rule for files that tell no time limits
        ends |= _steps_since_end(ends) % max_episode_steps == max_episode_steps - 1
    ends[-1] = True
    # Where the file does not tell the state after an episode's last step, the step is of use only if it terminated:
    # nothing is bootstrapped from beyond it, so the last observation may stand for the one that is unknown. Else the
    # transition is dropped, and its observation becomes the final one of the transition before it.
    is_final = np.zeros_like(ends) if "next_obs" in columns else ends & ~terminated
    copies = 1 + (ends & ~is_final).astype(np.uint8)
    copies[is_final & _starts(ends)] = 0  # an episode of which no transition is known
    return _Plan(copies, is_final, reward, terminated)


def _plan_on_arrival(
    reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray | None, ends: np.ndarray, max_episode_steps: int
) -> _Plan:
    """Reward and termination move to the row before, that of the action that led to them."""
    ends = ends.copy()
    ends[-1] = True  # collection stopped
    # Gym's wrapper made every time limit a terminal state; where the file does not tell them apart, the number of
    # steps does.
    at_limit = _steps_since_end(ends) == max_episode_steps if truncated is None else truncated
    copies = np.ones(len(ends), np.uint8)
    copies[ends & _starts(ends)] = 0  # collection stopped right after a reset
    return _Plan(copies, ends, np.append(reward[1:], reward[:1]), np.append((terminated & ~at_limit)[1:], False))


def _tells_on_arrival(columns: "dict[str, _Column]", ends: np.ndarray, reward: np.ndarray) -> bool:
    # Where episodes are padded with a row of zeros, as some files in D4RL's own layout are, its reward is 0 as well.
    if not ends.any() or reward[_starts(ends)].any() or not reward[ends].any():
        return False
    start = 0
    for action in columns["action"].blocks():
        if action[ends[start : start + len(action)]].any():
            return False
        start += len(action)
    return True


def _starts(ends: np.ndarray) -> np.ndarray:
    """(N,) bool: the first row of each episode."""
    return np.append(True, ends[:-1])


def _steps_since_end(ends: np.ndarray) -> np.ndarray:
    """(N,) int64: a row's number within its episode, from 0."""
    rows = np.arange(len(ends))
    return rows - np.maximum.accumulate(np.where(_starts(ends), rows, 0))


def _discontinuities(columns: "dict[str, _Column]", num_rows: int) -> np.ndarray:
    """(N,) bool: the next row does not go on where this one led to."""
    found = np.zeros(num_rows, bool)
    start, last = 0, None  # the newest row's next observation
    for obs, next_obs in zip(columns["obs"].blocks(), columns["next_obs"].blocks(), strict=True):
        led_to = next_obs[:-1] if last is None else np.concatenate([last, next_obs[:-1]])
        follows = obs[1:] if last is None else obs
        apart = np.any(np.abs(led_to - follows) > _SAME_OBS * np.maximum(1, np.abs(follows)), axis=1)
        first = start if last is None else start - 1
        found[first : first + len(apart)] = apart
        start, last = start + len(obs), next_obs[-1:]
    return found


def _blocks(file: Path, plan: _Plan, tasks: list[TaskSpec]) -> Iterator[Block]:
    with _open(file) as content:
        columns = content.meanings()
        start = 0
        streams = [columns[name].blocks() for name in ("obs", "action", "next_obs") if name in columns]
        for obs, action, *next_obs in zip(*streams, strict=True):
            rows = slice(start, start + len(obs))
            beyond = np.abs(action).max(1) > 1 + _ACTION_SLACK
            if beyond.any():
                row = int(beyond.argmax())
                raise DataError(
                    f"{file}: key '{columns['action'].key}' is {np.abs(action[row]).max():.4g} in row {start + row}; "
                    "actions must be scaled to [-1, 1]"
                )
            source = np.repeat(np.arange(len(obs)), plan.copies[rows])
            is_second = np.append(False, source[1:] == source[:-1]) if len(source) else np.zeros(0, bool)
            block_obs = obs[source]
            if next_obs:
                block_obs[is_second] = next_obs[0][source[is_second]]
            final = plan.is_final[rows][source] | is_second
            reward = np.where(final, np.float32(0), plan.reward[rows][source])
            terminated = plan.terminated[rows][source] & ~final
            start += len(obs)
            if len(source):
                yield Block(
                    obs=block_obs,
                    action=action[source].clip(-ACTION_LIMIT, ACTION_LIMIT),
                    final=final,
                    reward={task.name: reward for task in tasks},
                    terminated={task.name: terminated for task in tasks},
                )


# Files and their columns.


@dataclass(frozen=True)
class _Column:
    """One array of an open file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stream: Callable[[], Iterator[np.ndarray]]  # its rows from the first to the last, a block at a time

    def blocks(self) -> Iterator[np.ndarray]:
        """(r, …) float32, finite."""
        start = 0
        stream = self.stream()
        while True:
            with _reading(self.file, self.key):
                array = next(stream, None)
            if array is None:
                return
            with np.errstate(over="ignore"):  # what is too large for single precision counts as infinite
                array = array.astype(np.float32, copy=False)
            finite = np.isfinite(array).reshape(len(array), -1).all(1)
            if not finite.all():
                raise DataError(f"{self.file}: key '{self.key}' is not finite in row {start + int(finite.argmin())}")
            yield array
            start += len(array)

    def scalars(self) -> np.ndarray:
        """(N,) float32, finite."""
        return np.concatenate(list(self.blocks())).reshape(-1)


class _Content(NamedTuple):
    """What an open file holds."""

    file: Path
    is_hdf5: bool
    columns: dict[str, _Column]
    groups: list[str]  # of an HDF5 file, down to the second level
    notes: dict[str, str]  # "origin" and "recipe" of a file written here

    def meanings(self) -> dict[str, _Column]:
        """The columns by what they mean. Raises DataError where one is missing."""
        found = {}
        for meaning, keys in KEYS.items():
            present = [key for key in keys if key in self.columns]
            if present:
                found[meaning] = self.columns[present[0]]
            elif meaning in _REQUIRED:
                raise DataError(
                    f"{self.file}: key '{keys[0]}' is missing, it has {', '.join(sorted(self.columns)) or 'none'}"
                )
        return found


def _check_rewards(content: _Content, task: TaskSpec) -> None:
    """Raises DataError where the file tells, as exports and recordings do, that its rewards are another task's.

    Tasks of equal domain and id have the same rewards, whatever data they start from (`can-mh`, `can-ph`).
    """
    recipe = _recipe(content.notes)
    name = recipe.get("task") if isinstance(recipe, dict) else None
    if not isinstance(name, str):  # a file of another making
        return
    try:
        rewarded = played_task(task_of(name))
    except DataError:  # of a Minari set that is not here: nothing is known of its task
        return
    played = played_task(task)
    # An environment that Minari recovers may be one of ours under another name; whether it is cannot be told.
    is_comparable = (rewarded.suite == MINARI) == (played.suite == MINARI)
    if is_comparable and (rewarded.domain, rewarded.task_id) != (played.domain, played.task_id):
        raise DataError(f"{content.file} was exported from task {name}; its rewards are not those of {task.name}")


def _check_shapes(columns: dict[str, _Column], task: TaskSpec) -> int:
    """The number of rows. Raises DataError for arrays that do not fit the task or each other."""
    first = columns["obs"]
    num_rows = first.shape[0] if first.shape else 0
    widths = {"obs": task.obs_dim, "next_obs": task.obs_dim, "action": task.action_dim}
    for meaning, column in columns.items():
        where = f"{column.file}: key '{column.key}' is {column.dtype} {column.shape}"
        if column.dtype.kind not in ("bfiu" if meaning in ("terminated", "truncated") else "fiu"):
            raise DataError(f"{where}, expected numbers")
        if not column.shape or column.shape[0] == 0:
            raise DataError(f"{where}, expected at least one row")
        if meaning in widths and column.shape[1:] != (widths[meaning],):
            raise DataError(f"{where}, task {task.name} needs rows of {widths[meaning]} numbers")
        if meaning not in widths and column.shape[1:] not in ((), (1,)):
            raise DataError(f"{where}, expected one number per row")
        if column.shape[0] != num_rows:
            raise DataError(f"{where}, but '{first.key}' has {num_rows} rows")
    return num_rows


def _flags(column: _Column) -> np.ndarray:
    """(N,) bool."""
    numbers = column.scalars()
    wrong = (numbers != 0) & (numbers != 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{column.file}: key '{column.key}' is {numbers[row]:g} in row {row}, expected a flag 0 or 1")
    return numbers.astype(bool)


def _notes(file: Path) -> dict[str, str]:
    with _open(file) as content:
        return content.notes


@contextmanager
def _open(file: Path) -> Iterator[_Content]:
    with _reading(file), file.open("rb") as handle:
        magic = handle.read(len(_HDF5))
    if magic == _HDF5:
        import h5py

        with _reading(file):
            root = h5py.File(file, "r")
        with root:
            with _reading(file):
                content = _hdf5_content(file, root)
            yield content
    elif magic.startswith(_ZIP):
        with _reading(file):
            archive = zipfile.ZipFile(file)
        with archive:
            with _reading(file):
                content = _npz_content(file, archive)
            yield content
    else:
        raise DataError(f"{file} is neither an npz nor an HDF5 file, or not a whole one")


@contextmanager
def _reading(file: Path, key: str | None = None) -> Iterator[None]:
    """Whatever goes wrong inside becomes a DataError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"no data file {file}") from error
    except _DAMAGE as error:
        which = f"{file}: key '{key}'" if key else str(file)
        raise DataError(f"{which} cannot be read ({one_line(error)}); get the file again") from error


def _hdf5_content(file: Path, root: Any) -> _Content:
    import h5py

    columns, groups = {}, []
    for key in map(str, root):  # h5py has bytes for a name that is damaged
        item = root.get(key)
        if isinstance(item, h5py.Dataset):
            columns[key] = _Column(file, key, item.shape or (), item.dtype, lambda item=item: _hdf5_blocks(item))
        elif isinstance(item, h5py.Group):
            groups += [key, *(f"{key}/{name}" for name in item)]
        else:
            raise ValueError(f"'{key}' cannot be opened")
    notes = {key: str(root.attrs[key]) for key in ("origin", "recipe") if key in root.attrs}
    return _Content(file, True, columns, groups, notes)


def _hdf5_blocks(item: Any) -> Iterator[np.ndarray]:
    for start in range(0, len(item), _BLOCK_ROWS):
        yield item[start : start + _BLOCK_ROWS]


def _npz_content(file: Path, archive: zipfile.ZipFile) -> _Content:
    columns, notes = {}, {}
    for member in archive.namelist():
        key = member.removesuffix(".npy")
        with archive.open(member) as handle:
            shape, is_fortran, dtype = _npy_header(handle)
            if key in ("origin", "recipe") and shape == () and dtype.kind == "U":
                notes[key] = str(np.frombuffer(handle.read(dtype.itemsize), dtype)[0])
                continue
        stream = lambda member=member, is_fortran=is_fortran: _npz_blocks(archive, member, is_fortran)  # noqa: E731
        columns[key] = _Column(file, key, shape, dtype, stream)
    return _Content(file, False, columns, [], notes)


def _npy_header(handle: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(handle)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(handle)
    return np.lib.format.read_array_header_2_0(handle)


def _npz_blocks(archive: zipfile.ZipFile, member: str, is_fortran: bool) -> Iterator[np.ndarray]:
    with archive.open(member) as handle:
        if is_fortran:  # rows do not lie together
            array = np.lib.format.read_array(handle, allow_pickle=False)
            yield from (array[start : start + _BLOCK_ROWS] for start in range(0, len(array), _BLOCK_ROWS))
            return
        (num_rows, *columns), _, dtype = _npy_header(handle)
        row_bytes = dtype.itemsize * int(np.prod(columns))
        for start in range(0, num_rows, _BLOCK_ROWS):
            length = min(_BLOCK_ROWS, num_rows - start)
            data = handle.read(length * row_bytes)
            if len(data) < length * row_bytes:
                raise EOFError(f"it ends after {start + len(data) // row_bytes} of {num_rows} rows")
            yield np.frombuffer(data, dtype).reshape(length, *columns)
        handle.read(1)  # past the last row, where its checksum is compared
