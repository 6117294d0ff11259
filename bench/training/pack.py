"""The runs of a pack: their directories, the checkpoints they go on from, and the record of each start."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from bench.protocol.config import ConfigError, RunConfig, config_difference
from bench.runs.checkpoint import Checkpoints, Progress
from bench.runs.claims import Claim, Claims, Superseded, spent_seconds
from bench.runs.writer import SCHEMA_VERSION, StorageError, is_complete, read_json, write_json
from bench.training.evaluate import Preempted
from datasets.transitions import Transitions

POLL_SECONDS = 0.5  # between looks at a run that another process holds


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
    claim: Claim
    checkpoints: Checkpoints
    state: dict[str, Any] | None  # None: from the beginning
    offline: Checkpoints | None = None  # where the state is from, if that is a shared offline phase

    @property
    def progress(self) -> Progress | None:
        return self.state["progress"] if self.state else None


def claim_runs(
    directories: Mapping[RunConfig, Path], claims: Claims, should_stop: Callable[[], bool]
) -> dict[RunConfig, Claim]:
    """The runs that are not complete and that no other process holds.

    Waits for those that one holds, since it may be dying: it may still end them, or show no sign of life for its lease.
    Where it goes on showing them, the run is left to it. Raises Preempted when asked to stop.
    """
    taken: dict[RunConfig, Claim] = {}
    waiting = dict(directories)
    said: set[Path] = set()
    while True:
        for config, directory in list(waiting.items()):
            held = None if is_complete(directory) else claims.take(directory)
            if isinstance(held, Claim) and not is_complete(directory):
                taken[config] = held
            elif isinstance(held, Claim):  # it came to its end before this process had it
                held.release()
            elif held is not None and not claims.lives(directory):
                if directory not in said:
                    said.add(directory)
                    print(f"{directory} is held by {held}: waiting to see whether it goes on", flush=True)
                continue
            elif held is not None:
                print(f"{directory} is left to {held}, which goes on with it", flush=True)
            del waiting[config]
        if not waiting:
            return {config: taken[config] for config in directories if config in taken}
        if should_stop():
            for claim in taken.values():
                claim.release()
            raise Preempted
        time.sleep(POLL_SECONDS)


def still_owned(claim: Claim) -> bool:
    """Whether the run is still this process'; says so on stderr where it is not."""
    try:
        claim.check()
    except Superseded as error:
        print(error, file=sys.stderr, flush=True)
        return False
    return True


def resume_groups(claims: Mapping[RunConfig, Claim], offline: Mapping[RunConfig, Path]) -> list[list[Member]]:
    """Members that can go on together, those that are behind first. Seeds of a pack were saved one after the other, so
    a kill can leave their newest slots apart; the newest progress that all of them hold joins them again, else each
    progress is a group.

    Args:
        offline: folders of finished offline phases, from which runs without a checkpoint go on.
    """
    held: list[tuple[Member, dict[Progress, dict[str, Any]]]] = []
    for config, claim in claims.items():
        member = Member(config, claim.directory, claim, Checkpoints(claim.directory), None)
        states = member.checkpoints.load()
        if not states and config in offline:
            member.offline = Checkpoints(offline[config])
            states = member.offline.load()
        held.append((member, states))
    shared = set.intersection(*(set(states) for _, states in held))
    groups: dict[Progress | None, list[Member]] = {}
    for member, states in held:
        at = max(shared) if shared else max(states, default=None)
        member.state = states[at] if at is not None else None
        groups.setdefault(at, []).append(member)
    return [groups[at] for at in sorted(groups, key=lambda at: at or (-1, -1, -1))]


def record_start(member: Member, transitions: Transitions, start: dict[str, Any]) -> None:
    """Adds `start` to provenance.json, and how long the start before it lasted. Raises ConfigError where the data are
    not those the run began with."""
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
        "offline_phase": None,
        "starts": [],
    }
    if known["dataset"] != dataset:
        raise ConfigError(
            f"{member.directory} was trained on data {known['dataset']['content_hash'][:12]} "
            f"({known['dataset']['origin']}), {transitions.name} now holds {transitions.content_hash[:12]} "
            f"({transitions.origin}); restore the data or move the folder away"
        )
    if member.offline is not None:
        origin = member.offline.directory.parent
        written = read_json(origin / "config.json") or {}
        known["offline_phase"] = {"config_hash": written["config_hash"], "seed": written["seed"]}
    if known["starts"] and member.claim.previous is not None:
        known["starts"][-1].setdefault("seconds", round(spent_seconds(member.claim.previous), 1))
    member.claim.check()
    write_json(path, {**known, "starts": [*known["starts"], start]})


def record_end(claim: Claim) -> None:
    """Adds to provenance.json how long the newest start has lasted."""
    path = claim.directory / "provenance.json"
    known = read_json(path)
    if known and known["starts"]:
        seconds = spent_seconds(replace(claim.owner, beat_at=time.time()))
        known["starts"][-1]["seconds"] = round(seconds, 1)
        claim.check()
        write_json(path, known)
