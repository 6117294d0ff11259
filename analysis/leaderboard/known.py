"""What an audit knows of this project beyond the files of an entry: two tables, written by `tests.known_protocols`.

`protocols.csv`: what a suite prescribes for each of its tasks. `parity.csv`: the code of agents (`agent_source` in
provenance.json) with which the parity tests have passed, and a hash of the official numbers they compare it with.
"""

import csv
from functools import cache
from pathlib import Path
from typing import Any

from bench.runs.contract import CONFIG, flat

FOLDER = Path(__file__).resolve().parents[1] / "published"
PROTOCOLS, PARITY = FOLDER / "protocols.csv", FOLDER / "parity.csv"
PROTOCOL_COLUMNS = (
    *("suite", "task", "dataset", "offline_updates", "online_steps", "eval_interval_updates", "eval_interval_steps"),
    *("eval_episodes", "success_timing", "success_rule", "episode_seeds", "matmul"),
)
PARITY_COLUMNS = ("agent", "agent_source", "numbers", "version")
ABSENT = {"success_rule": "last", "episode_seeds": "fixed", "matmul": "fp32"}  # what a config without the key means

# Keys of config.json (results/README.md).
NEEDED_KEYS = {
    *("schema_version", "config_hash", "suite", "task", "agent", "seed", "dataset", "success_timing"),
    *("offline_updates", "online_steps", "warmup_steps", "utd_ratio", "batch_size", "discount", "replay_capacity"),
    *("online_dataset_rows", "eval_interval_updates", "eval_interval_steps", "eval_episodes", "log_interval"),
    "agent_config",
}
FURTHER_KEYS = {  # absent at the value that all runs had before there was a choice
    *("variant", "success_rule", "warmup_actions", "online_batch_share", "matmul", "replay", "episode_seeds"),
    "gradient_norm_interval",
}


@cache
def protocols() -> dict[str, dict[str, dict[str, str]]]:
    """Suite -> task -> field of config.json -> its value as text."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    with PROTOCOLS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row.pop("suite"), {})[row.pop("task")] = row
    return found


def read_parity() -> list[dict[str, str]]:
    """The rows of parity.csv."""
    with PARITY.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def parity() -> dict[str, dict[str, dict[str, str]]]:
    """Agent -> agent_source -> row."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in read_parity():
        found.setdefault(row["agent"], {})[row["agent_source"]] = row
    return found


def as_prescribed(config: dict[str, Any], field: str) -> str:
    """A value of config.json as the table writes it."""
    value = config.get(field, ABSENT.get(field))
    return "" if value is None else str(value)


def key_faults(config: dict[str, Any]) -> list[str]:
    """What config.json lacks, and what it has that no run writes."""
    lacking, unknown = sorted(NEEDED_KEYS - config.keys()), sorted(config.keys() - NEEDED_KEYS - FURTHER_KEYS)
    faults = [f"{CONFIG} lacks {', '.join(lacking)}"] if lacking else []
    faults += [f"{CONFIG} has the unknown {', '.join(unknown)}"] if unknown else []
    if not isinstance(config.get("agent_config", {}), dict) or not flat(config.get("agent_config", {"": 0})):
        faults.append(f"{CONFIG}: agent_config holds no settings")
    return faults
