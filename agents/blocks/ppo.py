"""PPO over the Markov chain that makes an action chunk from noise: advantages of decisions, clipped objective.

A decision chooses a chunk, which takes up to H environment steps; advantages are those of decisions (generalised
advantage estimation, arXiv 1506.02438), all steps of the chain behind one share its advantage.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from agents.blocks.base import Adam, Metrics, Noise, OnPolicyAgent, gradient_step
from agents.blocks.critic import Value
from datasets.batch import Decisions, Trajectories


def estimate_advantages(
    trajectories: Trajectories, value_of: Callable[[Tensor], Tensor], gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantage and value target of each decision, both (S, T, E), by V(s): (S, B, O) -> (S, B)."""
    shape = trajectories.begins.shape[1:]
    value = value_of(trajectories.obs.flatten(1, 2)).unflatten(1, shape)
    next_value = value_of(trajectories.next_obs.flatten(1, 2)).unflatten(1, shape)
    bootstrap = trajectories.bootstrap
    error = trajectories.chunk_return + bootstrap * next_value - value
    weight = gae_lambda * bootstrap * trajectories.continues
    advantage, later = torch.zeros_like(value), torch.zeros_like(value[:, 0])
    for t in reversed(range(value.shape[1])):
        # At steps without a decision the one that comes next is carried on.
        later = torch.where(trajectories.begins[:, t] > 0, error[:, t] + weight[:, t] * later, later)
        advantage[:, t] = later
    return advantage, advantage + value


class RolloutStatistics(nn.Module):
    """What PPO remembers of earlier rollouts, of each seed: how many there were, and the scale of their rewards.

    Rewards are divided by the standard deviation of the running discounted sum of all rewards so far, as in the
    official code of DPPO and ReinFlow, so that values are of order one whatever the task. The sum begins anew with each
    rollout; there it goes on in an episode that does.
    """

    rollouts: Tensor
    # Of all sums: their number, mean, and the sum of squared distances to it.
    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, num_seeds: int, device: torch.device) -> None:
        super().__init__()
        for name in ("rollouts", "count", "mean", "squares"):
            self.register_buffer(name, torch.zeros(num_seeds, device=device))

    def scaled(self, trajectories: Trajectories) -> Trajectories:
        """The rollout with its rewards divided by their scale, to which this rollout now belongs."""
        begins = trajectories.begins
        total, sums = torch.zeros_like(begins[:, 0]), torch.zeros_like(begins)
        for t in range(begins.shape[1]):
            decides = begins[:, t] > 0
            sums[:, t] = total + trajectories.chunk_return[:, t]
            # 0 where the episode ends; steps without a decision carry it on.
            after = sums[:, t] * trajectories.bootstrap[:, t] * trajectories.continues[:, t]
            total = torch.where(decides, after, total)
        count = begins.sum((1, 2))
        mean = (sums * begins).sum((1, 2)) / count
        squares = ((sums - mean[:, None, None]).square() * begins).sum((1, 2))
        # Two sets of numbers joined: Chan, Golub and LeVeque, 1983.
        whole, distance = self.count + count, mean - self.mean
        self.squares += squares + distance.square() * self.count * count / whole
        self.mean += distance * count / whole
        self.count.copy_(whole)
        self.rollouts += 1
        std = (self.squares / self.count + 1e-8).sqrt()
        return replace(trajectories, chunk_return=trajectories.chunk_return / std[:, None, None])


def pack_chain(points: Tensor, log_prob: Tensor) -> Tensor:
    """A decision's record (S, B, W): the points (S, B, P, D) of its chain and their log densities (S, B, L)."""
    return torch.cat([points.flatten(2), log_prob], -1)


def unpack_chain(record: Tensor, chunk_dim: int, num_log_probs: int) -> tuple[Tensor, Tensor]:
    """Points (S, B, P, D) and log densities (S, B, L) of what `pack_chain` made: D is `chunk_dim`, L the other."""
    points, log_prob = record.tensor_split((-num_log_probs,), -1)
    return points.unflatten(-1, (-1, chunk_dim)), log_prob


def normalised(advantage: Tensor) -> Tensor:
    """Advantages (S, B) with mean 0 and standard deviation 1 over the minibatch of each seed."""
    return (advantage - advantage.mean(1, keepdim=True)) / (advantage.std(1, keepdim=True) + 1e-8)


def clipped_loss(log_ratio: Tensor, advantage: Tensor, clip: Tensor | float) -> tuple[Tensor, Metrics]:
    """PPO's loss (S,) of new over old densities, log_ratio (S, M), with clip range `clip` (float, or (M,)).

    Metrics: an estimate of the divergence from the old policy, and the share of samples beyond the clip range.
    """
    ratio = log_ratio.exp()
    clipped = torch.minimum(torch.maximum(ratio, 1 - torch.as_tensor(clip)), 1 + torch.as_tensor(clip))
    loss = -torch.minimum(advantage * ratio, advantage * clipped).mean(1)
    divergence = (ratio - 1 - log_ratio).mean(1)  # http://joschu.net/blog/kl-approx.html
    beyond = ((ratio - 1).abs() > clip).float().mean(1)
    return loss, {"kl_divergence": divergence.detach(), "clip_share": beyond.detach()}


class PPOAgent(OnPolicyAgent):
    """PPO's part of an agent: advantages of its own rollouts, and one step of policy and value.

    The subclass makes `value` and the two optimisers, and gives `policy_loss`. Its config has gae_lambda, value_coef
    and first_policy_rollout.
    """

    value: Value
    policy_optimizer: Adam
    value_optimizer: Adam

    def __init__(self, config: Any, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.statistics = RolloutStatistics(self.num_seeds, noise.device)

    @torch.no_grad()
    def estimate(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """Advantage and value target (S, T, E) of each decision, from rewards in units of their scale so far."""
        return estimate_advantages(self.statistics.scaled(trajectories), self.value, self.config.gae_lambda)

    def update_online(self, batch: Decisions, noise: Noise) -> Metrics:
        """One step of policy and value on a minibatch of decisions."""
        policy_loss, policy_metrics = self.policy_loss(batch)
        value_loss = (self.value(batch.obs) - batch.value_target).square().mean(1)
        # Without a gradient Adam, whose moments are still 0, moves nothing.
        trains_policy = self.statistics.rollouts >= self.config.first_policy_rollout  # (S,)
        gradient_step(
            (self.policy_optimizer, trains_policy * policy_loss),
            (self.value_optimizer, self.config.value_coef * value_loss),
        )
        return {**policy_metrics, "value_loss": value_loss.detach()}

    def policy_loss(self, batch: Decisions) -> tuple[Tensor, Metrics]:
        """The clipped objective (S,) of a minibatch."""
        raise NotImplementedError
