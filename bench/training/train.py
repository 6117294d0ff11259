"""The only driver: offline updates, hand-over, online steps, evaluation, checkpoints, for a pack of seeds.

It names no agent and no task. All state that decides what comes next is in `Training`, saved as one value per seed.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

import datasets
from agents.blocks.base import OnPolicyAgent, Phase
from bench.protocol.config import RunConfig
from bench.runs.checkpoint import Progress
from bench.runs.claims import Claims, Superseded
from bench.runs.provenance import start_record
from bench.runs.writer import RunWriter, StorageError, is_complete, write_atomically
from bench.training.engine import Engine, pick_device, pick_mode
from bench.training.evaluate import (
    UNKNOWN,
    Evaluation,
    Evaluator,
    Preempted,
    build_agent,
    policy_state,
    prepare_worker,
    score_of,
    unfinished_evaluations,
)
from bench.training.execution import Execution, available_cores
from bench.training.meters import Clock, MetricMeans
from bench.training.pack import (
    Member,
    claim_runs,
    prepare_directory,
    record_end,
    record_start,
    resume_groups,
    still_owned,
)
from bench.training.rollout import Rollout, Slot, Transition, open_episodes
from bench.training.shared_phase import finished_offline_phases
from bench.training.stopwatch import Stopwatch
from bench.training.streams import SeedStreams
from bench.training.workers import Template
from datasets.replay.replay import ONLINE_FIELDS, Replay
from datasets.replay.trajectories import TrajectoryStore
from datasets.transitions import Transitions

STATUS_SECONDS = 5.0
POLL_SECONDS = 0.02  # between looks at the evaluation workers
MAX_PENDING = 2  # evaluations that training may run ahead of; each keeps a policy in memory and in checkpoints


class Diverged(Exception):
    """A loss or parameter of a run became NaN or infinite."""


def run(configs: list[RunConfig], results: Path, execution: Execution, should_stop: Callable[[], bool]) -> None:
    """Runs a pack: configs equal but for the seed. Goes on from checkpoints; raises Preempted when asked to stop.

    Where checkpoints lie apart, those behind train until they reach the next ones and go on together with them.
    Every run ends with a status of its own: complete, failed (with the error) or preempted. A run that another process
    holds, or takes over meanwhile, is left to it.
    """
    torch.set_num_threads(execution.threads)
    device = pick_device(execution.device)
    directories = {config: prepare_directory(config, results) for config in configs}
    if all(map(is_complete, directories.values())):
        return
    transitions = datasets.load(configs[0].task, configs[0].dataset, execution.data_dir)
    offline = finished_offline_phases(configs, results)
    failures: list[Exception] = []
    log = next(iter(directories.values())) / "log.txt"
    claims = Claims(execution.lease_seconds, str(log) if log.exists() else None)
    remaining = claim_runs(directories, claims, should_stop)
    try:
        while remaining:
            lost = [config for config, claim in remaining.items() if not still_owned(claim)]
            for config in lost:
                del remaining[config]
            if not remaining:
                break
            group, *ahead = resume_groups(remaining, offline)
            try:
                training = Training(group, execution, device, transitions, should_stop)
            except Superseded:
                continue  # the next turn finds out whose run that was
            try:
                training.run(until=ahead[0][0].progress if ahead else None)
            finally:
                training.close()
            failures += training.failures
            for seed in training.failed_seeds if ahead else training.seeds:
                config = next(config for config in remaining if config.seed == seed)
                remaining.pop(config).release()
    finally:
        for claim in remaining.values():
            claim.release()
    if failures:
        raise failures[0]


class Training:
    """A pack of S runs in lockstep: same number of updates and environment steps, files and streams of their own."""

    def __init__(
        self,
        members: list[Member],
        execution: Execution,
        device: torch.device,
        transitions: Transitions,
        should_stop: Callable[[], bool],
    ):
        self.members = members
        self.config = config = members[0].config
        self.seeds = [member.config.seed for member in members]
        self.execution, self.device, self.should_stop = execution, device, should_stop
        self.failures: list[Exception] = []
        states = [member.state for member in members if member.state is not None]
        self.updates, self.env_steps, evaluated = states[0]["progress"] if states else (0, 0, 0)
        self.evaluated = bool(evaluated)  # at this very point
        self.scores = [state.get("score", UNKNOWN) for state in states] or [UNKNOWN] * len(members)

        self.writers = [
            RunWriter(
                member.directory,
                member.claim,
                offsets=member.state["offsets"] if member.state else None,
                source=member.offline.directory.parent if member.offline else None,
            )
            for member in members
        ]
        for member in members:
            member.checkpoints.adopt(member.claim, member.state, member.offline)
        resumed_from = {"phase": self.phase, "updates": self.updates, "env_steps": self.env_steps} if states else None
        mode = pick_mode(execution.engine, device, config.total_updates)
        start = start_record(device, execution.threads, mode, self.seeds, resumed_from)
        for member in members:
            record_start(member, transitions, start)
        self.alive = [True] * len(members)
        self.pending_on_disk = unfinished_evaluations([state["pending"] for state in states])
        self.agent = build_agent(config, SeedStreams(self.seeds, device, "init"))
        self.replay = Replay(
            transitions,
            num_seeds=len(members),
            chunk_length=self.agent.chunk_length,
            discount=config.discount,
            device=device,
        )
        self.trajectories: TrajectoryStore | None = None  # of an on-policy agent, instead of what the replay collects
        if config.rollout_steps is not None:
            num_steps = config.rollout_steps // config.num_envs
            self.trajectories = TrajectoryStore(
                len(members), config.num_envs, num_steps, self.agent.obs_dim, config.discount, device
            )
        self.metrics = MetricMeans(states, device)
        self.engine = Engine(
            self.agent,
            self.replay,
            self.metrics,
            seeds=self.seeds,
            batch_size=config.batch_size,
            device=device,
            mode=mode,
            on_policy=self.trajectories,
        )
        self.rollouts: list[list[Rollout]] = []  # of each seed, of each of its environments
        if states:
            self.agent.load_seed_states([state["agent"] for state in states])
        self._saved_rows = 0
        self._template = Template(prepare_worker, config)
        self.evaluator = Evaluator(self._template, execution.eval_workers or available_cores(), config.eval_episodes)
        self._polled = 0.0
        self._until: Progress | None = None
        self._clock, self._watch = Clock(), Stopwatch()

    # The schedule: what happens at a point (updates, env_steps), in this order.

    def run(self, until: Progress | None = None) -> None:
        """Trains to the end and marks the runs complete, or to a checkpoint at the point `until`.

        Raises Preempted, after a checkpoint, when asked to stop.
        """
        config, self._until = self.config, until
        try:
            self._status("running")
            for evaluation in self.pending_on_disk:
                self.evaluator.submit(evaluation)
            if any(member.state and member.state["rollouts"] for member in self.members):
                self._hand_over()
            while any(self.alive) and self.progress != until:
                if self._evaluation_due():
                    self._evaluate()
                    continue
                if self.env_steps >= config.online_steps and self.updates >= config.offline_updates:
                    break
                if self.should_stop():
                    raise Preempted
                self._take_in_evaluations()
                if self._clock.due("checkpoint", self.execution.checkpoint_seconds) or self._ring_is_unsaved():
                    self._checkpoint()
                if self._clock.due("status", STATUS_SECONDS):
                    self._status("running")
                if self.updates < config.offline_updates:
                    self._update_offline()
                else:
                    if not self.rollouts:
                        self._hand_over()
                    self._step_online()
            if self.progress == until:
                self._checkpoint()
                return
            if self.evaluator.pending:
                self._checkpoint()  # training is over: a kill while the last evaluations run loses none of it
                self._await_evaluations(at_most=0)
            self._checkpoint()
            self._complete()
        except Preempted:
            self._checkpoint()
            for index, member in self._living():
                with self._owned(index):
                    record_end(member.claim)
            self._status("preempted")
            raise
        except Exception as error:
            self._fail_all(error)
            raise

    @property
    def progress(self) -> Progress:
        return self.updates, self.env_steps, int(self.evaluated)

    @property
    def failed_seeds(self) -> list[int]:
        return [seed for seed, alive in zip(self.seeds, self.alive, strict=True) if not alive]

    def _evaluation_due(self) -> bool:
        """At offline update 0, every interval, at the hand-over (= online step 0), every interval, at the end."""
        config = self.config
        if self.evaluated:
            return False
        if self.env_steps == 0 and self.updates <= config.offline_updates:
            return self.updates % config.eval_interval_updates == 0 or self.updates == config.offline_updates
        return self.env_steps % config.eval_interval_steps == 0 or self.env_steps == config.online_steps

    def _evaluate(self) -> None:
        """Sends frozen copies of the policies off to be evaluated; training goes on meanwhile."""
        self._await_evaluations(at_most=MAX_PENDING - 1)
        policies = {index: policy_state(self.agent, index) for index, _ in self._living()}
        for index, policy in list(policies.items()):
            if not all(bool(value.isfinite().all()) for value in policy.values()):
                self._fail(index, Diverged(f"seed {self.seeds[index]}: the policy's parameters are not finite"))
                del policies[index]
        if policies:
            self.evaluator.submit(Evaluation(self.phase, self.updates, self.env_steps, policies))
        self.evaluated = True

    def _await_evaluations(self, at_most: int) -> None:
        """Waits until no more than so many evaluations are pending."""
        started = time.monotonic()
        while len(self.evaluator.pending) > at_most:
            if self.should_stop():
                raise Preempted
            self._take_in_evaluations(wait=0.2)
        self._clock.exclude(time.monotonic() - started)

    def _take_in_evaluations(self, wait: float = 0.0) -> None:
        """Writes the rows of evaluations that have finished, in order of the schedule."""
        if not self.evaluator.pending or (not wait and time.monotonic() - self._polled < POLL_SECONDS):
            return
        with self._watch.part("evaluation_wait"):
            finished = self.evaluator.finished(wait)
        self._polled = time.monotonic()
        for evaluation in finished:
            seconds = time.monotonic() - evaluation.started
            for index in evaluation.policies:
                rows = evaluation.rows_of(index)
                with self._owned(index):
                    self.writers[index].episodes({**evaluation.point, **row} for row in rows)
                    self.writers[index].timing(**evaluation.point, values={"evaluation_seconds": seconds})
                self.scores[index] = score_of(rows)
            self._status("running")

    @property
    def phase(self) -> Phase:
        return "online" if self.env_steps else "offline"

    @property
    def _updates_to_next_event(self) -> int:
        """Offline updates up to the next log, evaluation, norms of gradients or end, whichever comes first."""
        config = self.config
        ends = [config.offline_updates, *([self._until[0]] if self._until else [])]
        events = [end - self.updates for end in ends if end > self.updates]
        intervals = (config.log_interval, config.eval_interval_updates, config.gradient_norm_interval)
        return min(*events, *(n - self.updates % n for n in intervals if n))

    def _update_offline(self) -> None:
        with self._watch.part("update"):
            count = min(self.engine.burst, self._updates_to_next_event)
            self.engine.update_offline(self.updates, count)
        self.updates += count
        self.evaluated = False
        self._clock.count("updates", count)
        ends = self.updates == self.config.offline_updates
        if self.updates % self.config.log_interval == 0 or ends:
            self._log()
        self._measure_gradients(count, ends)

    def _hand_over(self) -> None:
        """From dataset to environment: opens the rings, makes the environments, restores both after a restart.
        Parameters, optimiser state, targets and temperature carry over as they are."""
        config = self.config
        states = [member.state for member in self.members]
        resumed = [state for state in states if state is not None and state["rollouts"]]
        if self.trajectories is not None:
            if resumed:
                self.trajectories.restore([state["trajectories"] for state in resumed])
        else:
            self.replay.open_ring(
                config.replay_capacity, config.online_steps, config.online_dataset_rows, config.online_batch_share
            )
            rows = [
                member.checkpoints.restore_replay(state, self.replay.row_width)
                for member, state in zip(self.members, states, strict=True)
                if state is not None
            ]
            if rows and self.env_steps:
                self.replay.restore_online(rows)
                self._saved_rows = self.replay.num_online
        slots = [Slot(seed, number) for seed in self.seeds for number in range(config.num_envs)]
        episodes = iter(open_episodes(config, slots, self._template, self.execution.env_workers))
        for state in states:
            saved = (state["rollouts"] if state else None) or [None] * config.num_envs
            self.rollouts.append([Rollout(next(episodes), own) for own in saved])

    def _step_online(self) -> None:
        """One environment step per seed, in its environments in turn, then the updates that are due."""
        config, env_number = self.config, self.env_steps % self.config.num_envs
        if env_number == 0 and any(rollout.needs_chunk for own in self.rollouts for rollout in own):
            with self._watch.part("act"):
                self._act()
        stepped = [own[env_number] for own in self.rollouts]
        with self._watch.part("env_wait"):
            steps = [rollout.step() for rollout in stepped]
        rows = {name: _stack(steps, name) for name in ONLINE_FIELDS}
        if self.trajectories is not None:
            self.trajectories.append(rows | {"chunk_end": torch.tensor([float(own.needs_chunk) for own in stepped])})
        else:
            self.replay.append(rows)
        self.env_steps += 1
        self.evaluated = False
        self._clock.count("env_steps")
        for index, _ in self._living():
            episode = steps[index].episode
            if episode is not None:
                values = {f"behaviour_{name}": value for name, value in episode.items()}
                with self._owned(index):
                    self.writers[index].train(self.phase, self.updates, self.env_steps, values)
        updates = config.updates_after(self.env_steps)
        if updates:
            with self._watch.part("update"):
                if self.trajectories is not None:
                    self._estimate(self.trajectories)
                self.engine.update_online(self.updates, updates)
            self.updates += updates
            self._clock.count("updates", updates)
        ends = self.env_steps == config.online_steps
        if self.env_steps % config.log_interval == 0 or ends:
            self._log()
        self._measure_gradients(updates, ends)

    def _act(self) -> None:
        """The policies' next chunks, for the rollouts that need one; a seed whose action is not finite fails."""
        if self.config.warmup_actions == "random" and self.env_steps + 1 < self.config.warmup_steps:
            draw = SeedStreams(self.seeds, "cpu", "warmup").at(self.env_steps)
            length = self.agent.chunk_length
            chunks = 2 * draw.uniform("action", self.config.num_envs, length, self.agent.chunk_dim // length) - 1
        else:
            obs = torch.from_numpy(np.stack([[rollout.obs for rollout in own] for own in self.rollouts]))
            chunks, record = self.engine.act(obs, self.env_steps)
            if self.trajectories is not None:
                begins = torch.tensor([[float(rollout.needs_chunk) for rollout in own] for own in self.rollouts])
                self.trajectories.decide(begins, record)
        for index, (own, own_chunks) in enumerate(zip(self.rollouts, chunks.numpy(), strict=True)):
            if self.alive[index] and not np.isfinite(own_chunks).all():
                self._fail(index, Diverged(f"seed {self.seeds[index]}: the policy's action is not finite"))
            for rollout, chunk in zip(own, own_chunks, strict=True):
                if rollout.needs_chunk:
                    rollout.set_chunk(chunk if self.alive[index] else np.zeros_like(chunk))

    def _estimate(self, store: TrajectoryStore) -> None:
        """What was collected since the last updates becomes the data of the next ones."""
        assert isinstance(self.agent, OnPolicyAgent)
        trajectories = store.trajectories()
        store.offer(trajectories, *self.agent.estimate(trajectories))

    # Files: rows, status, checkpoints.

    def _living(self) -> list[tuple[int, Member]]:
        return [(index, member) for index, member in enumerate(self.members) if self.alive[index]]

    @contextlib.contextmanager
    def _owned(self, index: int) -> Iterator[None]:
        """Around whatever writes into the run's directory: a run that another process has taken over ends here, and
        nothing more is written to it."""
        try:
            yield
        except Superseded as error:
            self.alive[index] = False
            print(f"seed {self.seeds[index]}: {error}", file=sys.stderr, flush=True)

    def _log(self) -> None:
        """Means of the metrics since the last log; a run with a value that is not finite ends here as failed."""
        with self._watch.part("update"):  # a GPU finishes them here
            means = self.metrics.take(len(self.members))
        rates = {**self._clock.rates(), **self._watch.shares()}
        for index, values in enumerate(means):
            if not self.alive[index]:
                continue
            with self._owned(index):
                self.writers[index].train(self.phase, self.updates, self.env_steps, values)
                self.writers[index].timing(self.phase, self.updates, self.env_steps, rates)
            bad = [name for name, value in values.items() if not np.isfinite(value)]
            if bad:
                self._fail(
                    index, Diverged(f"seed {self.seeds[index]}: {', '.join(bad)} not finite by update {self.updates}")
                )

    def _measure_gradients(self, updates: int, phase_ends: bool) -> None:
        """Norms of gradients along the policies' rollouts, where the last `updates` updates reached a multiple of the
        interval, and at the end of a phase."""
        interval = self.config.gradient_norm_interval
        if not interval or not updates or not (phase_ends or self.updates % interval < updates):
            return
        with self._watch.part("update"):
            norms = self.engine.gradient_norms(self.phase, self.updates)
            if not norms:
                return
            rows = torch.stack(list(norms.values()), 1).tolist()  # one wait for the device
        for index, _ in self._living():
            with self._owned(index):
                values = dict(zip(norms, rows[index], strict=True))
                self.writers[index].train(self.phase, self.updates, self.env_steps, values)

    def _ring_is_unsaved(self) -> bool:
        """The next transition would overwrite one that no checkpoint holds."""
        if self.trajectories is not None:
            return False
        return bool(self.rollouts) and self.replay.num_online - self._saved_rows >= self.replay.ring_slots

    def _checkpoint(self) -> None:
        with self._watch.part("write"):
            for index, member in self._living():
                with self._owned(index):
                    member.checkpoints.save(
                        self._state_of_seed(index),
                        self.replay.online_rows(index, self._saved_rows, self.replay.num_online),
                    )
            self._saved_rows = self.replay.num_online

    def _complete(self) -> None:
        """Policies, then the word that the runs are complete, then the status that says so too."""
        for index, member in self._living():
            policy = safetensors.torch.save(policy_state(self.agent, index))
            with self._owned(index):
                member.claim.check()
                write_atomically(member.directory / "checkpoint" / "policy.safetensors", policy)
                record_end(member.claim)
                self.writers[index].complete()
        self._status("complete")

    def _state_of_seed(self, index: int) -> dict[str, Any]:
        """All that the run needs to go on from here: with `offsets` of its files goes what is not written yet."""
        pending = [evaluation for evaluation in self.evaluator.pending if index in evaluation.policies]
        return {
            "progress": self.progress,
            "agent": self.agent.state_of_seed(index),
            "metrics": self.metrics.state_of_seed(index),
            "rollouts": [rollout.state() for rollout in self.rollouts[index]] if self.rollouts else None,
            "trajectories": self.trajectories.rows_of_seed(index) if self.trajectories else None,
            "pending": [evaluation.state_of_seed(index) for evaluation in pending],
            "score": self.scores[index],
            "offsets": self.writers[index].offsets(),
        }

    def _status(self, state: str, only: int | None = None, error: str | None = None) -> None:
        with self._watch.part("write"):
            for index, _ in self._living():
                if only is not None and index != only:
                    continue
                with self._owned(index):
                    self.writers[index].status(
                        state,
                        phase=self.phase,
                        updates=self.updates,
                        env_steps=self.env_steps,
                        **self.scores[index],
                        error=error,
                        engine=self.engine.mode,
                        warning=self.engine.warning,
                        pid=os.getpid(),
                        **self._clock.recent,
                    )

    def _fail(self, index: int, error: Exception) -> None:
        self._status("failed", only=index, error=_one_line(error))
        self.alive[index] = False
        self.failures.append(error)

    def _fail_all(self, error: Exception) -> None:
        for index, _ in self._living():
            try:
                self._status("failed", only=index, error=_one_line(error))
            except StorageError as second:  # a full disk: the error that ends the run is already on its way
                error.add_note(str(second))

    def close(self) -> None:
        """Ends worker processes and closes files."""
        self._template.close()
        for writer in self.writers:
            writer.close()


def _stack(steps: list[Transition], name: str) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(getattr(step, name), np.float32) for step in steps]))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
