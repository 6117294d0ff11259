"""A trained policy outside the harness: a file that says what it holds, and an object that acts on NumPy arrays."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from agents.blocks.base import Agent
from agents.blocks.config import settings_of
from agents.blocks.streams import SeedStreams
from bench.runs.contract import CONFIG, POLICY, error_line, one_line, read_json

SCHEMA = "1"  # of the metadata
NUMBERS = ("obs_dim", "action_dim", "chunk_length")


class Policy:
    """Acts as the harness evaluates: chunks of actions are executed open loop, each environment's own.

    One environment after `reset(seed=s)` gets, bit by bit, the actions of the evaluation episode s (with one thread of
    torch). For a batch the network is called once for all environments that need a new chunk.
    """

    def __init__(self, agent: Agent, facts: Mapping[str, Any]):
        self.facts = dict(facts)  # what the file says of it: agent, task, obs_dim, action_dim, chunk_length, …
        self._agent = agent
        self._used = np.empty(0, np.int64)  # (n,) actions of each chunk that are spent
        self.reset(seed=0)

    def reset(self, ended: np.ndarray | None = None, *, seed: int | None = None) -> None:
        """Forgets the rest of the chunks: at the beginning of an episode.

        Args:
            ended: (n,) bool, only in these environments of the batch.
            seed: begin the noise anew, with this seed; None: go on with it.

        Raises ValueError for `ended` of another shape than the batch's.
        """
        if seed is not None:
            self._noise, self._calls = SeedStreams([seed], "cpu", "evaluation"), 0
        if ended is None:
            self._used = self._used[:0]
        elif self._used.size:
            where = np.asarray(ended, bool)  # 0 and 1 would be taken for numbers of environments
            if where.shape != self._used.shape:
                raise ValueError(f"ended has the shape {where.shape}; the batch has {self._used.size} environments")
            self._used[where] = self._agent.chunk_length

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The next action (A,) float32 in [-1, 1] for obs (O,), or (n, A) for obs (n, O) of n environments.

        Raises ValueError for obs of another shape than the policy's, or of other environments than since `reset`.
        """
        obs = np.asarray(obs, np.float32)
        if obs.ndim not in (1, 2) or obs.shape[-1] != self._agent.obs_dim:
            width = self._agent.obs_dim
            raise ValueError(f"obs have the shape {obs.shape}; this policy takes ({width},) or (n, {width})")
        batch = np.atleast_2d(obs)
        if not self._used.size:
            length = self._agent.chunk_length
            self._chunks = np.empty((len(batch), length, self._agent.chunk_dim // length), np.float32)
            self._used = np.full(len(batch), self._agent.chunk_length)
        if len(batch) != len(self._used):
            raise ValueError(f"obs of {len(batch)} environments, before of {len(self._used)}; call reset() in between")
        due = self._used == self._agent.chunk_length
        if due.any():
            noise = self._noise.at(self._calls)
            self._chunks[due] = self._agent.act(torch.from_numpy(batch[due])[None], noise, "evaluate")[0].numpy()
            self._used[due] = 0
        action = self._chunks[np.arange(len(batch)), self._used]
        self._used += 1
        self._calls += 1
        return action[0] if obs.ndim == 1 else action

    __call__ = act


def policy_bytes(name: str, agent: Agent, tensors: Mapping[str, Tensor], task: str) -> bytes:
    """A policy as safetensors with metadata from which `agents.load_policy` makes the agent again.

    Args:
        name: the agent's, in the registry.
        tensors: what its `policy_tensors` gave, of one seed (S = 1), on the CPU.
    """
    facts = {
        "schema_version": SCHEMA,
        "agent": name,
        "agent_config": json.dumps(settings_of(agent.config), sort_keys=True),
        "task": task,
        "obs_dim": str(agent.obs_dim),
        "action_dim": str(agent.chunk_dim // agent.chunk_length),
        "chunk_length": str(agent.chunk_length),
    }
    data = safetensors.torch.save(dict(tensors), facts)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(facts.items()))  # safetensors writes them in an order that changes
    ordered = json.dumps(header, separators=(",", ":")).encode()
    ordered += b" " * (-len(ordered) % 8)
    return len(ordered).to_bytes(8, "little") + ordered + data[8 + length :]


def read_policy(
    path: Path, obs_dim: int | None, action_dim: int | None
) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """The file of a policy or of a run's folder, what it says, and its tensors. Raises ValueError, OSError."""
    path = path / POLICY if path.is_dir() else path
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file ({one_line(error)})") from error
    if "agent" not in metadata:
        return path, _facts_beside(path, obs_dim, action_dim), tensors
    if metadata.get("schema_version") != SCHEMA:
        raise ValueError(f"{path} is of schema {metadata.get('schema_version')}, this checkout reads {SCHEMA}")
    try:
        facts = {**metadata, "agent_config": dict(json.loads(metadata["agent_config"]))}
        facts |= {name: int(metadata[name]) for name in NUMBERS}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its metadata cannot be read ({error_line(error)})") from error
    for name, said in (("obs_dim", obs_dim), ("action_dim", action_dim)):
        if said not in (None, facts[name]):
            raise ValueError(f"{path} says that its {name} is {facts[name]}, not {said}; leave {name} out")
    return path, facts, tensors


def _facts_beside(path: Path, obs_dim: int | None, action_dim: int | None) -> dict[str, Any]:
    """What the config of the run says, for the file of a run of an older version, which says nothing."""
    for folder in (path.parent, path.parent.parent):
        if config := read_json(folder / CONFIG):
            break
    else:
        raise ValueError(f"{path} does not say which agent it is of (an older version): put the run's {CONFIG} beside")
    if obs_dim is None or action_dim is None:
        raise ValueError(
            f"{path} does not say its dimensions (an older version): load_policy(path, obs_dim=…, action_dim=…), "
            f"those of {config['task']}"
        )
    facts = {name: config[name] for name in ("agent", "agent_config", "task")}
    return {
        **facts,
        "obs_dim": obs_dim,
        "action_dim": action_dim,
        "chunk_length": facts["agent_config"]["chunk_length"],
    }
