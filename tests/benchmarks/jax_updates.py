"""The gradient updates of the official code written in JAX: what the speed of `agents` is compared with.

JAX is optional and no dependency: this module runs wherever `jax` is installed, also in an environment without torch,
and imports nothing of this project. It computes what the official code computes, at its cost: one gradient of the sum
of all losses with respect to all networks (target critics too, where it is 0), its statistics, one Adam over all of
them, the target average; the critics are one network under `vmap`, SAC Flow-T has its whole attention. Two things
differ: SAC Flow-G's step noise is fresh, and the temperature, a scalar, is in that one Adam instead of its own.

    python -m tests.benchmarks.jax_updates --agent qc_fql sac_flow_t --phase online --turns 20 --threads 1

prints milliseconds per iteration. With `--serve` (one agent, one phase) the process waits for work, so that a
benchmark in another process can take turns with it. When compiled it prints a JSON line that describes it. From then
on it reads lines: `run N` makes N iterations and prints {"seconds": wall clock, "cpu_seconds": of all threads},
`metrics` prints those of the last update as JSON; the end of its input ends it.

XLA's pool has PJRT_NPROC threads, or one for each processor that the process may use, when the first array is made.
`--threads` sets the one, `--cpus` the other. Flags often named for it do not (jax 0.10): to the pool
--xla_cpu_multi_thread_eigen=false and intra_op_parallelism_threads=1 make no difference.

Programs that train from scratch are in `jax_scratch` and `jax_compared`; `--check tests/parity` holds them against
official numbers.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

from tests.benchmarks import jax_networks, jax_scratch
from tests.benchmarks.jax_networks import (
    Array,
    Create,
    Tree,
    Velocity,
    critic,
    critic_parameters,
    decoded_parameters,
    decoded_velocity,
    gated_parameters,
    gated_velocity,
    one_step_parameters,
    one_step_policy,
    plain_parameters,
    plain_velocity,
)

Loss = Callable[[Tree, Tree, Tree, Tree], tuple[Array, Tree]]

BC_COEF, LEARNING_RATE, TARGET_UPDATE_RATE, DISCOUNT = 100.0, 3e-4, 0.005, 0.99
ODE_STEPS = 10  # FQL's flow and naive SAC Flow
SDE_STEPS = 4  # SAC Flow
POLICY_NOISE_STD, TARGET_NOISE_STD, INITIAL_ENTROPY_COEF = 0.05, 0.02, 0.2
TWO_UPDATES = ("matching", "policy")  # of an offline iteration of SAC Flow


# Losses of one update: (p, fixed, batch, noise) -> (total, metrics). `p` is differentiated, `fixed` is p as constants.


def integrate(velocity: Velocity, p: Tree, obs: Array, x: Array) -> Array:
    for i in range(ODE_STEPS):
        x = x + velocity(p, obs, jnp.full((1, 1), i / ODE_STEPS), x) / ODE_STEPS
    return x


def noisy_policy(
    velocity: Velocity, p: Tree, obs: Array, x: Array, step_noise: Array, std: float
) -> tuple[Array, Array]:
    """Action chunk (B, D) of a rollout with noise (K, B, D) at its steps, and log density (B,) of the noise path."""
    log_prob = jax.scipy.stats.norm.logpdf(x).sum(-1)
    for i, epsilon in enumerate(step_noise):
        mean = x + velocity(p, obs, jnp.full((1, 1), i / len(step_noise)), x) / len(step_noise)
        x = mean + std * epsilon
        log_prob += jax.scipy.stats.norm.logpdf(x, mean, std).sum(-1)
    action_chunk = jnp.tanh(x)
    return action_chunk, log_prob - jnp.log(1 - jnp.square(action_chunk) + 1e-6).sum(-1)


def matching_loss(velocity: Velocity, p: Tree, batch: Tree, noise: Tree) -> Array:
    x_0, x_1, t = noise["matching_noise"], batch["action_chunk"], noise["matching_t"]
    error = velocity(p, batch["obs"], t, (1 - t) * x_0 + t * x_1) - (x_1 - x_0)
    return (batch["valid"][..., None] * jnp.square(error).reshape(*batch["valid"].shape, -1)).mean()  # (B, H, A)


def critic_loss(p: Tree, fixed: Tree, batch: Tree, next_chunk: Array, bonus: Array | float = 0.0) -> tuple[Array, Tree]:
    next_value = critic(fixed["target_critic"], batch["next_obs"], next_chunk).mean(0) + bonus
    target = batch["chunk_return"] + batch["bootstrap"] * next_value
    q = critic(p["critic"], batch["obs"], batch["action_chunk"])
    loss = (batch["valid"][:, -1] * jnp.square(q - target)).mean()
    return loss, {"critic_loss": loss, "q_mean": q.mean(), "q_min": q.min(), "q_max": q.max()}


def fql_loss(bc_coef: float, p: Tree, fixed: Tree, batch: Tree, noise: Tree) -> tuple[Array, Tree]:
    """FQL and QC-FQL: critic, matching of the flow, distance of the one-step policy to its endpoint, -Q."""
    obs, x_0 = batch["obs"], noise["policy_noise"]
    next_chunk = one_step_policy(fixed["one_step_policy"], batch["next_obs"], noise["next_noise"]).clip(-1, 1)
    total, metrics = critic_loss(p, fixed, batch, next_chunk)
    flow_loss = matching_loss(plain_velocity, p["behaviour_velocity"], batch, noise)
    flow_action = integrate(plain_velocity, fixed["behaviour_velocity"], obs, x_0).clip(-1, 1)
    action_chunk = one_step_policy(p["one_step_policy"], obs, x_0)
    distill_loss = jnp.square(action_chunk - flow_action).mean()
    q_loss = -critic(fixed["critic"], obs, action_chunk.clip(-1, 1)).mean()
    loss = flow_loss + bc_coef * distill_loss + q_loss
    metrics |= {"policy_loss": loss, "matching_loss": flow_loss, "distill_loss": distill_loss, "q_loss": q_loss}
    return total + loss, metrics


def naive_loss(matching: bool, p: Tree, fixed: Tree, batch: Tree, noise: Tree) -> tuple[Array, Tree]:
    """Naive SAC Flow: critic, distance to the behaviour flow (which is matched) or to the batch, -Q."""
    velocity, obs, x_0 = plain_velocity, batch["obs"], noise["policy_noise"]
    next_chunk = jnp.tanh(integrate(velocity, fixed["policy_velocity"], batch["next_obs"], noise["next_noise"]))
    total, metrics = critic_loss(p, fixed, batch, next_chunk)
    action_chunk = jnp.tanh(integrate(velocity, p["policy_velocity"], obs, x_0))
    flow_loss, goal = jnp.zeros(()), batch["action_chunk"]
    if matching:
        flow_loss = matching_loss(velocity, p["behaviour_velocity"], batch, noise)
        goal = integrate(velocity, fixed["behaviour_velocity"], obs, x_0).clip(-1, 1)
    bc_loss = jnp.square(action_chunk - goal).mean()
    q_loss = -critic(fixed["critic"], obs, action_chunk).mean()
    loss = flow_loss + BC_COEF * bc_loss + q_loss
    metrics |= {"policy_loss": loss, "matching_loss": flow_loss, "bc_loss": bc_loss, "q_loss": q_loss}
    return total + loss, metrics


def sac_flow_loss(
    velocity: Velocity, matching: bool, p: Tree, fixed: Tree, batch: Tree, noise: Tree
) -> tuple[Array, Tree]:
    """SAC Flow: critic, temperature, and either matching of the flow or -Q, entropy and distance to the batch."""
    rollout, entropy_coef = partial(noisy_policy, velocity), jnp.exp(fixed["log_entropy_coef"])
    next_draw = (noise["next_noise"], noise["next_step_noise"])
    next_chunk, next_log_prob = rollout(fixed["velocity_field"], batch["next_obs"], *next_draw, TARGET_NOISE_STD)
    total, metrics = critic_loss(p, fixed, batch, next_chunk, -entropy_coef * next_log_prob)
    if matching:
        loss, entropy = matching_loss(velocity, p["velocity_field"], batch, noise), jnp.zeros(())
        metrics |= {"matching_loss": loss}
    else:
        draw = (noise["policy_noise"], noise["policy_step_noise"])
        action_chunk, log_prob = rollout(p["velocity_field"], batch["obs"], *draw, POLICY_NOISE_STD)
        bc_loss = jnp.square(action_chunk - batch["action_chunk"]).mean()
        q = critic(fixed["critic"], batch["obs"], action_chunk).mean(0)
        q_loss, entropy = (entropy_coef * log_prob - q).mean(), jax.lax.stop_gradient(-log_prob.mean())
        loss = BC_COEF * bc_loss + q_loss
        metrics |= {"bc_loss": bc_loss, "q_loss": q_loss}
    # The released rule: target entropy 0, and the sign of the entropy inverted.
    temperature_loss = -jnp.exp(p["log_entropy_coef"]) * entropy
    return total + loss + temperature_loss, metrics | {"policy_loss": loss, "entropy": entropy}


# Updates.


@dataclass(frozen=True)
class JaxAgent:
    """Networks of one agent and the loss of each kind of update."""

    networks: Mapping[str, Create]
    losses: Mapping[str, Loss]
    chunk_length: int = 5

    def initial_state(self, key: Array, obs_dim: int, chunk_dim: int) -> Tree:
        key, critic_key, *keys = jax.random.split(key, 2 + len(self.networks))
        p = {name: self.networks[name](k, obs_dim, chunk_dim) for name, k in zip(self.networks, keys, strict=True)}
        p["critic"] = critic_parameters(critic_key, obs_dim, chunk_dim)
        p["target_critic"] = jax.tree.map(jnp.copy, p["critic"])
        first, second = jax.tree.map(jnp.zeros_like, p), jax.tree.map(jnp.zeros_like, p)
        return {"key": key, "parameters": p, "count": jnp.zeros(()), "first": first, "second": second}

    def update(self, kind: str, state: Tree, batch: Tree, noise: Tree) -> tuple[Tree, Tree]:
        """State after one update with the given random arrays, and its metrics."""
        p = state["parameters"]
        gradient, metrics = jax.grad(self.losses[kind], has_aux=True)(p, p, batch, noise)
        leaves = jax.tree.leaves({name: g for name, g in gradient.items() if name != "log_entropy_coef"})
        metrics["gradient_max"] = jnp.stack([leaf.max() for leaf in leaves]).max()
        metrics["gradient_min"] = jnp.stack([leaf.min() for leaf in leaves]).min()
        metrics["gradient_norm"] = jnp.stack([jnp.sqrt(jnp.square(leaf).sum()) for leaf in leaves]).sum()

        count = state["count"] + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["first"], gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * jnp.square(g), state["second"], gradient)

        def adam(p: Array, m: Array, v: Array) -> Array:
            return p - LEARNING_RATE * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)

        def polyak(online: Array, target: Array) -> Array:
            return TARGET_UPDATE_RATE * online + (1 - TARGET_UPDATE_RATE) * target

        new = jax.tree.map(adam, p, first, second)
        # As in the official code, towards the critic from before this step.
        new["target_critic"] = jax.tree.map(polyak, p["critic"], p["target_critic"])
        return state | {"parameters": new, "count": count, "first": first, "second": second}, metrics

    def step(self, kind: str, state: Tree, batch: Tree) -> tuple[Tree, Tree]:
        """`update` with fresh random arrays."""
        chunk_shape = batch["action_chunk"].shape
        shapes = {name: chunk_shape for name in ("next_noise", "matching_noise", "policy_noise")}
        shapes |= {name: (SDE_STEPS, *chunk_shape) for name in ("next_step_noise", "policy_step_noise")}
        key, t_key, *keys = jax.random.split(state["key"], 2 + len(shapes))
        # XLA leaves out those that this update does not use.
        noise = {name: jax.random.normal(k, shapes[name]) for name, k in zip(shapes, keys, strict=True)}
        noise["matching_t"] = jax.random.uniform(t_key, (len(batch["obs"]), 1))
        return self.update(kind, state | {"key": key}, batch, noise)


def fql(chunk_length: int, bc_coef: float) -> JaxAgent:
    networks = {"behaviour_velocity": plain_parameters, "one_step_policy": one_step_parameters}
    return JaxAgent(networks, {"policy": partial(fql_loss, bc_coef)}, chunk_length)


def sac_flow(parameters: Create, velocity: Velocity) -> JaxAgent:
    networks = {"velocity_field": parameters, "log_entropy_coef": lambda *_: jnp.log(INITIAL_ENTROPY_COEF)}
    return JaxAgent(networks, {kind: partial(sac_flow_loss, velocity, kind == "matching") for kind in TWO_UPDATES})


NAIVE_NETWORKS = {"behaviour_velocity": plain_parameters, "policy_velocity": plain_parameters}
AGENTS = {
    "fql": fql(1, 300.0),
    "qc_fql": fql(5, BC_COEF),
    "sac_flow_g": sac_flow(gated_parameters, gated_velocity),
    "sac_flow_t": sac_flow(decoded_parameters, decoded_velocity),
    "flow_mlp": sac_flow(plain_parameters, plain_velocity),
    "naive_sac_flow": JaxAgent(NAIVE_NETWORKS, {k: partial(naive_loss, k == "matching") for k in TWO_UPDATES}),
}


class JaxUpdates:
    """Updates of one agent on one random batch; of `num_seeds` at once, under vmap and with a batch each, if not 1.

    An `online` or `offline` iteration returns when it has been computed. `update` makes one update of a kind alone:
    an offline iteration of SAC Flow is a "matching" and a "policy" update, every other iteration a "policy" update.
    """

    def __init__(self, agent: JaxAgent, obs_dim: int, action_dim: int, batch_size: int, seed: int, num_seeds: int):
        self.agent = agent
        self.kinds = {"online": ["policy"], "offline": list(agent.losses)}
        self.metrics: Tree = {}  # of the last update, arrays
        self._mapped = jax.vmap if num_seeds > 1 else lambda function: function
        self._executables: dict[str, Any] = {}

        def start(key: Array) -> tuple[Tree, Tree]:
            dims, (state_key, *keys) = (obs_dim, agent.chunk_length * action_dim), jax.random.split(key, 5)
            batch = {
                "obs": jax.random.normal(keys[0], (batch_size, obs_dim)),
                "next_obs": jax.random.normal(keys[1], (batch_size, obs_dim)),
                "action_chunk": jax.random.uniform(keys[2], (batch_size, dims[1]), minval=-1, maxval=1),
                "chunk_return": -2 * jax.random.uniform(keys[3], (batch_size,)),
                "bootstrap": jnp.full(batch_size, DISCOUNT**agent.chunk_length),
                "valid": jnp.ones((batch_size, agent.chunk_length)),
            }
            return agent.initial_state(state_key, *dims), batch

        key = jax.random.key(seed)
        start_all = jax.jit(self._mapped(start))
        self.state, self.batch = start_all(jax.random.split(key, num_seeds) if num_seeds > 1 else key)

    def online(self) -> None:
        self.iterate("online")

    def offline(self) -> None:
        self.iterate("offline")

    def iterate(self, phase: str) -> None:
        for kind in self.kinds[phase]:
            self.update(kind)

    def update(self, kind: str) -> None:
        self.state, self.metrics = jax.block_until_ready(self.executable(kind)(self.state, self.batch))

    def executable(self, kind: str) -> Any:
        """Compiled update (state, batch) -> (state, metrics); it overwrites the state that it is given."""
        if kind not in self._executables:
            step = jax.jit(self._mapped(partial(self.agent.step, kind)), donate_argnums=0)
            self._executables[kind] = step.lower(self.state, self.batch).compile()
        return self._executables[kind]

    def gflop(self, phase: str) -> float:
        """Floating-point operations of an iteration by XLA's count, in 1e9."""
        return sum(self.executable(kind).cost_analysis()["flops"] for kind in self.kinds[phase]) / 1e9

    def float_metrics(self) -> dict[str, float]:
        """Metrics of the last update, averaged over seeds."""
        return {name: float(value.mean()) for name, value in self.metrics.items()}


def make(
    agent_name: str, obs_dim: int = 37, action_dim: int = 5, batch_size: int = 256, seed: int = 0, num_seeds: int = 1
) -> JaxUpdates:
    """Updates of an agent of AGENTS."""
    return JaxUpdates(AGENTS[agent_name], obs_dim, action_dim, batch_size, seed, num_seeds)


Updates = JaxUpdates | jax_scratch.ScratchUpdates


def timed(updates: Updates, phase: str, iterations: int) -> dict[str, float]:
    """Wall-clock and CPU seconds, of all threads of this process, of some iterations."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(iterations):
        updates.iterate(phase)
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def serve(updates: Updates, phase: str) -> None:
    """The line protocol of the module's docstring."""
    started = time.perf_counter()
    updates.iterate(phase)
    described = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "gflop": updates.gflop(phase)}
    print(json.dumps(described | {"compile_seconds": time.perf_counter() - started}), flush=True)
    for line in sys.stdin:
        match line.split():
            case ["run", count] if count.isdecimal():
                answer = timed(updates, phase, int(count))
            case ["metrics"]:
                answer = updates.float_metrics()
            case _:
                raise SystemExit(f"unknown request {line.strip()!r}: must be `run N` or `metrics`")
        print(json.dumps(answer), flush=True)


def print_times(all_updates: Mapping[tuple[str, str], Updates], turns: int) -> None:
    """Agents and phases take turns; the first turn compiles and does not count."""
    times: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in all_updates}
    for turn in range(turns + 1):
        for (agent, phase), updates in all_updates.items():
            seconds = timed(updates, phase, 1)
            if turn:
                times[agent, phase].append(seconds)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.environ['PJRT_NPROC']} threads")
    print(f"{'':<24}{'ms':>9}{'quartiles':>18}{'CPU ms':>9}{'GFLOP':>8}")
    for (agent, phase), values in times.items():
        low, median, high = (1e3 * q for q in statistics.quantiles([v["seconds"] for v in values], method="inclusive"))
        cpu = 1e3 * statistics.median(v["cpu_seconds"] for v in values)
        gflop = all_updates[agent, phase].gflop(phase)
        print(f"{agent + ' ' + phase:<24}{median:9.1f}{low:9.1f}{high:9.1f}{cpu:9.1f}{gflop:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the official code's updates written in JAX.")
    parser.add_argument("--agent", nargs="+", choices=(*AGENTS, *jax_scratch.AGENTS), default=list(AGENTS))
    parser.add_argument("--phase", nargs="+", choices=("online", "offline"), default=["online", "offline"])
    parser.add_argument("--turns", type=int, default=20, help="iterations of each agent and phase that count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpus", type=int, nargs="+", help="processors to stay on (default: any)")
    parser.add_argument("--num-seeds", type=int, default=1)
    parser.add_argument("--obs-dim", type=int, default=37)
    parser.add_argument("--action-dim", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--sizes", type=json.loads, help="JSON: settings of our agent")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="only print distances from official numbers")
    parser.add_argument("--serve", action="store_true", help="wait for requests on stdin")
    args = parser.parse_args()
    if args.check:
        for agent, far in jax_scratch.check(args.check).items():
            print(f"{agent:<24}{far:9.1e}")
        return
    if args.turns < 2:
        parser.error("--turns must be at least 2: the table shows quartiles")
    os.environ["PJRT_NPROC"] = str(args.threads)
    if args.cpus:
        os.sched_setaffinity(0, args.cpus)
    dims = (args.obs_dim, args.action_dim, args.batch_size)
    if args.sizes and any(name in AGENTS for name in args.agent):
        jax_networks.take_widths(args.sizes)
    agents: dict[str, Updates] = {
        name: jax_scratch.ScratchUpdates(name, *dims, args.sizes)
        if name in jax_scratch.AGENTS
        else make(name, *dims, num_seeds=args.num_seeds)
        for name in args.agent
    }
    if not args.serve:
        print_times({(name, phase): agents[name] for name in agents for phase in args.phase}, args.turns)
    elif len(args.agent) == len(args.phase) == 1:
        serve(agents[args.agent[0]], args.phase[0])
    else:
        parser.error("--serve takes one --agent and one --phase")


if __name__ == "__main__":
    main()
