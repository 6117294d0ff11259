"""What a plan says of a run's size before it is made."""

import itertools
from types import SimpleNamespace

import torch

import bench.grid.plan
import datasets
from bench.grid.cost import Cost
from bench.grid.measuring import estimate
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
        return Cost(offline_update=pack, online_step=0.0, evaluation=0.0, bytes=0, config=config)

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
