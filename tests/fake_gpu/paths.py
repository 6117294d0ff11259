"""Every CUDA path of agents, replay and engine on a GPU that is not there.

    python -m tests.fake_gpu.paths                       all agents, one seed and a pack of 8; a JSON line of each
    python -m tests.fake_gpu.paths fql qc --seeds 1      some

An update is the engine's own: draw of the batch from data and ring, noise from the tape, the agent's update, sums of
metrics; agents, batches and shapes as published for cube-double. The exit code is 1 where one has a fault.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

import datasets
from agents import AGENTS
from agents.blocks.base import OnPolicyAgent, Phase
from agents.blocks.streams import NoiseTape, SeedStreams, Stream, TapeNoise
from bench.protocol.plugins import load_plugins
from bench.protocol.suites import run_config
from bench.runs.contract import error_line
from bench.training.engine import Engine
from bench.training.meters import MetricMeans
from datasets.batch import Trajectories
from datasets.replay.replay import Replay
from datasets.replay.trajectories import TrajectoryStore
from tests.benchmarks.updates import transitions
from tests.fake_gpu.build import GUARD, load_device_guard, run_on_fake_gpu
from tests.fake_gpu.device import fake_gpu, no_graph_outlives
from tests.fake_gpu.watch import Fault, Operator, Watch, line_of_ours

TASK = "cube-double-task2"
DEVICE = torch.device("cuda:0")
SEEDS = (1, 8)
PARTS = ("offline", "online", "act")  # that are captured


@dataclass
class Finding:
    """What was seen of one agent: faults, and the operators of each of PARTS; online those of `period` updates."""

    agent: str
    seeds: int
    period: int = 1
    faults: list[str] = field(default_factory=list)
    operators: dict[str, list[Operator]] = field(default_factory=dict)

    def mean(self, part: str, cost: Callable[[Operator], float]) -> float:
        """The cost of one update of a phase, or of acting once."""
        total = sum(cost(Operator(*operator)) for operator in self.operators[part])
        return total / (self.period if part == "online" else 1)

    def launches(self, part: str) -> int:
        return round(self.mean(part, lambda operator: operator.launches))


class Subject:
    """An agent of S seeds with engine, data and ring, all of it on the GPU."""

    def __init__(self, name: str, num_seeds: int):
        task, (agent_class, agent_config) = datasets.task(TASK), AGENTS[name]
        self.config = run_config("fake-gpu", task, name, 0, agent_config=agent_config)
        seeds, discount = range(num_seeds), self.config.discount
        init = SeedStreams(seeds, DEVICE, "init")
        self.agent = agent_class(agent_config, task.obs_dim, task.action_dim, init)
        self.replay = Replay(
            transitions(2_010),
            num_seeds=num_seeds,
            chunk_length=self.agent.chunk_length,
            discount=discount,
            device=DEVICE,
        )
        self.store: TrajectoryStore | None = None
        if self.config.rollout_steps is not None:
            num_envs = self.config.num_envs
            steps = self.config.rollout_steps // num_envs
            self.store = TrajectoryStore(num_seeds, num_envs, steps, self.agent.obs_dim, discount, DEVICE)
        self.engine = Engine(
            self.agent,
            self.replay,
            MetricMeans([], DEVICE),
            seeds=seeds,
            batch_size=self.config.batch_size,
            online_batch_size=self.config.online_batch_size,
            device=DEVICE,
            on_policy=self.store,
        )
        self.engine._acting.seek(0)

    def update_offline(self) -> None:
        self.engine._update("offline")

    def update_online(self) -> None:
        """One of each kind, where an agent's updates differ in turn."""
        for turn in range(self.agent.period):
            self.engine._update("online", turn)

    def hand_over(self) -> None:
        """From the offline phase to an online one that has collected what its first update needs."""
        config = self.config
        self.replay.open_ring(
            config.replay_capacity, config.online_steps, config.online_dataset_rows, config.online_batch_share
        )
        if self.store is not None:
            assert isinstance(self.agent, OnPolicyAgent)
            trajectories = self.trajectories(self.config.num_envs)
            self.store.offer(trajectories, *self.agent.estimate(trajectories))

    def trajectories(self, num_envs: int, num_steps: int = 4) -> Trajectories:
        obs = torch.zeros(self.agent.num_seeds, num_steps, num_envs, self.agent.obs_dim, device=DEVICE)
        record = self.agent.collect(obs[:, 0], TapeNoise(self.engine._acting))[1]
        step = obs[..., 0]
        return Trajectories(step, obs, record.unsqueeze(1).expand(*step.shape, -1), step, step, obs, step)

    def act(self) -> tuple[Tensor, Tensor]:
        obs = torch.zeros(self.agent.num_seeds, self.config.num_envs, self.agent.obs_dim, device=DEVICE)
        return self.agent.collect(obs, TapeNoise(self.engine._acting))

    def measure(self) -> None:
        """What is measured beside updates, on a batch drawn as theirs."""
        batch = self.replay.sample(torch.zeros(self.agent.num_seeds, 256, dtype=torch.float64, device=DEVICE))
        noise = TapeNoise(self.engine._noise)
        self.agent.policy_metrics(batch, noise)
        phase: Phase = "offline" if self.agent.num_seeds == 1 else "online"  # a long way: one of them for each size
        self.agent.gradient_norms(batch, noise, phase)


def examine(name: str, num_seeds: int, once: bool = False) -> Finding:
    """Runs all of an agent's paths. The first fault of each is put down, with the line that it comes from.

    With one seed the second call of each is watched, which finds what the first has left behind, unless `once`.
    """
    finding = Finding(name, num_seeds)

    def attempt(what: str, call: Callable[[], object]) -> None:
        try:
            with no_graph_outlives():
                if num_seeds == 1 and not once and what != "measurements":
                    call()
                with Watch() as watch, begins_unseen(watch):
                    call()
        except Exception as error:
            finding.faults.append(f"{what}: {_reason(error)} ({line_of_ours(error)})")
        else:
            finding.operators[what] = watch.operators

    with fake_gpu():
        subject = Subject(name, num_seeds)
        finding.period = subject.agent.period
        attempt("offline", subject.update_offline)
        attempt("act", subject.act)
        attempt("hand-over", subject.hand_over)
        attempt("online", subject.update_online)
        attempt("measurements", subject.measure)
    return finding


@contextlib.contextmanager
def begins_unseen(watch: Watch) -> Iterator[None]:
    """Within it `watch` does not see what happens once in a run: a stream joins a tape, a metric gets its sum."""
    read, add = NoiseTape.slice, MetricMeans.add

    def slice(tape: NoiseTape, stream: Stream) -> Tensor:
        if stream not in tape.blocks:
            with watch.looking_away():
                read(tape, stream)
        return read(tape, stream)

    def add_all(means: MetricMeans, metrics: dict[str, Tensor]) -> None:
        with watch.looking_away():
            for name in metrics.keys() - means.sums.keys():
                means.sums[name] = torch.zeros_like(metrics[name], dtype=torch.float64)
        add(means, metrics)

    with mock.patch.object(NoiseTape, "slice", slice), mock.patch.object(MetricMeans, "add", add_all):
        yield


def _reason(error: Exception) -> str:
    if isinstance(error, Fault):
        return str(error)
    if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
        return f"the host waits for the device: {error.func}"
    return error_line(error)[:300]


def findings(
    names: Sequence[str], seeds: Sequence[int] = SEEDS, plugins: Sequence[str] = (), once: bool = False
) -> list[Finding]:
    """What `examine` finds of these agents, in a process of its own. Raises NoFakeGPU."""
    arguments = ["-m", "tests.fake_gpu.paths", *names, "--seeds", *map(str, seeds), *(f"--plugin={p}" for p in plugins)]
    arguments += ["--once"] * once
    done = run_on_fake_gpu([*arguments, "--json"], stdout=subprocess.PIPE)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if len(rows) != len(names) * len(seeds):
        raise RuntimeError(f"{' '.join(arguments)} ended with exit code {done.returncode} after {len(rows)} agents")
    return [Finding(**row) for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="*")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="registers agents")
    parser.add_argument("--once", action="store_true", help="no second call, with one seed")
    parser.add_argument("--json", action="store_true", help="all that was seen")
    args = parser.parse_args()
    if GUARD not in os.environ:
        return run_on_fake_gpu(["-m", "tests.fake_gpu.paths", *sys.argv[1:]]).returncode
    load_plugins(tuple(args.plugin))
    load_device_guard()
    has_faults = False
    for name in args.agents or AGENTS:
        for num_seeds in args.seeds:
            finding = examine(name, num_seeds, args.once)
            has_faults |= bool(finding.faults)
            launches = ", ".join(f"{part} {finding.launches(part)}" for part in PARTS if part in finding.operators)
            shown = "; ".join(finding.faults) or f"no fault; launches: {launches}"
            print(json.dumps(asdict(finding)) if args.json else f"{name}, S = {num_seeds}: {shown}", flush=True)
    return int(has_faults)


if __name__ == "__main__":
    sys.exit(main())
