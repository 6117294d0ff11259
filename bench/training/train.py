"""The only driver: offline updates, hand-over, online steps, evaluation, checkpoints, for a pack of seeds.

It names no agent and no task. All state that decides what comes next is in `Training`, saved as one value per seed.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import datasets
from agents.blocks.base import OnPolicyAgent
from agents.blocks.streams import SeedStreams
from bench.protocol.config import RunConfig
from bench.protocol.plugins import facts_of_plugins
from bench.protocol.schedule import (
    ends_between_logs,
    evaluation_is_due,
    gradient_norms_are_due,
    is_over,
    log_is_due,
    offline_updates_to_event,
    total_updates,
    updates_after,
)
from bench.runs.claims import Claims, Takeover
from bench.runs.contract import LOG, ConfigError, is_complete, utc
from bench.runs.provenance import agent_source, describe_start, model_of
from bench.runs.quantities import scores
from bench.runs.resumption import Computed
from bench.runs.state import RunState, TrainingPoint
from bench.training.engine import Engine, check_matmul, pick_device, pick_mode
from bench.training.evaluate import Evaluator, new_evaluation, prepare_worker, unfinished_evaluations
from bench.training.execution import Execution, Mode, Preemption, available_cores
from bench.training.meters import Clock, MetricMeans
from bench.training.pack import (
    PackedRun,
    claim_runs,
    engines_of_pack,
    note_refusal,
    prepare_directory,
    resume_groups,
    still_owned,
)
from bench.training.pack_files import DivergenceError, PackFiles, check_finite
from bench.training.policies import build_agent, policy_file, policy_state
from bench.training.rollout import Rollout, Slot, Transition, open_episodes
from bench.training.shared_phase import finished_offline_phases
from bench.training.stopwatch import Stopwatch
from bench.training.workers import Template
from datasets.replay.replay import ONLINE_FIELDS, Replay
from datasets.replay.trajectories import TrajectoryStore
from datasets.transitions import Transitions

STATUS_SECONDS = 5.0
SHARD_STEPS = 1_000  # environment steps between shards of the data (`dataset_replace_interval` of QAM's driver)
POLL_SECONDS = 0.02  # between looks at the evaluation workers


def run(configs: list[RunConfig], results: Path, execution: Execution, should_stop: Callable[[], bool]) -> None:
    """Runs a pack: configs equal but for the seed. Goes on from checkpoints; raises Preemption when asked to stop.

    Where checkpoints lie apart, those behind train until they reach the next ones and go on together with them.
    Every run ends with a status of its own: complete, failed (with the error) or preempted. A run that another process
    holds, or takes over meanwhile, is left to it.
    """
    torch.set_num_threads(execution.threads)
    device = pick_device(execution.device)
    check_matmul(configs[0].matmul, device)
    directories = {config: prepare_directory(config, results) for config in configs}
    if all(map(is_complete, directories.values())):
        return
    task, data = configs[0].task, configs[0].data
    transitions = datasets.load(task, data, execution.data_dir) if data else datasets.no_data(task)
    offline = finished_offline_phases(configs, results)
    failures: list[Exception] = []
    log = next(iter(directories.values())) / LOG
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
                files = train_group(
                    group, execution, device, transitions, should_stop, until=ahead[0][0].point if ahead else None
                )
            except Takeover:
                continue  # the next turn finds out whose run that was
            failures += files.failures
            for seed in files.failed_seeds if ahead else [run.config.seed for run in group]:
                config = next(config for config in remaining if config.seed == seed)
                remaining.pop(config).release()
    finally:
        for claim in remaining.values():
            claim.release()
    if failures:
        raise failures[0]


def train_group(
    group: list[PackedRun],
    execution: Execution,
    device: torch.device,
    transitions: Transitions,
    should_stop: Callable[[], bool],
    until: TrainingPoint | None,
) -> PackFiles:
    """Trains runs that are at the same point; what they needed on the device is free when it returns.

    Raises ConfigError, which the runs' status then tells, where they cannot go on here; Takeover, Preemption.
    """
    try:
        training = Training(group, execution, device, transitions, should_stop)
    except ConfigError as error:
        note_refusal(group, error)
        raise
    try:
        training.open()
        training.run(until)
    finally:
        training.close()
    return training.files


class Training:
    """A pack of S runs in lockstep: same number of updates and environment steps, files and streams of their own.

    `open` before `run`, `close` after it, whatever happens.
    """

    def __init__(
        self,
        runs: list[PackedRun],
        execution: Execution,
        device: torch.device,
        transitions: Transitions,
        should_stop: Callable[[], bool],
    ):
        self.config = config = runs[0].config
        self._configs = [run.config for run in runs]  # equal but for the seed
        self.seeds = [config.seed for config in self._configs]
        self.execution, self.device, self.should_stop = execution, device, should_stop
        self.transitions = transitions
        self.files = PackFiles(runs)
        self._states = states = [run.state for run in runs if run.state is not None]
        self.updates, self.env_steps, self.evaluated = states[0].point if states else TrainingPoint(0, 0, False)

        self._asked = pick_mode(execution.engine, device, total_updates(config))
        self._model = model_of(device)
        computed = {run.directory: run.computed for run in runs if run.computed is not None}
        keep = engines_of_pack(computed, device, self._model, self._asked, execution)
        self.agent = build_agent(config, SeedStreams(self.seeds, device, "init"))
        self.replay = Replay(
            transitions,
            num_seeds=len(runs),
            chunk_length=self.agent.chunk_length,
            discount=config.discount,
            device=device,
            ring_rows=0 if config.rollout_steps else self._ring_rows,
        )
        self.trajectories: TrajectoryStore | None = None  # of an on-policy agent, instead of what the replay collects
        if config.rollout_steps is not None:
            num_steps = config.rollout_steps // config.num_envs
            self.trajectories = TrajectoryStore(
                len(runs), config.num_envs, num_steps, self.agent.obs_dim, config.discount, device
            )
        # A shorter run's end may lie between its logs; where this one logs there, its sums are written already.
        is_logged = log_is_due(config, self.updates, self.env_steps) and not is_over(
            config, self.updates, self.env_steps
        )
        self.metrics = MetricMeans([] if is_logged else [state.metrics for state in states], device)
        self.engine = Engine(
            self.agent,
            self.replay,
            self.metrics,
            seeds=self.seeds,
            batch_size=config.batch_size,
            online_batch_size=config.online_batch_size,
            first_online=config.offline_updates,
            device=device,
            mode=self._asked,
            keep=keep,
            may_change="engine" in execution.accept_change,
            matmul=config.matmul,
            on_policy=self.trajectories,
        )
        self._noted: dict[str, Mode] = {}  # of how updates are executed, in provenance.json
        self.rollouts: list[list[Rollout]] = []  # of each seed, of each of its environments
        if states:
            self.agent.load_seed_states([state.agent for state in states])
        self._saved_rows = 0
        self._polled = 0.0
        self._until: TrainingPoint | None = None
        self._clock, self._watch = Clock(), Stopwatch()
        self._opened = contextlib.ExitStack()

    def open(self) -> None:
        """Opens the runs' files, which records the start, and starts the worker processes.

        Raises Takeover where another process owns a run by now, ConfigError, StorageError.
        """
        resumed_from = None
        if self._states:
            resumed_from = {"phase": self.point.phase, "updates": self.updates, "env_steps": self.env_steps}
        threads = self.execution.threads
        start = describe_start(self.device, threads, self._asked, self.seeds, resumed_from)
        start |= {"plugins": facts_of_plugins(), "agent_source": agent_source(type(self.agent))}
        self._opened.callback(self.files.close)
        self.files.open(self.transitions, start)
        self._template = Template(prepare_worker, self.config)
        self._opened.callback(self._template.close)
        workers = self.execution.eval_workers or available_cores()
        self.evaluator = Evaluator(self._template, workers, self.config.success_rule)

    def close(self) -> None:
        """Ends worker processes and closes files, as far as `open` has come; lets go of what is on the device."""
        self._opened.close()
        self.engine.close()

    # The schedule: what happens at a point, in this order.

    def run(self, until: TrainingPoint | None = None) -> None:
        """Trains to the end and marks the runs complete, or to a checkpoint at the point `until`.

        Raises Preemption, after a checkpoint, when asked to stop.
        """
        config, self._until = self.config, until
        try:
            self._status("running")
            for evaluation in unfinished_evaluations(self._configs, [state.pending for state in self._states]):
                self.evaluator.submit(evaluation)
            if any(state.rollouts for state in self._states):
                self._hand_over()
            while self.files.living and self.point != until:
                if not self.evaluated and evaluation_is_due(config, self.updates, self.env_steps):
                    self._evaluate()
                    continue
                if is_over(config, self.updates, self.env_steps):
                    break
                if self.should_stop():
                    raise Preemption
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
            if self.point == until:
                self._checkpoint()
                return
            if self.evaluator.pending:
                self._checkpoint()  # training is over: a kill while the last evaluations run loses none of it
                self._await_evaluations()
            self._checkpoint()
            self.files.complete(lambda index: policy_file(config, self.agent, index))
            self._status("complete")
        except Preemption:
            self._checkpoint()
            self.files.end_starts()
            self._status("preempted")
            raise
        except Exception as error:
            self.files.fail_all(error, self.point, self._facts)
            raise

    @property
    def point(self) -> TrainingPoint:
        return TrainingPoint(self.updates, self.env_steps, self.evaluated)

    def _evaluate(self) -> None:
        """Sends frozen copies of the policies off to be evaluated; training goes on meanwhile, until the next one is
        due: on a busy machine evaluations would fall behind."""
        self._await_evaluations()
        policies = {index: policy_state(self.agent, index) for index in self.files.living}
        for index, policy in list(policies.items()):
            if not all(bool(value.isfinite().all()) for value in policy.values()):
                self._fail(index, f"seed {self.seeds[index]}: the policy's parameters are not finite")
                del policies[index]
        if policies:
            at = (self.point.phase, self.updates, self.env_steps)
            self.evaluator.submit(new_evaluation(self._configs, *at, policies))
        self.evaluated = True

    def _await_evaluations(self) -> None:
        """Waits until no evaluation is pending."""
        started = time.monotonic()
        while self.evaluator.pending:
            if self.should_stop():
                raise Preemption
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
                self.files.episodes(index, evaluation.point, evaluation.rows_of(index), seconds)
            self._status("running")
            print(f"{utc()} {scores(self.files.scores)}", flush=True)  # to the log of the process

    def _update_offline(self) -> None:
        stop_at = self._until.updates if self._until else None
        count = min(self.engine.burst, offline_updates_to_event(self.config, self.updates, stop_at))
        with self._watch.part("update"):
            self.engine.update_offline(self.updates, count)
        self._note_engines()
        self.updates += count
        self.evaluated = False
        self._clock.count("updates", count)
        self._log(count)

    @property
    def _ring_rows(self) -> int:
        """Online transitions of each seed that the replay will hold at most."""
        config = self.config
        kept = max(config.replay_capacity, self.transitions.num_transitions + 1)
        return config.online_steps if config.replay == "keep" else min(config.online_steps, kept)

    def _hand_over(self) -> None:
        """From dataset to environment: opens the rings, makes the environments, restores both after a restart.
        Parameters, optimiser state, targets and temperature carry over as they are."""
        config = self.config
        if self.trajectories is not None:
            collected = [state.trajectories for state in self._states if state.rollouts and state.trajectories]
            if collected:
                self.trajectories.restore(collected)
        else:
            keeps_all = config.replay == "keep"
            self.replay.open_ring(
                None if keeps_all else config.replay_capacity,
                config.online_steps,
                config.online_dataset_rows,
                config.online_batch_share,
                turn=SHARD_STEPS if keeps_all and config.online_dataset_rows is not None else None,
            )
            rows = [
                run.checkpoints.restore_replay(run.state, self.replay.row_width)
                for run in self.files.runs
                if run.state is not None
            ]
            if rows and self.env_steps:
                self.replay.restore_online(rows)
                self._saved_rows = self.replay.num_online
        slots = [Slot(seed, number) for seed in self.seeds for number in range(config.num_envs)]
        episodes = iter(open_episodes(config, slots, self._template, self.execution.env_workers))
        for run in self.files.runs:
            saved = (run.state.rollouts if run.state else None) or [None] * config.num_envs
            self.rollouts.append([Rollout(next(episodes), state) for state in saved])

    def _step_online(self) -> None:
        """One environment step per seed, in its environments in turn, then the updates that are due."""
        config, env_number = self.config, self.env_steps % self.config.num_envs
        if env_number == 0 and any(rollout.needs_chunk for rollouts in self.rollouts for rollout in rollouts):
            with self._watch.part("act"):
                self._act()
        stepped = [rollouts[env_number] for rollouts in self.rollouts]
        with self._watch.part("env_wait"):
            steps = [rollout.step() for rollout in stepped]
        rows = {name: _stack(steps, name) for name in ONLINE_FIELDS}
        if self.trajectories is not None:
            chunk_end = torch.tensor([float(rollout.needs_chunk) for rollout in stepped])
            self.trajectories.append(rows | {"chunk_end": chunk_end})
        else:
            self.replay.append(rows)
        self.env_steps += 1
        self.evaluated = False
        self._clock.count("env_steps")
        ended = [{f"behaviour_{name}": value for name, value in (step.episode or {}).items()} for step in steps]
        self.files.train(self.point, ended)
        updates = updates_after(config, self.env_steps)
        if updates:
            with self._watch.part("update"):
                if self.trajectories is not None:
                    self._estimate(self.trajectories)
                self.engine.update_online(self.updates, updates)
            self._note_engines()
            self.updates += updates
            self._clock.count("updates", updates)
        self._log(updates)

    def _act(self) -> None:
        """The policies' next chunks, for the rollouts that need one; a seed whose action is not finite fails."""
        if self.config.warmup_actions == "random" and self.env_steps + 1 < self.config.warmup_steps:
            draw = SeedStreams(self.seeds, "cpu", "warmup").at(self.env_steps)
            length = self.agent.chunk_length
            chunks = 2 * draw.uniform("action", self.config.num_envs, length, self.agent.chunk_dim // length) - 1
        else:
            obs = torch.from_numpy(np.stack([[rollout.obs for rollout in rollouts] for rollouts in self.rollouts]))
            chunks, record = self.engine.act(obs, self.env_steps)
            self._note_engines()
            if self.trajectories is not None:
                needed = [[float(rollout.needs_chunk) for rollout in rollouts] for rollouts in self.rollouts]
                self.trajectories.decide(torch.tensor(needed), record)
        for index, (rollouts, chunks_of_seed) in enumerate(zip(self.rollouts, chunks.numpy(), strict=True)):
            if self.files.alive[index] and not np.isfinite(chunks_of_seed).all():
                self._fail(index, f"seed {self.seeds[index]}: the policy's action is not finite")
            for rollout, chunk in zip(rollouts, chunks_of_seed, strict=True):
                if rollout.needs_chunk:
                    rollout.set_chunk(chunk if self.files.alive[index] else np.zeros_like(chunk))

    def _note_engines(self) -> None:
        """Into provenance.json, before any checkpoint, how updates and acting are executed."""
        if self._noted != self.engine.engines:
            self._noted = dict(self.engine.engines)
            self.files.note_engines(Computed(self._model, self._noted, self._asked), self.engine.warnings)

    def _estimate(self, store: TrajectoryStore) -> None:
        """What was collected since the last updates becomes the data of the next ones."""
        assert isinstance(self.agent, OnPolicyAgent)
        trajectories = store.trajectories()
        store.offer(trajectories, *self.agent.estimate(trajectories))

    # What is written: means and measurements, status, checkpoints.

    def _log(self, newest: int) -> None:
        """What is due after `newest` updates: means of the metrics since the last log, a measurement of the policies,
        norms of gradients. A run with a value that is not finite ends here as failed."""
        if log_is_due(self.config, self.updates, self.env_steps):
            with self._watch.part("update"):  # a GPU finishes the updates here
                unfinished = ends_between_logs(self.config, self.updates, self.env_steps)
                means = self.metrics.take(len(self.seeds), go_on=unfinished)
                measured = self.engine.policy_metrics(self.updates)
            self.files.train(self.point, [mean | policy for mean, policy in zip(means, measured, strict=True)])
            self.files.timing(self.point, {**self._clock.rates(), **self._watch.shares()})
            for index in self.files.living:
                error = check_finite(means[index], self.seeds[index], self.updates)
                if error is not None:
                    self.files.fail(index, error, self.point, self._facts)
        if gradient_norms_are_due(self.config, self.updates, self.env_steps, newest):
            with self._watch.part("update"):
                norms = self.engine.gradient_norms(self.point.phase, self.updates)
            self.files.train(self.point, norms)

    def _ring_is_unsaved(self) -> bool:
        """The next transition would overwrite one that no checkpoint holds."""
        if self.trajectories is not None:
            return False
        return bool(self.rollouts) and self.replay.num_online - self._saved_rows >= self.replay.ring_slots

    def _checkpoint(self) -> None:
        newest = self.replay.num_online
        with self._watch.part("write"):
            self.files.checkpoint(
                self._state_of_seed, lambda index: self.replay.online_rows(index, self._saved_rows, newest)
            )
        self._saved_rows = newest

    def _state_of_seed(self, index: int) -> RunState:
        """All that the run needs to go on from here: with `offsets` of its files goes what is not written yet."""
        pending = [evaluation for evaluation in self.evaluator.pending if index in evaluation.policies]
        return RunState(
            point=self.point,
            agent=self.agent.state_of_seed(index),
            metrics=self.metrics.state_of_seed(index),
            rollouts=[rollout.state() for rollout in self.rollouts[index]] if self.rollouts else None,
            trajectories=self.trajectories.rows_of_seed(index) if self.trajectories else None,
            pending=[evaluation.state_of_seed(index) for evaluation in pending],
            score=self.files.scores[index],
            offsets=self.files.offsets(index),
        )

    @property
    def _facts(self) -> dict[str, object]:
        """What status.json says beside the state: how updates are executed, and how fast."""
        return {"engine": self.engine.mode, "warning": "; ".join(self.engine.warnings) or None, **self._clock.recent}

    def _status(self, state: str) -> None:
        with self._watch.part("write"):
            self.files.status(state, self.point, self._facts)

    def _fail(self, index: int, why: str) -> None:
        self.files.fail(index, DivergenceError(why), self.point, self._facts)


def _stack(steps: list[Transition], name: str) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(getattr(step, name), np.float32) for step in steps]))
