"""The first command of who owns a GPU: whether everything works on it and how fast, with one file to send.

    python -m tests.benchmarks.gpu                   ten minutes on one GPU (make test-gpu)
    python -m tests.benchmarks.gpu --minutes 90      every agent compiled, too
    python -m tests.benchmarks.gpu --device cpu      a rehearsal: the same checks with a double of CUDA's graphs

First the tests that are marked `gpu`, a line each; then updates per second of every agent: eager, captured, captured in
a pack of 8, and compiled and captured, as far as the time goes. Networks of paper size, batch 256, the shapes of
cube-double, offline updates. Where JAX sees the GPU, the official code's updates stand beside ours.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch

from agents import AGENTS
from bench.runs.contract import error_line, write_json
from bench.runs.provenance import commit
from tests.benchmarks.measure import machine_line, table
from tests.benchmarks.peers import beside
from tests.benchmarks.updates import Alternative, make_engine, measure, python_with_jax
from tests.tiny_runs import ROOT

COMPILED_FIRST = ("sac_flow_t", "qc", "fql", "reinflow", "diffusion_ql")
LATE = "no time was left; --minutes gives more"
JAX = "official JAX"  # beside the engine's modes
IN_JAX = ("qc_fql", "sac_flow_g", "sac_flow_t")
PACK = 8
UPDATES = {"cuda": 128, "cpu": 2}  # that are timed, after as many that are not


@dataclass(frozen=True)
class Check:
    """How one test ended."""

    name: str
    outcome: str  # passed, failed or skipped
    seconds: float
    reason: str


@dataclass(frozen=True)
class Rate:
    """Updates per second of one way of executing them, those of all seeds together, or why there are none."""

    agent: str
    mode: str
    seeds: int
    updates_per_second: float = 0.0
    reason: str = ""


class Outcomes:
    """A plugin of pytest that keeps how every test ended."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:  # a skip comes before the call, an error before or after
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
            self.checks.append(
                Check(report.nodeid.split("::")[-1], report.outcome, round(report.duration, 1), reason[-2000:])
            )


def run_checks(device: str, only: str | None) -> list[Check]:
    """The GPU's tests, or their rehearsal; `only`: those that this expression of pytest's -k chooses."""
    outcomes = Outcomes()
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    chosen = ["-m", "gpu", *files]
    if device == "cpu":
        chosen, only = ["--all", str(ROOT / "tests/test_gpu.py")], f"cpu and ({only})" if only else "cpu"
    chosen += ["-k", only] if only else []
    pytest.main(["-v", "--tb=short", "-p", "no:cacheprovider", *chosen], plugins=[outcomes])
    return outcomes.checks


def alternatives(device: str, agents: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Agent, mode and seeds of each measurement, what matters most first."""
    captured, compiled = ("graph", "compiled-graph") if device == "cuda" else ("eager", "eager")
    for mode, seeds in dict.fromkeys([("eager", 1), (captured, 1), (captured, PACK)]):
        yield from ((agent, mode, seeds) for agent in agents)
    if compiled != captured:
        for agent in sorted(agents, key=lambda name: name not in COMPILED_FIRST):
            yield from ((agent, compiled, seeds) for seeds in (1, PACK))


def measured_rate(agent: str, mode: str, seeds: int, device: torch.device) -> Rate:
    """From the time of UPDATES offline updates at once."""
    count = UPDATES[device.type]

    def finish(number: int) -> float:
        engine.update_offline(number, count)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    try:
        engine = make_engine(agent, seeds, mode, device)
        started = finish(0)
        seconds = finish(count) - started
    except Exception as error:  # one that does not work here is a result, too
        return Rate(agent, mode, seeds, reason=error_line(error)[:500])
    fell_back = "" if engine.mode == mode else f"it runs {engine.mode}: {'; '.join(engine.warnings)}"
    return Rate(agent, mode, seeds, round(seeds * count / seconds, 1), fell_back)


def measure_rates(device: torch.device, agents: Sequence[str], until: float) -> list[Rate]:
    """All alternatives, until the time.monotonic() `until`; those that were not reached say so."""
    rates = []
    for agent, mode, seeds in alternatives(device.type, agents):
        if time.monotonic() < until:
            rate = measured_rate(agent, mode, seeds, device)
            shown = f"{rate.updates_per_second:.0f} updates/s" if rate.updates_per_second else "none"
            print(f"{agent}, {mode}, S = {seeds}: {shown} {rate.reason}".rstrip(), flush=True)
        else:
            rate = Rate(agent, mode, seeds, reason=LATE)
        rates.append(rate)
    if (jax := python_with_jax(None, device.type)) is not None:
        for agent in (name for name in IN_JAX if name in agents):
            rates.append(rate_of_jax(agent, device, jax))
    return rates


def rate_of_jax(agent: str, device: torch.device, python: str) -> Rate:
    try:
        (peer,) = measure([Alternative("jax", 1)], agent, "offline", device.type, python, 5, 64)[0].values()
    except SystemExit as error:  # its process ended; what was measured before is still to be written
        return Rate(agent, JAX, 1, reason=str(error))
    return Rate(agent, JAX, 1, round(1 / peer.median, 1))


def rate_table(rates: Sequence[Rate]) -> str:
    """Rates by agent, and what they are to eager updates."""
    by_agent: dict[str, dict[tuple[str, int], Rate]] = {}
    for rate in rates:
        by_agent.setdefault(rate.agent, {})[rate.mode, rate.seeds] = rate
    columns = list(dict.fromkeys((rate.mode, rate.seeds) for rate in rates))

    def cell(own: dict[tuple[str, int], Rate], column: tuple[str, int]) -> str:
        rate, eager = own.get(column), own["eager", 1].updates_per_second
        if rate is None or not rate.updates_per_second:
            return "-"
        fallen = " !" if rate.reason else ""
        return f"{rate.updates_per_second:.0f} ({rate.updates_per_second / (eager or 1):.1f}x){fallen}"

    rows = [[agent, *(cell(own, column) for column in columns)] for agent, own in by_agent.items()]
    heads = [f"{mode}, S = {seeds}" for mode, seeds in columns]
    return table("Offline updates/s of all seeds (of the eager one; ! fell back, as the file says)", ["", *heads], rows)


def driver() -> str | None:
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    done = subprocess.run([program, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True)
    return done.stdout.decode().split("\n")[0] or None


def verdict(checks: Sequence[Check], rates: Sequence[Rate]) -> tuple[str, bool]:
    """What to conclude, and whether all is well."""
    count = {outcome: sum(check.outcome == outcome for check in checks) for outcome in ("passed", "failed", "skipped")}
    wrong = [f"FAILED {check.name}" for check in checks if check.outcome == "failed"]
    wrong += [f"{r.agent}, {r.mode}, S = {r.seeds}: {r.reason}" for r in rates if r.reason not in ("", LATE)]
    is_well = not count["failed"] and count["passed"] > 0
    word = "WORKS" if is_well else "DOES NOT WORK"
    total = ", ".join(f"{number} {outcome}" for outcome, number in count.items())
    measured, late = sum(rate.updates_per_second > 0 for rate in rates), sum(rate.reason == LATE for rate in rates)
    missing = f", {late} for want of time not" if late else ""
    last = f"VERDICT: it {word} here: checks: {total}; {measured} of {len(rates)} rates{missing}"
    return "\n".join([*wrong, last]), is_well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no further rate is measured")
    parser.add_argument("--agents", nargs="*", choices=AGENTS, default=list(AGENTS), help="whose rates are measured")
    parser.add_argument("--only", help="checks, as pytest's -k takes them")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--file", type=Path, help="what to write (default: results/benchmarks/gpu_MODEL.json)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: torch finds no GPU; --device cpu rehearses the checks without one", file=sys.stderr)
        return 2
    until = time.monotonic() + 60 * args.minutes
    device = torch.device(args.device)
    model = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    file = args.file or ROOT / f"results/benchmarks/gpu_{model.lower().replace(' ', '_')}.json"
    print(machine_line(), flush=True)
    checks = run_checks(args.device, args.only)
    rates = measure_rates(device, args.agents, until)
    facts = {"gpu": model, "machine": machine_line(), "driver": driver(), "cuda": torch.version.cuda, **commit()}
    found = {"checks": [asdict(check) for check in checks], "rates": [asdict(rate) for rate in rates]}
    write_json(file, {**facts, **found})
    best: dict[str, float] = {}  # of one seed
    for rate in rates:
        if rate.seeds == 1 and rate.mode != JAX:
            best[rate.agent] = max(best.get(rate.agent, 0.0), rate.updates_per_second)
    print(rate_table(rates), beside(best), sep="\n")
    text, is_well = verdict(checks, rates)
    print(f"\n{text}\nsend {file}")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
