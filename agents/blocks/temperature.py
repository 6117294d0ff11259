"""A learnt entropy coefficient, the temperature alpha of soft actor-critic (arXiv 1812.05905)."""

from typing import Any

import torch
from torch import Tensor, nn

from agents.blocks.base import Adam, Noise


class Temperature(nn.Module):
    """alpha of each seed, whose logarithm an optimiser of its own moves so that the entropy comes to its target.

    Args:
        entropy_coef: alpha at the start.
        target_entropy: nats of the whole action chunk.
        learnt: False for an alpha that stays as it is, without an optimiser.
        b1: Adam's first beta.
    """

    def __init__(
        self,
        entropy_coef: float,
        target_entropy: float,
        learning_rate: float,
        noise: Noise,
        learnt: bool = True,
        b1: float = 0.9,
    ) -> None:
        super().__init__()
        self.target_entropy = target_entropy
        self.learnt = learnt
        log_coef = torch.full((noise.num_seeds,), entropy_coef, device=noise.device).log()
        self.log_coef = nn.Parameter(log_coef, requires_grad=learnt)
        if learnt:
            self.optimizer = Adam([self.log_coef], learning_rate, b1=b1)

    @property
    def coef(self) -> Tensor:
        """alpha (S,), a constant for every loss but its own."""
        return self.log_coef.detach().exp()

    def loss(self, entropy: Tensor) -> Tensor:
        """Loss (S,) of alpha, which grows while the entropy (S,), a constant, is below its target."""
        return self.log_coef.exp() * (entropy - self.target_entropy)


def check_learnt_coef(config: Any) -> None:
    """ValueError where a config's entropy_coef is 0 although its logarithm is learnt: it could never move."""
    if config.entropy_coef == 0:
        raise ValueError(
            f"{type(config).__name__}.entropy_coef = {config.entropy_coef!r}: must be above 0, its logarithm is learnt"
        )
