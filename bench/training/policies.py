"""Agents of a run: built from its config, and their policies as tensors that travel."""

import safetensors.torch
from torch import Tensor

import datasets
from agents import AGENTS
from agents.blocks.base import Agent
from agents.blocks.policy import policy_bytes
from agents.blocks.streams import SeedStreams
from bench.protocol.config import RunConfig

Policy = dict[str, Tensor]  # CPU tensors with S = 1


def build_agent(config: RunConfig, noise: SeedStreams) -> Agent:
    """The config's agent on the device of `noise`, with freshly drawn parameters, one member per seed: those that it
    has on a CPU, to the last bit."""
    task = datasets.task(config.task)

    def built(noise: SeedStreams) -> Agent:
        return AGENTS[config.agent][0](config.agent_config, task.obs_dim, task.action_dim, noise)

    agent = built(noise)
    if noise.device.type != "cpu":
        on_cpu = built(SeedStreams(noise.seeds, "cpu", noise.purpose))
        agent.load_seed_states([on_cpu.state_of_seed(index) for index in range(agent.num_seeds)])
    return agent


def policy_state(agent: Agent, seed_index: int) -> Policy:
    """The parameters that acting needs, of one seed: CPU tensors with S = 1."""
    return {
        name: value[seed_index : seed_index + 1].detach().cpu().clone()
        for name, value in agent.policy_tensors().items()
    }


def load_policy(agent: Agent, policy: bytes) -> None:
    """Puts a policy, as safetensors, in the place of the agent's; the other networks stay as they are."""
    agent.load_policy(safetensors.torch.load(policy))


def policy_file(config: RunConfig, agent: Agent, seed_index: int) -> bytes:
    """The policy of one seed as a file that says what it is (`agents.load_policy`)."""
    return policy_bytes(config.agent, agent, policy_state(agent, seed_index), config.task)
