"""What every agent's update would launch and take on a GPU, counted and projected on a machine without one.

    python -m tests.benchmarks.kernels                    every agent, one seed and a pack of 8, against the goals
    python -m tests.benchmarks.kernels --agents fql qc    some
    python -m tests.benchmarks.kernels --compiled         compiles them instead (needs Triton; an hour for all)
    python -m tests.benchmarks.kernels --write            the counts become the budget that tests/test_fake_gpu.py holds

Operators are those of the eager update on fake CUDA tensors, networks and batches as published for cube-double. Each
takes as long as its launches in a CUDA graph, its products or its memory traffic, whichever is longest: a floor by the
constants below, not a measurement. Compiled updates have the launches of the budget and the eager update's products.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import datasets
from agents import AGENTS
from bench.protocol.config import RunConfig
from bench.protocol.schedule import total_updates
from bench.protocol.suites import run_config
from tests.benchmarks.measure import table
from tests.benchmarks.peers import beside
from tests.fake_gpu.budget import COMPILED, TABLE, Row, counts, departures, read_budget, write_budget
from tests.fake_gpu.compiled import fused_launches
from tests.fake_gpu.paths import PARTS, SEEDS, TASK, Finding, findings
from tests.fake_gpu.watch import Operator

# One H200: seconds of a launch in a graph and of an eager one; 70 % of the data sheet's FLOP/s and bytes/s.
GRAPH_LAUNCH, EAGER_LAUNCH = 2.5e-6, 6e-6
RATES = {"fp32": 47e12, "tf32": 346e12}
BANDWIDTH = 3.3e12
PACK = 8


class Projection(NamedTuple):
    """Of one agent in one precision."""

    milliseconds: dict[tuple[str, int], float]  # (part, S) -> of one update, or of acting once
    hours: dict[int, float]  # S -> of the GPU, for a seed's run

    @property
    def gain(self) -> float:
        """Offline updates per second of a pack's seeds, over those of a seed alone."""
        return PACK * self.milliseconds["offline", 1] / self.milliseconds["offline", PACK]


class Goal(NamedTuple):
    """What is hoped for of 1M updates and 1M steps on one H200."""

    what: str
    value: Callable[[Projection], float]
    least: float = 0.0
    most: float = math.inf

    def is_met(self, projection: Projection) -> bool:
        return self.least <= self.value(projection) <= self.most


GOALS = (
    Goal("hours", lambda projection: projection.hours[1], most=1.0),
    Goal("hours per seed of a pack", lambda projection: projection.hours[PACK], most=0.3),
    Goal("gain of a pack", lambda projection: projection.gain, least=5.0),
)


def seconds(found: Finding, part: str, rate: float, launch: float = GRAPH_LAUNCH) -> float:
    """Least time of one update of a phase, or of acting once."""

    def of_operator(operator: Operator) -> float:
        return max(operator.launches * launch, operator.flop / rate, operator.bytes / BANDWIDTH)

    return found.mean(part, of_operator)


def fused_seconds(found: Finding, launches: int, rate: float) -> float:
    """Least time of an offline update that a compiler has fused into so many launches: that of the products, which it
    does not fuse, and a launch for every other kernel, whose traffic is not known."""
    products = [operator for operator in found.operators["offline"] if Operator(*operator).flop]
    of_products = seconds(replace(found, operators={"offline": products}), "offline", rate)
    return of_products + max(0, launches - len(products)) * GRAPH_LAUNCH


def project(found: Sequence[Finding], rate: float) -> Projection:
    """`found`: one agent with one seed and with PACK."""
    config = run_config("kernels", datasets.task(TASK), found[0].agent, 0)
    times = {(part, one.seeds): seconds(one, part, rate) for one in found for part in PARTS}
    hours = {
        one.seeds: sum(times[part, one.seeds] * number for part, number in calls(config).items()) / 3600 / one.seeds
        for one in found
    }
    return Projection({key: 1e3 * time for key, time in times.items()}, hours)


def calls(config: RunConfig) -> dict[str, int]:
    """How often a run calls each part."""
    online = total_updates(config) - config.offline_updates
    acting = config.online_steps // config.num_envs // config.agent_config.chunk_length
    return {"offline": config.offline_updates, "online": online, "act": acting}


def counted(by_agent: dict[str, list[Finding]]) -> str:
    """Launches and arithmetic of an update, by agent; "compiled" is of the offline one of the budget, S = 1 / S = 8."""
    budget, rows = read_budget(), []
    for agent, found in by_agent.items():
        alone = next(one for one in found if one.seeds == 1)
        gflop = [alone.mean(part, lambda operator: operator.flop / 1e9) for part in PARTS[:2]]
        eager = [1e3 * seconds(alone, part, RATES["fp32"], EAGER_LAUNCH) for part in PARTS[:2]]
        launches = [" / ".join(str(one.launches(part)) for part in PARTS) for one in found]
        compiled = " / ".join(str(budget.get((agent, one.seeds, COMPILED), "")) for one in found)
        rows.append([agent, *launches, compiled, *(" / ".join(f"{x:.1f}" for x in pair) for pair in (gflop, eager))])
    columns = ["", *(f"launches, S = {seeds}" for seeds in SEEDS), "compiled", "GFLOP, S = 1", "eager ms, S = 1"]
    return table("Launches of an update offline / online and of acting; arithmetic of an update", columns, rows)


def projected(by_agent: dict[str, list[Finding]]) -> str:
    """Time of an offline update and hours of a run in each precision, by agent; `!` marks what misses a goal."""
    budget = read_budget()
    projections = {
        agent: [project(found, rate) for rate in RATES.values()] for agent, found in by_agent.items()
    }  # in the order of RATES

    def reached(goal: Goal, projection: Projection) -> str:
        return f"{goal.value(projection):.2f}{'' if goal.is_met(projection) else ' !'}"

    def fused(one: Finding) -> str:
        launches = budget.get((one.agent, one.seeds, COMPILED))
        times = [1e3 * fused_seconds(one, launches, rate) for rate in RATES.values()] if launches else []
        return " / ".join(f"{time:.2f}" for time in times)

    rows = []
    for agent, own in projections.items():
        updates = [" / ".join(f"{each.milliseconds['offline', seeds]:.2f}" for each in own) for seeds in SEEDS]
        goals = [" / ".join(reached(goal, each) for each in own) for goal in GOALS]
        rows.append([agent, *updates, *map(fused, by_agent[agent]), *goals])
    compiled = [f"compiled ms, S = {seeds}" for seeds in SEEDS]
    columns = ["", *(f"ms, S = {seeds}" for seeds in SEEDS), *compiled, *(goal.what for goal in GOALS)]
    lines = [table(f"Offline update in a graph, and a whole run: {' / '.join(RATES)}", columns, rows), ""]
    for goal in GOALS:
        limit = f"at least {goal.least}" if goal.least else f"at most {goal.most}"
        for place, precision in enumerate(RATES):
            met = sum(goal.is_met(own[place]) for own in projections.values())
            lines.append(f"goal {goal.what} {limit}: {met} of {len(projections)} agents meet it in {precision}")
    return "\n".join(lines)


def compile_anew(agents: Sequence[str], accept: bool) -> str:
    """Prints the launches of each agent's offline update as a compiler fuses it, beside the eager ones of the budget.

    Returns how they depart from it; `accept` writes each to it instead, as soon as it is counted.
    """
    lines = []
    for row, launches in fused_launches((name, seeds) for name in agents for seeds in SEEDS):
        agent, seeds, _ = row
        budget = read_budget()
        eager = budget[agent, seeds, "offline"]
        print(f"{agent}, S = {seeds}: {launches} launches, {eager} eager, {eager / launches:.1f}x", flush=True)
        if accept:
            write({row: launches})
        else:
            lines += departures({row: launches}, budget)
    return "\n".join(lines)


def write(found: dict[Row, int]) -> None:
    """Puts counts into the budget, in the order of the registry; agents that are no more leave it."""
    order = {name: place for place, name in enumerate(AGENTS)}
    rows = (read_budget() if TABLE.exists() else {}) | found
    write_budget({row: rows[row] for row in sorted(rows, key=lambda row: order.get(row[0], 0)) if row[0] in order})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=[])
    parser.add_argument("--write", action="store_true", help=f"write the counts to {TABLE.name}")
    parser.add_argument("--compiled", action="store_true", help="compile instead, and hold the counts to the budget")
    args = parser.parse_args()
    agents = args.agents or list(AGENTS)
    if args.compiled:
        raise SystemExit(compile_anew(agents, args.write) or None)
    found = findings(agents)
    if faults := [f"{one.agent}, S = {one.seeds}: {fault}" for one in found for fault in one.faults]:
        raise SystemExit("\n".join(faults))
    if args.write:
        write(counts(found))
    by_agent = {name: [one for one in found if one.agent == name] for name in agents}
    print(counted(by_agent))
    print(projected(by_agent))
    ours = {name: 1e3 / project(found, RATES["fp32"]).milliseconds["offline", 1] for name, found in by_agent.items()}
    print(beside(ours))
    return print("\n".join(departures(counts(found), read_budget())))


if __name__ == "__main__":
    main()
