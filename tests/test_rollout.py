"""Training episodes: the same transitions from this process and from workers that step ahead."""

from typing import Any

import numpy as np
import pytest

import datasets
from bench.training.evaluate import prepare_worker
from bench.training.rollout import Rollout, Slot, open_episodes
from bench.training.workers import Template, WorkerError
from tests.tiny_runs import tiny_config

CONFIG = tiny_config()
SEEDS = (3, 4, 5)
SLOTS = [Slot(seed, 0) for seed in SEEDS]


@pytest.fixture(scope="module")
def template():
    template = Template(prepare_worker, CONFIG)
    yield template
    template.close()


def transitions(rollouts: list[Rollout], first: int, count: int) -> list[list[list[Any]]]:
    """`count` steps of all rollouts in lockstep, in chunks of five that depend on the step and the seed's slot only."""
    collected: list[list[list[Any]]] = [[] for _ in rollouts]
    for step in range(first, first + count):
        for slot, rollout in enumerate(rollouts):
            if rollout.needs_chunk:
                noise = np.random.default_rng((slot, step)).uniform(-1, 1, (5, 2))
                rollout.set_chunk(noise.astype(np.float32))
        for rows, rollout in zip(collected, rollouts, strict=True):
            rows.append([np.asarray(value).tolist() if value is not None else None for value in as_row(rollout.step())])
    return collected


def as_row(transition) -> list[Any]:
    episode = transition.episode and sorted(transition.episode.items())
    return [*(value for name, value in vars(transition).items() if name != "episode"), repr(episode)]


def rollouts(template, processes: int, states=None) -> list[Rollout]:
    episodes = open_episodes(CONFIG, SLOTS, template, processes)
    return [Rollout(own, state) for own, state in zip(episodes, states or [None] * len(SEEDS), strict=True)]


def test_workers_that_step_ahead_give_the_transitions_of_this_process(template):
    """Across an episode's end (at step 20: 23 is inside a chunk of the next episode) and a restart inside a chunk,
    with as many workers as seeds, with fewer, and with none, in any order."""
    length = datasets.task(CONFIG.task).max_episode_steps
    before, after = length + 3, 9
    here = rollouts(template, 0)
    expected = transitions(here, 0, before)
    assert [sum(row[4] for row in rows) for rows in expected] == [1, 1, 1]
    states = [rollout.state() for rollout in here]
    assert [len(state.chunk) for state in states] == [2, 2, 2] and states[0].episode == 1
    then = transitions(here, before, after)

    for processes in (3, 2):
        ahead = rollouts(template, processes)
        assert transitions(ahead, 0, before) == expected
        assert [rollout.state() for rollout in ahead] == states  # nothing of what was stepped ahead
        assert transitions(ahead, before, after) == then
        assert transitions(rollouts(template, processes, states), before, after) == then
    assert transitions(rollouts(template, 0, states), before, after) == then


def test_environments_of_one_seed_differ_and_the_first_is_that_of_a_seed_with_no_other(template):
    def starts(slots: list[Slot], processes: int) -> list[list[float]]:
        return [own.start(0, [])[0].tolist() for own in open_episodes(CONFIG, slots, template, processes)]

    several = starts([Slot(3, number) for number in range(3)], processes=2)
    assert several[:1] == starts([Slot(3, 0)], processes=0)
    assert len({tuple(start) for start in several}) == 3


def test_a_worker_whose_environment_raises_names_the_error(template):
    (first, *_) = rollouts(template, 3)
    first.set_chunk(np.full((5, 2), np.nan, np.float32))
    with pytest.raises(WorkerError, match=r"environment worker 0: ValueError: an action is \(2,\) finite numbers"):
        first.step()
