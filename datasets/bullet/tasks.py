"""d4rl-pybullet (github.com/takuseno/d4rl-pybullet): twelve data sets of four robots that walk. Imports no simulator.

Tasks are named by the data they start from: `hopper-bullet-medium` trains on `hopper-bullet-medium-v0` and goes on in
pybullet_envs_gymnasium's HopperBulletEnv-v0 (the data's own package needs a gym that no longer installs). Success has
no meaning here, episodes are scored by their returns. There are no reference returns: neither d4rl-pybullet nor d3rlpy
states any, and the data's authors had no expert (issue 2 of d4rl-pybullet).
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.download.checksums import to_replace
from datasets.spec import (
    DataError,
    Dataset,
    Origin,
    Recipe,
    RemoteFile,
    Rows,
    TaskSpec,
    generated_name,
    parse_generated,
)

if TYPE_CHECKING:
    import gymnasium

SUITE = "bullet"
EXTRA = "bullet"
NEEDS_OPENGL = False
PACKAGES = ("pybullet", "pybullet_envs_gymnasium", "gymnasium", "numpy")
KINDS = {"random": False}  # and whether a set is made for one task
MAX_EPISODE_STEPS = 1000
DIMS = {  # of an observation and of an action
    "hopper-bullet": (15, 3),
    "halfcheetah-bullet": (26, 6),
    "ant-bullet": (28, 8),
    "walker2d-bullet": (22, 6),
}
QUALITIES = ("medium", "mixed", "random")  # of a half-trained policy; of its training so far; of an untrained one
_URLS = {  # d4rl_pybullet/__init__.py; no upstream tells sizes or checksums
    "hopper-bullet-medium-v0": "w22kgzldn6eng7j",
    "hopper-bullet-mixed-v0": "xv3p0h7dzgxt8xb",
    "hopper-bullet-random-v0": "bino8ojd7iq4p4d",
    "halfcheetah-bullet-medium-v0": "v4xgssp1w968a9l",
    "halfcheetah-bullet-mixed-v0": "scj1rqun963aw90",
    "halfcheetah-bullet-random-v0": "jnvpb1hp60zt2ak",
    "ant-bullet-medium-v0": "6n79kwd94xthr1t",
    "ant-bullet-mixed-v0": "pmy3dzab35g4whk",
    "ant-bullet-random-v0": "2xpmh4wk2m7i8xh",
    "walker2d-bullet-medium-v0": "v0f2kz48b1hw6or",
    "walker2d-bullet-mixed-v0": "i4u2ii0d85iblou",
    "walker2d-bullet-random-v0": "1gwcfl2nmx6878m",
}
PUBLISHED = tuple(_URLS)
# Episodes of random actions that resemble a published random set: half a million steps of the cheetah, which never
# falls, and as many falls of the others.
_SUBSTITUTE_EPISODES = 500

TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name=f"{domain}-{quality}",
            suite=SUITE,
            domain=domain,
            task_id=1,  # one reward
            obs_dim=obs_dim,
            action_dim=action_dim,
            max_episode_steps=MAX_EPISODE_STEPS,
            dataset=f"{domain}-{quality}-v0",
        )
        for domain, (obs_dim, action_dim) in DIMS.items()
        for quality in QUALITIES
    )
}


def task(name: str) -> TaskSpec | None:
    return TASKS.get(f"{name}-{QUALITIES[0]}" if name in DIMS else name)


def parse(name: str) -> Dataset | None:
    """`hopper-bullet-medium-v0`, or the name of a generated set."""
    if name in PUBLISHED:
        domain, quality = name.removesuffix("-v0").rsplit("-", 1)
        substitute = generated_name(domain, Recipe(quality, _SUBSTITUTE_EPISODES, seed=0)) if quality in KINDS else None
        file = RemoteFile(f"{name}.hdf5", (f"https://www.dropbox.com/s/{_URLS[name]}/{name}.hdf5?dl=1",))
        folder = os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets"  # as D4RL's packages do
        return Dataset(name, SUITE, domain, (file,), (folder,), substitute=substitute)
    if generated := parse_generated(name, DIMS, KINDS):
        domain, recipe = generated
        return Dataset(name, SUITE, domain, (RemoteFile(f"{name}.hdf5"),), recipe=recipe)
    return None


def origin(dataset: Dataset, files: list[Path]) -> Origin:
    from datasets.user_files.flat_files import origin

    return origin(dataset, files)


def read(dataset: Dataset, files: list[Path], tasks: list[TaskSpec]) -> Rows:
    """The rows of a published or generated set. Raises DataError where a file under a published name is another's."""
    from datasets.user_files import flat_files

    rows = flat_files.read(dataset, files, tasks)
    if flat_files.origin(dataset, files) == "published" and not flat_files.is_told_on_arrival(files[0]):
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
    from datasets.user_files.flat_files import write

    returns = []
    for part in parts:
        with np.load(part) as episode:
            returns.append(float(episode["rewards"].sum(dtype=np.float64)))
    return {"transitions": write(parts, file, recipe), "mean_return": round(float(np.mean(returns)), 4)}


def recipe_of(file: Path) -> object:
    from datasets.user_files.flat_files import recipe_of

    return recipe_of(file)
