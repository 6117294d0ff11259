"""Adjoint matching (arXiv 2409.08861): a flow learns to end at p(x_1) exp(r(x_1)), where p is what a base flow ends at.

Its field runs along the memoryless SDE, whose marginals are the flow's and whose end does not depend on its start.
Along that path the gradient of -r is carried back through the drift of the base flow alone, as the lean adjoint a, and
the field is regressed on v_base - sigma^2 / 2 a: no gradient runs back through the rollout. Flow time, shapes and
velocities are those of `agents.blocks.flow`; h = 1 / K. As released, t + h stands for t where the drift and sigma
divide by t.
"""

import math

import torch
from torch import Tensor

from agents.blocks.flow import euler_step, t_like
from agents.blocks.velocities import Velocity


def memoryless_std(k: int, flow_steps: int) -> float:
    """sigma of step k = 0 ... K - 1, sqrt(2 (1 - t + h) / (t + h)); a step adds noise of sqrt(h) sigma."""
    return math.sqrt(2 * (flow_steps - k + 1) / (k + 1))


@torch.no_grad()
def memoryless_rollout(velocity: Velocity, base_velocity: Velocity, noise: Tensor) -> list[Tensor]:
    """x_0 ... x_K, each (S, B, D), from standard normal noise (S, K, B, D): x_0, then that of all steps but the last.

    The last step adds no noise and follows the base flow.
    """
    flow_steps = noise.shape[1]
    path = [noise[:, 0]]
    for k in range(flow_steps - 1):
        x, h = path[-1], 1 / flow_steps
        drift = 2 * velocity(t_like(x, k * h), x) - x / ((k + 1) * h)
        path.append(x + h * drift + math.sqrt(h) * memoryless_std(k, flow_steps) * noise[:, k + 1])
    return [*path, euler_step(base_velocity, path[-1], flow_steps - 1, flow_steps)]


def lean_adjoint(base_velocity: Velocity, path: list[Tensor], adjoint: Tensor) -> list[Tensor]:
    """a_0 ... a_{K-1} along a path x_0 ... x_K, from a_K = -dr/dx at x_K; constants, each (S, B, D).

    a_k = a_{k+1} + h J^T a_{k+1}, J the Jacobian at x_k of the base flow's drift. As released, that drift is the one of
    time t_k + h throughout, although the rollout evaluates the field at t_k.
    """
    flow_steps = len(path) - 1
    adjoints = []
    for k in reversed(range(flow_steps)):
        x, t = path[k].detach().requires_grad_(), (k + 1) / flow_steps
        with torch.enable_grad():
            drift = 2 * base_velocity(t_like(x, t), x) - x / t
        (product,) = torch.autograd.grad(drift, x, adjoint)
        adjoint = adjoint + product / flow_steps
        adjoints.append(adjoint)
    return adjoints[::-1]


def adjoint_matching_loss(
    velocity: Velocity, base_velocity: Velocity, path: list[Tensor], adjoints: list[Tensor]
) -> Tensor:
    """Sum over steps and coordinates of (2 / sigma (v - v_base) + sigma a)^2, mean over the batch, (S,).

    All steps are taken in one call, so the velocities are those at observations (S, K * B, O), repeated for each step.
    """
    flow_steps = len(adjoints)
    one = torch.ones_like(path[0][..., :1])
    t = torch.cat([k / flow_steps * one for k in range(flow_steps)], 1)  # (S, K * B, 1)
    std = torch.cat([memoryless_std(k, flow_steps) * one for k in range(flow_steps)], 1)
    x, adjoint = torch.cat(path[:-1], 1), torch.cat(adjoints, 1)  # (S, K * B, D)
    with torch.no_grad():
        base = base_velocity(t, x)
    error = 2 / std * (velocity(t, x) - base) + std * adjoint
    return flow_steps * error.square().sum(-1).mean(1)
