"""The minibatch that agents train on: the one type of this floor that `agents` imports.

Dimension letters, used in shape comments everywhere: S seeds, B batch, O observation, H action chunk (in
environment steps), A action, K flow steps, N critics, D = H * A the flattened chunk.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

WindowMask = Literal["steps", "window"]  # of a window that runs into the next episode: drop those steps, or all of them


@dataclass(frozen=True)
class Batch:
    """Windows of `H` consecutive transitions, `B` for each of `S` seeds; float32, on the training device.

    A window may run into the next episode; `valid` marks the steps that still belong to the first one. Its last
    entry is the weight of the window in a critic loss (Q-chunking, arXiv 2507.07969, section 4).
    """

    obs: Tensor  # (S, B, O) at the first step of the window
    action_chunk: Tensor  # (S, B, H, A) in [-1, 1]
    chunk_return: Tensor  # (S, B) sum over k < H of discount**k * reward_k
    bootstrap: Tensor  # (S, B) discount**H, or 0 where a step of the window terminated
    next_obs: Tensor  # (S, B, O) after the last step of the window
    valid: Tensor  # (S, B, H) 1 while step k lies in the episode of step 0, else 0

    def counted(self, mask: WindowMask) -> Tensor:
        """1 where a step counts in a loss of behaviour, else 0, (S, B, H): `valid`, or all or none of a window."""
        return self.valid if mask == "steps" else self.valid[..., -1:].expand_as(self.valid)


@dataclass(frozen=True)
class Trajectories:
    """What E environments of each of `S` seeds met in T steps each under one policy; float32.

    A decision is the choice of one chunk, and begins at the step that executes its first action. Fields of a step at
    which none begins, or whose chunk was still under way at the end, mean nothing.
    """

    begins: Tensor  # (S, T, E) 1 where a decision begins
    obs: Tensor  # (S, T, E, O) at the step
    record: Tensor  # (S, T, E, W) what the agent's `collect` gave beside the chunk
    chunk_return: Tensor  # (S, T, E) discounted sum of the decision's rewards, of the steps before an episode's end
    bootstrap: Tensor  # (S, T, E) discount to the number of those steps, or 0 where the last one terminated
    next_obs: Tensor  # (S, T, E, O) after the last of them
    continues: Tensor  # (S, T, E) 1 where the next decision of these T steps belongs to the same episode


@dataclass(frozen=True)
class Decisions:
    """A minibatch of a policy's own decisions, `B` for each of `S` seeds, for an on-policy update."""

    obs: Tensor  # (S, B, O)
    record: Tensor  # (S, B, W) what the agent's `collect` gave beside the chunk
    advantage: Tensor  # (S, B) as the agent estimated it
    value_target: Tensor  # (S, B) as well
