"""Gradient updates per second: every agent, eager, compiled, captured and packed, beside JAX where it is installed.

    python -m tests.benchmarks.updates                                  every agent, on one thread
    python -m tests.benchmarks.updates --agents qc_fql --threads 2      on two
    python -m tests.benchmarks.updates --side-by-side --agents qc_fql   packs and processes that share the cores
    python -m tests.benchmarks.updates --matmul fp32 bf16 --packs 1     products of layers in several precisions
    python -m tests.benchmarks.updates --profile qc_fql                 where an update's time goes
    python -m tests.benchmarks.updates --task ant-v4 --agents crossq    shapes of a task, with its settings and batch
    python -m tests.benchmarks.updates --small [2x256x128]              cube-single's; networks of 3 x 96, batch 128
    python -m tests.benchmarks.updates --device cuda --packs 1 8        on a GPU

Networks of paper size, batch 256, the shapes of cube-double, if no task is named. Every alternative is a process of its
own that waits for requests; they take turns, and the medians of the turns count. JAX may live in another environment:
--jax PYTHON names its interpreter. Compiling takes minutes the first time and is not counted; what was compiled is
kept. Agents whose policy steps are fewer than their critics' want --calls in whole periods: 3, or 6. On-policy agents'
updates are on decisions of one made-up rollout; these agents are measured where they are named.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch

import datasets
from agents import AGENTS
from agents.blocks.base import OnPolicyAgent
from agents.blocks.config import settings_of, with_settings
from agents.blocks.kernels import Matmul
from agents.blocks.streams import SeedStreams
from bench.grid.measuring import made_up_decisions
from bench.protocol.grids import run_config
from bench.training.engine import Engine, check_matmul, pick_device, pick_mode
from bench.training.execution import available_cores
from bench.training.meters import MetricMeans
from datasets.replay.replay import Replay
from datasets.transitions import Transitions
from tests.benchmarks.measure import Timing, machine_line, peak_megabytes, table, timing

OBS_DIM, ACTION_DIM, BATCH_SIZE = 37, 5, 256
DEFAULT_TASK = "cube-double-task2"
SMALL = re.compile(r"(\d+)x(\d+)x(\d+)")  # layers, units and batch in the place of a task
PHASES = ("online", "offline")


@dataclass(frozen=True)
class Shapes:
    """What an agent's updates are measured on."""

    config: Any
    obs_dim: int = OBS_DIM
    action_dim: int = ACTION_DIM
    batch_size: int = BATCH_SIZE


def shapes_of(agent: str, task_name: str | None) -> Shapes:
    """Those of a task, as the agent is run on it, or those of cube-double with the agent's default settings.

    SMALL is no task: cube-single's shapes with networks and a batch of that size.
    """
    if sizes := SMALL.fullmatch(task_name or ""):
        layers, units, batch_size = map(int, sizes.groups())
        return Shapes(with_layers(AGENTS[agent][1], layers * (units,)), obs_dim=28, batch_size=batch_size)
    if task_name is None:
        return Shapes(AGENTS[agent][1])
    task = datasets.task(task_name)
    run = run_config("sizes", task, agent, 0)
    return Shapes(run.agent_config, task.obs_dim, task.action_dim, run.online_batch_size)


def with_layers(config: Any, hidden_dims: tuple[int, ...]) -> Any:
    """An agent's settings with these hidden layers in all networks."""
    names = settings_of(config)
    widths: dict[str, Any] = {name: hidden_dims for name in names if name.endswith("hidden_dims")}
    inner = {name: hidden_dims[0] for name in ("gate_dim", "decoder_dim") if name in names}
    return with_settings(config, **widths, **inner)


@dataclass(frozen=True)
class Alternative:
    """One way of making updates, and how many of its processes work at the same time."""

    name: str  # "jax" or an engine's mode
    threads: int
    seeds: int = 1
    processes: int = 1
    matmul: Matmul = "fp32"

    @property
    def label(self) -> str:
        pack = f", pack of {self.seeds}" if self.seeds > 1 else ""
        matmul = f", {self.matmul}" if self.matmul != "fp32" else ""
        side = f", {self.processes} processes" if self.processes > 1 else ""
        return f"{self.name}, {self.threads} thread{'s' * (self.threads > 1)}{matmul}{pack}{side}"


def transitions(
    rows: int = 100_000, length: int = 200, obs_dim: int = OBS_DIM, action_dim: int = ACTION_DIM
) -> Transitions:
    """Random numbers in the shape of a task's data."""
    numbers = np.random.default_rng(0)
    rows -= rows % (length + 1)
    final = np.zeros(rows, bool)
    final[length :: length + 1] = True
    return Transitions(
        obs=numbers.standard_normal((rows, obs_dim), np.float32),
        action=numbers.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        reward=-numbers.integers(0, 3, rows).astype(np.float32),
        terminated=np.zeros(rows, bool),
        final=final,
        name="random",
        origin="generated",
        content_hash="0",
    )


def make_engine(
    agent: str,
    seeds: int,
    mode_name: str,
    device: torch.device,
    matmul: Matmul = "fp32",
    task: str | None = None,
) -> Engine:
    shapes = shapes_of(agent, task)
    config, data = shapes.config, transitions(obs_dim=shapes.obs_dim, action_dim=shapes.action_dim)
    replay = Replay(data, num_seeds=seeds, chunk_length=config.chunk_length, discount=0.99, device=device)
    built = AGENTS[agent][0](config, shapes.obs_dim, shapes.action_dim, SeedStreams(range(seeds), device, "init"))
    rollout = None
    if isinstance(built, OnPolicyAgent):
        rollout = made_up_decisions(run_config("sizes", datasets.task(task or DEFAULT_TASK), agent, 0), built, device)
    mode = pick_mode(mode_name, device, updates=0)
    metrics = MetricMeans([], device)
    check_matmul(matmul, device)
    settings: dict[str, Any] = {"batch_size": shapes.batch_size, "device": device, "mode": mode, "matmul": matmul}
    return Engine(built, replay, metrics, seeds=range(seeds), on_policy=rollout, **settings)


def serve(
    agent: str, task: str | None, phase: str, mode: str, seeds: int, threads: int, device_name: str, matmul: Matmul
) -> None:
    """Answers `run N` on stdin by making N updates: JSON with wall-clock and CPU seconds and memory in MB."""
    torch.set_num_threads(threads)
    device = pick_device(device_name)
    engine = make_engine(agent, seeds, mode, device, matmul, task)
    update = engine.update_offline if phase == "offline" else engine.update_online
    number = 0
    for line in itertools.chain(["run 2"], sys.stdin):  # the first updates compile
        count = int(line.split()[1])
        wall, cpu = time.perf_counter(), time.process_time()
        update(number, count)
        if device.type == "cuda":
            torch.cuda.synchronize()
        number += count
        print(
            json.dumps(
                {
                    "seconds": time.perf_counter() - wall,
                    "cpu_seconds": time.process_time() - cpu,
                    "mode": engine.mode,
                    "megabytes": peak_megabytes(),
                }
            ),
            flush=True,
        )


class Peer:
    """A process that makes updates when it is asked to."""

    def __init__(self, command: Sequence[str]):
        self._command = " ".join(command)
        # JAX takes three quarters of a GPU's memory otherwise.
        environment = {**os.environ, "MUJOCO_GL": "disable", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.first = self.answer()

    def ask(self, updates: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"run {updates}\n")
        self._process.stdin.flush()

    def answer(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._command} ended with exit code {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def python_with_jax(python: str | None, device: str) -> str | None:
    """A Python whose JAX computes on this kind of device: `python`, or else this one; None where it does not."""
    if python is None and importlib.util.find_spec("jax") is None:
        return None
    python = python or sys.executable
    if device == "cuda":
        code = "import jax; print(jax.default_backend())"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if done.stdout.strip() != "gpu":
            return None
    return python


def peer_command(
    alternative: Alternative, agent: str, phase: str, device: str, jax: str | None, task: str | None
) -> list[str]:
    settings = ["--serve", "--threads", str(alternative.threads)]
    if alternative.name == "jax":
        assert jax is not None
        shapes = shapes_of(agent, task)
        settings += ["--obs-dim", str(shapes.obs_dim), "--action-dim", str(shapes.action_dim)]
        settings += ["--batch-size", str(shapes.batch_size), "--sizes", json.dumps(settings_of(shapes.config))]
        return [jax, "-m", "tests.benchmarks.jax_updates", "--agent", agent, "--phase", phase, *settings]
    settings += ["--task", task] if task else []
    of_ours = ["--mode", alternative.name, "--seeds", str(alternative.seeds), "--device", device]
    of_ours += ["--matmul", alternative.matmul]
    return [sys.executable, "-m", "tests.benchmarks.updates", "--agents", agent, "--phases", phase, *settings, *of_ours]


@contextlib.contextmanager
def started(alternative: Alternative, *where: str | None) -> Iterator[list[Peer]]:
    peers = []
    try:
        for _ in range(alternative.processes):
            peers.append(Peer(peer_command(alternative, *where)))  # type: ignore[arg-type]
        yield peers
    finally:
        for peer in peers:
            peer.close()


def measure(
    alternatives: Sequence[Alternative],
    agent: str,
    phase: str,
    device: str,
    jax: str | None,
    turns: int,
    calls: int,
    task: str | None = None,
    clock: str = "wall",
) -> tuple[dict[Alternative, Timing], dict[Alternative, float], dict[Alternative, str]]:
    """Seconds per update of one seed, all processes together; peak MB of a process; mode in effect.

    `clock`: "wall", or "cpu" for seconds of all threads, which other work on the machine disturbs less.
    """
    seconds: dict[Alternative, list[float]] = {alternative: [] for alternative in alternatives}
    megabytes: dict[Alternative, float] = {}
    modes: dict[Alternative, str] = {}
    with contextlib.ExitStack() as stack:
        peers = {a: stack.enter_context(started(a, agent, phase, device, jax, task)) for a in alternatives}
        for turn in range(turns + 1):
            for alternative, own in peers.items():
                wall = time.perf_counter()
                for peer in own:
                    peer.ask(calls)
                answers = [peer.answer() for peer in own]
                wall = time.perf_counter() - wall
                megabytes[alternative] = max(answer.get("megabytes", 0.0) for answer in answers)
                modes[alternative] = answers[0].get("mode", "jax")
                if turn:
                    cpu = sum(answer["cpu_seconds"] for answer in answers)
                    spent = wall if clock == "wall" else cpu
                    seconds[alternative].append(spent / (calls * alternative.seeds * alternative.processes))
    return {a: timing(values) for a, values in seconds.items()}, megabytes, modes


def print_table(
    title: str,
    alternatives: Sequence[Alternative],
    against: Sequence[Alternative],
    agents: Sequence[str],
    phases: Sequence[str],
    args: argparse.Namespace,
) -> None:
    """One row per agent, phase and alternative; a column of ratios for each alternative in `against`."""
    rows = []
    for agent in agents:
        for phase in phases:
            how = (args.device, args.jax, args.turns, args.calls, args.task, args.clock)
            times, megabytes, modes = measure(alternatives, agent, phase, *how)
            for alternative, own in times.items():
                fallen = "" if modes[alternative] == alternative.name else f" (fell back to {modes[alternative]})"
                rows.append(
                    (
                        f"{agent} {phase}: {alternative.label}{fallen}",
                        f"{1e3 * own.median:.2f}",
                        f"{1e3 * own.low:.2f}-{1e3 * own.high:.2f}",
                        f"{1 / own.median:.1f}",
                        f"{megabytes[alternative]:.0f}" if megabytes[alternative] else "",
                        *(f"{times[other].median / own.median:.2f}x" for other in against),
                    )
                )
            print(f"measured {agent} {phase}", file=sys.stderr, flush=True)
    columns = ["", "ms per update and seed", "quartiles", "updates/s", "MB", *(f"vs {a.label}" for a in against)]
    print(table(title, columns, rows), flush=True)


def print_profile(agent: str, task: str | None, phase: str, mode: str) -> None:
    """Shares of CPU time by operator."""
    torch.set_num_threads(1)
    engine = make_engine(agent, 1, mode, pick_device("cpu"), task=task)
    update = engine.update_offline if phase == "offline" else engine.update_online
    update(0, 3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        update(3, 8)
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    rows = [
        (event.key[:60], f"{event.self_cpu_time_total / 8e3:.2f}", f"{event.self_cpu_time_total / total:.1%}",
         f"{event.count / 8:.0f}")
        for event in events[:15]
    ]  # fmt: skip
    title = f"{agent}, {phase} update, {mode}, one thread: {total / 8e3:.1f} ms, of which"
    print(table(title, ("operator", "ms", "share", "calls"), rows))


def small_sizes(text: str) -> str:
    if not SMALL.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not layers, units and batch, as in 2x256x128")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    replaying = [name for name, (agent_class, _) in AGENTS.items() if not issubclass(agent_class, OnPolicyAgent)]
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=replaying)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=["online"])
    parser.add_argument("--modes", nargs="+", help="engines to compare (default: all that the device has)")
    parser.add_argument("--matmul", nargs="+", choices=get_args(Matmul), default=["fp32"], help="precisions to compare")
    parser.add_argument("--task", help="whose shapes, settings and batches (default: those of cube-double)")
    sizes = {"type": small_sizes, "nargs": "?", "const": "3x96x128", "metavar": "LxUxB"}
    parser.add_argument("--small", dest="task", **sizes, help="layers, units, batch (3x96x128); shapes of cube-single")
    parser.add_argument("--packs", nargs="+", type=int, help="seeds per process (default: 1 4; on a GPU 1 8)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--turns", type=int, default=7, help="turns that count")
    parser.add_argument("--calls", type=int, help="updates per turn (default: 3; on a GPU 256)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time, on a busy machine")
    parser.add_argument("--jax", help="Python that has JAX (default: this one, where it has)")
    parser.add_argument("--side-by-side", action="store_true", help="alternatives that use all cores")
    parser.add_argument("--profile", nargs="*", metavar="AGENT", help="print where the time of an update goes")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="eager", help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        how = (args.mode, args.seeds, args.threads, args.device, args.matmul[0])
        return serve(args.agents[0], args.task, args.phases[0], *how)
    on_policy = [agent for agent in (*args.agents, *(args.profile or [])) if agent not in replaying]
    if on_policy and (args.phases != ["online"] or SMALL.fullmatch(args.task or "")):
        parser.error(f"{', '.join(on_policy)}: of on-policy agents only online updates are measured, not --small")
    print(machine_line(), flush=True)
    if args.profile is not None:
        for agent in args.profile or args.agents:
            for mode in args.modes or ["eager"]:
                print_profile(agent, args.task, args.phases[0], mode)
        return None

    on_gpu = args.device == "cuda"
    args.calls = args.calls or (256 if on_gpu else 3)
    if (jax := python_with_jax(args.jax, args.device)) is None:
        where = "sees no GPU" if args.jax and on_gpu else "is not installed"
        print(f"JAX {where} here: no comparison with it (--jax PYTHON names an environment that has it)")
    args.jax = jax
    cores = available_cores()
    if args.side_by_side:
        alternatives = [Alternative(mode, 1, 1, cores) for mode in args.modes or ("eager", "compiled")]
        alternatives += [Alternative("eager", 1, 1, 4), Alternative("eager", cores, 4)]
        against = [Alternative("eager", 1, 1, 4)]
        if args.jax:
            against = [Alternative("jax", cores), *against]
            alternatives.insert(0, against[0])
        title = f"all {cores} cores: time per update of a seed, all processes together"
    else:
        modes = args.modes or (["eager", "compiled", "graph", "compiled-graph"] if on_gpu else ["eager", "compiled"])
        packs = args.packs or ([1, 8] if on_gpu else [1, 4])
        packed_modes = modes[-1:] if on_gpu else modes[:1]
        alternatives = [Alternative(mode, args.threads, matmul=matmul) for mode in modes for matmul in args.matmul]
        alternatives += [Alternative(mode, args.threads, n) for n in packs if n > 1 for mode in packed_modes]
        against = [Alternative(mode, args.threads, matmul=args.matmul[0]) for mode in modes[: len(args.matmul)]]
        if args.jax:
            against.insert(0, Alternative("jax", args.threads))
            alternatives.insert(0, against[0])
        title = f"{args.turns} interleaved turns of {args.calls} updates"
    print_table(title, alternatives, against, args.agents, args.phases, args)
    return None


if __name__ == "__main__":
    main()
