"""Writes transitions as Minari data sets. Imports gymnasium: import this module inside a function.

A set holds the rewards of one task. Where gymnasium can make its environment, the set names it, so that Minari's
`recover_environment` works: the one that the rewards follow and, where success is told otherwise in evaluation, the one
for that.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

import datasets
from datasets.minari import source as minari_io
from datasets.minari.metadata import MAIN_FILE, NOTE, canonical_name, check_id, root
from datasets.registry import require_extra
from datasets.spec import DataError, TaskSpec, one_line
from datasets.transitions import Transitions


class Exported(NamedTuple):
    """What has been written."""

    folder: Path
    num_transitions: int
    task: str  # as which the set can be trained on: "minari.o2o.lift-v0"
    environment: str | None  # gymnasium's id of the one that Minari recovers; None: gymnasium cannot make it


def export_data(
    task_name: str,
    transitions: Transitions,
    dataset_id: str,
    *,
    replace: bool = False,
    success_timing: str | None = None,
    algorithm: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Exported:
    """Writes `transitions` of a task to Minari's folder as the data set `dataset_id`, whole or not at all.

    Args:
        replace: a set of this id gives way; else it is an error.
        success_timing: what rewards describe (see `datasets.make_env`); None: as in data, "pre" where the task has it.
        algorithm: what acted; None: the name of the data set.
        facts: goes into the note beside the origin, fit for JSON.
    """
    check_id(dataset_id)
    require_extra(minari_io)
    spec = datasets.task(task_name)
    target = root() / dataset_id
    if target.exists() and not replace:
        raise DataError(f"Minari data set '{dataset_id}' exists in {root()}; choose another id or say --replace")
    for inside in target.parents:
        if inside == root():
            break
        if (inside / "data").exists():
            raise DataError(f"'{dataset_id}' lies inside the Minari data set {inside}; choose another id")
    data_timing = success_timing or ("pre" if "pre" in spec.success_timings else spec.success_timings[0])
    env_spec = environment_spec(spec, data_timing)
    played = minari_io.played_task(spec)
    if env_spec is None and played.name == canonical_name(dataset_id):
        raise DataError(f"'{dataset_id}' itself tells the environment of these data; choose another id")
    note = {
        "origin": transitions.origin,
        "task": played.name,
        "domain": played.domain,
        "task_id": played.task_id,
        "dataset": transitions.name,
        "content_hash": transitions.content_hash,
        "success_timing": data_timing,
        "max_episode_steps": spec.max_episode_steps,
        **(facts or {}),
    }
    metadata: dict[str, Any] = {
        "dataset_id": dataset_id,
        "algorithm_name": algorithm or transitions.name,
        "author": {"o2o-bench"},
        "description": _description(spec, transitions, env_spec),
        NOTE: note,
    }
    if env_spec is not None and data_timing != spec.success_timings[0]:
        evaluated = environment_spec(spec, spec.success_timings[0])
        assert evaluated is not None
        metadata["eval_env_spec"] = evaluated.to_json()
    if env_spec is not None and spec.reference_returns is not None:
        metadata["ref_min_score"], metadata["ref_max_score"] = spec.reference_returns
    try:
        _write(target, transitions, env_spec, metadata)
    except OSError as error:
        raise DataError(f"cannot write {target}: {one_line(error)}") from error
    return Exported(target, transitions.num_transitions, canonical_name(dataset_id), env_spec.id if env_spec else None)


def environment_spec(spec: TaskSpec, success_timing: str) -> EnvSpec | None:
    """What gymnasium makes a task's environment from, such that it takes the task's actions and gives its observations
    in order; None where the task's environment is none of gymnasium's or has other spaces there."""
    made = datasets.make_env(spec.name, success_timing)
    inner = made.unwrapped.spec
    made.close()
    if inner is None:
        return None
    # As registered where it is, since an environment may be made by a class of this project.
    registered = gymnasium.registry.get(inner.id, inner)
    if not isinstance(registered.entry_point, str):
        return None
    plain = gymnasium.make(
        registered, disable_env_checker=True, max_episode_steps=spec.max_episode_steps, **inner.kwargs
    )
    obs_space, action_space = plain.observation_space, plain.action_space
    env_spec = plain.spec
    plain.close()
    fits = (
        env_spec is not None
        and isinstance(obs_space, gymnasium.spaces.Box)
        and isinstance(action_space, gymnasium.spaces.Box)
        and obs_space.shape == (spec.obs_dim,)
        and action_space.shape == (spec.action_dim,)
        and bool(np.all(action_space.low == -1) and np.all(action_space.high == 1))
    )
    return env_spec if fits else None


def _description(spec: TaskSpec, transitions: Transitions, env_spec: EnvSpec | None) -> str:
    about = f"{transitions.origin} data set {transitions.name} with the rewards of task {spec.name}"
    if env_spec is None:
        return f"{about}, whose environment gymnasium cannot make: recover_environment does not work"
    return about


def _write(target: Path, transitions: Transitions, env_spec: EnvSpec | None, metadata: dict[str, Any]) -> None:
    """As minari.create_dataset_from_buffers does, but episode by episode and with the finished folder put in place."""
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
