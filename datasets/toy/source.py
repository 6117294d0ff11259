"""What the toy family offers, by `datasets.source.Generator`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.flat_files.reading import origin, read, recipe_of
from datasets.flat_files.writing import write
from datasets.spec import Dataset, RemoteFile, TaskSpec, parse_generated
from datasets.toy.tasks import KINDS, SUITE, TASKS

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

EXTRA = None
NEEDS_OPENGL = False
PACKAGES = ("numpy",)
PUBLISHED = ()


def task(name: str) -> TaskSpec | None:
    return TASKS.get(name)


def unsupported(name: str) -> None:
    """There is nothing else of its kind."""


def parse(name: str) -> Dataset | None:
    """`toy-reach-mixed-generated-200ep-seed0`: all its sets are generated."""
    if generated := parse_generated(name, TASKS, KINDS):
        domain, recipe = generated
        return Dataset(name, SUITE, domain, (RemoteFile(f"{name}.hdf5"),), recipe=recipe)
    return None


def make_env(spec: TaskSpec, success_timing: str) -> "gymnasium.Env":
    from datasets.toy.env import ToyReach

    return ToyReach()


def kinds(domain: str) -> dict[str, bool]:
    return KINDS


def recipe(dataset: Dataset) -> dict[str, Any]:
    from datasets.toy.env import recipe

    return recipe(dataset)


def make_episode(dataset: Dataset, index: int) -> dict[str, np.ndarray]:
    from datasets.toy.env import make_episode

    return make_episode(dataset, index)


def write_set(dataset: Dataset, parts: list[Path], file: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    solved = []
    for part in parts:
        with np.load(part) as episode:
            solved.append(bool(episode["terminals"][-1]))
    return {"transitions": write(parts, file, recipe), "success_share": round(float(np.mean(solved)), 4)}
