"""Agents that do on a GPU what no CUDA graph can hold, one fault each (a module for --plugin)."""

import torch
from torch import Tensor

from agents import register
from agents.bc import BC, BCConfig
from agents.blocks.base import Metrics, Noise
from datasets.batch import Batch


class Planted(BC):
    """Cloning with a step more in each update."""

    def __init__(self, config: BCConfig, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.kept: Tensor | None = None
        self.table = torch.linspace(0.0, 1.0, 10)  # a schedule on the host

    def update(self, batch: Batch, noise: Noise) -> Metrics:
        self.step(batch)
        return super().update(batch, noise)

    def step(self, batch: Batch) -> object:
        raise NotImplementedError


class Waits(Planted):
    def step(self, batch: Batch) -> object:
        return batch.chunk_return.sum().item()


class CopiesToHost(Planted):
    def step(self, batch: Batch) -> object:
        return batch.chunk_return.cpu()


class CopiesFromHost(Planted):
    def step(self, batch: Batch) -> object:
        return batch.chunk_return * torch.tensor([0.5], device=batch.obs.device)


class SelectsByMask(Planted):
    def step(self, batch: Batch) -> object:
        return batch.obs[batch.bootstrap > 0]


class WritesByMask(Planted):
    def step(self, batch: Batch) -> object:
        rows = batch.obs.clone()
        rows[batch.bootstrap > 0] = rows[0, 0]
        return rows


class ReadsHostTable(Planted):
    def step(self, batch: Batch) -> object:
        return self.table[(batch.bootstrap > 0).long()]


class IndexesByHostTable(Planted):
    def step(self, batch: Batch) -> object:
        return batch.obs[:, (10 * self.table).long()]


class AddsHostTable(Planted):
    def step(self, batch: Batch) -> object:
        return batch.chunk_return[:, :10] + self.table


class Draws(Planted):
    def step(self, batch: Batch) -> object:
        return torch.rand_like(batch.chunk_return)


class KeepsGraph(Planted):
    def step(self, batch: Batch) -> object:
        self.kept = next(self.network.parameters()).sum()
        return self.kept


class LaysOutOtherwise(Planted):
    """Its optimiser was made before a parameter was transposed in memory."""

    def step(self, batch: Batch) -> object:
        weight = max(self.network.parameters(), key=lambda parameter: parameter.dim())
        weight.data = weight.data.mT.contiguous().mT
        return weight


for _class in Planted.__subclasses__():
    register(f"planted_{_class.__name__}", _class, BCConfig("flow", policy_hidden_dims=(16, 16)))
