"""PPO over the Markov chain that makes an action chunk from noise: advantages of decisions, clipped objective.

A decision chooses a chunk, which takes up to H environment steps; advantages are those of decisions (generalised
advantage estimation, arXiv 1506.02438), all steps of the chain behind one share its advantage.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agents.blocks.base import Adam, Metrics, Noise, OnPolicyAgent, gradient_step, polyak_update
from agents.blocks.critic import Value
from datasets.batch import Decisions, Trajectories

TimeLimits = Literal["stop", "released"]


@dataclass(frozen=True)
class PPOConfig:
    """Settings that DPPO and ReinFlow share; those of DPPO's state-based Robomimic runs where nothing else is said."""

    chunk_length: int = 5  # H, environment steps per action chunk; official 4, ReinFlow 4 or 8
    num_envs: int = 10  # E, environments of each seed; official 50, each a process here
    rollout_decisions: int = 15_000  # chunks of each seed between updates, in all environments; H steps each
    batch_decisions: int = 750  # of each online update; batch_size is that of the offline phase
    epochs: int = 10  # how often each decision is used
    gae_lambda: float = 0.95
    gae_at_time_limits: TimeLimits = "stop"  # released: the sum runs on into the next episode
    max_reward: float = 10.0  # rewards in units of their scale are cut to this size
    max_step_noise: float = 3.0  # so are the standard normal numbers of a chain's steps, in evaluation as well
    value_coef: float = 0.5  # of half the squared error
    first_policy_rollout: int = 2  # those before it train the value alone
    ema_rate: float = 0.0005  # of the averaged clone, which is fine-tuned; official .005 at every tenth update
    residual: bool = True  # networks of policy and value, see `agents.blocks.networks.MLP`
    value_hidden_dims: tuple[int, ...] = (256, 256, 256)

    def check_widths(self, **hidden_dims: tuple[int, ...]) -> None:
        """ValueError for widths that a residual network cannot have, by the name of the field."""
        for name, dims in hidden_dims.items():
            if self.residual and (len(dims) % 2 == 0 or len(set(dims)) > 1):
                raise ValueError(
                    f"{type(self).__name__}.{name} = {dims}: must be an odd number of equal widths, or residual false"
                )


def estimate_advantages(
    trajectories: Trajectories,
    value_of: Callable[[Tensor], Tensor],
    gae_lambda: float,
    at_time_limits: TimeLimits = "stop",
) -> tuple[Tensor, Tensor]:
    """Advantage and value target of each decision, both (S, T, E), by V(s): (S, B, O) -> (S, B).

    An episode that a time limit ends is worth V of its last observation. "released": it is worth V at the environment's
    next decision, which is of another episode, and the sum of errors runs on.
    """
    shape = trajectories.begins.shape[1:]
    value = value_of(trajectories.obs.flatten(1, 2)).unflatten(1, shape)
    next_value = value_of(trajectories.next_obs.flatten(1, 2)).unflatten(1, shape)
    bootstrap, linked = trajectories.bootstrap, trajectories.continues
    if at_time_limits == "released":
        linked, next_value = _across_episodes(trajectories.begins, value, next_value)
    error = trajectories.chunk_return + bootstrap * next_value - value
    weight = gae_lambda * bootstrap * linked
    advantage, later = torch.zeros_like(value), torch.zeros_like(value[:, 0])
    for t in reversed(range(value.shape[1])):
        # At steps without a decision the one that comes next is carried on.
        later = torch.where(trajectories.begins[:, t] > 0, error[:, t] + weight[:, t] * later, later)
        advantage[:, t] = later
    return advantage, advantage + value


def _across_episodes(begins: Tensor, value: Tensor, next_value: Tensor) -> tuple[Tensor, Tensor]:
    """Whether another decision of its environment follows each, and V there, else `next_value`; all (S, T, E)."""
    follows, after = torch.zeros_like(begins), next_value.clone()
    found, found_value = torch.zeros_like(begins[:, 0]), torch.zeros_like(value[:, 0])
    for t in reversed(range(begins.shape[1])):
        follows[:, t] = found
        after[:, t] = torch.where(found > 0, found_value, next_value[:, t])
        found_value = torch.where(begins[:, t] > 0, value[:, t], found_value)
        found = torch.maximum(found, begins[:, t])
    return follows, after


class RolloutStatistics(nn.Module):
    """What PPO remembers of earlier rollouts, of each seed: how many there were, and the scale of their rewards.

    Rewards are divided by the standard deviation of the running discounted sum of all rewards so far, as in the
    official code of DPPO and ReinFlow, so that values are of order one whatever the task. The sum begins anew with each
    rollout, as in its Robomimic runs.
    """

    rollouts: Tensor
    # Of all sums: their number, mean and variance. It begins with a ten-thousandth of a sum, of variance 1.
    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, num_seeds: int, device: torch.device) -> None:
        super().__init__()
        for name, start in {"rollouts": 0.0, "count": 1e-4, "mean": 0.0, "variance": 1.0}.items():
            self.register_buffer(name, torch.full((num_seeds,), start, device=device))

    def scaled(self, trajectories: Trajectories, max_reward: float) -> Trajectories:
        """The rollout with its rewards divided by their scale, to which this rollout now belongs, cut to a size."""
        begins = trajectories.begins
        total, sums = torch.zeros_like(begins[:, 0]), torch.zeros_like(begins)
        for t in range(begins.shape[1]):
            decides = begins[:, t] > 0
            sums[:, t] = total + trajectories.chunk_return[:, t]
            # 0 where the episode ends; steps without a decision carry it on.
            after = sums[:, t] * trajectories.bootstrap[:, t] * trajectories.continues[:, t]
            total = torch.where(decides, after, total)
        self._include(sums, begins)
        self.rollouts += 1
        reward = trajectories.chunk_return / (self.variance + 1e-8).sqrt()[:, None, None]
        return replace(trajectories, chunk_return=reward.clamp(-max_reward, max_reward))

    def _include(self, sums: Tensor, begins: Tensor) -> None:
        """Two sets of numbers joined (Chan, Golub and LeVeque, 1983), with the release's divisor, one less than n."""
        count = begins.sum((1, 2))
        mean = (sums * begins).sum((1, 2)) / count
        squares = ((sums - mean[:, None, None]).square() * begins).sum((1, 2))
        whole, distance = self.count + count, mean - self.mean
        squares = self.variance * self.count + squares + distance.square() * self.count * count / whole
        self.variance.copy_(squares / (whole - 1))
        self.mean += distance * count / whole
        self.count.copy_(whole)


def follow_clone(average: nn.Module, clone: nn.Module, optimizer: Adam, rate: float) -> None:
    """The average's step towards the parameters that `optimizer` has just moved.

    Of updates so far, the last counts most and each one before it less by a factor of 1 - rate. Official code copies
    the parameters for 20 epochs instead, and averages from there.
    """
    share = rate / (1 - (1 - rate) ** optimizer.steps)
    polyak_update(average, clone, share.clamp(max=1.0))


def pack_chain(points: Tensor, log_prob: Tensor) -> Tensor:
    """A decision's record (S, B, W): the points (S, B, P, D) of its chain and their log densities (S, B, L)."""
    return torch.cat([points.flatten(2), log_prob], -1)


def unpack_chain(record: Tensor, chunk_dim: int, num_log_probs: int) -> tuple[Tensor, Tensor]:
    """Points (S, B, P, D) and log densities (S, B, L) of what `pack_chain` made: D is `chunk_dim`, L the other."""
    points, log_prob = record.tensor_split((-num_log_probs,), -1)
    return points.unflatten(-1, (-1, chunk_dim)), log_prob


def normalised(advantage: Tensor) -> Tensor:
    """Advantages (S, M) of samples with mean 0 and standard deviation 1 over the minibatch of each seed."""
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

    The subclass makes the two optimisers, and gives `policy_loss`.
    """

    config: PPOConfig
    value: Value
    policy_optimizer: Adam
    value_optimizer: Adam

    def __init__(self, config: Any, obs_dim: int, action_dim: int, noise: Noise) -> None:
        super().__init__(config, obs_dim, action_dim, noise)
        self.statistics = RolloutStatistics(self.num_seeds, noise.device)
        self.value = Value(
            obs_dim,
            config.value_hidden_dims,
            noise,
            norm="none",
            activation="mish",
            init="torch",
            residual=config.residual,
        )

    @torch.no_grad()
    def estimate(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """Advantage and value target (S, T, E) of each decision, from rewards in units of their scale so far."""
        config = self.config
        scaled = self.statistics.scaled(trajectories, config.max_reward)
        return estimate_advantages(scaled, self.value, config.gae_lambda, config.gae_at_time_limits)

    def update_online(self, batch: Decisions, noise: Noise) -> Metrics:
        """One step of policy and value on a minibatch of decisions."""
        policy_loss, policy_metrics = self.policy_loss(batch)
        value_loss = (self.value(batch.obs) - batch.value_target).square().mean(1)
        # Without a gradient Adam, whose moments are still 0, moves nothing.
        trains_policy = self.statistics.rollouts >= self.config.first_policy_rollout  # (S,)
        gradient_step(
            (self.policy_optimizer, trains_policy * policy_loss),
            (self.value_optimizer, self.config.value_coef * 0.5 * value_loss),
        )
        return {**policy_metrics, "value_loss": value_loss.detach()}

    def policy_loss(self, batch: Decisions) -> tuple[Tensor, Metrics]:
        """The clipped objective (S,) of a minibatch."""
        raise NotImplementedError
