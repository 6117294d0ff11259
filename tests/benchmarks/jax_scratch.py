"""Updates of the official programs that train from scratch, written in JAX, for `jax_updates`.

Here are SAC, CrossQ and the flows of SAC Flow's release, whose updates have one form; `jax_compared` has the others.
`check` holds three updates of each against the numbers of its official program (`scratch_*.npz`). What costs time is as
there: critics under vmap, both sides of a joint critic in one pass, each step's features of time for every row,
Flow-T's whole attention, an Adam for each network, and a compiled function for the critics' step and one for policy and
temperature. `flow_mlp_scratch` is our control and no official program: Flow-G's without its gate.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np

from tests.benchmarks import jax_compared
from tests.benchmarks.jax_networks import Array, Tree
from tests.benchmarks.jax_programs import (
    BATCH_RENORM,
    Flat,
    Layers,
    Program,
    Scope,
    Update,
    average,
    create,
    critic_layers,
    critics,
)

HEADS, FREQUENCIES = 4, 16


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
            yield f"BatchRenorm_{i}", dim, BATCH_RENORM
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


def gated_step(gated: bool, s: Scope, obs: Array, x: Array, t: Array) -> tuple[Array, Array]:
    angle = t * jnp.exp(-math.log(10_000) * jnp.arange(FREQUENCIES) / (FREQUENCIES - 1))
    time = jax.nn.silu(s.dense("time_mlp/layers_1", jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)))
    features = jnp.concatenate([s.renorm("bn", jnp.concatenate([obs, x], -1)), s.dense("time_mlp/layers_3", time)], -1)

    def net(name: str) -> Array:
        return s.dense(f"{name}_net/layers_2", jax.nn.silu(s.dense(f"{name}_net/layers_0", features)))

    velocity, hidden = net("candidate"), obs
    if gated:
        velocity = jax.nn.sigmoid(net("gate")) * (velocity - x)
    for i in (0, 2):
        hidden = jax.nn.relu(s.dense(f"fc_logstd/layers_{i}", hidden))
    return velocity, bounded(s.dense("fc_logstd/layers_4", hidden))


def gated_layers(gated: bool, obs_dim: int, action_dim: int, sizes: Mapping[str, Any]) -> Layers:
    yield "bn", obs_dim + action_dim, BATCH_RENORM
    yield "time_mlp/layers_1", 2 * FREQUENCIES, 64
    yield "time_mlp/layers_3", 64, 32
    for name in ("gate", "candidate") if gated else ("candidate",):
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
    yield "bn", obs_dim + action_dim + 1, BATCH_RENORM
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
    yield "BatchRenorm_0", obs_dim, BATCH_RENORM
    for k in range(sizes["flow_steps"]):
        yield f"BatchRenorm_{k + 1}", action_dim, BATCH_RENORM
    dims = [(obs_dim, dim // 2), (dim // 2, dim), (1, dim // 4), (dim // 4, dim // 2), (dim // 2, dim)]
    for i, pair in enumerate(dims):
        yield f"Dense_{i}", *pair
    yield "action_proj", action_dim, dim
    for i in range(sizes["decoder_layers"]):
        for norm in range(3):
            yield f"layer_{i}/BatchRenorm_{norm}", dim, BATCH_RENORM
        for kind in ("self", "cross"):
            for name in ("q", "k", "v", "out"):
                yield f"layer_{i}/{kind}_attn/{name}_proj", dim, dim
        yield f"layer_{i}/Dense_0", dim, 4 * dim
        yield f"layer_{i}/Dense_1", 4 * dim, dim
    yield "velocity_mean_head", dim, action_dim
    yield "velocity_log_std_head", dim, action_dim


# Updates.


@dataclass(frozen=True)
class Scratch(Program):
    """One program at some sizes: policy, layers, and what its losses need."""

    policy: Callable[[Scope, Array, Array, Array], Any]
    actor_layers: list[tuple[str, int, int]]
    critic_layers: list[tuple[str, int, int]]
    target_entropy: float
    flow_steps: int
    discount: float = 0.99
    target_update_rate: float = 0.0  # 0: no target critics

    def initial_state(self, key: Array) -> Tree:
        actor_key, critic_key, key = jax.random.split(key, 3)
        actor, actor_statistics = create(self.actor_layers, actor_key)
        critic, critic_statistics = jax.vmap(partial(create, self.critic_layers))(jax.random.split(critic_key, 2))
        p = {"actor": actor, "critic": critic, "temperature": {"log": jnp.log(jnp.float32(0.2))}}
        statistics = {"actor": actor_statistics, "critic": critic_statistics}
        return self.state_of(p, statistics, key, ("critic",) if self.target_update_rate else ())

    def updates(self, turn: int) -> Mapping[str, Update]:
        policy = {"update_policy": self.update_policy} if turn == self.period - 1 else {}
        return {"update_critic": self.update_critic, **policy}

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
            next_q = critics(state["target"]["critic"], {}, next_obs, next_action, False)[0][..., 0]
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
            state["target"] = {"critic": average(state["p"]["critic"], state["target"]["critic"], rate)}
        return state, {"policy_loss": value, "entropy": -log_prob}

    def draw(self, key: Array, batch_size: int) -> Tree:
        keys = iter(jax.random.split(key, 4))
        chunk = (batch_size, self.action_dim)
        return {
            f"{name}_{kind}": jax.random.normal(next(keys), chunk if kind == "noise" else (self.flow_steps, *chunk))
            for name in ("next", "policy")
            for kind in ("noise", "step_noise")
        }


def make(agent: str, obs_dim: int, action_dim: int, sizes: Mapping[str, Any], scale: Array) -> Program:
    """The program that an agent of ours stands for, at our sizes."""
    if agent in jax_compared.PROGRAMS:
        return jax_compared.PROGRAMS[agent](obs_dim, action_dim, sizes, scale)
    flow_steps, depth = sizes.get("flow_steps", 0), len(sizes.get("policy_hidden_dims", ()))
    policies: dict[str, tuple[Callable[..., Any], Callable[..., Layers]]] = {
        "sac": (partial(gaussian, False, depth, scale), partial(gaussian_layers, False)),
        "crossq": (partial(gaussian, True, depth, scale), partial(gaussian_layers, True)),
        "sac_flow_g_scratch": (partial(path_of, partial(gated_step, True), scale), partial(gated_layers, True)),
        "flow_mlp_scratch": (partial(path_of, partial(gated_step, False), scale), partial(gated_layers, False)),
        "naive_flow_scratch": (partial(path_of, naive_step, scale), naive_layers),
        "sac_flow_t_scratch": (partial(decoded, sizes.get("decoder_layers", 0), scale), decoded_layers),
    }
    policy, layers = policies[agent]
    of_critic = critic_layers(agent != "sac", tuple(sizes["critic_hidden_dims"]), obs_dim + action_dim, 1)
    beta = 0.9 if agent == "sac" else 0.5
    return Scratch(
        action_dim,
        1 if agent == "sac" else sizes["policy_delay"],
        {"actor": (3e-4, beta), "critic": (1e-3, beta), "temperature": (1e-3, beta)},
        policy,
        list(layers(obs_dim, action_dim, sizes)),
        list(of_critic),
        -float(action_dim) if agent in ("sac", "crossq") else 0.0,
        flow_steps,
        target_update_rate=0.005 if agent == "sac" else 0.0,
    )


AGENTS = (
    *("sac", "crossq", "sac_flow_t_scratch", "sac_flow_g_scratch", "naive_flow_scratch", "flow_mlp_scratch"),
    *jax_compared.PROGRAMS,
)


class ScratchUpdates:
    """Updates of one program on one random batch, in the interface of `jax_updates.JaxUpdates`."""

    def __init__(self, agent: str, obs_dim: int, action_dim: int, batch_size: int, sizes: Mapping[str, Any]) -> None:
        self.program = make(agent, obs_dim, action_dim, sizes, jnp.ones(action_dim))
        state_key, *keys = jax.random.split(jax.random.key(0), 5)
        self.state = self.program.initial_state(state_key)
        self.batch = {
            "observations": jax.random.normal(keys[0], (batch_size, obs_dim)),
            "next_observations": jax.random.normal(keys[1], (batch_size, obs_dim)),
            "actions": jax.random.uniform(keys[2], (batch_size, action_dim), minval=-1, maxval=1),
            "rewards": jax.random.uniform(keys[3], (batch_size,)),
            "terminations": jnp.zeros(batch_size),
            "masks": jnp.ones(batch_size),  # the same, as other programs have it
            **dict.fromkeys(("log_prob", "advantages", "returns"), jnp.linspace(-1, 1, batch_size)),  # PPO's
        }
        self.batch_size, self.turn = batch_size, 0
        self.metrics: Tree = {}
        self._executables: dict[str, Any] = {}

    def iterate(self, phase: str) -> None:
        """One update: whatever the program computes at this turn."""
        for name in self.program.updates(self.turn):
            self.state, self.metrics = jax.block_until_ready(self.executable(name)(self.state, self.batch))
        self.turn = (self.turn + 1) % self.program.period

    def executable(self, name: str) -> Any:
        """Compiled update (state, batch) -> (state, metrics); it overwrites the state that it is given."""

        def step(state: Tree, batch: Tree) -> tuple[Tree, Tree]:
            key, own = jax.random.split(state["key"])
            noise = self.program.draw(own, self.batch_size)
            return getattr(self.program, name)({**state, "key": key}, batch, noise)

        if name not in self._executables:
            self._executables[name] = jax.jit(step, donate_argnums=0).lower(self.state, self.batch).compile()
        return self._executables[name]

    def gflop(self, phase: str) -> float:
        """Floating-point operations of an update by XLA's count, in 1e9, averaged over a period."""
        period = self.program.period
        names = [name for turn in range(period) for name in self.program.updates(turn)]
        return sum(self.executable(name).cost_analysis()["flops"] for name in names) / period / 1e9

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
    "scratch_dime": "dime",
    "scratch_qsm": "qsm_scratch",
    "scratch_flowrl": "flowrl",
    "scratch_ppo": "ppo",
}
TARGETS = {
    **{f"target_{name}": name for name in ("critic", "critic_1", "critic_2")},
    **{"critic_target": "critic", "critic_target_buffer": "critic_buffer"},
}
# Metrics; and QSM's, which end in a number.
COMPARED = ("critic_loss", "policy_loss", "run_costs", "current_q_values", "actor_loss_mean", "loss", "value_loss")
ROUNDING = 1e-6  # gradients of tensors whose true gradient is 0


def check(folder: Path) -> dict[str, float]:
    """The largest distance of metrics, parameters and statistics after each update from the file's, by program.

    In shares of each tensor's largest entry. Updates begin with the file's state; Adam goes on by itself.
    """
    return {agent: far_from(folder / f"{name}.npz", agent) for name, agent in FILES.items()}


def sizes_of(official: Mapping[str, Any], agent: str) -> Tree:
    """The sizes of a file's networks under our names."""
    width, depths = official["width"], {"sac": (3, 4), "crossq": (3, 2), "dime": (3, 2), "flowrl": (2, 4)}
    policy_depth, critic_depth = depths.get(agent, (2, 2))
    return {
        "policy_hidden_dims": (width,) * policy_depth,
        "critic_hidden_dims": (width,) * critic_depth,
        "value_hidden_dims": (width,) * 2,
        "gate_dim": width,
        "decoder_dim": official.get("d_model"),
        "decoder_layers": official.get("n_layers"),
        "flow_steps": official.get("flow_steps", 0),
        "policy_delay": official.get("target_update_interval", 1),
        "denoising_steps": official.get("diffusion_steps", official.get("T")),
        "num_atoms": official.get("atoms"),
        "min_value": official.get("v_min"),
        "max_value": official.get("v_max"),
        "step_hidden_dims": (official.get("time_dim"),) * 2,
        "step_frequencies": official.get("time_dim", 0) // 2,
    }


class OfficialFile:
    """What one official program was given and computed, under the paths that the programs here have."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as archive:
            self.arrays = dict(archive)
        self.config = json.loads(str(self.arrays["config_json"]))

    def under(self, prefix: str) -> Flat:
        """Arrays whose paths begin so; layers of PyTorch as those of flax."""
        found = {}
        for key, value in self.arrays.items():
            if not key.startswith(prefix) or key.endswith(("r_max", "d_max")):
                continue
            name = key.removeprefix(prefix)
            for of_module in ("VmapQNetwork_0/", "VmapCritic_0/", "fwd_params/params/"):
                name = name.replace(of_module, "")
            if name.endswith("/weight"):
                name = name.removesuffix("weight") + ("kernel" if value.ndim == 2 else "scale")
                value = value.T
            found[name] = jnp.asarray(value)
        return found

    def batch(self, update: int) -> Flat:
        """That of an update; PPO's are on all of its rollout."""
        found = self.under(f"step{update}/batch/")
        return found or {key: value.reshape(-1, *value.shape[2:]) for key, value in self.under("rollout/").items()}

    def state(self, prefix: str, suffix: str) -> dict[str, dict[str, Flat]]:
        """What the file has of parameters, statistics and targets, by network."""
        found: dict[str, dict[str, Flat]] = {"p": {}, "statistics": {}, "target": {}}
        for kind, of_file in (("p", "params"), ("statistics", "stats")):
            for key, value in self.under(f"{prefix}{of_file}{suffix}/").items():
                name, _, path = key.partition("/")
                if name == "log_entropy_coef":
                    continue
                place = found["target"] if name in TARGETS else found[kind]
                place.setdefault(TARGETS.get(name, name), {})[path] = value
        log = f"{prefix}log_entropy_coef{suffix}" if suffix else "params/log_entropy_coef"
        if log in self.arrays:
            found["p"]["temperature"] = {"log": jnp.asarray(self.arrays[log])}
        return found


def far_from(path: Path, agent: str) -> float:
    file = OfficialFile(path)
    dims = (file.config["obs_dim"], file.config["action_dim"])
    scale = jnp.array(file.config.get("action_scale", [1.0]))
    program = make(agent, *dims, sizes_of(file.config, agent), scale)
    found = file.state("", "")
    statistics = {name: found["statistics"].get(name, {}) for name in found["p"]}
    state = {**program.state_of(found["p"], statistics, jax.random.key(0)), "target": found["target"]}
    far, compiled = [0.0], {}
    for i in range(3):
        batch, noise, metrics = file.batch(i), file.under(f"step{i}/noise/"), {}
        for name, update in program.updates(i % program.period).items():
            state, more = compiled.setdefault(name, jax.jit(update))(state, batch, noise)
            metrics |= more
        official_metrics = file.under(f"step{i}/metric/")
        for name in official_metrics.keys() & metrics.keys():
            if name in COMPARED or name[-1] in "12":
                far.append(distance(metrics[name], official_metrics[name].sum()))
        for kind, networks in file.state(f"step{i}/", "_after").items():
            for network, after in networks.items():
                own, gradients = state[kind][network], file.under(f"step{i}/grad/{network}/")
                drifting = {key for key, value in gradients.items() if float(jnp.abs(value).max()) < ROUNDING}
                far += [distance(own[key], value) for key, value in after.items() if key not in drifting]
                state[kind] = {**state[kind], network: own | after}
    return max(far)


def distance(own: Array, official: Array) -> float:
    size = max(float(jnp.abs(official).max()), 1e-3)
    return float(jnp.abs(own - official).max()) / size
