"""What on-policy agents train on: decisions made of the steps of several environments."""

import pytest
import torch
from torch import Tensor

from agents.blocks.ppo import estimate_advantages
from datasets.replay.trajectories import FIELDS, TrajectoryStore

DISCOUNT = 0.9
CPU = torch.device("cpu")


def filled(steps: list[list[tuple[float, bool, bool, bool, bool]]], count: int | None = None) -> TrajectoryStore:
    """A store of one seed. Per environment and step: reward, a decision begins, its chunk ends, the episode ends,
    it terminated. Observation and record tell environment and step."""
    store = TrajectoryStore(1, len(steps), len(steps[0]), 2, DISCOUNT, CPU)
    for n in range(store.num_rows if count is None else count):
        t, env = divmod(n, len(steps))
        if env == 0:
            begins = torch.tensor([[float(own[t][1]) for own in steps]])
            store.decide(begins, torch.tensor([[[float(10 * e + t)] for e in range(len(steps))]]))
        reward, _, chunk_end, episode_end, terminated = steps[env][t]
        store.append(
            {
                "obs": torch.tensor([[float(env), float(t)]]),
                "reward": torch.tensor([reward]),
                "terminated": torch.tensor([float(terminated)]),
                "episode_end": torch.tensor([float(episode_end)]),
                "chunk_end": torch.tensor([float(chunk_end)]),
                "next_obs": torch.tensor([[float(env), t + 0.5]]),
            }
        )
    return store


def step(reward: float, begins: bool = False, ends: bool = False, episode: str = "") -> tuple:
    return reward, begins, ends or bool(episode), bool(episode), episode == "terminated"


TWO_ENVIRONMENTS = [
    # Chunks of two; the second is cut by the episode's end, the last one is under way at the end of the rollout.
    [step(1, True), step(2, ends=True), step(3, True, episode="terminated"), step(4, True)],
    # The rest of a chunk of the rollout before, one whole chunk, an episode that is cut by time.
    [step(5, ends=True), step(6, True), step(7, ends=True), step(8, True, episode="truncated")],
]


def test_decisions_have_the_return_and_the_end_of_their_own_steps() -> None:
    own = filled(TWO_ENVIRONMENTS).trajectories()
    assert own.begins[0].T.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert own.chunk_return[0, :, 0][[0, 2]].tolist() == pytest.approx([1 + 0.9 * 2, 3])
    assert own.chunk_return[0, :, 1][[1, 3]].tolist() == pytest.approx([6 + 0.9 * 7, 8])
    assert own.bootstrap[0, :, 0][[0, 2]].tolist() == pytest.approx([0.81, 0])
    assert own.bootstrap[0, :, 1][[1, 3]].tolist() == pytest.approx([0.81, 0.9])  # a time limit bootstraps
    assert own.next_obs[0, [0, 2], 0].tolist() == [[0, 1.5], [0, 2.5]]
    assert own.next_obs[0, [1, 3], 1].tolist() == [[1, 2.5], [1, 3.5]]
    assert own.continues[0, [0, 2], 0].tolist() == [1, 0]
    assert own.continues[0, [1, 3], 1].tolist() == [1, 0]


def test_a_decision_that_is_followed_by_an_unfinished_one_ends_the_estimate() -> None:
    own = filled([[step(1, True), step(2, ends=True), step(3, True)]]).trajectories()
    assert own.begins[0, :, 0].tolist() == [1, 0, 0] and own.continues[0, 0, 0] == 0
    assert own.bootstrap[0, 0, 0] == pytest.approx(0.81)


def test_advantages_are_those_of_the_decisions_alone() -> None:
    own = filled([[step(1, True), step(2, ends=True), step(3, True, ends=True), step(4, True, episode="truncated")]])
    trajectories = own.trajectories()

    def value(obs: Tensor) -> Tensor:
        return obs[..., 1]  # the step, and half a step more after it

    advantage, target = estimate_advantages(trajectories, value, gae_lambda=0.5)
    errors = [1 + 0.9 * 2 + 0.81 * 1.5 - 0, 3 + 0.9 * 2.5 - 2, 4 + 0.9 * 3.5 - 3]
    last = errors[2]
    middle = errors[1] + 0.5 * 0.9 * last
    first = errors[0] + 0.5 * 0.81 * middle
    assert advantage[0, [0, 2, 3], 0].tolist() == pytest.approx([first, middle, last])
    assert target[0, [0, 2, 3], 0].tolist() == pytest.approx([first + 0, middle + 2, last + 3])


def test_with_lambda_one_the_value_target_is_the_discounted_return() -> None:
    own = filled([[step(1, True, ends=True), step(1, True, ends=True), step(1, True, episode="terminated")]])
    _, target = estimate_advantages(own.trajectories(), lambda obs: 0 * obs[..., 1] + 7, gae_lambda=1.0)
    assert target[0, :, 0].tolist() == pytest.approx([1 + 0.9 + 0.81, 1.9, 1.0])


def test_a_minibatch_holds_decisions_of_its_own_seed_each_with_equal_probability() -> None:
    store = filled(TWO_ENVIRONMENTS)
    own = store.trajectories()
    store.offer(own, own.obs[..., 1], 10 * own.obs[..., 1])
    batch = store.sample(torch.linspace(0, 0.999, 8, dtype=torch.float64).unsqueeze(0))
    assert batch.record[0, :, 0].tolist() == [0, 0, 11, 11, 2, 2, 13, 13]  # in order of time, two of eight each
    assert batch.advantage[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch.value_target[0].tolist() == [0, 0, 10, 10, 20, 20, 30, 30]
    assert batch.obs[0, :, 0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_a_new_rollout_takes_the_place_of_the_old_one_in_the_same_tensors() -> None:
    store = filled(TWO_ENVIRONMENTS)
    own = store.trajectories()
    store.offer(own, own.obs[..., 0], own.obs[..., 0])
    fractions = torch.zeros(1, 1, dtype=torch.float64)
    assert store.count == 0 and store.sample(fractions).advantage.tolist() == [[0.0]]
    captured = store._sampled
    store.offer(own, own.obs[..., 0] + 5, own.obs[..., 0])
    assert store._sampled is captured and store.sample(fractions).advantage.tolist() == [[5.0]]


def test_decisions_of_the_rollout_before_are_forgotten() -> None:
    store = filled([[step(1, True, ends=True), step(1, True, ends=True)]])
    own = store.trajectories()
    store.offer(own, own.chunk_return, own.chunk_return)
    again = filled([[step(1, True), step(1, ends=True)]])
    records = again._records
    assert records is not None
    store.decide(again._begins[:, :1], records[:, :1])
    for n in range(2):  # at the second step nothing is decided
        store.append(dict(zip(FIELDS, again._steps[:, n].split(again._widths, -1), strict=True)))
    assert store.trajectories().begins.flatten().tolist() == [1, 0]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8])
def test_a_store_comes_back_whole_even_between_two_environments(count: int) -> None:
    whole, resumed = filled(TWO_ENVIRONMENTS), TrajectoryStore(1, 2, 4, 2, DISCOUNT, CPU)
    records = whole._records
    assert records is not None
    resumed.restore([filled(TWO_ENVIRONMENTS, count).rows_of_seed(0)])
    assert resumed.count == count
    for n in range(count, 8):
        if n % 2 == 0:
            resumed.decide(whole._begins[:, n : n + 2], records[:, n : n + 2])
        columns = whole._steps[:, n].split(whole._widths, -1)
        resumed.append(dict(zip(FIELDS, columns, strict=True)))
    for name, value in vars(whole.trajectories()).items():
        assert torch.equal(getattr(resumed.trajectories(), name), value), name
