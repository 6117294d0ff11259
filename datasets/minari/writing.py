"""Writes a Minari data set, whole or not at all. Imports gymnasium: import this module inside a function."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from datasets.minari.metadata import MAIN_FILE, NOTE
from datasets.transitions import Transitions


def write_set(target: Path, transitions: Transitions, env_spec: EnvSpec | None, metadata: dict[str, Any]) -> None:
    """As minari.create_dataset_from_buffers does, but episode by episode and with the finished folder put in place.

    `metadata` goes into metadata.json, its NOTE into main_data.hdf5 as well. Raises OSError.
    """
    import h5py
    from minari import __version__
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces

    namespace = "/".join(metadata["dataset_id"].split("/")[:-1])
    if namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        partial.mkdir()
        storage = MinariStorage.new(
            partial / "data",
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, transitions.obs.shape[1:], np.float32),
            action_space=gymnasium.spaces.Box(-1.0, 1.0, transitions.action.shape[1:], np.float32),
            env_spec=env_spec,
            data_format="hdf5",
        )
        storage.update_metadata({**metadata, "minari_version": __version__})
        storage.update_episodes(_episodes(transitions))
        with h5py.File(partial / "data" / MAIN_FILE, "a") as file:
            file.attrs[NOTE] = json.dumps(metadata[NOTE])  # goes where the file goes
        if target.exists():
            target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        for left_over in (partial, old):
            shutil.rmtree(left_over, ignore_errors=True)


def _episodes(transitions: Transitions) -> Iterator[Any]:
    """An EpisodeBuffer of each episode; one that does not terminate at its end is truncated there."""
    from minari.data_collector import EpisodeBuffer

    start = 0
    for number, final in enumerate(np.flatnonzero(transitions.final)):
        steps = slice(start, final)
        terminated = np.array(transitions.terminated[steps])
        truncated = np.zeros_like(terminated)
        truncated[-1] = not terminated[-1]
        arrays: dict[str, Any] = {  # which Minari takes as well as the lists that it declares
            "observations": np.array(transitions.obs[start : final + 1]),
            "actions": np.array(transitions.action[steps]),
            "rewards": np.array(transitions.reward[steps]),
            "terminations": terminated,
            "truncations": truncated,
        }
        yield EpisodeBuffer(id=number, **arrays)
        start = final + 1
