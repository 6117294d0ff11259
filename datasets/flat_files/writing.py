"""Writes episodes as a flat file under the keys of D4RL's later files, which tells its origin and recipe."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.cache import hdf5_file
from datasets.flat_files.columns import KEYS


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
    meanings = {
        "obs": np.float32,
        "action": np.float32,
        "reward": np.float32,
        "terminated": np.bool_,
        "truncated": np.bool_,
        "next_obs": np.float32,
    }
    return {
        KEYS[meaning][0]: np.array([getattr(step, meaning) for step in steps], dtype)
        for meaning, dtype in meanings.items()
    }


def write(parts: list[Path], file: Path, recipe: dict[str, Any]) -> int:
    """Merges npz files of episodes (keys of D4RL) into one HDF5 file that tells its origin and recipe; its rows.

    Equal parts give equal bytes. Not atomic: hand in a path that nobody reads yet. Raises OSError.
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
