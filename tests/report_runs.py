"""Results for the tests of the report: suites with all that a run can have, a failed and an unfinished run among them.

`python -m tests.report_runs FOLDER [AGENTS TASKS SEEDS]` writes them (or a large suite of that size) to look at.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.runs.contract import config_hash
from tests.test_analysis import edit_json, write_json, write_run

AGENTS = ("sac_flow_g", "sac_flow_t", "fql", "qc_fql", "my_agent")
VERSIONS = {"gymnasium": "1.4.0", "mujoco": "3.8.1", "numpy": "2.4.6", "ogbench": "1.2.2", "torch": "2.13.0+cpu"}
SCALARS = ("critic_loss", "policy_loss", "matching_loss", "q_mean", "q_max", "q_min")
SETTINGS = {
    "fql": {"chunk_length": 1, "bc_coef": 300.0, "critic_updates_per_offline_step": 1, "critic_hidden_dims": [512] * 4},
    "sac_flow_g": {"chunk_length": 5, "bc_coef": 100.0, "temperature": "off", "noise_scheme": "additive"},
}


def write_report_results(root: Path) -> Path:
    """Three suites: by success with a failed, an unfinished and a missing run; by normalised, and by raw return."""
    rng = np.random.default_rng(1)
    for task in range(1, 5):
        for number, agent in enumerate(AGENTS):
            for seed in range(5):
                if (task, agent, seed) == (4, "my_agent", 4):
                    continue
                start, end = 0.15 + 0.06 * number, min(1.0, 0.5 + 0.09 * task + 0.05 * number)
                rates = np.clip(np.linspace(start, end, 15) + rng.normal(0, 0.08, 15), 0, 1)
                offline, online = (0.0, *rates[:5].tolist()), tuple(rates[5:].tolist())
                where = {"suite": "cube-double", "task": f"cube-double-task{task}", "agent": agent, "seed": seed}
                folder = write_run(root, **where, offline=offline, online=online, agent_config=settings(agent, task))
                dress(folder, rng)
    fail(root / "cube-double/cube-double-task2/fql/seed_003", rows=45)
    unfinish(root / "cube-double/cube-double-task3/qc_fql/seed_001", rows=58)
    for task, scale in (("hopper-bullet-medium", 1000.0), ("ant-bullet-medium", 3000.0)):
        for agent in AGENTS[:2]:
            for seed in range(3):
                values = scale * (np.linspace(0.1, 0.8, 8) + rng.normal(0, 0.05, 8))
                curve: dict[str, Any] = {"offline": tuple(values[:3].tolist()), "online": tuple(values[3:].tolist())}
                references = [0.0, scale]
                folder = write_run(
                    root, task, agent, seed, "bullet", **curve, by_return=True, reference_returns=references
                )
                dress(folder, rng)
    for seed in range(2):
        returns: dict[str, Any] = {
            "offline": (-80.0, -20.0 - 20 * seed),
            "online": (-15.0 - 20 * seed, -9.0 - 20 * seed),
        }
        folder = write_run(root, "reach", "sac_flow_g", seed, "raw", **returns, by_return=True)
        dress(folder, rng)
    return root


def settings(agent: str, task: int) -> dict[str, Any]:
    return {"chunk_length": 5, "bc_coef": 100.0 if task < 3 else 300.0} | SETTINGS.get(agent, {})


def dress(folder: Path, rng: np.random.Generator, points: int = 40, scalars: tuple[str, ...] = SCALARS) -> None:
    """What `bench` writes beside the episodes: scalars, rates, a whole provenance, budgets, a log."""
    config = json.loads((folder / "config.json").read_text())
    budgets = {"warmup_steps": 5, "utd_ratio": 1, "batch_size": 256, "replay_capacity": 2_000_000, "log_interval": 5}
    budgets |= {"dataset": f"data-{config['task']}", "eval_interval_updates": 100, "eval_interval_steps": 10}
    edit_json(folder / "config.json", lambda content: content.update(budgets | {"online_dataset_rows": None}))
    edit_json(folder / "config.json", lambda content: content.update(config_hash=config_hash(content)))
    total, steps = config["offline_updates"], config["online_steps"]
    progress = [("offline", update, 0) for update in np.linspace(1, total, points).astype(int).tolist()]
    progress += [("online", total + step, step) for step in np.linspace(1, steps, points).astype(int).tolist()]
    noise = rng.normal(0, 0.05, (len(scalars), len(progress)))
    train = ["phase,updates,env_steps,name,value"]
    timing = ["time,phase,updates,env_steps,name,value"]
    for k, (phase, updates, env_steps) in enumerate(progress):
        place = f"{phase},{updates},{env_steps}"
        train += [f"{place},{name},{np.exp(-k / 30) * (1 + n) + noise[n, k]:.8g}" for n, name in enumerate(scalars)]
        timing.append(
            f"2026-01-01T00:{k // 60:02}:{k % 60:02}+00:00,{place},updates_per_second,{400 + 20 * noise[0, k]:.4g}"
        )
    (folder / "train.csv").write_text("\n".join(train) + "\n")
    (folder / "timing.csv").write_text("\n".join(timing) + "\n")
    (folder / "log.txt").write_text("training\nonline step 20 of 40\n")
    start = {
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty_diff_hash": None,
        "device": "AMD EPYC",
        "device_type": "cpu",
        "engine": "compiled",
        "host": "node1",
        "machine": "Linux x86_64",
        "pack": [config["seed"]],
        "python": "3.11.7",
        "resumed_from": None,
        "seconds": 1800.5,
        "started_at": "2026-01-01T00:00:00+00:00",
        "threads": 1,
        "versions": VERSIONS,
    }
    data = {"num_transitions": 1_000_000, "num_episodes": 1000}

    def provenance(content: dict[str, Any]) -> None:
        content["dataset"].update(data)
        content.update(starts=[start], offline_phase=None)

    edit_json(folder / "provenance.json", provenance)
    status = {"phase": "online", "updates": total + steps, "env_steps": steps, "error": None, "warning": None}
    status |= {
        "engine": "compiled",
        "updated_at": "2026-01-01T00:30:00+00:00",
        "success_rate": None,
        "mean_return": None,
    }
    edit_json(folder / "status.json", lambda content: content.update(status))


def cut(folder: Path, rows: int, **status: Any) -> None:
    """The run as it was after so many rows of episodes."""
    file = folder / "episodes.csv"
    lines = file.read_text().splitlines(keepends=True)[: 1 + rows]
    file.write_text("".join(lines))
    phase, updates, env_steps, *_ = lines[-1].split(",")
    place = {"phase": phase, "updates": int(updates), "env_steps": int(env_steps)}
    edit_json(folder / "status.json", lambda content: content.update(place | status))


def fail(folder: Path, rows: int) -> None:
    cut(folder, rows, state="failed", error="critic_loss is not finite at online step 31")
    lines = [f"online step {k}  critic_loss {10**k:.3g}" for k in range(20)]
    (folder / "log.txt").write_text(
        "\n".join([*lines, "\x1b[31merror\x1b[0m: critic_loss is not finite <script>"]) + "\n"
    )


def unfinish(folder: Path, rows: int) -> None:
    """Running, resumed once, with a last evaluation that lacks episodes."""
    cut(folder, rows, state="running")

    def resumed(content: dict[str, Any]) -> None:
        place = {"phase": "online", "updates": 520, "env_steps": 20}
        content["starts"].append(content["starts"][0] | {"resumed_from": place, "commit": "fedc" * 10})

    edit_json(folder / "provenance.json", resumed)


def add_videos(folder: Path) -> None:
    """Two recordings: a still picture of one pixel, and a film that only its size matters of."""
    videos = folder / "videos"
    videos.mkdir()
    pixel = "47494638396101000100800000ff0000ffffff21f90400000000002c00000000010001000002024401003b"
    (videos / "one.gif").write_bytes(bytes.fromhex(pixel))
    (videos / "two.mp4").write_bytes(b"\0" * 5000)
    facts = {"return": -3.5, "length": 17}
    entries = [{"file": "one.gif", "episode_seed": 1000, "success": 1, **facts}]
    entries.append({"file": "two.mp4", "episode_seed": 1001, "success": 0, **facts})
    write_json(videos / "index.json", {"schema_version": 1, "videos": entries})


def write_large(root: Path, agents: int, tasks: int, seeds: int, points: int = 200) -> None:
    """A suite of the size of a paper's grid; `points` rows of each scalar per phase."""
    rng = np.random.default_rng(0)
    for task in range(tasks):
        for agent in range(agents):
            for seed in range(seeds):
                rates = np.clip(np.linspace(0.1, 0.9, 31) + rng.normal(0, 0.1, 31), 0, 1)
                name = AGENTS[agent] if agent < len(AGENTS) else f"agent_{agent}"
                curve: dict[str, Any] = {"offline": tuple(rates[:21].tolist()), "online": tuple(rates[21:].tolist())}
                folder = write_run(root, f"cube-task{task + 1}", name, seed, "large", **curve)
                dress(folder, rng, points, (*SCALARS, *(f"scalar_{k}" for k in range(6))))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if len(sys.argv) > 2:
        write_large(target, *map(int, sys.argv[2:5]))
    else:
        write_report_results(target)
        add_videos(target / "cube-double/cube-double-task1/fql/seed_000")
