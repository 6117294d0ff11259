"""The runs of a pack: their folders, whose they are, and the checkpoints they go on from."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.protocol.config import RunConfig, config_difference
from bench.protocol.extension import can_grow
from bench.runs.checkpoint import BEFORE_ALL, Checkpoints
from bench.runs.claims import Claim, Claims, Takeover
from bench.runs.contract import (
    CONFIG,
    PROVENANCE,
    SCHEMA_VERSION,
    STATUS,
    ConfigError,
    error_line,
    is_complete,
    make_folder,
    read_json,
    utc,
    write_json,
)
from bench.runs.resumption import Computed, computed_by, engines_to_keep
from bench.runs.state import RunState, TrainingPoint
from bench.training.engine import pick_mode
from bench.training.execution import Execution, Mode, Preemption

POLL_SECONDS = 0.5  # between looks at a run that another process holds


def prepare_directory(config: RunConfig, results: Path) -> Path:
    """The run's directory with its config.json. Raises ConfigError where another config owns it."""
    directory = config.directory(results)
    written = read_json(directory / CONFIG)
    if written is None:
        make_folder(directory)
        write_json(directory / CONFIG, config.to_json())
    elif written.get("config_hash") != config.to_json()["config_hash"]:
        difference = config_difference(config.to_json(), written)
        raise ConfigError(
            f"{directory} was written by another config ({difference}); "
            f"choose another --results folder or suite name, or move that folder away{_way_on(config, directory)}"
        )
    return directory


def _way_on(config: RunConfig, directory: Path) -> str:
    """How to go on with the folder's run, where `config` has but a larger budget."""
    try:
        written = RunConfig.from_json(read_json(directory / CONFIG) or {})
    except ConfigError:  # of other code, or edited
        return ""
    if not can_grow(config, written):
        return ""
    return f"; to go on with it to a larger budget: {'' if is_complete(directory) else 'finish it, then '}--extend"


@dataclass
class PackedRun:
    """One run of the pack with the files and state it starts from."""

    config: RunConfig
    directory: Path
    claim: Claim
    checkpoints: Checkpoints
    state: RunState | None  # None: from the beginning
    offline: Checkpoints | None = None  # where the state is from, if that is a shared offline phase
    computed: Computed | None = None  # by what the state was, as far as known

    @property
    def point(self) -> TrainingPoint | None:
        return self.state.point if self.state else None


def claim_runs(
    directories: Mapping[RunConfig, Path], claims: Claims, should_stop: Callable[[], bool]
) -> dict[RunConfig, Claim]:
    """The runs that are not complete and that no other process holds.

    Waits for those that one holds, since it may be dying: it may still end them, or show no sign of life for its lease.
    Where it goes on showing them, the run is left to it. Raises Preemption when asked to stop.
    """
    taken: dict[RunConfig, Claim] = {}
    waiting = dict(directories)
    announced: set[Path] = set()
    while True:
        for config, directory in list(waiting.items()):
            held = None if is_complete(directory) else claims.take(directory)
            if isinstance(held, Claim) and not is_complete(directory):
                taken[config] = held
            elif isinstance(held, Claim):  # it came to its end before this process had it
                held.release()
            elif held is not None and not claims.lives(directory):
                if directory not in announced:
                    announced.add(directory)
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
            raise Preemption
        time.sleep(POLL_SECONDS)


def still_owned(claim: Claim) -> bool:
    """Whether the run is still this process'; says so on stderr where it is not."""
    try:
        claim.check()
    except Takeover as error:
        print(error, file=sys.stderr, flush=True)
        return False
    return True


def engines_of_pack(
    computed: Mapping[Path, Computed], device: torch.device, model: str, asked: Mode, execution: Execution
) -> dict[str, Mode]:
    """How a pack must go on executing updates and acting, by part; what is not there may be decided anew.

    Args:
        computed: by what its runs were computed so far, by their folders.
        model: of the device at hand (`bench.runs.provenance.model_of`).
        asked: the engine that is to be used on it.

    Raises ConfigError where a run began on another device or with another engine, unless that was accepted.
    """
    kept: dict[str, Mode] = {}
    accepted = execution.accept_change
    for directory, before in computed.items():
        engines = engines_to_keep(directory, before, model, asked, execution.engine == "auto", accepted)
        for part, engine in engines.items():
            if kept.setdefault(part, pick_mode(engine, device, 0)) != engine and "engine" not in accepted:
                raise ConfigError(
                    f"{directory} was trained with engine {engine} so far, other runs of its pack with "
                    f"{kept[part]}: with --pack 1 each goes on as it began, with --accept-change engine all go on alike"
                )
    return kept


def note_refusal(runs: Sequence[PackedRun], error: ConfigError) -> None:
    """Says in the status of runs why they do not go on; nothing else of them changes."""
    for run in runs:
        status = read_json(run.directory / STATUS) or {"schema_version": SCHEMA_VERSION}
        run.claim.check()
        failed = {"state": "failed", "error": error_line(error), "updated_at": utc()}
        write_json(run.directory / STATUS, {**status, **failed})


def resume_groups(claims: Mapping[RunConfig, Claim], offline: Mapping[RunConfig, Path]) -> list[list[PackedRun]]:
    """Runs that can go on together, those that are behind first. Seeds of a pack were saved one after the other, so
    a kill can leave their newest slots apart; the newest point that all of them hold joins them again, else each
    point is a group.

    Args:
        offline: folders of finished offline phases, from which runs without a checkpoint go on.
    """
    saved: list[tuple[PackedRun, dict[TrainingPoint, RunState]]] = []
    for config, claim in claims.items():
        run = PackedRun(config, claim.directory, claim, Checkpoints(claim.directory), None)
        states = run.checkpoints.load()
        if not states and config in offline:
            run.offline = Checkpoints(offline[config])
            states = run.offline.load()
        saved.append((run, states))
    shared = set.intersection(*(set(states) for _, states in saved))
    groups: dict[TrainingPoint | None, list[PackedRun]] = {}
    for run, states in saved:
        at = max(shared) if shared else max(states, default=None)
        run.state = states[at] if at is not None else None
        if run.state is not None:
            source = run.offline.directory.parent if run.offline else run.directory
            run.computed = computed_by(read_json(source / PROVENANCE))
        groups.setdefault(at, []).append(run)
    return [groups[at] for at in sorted(groups, key=lambda at: at or BEFORE_ALL)]
