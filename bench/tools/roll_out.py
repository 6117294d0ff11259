"""Rolls the final policy of a complete run out into a flat data file, for data of a known quality on any task."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import safetensors
import safetensors.torch

from agents.blocks.base import Agent
from agents.blocks.streams import SeedStreams, stream_key
from bench.protocol.config import ConfigError, RunConfig
from bench.runs.contract import CONFIG, POLICY, STATUS, StorageError, one_line, read_json, replacing
from bench.training.evaluate import prepare_worker, run_episode
from bench.training.policies import build_agent, load_policy, policy_state
from bench.training.workers import Requests, Template, with_answers
from datasets.cache import cache_root
from datasets.flat_files.reading import recipe_of
from datasets.flat_files.writing import Step, episode_arrays, write

RECIPE_VERSION = 1  # raise it when a change to this module changes the data


def roll_out(
    directory: Path,
    episodes: int,
    out: Path | None = None,
    noise: float = 0.0,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda finished, total: None,
) -> Path:
    """Writes `episodes` episodes of the policy of the run in `directory` as an HDF5 file in D4RL's layout.

    An episode's reset seed, and its noise, follow from `seed` and its number alone: never an evaluation's or a training
    episode's, and whatever the number of `workers`. Returns at once where the very file is there already.

    Args:
        out: the file; by default one in the cache.
        noise: standard deviation of Gaussian noise on every action, which is then clipped to [-1, 1].
        progress: called with finished and all episodes.

    Raises ConfigError for a run without a final policy or an `out` that holds other things, StorageError where the file
    cannot be written.
    """
    if episodes < 1 or workers < 1 or seed < 0 or not 0.0 <= noise < float("inf"):
        raise ConfigError("episodes and workers must be at least 1, seed and noise at least 0")
    config, policy = finished_run(directory)
    recipe = {
        "version": RECIPE_VERSION,
        "task": config.task,
        "agent": config.agent,
        "run_seed": config.seed,
        "config_hash": config.to_json()["config_hash"],
        "policy": hashlib.sha256(policy).hexdigest()[:16],
        "episodes": episodes,
        "seed": seed,
        "noise": noise,
    }
    if out is None:
        run = f"{config.task}-{config.label}-{recipe['policy'][:8]}"
        out = cache_root() / "recorded" / f"{run}-{episodes}ep-noise{noise:g}-seed{seed}.hdf5"
    if out.suffix not in (".hdf5", ".h5"):
        raise ConfigError(f"{out} must be named as an HDF5 file: {out.stem or 'data'}.hdf5")
    if out.exists():
        if recipe_of(out) == recipe:
            return out
        raise ConfigError(f"{out} is there already and holds other data; name another file or delete it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as folder:
            parts = [Path(folder) / f"episode-{index:06}.npz" for index in range(episodes)]
            _roll_out_parts(config, policy, parts, noise, seed, min(workers, episodes), progress)
            with replacing(out) as partial:
                write(parts, partial, recipe)
    except OSError as error:
        raise StorageError(f"cannot write {out}: {one_line(error)}") from error
    return out


class Recorder(gymnasium.Wrapper):
    """Keeps the steps of the newest episode, and adds noise to their actions."""

    def __init__(self, env: gymnasium.Env, noise: float, noise_seed: int):
        super().__init__(env)
        self._noise, self._rng = noise, np.random.default_rng(noise_seed)
        self.steps: list[Step] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self._obs, info = self.env.reset(seed=seed, options=options)
        self.steps = []
        return self._obs, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self._noise:
            action = action + self._noise * self._rng.standard_normal(len(action))
        action = np.clip(action, -1.0, 1.0).astype(np.float32)
        next_obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps.append(Step(self._obs, action, float(reward), terminated, truncated, next_obs))
        self._obs = next_obs
        return next_obs, float(reward), terminated, truncated, info


def roll_out_episode(env: gymnasium.Env, agent: Agent, noise: float, seed: int, index: int) -> dict[str, np.ndarray]:
    """Episode `index` under D4RL's keys, played as evaluations play theirs."""
    recorder = Recorder(env, noise, stream_key("recorded noise", seed, index))
    run_episode(recorder, agent, episode_seed=stream_key("recorded episode", seed, index) % 2**31)
    return episode_arrays(recorder.steps)


def serve_rollouts(
    prepared: tuple[gymnasium.Env, Agent], requests: Requests, send, policy: bytes, noise: float, seed: int
) -> None:
    """A worker: (episode number, file) in, the number out once the file is written."""
    env, agent = prepared
    load_policy(agent, policy)
    while True:
        index, file = requests.get()
        arrays: dict[str, Any] = roll_out_episode(env, agent, noise, seed, index)
        with open(file, "wb") as handle:
            np.savez(handle, **arrays)
        send(index)


def finished_run(directory: Path) -> tuple[RunConfig, bytes]:
    """Config and policy of a complete run; ConfigError where it is none or its policy does not fit its config."""
    saved, status = read_json(directory / CONFIG), read_json(directory / STATUS)
    if saved is None:
        raise ConfigError(f"{directory} is no run: it holds no config.json")
    config = RunConfig.from_json(saved)
    state = (status or {}).get("state", "not begun")
    if state != "complete":
        raise ConfigError(f"the run in {directory} is {state}; its policy is written when it is complete")
    try:
        policy = (directory / POLICY).read_bytes()
        shapes = {name: value.shape for name, value in safetensors.torch.load(policy).items()}
    except FileNotFoundError as error:
        raise ConfigError(f"the run in {directory} holds no {POLICY}") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{directory / POLICY} cannot be read ({one_line(error)})") from error
    agent = build_agent(config, SeedStreams([0], "cpu", "init"))
    if shapes != {name: value.shape for name, value in policy_state(agent, 0).items()}:
        raise ConfigError(f"{directory / POLICY} holds other networks than this checkout's {config.agent}")
    return config, policy


def _roll_out_parts(
    config: RunConfig,
    policy: bytes,
    parts: list[Path],
    noise: float,
    seed: int,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    template = Template(prepare_worker, config)
    try:
        waiting = list(enumerate(map(os.fspath, parts)))[::-1]
        all_workers = [
            template.fork(f"rollout worker {number}", serve_rollouts, policy, noise, seed) for number in range(workers)
        ]
        for worker in all_workers:
            worker.send(waiting.pop())
        finished = 0
        progress(finished, len(parts))
        while finished < len(parts):
            for worker in with_answers(all_workers, timeout=1.0):
                worker.receive()
                finished += 1
                if waiting:
                    worker.send(waiting.pop())
            progress(finished, len(parts))
    finally:
        template.close()
