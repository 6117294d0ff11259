"""The minibatch that agents train on: the one type of this floor that `agents` imports.

Dimension letters, used in shape comments everywhere: S seeds, B batch, O observation, H action chunk (in
environment steps), A action, K flow steps, N critics, D = H * A the flattened chunk.
"""

from dataclasses import dataclass

from torch import Tensor


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
