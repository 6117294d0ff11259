"""What metadata.json of a Minari data set says: its spaces, environment, scores and origin. Imports no simulator."""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from bench.runs.contract import one_line
from datasets.spec import DataError, Origin
from datasets.unreadable import why_unreadable

FILE = "metadata.json"
MAIN_FILE = "main_data.hdf5"
NOTE = "o2o_bench"  # in metadata.json, and an attribute of main_data.hdf5: what a set exported from here is
HUB_NAMESPACES = ("D4RL", "mujoco")  # Farama's, with actions in a Box

_ID = re.compile(r"([-_\w]+/)*[-_\w]+-v\d+")


def root() -> Path:
    """Where Minari keeps data sets: `$MINARI_DATASETS_PATH` or `~/.minari/datasets`."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()


def dataset_id(name: str) -> str | None:
    """`D4RL/door/human-v2` of `minari:D4RL/door/human-v2`, `minari.D4RL.door.human-v2` or, in a namespace of Farama's,
    itself; None for other names.

    Raises DataError for what is no id of a data set; Minari's have no dots, so that they can stand for slashes.
    """
    if name.startswith("minari:"):
        set_id = name.removeprefix("minari:")
    elif name.startswith("minari."):
        set_id = name.removeprefix("minari.").replace(".", "/")
    elif name.split("/")[0] in HUB_NAMESPACES and "/" in name:
        set_id = name
    else:
        return None
    check_id(set_id)
    return set_id


def check_id(set_id: str) -> None:
    """Raises DataError unless `set_id` is an id as Minari forms them."""
    if not _ID.fullmatch(set_id):
        raise DataError(f"'{set_id}' is no Minari data set; ids are like D4RL/door/human-v2 and end in a version")


def canonical_name(set_id: str) -> str:
    """The inverse of `dataset_id` without slash or colon, since it becomes a folder."""
    return f"minari.{set_id.replace('/', '.')}"


# Spaces, as Minari's JSON tells them: {"type": "Box", "dtype", "shape", "low", "high"}, {"type": "Dict", "subspaces"}.

Space = Mapping[str, Any]


def flat_dim(space: Space, where: str = "the observation space") -> int:
    """Length of a flattened observation. Raises DataError, which begins with `where`, for a kind that has none here."""
    return sum(_leaf_dim(leaf, f"{where}{path}") for path, leaf in _leaves(space))


def flatten(space: Space, values: Any, count: int) -> np.ndarray:
    """Observations, nested as the space is, as (count, O) float32 in the order of `gymnasium.spaces.flatten`.

    A leaf holds `count` entries one after the other; of a single observation the axis may be missing. Raises
    ValueError for values that are not of the space.
    """
    return np.concatenate([_flat_leaf(leaf, _entry(values, path), count, path) for path, leaf in _leaves(space)], 1)


def _leaves(space: Space, path: str = "") -> list[tuple[str, Space]]:
    """Paths like "/desired_goal" of the leaves. A gymnasium Dict that is made of a plain one sorts its keys."""
    if space["type"] == "Dict":
        inside = [(key, space["subspaces"][key]) for key in sorted(space["subspaces"])]
    elif space["type"] == "Tuple":
        inside = [(str(index), part) for index, part in enumerate(space["subspaces"])]
    else:
        return [(path, space)]
    return [leaf for key, part in inside for leaf in _leaves(part, f"{path}/{key}")]


def _entry(values: Any, path: str) -> Any:
    for key in path.split("/")[1:]:
        try:
            values = values[int(key)] if isinstance(values, (tuple, list)) else values[key]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"there is no {path}") from error
    return values


def _leaf_dim(space: Space, where: str) -> int:
    kind = space["type"]
    if kind == "Discrete":
        return int(space["n"])
    if kind == "MultiBinary":
        return int(np.prod(space["n"]))
    if kind == "Box":
        if space["dtype"] == "uint8" and len(space["shape"]) > 1:
            raise DataError(f"{where} holds images {tuple(space['shape'])}; observations must be vectors")
        return math.prod(space["shape"])
    raise DataError(f"{where} is a {kind}; it must be made of Box, Discrete and MultiBinary")


def _flat_leaf(space: Space, values: Any, count: int, path: str) -> np.ndarray:
    array = np.asarray(values)
    width = 1 if space["type"] == "Discrete" else _leaf_dim(space, path)
    if array.dtype.kind not in "biuf" or array.size != count * width:
        raise ValueError(f"{path or 'the array'} is {array.dtype} {array.shape}, expected {count} x {width} numbers")
    if space["type"] != "Discrete":
        return array.reshape(count, width).astype(np.float32)
    return (array.reshape(count, 1) == np.arange(space["n"]) + space.get("start", 0)).astype(np.float32)


@dataclass(frozen=True)
class ActionBox:
    """A Box of actions with finite bounds, and its linear map to [-1, 1]."""

    low: np.ndarray  # (A,) float64
    high: np.ndarray  # (A,) float64
    shape: tuple[int, ...]  # of one action in the environment

    @property
    def dim(self) -> int:
        """A."""
        return len(self.low)

    def scaled(self, action: np.ndarray) -> np.ndarray:
        """Actions (n, A), those within the bounds in [-1, 1]."""
        return (action - self._centre) / self._half_range  # exact where the bounds are -1 and 1

    def unscaled(self, unit: np.ndarray) -> np.ndarray:
        """The environment's action, of its shape, float64, of one (A,) in [-1, 1]; clipped to the bounds."""
        return (self._centre + self._half_range * unit).clip(self.low, self.high).reshape(self.shape)

    @property
    def _centre(self) -> np.ndarray:
        return (self.low + self.high) / 2

    @property
    def _half_range(self) -> np.ndarray:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Metadata:
    """A data set's metadata.json; whatever is wrong in it becomes a DataError that names it."""

    folder: Path  # holds the file and the data
    fields: Mapping[str, Any]

    @property
    def where(self) -> str:
        return str(self.folder / FILE)

    @property
    def data_format(self) -> str:
        """ "hdf5", "arrow" or "parquet"."""
        return str(self.fields.get("data_format", "hdf5"))

    @property
    def obs_space(self) -> Space:
        return self._space("observation_space")

    @property
    def obs_dim(self) -> int:
        return flat_dim(self.obs_space, f"{self.where}: the observation space")

    @property
    def action_box(self) -> ActionBox:
        """Raises DataError for actions that are not in a Box with finite bounds."""
        space = self._space("action_space")
        kind = space["type"]
        if kind != "Box" or not str(space["dtype"]).startswith("float"):
            what = f"of kind {kind}" if kind != "Box" else f"a Box of {space['dtype']}"
            raise DataError(f"{self.where}: the action space is {what}; agents here act in a Box of floats")
        low, high = (np.asarray(space[key], np.float64).reshape(-1) for key in ("low", "high"))
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise DataError(
                f"{self.where}: the action space is a Box with bounds from {low.min():g} to {high.max():g}; they must "
                "be finite, each lower one below the upper one"
            )
        return ActionBox(low, high, tuple(space["shape"]))

    @property
    def data_env(self) -> Mapping[str, Any] | None:
        """The environment that the data were collected in, as gymnasium's EnvSpec tells it."""
        return self._json("env_spec")

    @property
    def played_env(self) -> Mapping[str, Any] | None:
        """The environment for evaluation, where there is one of its own, else that of the data."""
        return self._json("eval_env_spec") or self.data_env

    @property
    def domain(self) -> str:
        """Data sets of equal domain come from the same environment and have the same actions."""
        env = self.data_env
        if env is None:
            return str(self.note.get("task", ""))
        decides = json.dumps([env.get("kwargs"), self._space("action_space")], sort_keys=True)
        return f"{env['id'].replace('/', '.')}-{hashlib.sha256(decides.encode()).hexdigest()[:6]}"

    @property
    def reference_returns(self) -> tuple[float, float] | None:
        low, high = (self.fields.get(f"ref_{bound}_score") for bound in ("min", "max"))
        return (float(low), float(high)) if low is not None and high is not None and low != high else None

    @property
    def note(self) -> Mapping[str, Any]:
        """What the export from here wrote: `origin`, `task`, …; empty in other sets."""
        return checked_note(self.fields.get(NOTE, {}), self.where)

    @property
    def origin(self) -> Origin:
        """What the export said, else "published" for sets of Farama's hub, else "user"."""
        if "origin" in self.note:
            return self.note["origin"]
        first, *rest = str(self.fields.get("dataset_id", "")).split("/")
        # The downloader leaves a trace of every file that it has fetched into a folder.
        trace = root().joinpath(first, ".cache", "huggingface", "download", *rest, "data", f"{FILE}.metadata")
        return "published" if rest and (first in HUB_NAMESPACES or trace.exists()) else "user"

    def _space(self, key: str) -> Space:
        space = self._json(key)
        if space is not None:
            return space
        try:  # older sets leave it to their environment, which Minari makes to see
            from minari import MinariDataset
            from minari.serialization import serialize_space

            return json.loads(str(serialize_space(getattr(MinariDataset(self.folder), key))))
        except Exception as error:  # of making an environment
            raise DataError(
                f"{self.where}: key '{key}' is missing and its environment cannot be made ({one_line(error)}); "
                "get a newer version of the set"
            ) from error

    def _json(self, key: str) -> Mapping[str, Any] | None:
        text = self.fields.get(key)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.where}: key '{key}' is not JSON ({one_line(error)})") from error
        if not isinstance(value, dict):
            raise DataError(f"{self.where}: key '{key}' is {value!r}, expected an object")
        return value


def checked_note(note: Any, where: str) -> Mapping[str, Any]:
    """`note` itself. Raises DataError, which begins with `where`, for one that no export from here has written."""
    if not isinstance(note, Mapping) or note.get("origin", "user") not in get_args(Origin):
        raise DataError(f"{where}: '{NOTE}' is {note!r}; its origin must be one of {get_args(Origin)}")
    return note


def read_metadata(folder: Path) -> Metadata | None:
    """The metadata of the data set whose files are in `folder`; None where no such set is there. Raises DataError for a
    file that cannot be read."""
    try:
        fields = json.loads((folder / FILE).read_text(encoding="utf-8-sig"))  # Windows' editors add a mark
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(why_unreadable(folder / FILE, error, "get the data set again")) from error
    return Metadata(folder, fields) if isinstance(fields, dict) and "dataset_id" in fields else None
