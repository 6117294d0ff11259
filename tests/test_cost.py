"""What a plan says of a run's size before it is made."""

import torch

import datasets
from bench.cost import estimate
from tests.tiny_runs import tiny_config


def test_a_replay_grows_with_the_budget_and_an_on_policy_run_keeps_one_rollout():
    task = datasets.task("cube-single-task1")
    row = 4 * (2 * task.obs_dim + task.action_dim + 3)
    kept = {"fql": (1_000, 9_000), "reinflow": (20, 20)}
    for agent, rows in kept.items():
        short, long = (
            estimate(tiny_config(agent, online_steps=steps), 2, 1, torch.device("cpu"), threads=1).bytes
            for steps in (1_000, 9_000)
        )
        assert long - short == 2 * (rows[1] - rows[0]) * row
        assert short > 2 * rows[0] * row
