"""What a plan says of a run's size before it is made."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch

import bench.grid.plan
import bench.grid.progress
import datasets
from bench.grid.cost import Cost, from_finished_runs
from bench.grid.measuring import estimate
from bench.grid.plan import Pack
from bench.grid.progress import Display
from bench.grid.survey import GridStatus, Queue, estimate_left, survey
from bench.protocol.config import RunConfig
from bench.runs.contract import write_json
from bench.training.execution import Execution
from tests.tiny_runs import tiny_config


def test_a_replay_grows_with_the_budget_and_an_on_policy_run_keeps_one_rollout():
    task = datasets.task("toy-reach")
    row = 4 * (2 * task.obs_dim + task.action_dim + 3)
    kept = {"fql": (1_000, 9_000), "reinflow": (20, 20)}
    for agent, rows in kept.items():
        short, long = (
            estimate(tiny_config(agent, online_steps=steps), 2, 1, torch.device("cpu"), threads=1).bytes
            for steps in (1_000, 9_000)
        )
        assert long - short == 2 * (rows[1] - rows[0]) * row
        assert short > 2 * rows[0] * row


def test_a_plan_measures_each_kind_of_run_once_and_says_how_long_that_takes(monkeypatch, capsys, tmp_path):
    measured = []

    def made_up(config, pack, *_):
        measured.append(config.agent)
        return Cost(offline_update=pack, online_update=0.0, env_step=0.0, evaluation=0.0, bytes=0, config=config)

    agents = ("fql", "qc_fql", "qc", "ifql", "iql", "bc", "sac")
    configs = [
        tiny_config(agent, seed, task=task)
        for agent in agents
        for task in ("cube-single-task1", "cube-single-task2")
        for seed in (0, 1, 2)
    ]
    clock = itertools.count(0, 60)
    monkeypatch.setattr(bench.grid.plan, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    plan = bench.grid.plan.make_plan(configs, tmp_path, Execution(device="cpu"), 1, 3)
    costs = bench.grid.plan.estimate_plan(plan, lambda _, *arguments: made_up(*arguments))
    assert measured == list(agents)
    assert {cost.offline_update for cost in costs.values()} == {3} and set(costs) == set(plan.packs)
    assert capsys.readouterr().out == "measuring 7 configurations on this machine: 24 s\n"


def warming_up(seed: int = 0) -> RunConfig:
    """From scratch: 100 steps, the first 20 random; an update follows each of the other 81."""
    changes = {"offline_updates": 0, "online_steps": 100, "warmup_steps": 20, "eval_interval_steps": 50}
    return tiny_config("sac", seed, dataset=None, **changes)


def test_steps_of_a_warm_up_cost_no_updates():
    cost = Cost(0.0, online_update=2.0, env_step=0.5, evaluation=3.0, bytes=0, config=warming_up())
    assert cost.seconds() == 81 * 2.0 + 100 * 0.5 + 3 * 3.0
    assert cost.seconds(0, 10) == pytest.approx(81 * 2.0 + 90 * 0.5 + 2.8 * 3.0)
    assert cost.seconds(31, 50) == 50 * 2.0 + 50 * 0.5 + 2 * 3.0
    assert cost.seconds(81, 100) == 3.0
    with_data = Cost(1.0, 2.0, 0.5, 0.0, 0, tiny_config("fql", offline_updates=30, online_steps=0))
    assert with_data.seconds(10) == 20.0 and with_data.seconds() == 30.0


def test_time_left_of_a_run_that_warms_up_is_mostly_that_of_its_updates(monkeypatch, tmp_path):
    config = warming_up()
    folder = config.directory(tmp_path)
    folder.mkdir(parents=True)
    now = [0.0]
    monkeypatch.setattr(bench.grid.progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    work = Pack((config,), tmp_path).work
    display = Display({work: Cost(0.0, online_update=10.0, env_step=0.5, evaluation=0.0, bytes=0, config=config)}, 1)
    display.started(work)
    for seconds, updates, steps in ((10.0, 0, 19), (100.0, 9, 29)):
        now[0] = seconds
        write_json(folder / "status.json", {"state": "running", "updates": updates, "env_steps": steps})
        truth = (81 - updates) * 10.0 + (100 - steps) * 0.5
        assert 0.9 * truth < display._pack_left(work) < 1.1 * truth
    assert "offline" not in " ".join(display._cells(work))
    status = {"updates_per_second": 0.0, "env_steps_per_second": 500.0}
    write_json(folder / "config.json", config.to_json())
    write_json(folder / "status.json", {"state": "running", "updates": 0, "env_steps": 19, **status})
    (run,) = survey(tmp_path, None, Queue()).runs
    grid = GridStatus(tmp_path, [dataclasses.replace(run, state="running")])
    estimate_left(grid)
    assert grid.left_seconds is None  # not 81 steps at 500 a second
    grid = GridStatus(tmp_path, [dataclasses.replace(run, state="running", updates=9, env_steps=29, rates=status)])
    estimate_left(grid)
    assert grid.left_seconds == pytest.approx(71 / 500)


def test_rates_of_a_finished_run_tell_its_warm_up_from_its_updates(tmp_path):
    config = warming_up()
    folder = config.directory(tmp_path)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config.to_json())
    write_json(folder / "complete.json", {})
    write_json(folder / "provenance.json", {"starts": [{"device_type": "cpu", "pack": [0]}]})
    rows = [(0, 10, 400.0), (1, 20, 300.0), (11, 30, 20.0), (21, 40, 22.0)]
    lines = [f"2026-01-01,online,{updates},{steps},env_steps_per_second,{rate}" for updates, steps, rate in rows]
    (folder / "timing.csv").write_text("\n".join(["time,phase,updates,env_steps,name,value", *lines, ""]))
    cost = from_finished_runs((warming_up(seed=7),), tmp_path, "cpu", False)
    assert cost is not None
    assert cost.env_step == 1 / 400 and cost.online_update == pytest.approx(1 / 22 - 1 / 400)
