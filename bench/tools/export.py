"""`python -m bench data export`: transitions of data sets and of what runs have collected online, as Minari data sets
or flat HDF5 files."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import datasets
from bench.protocol.config import ConfigError, RunConfig
from bench.protocol.plugins import Plugins
from bench.runs.checkpoint import Checkpoints
from bench.runs.contract import CONFIG, one_line, read_json, replacing
from datasets.cache import hdf5_file
from datasets.replay.ring import ONLINE_FIELDS
from datasets.spec import DataError
from datasets.transitions import Transitions, row_form

if TYPE_CHECKING:
    from datasets.export import Exported

_ROWS = 65_536  # at a time, of memory-mapped data


@dataclass(frozen=True)
class ExportOptions:
    """Write a data set, or the replay of a run, as a Minari data set or file."""

    task: str | None = None  # whose data
    dataset: str | None = None  # default: the task's own
    run: Path | None = None  # the online transitions of this run
    minari: str | None = None  # id of the new Minari data set, e.g. cube/single-play-v0
    out: Path | None = None  # a flat HDF5 file in the D4RL layout
    data_dir: Path | None = None  # where published data lie
    replace: bool = False  # overwrite what is there
    plugins: Plugins = Plugins()

    def __post_init__(self) -> None:
        if (self.run is None) == (self.task is None):
            raise ConfigError(
                "name what to export: a task's data (--task T [--dataset D]) or a run's replay (--run DIR)"
            )
        if (self.minari is None) == (self.out is None):
            raise ConfigError("name where to: a Minari data set (--minari ID) or a flat HDF5 file (--out FILE)")


def export_command(options: ExportOptions) -> int:
    print(export(options))
    return 0


def export(options: ExportOptions) -> str:
    """Writes what was asked for. Returns what has been done, in lines for the user."""
    if options.minari is not None:
        exported = export_minari(options, options.minari)
        environment = f"its environment is {exported.environment}"
        if exported.environment is None:
            environment = "gymnasium has no environment for it, so Minari's recover_environment will not work"
        return (
            f"wrote {exported.num_transitions:,} transitions to {exported.folder}; {environment}\n"
            f'use it: minari.load_dataset("{options.minari}"), or python -m bench run … --task minari:{options.minari}'
        )
    if options.run is not None:
        config, transitions = collected(options.run)
        task = config.task
    else:
        task = options.task or ""
        transitions = datasets.load(task, options.dataset, options.data_dir)
    out = options.out or Path()
    write_flat(task, transitions, out, replace=options.replace)
    return f"wrote {transitions.num_transitions:,} transitions to {out}\nuse it: python -m bench run … --data {out}"


def export_minari(options: ExportOptions, name: str) -> "Exported":
    """Writes a task's data or a run's replay as the Minari data set `name`."""
    if options.run is not None:
        return export_run(options.run, name, replace=options.replace)
    from datasets.export import export_data

    task = options.task or ""
    transitions = datasets.load(task, options.dataset, options.data_dir)
    return export_data(task, transitions, name, replace=options.replace)


def write_flat(task_name: str, transitions: Transitions, out: Path, *, replace: bool = False) -> None:
    """Writes an HDF5 file in D4RL's layout, a row per transition; `timeouts` end the episodes that do not terminate.

    The file tells the task whose rewards it holds, and is refused for one with others. `episode_id` tells episodes
    apart: D4RL's own readers take each of `terminals` for the end of one, which those of OGBench's data are not.
    """
    if out.suffix not in (".hdf5", ".h5"):
        raise ConfigError(f"{out} must be named as an HDF5 file: {out.stem or 'data'}.hdf5")
    if out.exists() and not replace:
        raise ConfigError(f"{out} is there already; name another file or say --replace")
    recipe = {
        "task": datasets.task(task_name).name,
        "dataset": transitions.name,
        "content_hash": transitions.content_hash,
    }
    count = transitions.num_transitions
    obs_shape, action_shape = (count, transitions.obs.shape[1]), (count, transitions.action.shape[1])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial, hdf5_file(partial) as file:
            file.attrs["origin"] = transitions.origin
            file.attrs["recipe"] = json.dumps(recipe)
            arrays = {
                "observations": file.create_dataset("observations", obs_shape, np.float32),
                "next_observations": file.create_dataset("next_observations", obs_shape, np.float32),
                "actions": file.create_dataset("actions", action_shape, np.float32),
                "rewards": file.create_dataset("rewards", (count,), np.float32),
                "terminals": file.create_dataset("terminals", (count,), bool),
                "timeouts": file.create_dataset("timeouts", (count,), bool),
                "episode_id": file.create_dataset("episode_id", (count,), np.int64),
            }
            start = 0
            for first in range(0, len(transitions.final) - 1, _ROWS):
                rows = np.arange(first, min(first + _ROWS, len(transitions.final) - 1))
                rows = rows[~transitions.final[rows]]
                stop = start + len(rows)
                terminated = transitions.terminated[rows]
                for key, values in {
                    "observations": transitions.obs[rows],
                    "next_observations": transitions.obs[rows + 1],
                    "actions": transitions.action[rows],
                    "rewards": transitions.reward[rows],
                    "terminals": terminated,
                    "timeouts": transitions.final[rows + 1] & ~terminated,
                    "episode_id": np.searchsorted(transitions.episode_ends, np.arange(start, stop), side="right"),
                }.items():
                    arrays[key][start:stop] = values
                start = stop
    except OSError as error:
        raise DataError(f"cannot write {out}: {one_line(error)}") from error


def export_run(directory: Path, dataset_id: str, *, replace: bool = False) -> "Exported":
    """Writes the transitions that a run has collected online as a Minari data set.

    Raises ConfigError where `directory` holds no run with online transitions.
    """
    from datasets.export import export_data

    config, transitions = collected(directory)
    return export_data(
        config.task,
        transitions,
        dataset_id,
        replace=replace,
        success_timing=config.success_timing,
        algorithm=config.agent,
        facts={
            "run": {
                "suite": config.suite,
                "agent": config.agent,
                "seed": config.seed,
                "config_hash": config.to_json()["config_hash"],
            }
        },
    )


def collected(directory: Path) -> tuple[RunConfig, Transitions]:
    """A run's config and all transitions that its newest checkpoint has from online training, oldest first.

    The episode under way when the checkpoint was made ends there, as if truncated. Raises ConfigError as `export_run`.
    """
    written = read_json(directory / CONFIG)
    if written is None:
        raise ConfigError(f"{directory} is no run: it has no config.json; name a folder like results/…/seed_000")
    config = RunConfig.from_json(written)
    task = datasets.task(config.task)
    checkpoints = Checkpoints(directory)
    states = checkpoints.load()
    widths = {"obs": task.obs_dim, "action": task.action_dim, "next_obs": task.obs_dim}
    columns = [widths.get(field, 1) for field in ONLINE_FIELDS]
    newest = states[max(states)] if states else None
    if config.rollout_steps is not None:
        raise ConfigError(f"{directory}: {config.agent} is on-policy and keeps no replay: there is nothing to export")
    if newest is None or not newest.replay:
        raise ConfigError(f"{directory} has collected no transitions online: there is nothing to export")
    packed = checkpoints.restore_replay(newest, sum(columns)).numpy()
    parts = np.split(packed, np.cumsum(columns)[:-1], axis=1)
    fields = dict(zip(ONLINE_FIELDS, parts, strict=True))  # each (N, …)
    ends = fields["episode_end"][:, 0] > 0
    ends[-1] = True

    rows = row_form(
        fields["obs"],
        fields["action"],
        fields["reward"][:, 0],
        fields["terminated"][:, 0] > 0,
        next_obs=fields["next_obs"],
        ends=ends,
    )
    obs, action, final, reward, terminated = rows
    name = "-".join([config.suite, config.task, config.label, f"seed{config.seed}", "online"])
    digest = hashlib.sha256(packed.tobytes()).hexdigest()
    return config, Transitions(obs, action, reward, terminated, final, name, "generated", digest)
