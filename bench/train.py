"""The only driver: offline updates, hand-over, online steps, evaluation, checkpoints, for a pack of seeds.

It names no agent and no task. All state that decides what comes next is in `Training`, saved as one value per seed.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

import datasets
from bench.config import RunConfig
from bench.engine import Engine, pick_device
from bench.evaluate import Evaluator, Preempted, build_agent, policy_state
from bench.members import Member, prepare_directory, record_start, resume_groups
from bench.meters import Clock, MetricMeans
from bench.provenance import start_record
from bench.rollout import Rollout, Transition
from bench.streams import SeedStreams
from bench.writer import RunWriter, StorageError, write_atomically
from datasets.replay import ONLINE_FIELDS, Replay
from datasets.transitions import Transitions

STATUS_SECONDS = 5.0


@dataclass(frozen=True)
class Execution:
    """How runs are executed on this machine. Nothing here is part of a run's identity."""

    device: str = "auto"
    threads: int = 1
    eval_workers: int = 1
    checkpoint_seconds: float = 300.0
    data_dir: Path | None = None


class Diverged(Exception):
    """A loss or parameter of a run became NaN or infinite."""


def run(configs: list[RunConfig], results: Path, execution: Execution, should_stop: Callable[[], bool]) -> None:
    """Runs a pack: configs equal but for the seed. Goes on from checkpoints; raises Preempted when asked to stop.

    Every run ends with a status of its own: complete, failed (with the error) or preempted.
    """
    torch.set_num_threads(execution.threads)
    device = pick_device(execution.device)
    for config in configs:
        prepare_directory(config, results)
    transitions = datasets.load(configs[0].task, configs[0].dataset, execution.data_dir)
    failures: list[Exception] = []
    for group in resume_groups(configs, results):
        training = Training(group, execution, device, transitions, should_stop)
        try:
            training.run()
            failures += training.failures
        finally:
            training.close()
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
        self.success_rates: list[float | None] = [state["success_rate"] for state in states] or [None] * len(members)

        self.writers = [RunWriter(m.directory, m.state["offsets"] if m.state else None) for m in members]
        for member in members:
            member.checkpoints.discard_after((self.updates, self.env_steps, evaluated))
        resumed_from = {"phase": self.phase, "updates": self.updates, "env_steps": self.env_steps} if states else None
        start = start_record(device, execution.threads, self.seeds, resumed_from)
        for member in members:
            record_start(member, transitions, start)
        self.alive = [True] * len(members)
        self.agent = build_agent(config, SeedStreams(self.seeds, device, "init"))
        self.replay = Replay(
            transitions,
            num_seeds=len(members),
            chunk_length=self.agent.chunk_length,
            discount=config.discount,
            device=device,
        )
        self.engine = Engine(self.agent, self.replay, self.seeds, config.batch_size, device)
        self.acting = SeedStreams(self.seeds, device, "acting")
        self.metrics = MetricMeans(states)
        self.rollouts: list[Rollout] = []
        self.evaluator: Evaluator | None = None
        self._saved_rows = 0
        if states:
            self.agent.load_seed_states([state["agent"] for state in states])
            if self.env_steps or self.updates >= config.offline_updates:
                self._hand_over()
        self._clock = Clock()

    # The schedule: what happens at a point (updates, env_steps), in this order.

    def run(self) -> None:
        """Trains to the end and marks the runs complete. Raises Preempted, after a checkpoint, when asked to stop."""
        config = self.config
        try:
            self._status("running")
            while any(self.alive):
                if self._evaluation_due():
                    self._evaluate()
                if self.env_steps >= config.online_steps and self.updates >= config.offline_updates:
                    break
                if self.should_stop():
                    raise Preempted
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
            self._checkpoint()
            for index, member in self._living():
                policy = safetensors.torch.save(policy_state(self.agent, index))
                write_atomically(member.directory / "checkpoint" / "policy.safetensors", policy)
            self._status("complete")
        except Preempted:
            self._checkpoint()
            self._status("preempted")
            raise
        except Exception as error:
            self._fail_all(error)
            raise

    def _evaluation_due(self) -> bool:
        """At offline update 0, every interval, at the hand-over (= online step 0), every interval, at the end."""
        config = self.config
        if self.evaluated:
            return False
        if self.env_steps == 0 and self.updates <= config.offline_updates:
            return self.updates % config.eval_interval_updates == 0 or self.updates == config.offline_updates
        return self.env_steps % config.eval_interval_steps == 0 or self.env_steps == config.online_steps

    def _evaluate(self) -> None:
        if self.evaluator is None:
            self.evaluator = Evaluator(self.config, self.execution.eval_workers, self.should_stop)
        started = time.monotonic()
        policies = {index: policy_state(self.agent, index) for index, _ in self._living()}
        for index, policy in list(policies.items()):
            if not all(bool(value.isfinite().all()) for value in policy.values()):
                self._fail(index, Diverged(f"seed {self.seeds[index]}: the policy's parameters are not finite"))
                del policies[index]
        episodes = self.evaluator.evaluate(list(policies.values()))
        seconds = time.monotonic() - started
        point = {"phase": self.phase, "updates": self.updates, "env_steps": self.env_steps}
        for index, rows in zip(policies, episodes, strict=True):
            self.writers[index].episodes({**point, **row} for row in rows)
            self.writers[index].timing(self.phase, self.updates, self.env_steps, {"evaluation_seconds": seconds})
            self.success_rates[index] = float(np.mean([row["success"] for row in rows]))
        self.evaluated = True
        self._clock.exclude(seconds)
        self._status("running")

    @property
    def phase(self) -> str:
        return "online" if self.env_steps else "offline"

    def _update_offline(self) -> None:
        self.metrics.add(self.engine.update_offline(self.updates))
        self.updates += 1
        self.evaluated = False
        self._clock.count("updates")
        if self.updates % self.config.log_interval == 0 or self.updates == self.config.offline_updates:
            self._log()

    def _hand_over(self) -> None:
        """From dataset to environment: opens the rings, makes the environments, restores both after a restart.
        Parameters, optimiser state, targets and temperature carry over as they are."""
        config = self.config
        self.replay.open_ring(config.replay_capacity, config.online_steps, config.online_dataset_rows)
        states = [member.state for member in self.members]
        rows = [
            member.checkpoints.restore_replay(state, self.replay.row_width)
            for member, state in zip(self.members, states, strict=True)
            if state is not None
        ]
        if rows and self.env_steps:
            self.replay.restore_online(torch.stack(rows))
            self._saved_rows = self.replay.num_online
        for member, state in zip(self.members, states, strict=True):
            env = datasets.make_env(config.task, config.success_timing)
            self.rollouts.append(Rollout(env, member.config.seed, state["rollout"] if state else None))

    def _step_online(self) -> None:
        """One environment step per seed, then `utd_ratio` updates once the warm-up is over."""
        config = self.config
        if any(rollout.needs_chunk for rollout in self.rollouts):
            obs = torch.from_numpy(np.stack([rollout.obs for rollout in self.rollouts])).unsqueeze(1)
            chunks = (
                self.agent.act(obs.to(self.device), self.acting.at(self.env_steps), mode="collect")[:, 0].cpu().numpy()
            )
            for index, (rollout, chunk) in enumerate(zip(self.rollouts, chunks, strict=True)):
                if self.alive[index] and not np.isfinite(chunk).all():
                    self._fail(index, Diverged(f"seed {self.seeds[index]}: the policy's action is not finite"))
                if rollout.needs_chunk:
                    rollout.set_chunk(chunk if self.alive[index] else np.zeros_like(chunk))
        steps = [rollout.step() for rollout in self.rollouts]
        self.replay.append({name: _stack(steps, name) for name in ONLINE_FIELDS})
        self.env_steps += 1
        self.evaluated = False
        self._clock.count("env_steps")
        for index, _ in self._living():
            episode = steps[index].episode
            if episode is not None:
                values = {f"behaviour_{name}": value for name, value in episode.items()}
                self.writers[index].train(self.phase, self.updates, self.env_steps, values)
        if self.env_steps >= config.warmup_steps:
            for _ in range(config.utd_ratio):
                self.metrics.add(self.engine.update_online(self.updates))
                self.updates += 1
                self._clock.count("updates")
        if self.env_steps % config.log_interval == 0 or self.env_steps == config.online_steps:
            self._log()

    # Files: rows, status, checkpoints.

    def _living(self) -> list[tuple[int, Member]]:
        return [(index, member) for index, member in enumerate(self.members) if self.alive[index]]

    def _log(self) -> None:
        """Means of the metrics since the last log; a run with a value that is not finite ends here as failed."""
        rates = self._clock.rates()
        for index, values in enumerate(self.metrics.take(len(self.members))):
            if not self.alive[index]:
                continue
            self.writers[index].train(self.phase, self.updates, self.env_steps, values)
            self.writers[index].timing(self.phase, self.updates, self.env_steps, rates)
            bad = [name for name, value in values.items() if not np.isfinite(value)]
            if bad:
                self._fail(
                    index, Diverged(f"seed {self.seeds[index]}: {', '.join(bad)} not finite by update {self.updates}")
                )

    def _ring_is_unsaved(self) -> bool:
        """The next transition would overwrite one that no checkpoint holds."""
        return bool(self.rollouts) and self.replay.num_online - self._saved_rows >= self.replay.ring_slots

    def _checkpoint(self) -> None:
        progress = (self.updates, self.env_steps, int(self.evaluated))
        for index, member in self._living():
            state = {
                "progress": progress,
                "agent": self.agent.state_of_seed(index),
                "metrics": self.metrics.state_of_seed(index),
                "rollout": self.rollouts[index].state() if self.rollouts else None,
                "success_rate": self.success_rates[index],
                "offsets": self.writers[index].offsets(),
            }
            new_rows = self.replay.online_rows(index, self._saved_rows, self.replay.num_online)
            member.checkpoints.save(state, new_rows)
        self._saved_rows = self.replay.num_online

    def _status(self, state: str, only: int | None = None, error: str | None = None) -> None:
        for index, _ in self._living():
            if only is None or index == only:
                self.writers[index].status(
                    state,
                    phase=self.phase,
                    updates=self.updates,
                    env_steps=self.env_steps,
                    success_rate=self.success_rates[index],
                    error=error,
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
        if self.evaluator is not None:
            self.evaluator.close()
        for writer in self.writers:
            writer.close()


def _stack(steps: list[Transition], name: str) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(getattr(step, name), np.float32) for step in steps]))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
