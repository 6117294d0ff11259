"""The runs of a pack: their directories, the checkpoints they go on from, and the record of each start."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from bench.checkpoint import Checkpoints, Progress
from bench.config import SCHEMA_VERSION, ConfigError, RunConfig, config_difference
from bench.writer import StorageError, read_json, write_json
from datasets.transitions import Transitions


def prepare_directory(config: RunConfig, results: Path) -> Path:
    """The run's directory with its config.json. Raises ConfigError where another config owns it."""
    directory = config.directory(results)
    written = read_json(directory / "config.json")
    if written is None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {directory}: {error.strerror}") from error
        write_json(directory / "config.json", config.to_json())
    elif written.get("config_hash") != config.to_json()["config_hash"]:
        difference = config_difference(config.to_json(), written)
        raise ConfigError(
            f"{directory} was written by another config ({difference}); "
            "choose another --results folder or suite name, or move that folder away"
        )
    return directory


@dataclass
class Member:
    """One run of the pack with the files and state it starts from."""

    config: RunConfig
    directory: Path
    checkpoints: Checkpoints
    state: dict[str, Any] | None  # None: from the beginning

    @property
    def progress(self) -> Progress | None:
        return self.state["progress"] if self.state else None


def resume_groups(configs: list[RunConfig], results: Path) -> list[list[Member]]:
    """Members that can go on together, those that are behind first. Seeds of a pack were saved one after the other, so
    a kill can leave their newest slots apart; the newest progress that all of them hold joins them again, else each
    progress is a group."""
    held: list[tuple[RunConfig, Checkpoints, dict[Progress, dict[str, Any]]]] = []
    for config in configs:
        checkpoints = Checkpoints(config.directory(results))
        held.append((config, checkpoints, checkpoints.load()))
    shared = set.intersection(*(set(states) for _, _, states in held))
    groups: dict[Progress | None, list[Member]] = {}
    for config, checkpoints, states in held:
        at = max(shared) if shared else max(states, default=None)
        state = states[at] if at is not None else None
        groups.setdefault(at, []).append(Member(config, config.directory(results), checkpoints, state))
    return [groups[at] for at in sorted(groups, key=lambda at: at or (-1, -1, -1))]


def record_start(member: Member, transitions: Transitions, start: dict[str, Any]) -> None:
    """Adds `start` to provenance.json. Raises ConfigError where the data are not those the run began with."""
    dataset = {
        "name": transitions.name,
        "origin": transitions.origin,
        "content_hash": transitions.content_hash,
        "num_transitions": transitions.num_transitions,
        "num_episodes": transitions.num_episodes,
    }
    path = member.directory / "provenance.json"
    known = read_json(path) or {
        "schema_version": SCHEMA_VERSION,
        "dataset": dataset,
        "reference_returns": datasets.task(member.config.task).reference_returns,
        "starts": [],
    }
    if known["dataset"] != dataset:
        raise ConfigError(
            f"{member.directory} was trained on data {known['dataset']['content_hash'][:12]} "
            f"({known['dataset']['origin']}), {transitions.name} now holds {transitions.content_hash[:12]} "
            f"({transitions.origin}); restore the data or move the folder away"
        )
    write_json(path, {**known, "starts": [*known["starts"], start]})
