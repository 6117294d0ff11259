"""Products of layers: the form of a GPU against that of a CPU."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from agents.blocks import kernels
from agents.blocks.base import polyak_update
from agents.blocks.networks import MLP
from tests.seeded_noise import SeededNoise
from tests.test_agents import NAMES, OBS_DIM, batch_of, build, online_batch

SEEDS = [0, 1]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "at_once", lambda x: True)


def outcome(name: str, phase: str) -> dict[str, torch.Tensor]:
    """Chunks of a new agent, and metrics and Adam's means, which are linear in gradients, after its first update."""
    agent = build(name, SEEDS)
    obs = SeededNoise(SEEDS).normal("obs", 5, OBS_DIM)
    chunks = {mode: agent.act(obs, SeededNoise(SEEDS), mode) for mode in ("collect", "evaluate")}
    noise = SeededNoise(SEEDS)
    if phase == "offline":
        metrics = agent.update_offline(batch_of(SEEDS, agent.chunk_length), noise)
    else:
        metrics = agent.update_online(online_batch(agent, SEEDS), noise)
    means = {key: value for key, value in agent.state_tensors().items() if "/exp_avg" in key}
    return chunks | metrics | means


@pytest.mark.parametrize("phase", ["offline", "online"])
@pytest.mark.parametrize("name", NAMES)
def test_all_members_at_once_give_the_numbers_of_each_alone(
    name: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = outcome(name, phase)
    monkeypatch.setattr(kernels, "at_once", lambda x: True)
    for key, value in outcome(name, phase).items():
        torch.testing.assert_close(value, alone[key], rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_compiler_may_add_biases_in_what_follows_a_product() -> None:
    # torch.baddbmm copies them into the result first: a launch more for each layer.
    mlp = MLP(3, (7, 7), 2, SeededNoise(SEEDS))
    called = [str(node.target) for node in make_fx(mlp)(torch.randn(2, 5, 3)).graph.nodes]
    assert called.count("aten.bmm.default") == 3 and called.count("aten.baddbmm.default") == 0


@pytest.mark.parametrize("rate", [0.0, 0.005, 1.0])
def test_a_target_follows_by_a_tensor_in_three_launches_whatever_its_number_of_parameters(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = MLP(3, (7, 7), 2, SeededNoise([0]))

    def followed(rate: float | torch.Tensor) -> MLP:
        target = MLP(3, (7, 7), 2, SeededNoise([1]))
        polyak_update(target, online, rate)
        return target

    expected = followed(rate)
    monkeypatch.setattr(kernels, "at_once", lambda x: True)
    with torch.profiler.profile() as profile:
        found = followed(torch.tensor(rate))
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7 if 0 < rate < 1 else 0)
    foreach = [event.count for event in profile.key_averages() if event.key.startswith("aten::_foreach")]
    assert foreach == [1, 1, 1]
