"""What the runs of a pack write: rows, status, checkpoints, provenance; and which of them still may."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

import datasets
from bench.protocol.departures import departures
from bench.runs.claims import Takeover
from bench.runs.contract import CONFIG, POLICY, StorageError, error_line, read_json, write_atomically
from bench.runs.provenance import add_end, add_engines, add_start
from bench.runs.resumption import Computed, changes
from bench.runs.state import UNKNOWN_SCORE, RunState, TrainingPoint
from bench.runs.writer import RunWriter
from bench.training.evaluate import EpisodeRow, score_of
from bench.training.pack import PackedRun
from datasets.transitions import Transitions


class DivergenceError(Exception):
    """A loss or parameter of a run became NaN or infinite."""


class PackFiles:
    """The files of a pack's runs, by index of the run.

    A run that has failed, or that another process has taken over, is not alive: nothing more is written to it, and the
    others go on.
    """

    def __init__(self, runs: Sequence[PackedRun]):
        self.runs = list(runs)
        self.alive = [True] * len(self.runs)
        self.failures: list[Exception] = []
        self.scores = [dict(run.state.score) if run.state else dict(UNKNOWN_SCORE) for run in self.runs]
        self._writers: list[RunWriter] = []

    def open(self, transitions: Transitions, start: Mapping[str, Any]) -> None:
        """Cuts each run's files back to its state and records the start.

        Raises Takeover, ConfigError for other data than the run began with, StorageError.
        """
        for run in self.runs:
            self._writers.append(
                RunWriter(
                    run.directory,
                    run.claim,
                    offsets=run.state.offsets if run.state else None,
                    source=run.offline.directory.parent if run.offline else None,
                )
            )
        for run in self.runs:
            run.checkpoints.adopt(run.claim, run.state, run.offline)
        for run in self.runs:
            add_start(run.claim, facts_of_data(transitions), facts_of_run(run, transitions), start)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    @property
    def living(self) -> list[int]:
        """Indices of the runs that are alive."""
        return [index for index, alive in enumerate(self.alive) if alive]

    @property
    def failed_seeds(self) -> list[int]:
        return [run.config.seed for run, alive in zip(self.runs, self.alive, strict=True) if not alive]

    @contextlib.contextmanager
    def owned(self, index: int) -> Iterator[None]:
        """Around whatever writes into the run's folder: a run that another process has taken over ends here."""
        try:
            yield
        except Takeover as error:
            self.alive[index] = False
            print(f"seed {self.runs[index].config.seed}: {error}", file=sys.stderr, flush=True)

    def train(self, point: TrainingPoint, values: Sequence[Mapping[str, float]]) -> None:
        """Scalars of each run at one point; a run with none of its own has an empty mapping."""
        for index in self.living:
            if values[index]:
                with self.owned(index):
                    self._writers[index].train(point.phase, point.updates, point.env_steps, values[index])

    def timing(self, point: TrainingPoint, values: Mapping[str, float]) -> None:
        """Rates and durations, which the runs of a pack share."""
        for index in self.living:
            with self.owned(index):
                self._writers[index].timing(point.phase, point.updates, point.env_steps, values)

    def episodes(self, index: int, at: Mapping[str, Any], rows: list[EpisodeRow], seconds: float) -> None:
        """The rows of one run's evaluation at a point, and how long it took."""
        with self.owned(index):
            self._writers[index].episodes({**at, **row} for row in rows)
            self._writers[index].timing(**at, values={"evaluation_seconds": seconds})
        self.scores[index] = score_of(rows) | {"score_updates": at["updates"], "score_env_steps": at["env_steps"]}

    def status(
        self,
        state: str,
        point: TrainingPoint,
        facts: Mapping[str, Any],
        only: int | None = None,
        error: str | None = None,
    ) -> None:
        """Replaces status.json of the runs that are alive, or of one of them."""
        for index in self.living:
            if only not in (None, index):
                continue
            with self.owned(index):
                self._writers[index].status(
                    state,
                    phase=point.phase,
                    updates=point.updates,
                    env_steps=point.env_steps,
                    **self.scores[index],
                    error=error,
                    pid=os.getpid(),
                    **facts,
                )

    def fail(self, index: int, error: Exception, point: TrainingPoint, facts: Mapping[str, Any]) -> None:
        """Ends one run as failed."""
        self.status("failed", point, facts, only=index, error=error_line(error))
        self.alive[index] = False
        self.failures.append(error)

    def fail_all(self, error: Exception, point: TrainingPoint, facts: Mapping[str, Any]) -> None:
        """The error that ends the process, into the status of all that are alive."""
        for index in self.living:
            try:
                self.status("failed", point, facts, only=index, error=error_line(error))
            except StorageError as second:  # a full disk: the error that ends the run is already on its way
                error.add_note(str(second))

    def checkpoint(self, state_of: Callable[[int], RunState], rows_of: Callable[[int], Tensor]) -> None:
        """Saves each run's state, and the online transitions (rows, width) collected since the last save."""
        for index in self.living:
            with self.owned(index):
                self.runs[index].checkpoints.save(state_of(index), rows_of(index))

    def offsets(self, index: int) -> dict[str, int]:
        return self._writers[index].offsets()

    def note_engines(self, computed: Computed, warnings: Sequence[str]) -> None:
        """Records how this start executes updates, and what of that has changed since the one before."""
        for index in self.living:
            run = self.runs[index]
            with self.owned(index):
                add_engines(run.claim, computed.engines, warnings, changes(run.computed, computed))

    def end_starts(self) -> None:
        """Records how long this start has lasted."""
        for index in self.living:
            with self.owned(index):
                add_end(self.runs[index].claim)

    def complete(self, policy_of: Callable[[int], bytes]) -> None:
        """Files of policies, then the word that the runs are complete; their status comes after it."""
        for index in self.living:
            policy = policy_of(index)
            with self.owned(index):
                run = self.runs[index]
                run.claim.check()
                write_atomically(run.directory / POLICY, policy)
                add_end(run.claim)
                self._writers[index].complete()


def check_finite(values: Mapping[str, float], seed: int, updates: int) -> DivergenceError | None:
    """The error that names the values that are not finite, if there are any."""
    bad = [name for name, value in values.items() if not np.isfinite(value)]
    return DivergenceError(f"seed {seed}: {', '.join(bad)} not finite by update {updates}") if bad else None


def facts_of_data(transitions: Transitions) -> dict[str, Any]:
    """What provenance.json says of the data."""
    return {
        "name": transitions.name,
        "origin": transitions.origin,
        "content_hash": transitions.content_hash,
        "num_transitions": transitions.num_transitions,
        "num_episodes": transitions.num_episodes,
    }


def facts_of_run(run: PackedRun, transitions: Transitions) -> dict[str, Any]:
    """What provenance.json says of a run from its first start on."""
    phase = None
    if run.offline is not None:
        written = read_json(run.offline.directory.parent / CONFIG) or {}
        phase = {"config_hash": written["config_hash"], "seed": written["seed"]}
    return {
        "reference_returns": datasets.task(run.config.task).reference_returns,
        "departures": departures(run.config),
        "offline_phase": phase,
        "data_warnings": transitions.warnings,
    }
