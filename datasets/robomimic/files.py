"""Writes demonstrations in robomimic's HDF5 format, and reads back the notes that it leaves in a file.

`data/demo_0/{states, actions, rewards, dones, obs/…, next_obs/…}`, in float64 and int64 as robomimic's own scripts
write them, with the scene in the attribute `model_file`; `data.attrs["env_args"]`, by which the environment is made;
`mask/{train, valid}`, names of demonstrations. On top of that the attributes of `data` say that it is generated and by
which recipe, and those of a demonstration its `strategy`, its `quality`, and whether it is a `success`.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from datasets.cache import hdf5_file
from datasets.robomimic.tasks import ENV_KWARGS, ENV_NAMES
from datasets.spec import Dataset

VALID_EVERY = 10  # of ten demonstrations one is for validation, as in the published files
LABELS = ("strategy", "quality", "model_file")  # bytes in an episode, attributes of a demonstration in a file
_ROBOSUITE = 1  # robomimic's number for environments of robosuite


def write_set(dataset: Dataset, parts: list[Path], file: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Writes npz files of episodes (see `datasets.robomimic.episodes.make_episode`) as one file; returns its summary.

    Not atomic: hand in a path that nobody reads yet. Equal episodes give equal bytes.
    """
    env_args = {
        "env_name": ENV_NAMES[dataset.domain],
        "env_version": version("robosuite"),
        "type": _ROBOSUITE,
        "env_kwargs": ENV_KWARGS,
    }
    return write(file, map(_loaded, parts), env_args, {"origin": "generated", "recipe": json.dumps(recipe)})


def write(
    file: Path, episodes: Iterable[Mapping[str, np.ndarray]], env_args: Mapping[str, Any], notes: Mapping[str, str]
) -> dict[str, Any]:
    """Writes episodes one by one, `notes` as attributes of the group `data`; returns the summary of all."""
    outcomes = []
    with hdf5_file(file) as content:
        data = content.create_group("data")
        for index, episode in enumerate(episodes):
            demo = data.create_group(f"demo_{index}")
            demo.attrs["num_samples"] = len(episode["actions"])
            demo.attrs["success"] = bool(episode["success"])
            for key in LABELS:
                demo.attrs[key] = episode[key].item().decode()
            for key, values in episode.items():
                if key not in (*LABELS, "success"):
                    demo.create_dataset(key, data=values)
            outcomes.append({key: demo.attrs[key] for key in ("num_samples", "success", "strategy", "quality")})
        data.attrs["env_args"] = json.dumps(env_args, indent=4)
        data.attrs["total"] = sum(int(outcome["num_samples"]) for outcome in outcomes)
        data.attrs.update(notes)
        names = [f"demo_{index}" for index in range(len(outcomes))]
        valid = set(names[VALID_EVERY - 1 :: VALID_EVERY])
        content["mask/train"] = np.array([name for name in names if name not in valid], dtype="S")
        content["mask/valid"] = np.array([name for name in names if name in valid], dtype="S")
    return summary(outcomes)


def summary(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Facts for people: transitions, and shares of successes, of all episodes and of those of a strategy or quality."""
    facts: dict[str, Any] = {
        "transitions": sum(int(outcome["num_samples"]) for outcome in outcomes),
        "success_share": _share(outcomes),
    }
    for label in ("strategy", "quality"):
        groups = defaultdict(list)
        for outcome in outcomes:
            groups[outcome[label]].append(outcome)
        facts[f"success_share_by_{label}"] = {
            name: {"episodes": len(group), "success_share": _share(group)} for name, group in sorted(groups.items())
        }
    return facts


def recipe_of(file: Path) -> object:
    """The recipe that a generated file says it follows; None where it says none or cannot be read."""
    import h5py

    try:
        with h5py.File(file) as content:
            return json.loads(str(content["data"].attrs["recipe"]))
    except (OSError, RuntimeError, KeyError, TypeError, ValueError):
        return None


def _share(outcomes: list[dict[str, Any]]) -> float:
    return round(float(np.mean([outcome["success"] for outcome in outcomes])), 4)


def _loaded(part: Path) -> dict[str, np.ndarray]:
    with np.load(part) as arrays:
        return dict(arrays)
