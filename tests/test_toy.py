"""The toy task: what its point may do, both ways round its disc, and data that show both."""

from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets.generate import generate
from datasets.pictures.view import Look
from datasets.toy.env import DISC_RADIUS, GOAL, START_X, STEP_LENGTH, ToyReach, make_episode

UP, STRAIGHT = (0.6, 1.0), (1.0, 0.0)


def play(actions: list[tuple[float, float]], seed: int = 0) -> tuple[np.ndarray, float, bool, bool, dict]:
    """The last step's answer; the episode must not end before."""
    env = ToyReach()
    env.reset(seed=seed)
    answers = [env.step(np.array(action, np.float32)) for action in actions]
    assert not any(terminated or truncated for _, _, terminated, truncated, _ in answers[:-1])
    return answers[-1]


@pytest.mark.parametrize("side", [1, -1])
def test_either_way_round_the_disc_reaches_the_goal(side):
    env = ToyReach()
    obs, _ = env.reset(seed=3)
    length = 0
    while True:
        target = np.array([0.0, side * (DISC_RADIUS + 0.2)]) if obs[0] < -0.05 else np.array(GOAL)
        left = target - obs
        obs, reward, terminated, truncated, info = env.step(left / max(STEP_LENGTH, np.abs(left).max()))
        length += 1
        if terminated or truncated:
            break
        assert (reward, info) == (-1.0, {"success": False})
    assert (reward, terminated, truncated, info) == (0.0, True, False, {"success": True})
    assert 10 <= length < 20


def test_the_mean_of_both_ways_is_blocked_by_the_disc():
    obs, reward, terminated, truncated, info = play([STRAIGHT] * 20)
    assert obs[0] < 0 and np.hypot(*obs) >= DISC_RADIUS
    assert (reward, terminated, truncated, info) == (-1.0, False, True, {"success": False})


def test_an_action_is_clipped_and_moves_the_point_by_a_step_at_most():
    first, *_ = play([UP])
    start, _ = ToyReach().reset(seed=0)
    assert start[0] == np.float32(START_X)
    np.testing.assert_allclose(first - start, STEP_LENGTH * np.array(UP), atol=1e-6)
    np.testing.assert_array_equal(play([(7.0, -0.5)])[0], play([(1.0, -0.5)])[0])


def test_generated_data_go_both_ways_and_miss_sometimes(tmp_path: Path):
    file = generate("toy-reach", "mixed", 60, workers=1, out=tmp_path)
    data = datasets.load("toy-reach", file.stem, tmp_path)
    dataset = datasets.parse_name(file.stem)
    episodes = [make_episode(dataset, index) for index in range(60)]
    at_disc = np.array(
        [episode["observations"][np.abs(episode["observations"][:, 0]).argmin(), 1] for episode in episodes]
    )
    assert 0.3 < (at_disc > 0).mean() < 0.7
    assert 0.6 < data.terminated.sum() / 60 < 0.95  # terminates at the goal alone
    assert data.num_transitions == sum(len(episode["rewards"]) for episode in episodes)
    assert data.origin == "generated"


def test_equal_seeds_make_equal_bytes_whoever_makes_them(tmp_path: Path):
    files = [generate("toy-reach", "mixed", 9, 5, workers=count, out=tmp_path / str(count)) for count in (1, 2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_picture_shows_the_way_so_far():
    env = datasets.make_env("toy-reach")
    env.reset(seed=0)
    view, look = env.view(), Look(120, 80)  # type: ignore[attr-defined]
    before = view.state()
    env.step(np.array(UP, np.float32))
    pictures = [view.picture(state, look) for state in (before, view.state())]
    assert pictures[0].shape == (80, 120, 3) and pictures[0].dtype == np.uint8
    assert (pictures[0] != pictures[1]).any()
    np.testing.assert_array_equal(view.picture(before, look), pictures[0])  # states are copies
