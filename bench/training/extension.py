"""`--extend`: a run of a larger budget begins in a folder of its own, with what a finished run has left behind.

The finished run is only read. The longer one gets its checkpoint and its rows, without those that were written because
the budget ended there, and then goes on like any run that was stopped.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.protocol.config import RunConfig
from bench.protocol.extension import carried_rows, check_growth, with_folder_of_its_own
from bench.protocol.schedule import is_over, log_is_due, updates_after
from bench.runs.checkpoint import Checkpoints
from bench.runs.claims import Claim, Claims
from bench.runs.contract import (
    COMPLETE,
    CONFIG,
    HEADERS,
    PROVENANCE,
    STATUS,
    TRAIN,
    ConfigError,
    StorageError,
    is_complete,
    is_sum_of,
    make_folder,
    read_json,
    write_atomically,
    write_json,
)
from bench.runs.state import RunState

POLL_SECONDS = 0.2  # between looks at a folder that another process begins


def extend(configs: Sequence[RunConfig], results: Path, dry_run: bool = False) -> list[RunConfig]:
    """The runs of these configs in folders of their own, begun from the finished runs that lie where they would.

    A longer run that has begun is left as it is. Checks all of them, then writes. Raises ConfigError, StorageError.

    Args:
        dry_run: writes nothing.
    """
    extended = []
    for config in configs:
        source = config.directory(results)
        shorter = finished_config(source)
        check_growth(config, shorter, source)
        extended.append((with_folder_of_its_own(config, shorter), shorter))
    begun = [(longer.directory(results) / CONFIG).exists() for longer, _ in extended]
    new = [pair for pair, is_there in zip(extended, begun, strict=True) if not is_there]
    for _, shorter in new:
        check_source(shorter, results)
    if dry_run:  # of the others a plan would say nothing
        for longer in (longer for (longer, _), is_there in zip(extended, begun, strict=True) if is_there):
            state = "is complete" if is_complete(longer.directory(results)) else "has begun, and goes on"
            print(f"{longer.name} {state}", flush=True)
    for longer, shorter in new:
        print(f"{longer.name} goes on from {shorter.name}, {_point(shorter)}", flush=True)
        if not dry_run:
            begin(longer, shorter, results)
    return [longer for longer, _ in extended]


def finished_config(source: Path) -> RunConfig:
    """The config of a finished run's folder. Raises ConfigError."""
    written = read_json(source / CONFIG)
    if written is None:
        raise ConfigError(f"{source} holds no run that could go on: leave --extend out to start one")
    if not is_complete(source):
        raise ConfigError(f"{source} is not finished: finish it, with its own budget and without --extend, then extend")
    try:
        return RunConfig.from_json(written)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def final_state(config: RunConfig, results: Path) -> RunState:
    """Of a finished run, at its end. Raises ConfigError where its checkpoint was removed, StorageError."""
    source = config.directory(results)
    states = Checkpoints(source).load()
    ends = [state for point, state in states.items() if is_over(config, point.updates, point.env_steps)]
    if not ends:
        raise ConfigError(
            f"{source} has no checkpoint of its end any more, so that nothing can go on from there: run the larger "
            "budget anew, under another --name or --results and without --extend"
        )
    return max(ends, key=lambda state: state.point)


def check_source(config: RunConfig, results: Path) -> None:
    """Raises ConfigError or StorageError where a finished run lacks what a longer one needs, or was edited."""
    source = config.directory(results)
    checkpoints = Checkpoints(source)
    for segment in final_state(config, results).replay:
        checkpoints.read_segment(segment)
    for name, facts in (read_json(source / COMPLETE) or {}).get("files", {}).items():
        data = (source / name).read_bytes() if (source / name).exists() else b""
        if not is_sum_of(facts, data):
            raise StorageError(f"{source / name} has other bytes than {COMPLETE} says: it was edited; restore it")


def begin(longer: RunConfig, shorter: RunConfig, results: Path) -> None:
    """Makes the longer run's folder; its config.json comes last, and before that nothing takes the folder for a run."""
    source, directory = shorter.directory(results), make_folder(longer.directory(results))
    claim = _claim(directory)
    if claim is None:
        return
    try:
        state = final_state(shorter, results)
        point = state.point
        lost = _has_lost_sums(longer, shorter, state)
        offsets: dict[str, int] = {}
        for name in HEADERS:
            data = (source / name).read_bytes()[: state.offsets[name]]
            rows = carried_rows(name, data, longer, point.updates, point.env_steps, keep_means=lost)
            claim.check()
            write_atomically(directory / name, rows)
            offsets[name] = len(rows)
        Checkpoints(directory).begin(claim, replace(state, offsets=offsets), Checkpoints(source))
        deviations = [f"{TRAIN}: a row of means at this point, and the next one begins here"] if lost else []
        write_json(directory / PROVENANCE, provenance(shorter, results, state, deviations))
        write_json(directory / STATUS, {**(read_json(source / STATUS) or {}), "state": "preempted"})
        claim.check()
        write_json(directory / CONFIG, longer.to_json())
    finally:
        claim.release()


def provenance(shorter: RunConfig, results: Path, state: RunState, deviations: list[str]) -> dict[str, Any]:
    """What provenance.json says of the longer run: all that it says of the shorter one, and where that ended."""
    written = read_json(shorter.directory(results) / PROVENANCE) or {}
    origin = {
        "path": str(shorter.name),
        "config_hash": shorter.to_json()["config_hash"],
        "updates": state.point.updates,
        "env_steps": state.point.env_steps,
        "deviations": deviations,
    }
    starts = [{"seconds": None, **start} for start in written["starts"]]  # else the next start would tell its own
    return {**written, "starts": starts, "extended_from": origin}


def _has_lost_sums(longer: RunConfig, shorter: RunConfig, state: RunState) -> bool:
    """Whether updates count for the longer run's next means, and their sums are gone: older code kept none."""
    updates, env_steps, _ = state.point
    if state.metrics.count or log_is_due(longer, updates, env_steps):
        return False
    newest = range(env_steps - env_steps % shorter.log_interval + 1, env_steps + 1)
    return not env_steps or any(updates_after(shorter, step) for step in newest)


def _claim(directory: Path) -> Claim | None:
    """This process' right to the folder; None where another one has begun the run meanwhile."""
    claims = Claims()
    while not isinstance(held := claims.take(directory), Claim):
        if (directory / CONFIG).exists():
            return None
        time.sleep(POLL_SECONDS)
    if (directory / CONFIG).exists():
        held.release()
        return None
    return held


def _point(shorter: RunConfig) -> str:
    if shorter.online_steps:
        return f"online step {shorter.online_steps}"
    return f"offline update {shorter.offline_updates}"
