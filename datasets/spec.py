"""What a task, a data set and a source of both are, and the one error that a user of this floor can cause."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import gymnasium

Origin = Literal["published", "generated", "user"]  # as released; made by a script here; a file that a user named
ACTION_LIMIT = 1 - 1e-5  # of actions in data: keeps the inverse of a tanh squashing finite


class DataError(Exception):
    """Data or a task name that cannot be used: one line saying what is wrong, where, and what would be right."""


@dataclass(frozen=True)
class TaskSpec:
    """One task: an environment with a fixed goal, and the data set it is trained on unless told otherwise."""

    name: str  # "cube-double-task2"
    suite: str  # "ogbench": the source it belongs to
    domain: str  # "cube-double": tasks of one domain share their environment and data
    task_id: int  # 1 to 5: which reward of the domain's data
    obs_dim: int
    action_dim: int
    max_episode_steps: int  # the environment truncates after this many steps
    dataset: str  # "cube-double-play-v0"
    success_timings: tuple[str, ...] = ("post",)  # success may be told of the state after the action, or before it
    reference_returns: tuple[float, float] | None = None  # returns that score 0 and 1; None: none are published


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set and where it may come from."""

    name: str  # path below the folder of the data, "lift/mh/low_dim_v15.hdf5"
    urls: tuple[str, ...] = ()  # the official one first, then mirrors
    num_bytes: int | None = None  # where it is known


@dataclass(frozen=True)
class Recipe:
    """What a generated data set is made by."""

    kind: str  # "play", "noisy", "mixed", …
    episodes: int
    seed: int
    task_id: int = 0  # of a set made for one task: that task


@dataclass(frozen=True)
class Dataset:
    """A data set's name, taken apart."""

    name: str
    suite: str  # of the source that reads it
    domain: str  # of the tasks that can train on it; "": any that fits
    files: tuple[RemoteFile, ...]
    folders: tuple[str, ...] = ()  # where users keep published files: "~/.ogbench/data"
    recipe: Recipe | None = None  # of a set made here; a file under a published name may be one as well
    substitute: str | None = None  # the generated set that resembles this published one most


class Block(NamedTuple):
    """Consecutive rows of a data set, in the form of `datasets.transitions`."""

    obs: np.ndarray  # (r, O) float32
    action: np.ndarray  # (r, A) float32 in [-1, 1]; meaningless in a final row
    final: np.ndarray  # (r,) bool, last row of its episode: holds only the final observation
    reward: Mapping[str, np.ndarray]  # task name -> (r,) float32
    terminated: Mapping[str, np.ndarray]  # task name -> (r,) bool


class Rows(NamedTuple):
    """All rows of a data set, block by block."""

    num_rows: int
    blocks: Iterator[Block]


class Reader(Protocol):
    """What knows names of data sets and reads their files. A module each."""

    @property
    def SUITE(self) -> str:
        """`Dataset.suite` of its data sets."""
        ...

    def parse(self, name: str) -> Dataset | None:
        """The data set of a name; None where the name is none of this reader's."""
        ...

    def origin(self, dataset: Dataset, files: list[Path]) -> Origin:
        """Where the data of these files come from, whatever the files have been renamed to."""
        ...

    def read(self, dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
        """The rows of a data set with the rewards of `tasks`. Raises DataError, also later on from the iterator."""
        ...


class Source(Reader, Protocol):
    """One family of tasks and their data. A module each, which imports no simulator before one is needed."""

    @property
    def EXTRA(self) -> str | None:
        """What its environments need beyond the core: a key of `datasets.registry.EXTRAS`."""
        ...

    @property
    def NEEDS_OPENGL(self) -> bool:
        """Whether its environments are drawn with OpenGL; else by their simulator itself."""
        ...

    @property
    def TASKS(self) -> Mapping[str, TaskSpec]:
        """Those that are known without looking at files."""
        ...

    @property
    def PUBLISHED(self) -> tuple[str, ...]:
        """Names of its published data sets."""
        ...

    def task(self, name: str) -> TaskSpec | None:
        """The task of a name, a bare domain's default task included; None where the name is none of this source's."""
        ...

    def make_env(self, spec: TaskSpec, success_timing: str) -> "gymnasium.Env":
        """The environment of a task (see `datasets.make_env`)."""
        ...

    def kinds(self, domain: str) -> Mapping[str, bool]:
        """Kinds of data that can be generated for a domain, and whether a set of the kind is made for one task."""
        ...


class Generator(Source, Protocol):
    """A source that can make data of its own."""

    @property
    def PACKAGES(self) -> tuple[str, ...]:
        """Packages whose versions may change generated data."""
        ...

    def recipe(self, dataset: Dataset) -> dict[str, Any]:
        """The numbers one would vary, fit for JSON; `version` stands for the rest."""
        ...

    def make_episode(self, dataset: Dataset, index: int) -> dict[str, np.ndarray]:
        """One episode of a generated set; depends on recipe, seed and index alone."""
        ...

    def write_set(self, dataset: Dataset, parts: list[Path], file: Path, recipe: dict[str, Any]) -> dict[str, Any]:
        """Merges npz files of episodes into one file of the published format that tells its origin and recipe.

        Returns facts for the manifest: `transitions`, `success_share`.
        """
        ...

    def recipe_of(self, file: Path) -> object:
        """The recipe that a generated file says it follows; None where it says none or cannot be read."""
        ...


def parse_generated(name: str, domains: Iterable[str], kinds: Mapping[str, bool]) -> tuple[str, Recipe] | None:
    """Domain and recipe of a generated set's name, `cube-double-play-generated-1000ep-seed0`, or None.

    `kinds` tells of each kind whether a set is made for one task: `cube-single-task1-mixed-generated-60ep-seed0`.
    """
    match = re.fullmatch(
        r"(?P<domain>.+?)(-task(?P<task_id>[1-9]))?-(?P<kind>[a-z]+)"
        r"-generated-(?P<episodes>[1-9][0-9]*)ep-seed(?P<seed>0|[1-9][0-9]*)",
        name,
    )
    if match is None or match["domain"] not in domains:
        return None
    if kinds.get(match["kind"]) is not bool(match["task_id"]):
        return None
    return match["domain"], Recipe(
        match["kind"], int(match["episodes"]), int(match["seed"]), int(match["task_id"] or 0)
    )


def generated_name(domain: str, recipe: Recipe) -> str:
    """The inverse of `parse_generated`."""
    task = f"-task{recipe.task_id}" if recipe.task_id else ""
    return f"{domain}{task}-{recipe.kind}-generated-{recipe.episodes}ep-seed{recipe.seed}"


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the name closest to `name`, or the empty string where none is close."""
    matches = get_close_matches(name, list(names), n=1)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def one_line(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())
