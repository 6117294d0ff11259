"""The sampler of action chunks against a plain list of transitions, over random episodes, rings and write heads."""

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.runs.contract import ConfigError
from datasets.batch import Batch
from datasets.replay import placement as placing
from datasets.replay.placement import PLACEMENTS, fitting_placement
from datasets.replay.replay import ONLINE_FIELDS, Replay
from datasets.transitions import Transitions
from tests.device_calls import META, Calls

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


def mapped(transitions: Transitions, folder: Path) -> Transitions:
    """The same transitions from files in a new folder inside `folder`."""
    folder, arrays = Path(tempfile.mkdtemp(dir=folder)), {}
    for name in ("obs", "action", "reward", "terminated", "final"):
        np.save(folder / f"{name}.npy", getattr(transitions, name))
        arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="c")
    return Transitions(**arrays, name="made-up", origin="generated", content_hash="0")


def make_replay(transitions: Transitions, chunk_length: int, num_seeds: int = 1, **options: Any) -> Replay:
    settings: dict[str, Any] = {"discount": DISCOUNT, "device": torch.device("cpu"), **options}
    return Replay(transitions, num_seeds=num_seeds, chunk_length=chunk_length, **settings)


def fractions_of(number: int, num_seeds: int, batch_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.rand(num_seeds, batch_size, dtype=torch.float64, generator=generator)


def assert_equal_batches(actual: Batch, expected: Batch) -> None:
    """Bit for bit."""
    for field in fields(Batch):
        assert torch.equal(getattr(actual, field.name).cpu(), getattr(expected, field.name).cpu()), field.name


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
    """The transition of this number; where it ends an episode, the next one begins with another observation."""
    return {
        "obs": [1000.0, float(number)],
        "action": 1000.0 + number,
        "reward": -1000.0 - number,
        "terminated": terminated,
        "episode_end": ends,
        "next_obs": [1000.0, number + (0.5 if ends else 1.0)],
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


def test_buffer_with_room_for_all_overwrites_nothing():
    # QAM's driver on cube-triple: dataset + online steps
    replay = make_replay(make_transitions([6]), 1)
    replay.open_ring(capacity=None, online_steps=100)
    for number in range(100):
        append(replay, [online_row(number, False, False)])
    assert replay.size == replay.capacity == 106
    assert every_window(replay).obs[0, :, 1].tolist() == [*map(float, range(6)), *map(float, range(100))]


@settings(max_examples=100, deadline=None)
@given(buffers(), st.integers(1, 12), st.integers(1, 9))
def test_shards_take_turns_in_circles_and_online_transitions_stay(buffer, rows, turn):
    lengths, terminated, chunk_length, _, flags, _ = buffer
    rows = min(max(rows, chunk_length), sum(lengths))
    transitions = make_transitions(lengths, terminated)
    replay = make_replay(transitions, chunk_length)
    replay.open_ring(None, online_steps=40, dataset_rows=rows, turn=turn)
    data, online = dataset_rows(transitions), []
    for number, (ends, terminates) in enumerate([*flags, (False, False)]):
        shard = number // turn % (len(data) // rows)
        part = data[shard * rows : (shard + 1) * rows]
        reference = [*part[:-1], {**part[-1], "episode_end": True}, *online]
        batch = every_window(replay)
        assert replay.size == len(reference)
        for start in range(len(reference) - chunk_length + 1):
            assert_window(batch, start, reference[start : start + chunk_length])
        if number < len(flags):
            online.append(online_row(number, ends or terminates, terminates))
            append(replay, online[-1:])


@pytest.mark.parametrize("placement", ["device", "host", "stream"])
@pytest.mark.parametrize("share", [None, 0.5])
def test_turns_of_shards_are_the_same_in_every_placement_prefetched_and_restored(placement, share, tmp_path):
    transitions = make_transitions([9, 7, 8], terminated_rows=[4])

    def fresh(data: Transitions, **options: Any) -> Replay:
        replay = make_replay(data, 3, num_seeds=2, **options)
        replay.open_ring(None, 40, dataset_rows=8, online_share=share, turn=5)
        return replay

    plain, other, restored = fresh(transitions), fresh(mapped(transitions, tmp_path), placement=placement), None
    fixed = fractions_of(0, 2, 40)
    for number in range(40):
        other.prefetch(number, fixed)  # what is appended or takes its turn meanwhile changes the batch
        rows = [online_row(number, number % 5 == 2, False), online_row(number, number % 7 == 3, True)]
        for each in (plain, other, *([restored] if restored else [])):
            append(each, rows)
        if number == 17:  # between two turns
            restored = fresh(transitions)
            restored.restore_online(plain.online_rows(seed, 0, 18) for seed in range(2))
        expected = plain.sample(fixed)
        assert_equal_batches(other.sample(fixed, number), expected)
        if restored:
            assert_equal_batches(restored.sample(fixed), expected)


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
    assert_equal_batches(every_window(restored), every_window(replay))
    # and goes on like the one that was never interrupted
    for number in range(collected, collected + 5):
        for each in (replay, restored):
            append(each, [online_row(number, number % 4 == 3, False)])
    assert_equal_batches(every_window(restored), every_window(replay))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=60), st.integers(1, 20))
def test_seeds_end_their_episodes_apart_from_each_other(ends, capacity):
    transitions = make_transitions([3, 2])
    replay = make_replay(transitions, 2, num_seeds=3)
    replay.open_ring(capacity, online_steps=60)
    collected = [dataset_rows(transitions) for _ in range(3)]
    for number, flags in enumerate(ends):
        rows = [online_row(100 * seed + number, end, False) for seed, end in enumerate(flags)]
        append(replay, rows)
        for seed, row in enumerate(rows):
            collected[seed] = [*collected[seed], row][-replay.capacity :]
    batch = every_window(replay)
    for seed in range(3):
        for start in range(len(collected[seed]) - 1):
            assert_window(batch, start, collected[seed][start : start + 2], seed)


def tensors_of(replay: Replay) -> set[int]:
    """Addresses of all tensors that the replay and what it consists of hold."""
    parts = [replay, *(part for part in vars(replay).values() if type(part).__module__.startswith("datasets."))]
    return {value.data_ptr() for part in parts for value in vars(part).values() if isinstance(value, torch.Tensor)}


def test_version_increases_exactly_when_tensors_are_replaced():
    replay = make_replay(make_transitions([20]), 3)
    versions = [replay.version]
    replay.open_ring(capacity=300, online_steps=1000)
    versions.append(replay.version)
    assert versions[1] > versions[0]
    tensors, growths = tensors_of(replay), 0
    for number in range(1000):
        append(replay, [online_row(number, True, False)])  # every transition ends an episode, the worst case
        if replay.version == versions[-1]:
            assert tensors_of(replay) == tensors
        else:
            assert tensors_of(replay) != tensors
            tensors, growths = tensors_of(replay), growths + 1
            versions.append(replay.version)
    assert growths > 0
    assert versions == sorted(set(versions))
    # places of overwritten episode ends are used again: as many as fit in the ring are enough
    assert growths == 3  # 64 places, 128, 256, 512
    expected = [online_row(number, True, False) for number in range(700, 1000)]
    batch = every_window(replay)
    for start in range(len(expected) - 2):
        assert_window(batch, start, expected[start : start + 3])


@pytest.mark.parametrize("ring", [{"capacity": 40}, {"capacity": None, "dataset_rows": 8, "turn": 7}])
def test_compiled_sampling_stays_right_and_compiled_while_the_ring_grows_and_wraps(ring):
    transitions = make_transitions([9, 7], terminated_rows=[4])
    replay, eager = (make_replay(transitions, 3, num_seeds=2) for _ in range(2))
    torch._dynamo.reset()
    sample = torch.compile(replay.sample, fullgraph=True, backend="eager")
    assert_equal_batches(sample(fractions_of(0, 2, 16)), eager.sample(fractions_of(0, 2, 16)))
    for each in (replay, eager):
        each.open_ring(**ring, online_steps=100)
    sample(fractions_of(0, 2, 16))  # the one other graph, of an open ring
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(1, 101):
            for each in (replay, eager):
                append(each, [online_row(number, number % 5 == 0, False), online_row(number, number % 7 == 0, True)])
            fractions = fractions_of(number, 2, 16)
            assert_equal_batches(sample(fractions), eager.sample(fractions))
        assert replay.num_online == 100


def test_transition_that_does_not_begin_where_the_last_one_ended_is_refused():
    replay = make_replay(make_transitions([4]), 1, num_seeds=2)
    replay.open_ring(capacity=10, online_steps=10)
    append(replay, [online_row(0, True, False), online_row(0, False, False)])
    append(replay, [online_row(7, False, False), online_row(1, False, False)])
    with pytest.raises(ValueError, match="another obs than the next_obs before it"):
        append(replay, [online_row(8, False, False), online_row(3, False, False)])
    packed = [replay.online_rows(seed, 0, 2) for seed in range(2)]
    replay.restore_online(packed)
    with pytest.raises(ValueError, match="another obs than the next_obs before it"):
        append(replay, [online_row(2, False, False), online_row(2, False, False)])
    append(replay, [online_row(8, False, False), online_row(2, False, False)])
    with pytest.raises(ValueError, match=r"2 seeds with equally many transitions are needed, not \[2, 1\]"):
        replay.restore_online([packed[0], packed[1][:1]])


def test_seeds_that_end_episodes_apart_are_restored_and_go_on():
    def fresh() -> Replay:
        replay = make_replay(make_transitions([4]), 2, num_seeds=2)
        replay.open_ring(capacity=9, online_steps=60)
        return replay

    def rows_of(number: int) -> list[dict]:
        return [online_row(number, number % 2 == 0, False), online_row(100 + number, number % 3 == 0, False)]

    replay, stored = fresh(), [torch.zeros(0, 0)] * 2
    for number in range(25):
        append(replay, rows_of(number))
        new = [replay.online_rows(seed, number, number + 1) for seed in range(2)]
        stored = [torch.cat([old, row]) if len(old) else row for old, row in zip(stored, new, strict=True)]
    restored = fresh()
    restored.restore_online(rows for rows in stored)
    for number in range(25, 60):
        assert_equal_batches(every_window(restored), every_window(replay))
        for each in (replay, restored):
            append(each, rows_of(number))


@pytest.mark.parametrize("placement", ["device", "host", "stream"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(buffers(), st.integers(0, 2**20))
def test_every_placement_gives_the_same_batches(placement, tmp_path, buffer, seed):
    lengths, terminated, chunk_length, capacity, flags, kept = buffer
    transitions = make_transitions(lengths, terminated)
    reference = make_replay(transitions, chunk_length, num_seeds=2, placement="device")
    replay = make_replay(mapped(transitions, tmp_path), chunk_length, num_seeds=2, placement=placement)
    assert replay.on_device == (placement == "device")
    fractions = fractions_of(seed, 2, 70)
    assert_equal_batches(replay.sample(fractions), reference.sample(fractions))
    for each in (replay, reference):
        each.open_ring(capacity, online_steps=40, dataset_rows=kept)
    for number, (ends, terminates) in enumerate(flags):
        rows = [online_row(number, ends or terminates, terminates), online_row(number, ends, False)]
        for each in (replay, reference):
            append(each, rows)
        fractions = fractions_of(seed + number, 2, 9)
        assert_equal_batches(replay.sample(fractions), reference.sample(fractions))


@pytest.mark.parametrize("placement", ["device", "host", "stream"])
def test_prefetched_batch_is_the_one_sampled_then(placement, tmp_path):
    transitions = mapped(make_transitions([9, 30, 11]), tmp_path)
    replay = make_replay(transitions, 4, num_seeds=2, placement=placement)
    plain = make_replay(transitions, 4, num_seeds=2, placement="device")
    fractions = {number: fractions_of(number, 2, 300) for number in range(6)}
    for number in (0, 1, 2, 4):  # 3 and 5 are not prefetched, 4 is never asked for
        replay.prefetch(number, fractions[number])
    for number in (0, 1, 2, 3, 5):
        assert_equal_batches(replay.sample(fractions[number], number), plain.sample(fractions[number]))
    for each in (replay, plain):
        each.open_ring(capacity=60, online_steps=30, dataset_rows=25)
    for number in range(30):
        replay.prefetch(number, fractions[0])
        for each in (replay, plain):  # what is appended meanwhile changes the batch
            append(each, [online_row(number, False, False), online_row(number, number % 5 == 2, False)])
        assert_equal_batches(replay.sample(fractions[0], number), plain.sample(fractions[0]))


def test_dataset_beyond_the_memory_set_aside_for_it_is_streamed_until_it_fits(tmp_path, monkeypatch):
    transitions = mapped(make_transitions([50, 50]), tmp_path)
    monkeypatch.setattr(placing, "HOST_BYTES", transitions.num_bytes() - 1)
    replay = make_replay(transitions, 2)
    assert (replay.placement, replay.on_device) == ("stream", False)
    version = replay.version
    replay.open_ring(capacity=200, online_steps=10, dataset_rows=60)
    assert (replay.placement, replay.on_device) == ("device", True)
    assert replay.version > version
    append(replay, [online_row(0, False, False)])
    rows = [*dataset_rows(transitions)[-60:], online_row(0, False, False)]
    batch = every_window(replay)
    for start in range(60):
        assert_window(batch, start, rows[start : start + 2])


@pytest.mark.parametrize(
    ("free_on_gpu", "host_bytes", "placement"),
    [(4000, 0, "device"), (3998, 1000, "host"), (3998, 999, "stream")],
)
def test_data_and_rings_go_to_the_gpu_where_half_of_its_free_memory_is_enough(
    free_on_gpu, host_bytes, placement, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_on_gpu, 10**9))
    monkeypatch.setattr(placing, "HOST_BYTES", host_bytes)
    transitions = mapped(make_transitions([9]), tmp_path)
    assert fitting_placement(transitions, 1000, 1000, torch.device("cuda")) == placement


def test_memory_that_torch_holds_without_a_use_is_free(tmp_path, monkeypatch):
    transitions = mapped(make_transitions([9]), tmp_path)
    free = {"mem_get_info": (3000, 10**9), "memory_reserved": 1500, "memory_allocated": 500}
    for name, value in free.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert fitting_placement(transitions, 1000, 1000, torch.device("cuda")) == "device"
    assert fitting_placement(transitions, 1000, 1001, torch.device("cuda")) == "host"


def test_what_is_collected_must_find_room_before_anything_is_trained():
    transitions, too_many = make_transitions([9]), 10**12
    for collect in (
        lambda: make_replay(transitions, 2, num_seeds=2, ring_rows=too_many),
        lambda: make_replay(transitions, 2, num_seeds=2).open_ring(None, online_steps=too_many),
    ):
        with pytest.raises(ConfigError, match=r"what 2 seeds collect online takes 48160\.0 GB, and this machine has"):
            collect()


def test_data_that_lie_in_memory_anyway_are_not_streamed(monkeypatch):
    monkeypatch.setattr(placing, "HOST_BYTES", 0)
    assert make_replay(make_transitions([9]), 2).placement == "device"


def test_bad_placement_is_one_line():
    transitions = make_transitions([9])
    with pytest.raises(ValueError, match=f"unknown placement 'disk'; placements: {', '.join(PLACEMENTS)}$"):
        make_replay(transitions, 2, placement="disk")
    with pytest.raises(ValueError, match="made-up: placement 'stream' reads files, but 'obs' lies in memory"):
        make_replay(transitions, 2, placement="stream")


@pytest.mark.parametrize("placement", ["host", "stream"])
@pytest.mark.parametrize("collected", [0, 5])
def test_a_batch_goes_from_the_host_to_a_device_in_one_copy_without_a_wait(placement, collected, tmp_path):
    transitions = mapped(make_transitions([9, 30, 11]), tmp_path)
    replay = make_replay(transitions, 4, num_seeds=2, placement=placement, device=META)
    plain = make_replay(transitions, 4, num_seeds=2)
    for each in (replay, plain) if collected else ():
        each.open_ring(capacity=60, online_steps=30)
        for number in range(collected):
            append(each, [online_row(number, False, False), online_row(number, number % 2 == 0, False)])
    fractions = fractions_of(collected, 2, 70)
    gathered = replay.gather(fractions)
    assert_equal_batches(plain.batch(gathered.fields), plain.sample(fractions))
    static = gathered.copied_to(META)
    with Calls() as calls:
        static.numbers.copy_(gathered.numbers, non_blocking=True)
        batch = replay.batch(static.fields)
    assert len(calls.copies) == 1 and not calls.waits
    assert {field.name: getattr(batch, field.name).shape for field in fields(Batch)} == {
        field.name: getattr(plain.sample(fractions), field.name).shape for field in fields(Batch)
    }
    with Calls() as calls:
        assert replay.sample(fractions).obs.device == META
    assert len(calls.copies) == 1 and not calls.waits


def test_appending_to_a_ring_on_a_device_waits_for_no_copy():
    replay = make_replay(make_transitions([9]), 3, num_seeds=2, device=META)
    replay.open_ring(capacity=6, online_steps=200)
    with Calls() as calls:
        for number in range(20):
            append(replay, [online_row(number, False, False), online_row(number, number % 3 == 0, False)])
    assert len(calls.copies) >= 20 and not calls.waits


@pytest.mark.gpu
@pytest.mark.parametrize(
    "ring", [{"capacity": 60, "dataset_rows": 40}, {"capacity": None, "dataset_rows": 8, "turn": 7}]
)
@pytest.mark.parametrize("placement", ["device", "host", "stream"])
def test_gpu_gives_the_batches_of_the_cpu_and_appending_does_not_wait_for_it(placement, ring, tmp_path):
    transitions = mapped(make_transitions([9, 30, 11], terminated_rows=[4]), tmp_path)
    replay = make_replay(transitions, 3, num_seeds=2, placement=placement, device=torch.device("cuda"))
    reference = make_replay(transitions, 3, num_seeds=2)
    for each in (replay, reference):
        each.open_ring(**ring, online_steps=200)
    for number in range(130):
        rows = [online_row(number, number % 5 == 2, False), online_row(number, number % 7 == 3, True)]
        append(reference, rows)
        torch.cuda.set_sync_debug_mode("error")
        try:
            append(replay, rows)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        fractions = fractions_of(number, 2, 16)
        actual, expected = replay.sample(fractions.cuda()), reference.sample(fractions)
        for field in fields(Batch):
            torch.testing.assert_close(getattr(actual, field.name).cpu(), getattr(expected, field.name))


@pytest.mark.gpu
def test_captured_sampling_follows_the_ring_while_the_version_stands():
    transitions = make_transitions([9, 30, 11], terminated_rows=[4])
    replay = make_replay(transitions, 3, num_seeds=2, device=torch.device("cuda"))
    replay.open_ring(capacity=60, online_steps=200)
    append(replay, [online_row(0, False, False), online_row(0, False, False)])
    fractions = torch.zeros(2, 16, dtype=torch.float64, device="cuda")
    replay.sample(fractions)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        captured = replay.sample(fractions)
    version = replay.version
    for number in range(1, 130):
        append(replay, [online_row(number, number % 5 == 2, False), online_row(number, number % 7 == 3, True)])
        assert replay.version == version
        fractions.copy_(fractions_of(number, 2, 16))
        graph.replay()
        assert_equal_batches(captured, replay.sample(fractions))


def test_starts_are_uniform_over_the_buffer():
    replay = make_replay(make_transitions([10]), 3)
    fractions = torch.rand(1, 80_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(replay.sample(fractions).obs[0, :, 1].long(), minlength=8)
    assert len(counts) == 8
    assert (counts - 10_000).abs().max() < 5 * 10_000**0.5


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_share_of_each_batch_is_of_online_transitions_and_the_rest_of_the_whole_dataset(placement, tmp_path):
    transitions = mapped(make_transitions([8, 8]), tmp_path)
    replay = make_replay(transitions, 3, placement=placement)
    replay.open_ring(capacity=6, online_steps=100, online_share=0.25)
    for number in range(10):  # of which the ring keeps 6
        append(replay, [online_row(number, False, False)])
    assert replay.dataset_size == 16
    batch = replay.sample(fractions_of(0, 1, 4_000))
    online = batch.obs[0, :, 0] == 1000
    assert online.tolist() == [True] * 1000 + [False] * 3000
    starts = torch.bincount(batch.obs[0, :1000, 1].long(), minlength=8)
    assert starts.tolist()[:4] == [0] * 4 and (starts[4:] - 250).abs().max() < 80  # 4 ... 7: none leaves the ring
    from_dataset = torch.bincount(batch.action_chunk[0, 1000:, 0, 0].long())
    assert len(from_dataset[from_dataset > 0]) == 14  # no transition was overwritten


def test_a_whole_share_is_online_alone_once_a_window_of_it_is_there():
    replay = make_replay(make_transitions([8]), 3)
    replay.open_ring(capacity=100, online_steps=100, online_share=1.0)
    for number in range(4):
        append(replay, [online_row(number, False, False)])
        found = replay.sample(fractions_of(number, 1, 50)).obs[0, :, 0]
        assert (found == 1000).all() if number >= 2 else (found < 1000).all()
    again = make_replay(make_transitions([8]), 3)
    again.open_ring(capacity=100, online_steps=100, online_share=1.0)
    again.restore_online([replay.online_rows(0, 0, 4)])
    fractions = fractions_of(9, 1, 50)
    assert_equal_batches(again.sample(fractions), replay.sample(fractions))


def test_dataset_shorter_than_a_chunk_is_refused():
    with pytest.raises(ValueError, match="fewer than one chunk of 5"):
        make_replay(make_transitions([3]), 5)
