"""Writes transitions as Minari data sets. Imports gymnasium: import this module inside a function.

A set holds the rewards of one task. Where gymnasium can make its environment, the set names it, so that Minari's
`recover_environment` works: the one that the rewards follow and, where success is told otherwise in evaluation, the one
for that.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from bench.runs.contract import one_line
from datasets.environments import make_env
from datasets.minari import source as minari
from datasets.minari.metadata import NOTE, canonical_name, check_id, root
from datasets.minari.writing import write_set
from datasets.registry import played_task, require_extra, task
from datasets.spec import DataError, TaskSpec
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

    Raises DataError for an id that is none or in use, an unknown task, a missing package, and a folder that cannot be
    written.
    """
    check_id(dataset_id)
    require_extra(minari)
    spec = task(task_name)
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
    played = played_task(spec)
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
        write_set(target, transitions, env_spec, metadata)
    except OSError as error:
        raise DataError(f"cannot write {target}: {one_line(error)}") from error
    return Exported(target, transitions.num_transitions, canonical_name(dataset_id), env_spec.id if env_spec else None)


def environment_spec(spec: TaskSpec, success_timing: str) -> EnvSpec | None:
    """What gymnasium makes a task's environment from, such that it takes the task's actions and gives its observations
    in order; None where the task's environment is none of gymnasium's or has other spaces there."""
    made = make_env(spec.name, success_timing)
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
