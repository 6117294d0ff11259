"""What it means that an episode is solved: at any of its steps, or at its last one, by the task's rule."""

import dataclasses
import time
from typing import Any

import gymnasium
import numpy as np
import pytest

from agents.blocks.base import Agent
from agents.blocks.streams import SeedStreams
from bench.protocol.config import ConfigError, RunConfig
from bench.tools.film import Recorder
from bench.training.evaluate import Evaluation, Evaluator, run_episode
from bench.training.policies import build_agent, policy_state
from bench.training.rollout import Rollout, Slot, open_episodes
from bench.training.workers import Template
from datasets.toy.tasks import TASKS
from tests.tiny_runs import tiny_config

LENGTH, SOLVED = 10, range(3, 7)  # steps of an episode, and those that are a success


class Passing(gymnasium.Env):
    """An environment that goes on after a success, and away from it."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count += 1
        obs = np.full(2, self.count / LENGTH, np.float32)
        return obs, 0.0, False, self.count == LENGTH, {"success": self.count in SOLVED}


class Untold(Passing):
    """The same, of a task that has no notion of success."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return *super().step(action)[:4], {}


def agent_of(config: RunConfig) -> Agent:
    return build_agent(config, SeedStreams([0], "cpu", "init"))


def prepare(config: RunConfig) -> tuple[gymnasium.Env, Agent]:
    """What the workers of these tests hold."""
    return Passing(), agent_of(config)


@pytest.fixture(scope="module")
def template():
    template = Template(prepare, tiny_config("bc"))
    yield template
    template.close()


@pytest.mark.parametrize(("env", "rule", "success"), [(Passing, "any", 1), (Passing, "last", 0), (Untold, "any", None)])
def test_a_success_in_the_middle_of_an_episode_counts_by_the_rule(env, rule, success):
    row = run_episode(env(), agent_of(tiny_config("bc")), episode_seed=1, success_rule=rule)
    assert (row["success"], row["length"]) == (success, LENGTH)


@pytest.mark.parametrize(("rule", "success"), [("any", 1), ("last", 0)])
def test_evaluation_workers_go_by_the_rule(template, rule, success):
    evaluator = Evaluator(template, workers=2, success_rule=rule)
    evaluator.submit(Evaluation("online", 5, 5, {0: policy_state(agent_of(tiny_config("bc")), 0)}, {0: range(3)}))
    deadline = time.monotonic() + 60
    while not (finished := evaluator.finished(1.0)):
        assert time.monotonic() < deadline
    assert [row["success"] for row in finished[0].rows_of(0)] == [success] * 3


@pytest.mark.parametrize(("rule", "success"), [("any", 1.0), ("last", 0.0)])
def test_training_episodes_go_by_the_rule_also_after_a_restart_past_the_success(template, rule, success):
    config = tiny_config("bc", success_rule=rule)

    def rollout(state: Any = None) -> Rollout:
        return Rollout(open_episodes(config, [Slot(0, 0)], template, processes=1)[0], state)

    def steps(rollout: Rollout, count: int) -> list[dict[str, float] | None]:
        told = []
        for _ in range(count):
            if rollout.needs_chunk:
                rollout.set_chunk(np.zeros((5, 2), np.float32))
            told.append(rollout.step().episode)
        return told

    undisturbed = rollout()
    steps(undisturbed, SOLVED.stop + 1)
    restarted = rollout(undisturbed.state())
    left = LENGTH - SOLVED.stop - 1
    expected = {"return": 0.0, "success": success, "length": float(LENGTH)}
    assert steps(undisturbed, left)[-1] == steps(restarted, left)[-1] == expected
    unsolved = LENGTH + SOLVED.start - 1  # the next episode starts anew
    assert steps(undisturbed, unsolved)[LENGTH - 1] == expected


def test_a_video_says_solved_as_the_rule_does():
    for rule, solved in (("any", [None, *[False] * 2, *[True] * 8]), ("last", [None, *[False] * 2, *[True] * 4])):
        recorder = Recorder(Passing(), _NoView(), rule)  # type: ignore[arg-type]
        run_episode(recorder, agent_of(tiny_config("bc")), 1, rule)
        assert recorder.solved[: len(solved)] == solved and recorder.solved[-1] is (rule == "any")


class _NoView:
    def state(self) -> None:
        return None


def test_the_rule_is_the_tasks_unless_another_is_asked_for(monkeypatch):
    ends_at_success = tiny_config()
    assert ends_at_success.success_rule == "last" and "success_rule" not in ends_at_success.to_json()
    monkeypatch.setitem(TASKS, "toy-reach", dataclasses.replace(TASKS["toy-reach"], success_rule="any"))
    goes_on = tiny_config()
    assert goes_on.to_json()["success_rule"] == "any" and RunConfig.from_json(goes_on.to_json()) == goes_on
    # A run of before there was a choice went by the last step.
    assert RunConfig.from_json(ends_at_success.to_json()) == ends_at_success == tiny_config(success_rule="last")
    with pytest.raises(ConfigError, match="success_rule is 'first'; it must be any or last"):
        tiny_config(success_rule="first")
