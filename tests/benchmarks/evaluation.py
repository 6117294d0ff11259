"""Evaluation: 50 episodes in our pool of processes against a sequential evaluator, and what training pays meanwhile.

    python -m tests.benchmarks.evaluation

The sequential evaluator is built like the official ones: one episode after the other, the package's own environment
step, the policy called at every step although actions of the last chunk are queued. Policies are of paper size and
freshly drawn, so that every episode runs to its time limit.
"""

import argparse
import itertools
import time
from typing import Any

import torch

import datasets
from agents.blocks.base import Agent
from agents.blocks.streams import SeedStreams
from bench.protocol.config import RunConfig
from bench.protocol.tuned import tuned_config
from bench.training.evaluate import FIXED_SEED, Evaluator, new_evaluation, prepare_worker
from bench.training.execution import available_cores
from bench.training.policies import build_agent, policy_state
from bench.training.workers import Template
from datasets.batch import Batch
from tests.benchmarks.measure import Timing, interleaved, machine_line, table, timing

SEQUENTIAL_EPISODES = 10  # of the sequential evaluator in each turn; its time is proportional to them


def sequential_episode(env: Any, agent: Agent, episode_seed: int) -> None:
    """One episode with a policy call at every step, of which every H-th chunk is executed."""
    noise = SeedStreams([episode_seed], "cpu", "evaluation")
    obs, _ = env.reset(seed=episode_seed)
    queue, length, ended = [], 0, False
    while not ended:
        chunk = agent.act(torch.from_numpy(obs)[None, None], noise.at(length), mode="evaluate")[0, 0].numpy()
        queue = queue or list(chunk)
        obs, _, terminated, truncated, _ = env.step(queue.pop(0))
        length, ended = length + 1, terminated or truncated


def package_env(task: str) -> Any:
    """The task with the package's own step."""
    from datasets.ogbench.env import SingleTask, task_env

    spec = datasets.task(task)
    return SingleTask(task_env(spec, "post", package_step=True), spec)


def evaluate(evaluator: Evaluator, agent: Agent, config: RunConfig) -> None:
    """One evaluation, waited for."""
    evaluator.submit(new_evaluation([config], "offline", 0, 0, {0: policy_state(agent, 0)}))
    while not evaluator.finished(timeout=1.0):
        pass


def pool_against_sequential(config: RunConfig, workers: int, turns: int) -> list[list[object]]:
    """Rows of the first table."""
    agent = build_agent(config, SeedStreams([0], "cpu", "init"))
    env, seeds = package_env(config.task), itertools.count(FIXED_SEED)
    template = Template(prepare_worker, config)
    evaluator = Evaluator(template, workers, config.success_rule)

    def sequential() -> None:
        for _ in range(SEQUENTIAL_EPISODES):
            sequential_episode(env, agent, next(seeds))

    times = interleaved({"sequential": sequential, "pool": lambda: evaluate(evaluator, agent, config)}, turns=turns)
    template.close()
    factor = config.eval_episodes / SEQUENTIAL_EPISODES
    slow, fast = times["sequential"], times["pool"]
    slow = Timing(*(factor * seconds for seconds in vars(slow).values()))
    ratio = slow.median / fast.median
    return [
        [f"{config.agent}, sequential", f"{slow.median:.1f}", f"±{slow.spread:.0%}", "1.00x"],
        [f"{config.agent}, pool of {workers}", f"{fast.median:.1f}", f"±{fast.spread:.0%}", f"{ratio:.2f}x"],
    ]


def training_while_pending(config: RunConfig, workers: int, turns: int, seconds: float) -> list[list[object]]:
    """Rows of the second table: gradient updates in this process, with idle workers and with busy ones, in turn."""
    torch.set_num_threads(1)
    task = datasets.task(config.task)
    agent = build_agent(config, SeedStreams([0], "cpu", "init"))
    noise = SeedStreams([0], "cpu", "benchmark")
    size, length = config.batch_size, agent.chunk_length
    batch = Batch(
        obs=torch.randn(1, size, task.obs_dim),
        action_chunk=torch.rand(1, size, length, task.action_dim) * 2 - 1,
        chunk_return=-torch.rand(1, size),
        bootstrap=torch.ones(1, size),
        next_obs=torch.randn(1, size, task.obs_dim),
        valid=torch.ones(1, size, length),
    )
    template = Template(prepare_worker, config)
    evaluator = Evaluator(template, workers, config.success_rule)
    evaluate(evaluator, agent, config)  # the workers are up
    policy = policy_state(agent, 0)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _, pending in itertools.product(range(turns), (False, True)):
        started, updates = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            if pending and not evaluator.pending:
                evaluator.submit(new_evaluation([config], "offline", 0, 0, {0: policy}))
            evaluator.finished()
            agent.update_turn(batch, noise.at(updates), updates % agent.period)
            updates += 1
        times[pending].append((time.perf_counter() - started) / updates)
        while evaluator.pending:
            evaluator.finished(timeout=1.0)
    template.close()
    idle, busy = timing(times[False]), timing(times[True])
    return [
        [f"{config.agent}, no evaluation", f"{1 / idle.median:.1f}", f"±{idle.spread:.0%}", "1.00x"],
        [
            f"{config.agent}, evaluation pending",
            f"{1 / busy.median:.1f}",
            f"±{busy.spread:.0%}",
            f"{idle.median / busy.median:.2f}x",
        ],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="cube-single-task1")
    parser.add_argument("--agents", nargs="+", default=["sac_flow_g", "qc_fql"])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of training in each turn of the second table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine_line())
    configs = [run_config(options, agent) for agent in options.agents]
    rows = [row for config in configs for row in pool_against_sequential(config, options.workers, options.turns)]
    title = (
        f"{options.episodes} episodes of {options.task}, wall-clock (sequential: {SEQUENTIAL_EPISODES} of them, scaled)"
    )
    print(table(title, ("evaluator", "seconds", "spread", "ratio"), rows), flush=True)
    rows = training_while_pending(configs[0], options.workers, options.turns, options.seconds)
    print(table("Training (eager, one thread) during an evaluation", ("", "updates/s", "spread", "ratio"), rows))


def run_config(options: argparse.Namespace, agent: str) -> RunConfig:
    """A run of paper size."""
    task = datasets.task(options.task)
    return RunConfig(
        suite="benchmark",
        task=task.name,
        agent=agent,
        seed=0,
        dataset=task.dataset,
        agent_config=tuned_config(agent, task.domain),
        eval_episodes=options.episodes,
    )


if __name__ == "__main__":
    main()
