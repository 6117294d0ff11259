"""What robomimic offers, by `datasets.source.Generator`. Imports no simulator before one is needed."""

from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.robomimic.demonstrations import origin, read
from datasets.robomimic.files import recipe_of, write_set
from datasets.robomimic.tasks import (
    ENV_NAMES,
    PUBLISHED,
    PUBLISHED_DEMONSTRATIONS,
    SUITE,
    TASKS,
    dataset_of,
    named_task,
    unsupported,
)
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

EXTRA = "robomimic"
NEEDS_OPENGL = True
PACKAGES = ("robosuite", "mujoco", "numpy")
KINDS = {"expert": False, "mixed": False}  # and whether a set is made for one task
FOLDER = "~/.robomimic"  # where Q-chunking and SAC Flow look for the files
URLS = (  # the official address and an older one that the documentation shows; neither tells sizes or checksums
    "https://huggingface.co/datasets/robomimic/robomimic_datasets/resolve/main/v1.5",
    "https://huggingface.co/datasets/amandlek/robomimic/resolve/main/v1.5",
)
_SUBSTITUTES = {"mh": "mixed", "ph": "expert"}  # of as many episodes as there are demonstrations


task = named_task


def parse(name: str) -> Dataset | None:
    """`lift-mh-v15`, or the name of a generated set."""
    name = dataset_of(name)
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


def make_env(spec: TaskSpec, success_timing: str) -> "gymnasium.Env":
    from datasets.robomimic.env import RobomimicTask

    return RobomimicTask(spec)


def kinds(domain: str) -> dict[str, bool]:
    return KINDS


def recipe(dataset: Dataset) -> dict[str, Any]:
    from datasets.robomimic.episodes import recipe

    return recipe(dataset)


def make_episode(dataset: Dataset, index: int) -> dict[str, np.ndarray]:
    from datasets.robomimic.episodes import make_episode

    return make_episode(dataset, index)
