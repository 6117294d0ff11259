"""Updates of the official programs that train from scratch, written in JAX, for `jax_updates`.

Parameters and batch statistics are flat dicts with the official paths ("Dense_0/kernel"), so that `check` can hold
three updates against the numbers of the official programs (`scratch_*.npz`). What costs time is as there: critics under
vmap, both sides of a joint critic in one pass, each step's features of time for every row, Flow-T's whole attention, an
Adam for each network, and a compiled function for the critics' step and one for policy and temperature.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np

from tests.benchmarks.jax_networks import Array, Tree

Flat = dict[str, Array]
Layers = Iterator[tuple[str, int, int]]  # path, in, out; of a BatchRenorm its size and 0

HEADS, FREQUENCIES = 4, 16
EPS, MOMENTUM, R_MAX, D_MAX, WARM_UP = 1e-3, 0.99, 3.0, 5.0, 100_000
PRIOR_STD = 2.5  # of DIME


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


# Policies: (scope, obs, x_0, step noise) -> action in units of the environment, log density (B,).


def log_normal(x: Array) -> Array:
    return jax.scipy.stats.norm.logpdf(x).sum(-1)


def squashed(u: Array, log_prob: Array, scale: Array) -> tuple[Array, Array]:
    action = jnp.tanh(u)
    return action * scale, log_prob - jnp.log(scale * (1 - jnp.square(action)) + 1e-6).sum(-1)


def bounded(raw: Array) -> Array:
    return -5 + 3.5 * (jnp.tanh(raw) + 1)


def gaussian(norms: bool, depth: int, scale: Array, s: Scope, obs: Array, eps: Array, _: Array) -> tuple[Array, Array]:
    x = s.renorm("BatchRenorm_0", obs) if norms else obs
    for i in range(depth):
        x = jax.nn.relu(s.dense(f"Dense_{i}", x))
        x = s.renorm(f"BatchRenorm_{i + 1}", x) if norms else x
    mean, log_std = s.dense(f"Dense_{depth}", x), jnp.clip(s.dense(f"Dense_{depth + 1}", x), -20, 2)
    return squashed(mean + jnp.exp(log_std) * eps, log_normal(eps), scale)


def gaussian_layers(norms: bool, obs_dim: int, action_dim: int, sizes: Mapping[str, Any]) -> Layers:
    dims = [obs_dim, *sizes["policy_hidden_dims"]]
    for i, dim in enumerate(dims):
        if norms:
            yield f"BatchRenorm_{i}", dim, 0
        if i + 1 < len(dims):
            yield f"Dense_{i}", dim, dims[i + 1]
    yield f"Dense_{len(dims) - 1}", dims[-1], action_dim
    yield f"Dense_{len(dims)}", dims[-1], action_dim


def path_of(
    step: Callable[[Scope, Array, Array, Array], tuple[Array, Array]],
    scale: Array,
    s: Scope,
    obs: Array,
    x: Array,
    step_noise: Array,
) -> tuple[Array, Array]:
    """A rollout of x += v / K + std eps, and the density of its noise."""
    log_prob, count = log_normal(x), len(step_noise)
    for k, eps in enumerate(step_noise):
        velocity, log_std = step(s, obs, x, jnp.full((len(x), 1), k / count))
        mean = x + velocity / count
        x = mean + jnp.exp(log_std) * eps
        log_prob += jax.scipy.stats.norm.logpdf(x, mean, jnp.exp(log_std)).sum(-1)
    return squashed(x, log_prob, scale)


def gated_step(s: Scope, obs: Array, x: Array, t: Array) -> tuple[Array, Array]:
    angle = t * jnp.exp(-math.log(10_000) * jnp.arange(FREQUENCIES) / (FREQUENCIES - 1))
    time = jax.nn.silu(s.dense("time_mlp/layers_1", jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)))
    features = jnp.concatenate([s.renorm("bn", jnp.concatenate([obs, x], -1)), s.dense("time_mlp/layers_3", time)], -1)
    gate, candidate = (
        s.dense(f"{name}_net/layers_2", jax.nn.silu(s.dense(f"{name}_net/layers_0", features)))
        for name in ("gate", "candidate")
    )
    hidden = obs
    for i in (0, 2):
        hidden = jax.nn.relu(s.dense(f"fc_logstd/layers_{i}", hidden))
    return jax.nn.sigmoid(gate) * (candidate - x), bounded(s.dense("fc_logstd/layers_4", hidden))


def gated_layers(obs_dim: int, action_dim: int, sizes: Mapping[str, Any]) -> Layers:
    yield "bn", obs_dim + action_dim, 0
    yield "time_mlp/layers_1", 2 * FREQUENCIES, 64
    yield "time_mlp/layers_3", 64, 32
    for name in ("gate", "candidate"):
        yield f"{name}_net/layers_0", obs_dim + action_dim + 32, sizes["gate_dim"]
        yield f"{name}_net/layers_2", sizes["gate_dim"], action_dim
    first, second = sizes["policy_hidden_dims"]
    yield "fc_logstd/layers_0", obs_dim, first
    yield "fc_logstd/layers_2", first, second
    yield "fc_logstd/layers_4", second, action_dim


def naive_step(s: Scope, obs: Array, x: Array, t: Array) -> tuple[Array, Array]:
    hidden = s.renorm("bn", jnp.concatenate([obs, x, t], -1))
    for name in ("fc1", "fc2"):
        hidden = jax.nn.relu(s.dense(name, hidden))
    return s.dense("fc_mean", hidden), bounded(s.dense("fc_logstd", hidden))


def naive_layers(obs_dim: int, action_dim: int, sizes: Mapping[str, Any]) -> Layers:
    first, second = sizes["policy_hidden_dims"]
    yield "bn", obs_dim + action_dim + 1, 0
    yield "fc1", obs_dim + action_dim + 1, first
    yield "fc2", first, second
    yield "fc_mean", second, action_dim
    yield "fc_logstd", second, action_dim


def attention(s: Scope, path: str, y: Array, memory: Array) -> Array:
    """Of one token y (B, 1, C) to one of memory, with all that it computes."""
    query, key, value = (
        s.dense(f"{path}/{name}_proj", x).reshape(*x.shape[:-1], HEADS, -1).transpose(0, 2, 1, 3)
        for name, x in (("q", y), ("k", memory), ("v", memory))
    )
    weights = jax.nn.softmax(query @ key.transpose(0, 1, 3, 2) / math.sqrt(query.shape[-1]), -1)
    return s.dense(f"{path}/out_proj", (weights @ value).transpose(0, 2, 1, 3).reshape(y.shape))


def decoded(layers: int, scale: Array, s: Scope, obs: Array, x: Array, step_noise: Array) -> tuple[Array, Array]:
    """Flow-T: x += (v + std eps) / K, with the density of eps."""
    memory = s.dense("Dense_1", jax.nn.silu(s.dense("Dense_0", s.renorm("BatchRenorm_0", obs))))[:, None]
    log_prob, count = log_normal(x), len(step_noise)
    for k, eps in enumerate(step_noise):
        time = jax.nn.silu(s.dense("Dense_2", jnp.full((len(x), 1, 1), k / count)))
        time = s.dense("Dense_4", jax.nn.silu(s.dense("Dense_3", time)))
        y = s.dense("action_proj", s.renorm(f"BatchRenorm_{k + 1}", x[:, None])) + time
        for i in range(layers):
            of = f"layer_{i}"
            y = s.renorm(f"{of}/BatchRenorm_0", y + attention(s, f"{of}/self_attn", y, y))
            y = s.renorm(f"{of}/BatchRenorm_1", y + attention(s, f"{of}/cross_attn", y, memory))
            hidden = jax.nn.gelu(s.dense(f"{of}/Dense_0", y), approximate=True)
            y = s.renorm(f"{of}/BatchRenorm_2", y + s.dense(f"{of}/Dense_1", hidden))
        velocity, raw = (s.dense(f"velocity_{name}_head", y[:, 0]) for name in ("mean", "log_std"))
        x = x + (velocity + jnp.exp(bounded(raw)) * eps) / count
        log_prob += log_normal(eps)
    return squashed(x, log_prob, scale)


def decoded_layers(obs_dim: int, action_dim: int, sizes: Mapping[str, Any]) -> Layers:
    dim = sizes["decoder_dim"]
    yield "BatchRenorm_0", obs_dim, 0
    for k in range(sizes["flow_steps"]):
        yield f"BatchRenorm_{k + 1}", action_dim, 0
    dims = [(obs_dim, dim // 2), (dim // 2, dim), (1, dim // 4), (dim // 4, dim // 2), (dim // 2, dim)]
    for i, pair in enumerate(dims):
        yield f"Dense_{i}", *pair
    yield "action_proj", action_dim, dim
    for i in range(sizes["decoder_layers"]):
        for norm in range(3):
            yield f"layer_{i}/BatchRenorm_{norm}", dim, 0
        for kind in ("self", "cross"):
            for name in ("q", "k", "v", "out"):
                yield f"layer_{i}/{kind}_attn/{name}_proj", dim, dim
        yield f"layer_{i}/Dense_0", dim, 4 * dim
        yield f"layer_{i}/Dense_1", 4 * dim, dim
    yield "velocity_mean_head", dim, action_dim
    yield "velocity_log_std_head", dim, action_dim


# Critics.


def critic_layers(norms: bool, hidden_dims: tuple[int, ...], in_dim: int, out_dim: int) -> Layers:
    dims = [in_dim, *hidden_dims]
    for i, dim in enumerate(dims):
        if norms:
            yield f"BatchRenorm_{i}", dim, 0
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


# Updates.


@dataclass(frozen=True)
class Rates:
    """Learning rate and first beta of each optimiser."""

    actor: tuple[float, float]
    critic: tuple[float, float]
    temperature: tuple[float, float]


@dataclass(frozen=True)
class Scratch:
    """One program at some sizes: policy, layers, and what its losses need."""

    policy: Callable[[Scope, Array, Array, Array], Any]
    actor_layers: list[tuple[str, int, int]]
    critic_layers: list[tuple[str, int, int]]
    rates: Rates
    target_entropy: float
    flow_steps: int
    period: int
    action_dim: int
    discount: float = 0.99
    target_update_rate: float = 0.0  # 0: no target critics

    def initial_state(self, key: Array, alpha: float) -> Tree:
        actor_key, critic_key, key = jax.random.split(key, 3)
        actor, actor_statistics = create(self.actor_layers, actor_key)
        critic, critic_statistics = jax.vmap(partial(create, self.critic_layers))(jax.random.split(critic_key, 2))
        p = {"actor": actor, "critic": critic, "temperature": {"log": jnp.log(jnp.float32(alpha))}}
        return self.state_of(p, {"actor": actor_statistics, "critic": critic_statistics}, key)

    def state_of(self, p: Tree, statistics: Tree, key: Array) -> Tree:
        adam = {name: {"m": zeros(own), "v": zeros(own), "count": jnp.zeros(())} for name, own in p.items()}
        target = {"target": jax.tree.map(jnp.copy, p["critic"])} if self.target_update_rate else {}
        return {"p": p, "statistics": statistics, "adam": adam, "key": key, **target}

    def step(self, name: str, state: Tree, gradient: Flat) -> Tree:
        """The state after Adam's step of one network."""
        rate, b1 = getattr(self.rates, name)
        own = state["adam"][name]
        count = own["count"] + 1
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, own["m"], gradient)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * jnp.square(g), own["v"], gradient)

        def adam(p: Array, m: Array, v: Array) -> Array:
            return p - rate * (m / (1 - b1**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)

        p = {**state["p"], name: jax.tree.map(adam, state["p"][name], m, v)}
        return {**state, "p": p, "adam": {**state["adam"], name: {"m": m, "v": v, "count": count}}}

    def act(self, p: Flat, statistics: Flat, obs: Array, noise: Tree, draw: str, train: bool) -> tuple[Any, Flat]:
        scope = Scope(p, statistics, train)
        draws = noise[f"{draw}_noise"], noise.get(f"{draw}_step_noise", jnp.zeros(()))
        return self.policy(scope, obs, *draws), scope.statistics

    def update_critic(self, state: Tree, batch: Tree, noise: Tree) -> tuple[Tree, Tree]:
        p, statistics, alpha = state["p"], state["statistics"], jnp.exp(state["p"]["temperature"]["log"])
        next_obs, obs = batch["next_observations"], batch["observations"]
        (next_action, log_prob), _ = self.act(p["actor"], statistics["actor"], next_obs, noise, "next", False)

        def target_of(next_q: Array) -> Array:
            bootstrap = self.discount * (1 - batch["terminations"])
            return jax.lax.stop_gradient(batch["rewards"] + bootstrap * (next_q.min(0) - alpha * log_prob))

        def joint(p: Flat) -> tuple[Array, Any]:
            both = jnp.concatenate([obs, next_obs]), jnp.concatenate([batch["actions"], next_action])
            q, moved = critics(p, statistics["critic"], *both, True)
            q, next_q = jnp.split(q[..., 0], 2, 1)
            return 0.5 * jnp.square(target_of(next_q) - q).mean(1).sum(), (q, moved)

        def apart(p: Flat) -> tuple[Array, Any]:
            next_q = critics(state["target"], {}, next_obs, next_action, False)[0][..., 0]
            q = critics(p, {}, obs, batch["actions"], False)[0][..., 0]
            return jnp.square(target_of(next_q) - q).mean(1).sum(), (q, {})

        loss = apart if self.target_update_rate else joint
        (value, (q, moved)), gradient = jax.value_and_grad(loss, has_aux=True)(p["critic"])
        state = self.step("critic", state, gradient) | {"statistics": {**statistics, "critic": moved}}
        return state, {"critic_loss": value, "q_mean": q.mean()}

    def update_policy(self, state: Tree, batch: Tree, noise: Tree) -> tuple[Tree, Tree]:
        p, statistics, alpha = state["p"], state["statistics"], jnp.exp(state["p"]["temperature"]["log"])

        def loss(own: Flat) -> tuple[Array, Any]:
            found, moved = self.act(own, statistics["actor"], batch["observations"], noise, "policy", True)
            action, log_prob = found
            q = critics(p["critic"], statistics["critic"], batch["observations"], action, False)[0][..., 0]
            return (alpha * log_prob - q.min(0)).mean(), (log_prob.mean(), moved)

        (value, (log_prob, moved)), gradient = jax.value_and_grad(loss, has_aux=True)(p["actor"])
        state = self.step("actor", state, gradient) | {"statistics": {**statistics, "actor": moved}}
        state = self.step("temperature", state, {"log": alpha * (-log_prob - self.target_entropy)})
        if rate := self.target_update_rate:
            moved = jax.tree.map(lambda new, old: rate * new + (1 - rate) * old, state["p"]["critic"], state["target"])
            state = {**state, "target": moved}
        return state, {"policy_loss": value, "entropy": -log_prob}

    def draw(self, key: Array, batch_size: int) -> Tree:
        """Fresh noise; XLA leaves out what an update does not use."""
        keys = iter(jax.random.split(key, 4))
        chunk = (batch_size, self.action_dim)
        return {
            f"{name}_{kind}": jax.random.normal(next(keys), chunk if kind == "noise" else (self.flow_steps, *chunk))
            for name in ("next", "policy")
            for kind in ("noise", "step_noise")
        }


def create(layers: list[tuple[str, int, int]], key: Array) -> tuple[Flat, Flat]:
    """Parameters and statistics of one network."""
    p: Flat = {}
    statistics: Flat = {}
    for (path, in_dim, out_dim), own in zip(layers, jax.random.split(key, len(layers)), strict=True):
        if out_dim:
            p[f"{path}/kernel"] = jax.nn.initializers.lecun_normal()(own, (in_dim, out_dim))
            p[f"{path}/bias"] = jnp.zeros(out_dim)
        else:
            p |= {f"{path}/scale": jnp.ones(in_dim), f"{path}/bias": jnp.zeros(in_dim)}
            statistics |= {f"{path}/mean": jnp.zeros(in_dim), f"{path}/var": jnp.ones(in_dim)}
            statistics[f"{path}/steps"] = jnp.zeros((), jnp.int32)
    return p, statistics


def zeros(p: Flat) -> Flat:
    return jax.tree.map(jnp.zeros_like, p)


def make(agent: str, obs_dim: int, action_dim: int, sizes: Mapping[str, Any], scale: Array) -> Scratch:
    """The program that an agent of ours stands for, at our sizes."""
    flow_steps, depth = sizes.get("flow_steps", 0), len(sizes.get("policy_hidden_dims", ()))
    policies: dict[str, tuple[Callable[..., Any], Callable[..., Layers]]] = {
        "sac": (partial(gaussian, False, depth, scale), partial(gaussian_layers, False)),
        "crossq": (partial(gaussian, True, depth, scale), partial(gaussian_layers, True)),
        "sac_flow_g_scratch": (partial(path_of, gated_step, scale), gated_layers),
        "naive_flow_scratch": (partial(path_of, naive_step, scale), naive_layers),
        "sac_flow_t_scratch": (partial(decoded, sizes.get("decoder_layers", 0), scale), decoded_layers),
    }
    policy, layers = policies[agent]
    of_critic = critic_layers(agent != "sac", tuple(sizes["critic_hidden_dims"]), obs_dim + action_dim, 1)
    beta = 0.9 if agent == "sac" else 0.5
    return Scratch(
        policy,
        list(layers(obs_dim, action_dim, sizes)),
        list(of_critic),
        Rates((3e-4, beta), (1e-3, beta), (1e-3, beta)),
        -float(action_dim) if agent in ("sac", "crossq") else 0.0,
        flow_steps,
        1 if agent == "sac" else sizes["policy_delay"],
        action_dim,
        target_update_rate=0.005 if agent == "sac" else 0.0,
    )


AGENTS = ("sac", "crossq", "sac_flow_t_scratch", "sac_flow_g_scratch", "naive_flow_scratch")


class ScratchUpdates:
    """Updates of one program on one random batch, in the interface of `jax_updates.JaxUpdates`."""

    def __init__(self, agent: str, obs_dim: int, action_dim: int, batch_size: int, sizes: Mapping[str, Any]) -> None:
        self.program = make(agent, obs_dim, action_dim, sizes, jnp.ones(action_dim))
        state_key, *keys = jax.random.split(jax.random.key(0), 5)
        self.state = self.program.initial_state(state_key, 0.2)
        self.batch = {
            "observations": jax.random.normal(keys[0], (batch_size, obs_dim)),
            "next_observations": jax.random.normal(keys[1], (batch_size, obs_dim)),
            "actions": jax.random.uniform(keys[2], (batch_size, action_dim), minval=-1, maxval=1),
            "rewards": jax.random.uniform(keys[3], (batch_size,)),
            "terminations": jnp.zeros(batch_size),
        }
        self.batch_size, self.turn = batch_size, 0
        self.metrics: Tree = {}
        self._executables: dict[str, Any] = {}

    def iterate(self, phase: str) -> None:
        """One update: a step of the critics, and at the last turn one of policy and temperature."""
        kinds = ["critic", "policy"] if self.turn == self.program.period - 1 else ["critic"]
        self.turn = (self.turn + 1) % self.program.period
        for kind in kinds:
            self.state, self.metrics = jax.block_until_ready(self.executable(kind)(self.state, self.batch))

    def executable(self, kind: str) -> Any:
        """Compiled update (state, batch) -> (state, metrics); it overwrites the state that it is given."""

        def step(state: Tree, batch: Tree) -> tuple[Tree, Tree]:
            key, own = jax.random.split(state["key"])
            noise = self.program.draw(own, self.batch_size)
            return getattr(self.program, f"update_{kind}")({**state, "key": key}, batch, noise)

        if kind not in self._executables:
            self._executables[kind] = jax.jit(step, donate_argnums=0).lower(self.state, self.batch).compile()
        return self._executables[kind]

    def gflop(self, phase: str) -> float:
        """Floating-point operations of an update by XLA's count, in 1e9, averaged over a period."""
        critic, policy = (self.executable(kind).cost_analysis()["flops"] for kind in ("critic", "policy"))
        return (critic + policy / self.program.period) / 1e9

    def float_metrics(self) -> dict[str, float]:
        """Metrics of the last update."""
        return {name: float(value) for name, value in self.metrics.items()}


# Against the numbers of the official programs.

FILES = {
    "scratch_sac": "sac",
    "scratch_crossq": "crossq",
    "scratch_sac_flow_t": "sac_flow_t_scratch",
    "scratch_sac_flow_g": "sac_flow_g_scratch",
    "scratch_naive_flow": "naive_flow_scratch",
}
ROUNDING = 1e-6  # gradients of tensors whose true gradient is 0


def check(folder: Path) -> dict[str, float]:
    """The largest distance of metrics, parameters and statistics after each update from the file's, by program.

    In shares of each tensor's largest entry. Updates begin with the file's state; Adam goes on by itself.
    """
    return {agent: far_from(folder / f"{name}.npz", agent) for name, agent in FILES.items()}


def far_from(path: Path, agent: str) -> float:
    with np.load(path) as archive:
        arrays = dict(archive)
    official = json.loads(str(arrays["config_json"]))
    width = official["width"]
    sizes = {
        "policy_hidden_dims": (width,) * (3 if agent in ("sac", "crossq") else 2),
        "critic_hidden_dims": (width,) * (4 if agent == "sac" else 2),
        "gate_dim": width,
        "decoder_dim": official.get("d_model"),
        "decoder_layers": official.get("n_layers"),
        "flow_steps": official.get("flow_steps", 0),
        "policy_delay": 1,
    }
    scale = jnp.array(official["action_scale"])
    program = make(agent, official["obs_dim"], official["action_dim"], sizes, scale)

    def under(prefix: str) -> Flat:
        found = {key.removeprefix(prefix): jnp.asarray(v) for key, v in arrays.items() if key.startswith(prefix)}
        found = {key: value for key, value in found.items() if not key.endswith(("r_max", "d_max"))}
        return {key.removeprefix("VmapQNetwork_0/"): value for key, value in found.items()}

    def state_at(prefix: str, suffix: str) -> tuple[Tree, Tree]:
        p = {name: under(f"{prefix}params{suffix}/{name}/") for name in ("actor", "critic")}
        log = arrays[f"{prefix}log_entropy_coef{suffix}" if suffix else "params/log_entropy_coef"]
        statistics = {name: under(f"{prefix}stats{suffix}/{name}/") for name in ("actor", "critic")}
        return {**p, "temperature": {"log": jnp.asarray(log)}}, statistics

    state = program.state_of(*state_at("", ""), jax.random.key(0))
    if program.target_update_rate:
        state["target"] = under("params/target_critic/")
    far = [0.0]
    update_critic, update_policy = jax.jit(program.update_critic), jax.jit(program.update_policy)
    for i in range(3):
        batch, noise = under(f"step{i}/batch/"), under(f"step{i}/noise/")
        state, metrics = update_critic(state, batch, noise)
        state, more = update_policy(state, batch, noise)
        official_metrics = under(f"step{i}/metric/")
        for name in ("critic_loss", "policy_loss"):
            expected = official_metrics[name].sum()
            far.append(distance((metrics | more)[name], expected))
        after, statistics = state_at(f"step{i}/", "_after")  # what the file has of them
        for name in ("actor", "critic"):
            gradients = under(f"step{i}/grad/{name}/")
            drifting = {key for key, value in gradients.items() if float(jnp.abs(value).max()) < ROUNDING}
            own = state["p"][name] | state["statistics"][name]
            found = after[name] | statistics[name]
            far += [distance(own[key], value) for key, value in found.items() if key not in drifting]
        far.append(distance(state["p"]["temperature"]["log"], after["temperature"]["log"]))
        p = {name: own | after[name] for name, own in state["p"].items()}
        moved = {name: own | statistics[name] for name, own in state["statistics"].items()}
        state = {**state, "p": p, "statistics": moved}
        if program.target_update_rate:
            target = under(f"step{i}/params_after/target_critic/")
            far += [distance(state["target"][key], value) for key, value in target.items()]
    return max(far)


def distance(own: Array, official: Array) -> float:
    size = max(float(jnp.abs(official).max()), 1e-3)
    return float(jnp.abs(own - official).max()) / size
