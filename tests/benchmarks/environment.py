"""CPU time of steps and resets: the packages' own against `datasets.ogbench.fast` and `datasets.robomimic.fast`.

Run as `python -m tests.benchmarks.environment`. Each environment takes the same random actions in a process of its
own, as the faster one changes a setting of MuJoCo that holds for its process. `--tasks hopper-v4 ant-v4` measures
steps of any tasks instead, as runs take them, resets included.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

import datasets
from datasets.ogbench.tasks import DOMAINS
from datasets.registry import task
from datasets.robomimic.tasks import ENV_NAMES
from tests.benchmarks.measure import Timing, interleaved, machine_line, table

CUBES = tuple(name for name in DOMAINS if name.startswith("cube-"))
ROBOMIMIC = tuple(ENV_NAMES)
RESETS = 4  # per turn
KINDS = ("package", "fast")
PARTS = ("physics", "inverse kinematics", "observation and info")


class Stopwatch:
    """CPU seconds spent in functions; one that runs within another counts for the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._running = False

    def around(self, owner: Any, name: str, part: str) -> None:
        """Replaces an attribute of `owner` by a function that counts for `part`."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return function(*args, **kwargs)
            self._running = True
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.process_time() - started
                self._running = False

        setattr(owner, name, timed)


def serve(connection: Connection, task_name: str, kind: str, num_steps: int) -> None:
    """Answers "steps" with the CPU seconds of `num_steps` steps and of a reset; "parts" with those of each part.

    Once it has measured parts, which takes time itself, it measures nothing else.
    """
    import mujoco

    spec = task(task_name)
    if spec.domain in ROBOMIMIC:
        from datasets.robomimic.env import RobomimicTask

        env: Any = RobomimicTask(spec, package=kind == "package")
    else:
        from datasets.ogbench.env import SingleTask, task_env

        env = SingleTask(task_env(spec, "post", package_step=kind == "package"), spec)
    actions = np.random.default_rng(0).uniform(-1, 1, (num_steps, spec.action_dim)).astype(np.float32)

    def steps() -> float:
        started = time.process_time()
        for action in actions:
            env.step(action)
        return time.process_time() - started

    while connection.recv() == "steps":
        started = time.process_time()
        for seed in range(RESETS):
            env.reset(seed=seed)
        reset = (time.process_time() - started) / RESETS
        connection.send((steps(), reset))
    watch, simulator = Stopwatch(), env.unwrapped
    watch.around(mujoco, "mj_step", "physics")
    watch.around(mujoco, "mj_rnePostConstraint", "physics")
    watch.around(simulator._ik, "solve", "inverse kinematics")  # type: ignore[attr-defined]
    for name in ("compute_observation", "compute_ob_info"):
        watch.around(simulator, name, "observation and info")
    while True:
        env.reset(seed=0)
        watch.seconds = dict.fromkeys(PARTS, 0.0)
        total = steps()
        connection.send([*watch.seconds.values(), total - sum(watch.seconds.values())])
        connection.recv()


def measure(
    task_name: str, num_steps: int, turns: int
) -> tuple[dict[str, Timing], dict[str, float], dict[str, list[float]]]:
    """Seconds per step of both kinds, and medians: of the seconds of a reset, and of those of each part of a step and
    of the rest, which are told for cubes alone."""
    context = multiprocessing.get_context("spawn")
    spent = 0.0
    connections: dict[str, Connection] = {}
    resets: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        for kind in KINDS:
            connections[kind], theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, task_name, kind, num_steps), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)

        def ask(kind: str) -> None:
            nonlocal spent
            connections[kind].send("steps")
            seconds, reset = connections[kind].recv()
            spent += seconds / num_steps
            resets[kind].append(reset)

        timings = interleaved({kind: lambda kind=kind: ask(kind) for kind in KINDS}, turns=turns, clock=lambda: spent)
        parts: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
        for _ in range(turns if task(task_name).domain in CUBES else 0):
            for kind, connection in connections.items():
                connection.send("parts")
                parts[kind].append(connection.recv())
    medians = {kind: [median(turn) / num_steps for turn in zip(*turns, strict=True)] for kind, turns in parts.items()}
    return timings, {kind: median(seconds) for kind, seconds in resets.items()}, medians


def print_tasks(names: list[str], num_steps: int, turns: int) -> None:
    """Steps of uniform actions of each task, and the hours of a million of them."""
    generator = np.random.default_rng(0)

    def play(env: gymnasium.Env[Any, Any], actions: NDArray[np.float32]) -> None:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    plays = {}
    for name in names:
        env = datasets.make_env(name, "post")
        env.reset(seed=0)
        actions = generator.uniform(-1, 1, (num_steps, task(name).action_dim)).astype(np.float32)
        plays[name] = partial(play, env, actions)
    rows = []
    for name, timing in interleaved(plays, turns=turns, clock=time.process_time).items():
        seconds = timing.median / num_steps
        quartiles = f"{timing.low / num_steps * 1e6:.0f} to {timing.high / num_steps * 1e6:.0f}"
        rows.append((name, f"{seconds * 1e6:.0f}", quartiles, f"{1 / seconds:.0f}", f"{seconds / 3600 * 1e6:.2f}"))
    columns = ("environment", "us", "quartiles", "steps per CPU-second", "hours of 1M")
    print(table(f"CPU time per step, random actions: median of {turns} turns of {num_steps} steps each", columns, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", nargs="+", choices=(*CUBES, *ROBOMIMIC), default=list(CUBES))
    parser.add_argument("--tasks", nargs="+", help="steps of these instead, in this process")
    parser.add_argument("--steps", type=int, default=150, help="steps per turn")
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    os.environ.setdefault("MUJOCO_GL", "disable")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.tasks:
        print(f"{machine_line()}, {', '.join(f'{package} {version(package)}' for package in ('mujoco', 'gymnasium'))}")
        return print_tasks(args.tasks, args.steps, args.turns)

    packages = ("mujoco", *(["robosuite"] if set(args.domains) & set(ROBOMIMIC) else []), "ogbench")
    print(f"{machine_line()}, {', '.join(f'{package} {version(package)}' for package in packages)}")
    steps, shares = [], []
    for domain in args.domains:
        timings, resets, parts = measure(task(domain).name, args.steps, args.turns)
        package, fast = (timings[kind] for kind in KINDS)
        for kind in KINDS:
            timing = timings[kind]
            quartiles = f"{timing.low * 1e6:.0f} to {timing.high * 1e6:.0f}"
            ratio = f"{package.median / fast.median:.2f}x" if kind == "fast" else ""
            reset = f"{resets[kind] * 1e3:.1f}"
            rate = f"{1 / timing.median:.0f}"
            steps.append((domain, kind, f"{timing.median * 1e6:.0f}", quartiles, rate, ratio, reset))
            if parts[kind]:
                total = sum(parts[kind])
                shares.append((domain, kind, *(f"{s * 1e6:.0f} ({s / total:.0%})" for s in parts[kind])))
    print(
        table(
            f"CPU time per step, random actions: median of {args.turns} turns of {args.steps} steps each",
            ("environment", "step", "us", "quartiles", "steps per CPU-second", "ratio", "reset, ms"),
            steps,
        )
    )
    if not shares:
        return None
    print(
        table(
            f"Where the time goes, measured in {args.turns} more turns: us (share)",
            ("environment", "step", *PARTS, "rest"),
            shares,
        )
    )


if __name__ == "__main__":
    main()
