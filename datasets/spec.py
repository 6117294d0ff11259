"""What a task and a data set are, how generated sets are named, and the error that a user of this floor can cause."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from bench.runs.contract import nearest

SuccessRule = Literal["any", "last"]  # an episode is solved if any of its steps is a success; if its last one is
Accepted = Literal["actions", "rewards"]  # what of data may be off the task's scale
Origin = Literal["published", "generated", "user", "none"]  # as released; made by a script; a user's file; no data
ACTION_LIMIT = 1 - 1e-5  # of actions in data: keeps the inverse of a tanh squashing finite


class DataError(Exception):
    """Data or a task name that cannot be used: one line saying what is wrong, where, and what would be right."""


@dataclass(frozen=True)
class TaskSpec:
    """One task: an environment with a fixed goal, and the data set, if any, it is trained on unless told otherwise."""

    name: str  # "cube-double-task2"
    suite: str  # "ogbench": the source it belongs to
    domain: str  # "cube-double": tasks of one domain share their environment and data
    task_id: int  # 1 to 5: which reward of the domain's data
    obs_dim: int
    action_dim: int
    max_episode_steps: int  # the environment truncates after this many steps
    dataset: str | None  # "cube-double-play-v0"; None: there are no data, it is learned from scratch
    success_timings: tuple[str, ...] = ("post",)  # success may be told of the state after the action, or before it
    tells_success: bool = True  # False: no step does, as far as known beforehand, and episodes are scored by return
    success_rule: SuccessRule = "any"  # where episodes end at success both are one; "last" keeps hashes
    reference_returns: tuple[float, float] | None = None  # returns that score 0 and 1; None: none are published
    least_reward: int | None = None  # a step gives whole numbers from here to 0, which is solved; None: any number
    action_scale: float = 1.0  # of an action of 1 in the environment's own units; entropies there differ by its log
    played_in: str | None = None  # another task, whose environment this one is played in; None: its own


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
class FileOptions:
    """How a user wants a file of theirs to be read: read in another way, it is another data set.

    Raises DataError for what there is not to accept.
    """

    accept: tuple[str, ...] = ()  # of `Accepted`: what is taken although it is not on the task's scale
    filter_key: str | None = None  # in robomimic's layout: the demonstrations of this filter key alone; None: all

    def __post_init__(self) -> None:
        known = get_args(Accepted)
        for name in self.accept:
            if name not in known:
                raise DataError(f"unknown --accept {name!r}{nearest(name, known)}; it takes {', '.join(known)}")
        object.__setattr__(self, "accept", tuple(sorted({*self.accept})))
        if self.filter_key is not None and not self.filter_key.strip():
            raise DataError("--filter-key: it needs the name of a filter key")

    @property
    def label(self) -> str:
        """For the data set's name; empty where nothing is asked for."""
        key = [] if self.filter_key is None else ["key", self.filter_key]
        return "-".join([*key, *(["accept", *self.accept] if self.accept else [])])


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
    options: FileOptions = FileOptions()  # of a user's file

    @property
    def made_by(self) -> Recipe:
        """The recipe of a set that is made here."""
        assert self.recipe is not None, f"{self.name} is not made here"
        return self.recipe


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
