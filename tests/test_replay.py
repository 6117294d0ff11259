"""The sampler of action chunks against a plain list of transitions, over random episodes, rings and write heads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.replay import ONLINE_FIELDS, Replay
from datasets.transitions import Transitions

DISCOUNT = 0.9


def make_transitions(lengths: list[int], terminated_rows: list[int] | None = None) -> Transitions:
    """Episodes of the given lengths; obs = (episode, step), action = reward = a running number."""
    obs, final, reward = [], [], []
    for episode, length in enumerate(lengths):
        for step in range(length + 1):
            obs.append((episode, step))
            final.append(step == length)
            reward.append(float(len(reward)))
    terminated = np.zeros(len(final), bool)
    terminated[terminated_rows or []] = True
    return Transitions(
        obs=np.asarray(obs, np.float32),
        action=np.asarray(reward, np.float32)[:, None],
        reward=np.asarray(reward, np.float32),
        terminated=terminated,
        final=np.asarray(final),
        name="made-up",
        origin="generated",
        content_hash="0",
    )


def make_replay(transitions: Transitions, chunk_length: int, num_seeds: int = 1) -> Replay:
    return Replay(
        transitions,
        num_seeds=num_seeds,
        chunk_length=chunk_length,
        discount=DISCOUNT,
        device=torch.device("cpu"),
    )


def every_window(replay: Replay):
    """One window per possible start, in order of age."""
    count = replay.size - replay.chunk_length + 1
    fractions = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return replay.sample(fractions.expand(replay.num_seeds, -1))


def dataset_rows(transitions: Transitions) -> list[dict]:
    """The transitions one by one, the slow and obvious way."""
    rows = []
    for row in range(len(transitions.final)):
        if not transitions.final[row]:
            rows.append(
                {
                    "obs": transitions.obs[row].tolist(),
                    "action": float(transitions.action[row, 0]),
                    "reward": float(transitions.reward[row]),
                    "terminated": bool(transitions.terminated[row]),
                    "episode_end": bool(transitions.final[row + 1]),
                    "next_obs": transitions.obs[row + 1].tolist(),
                }
            )
    return rows


def online_row(number: int, ends: bool, terminated: bool) -> dict:
    return {
        "obs": [1000.0, float(number)],
        "action": 1000.0 + number,
        "reward": -1000.0 - number,
        "terminated": terminated,
        "episode_end": ends,
        "next_obs": [1000.0, number + 1.0],
    }


def append(replay: Replay, rows: list[dict]) -> None:
    """One transition per seed."""
    values = {name: np.asarray([row[name] for row in rows], np.float32) for name in ONLINE_FIELDS}
    replay.append(
        {**{n: torch.from_numpy(v) for n, v in values.items()}, "action": torch.from_numpy(values["action"])[:, None]}
    )


def assert_window(batch, index: int, window: list[dict], seed: int = 0) -> None:
    """One sampled window equals the rows it should hold, by the formulas of the Q-chunking release."""
    length = len(window)
    assert batch.obs[seed, index].tolist() == window[0]["obs"]
    assert batch.next_obs[seed, index].tolist() == window[-1]["next_obs"]
    assert batch.action_chunk[seed, index, :, 0].tolist() == [row["action"] for row in window]
    expected_return = sum(DISCOUNT**k * row["reward"] for k, row in enumerate(window))
    assert float(batch.chunk_return[seed, index]) == pytest.approx(expected_return, rel=1e-5)
    ended = [any(row["episode_end"] for row in window[:k]) for k in range(length)]
    assert batch.valid[seed, index].tolist() == [0.0 if e else 1.0 for e in ended]
    survives = not any(row["terminated"] for row in window)
    assert float(batch.bootstrap[seed, index]) == pytest.approx(DISCOUNT**length if survives else 0.0)


@st.composite
def buffers(draw):
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    chunk_length = draw(st.integers(1, min(5, sum(lengths))))
    rows = sum(lengths) + len(lengths)
    terminated = draw(st.lists(st.integers(0, rows - 1), max_size=3))
    capacity = draw(st.integers(1, 2 * sum(lengths)))
    flags = draw(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
    dataset_rows_kept = draw(st.none() | st.integers(chunk_length, sum(lengths)))
    return lengths, terminated, chunk_length, capacity, flags, dataset_rows_kept


@settings(max_examples=150, deadline=None)
@given(buffers())
def test_every_window_equals_a_plain_list_of_transitions(buffer):
    lengths, terminated, chunk_length, capacity, flags, kept = buffer
    transitions = make_transitions(lengths, terminated)
    replay = make_replay(transitions, chunk_length)
    replay.open_ring(capacity, online_steps=40, dataset_rows=kept)
    reference = dataset_rows(transitions)[-(kept or sum(lengths)) :]
    true_capacity = max(capacity, len(reference) + 1)
    for number, (ends, terminates) in enumerate(flags):
        row = online_row(number, ends or terminates, terminates)
        append(replay, [row])
        reference = [*reference, row][-true_capacity:]  # the oldest transition makes room

    assert replay.size == len(reference)
    batch = every_window(replay)
    for start in range(len(reference) - chunk_length + 1):
        # in order of age: a window never joins the newest transition to the oldest across the write head
        assert_window(batch, start, reference[start : start + chunk_length])


def test_full_ring_holds_its_capacity():
    replay = make_replay(make_transitions([4]), 1)
    replay.open_ring(capacity=10, online_steps=100)
    for number in range(35):
        append(replay, [online_row(number, False, False)])
    assert replay.size == 10
    assert sorted(every_window(replay).obs[0, :, 1].tolist()) == [float(n) for n in range(25, 35)]


def test_buffer_of_dataset_size_plus_one_overwrites_the_oldest_offline_transition():
    # the rule of the official drivers on a dataset larger than the buffer (cube-triple)
    replay = make_replay(make_transitions([6]), 1)
    replay.open_ring(capacity=3, online_steps=100)
    assert replay.capacity == 7
    append(replay, [online_row(0, False, False)])
    assert replay.size == 7  # the released ring reports 6 here: its size is read after the pointer has wrapped
    append(replay, [online_row(1, False, False)])
    assert replay.size == 7
    assert every_window(replay).obs[0, :, 1].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 1.0]


def test_termination_inside_a_window_stops_the_bootstrap_but_an_episode_end_does_not():
    transitions = make_transitions([5, 5], terminated_rows=[2])
    batch = every_window(make_replay(transitions, 3))
    assert batch.bootstrap[0].tolist() == pytest.approx([0.0, 0.0, 0.0] + [DISCOUNT**3] * 5)
    # an end at the last step keeps the window's weight, an end before it takes it away
    assert batch.valid[0, :, -1].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]


def test_returns_of_a_constant_reward_have_the_published_discounts():
    transitions = make_transitions([20])
    transitions.reward[:] = -1.0
    replay = Replay(transitions, num_seeds=1, chunk_length=5, discount=0.99, device=torch.device("cpu"))
    batch = every_window(replay)
    assert batch.chunk_return[0].tolist() == pytest.approx([-4.90099501] * 16, rel=1e-6)
    assert batch.bootstrap[0].tolist() == pytest.approx([0.95099005] * 16, rel=1e-6)
    # the fixed point of target = return + bootstrap * V is -1 / (1 - discount) for any chunk length
    assert float(batch.chunk_return[0, 0] / (1 - batch.bootstrap[0, 0])) == pytest.approx(-100.0, rel=1e-4)


def test_seeds_share_the_dataset_and_keep_their_own_online_transitions():
    transitions = make_transitions([3])
    replay = make_replay(transitions, 2, num_seeds=2)
    replay.open_ring(capacity=100, online_steps=10)
    for number in range(4):
        append(replay, [online_row(number, False, False), online_row(10 + number, False, False)])
    batch = every_window(replay)
    for seed, first in ((0, 0), (1, 10)):
        rows = dataset_rows(transitions) + [online_row(first + n, False, False) for n in range(4)]
        for start in range(6):
            assert_window(batch, start, rows[start : start + 2], seed)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 25), st.integers(1, 30))
def test_online_rows_round_trip_restores_every_window(collected, capacity):
    def fresh() -> Replay:
        replay = make_replay(make_transitions([4, 3]), 2)
        replay.open_ring(capacity, online_steps=25)
        return replay

    replay, stored = fresh(), []
    for number in range(collected):
        append(replay, [online_row(number, number % 4 == 3, number % 8 == 7)])
        stored.append(replay.online_rows(0, number, number + 1))
    restored = fresh()
    packed = torch.cat(stored) if stored else torch.zeros(0, replay.row_width)
    restored.restore_online(packed[None])
    expected, actual = every_window(replay), every_window(restored)
    for name in ("obs", "action_chunk", "chunk_return", "bootstrap", "next_obs", "valid"):
        assert torch.equal(getattr(expected, name), getattr(actual, name)), name


def test_starts_are_uniform_over_the_buffer():
    replay = make_replay(make_transitions([10]), 3)
    fractions = torch.rand(1, 80_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(replay.sample(fractions).obs[0, :, 1].long(), minlength=8)
    assert len(counts) == 8
    assert (counts - 10_000).abs().max() < 5 * 10_000**0.5


def test_dataset_shorter_than_a_chunk_is_refused():
    with pytest.raises(ValueError, match="fewer than one chunk of 5"):
        make_replay(make_transitions([3]), 5)
