"""Networks of the official code written in JAX, for `jax_updates`: functions that create parameters or apply them.

Parameters are nested dicts and lists of arrays, with the names of `agents.blocks.networks`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

Array: TypeAlias = Any  # jax.Array, which no type checker sees without JAX
Tree: TypeAlias = dict[str, Any]  # nested dicts and lists of arrays
Create = Callable[[Array, int, int], Tree]  # (key, obs_dim, chunk_dim) -> parameters
Velocity = Callable[[Tree, Array, Array, Array], Array]  # (parameters, obs (B, O), t (B or 1, 1), x (B, D)) -> (B, D)

HIDDEN_DIMS = (512, 512, 512, 512)
NUM_CRITICS = 2
GATE_DIM = 256  # SAC Flow-G
DECODER_DIM, DECODER_LAYERS, HEADS = 128, 2, 4  # SAC Flow-T


def take_widths(settings: dict[str, Any]) -> None:
    """Builds networks from here on as wide as these settings of our agent say."""
    global HIDDEN_DIMS, GATE_DIM, DECODER_DIM
    widths = {tuple(value) for name, value in settings.items() if name.endswith("hidden_dims")}
    if len(widths) != 1:
        raise ValueError(f"hidden layers of {sorted(widths)}: here all networks have the same")
    (HIDDEN_DIMS,) = widths
    GATE_DIM, DECODER_DIM = settings.get("gate_dim", GATE_DIM), settings.get("decoder_dim", DECODER_DIM)


def dense_parameters(key: Array, in_dim: int, out_dim: int, init: str = "lecun", bias: float = 0.0) -> Tree:
    inits = {"glorot": jax.nn.initializers.glorot_uniform(), "lecun": jax.nn.initializers.lecun_normal()}
    weight = jnp.zeros((in_dim, out_dim)) if init == "zeros" else inits[init](key, (in_dim, out_dim))
    return {"weight": weight, "bias": jnp.full(out_dim, bias)}


def dense(p: Tree, x: Array) -> Array:
    return x @ p["weight"] + p["bias"]


def norm_parameters(dim: int) -> Tree:
    return {"weight": jnp.ones(dim), "bias": jnp.zeros(dim)}


def layer_norm(p: Tree, x: Array) -> Array:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean)
    return (x - mean) * (jax.lax.rsqrt(variance + 1e-6) * p["weight"]) + p["bias"]


def mlp_parameters(key: Array, in_dim: int, out_dim: int, with_norms: bool = False) -> Tree:
    dims, keys = (in_dim, *HIDDEN_DIMS, out_dim), jax.random.split(key, len(HIDDEN_DIMS) + 1)
    *hidden, out = (dense_parameters(keys[i], dims[i], dims[i + 1], "glorot") for i in range(len(keys)))
    return {"hidden": hidden, "norms": [norm_parameters(dim) for dim in HIDDEN_DIMS if with_norms], "out": out}


def mlp(p: Tree, x: Array) -> Array:
    for i, layer in enumerate(p["hidden"]):
        x = jax.nn.gelu(dense(layer, x), approximate=True)
        if p["norms"]:
            x = layer_norm(p["norms"][i], x)
    return dense(p["out"], x)


def critic_parameters(key: Array, obs_dim: int, chunk_dim: int) -> Tree:
    of_member = partial(mlp_parameters, in_dim=obs_dim + chunk_dim, out_dim=1, with_norms=True)
    return jax.vmap(of_member)(jax.random.split(key, NUM_CRITICS))


def critic(p: Tree, obs: Array, action_chunk: Array) -> Array:
    """Q (N, B) of obs (B, O) and flattened action chunk (B, D)."""
    return jax.vmap(mlp, in_axes=(0, None))(p, jnp.concatenate([obs, action_chunk], -1))[..., 0]


def features(obs: Array, t: Array, x: Array) -> Array:
    return jnp.concatenate([obs, x, jnp.broadcast_to(t, (*x.shape[:-1], 1))], -1)


def one_step_parameters(key: Array, obs_dim: int, chunk_dim: int) -> Tree:
    return mlp_parameters(key, obs_dim + chunk_dim, chunk_dim)


def one_step_policy(p: Tree, obs: Array, x_0: Array) -> Array:
    return mlp(p, jnp.concatenate([obs, x_0], -1))


def plain_parameters(key: Array, obs_dim: int, chunk_dim: int) -> Tree:
    return {"mlp": mlp_parameters(key, obs_dim + chunk_dim + 1, chunk_dim)}


def plain_velocity(p: Tree, obs: Array, t: Array, x: Array) -> Array:
    return mlp(p["mlp"], features(obs, t, x))


def gated_parameters(key: Array, obs_dim: int, chunk_dim: int) -> Tree:
    in_dim, keys = obs_dim + chunk_dim + 1, jax.random.split(key, 3)
    gate = [dense_parameters(keys[1], in_dim, GATE_DIM), dense_parameters(keys[2], GATE_DIM, chunk_dim, "zeros", 5.0)]
    return {"candidate": mlp_parameters(keys[0], in_dim, chunk_dim), "gate": gate}


def gated_velocity(p: Tree, obs: Array, t: Array, x: Array) -> Array:
    u = features(obs, t, x)
    gate = jax.nn.sigmoid(dense(p["gate"][1], jax.nn.silu(dense(p["gate"][0], u))))
    return gate * (mlp(p["candidate"], u) - x)


def decoded_parameters(key: Array, obs_dim: int, chunk_dim: int) -> Tree:
    dim, keys = DECODER_DIM, iter(jax.random.split(key, 7 + 10 * DECODER_LAYERS))

    def linear(in_dim: int, out_dim: int) -> Tree:
        return dense_parameters(next(keys), in_dim, out_dim)

    def layer() -> Tree:
        attention = {
            name: {part: linear(dim, dim) for part in ("query", "key", "value", "out")}
            for name in ("self_attention", "cross_attention")
        }
        norms = {name: norm_parameters(dim) for name in ("self_norm", "cross_norm", "feed_forward_norm")}
        return {**attention, **norms, "feed_forward": [linear(dim, 4 * dim), linear(4 * dim, dim)]}

    return {
        "embed_obs": [linear(obs_dim, dim // 2), linear(dim // 2, dim)],
        "embed_time": [linear(1, dim // 4), linear(dim // 4, dim // 2), linear(dim // 2, dim)],
        "embed_x": linear(chunk_dim, dim),
        "layers": [layer() for _ in range(DECODER_LAYERS)],
        "head": linear(dim, chunk_dim),
    }


def attention(p: Tree, y: Array, memory: Array, mask: Array | None) -> Array:
    """Multi-head attention of the tokens y (B, T, C) to memory (B, M, C); mask (T, M) is true where it may look."""
    query, key, value = (
        dense(p[name], x).reshape(*x.shape[:-1], HEADS, -1)
        for name, x in (("query", y), ("key", memory), ("value", memory))
    )
    scores = jnp.einsum("bqhc,bkhc->bhqk", query, key) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    attended = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores, -1), value)
    return dense(p["out"], attended.reshape(y.shape))


def decoded_velocity(p: Tree, obs: Array, t: Array, x: Array) -> Array:
    memory = dense(p["embed_obs"][1], jax.nn.silu(dense(p["embed_obs"][0], obs)))[:, None]
    time_embedding = jnp.broadcast_to(t, (*x.shape[:-1], 1))
    for layer in p["embed_time"][:-1]:
        time_embedding = jax.nn.silu(dense(layer, time_embedding))
    y = (dense(p["embed_x"], x) + dense(p["embed_time"][-1], time_embedding))[:, None]  # one token
    only_itself = jnp.eye(y.shape[1], dtype=bool)
    for layer in p["layers"]:
        y = layer_norm(layer["self_norm"], y + attention(layer["self_attention"], y, y, only_itself))
        y = layer_norm(layer["cross_norm"], y + attention(layer["cross_attention"], y, memory, None))
        hidden = jax.nn.gelu(dense(layer["feed_forward"][0], y), approximate=True)
        y = layer_norm(layer["feed_forward_norm"], y + dense(layer["feed_forward"][1], hidden))
    return dense(p["head"], y[:, 0])
