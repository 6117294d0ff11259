"""What OGBench offers, by `datasets.source.Generator`. Imports no simulator before one is needed."""

from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.ogbench.files import origin, read, recipe_of, write_set
from datasets.ogbench.tasks import DOMAINS, PUBLISHED, SUITE, TASK_IDS, TASKS, dataset_of, named_task, unsupported
from datasets.spec import Dataset, Recipe, RemoteFile, TaskSpec, generated_name, parse_generated

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
NEEDS_OPENGL = True
PACKAGES = ("ogbench", "mujoco", "numpy")
FOLDER = "~/.ogbench/data"  # where the ogbench package keeps its downloads
NUM_SHARDS = 100
URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"


task = named_task


def parse(name: str) -> Dataset | None:
    """`cube-double-play-v0`, `cube-quadruple-play-100m-v0` (100 files), or the name of a generated set."""
    name = dataset_of(name)
    if name in PUBLISHED:
        domain, kind = name.removesuffix("-v0").removesuffix("-100m").rsplit("-", 1)
        names = [f"{name}.npz"]
        if "-100m-" in name:  # without the validation twins (`…-val.npz`)
            names = [f"{name}/{name.replace('-100m', '')}-{shard:03}.npz" for shard in range(NUM_SHARDS)]
        substitute = None
        if kind in DOMAINS[domain].kinds:
            substitute = generated_name(domain, Recipe(kind, DOMAINS[domain].episodes, seed=0))
        files = tuple(RemoteFile(file, (f"{URL}/{file}",)) for file in names)
        return Dataset(name, SUITE, domain, files, (FOLDER,), substitute=substitute)
    for domain in DOMAINS:
        if generated := parse_generated(name, [domain], kinds(domain)):
            _, recipe = generated
            if recipe.task_id in (0, *TASK_IDS):
                return Dataset(name, SUITE, domain, (RemoteFile(f"{name}.npz"),), recipe=recipe)
    return None


def make_env(spec: TaskSpec, success_timing: str) -> "gymnasium.Env":
    from datasets.ogbench.env import SingleTask, task_env

    return SingleTask(task_env(spec, success_timing), spec)


def kinds(domain: str) -> dict[str, bool]:
    """Mixed sets hold episodes that pursue the goal of one task."""
    return {kind: kind == "mixed" for kind in DOMAINS[domain].kinds}


def recipe(dataset: Dataset) -> dict[str, Any]:
    from datasets.ogbench.episodes import recipe

    return recipe(dataset)


def make_episode(dataset: Dataset, index: int) -> dict[str, np.ndarray]:
    from datasets.ogbench.episodes import make_episode

    return make_episode(dataset, index)
