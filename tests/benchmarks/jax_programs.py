"""What the programs of `jax_scratch` and `jax_compared` share: layers and statistics by path, critics, Adam, updates.

Parameters and batch statistics are flat dicts with the official paths ("Dense_0/kernel"), by network.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

from tests.benchmarks.jax_networks import Array, Tree

Flat = dict[str, Array]
Layers = Iterator[tuple[str, int, int]]  # path, in, out; of a norm its size and which one
Update = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]  # (state, batch, noise) -> (state, metrics)

EPS, MOMENTUM, R_MAX, D_MAX, WARM_UP = 1e-3, 0.99, 3.0, 5.0, 100_000
BATCH_RENORM, LAYER_NORM = 0, -1  # in the place of a layer's output size
LAYER_NORM_EPS = 1e-5


class Scope:
    """A network's parameters and statistics while it is applied; in training its calls move the statistics."""

    def __init__(self, p: Flat, statistics: Flat, train: bool) -> None:
        self.p, self.statistics, self.train = p, dict(statistics), train

    def dense(self, path: str, x: Array) -> Array:
        return x @ self.p[f"{path}/kernel"] + self.p[f"{path}/bias"]

    def renorm(self, path: str, x: Array) -> Array:
        mean, var, steps = (self.statistics[f"{path}/{kind}"] for kind in ("mean", "var", "steps"))
        if self.train:
            axes = tuple(range(x.ndim - 1))
            batch_mean = x.mean(axes)
            batch_var = jnp.maximum(0.0, jnp.square(x).mean(axes) - jnp.square(batch_mean))
            running_std = jnp.sqrt(var + EPS)
            r = jax.lax.stop_gradient(jnp.clip(jnp.sqrt(batch_var + EPS) / running_std, 1 / R_MAX, R_MAX))
            d = jax.lax.stop_gradient(jnp.clip((batch_mean - mean) / running_std, -D_MAX, D_MAX))
            warm = (steps >= WARM_UP).astype(x.dtype)
            own_mean = warm * (batch_mean - d * jnp.sqrt(batch_var) / r) + (1 - warm) * batch_mean
            own_var = warm * (batch_var / jnp.square(r)) + (1 - warm) * batch_var
            self.statistics[f"{path}/mean"] = MOMENTUM * mean + (1 - MOMENTUM) * batch_mean
            self.statistics[f"{path}/var"] = MOMENTUM * var + (1 - MOMENTUM) * batch_var
            self.statistics[f"{path}/steps"] = steps + 1
            mean, var = own_mean, own_var
        return (x - mean) * (jax.lax.rsqrt(var + EPS) * self.p[f"{path}/scale"]) + self.p[f"{path}/bias"]

    def layer_norm(self, path: str, x: Array) -> Array:
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * (jax.lax.rsqrt(var + LAYER_NORM_EPS) * self.p[f"{path}/scale"]) + self.p[f"{path}/bias"]


def critic_layers(norms: bool, hidden_dims: tuple[int, ...], in_dim: int, out_dim: int) -> Layers:
    dims = [in_dim, *hidden_dims]
    for i, dim in enumerate(dims):
        if norms:
            yield f"BatchRenorm_{i}", dim, BATCH_RENORM
        yield f"Dense_{i}", dim, dims[i + 1] if i + 1 < len(dims) else out_dim


def critics(p: Flat, statistics: Flat, obs: Array, action: Array, train: bool) -> tuple[Array, Flat]:
    """The last layer (N, B, out) of all members, and their statistics."""
    depth = sum(path.startswith("Dense_") for path in p) // 2 - 1
    x = jnp.concatenate([obs, action], -1)

    def of_member(p: Flat, statistics: Flat) -> tuple[Array, Flat]:
        s, y = Scope(p, statistics, train), x
        for i in range(depth):
            y = s.renorm(f"BatchRenorm_{i}", y) if statistics else y
            y = jax.nn.relu(s.dense(f"Dense_{i}", y))
        y = s.renorm(f"BatchRenorm_{depth}", y) if statistics else y
        return s.dense(f"Dense_{depth}", y), s.statistics

    return jax.vmap(of_member)(p, statistics)


def create(layers: list[tuple[str, int, int]], key: Array) -> tuple[Flat, Flat]:
    """Parameters and statistics of one network."""
    p: Flat = {}
    statistics: Flat = {}
    for (path, in_dim, out_dim), own in zip(layers, jax.random.split(key, len(layers)), strict=True):
        if out_dim > 0:
            p[f"{path}/kernel"] = jax.nn.initializers.lecun_normal()(own, (in_dim, out_dim))
            p[f"{path}/bias"] = jnp.zeros(out_dim)
        else:
            p |= {f"{path}/scale": jnp.ones(in_dim), f"{path}/bias": jnp.zeros(in_dim)}
        if out_dim == BATCH_RENORM:
            statistics |= {f"{path}/mean": jnp.zeros(in_dim), f"{path}/var": jnp.ones(in_dim)}
            statistics[f"{path}/steps"] = jnp.zeros((), jnp.int32)
    return p, statistics


def create_each(networks: Mapping[str, list[tuple[str, int, int]]], key: Array) -> tuple[Tree, Array]:
    """Parameters of networks without batch statistics, by name, and a key for what comes after."""
    key, *keys = jax.random.split(key, 1 + len(networks))
    return {name: create(own, k)[0] for (name, own), k in zip(networks.items(), keys, strict=True)}, key


def zeros(p: Flat) -> Flat:
    return jax.tree.map(jnp.zeros_like, p)


def average(new: Any, old: Any, rate: float) -> Any:
    """Targets that move by a share towards these parameters."""
    return jax.tree.map(lambda new, old: rate * new + (1 - rate) * old, new, old)


@dataclass(frozen=True)
class Program:
    """One official program at some sizes."""

    action_dim: int
    period: int  # updates after which its turns begin again
    rates: Mapping[str, tuple[float, float]]  # learning rate and first beta of each network's Adam

    def initial_state(self, key: Array) -> Tree:
        raise NotImplementedError

    def draw(self, key: Array, batch_size: int) -> Tree:
        """Fresh noise; XLA leaves out what an update does not use."""
        raise NotImplementedError

    def updates(self, turn: int) -> Mapping[str, Update]:
        """What is compiled apart, in its order, of the update at a turn; names are of functions."""
        raise NotImplementedError

    def state_of(self, p: Tree, statistics: Tree, key: Array, targets: Iterable[str] = ()) -> Tree:
        """A state before the first update, with target networks that begin as these ones."""
        adam = {name: {"m": zeros(own), "v": zeros(own), "count": jnp.zeros(())} for name, own in p.items()}
        target = {name: jax.tree.map(jnp.copy, p[name]) for name in targets}
        return {"p": p, "statistics": statistics, "target": target, "adam": adam, "key": key}

    def step(self, name: str, state: Tree, gradient: Flat) -> Tree:
        """The state after Adam's step of one network."""
        rate, b1 = self.rates[name]
        own = state["adam"][name]
        count = own["count"] + 1
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, own["m"], gradient)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * jnp.square(g), own["v"], gradient)

        def adam(p: Array, m: Array, v: Array) -> Array:
            return p - rate * (m / (1 - b1**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)

        p = {**state["p"], name: jax.tree.map(adam, state["p"][name], m, v)}
        return {**state, "p": p, "adam": {**state["adam"], name: {"m": m, "v": v, "count": count}}}
