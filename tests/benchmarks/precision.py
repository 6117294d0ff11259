"""What --matmul bf16 does to training: losses of the same updates against fp32, and success at the end of runs.

    python -m tests.benchmarks.precision                                small networks (3 x 96) on cube-single, 3 seeds
    python -m tests.benchmarks.precision --paper-size --agents qc_fql   4 x 512
    python -m tests.benchmarks.precision --runs                         whole runs of the suite toy

Seeds, batches and noise are the same. Any other rounding grows, too, as training goes on: what bf16 does is to be read
beside a control, fp32 whose sums have another order (the form of a GPU, on the CPU).
"""

import argparse
import contextlib
import tempfile
from pathlib import Path
from statistics import fmean
from unittest import mock

import torch

import datasets
from agents import AGENTS
from agents.blocks import kernels
from agents.blocks.kernels import Matmul
from agents.blocks.streams import SeedStreams
from analysis.loading.load import load_results
from bench.protocol.config import RunConfig
from bench.protocol.suites import SUITES
from bench.tools.data import ensure_data
from bench.training.engine import Engine, check_matmul
from bench.training.execution import Execution
from bench.training.meters import MetricMeans
from bench.training.policies import build_agent
from bench.training.train import run
from datasets.replay.replay import Replay
from tests.benchmarks.measure import machine_line, table

CPU = torch.device("cpu")
SEEDS = (0, 1, 2)
METRICS = ("critic_loss", "policy_loss", "q_mean")
WAYS: dict[str, tuple[Matmul, bool]] = {"fp32": ("fp32", False), "control": ("fp32", True), "bf16": ("bf16", False)}


def losses(
    config: RunConfig, points: list[int], matmul: Matmul, other_order: bool
) -> dict[int, list[dict[str, float]]]:
    """Means of metrics by seed over the updates from one point to the next."""
    agent = build_agent(config, SeedStreams(SEEDS, CPU, "init"))
    data = datasets.load(config.task, config.dataset)
    replay = Replay(data, num_seeds=len(SEEDS), chunk_length=agent.chunk_length, discount=config.discount, device=CPU)
    metrics = MetricMeans()
    engine = Engine(agent, replay, metrics, seeds=SEEDS, batch_size=config.batch_size, device=CPU, matmul=matmul)
    means = {}
    form = mock.patch.object(kernels, "at_once", lambda x: True) if other_order else contextlib.nullcontext()
    with form:
        for done, point in zip([0, *points], points, strict=False):
            engine.update_offline(done, point - done)
            means[point] = metrics.take(len(SEEDS))
    return means


def distance(found: list[dict[str, float]], exact: list[dict[str, float]], name: str) -> str:
    """Mean over seeds of |found - exact| / |exact|."""
    return f"{fmean(abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(found, exact, strict=True)):.1e}"


def compare_losses(config: RunConfig, points: list[int]) -> list[tuple[str, ...]]:
    found = {way: losses(config, points, *how) for way, how in WAYS.items()}
    rows = []
    for point in points:
        exact = found["fp32"][point]
        for name in (name for name in METRICS if name in exact[0]):
            value = f"{fmean(of_seed[name] for of_seed in exact):.4g}"
            apart = [distance(found[way][point], exact, name) for way in ("bf16", "control")]
            rows.append((config.agent, str(point), name, value, *apart))
    return rows


def successes(matmul: Matmul) -> dict[str, list[float]]:
    """Success rates at the end of the runs of the suite toy, by agent."""
    configs = [config.replace(matmul=matmul) for config in SUITES["toy"]()]
    ensure_data(configs, None, set())
    with tempfile.TemporaryDirectory() as folder:
        for name in {config.agent for config in configs}:
            pack = [config for config in configs if config.agent == name]
            run(pack, Path(folder), Execution(device="cpu", engine="eager"), lambda: False)
        (suite,) = load_results(folder)
    return {agent: suite.cells["toy-reach", agent].online_score[:, -1].tolist() for agent in suite.agents}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", default=["qc_fql", "sac_flow_g", "qc", "dac"])
    parser.add_argument("--points", nargs="+", type=int, default=[10, 100, 500, 1000, 2000], help="numbers of updates")
    parser.add_argument("--paper-size", action="store_true", help="networks of 4 x 512, batch 256")
    parser.add_argument("--runs", action="store_true", help="success at the end of whole runs instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    check_matmul("bf16", CPU)
    print(machine_line(), flush=True)
    if args.runs:
        found = {matmul: successes(matmul) for matmul in ("fp32", "bf16")}
        rows = [
            (agent, matmul, *(f"{rate:.2f}" for rate in rates[agent]))
            for agent in found["fp32"]
            for matmul, rates in found.items()
        ]
        print(table("success at the end, suite toy", ("", "", *(f"seed {seed}" for seed in SEEDS)), rows))
        return
    configs = {config.agent: config for config in SUITES["baselines-quick"]() if config.seed == 0}
    chosen = [configs[name] for name in args.agents]
    ensure_data(chosen, None, set())
    columns = ("", "updates", "", "fp32", "bf16", "control")
    for config in chosen:
        if args.paper_size:
            config = config.replace(agent_config=AGENTS[config.agent][1], batch_size=256)
        title = f"{config.agent}, {len(SEEDS)} seeds: relative distance to fp32 of means up to a number of updates"
        print(table(title, columns, compare_losses(config, args.points)), flush=True)


if __name__ == "__main__":
    main()
