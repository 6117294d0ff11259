"""Updates of the programs that SAC Flow from scratch is compared with, beside SAC and CrossQ, for `jax_scratch`.

As in the official programs, what one call of theirs computes is compiled as one: DIME's critic, policy and temperature,
QSM's critics, targets and score. The samplers are scans over their steps; DIME's features of a step are those of one
row, QSM's of every row. DIME projects each critic's distribution onto the atoms by adding into them. Left out are
copies that equal what they copy (DIME's targets, whose rate is 1), logs, and QSM's decay of a rate over 2M updates.

FlowRL's official program is written in PyTorch: its update here is a translation, and its rate nobody's official one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

from tests.benchmarks.jax_networks import Array, Tree
from tests.benchmarks.jax_programs import (
    LAYER_NORM,
    Flat,
    Layers,
    Program,
    Scope,
    Update,
    average,
    create,
    create_each,
    critic_layers,
    critics,
)

Sizes = Mapping[str, Any]

PRIOR_STD, DRIFT_MAX, OFFSET = 2.5, 1e4, 1.008  # of DIME
TARGET_UPDATE_RATE, EXPLORATION_STD, GRADIENT_FACTOR = 0.005, 0.1, 50.0  # of QSM
EXPECTILE, NEW_SHARE, MATCHING_COEF = 0.9, 0.95, 0.1  # of FlowRL
CLIP_RANGE, ENTROPY_COEF, VALUE_COEF, LARGEST_NORM = 0.2, 0.01, 0.5, 12.0  # of PPO
DISCOUNT = 0.99


def mean_square(x: Array) -> Array:
    return jnp.square(x).mean()


# DIME


def dime_drift(s: Scope, obs: Array, x: Array, k: Array) -> Array:
    phase = s.p["timestep_phase"]
    angle = jnp.linspace(0.1, 100.0, phase.shape[-1]) * k + phase  # (1, width)
    step = jax.nn.gelu(s.dense("time_coder_state/layers_0", jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)))
    step = s.dense("time_coder_state/layers_2", step)
    hidden = jnp.concatenate([x, obs, jnp.broadcast_to(step, (len(x), step.shape[-1]))], -1)
    for i in range(3):
        hidden = jax.nn.gelu(s.dense(f"state_time_net/layers_{i}/layers_0", hidden))
    return jnp.clip(s.dense("state_time_net/layers_3", hidden), -DRIFT_MAX, DRIFT_MAX)


def dime_layers(obs_dim: int, action_dim: int, hidden_dims: tuple[int, ...]) -> Layers:
    width = hidden_dims[0]
    yield "time_coder_state/layers_0", 2 * width, width
    yield "time_coder_state/layers_2", width, width
    dims = [action_dim + obs_dim + width, *hidden_dims]
    for i, dim in enumerate(hidden_dims):
        yield f"state_time_net/layers_{i}/layers_0", dims[i], dim
    yield "state_time_net/layers_3", dims[-1], action_dim


def dime_path(p: Flat, obs: Array, noise: Array, step_noise: Array) -> tuple[Array, Array, Array]:
    """Action (B, A), and the costs (B,) of the steps and of the start, of a rollout of the diffusion."""
    s, count = Scope(p, {}, False), len(step_noise)
    steps = jnp.arange(count)
    angles = 0.5 * math.pi * (OFFSET - (count - steps) / count) / OFFSET
    schedule = 0.001 + 0.999 * jnp.square(jnp.cos(angles))
    log_density = jax.scipy.stats.norm.logpdf

    def step(state: tuple[Array, Array], given: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        (x, cost), (k, share, eps) = state, given
        eta = jax.nn.softplus(p["dt"]) * share / jax.nn.softplus(p["friction"])
        std = jnp.sqrt(2 * eta)
        mean = x + eta * (dime_drift(s, obs, x, k) - x / PRIOR_STD**2)
        after = mean + std * eps
        backwards = after - eta * after / PRIOR_STD**2
        cost += (log_density(after, mean, std) - log_density(x, backwards, std)).sum(-1)
        return (after, cost), None

    x_0 = PRIOR_STD * noise
    (x, cost), _ = jax.lax.scan(step, (x_0, jnp.zeros(len(obs))), (steps, schedule, step_noise))
    log_det = 2 * (math.log(2) - x - jax.nn.softplus(-2 * x)).sum(-1)
    return jnp.tanh(x), cost - log_det, log_density(x_0, scale=PRIOR_STD).sum(-1)


@dataclass(frozen=True)
class Dime(Program):
    actor_layers: list[tuple[str, int, int]]
    critic_layers: list[tuple[str, int, int]]
    num_steps: int
    num_atoms: int
    min_value: float
    max_value: float

    def initial_state(self, key: Array) -> Tree:
        actor_key, phase_key, critic_key, key = jax.random.split(key, 4)
        actor, _ = create(self.actor_layers, actor_key)
        last, width = "state_time_net/layers_3/kernel", self.actor_layers[0][2]
        actor[last] = jnp.full_like(actor[last], 1e-8)
        actor["timestep_phase"] = jax.random.normal(phase_key, (1, width))
        actor |= {"dt": jnp.full(1, 0.1), "friction": jnp.ones(self.action_dim)}
        critic, statistics = jax.vmap(partial(create, self.critic_layers))(jax.random.split(critic_key, 2))
        p = {"actor": actor, "critic": critic, "temperature": {"log": jnp.zeros(())}}
        return self.state_of(p, {"critic": statistics}, key)

    def draw(self, key: Array, batch_size: int) -> Tree:
        return path_noise(key, self.num_steps, (batch_size, self.action_dim))

    def updates(self, turn: int) -> Mapping[str, Update]:
        return {"update": self.update} if turn == self.period - 1 else {"update_critic": self.update_critic}

    @property
    def atoms(self) -> Array:
        return jnp.linspace(self.min_value, self.max_value, self.num_atoms)

    def projected(self, probability: Array, values: Array) -> Array:
        """The distribution on the atoms nearest to one with these probabilities of values, both (B, atoms)."""
        width = (self.max_value - self.min_value) / (self.num_atoms - 1)
        position = (jnp.clip(values, self.min_value, self.max_value) - self.min_value) / width
        lower = jnp.clip(jnp.floor(position), 0, self.num_atoms - 2).astype(jnp.int32)
        share, rows = position - lower, jnp.arange(len(values))[:, None]
        found = jnp.zeros_like(probability).at[rows, lower].add(probability * (1 - share))
        return found.at[rows, lower + 1].add(probability * share)

    def update_critic(self, state: Tree, batch: Tree, noise: Tree) -> tuple[Tree, Tree]:
        p, statistics, alpha = state["p"], state["statistics"], jnp.exp(state["p"]["temperature"]["log"])
        next_obs = batch["next_observations"]
        next_action, *costs = dime_path(p["actor"], next_obs, noise["next_noise"], noise["next_step_noise"])
        bootstrap = DISCOUNT * (1 - batch["terminations"])
        target_value = (batch["rewards"] - bootstrap * alpha * sum(costs))[:, None] + bootstrap[:, None] * self.atoms
        obs, action = (
            jnp.concatenate([batch["observations"], next_obs]),
            jnp.concatenate([batch["actions"], next_action]),
        )

        def loss(own: Flat) -> tuple[Array, Any]:
            logits, moved = critics(own, statistics["critic"], obs, action, True)
            q, next_q = jnp.split(jax.nn.softmax(logits, -1), 2, 1)  # (2, B, atoms)
            target = jax.lax.stop_gradient(sum(self.projected(member, target_value) for member in next_q) / 2)
            log_q = jnp.log(q + 1e-15)
            total = (0.005 * q * log_q - target * log_q).sum(-1).mean(1).sum()
            return total, ((q * self.atoms).sum(-1).min(0).mean(), moved)

        (value, (q_min, moved)), gradient = jax.value_and_grad(loss, has_aux=True)(p["critic"])
        state = self.step("critic", state, gradient) | {"statistics": {"critic": moved}}
        return state, {"critic_loss": value, "current_q_values": q_min}

    def update(self, state: Tree, batch: Tree, noise: Tree) -> tuple[Tree, Tree]:
        """A step of the critics, and one of policy and temperature."""
        state, metrics = self.update_critic(state, batch, noise)
        p, alpha, obs = state["p"], jnp.exp(state["p"]["temperature"]["log"]), batch["observations"]

        def loss(own: Flat) -> tuple[Array, Array]:
            action, run_cost, start_cost = dime_path(own, obs, noise["policy_noise"], noise["policy_step_noise"])
            logits, _ = critics(p["critic"], state["statistics"]["critic"], obs, action, False)
            q = (jax.nn.softmax(logits, -1) * self.atoms).sum(-1).mean(0)
            return (alpha * (run_cost + start_cost) - q).mean(), run_cost.mean()

        (value, run_cost), gradient = jax.value_and_grad(loss, has_aux=True)(p["actor"])
        gradient = jax.tree.map(lambda g: jnp.clip(jnp.nan_to_num(g), -1, 1), gradient)
        state = self.step("actor", state, gradient)
        state = self.step("temperature", state, {"log": -alpha * (run_cost - 4.0 * self.action_dim)})
        return state, metrics | {"policy_loss": value, "run_costs": run_cost}


def dime(obs_dim: int, action_dim: int, sizes: Sizes, scale: Array) -> Dime:
    in_dim, num_atoms = obs_dim + action_dim, sizes["num_atoms"]
    return Dime(
        action_dim,
        sizes["policy_delay"],
        {"actor": (3e-4, 0.5), "critic": (3e-4, 0.5), "temperature": (1e-3, 0.9)},
        list(dime_layers(obs_dim, action_dim, tuple(sizes["policy_hidden_dims"]))),
        list(critic_layers(True, tuple(sizes["critic_hidden_dims"]), in_dim, num_atoms)),
        sizes["denoising_steps"],
        num_atoms,
        sizes["min_value"],
        sizes["max_value"],
    )


def path_noise(key: Array, num_steps: int, shape: tuple[int, int]) -> Tree:
    """Starts and steps of the paths at the next observations and at these."""
    keys = jax.random.split(key, 4)
    names = ("next_noise", "next_step_noise", "policy_noise", "policy_step_noise")
    shapes = (shape, (num_steps, *shape)) * 2
    return {name: jax.random.normal(*own) for name, own in zip(names, zip(keys, shapes, strict=True), strict=True)}


# QSM


def mish(x: Array) -> Array:
    return x * jnp.tanh(jax.nn.softplus(x))


def qsm_score(s: Scope, obs: Array, x: Array, t: Array) -> Array:
    """The noise predicted in x (B, A) at steps t (B, 1) from 0."""
    angle = 2 * jnp.pi * t @ s.p["FourierFeatures_0/kernel"].T
    step = mish(s.dense("MLP_0/Dense_0", jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)))
    hidden = jnp.concatenate([x, obs, s.dense("MLP_0/Dense_1", step)], -1)
    for i in range(2):
        hidden = mish(s.dense(f"MLP_1/Dense_{i}", hidden))
    return s.dense("MLP_1/Dense_2", hidden)


def qsm_value(p: Flat, obs: Array, action: Array) -> Array:
    s, hidden = Scope(p, {}, False), jnp.concatenate([obs, action], -1)
    for i in range(2):
        hidden = jax.nn.relu(s.dense(f"MLP_0/Dense_{i}", hidden))
    return s.dense("Dense_0", hidden)[:, 0]


def qsm_layers(obs_dim: int, action_dim: int, sizes: Sizes) -> tuple[Layers, Layers]:
    """Of the score, but for its frequencies, and of a critic."""
    first, second = sizes["step_hidden_dims"]

    def score() -> Layers:
        yield "MLP_0/Dense_0", 2 * sizes["step_frequencies"], first
        yield "MLP_0/Dense_1", first, second
        dims = [action_dim + obs_dim + second, *sizes["policy_hidden_dims"], action_dim]
        for i in range(3):
            yield f"MLP_1/Dense_{i}", dims[i], dims[i + 1]

    def critic() -> Layers:
        dims = [obs_dim + action_dim, *sizes["critic_hidden_dims"]]
        for i in range(2):
            yield f"MLP_0/Dense_{i}", dims[i], dims[i + 1]
        yield "Dense_0", dims[-1], 1

    return score(), critic()


@dataclass(frozen=True)
class Qsm(Program):
    score_layers: list[tuple[str, int, int]]
    critic_layers: list[tuple[str, int, int]]
    num_frequencies: int
    num_steps: int

    CRITICS = ("critic_1", "critic_2")

    def initial_state(self, key: Array) -> Tree:
        key, score_key, frequency_key, *keys = jax.random.split(key, 5)
        score, _ = create(self.score_layers, score_key)
        score["FourierFeatures_0/kernel"] = 0.2 * jax.random.normal(frequency_key, (self.num_frequencies, 1))
        p = {"score": score}
        p |= {name: create(self.critic_layers, own)[0] for name, own in zip(self.CRITICS, keys, strict=True)}
        return self.state_of(p, {}, key, self.CRITICS)

    def draw(self, key: Array, batch_size: int) -> Tree:
        shape = (batch_size, self.action_dim)
        path_key, exploration_key, time_key = jax.random.split(key, 3)
        noise = path_noise(path_key, self.num_steps, shape)
        noise["next_exploration_noise"] = jax.random.normal(exploration_key, shape)
        return noise | {"time": jax.random.randint(time_key, (batch_size,), 0, self.num_steps)}

    def updates(self, turn: int) -> Mapping[str, Update]:
        return {"update": self.update}

    def schedule(self) -> tuple[Array, Array]:
        """alpha of each step, and their products."""
        count = self.num_steps
        steps = jnp.arange(1, count + 1)
        alpha = jnp.exp(-0.1 / count - 4.95 * (2 * steps - 1) / count**2)
        return alpha, jnp.cumprod(alpha)

    def sample(self, p: Flat, obs: Array, x: Array, step_noise: Array) -> Array:
        (alpha, product), s = self.schedule(), Scope(p, {}, False)

        def step(x: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
            t, z = given
            predicted = qsm_score(s, obs, x, jnp.full((len(x), 1), t, x.dtype))
            x = (x - (1 - alpha[t]) / jnp.sqrt(1 - product[t]) * predicted) / jnp.sqrt(alpha[t])
            return jnp.clip(x + (t > 0) * jnp.sqrt(1 - alpha[t]) * z, -1, 1), None

        steps = jnp.arange(self.num_steps - 1, -1, -1)
        return jax.lax.scan(step, x, (steps, step_noise), unroll=self.num_steps)[0]

    def update(self, state: Tree, batch: Tree, noise: Tree) -> tuple[Tree, Tree]:
        """A step of each critic, of their targets, and of the score by the new critics."""
        p, obs, next_obs = state["p"], batch["observations"], batch["next_observations"]
        next_action = self.sample(p["score"], next_obs, noise["next_noise"], noise["next_step_noise"])
        next_action = jnp.clip(next_action + EXPLORATION_STD * noise["next_exploration_noise"], -1, 1)
        next_q = jnp.minimum(*(qsm_value(state["target"][name], next_obs, next_action) for name in self.CRITICS))
        target, metrics = batch["rewards"] + DISCOUNT * batch["masks"] * next_q, {}
        for i, name in enumerate(self.CRITICS, 1):

            def critic_loss(own: Flat) -> tuple[Array, Array]:
                q = qsm_value(own, obs, batch["actions"])
                return mean_square(q - target), q.mean()

            (value, q_mean), gradient = jax.value_and_grad(critic_loss, has_aux=True)(p[name])
            state = self.step(name, state, gradient)
            metrics |= {f"c_loss_mean_{i}": value, f"q_mean_{i}": q_mean}
        p = state["p"]
        state["target"] = {name: average(p[name], old, TARGET_UPDATE_RATE) for name, old in state["target"].items()}

        product = self.schedule()[1][noise["time"]][:, None]
        noised = jnp.sqrt(product) * batch["actions"] + jnp.sqrt(1 - product) * noise["policy_noise"]
        jacobian = jax.grad(lambda action: sum(qsm_value(p[name], obs, action).sum() for name in self.CRITICS))(noised)

        def score_loss(own: Flat) -> Array:
            t = noise["time"][:, None].astype(noised.dtype)
            return mean_square(-GRADIENT_FACTOR / 2 * jacobian - qsm_score(Scope(own, {}, False), obs, noised, t))

        value, gradient = jax.value_and_grad(score_loss)(p["score"])
        return self.step("score", state, gradient), metrics | {"actor_loss_mean": value}


def qsm(obs_dim: int, action_dim: int, sizes: Sizes, scale: Array) -> Qsm:
    score, critic = qsm_layers(obs_dim, action_dim, sizes)
    rates: dict[str, tuple[float, float]] = {name: (3e-4, 0.9) for name in ("score", *Qsm.CRITICS)}
    return Qsm(action_dim, 1, rates, list(score), list(critic), sizes["step_frequencies"], sizes["denoising_steps"])


# FlowRL


def flowrl_velocity(p: Flat, obs: Array, x: Array, t: Array) -> Array:
    s, hidden = Scope(p, {}, False), jnp.concatenate([obs, x, t], -1)
    for linear, norm in (("linear1", "LayerNorm"), ("linear2", "LayerNorm2")):
        hidden = jax.nn.elu(s.layer_norm(norm, s.dense(linear, hidden)))
    return s.dense("linear3", hidden)


def flowrl_block(p: Flat, ends: str, block: str, x: Array) -> Array:
    """Of Q and V: the paths of the layers at their ends begin with `ends`, those between with `block`."""
    s = Scope(p, {}, False)
    x = s.layer_norm(f"{block}/0", s.dense(f"{ends}_input", x))
    for i in (1, 4):
        x = jax.nn.gelu(s.layer_norm(f"{block}/{i + 1}", s.dense(f"{block}/{i}", x)), approximate=False)
    return s.dense(f"{ends}_output", s.layer_norm(f"{block}/8", s.dense(f"{block}/7", x)))[:, 0]


def flowrl_block_layers(ends: str, block: str, in_dim: int, width: int) -> Layers:
    yield f"{ends}_input", in_dim, width
    yield f"{block}/0", width, LAYER_NORM
    for i in (1, 4, 7):
        yield f"{block}/{i}", width, width
        yield f"{block}/{i + 1}", width, LAYER_NORM
    yield f"{ends}_output", width, 1


def flowrl_policy_layers(obs_dim: int, action_dim: int, width: int) -> Layers:
    yield "linear1", obs_dim + action_dim + 1, width
    yield "LayerNorm", width, LAYER_NORM
    yield "linear2", width, width
    yield "LayerNorm2", width, LAYER_NORM
    yield "linear3", width, action_dim


def flowrl_pair(p: Flat, obs: Array, action: Array) -> list[Array]:
    """Q (B,) of the two critics."""
    return [flowrl_block(p, f"Q{i}", f"Q{i}_block", jnp.concatenate([obs, action], -1)) for i in (1, 2)]


@dataclass(frozen=True)
class FlowRL(Program):
    layers: Mapping[str, list[tuple[str, int, int]]]
    scale: Array

    def initial_state(self, key: Array) -> Tree:
        p, key = create_each(self.layers, key)
        return self.state_of(p, {}, key, ("critic", "critic_buffer"))

    def draw(self, key: Array, batch_size: int) -> Tree:
        keys = dict(zip(("next_noise", "policy_noise", "matching_noise", "t"), jax.random.split(key, 4), strict=True))
        t = jax.random.uniform(keys.pop("t"), (batch_size, 1))
        noise = {name: jax.random.normal(own, (batch_size, self.action_dim)) for name, own in keys.items()}
        return {**noise, "matching_t": t}

    def updates(self, turn: int) -> Mapping[str, Update]:
        return {"update": self.update} if turn == 0 else {"update_values": self.update_values}

    def policy(self, p: Flat, obs: Array, noise: Array) -> Array:
        """An action in units of the environment, by one step of the midpoint rule."""
        x = jnp.clip(noise, -1, 1)
        middle = x + 0.5 * flowrl_velocity(p, obs, x, jnp.zeros((len(x), 1)))
        return self.scale * jnp.tanh(x + flowrl_velocity(p, obs, middle, jnp.full((len(x), 1), 0.5)))

    def update_values(self, state: Tree, batch: Tree, noise: Tree) -> tuple[Tree, Tree]:
        return self.values(state, batch, noise)[:2]

    def values(self, state: Tree, batch: Tree, noise: Tree) -> tuple[Tree, Tree, Array]:
        """A step of the critics, of the replay's and of its value; and what the replay's critics held before."""
        p, targets, obs, action = state["p"], state["target"], batch["observations"], batch["actions"]
        next_obs, bootstrap = batch["next_observations"], DISCOUNT * batch["masks"]
        next_action = self.policy(p["policy"], next_obs, noise["next_noise"])
        next_q = jnp.minimum(*flowrl_pair(targets["critic"], next_obs, next_action))
        next_value = flowrl_block(p["V_critic_buffer"], "v", "block", next_obs)
        metrics, replay_q = {}, next_q
        for name, value_of_next in (("critic", next_q), ("critic_buffer", next_value)):
            target = batch["rewards"] + bootstrap * value_of_next

            def critic_loss(own: Flat, target: Array = target) -> tuple[Array, Array]:
                pair = flowrl_pair(own, obs, action)
                return sum(mean_square(q - target) for q in pair), jnp.minimum(*pair)

            (value, replay_q), gradient = jax.value_and_grad(critic_loss, has_aux=True)(p[name])
            state, metrics[f"{name}_loss"] = self.step(name, state, gradient), value
        goal = jnp.minimum(*flowrl_pair(targets["critic_buffer"], obs, action))

        def value_loss(own: Flat) -> Array:
            error = goal - flowrl_block(own, "v", "block", obs)
            return (jnp.where(error > 0, EXPECTILE, 1 - EXPECTILE) * jnp.square(error)).mean()

        value, gradient = jax.value_and_grad(value_loss)(p["V_critic_buffer"])
        return self.step("V_critic_buffer", state, gradient), metrics | {"value_loss": value}, replay_q

    def update(self, state: Tree, batch: Tree, noise: Tree) -> tuple[Tree, Tree]:
        """A step of everything."""
        state, metrics, replay_q = self.values(state, batch, noise)
        obs, x_1, t = batch["observations"], batch["actions"], noise["matching_t"]
        x_0 = jnp.clip(noise["matching_noise"], -1, 1)

        def loss(own: Flat) -> Array:
            q = jnp.minimum(*flowrl_pair(state["p"]["critic"], obs, self.policy(own, obs, noise["policy_noise"])))
            better = jax.nn.relu(replay_q - jax.lax.stop_gradient(q))
            weight = jnp.clip(MATCHING_COEF * jnp.exp(better - better.mean()), 1e-3, 1)
            matching = mean_square(flowrl_velocity(own, obs, (1 - t) * x_0 + t * x_1, t) - (x_1 - x_0))
            return (weight * matching - q).mean()

        value, gradient = jax.value_and_grad(loss)(state["p"]["policy"])
        state = self.step("policy", state, gradient)
        target = {name: average(state["p"][name], old, NEW_SHARE) for name, old in state["target"].items()}
        return {**state, "target": target}, metrics | {"policy_loss": value}


def flowrl(obs_dim: int, action_dim: int, sizes: Sizes, scale: Array) -> FlowRL:
    in_dim, width = obs_dim + action_dim, sizes["critic_hidden_dims"][0]
    critic = [layer for i in (1, 2) for layer in flowrl_block_layers(f"Q{i}", f"Q{i}_block", in_dim, width)]
    layers = {
        "policy": list(flowrl_policy_layers(obs_dim, action_dim, sizes["policy_hidden_dims"][0])),
        "critic": critic,
        "critic_buffer": critic,
        "V_critic_buffer": list(flowrl_block_layers("v", "block", obs_dim, width)),
    }
    return FlowRL(action_dim, sizes["policy_delay"], dict.fromkeys(layers, (3e-4, 0.9)), layers, scale)


# PPO


def ppo_net(p: Flat, obs: Array) -> Array:
    s, hidden = Scope(p, {}, False), obs
    for i in range(2):
        hidden = jnp.tanh(s.dense(f"Dense_{i}", hidden))
    return s.dense("Dense_2", hidden)


def ppo_layers(obs_dim: int, hidden_dims: tuple[int, ...], out_dim: int) -> Layers:
    dims = [obs_dim, *hidden_dims, out_dim]
    for i in range(3):
        yield f"Dense_{i}", dims[i], dims[i + 1]


def of_norm(gradient: Flat, largest: float) -> Flat:
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in gradient.values()))
    return jax.tree.map(lambda g: g * jnp.minimum(1.0, largest / norm), gradient)


@dataclass(frozen=True)
class Ppo(Program):
    layers: Mapping[str, list[tuple[str, int, int]]]
    scale: Array

    def initial_state(self, key: Array) -> Tree:
        p, key = create_each(self.layers, key)
        p["actor"]["log_std"] = jnp.zeros(self.action_dim)
        return self.state_of(p, {}, key)

    def draw(self, key: Array, batch_size: int) -> Tree:
        return {}

    def updates(self, turn: int) -> Mapping[str, Update]:
        return {"update": self.update}

    def update(self, state: Tree, batch: Tree, noise: Tree) -> tuple[Tree, Tree]:
        """A step of policy and value on all decisions of a rollout."""
        obs, advantage = batch["observations"], batch["advantages"]
        u = jnp.arctanh(jnp.clip(batch["actions"] / self.scale, -0.9999, 0.9999))

        def loss(p: Tree) -> tuple[Array, Tree]:
            log_std = p["actor"]["log_std"]
            density = jax.scipy.stats.norm.logpdf(u, ppo_net(p["actor"], obs), jnp.exp(log_std))
            log_prob = (density - jnp.log(1 - jnp.square(jnp.tanh(u)) + 1e-6)).sum(-1)
            ratio = jnp.exp(log_prob - batch["log_prob"])
            clipped = jnp.clip(ratio, 1 - CLIP_RANGE, 1 + CLIP_RANGE)
            policy_loss = -jnp.minimum(advantage * ratio, advantage * clipped).mean()
            entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
            value_loss = 0.5 * mean_square(ppo_net(p["critic"], obs)[:, 0] - batch["returns"])
            total = policy_loss - ENTROPY_COEF * entropy + VALUE_COEF * value_loss
            return total, {"loss": total, "value_loss": value_loss}

        gradient, metrics = jax.grad(loss, has_aux=True)(state["p"])
        for name, own in gradient.items():
            state = self.step(name, state, of_norm(own, LARGEST_NORM))
        return state, metrics


def ppo(obs_dim: int, action_dim: int, sizes: Sizes, scale: Array) -> Ppo:
    layers = {
        "actor": list(ppo_layers(obs_dim, tuple(sizes["policy_hidden_dims"]), action_dim)),
        "critic": list(ppo_layers(obs_dim, tuple(sizes["value_hidden_dims"]), 1)),
    }
    return Ppo(action_dim, 1, dict.fromkeys(layers, (5e-4, 0.9)), layers, scale)


PROGRAMS: dict[str, Callable[[int, int, Sizes, Array], Program]] = {
    "dime": dime,
    "qsm_scratch": qsm,
    "flowrl": flowrl,
    "ppo": ppo,
}
