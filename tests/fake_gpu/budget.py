"""How many kernels each agent's captured parts may launch: kernel_budget.csv beside the tests."""

import csv
from collections.abc import Iterable
from pathlib import Path

from tests.fake_gpu.paths import PARTS, Finding

TABLE = Path(__file__).parents[1] / "kernel_budget.csv"
ALLOWED = 0.05  # share by which a count may depart from the table
WRITE = "python -m tests.benchmarks.kernels --write"
COMPILED = "offline compiled"  # a part: the offline update as a compiler fuses it
SAMPLE = ("bc", "bc_diffusion", "sac", "qc_fql", "sac_flow_g")  # of these, those that tests compile anew

Row = tuple[str, int, str]  # agent, seeds, part


def read_budget() -> dict[Row, int]:
    with TABLE.open(newline="") as file:
        return {(row["agent"], int(row["seeds"]), row["part"]): int(row["launches"]) for row in csv.DictReader(file)}


def write_budget(counts: dict[Row, int]) -> None:
    """Writes the table anew."""
    with TABLE.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["agent", "seeds", "part", "launches"])
        rows.writerows([*row, count] for row, count in counts.items())


def counts(findings: Iterable[Finding]) -> dict[Row, int]:
    """Launches of every part that ran through."""
    return {
        (finding.agent, finding.seeds, part): finding.launches(part)
        for finding in findings
        for part in PARTS
        if part in finding.operators
    }


def departures(found: dict[Row, int], budget: dict[Row, int]) -> list[str]:
    """A line for each count that is not in the budget or more than ALLOWED away from it, and how to accept it."""
    lines = []
    for row, launches in found.items():
        agent, seeds, part = row
        where = f"{agent}, {part}, S = {seeds}: {launches} launches"
        write = f"{WRITE} --compiled" if part == COMPILED else WRITE
        if row not in budget:
            lines.append(f"{where}, which {TABLE.name} does not have; add them: {write}")
        elif abs(more := launches - budget[row]) > ALLOWED * budget[row]:
            end = "if that is meant" if more > 0 else "so that it stays so"
            lines.append(f"{where}, {more / budget[row]:+.0%} against {budget[row]} in {TABLE.name}; {end}: {write}")
    return lines
