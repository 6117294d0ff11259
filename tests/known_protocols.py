"""The two tables that an audit of entries goes by, made from the code: `python -m tests.known_protocols`.

`protocols.csv` has what the suites prescribe. `parity.csv` gets a row for each agent whose code it does not know: write
it only where `make parity` passes. Rows of older code stay, as entries made with it do.
"""

import csv
import hashlib
import io
import tomllib
from collections.abc import Collection
from pathlib import Path

from agents import AGENTS
from analysis.leaderboard.known import PARITY, PARITY_COLUMNS, PROTOCOL_COLUMNS, PROTOCOLS, read_parity
from bench.protocol.suites import SUITES
from bench.runs.provenance import agent_source

ROOT = Path(__file__).resolve().parents[1]


def protocol_rows(suites: Collection[str] = SUITES) -> list[list[str]]:
    """One row per suite and task, a minute for all; offline budgets are those of agents that have an offline phase."""
    rows: dict[tuple[str, str], list[str]] = {}
    for suite in suites:
        for config in sorted(SUITES[suite](), key=lambda config: -config.offline_updates):
            fields = [getattr(config, name) for name in PROTOCOL_COLUMNS[2:]]
            rows.setdefault((suite, config.task), [suite, config.task, *("" if f is None else str(f) for f in fields)])
    return list(rows.values())


def official_numbers(agent: str) -> str:
    """A hash of the official code's numbers that an agent is tested against; empty for one tested in other ways."""
    names = (agent, f"scratch_{agent.removesuffix('_scratch')}")
    files = [path for name in names if (path := ROOT / f"tests/parity/{name}.npz").exists()]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16] if files else ""


def parity_rows() -> list[list[str]]:
    """The rows so far, and those of the present code that are new."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    rows = [[row[column] for column in PARITY_COLUMNS] for row in read_parity()] if PARITY.exists() else []
    known = {(row[0], row[1]) for row in rows}
    for agent, (agent_class, _) in AGENTS.items():
        source = agent_source(agent_class)
        if agent_class.__module__.startswith("agents.") and (agent, source) not in known:
            rows.append([agent, source, official_numbers(agent), version])
    return rows


def text_of(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([columns, *rows])
    return buffer.getvalue()


if __name__ == "__main__":
    PROTOCOLS.write_text(text_of(PROTOCOL_COLUMNS, protocol_rows()), encoding="utf-8", newline="\n")
    PARITY.write_text(text_of(PARITY_COLUMNS, parity_rows()), encoding="utf-8", newline="\n")
    print(f"wrote {PROTOCOLS}\nwrote {PARITY}")
