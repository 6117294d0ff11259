"""What d4rl-pybullet offers, by `datasets.source.Generator`. Imports no simulator before one is needed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.bullet.tasks import DIMS, PUBLISHED, SUITE, TASKS, URLS, named_task, unsupported
from datasets.download.checksums import to_replace
from datasets.flat_files import reading
from datasets.flat_files.reading import origin, recipe_of
from datasets.flat_files.writing import write
from datasets.source import Rows
from datasets.spec import DataError, Dataset, Recipe, RemoteFile, TaskSpec, generated_name, parse_generated

if TYPE_CHECKING:
    import gymnasium

__all__ = [
    "EXTRA",
    "NEEDS_OPENGL",
    "PACKAGES",
    "PUBLISHED",
    "SUITE",
    "TASKS",
    "kinds",
    "make_env",
    "make_episode",
    "origin",
    "parse",
    "read",
    "recipe",
    "recipe_of",
    "task",
    "unsupported",
    "write_set",
]

EXTRA = "bullet"
NEEDS_OPENGL = False
PACKAGES = ("pybullet", "pybullet_envs_gymnasium", "gymnasium", "numpy")
KINDS = {"random": False}  # and whether a set is made for one task
# Episodes of random actions that resemble a published random set: half a million steps of the cheetah, which never
# falls, and as many falls of the others.
_SUBSTITUTE_EPISODES = 500


task = named_task


def parse(name: str) -> Dataset | None:
    """`hopper-bullet-medium-v0`, or the name of a generated set."""
    if name in PUBLISHED:
        domain, quality = name.removesuffix("-v0").rsplit("-", 1)
        substitute = generated_name(domain, Recipe(quality, _SUBSTITUTE_EPISODES, seed=0)) if quality in KINDS else None
        file = RemoteFile(f"{name}.hdf5", (f"https://www.dropbox.com/s/{URLS[name]}/{name}.hdf5?dl=1",))
        folder = os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets"  # as D4RL's packages do
        return Dataset(name, SUITE, domain, (file,), (folder,), substitute=substitute)
    if generated := parse_generated(name, DIMS, KINDS):
        domain, recipe = generated
        return Dataset(name, SUITE, domain, (RemoteFile(f"{name}.hdf5"),), recipe=recipe)
    return None


def read(dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
    """The rows of a published or generated set. Raises DataError where a file under a published name is another's."""
    is_published = origin(dataset, files) == "published"
    rows = reading.read(dataset, files, tasks, on_arrival=is_published)
    if is_published and not reading.is_told_on_arrival(files[0]):
        raise DataError(
            f"{files[0]} is not d4rl-pybullet's {dataset.name}, whose episodes begin with a reward of 0 and end with "
            f"an action of zeros; {to_replace(dataset.name, dataset.files[0].name, files[0])}; data of another making "
            "go by --data FILE"
        )
    return rows


def make_env(spec: TaskSpec, success_timing: str) -> "gymnasium.Env":
    from datasets.bullet.env import BulletTask

    return BulletTask(spec.domain)


def kinds(domain: str) -> dict[str, bool]:
    return KINDS


def recipe(dataset: Dataset) -> dict[str, Any]:
    from datasets.bullet.env import recipe

    return recipe(dataset)


def make_episode(dataset: Dataset, index: int) -> dict[str, np.ndarray]:
    from datasets.bullet.env import make_episode

    return make_episode(dataset, index)


def write_set(dataset: Dataset, parts: list[Path], file: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    returns = []
    for part in parts:
        with np.load(part) as episode:
            returns.append(float(episode["rewards"].sum(dtype=np.float64)))
    return {"transitions": write(parts, file, recipe), "mean_return": round(float(np.mean(returns)), 4)}
