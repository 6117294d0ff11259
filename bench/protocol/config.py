"""RunConfig: everything that may change a run's result, as one frozen value. Config in, directory out."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import datasets
from agents import AGENTS
from agents.blocks.base import OnPolicyAgent
from agents.blocks.config import setting_types, settings_of, with_settings
from agents.blocks.kernels import Matmul
from bench.runs.contract import (
    FOLDER,
    LONGEST_NAME,
    SCHEMA_VERSION,
    VARIANT,
    ConfigError,
    RunName,
    config_hash,
    flat,
    nearest,
)
from datasets.spec import DataError

LARGEST_SEED = 2**63 - 1  # tables hold 64-bit integers
MOST_EPISODES = 100_000_000  # of an evaluation: their seeds stay below 2**31, as every simulator wants

# Fields that runs of older code do not have, and what they stand for then: such runs keep their hash.
LATER_FIELDS = {
    "gradient_norm_interval": 0,
    "variant": "",
    "warmup_actions": "policy",
    "online_batch_share": None,
    "success_rule": "last",
    "replay": "overwrite",
    "episode_seeds": "fixed",
    "matmul": "fp32",
}
# The same for fields of agents' configs, and of those nested in them, by the name of the class that has the field.
LATER_AGENT_FIELDS: dict[str, dict[str, Any]] = {
    "CriticConfig": {"pessimism": 0.5, "critic_norm": "after", "critic_activation": "gelu"},
    "DiffusionQLConfig": {"ema_interval": 1, "first_ema_update": 1},
    "IDQLConfig": {"online_policy": "trained"},
    "IQLConfig": {"policy_out_scale": 1.0},
    "SACConfig": {
        "density": "exact",
        "action_scale": 1.0,
        "update_order": "together",
        "critic_learning_rate": 0.0,
    },
    "SACFlowConfig": {"bc_target": "batch", "behaviour_flow_steps": 10},
    "FQLConfig": {"window_mask": "steps"},
    "IFQLConfig": {"window_mask": "steps", "value_mask": "window"},
    **{f"{agent}Config": {"window_mask": "steps"} for agent in ("QAM", "DSRL", "FBRAC", "FAWAC", "DAC", "QSM")},
}


@dataclass(frozen=True)
class RunSettings:
    """settings that make another run of it (they override the suite's)"""

    variant: str = ""  # name of an ablation of the agent's settings, whose runs lie beside the agent's own
    success_timing: Literal["post", "pre"] = "post"  # of success: state after or before the action (OGBench 1.1 / 1.2)
    success_rule: Literal["auto", "any", "last"] = "auto"  # solved at any step, or at the last; auto: the task's
    offline_updates: int = 1_000_000  # gradient updates on the dataset (an agent may take several optimiser steps each)
    online_steps: int = 1_000_000  # environment steps
    warmup_steps: int = 5_000  # environment steps before the first online update (on-policy agents have none)
    utd_ratio: int = 1  # gradient updates per environment step (on-policy agents have epochs instead)
    warmup_actions: Literal["policy", "random"] = "policy"  # until the first online update; random: uniform
    batch_size: int = 256
    discount: float = 0.99  # per environment step
    matmul: Matmul = "fp32"  # products of layers in updates: tf32 on a GPU, bf16; everything else is fp32
    replay_capacity: int = 2_000_000  # transitions; raised to dataset size + 1 where smaller
    online_dataset_rows: int | None = None  # keep only the last so many dataset transitions online; None: all
    replay: Literal["overwrite", "keep"] = "overwrite"  # online: the oldest make room (Q-chunking); all stay (QAM)
    online_batch_share: float | None = None  # of each online batch, from online transitions; None: uniform mixture
    eval_interval_updates: int = 100_000
    eval_interval_steps: int = 100_000
    eval_episodes: int = 50
    episode_seeds: Literal["own", "fixed"] = "own"  # of each run and evaluation; fixed: the same ones in all
    log_interval: int = 5_000  # updates and environment steps between rows of train.csv
    gradient_norm_interval: int = 10_000  # updates between norms of gradients along the policy's rollout; 0: none


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunSettings):
    """One run: one agent, one task, one seed. Raises ConfigError at construction where a value makes no sense."""

    suite: str  # first folder under results/
    task: str
    agent: str
    seed: int
    dataset: str | None  # name of a published or generated data set; None: none, the run learns from scratch
    agent_config: Any  # the frozen dataclass of the agent

    def __post_init__(self) -> None:
        for name, value in (("suite", self.suite), ("dataset", self.dataset)):
            if value is None:
                continue
            if not re.fullmatch(FOLDER, value):
                raise ConfigError(
                    f"{name} {value!r} cannot be a folder's name; use letters, digits, '-' and '_', and begin with "
                    "a letter, a digit or '_'"
                )
            check_length(name, value)
        check_length("variant", self.label)
        if not re.fullmatch(VARIANT, self.variant):
            raise ConfigError(f"variant {self.variant!r} may have letters, digits and any of _ . , = + -")
        try:
            task = datasets.task(self.task)
            object.__setattr__(self, "task", task.name)
            datasets.check_timing(task, self.success_timing)
            if self.success_rule == "auto":
                object.__setattr__(self, "success_rule", task.success_rule)
        except DataError as error:
            raise ConfigError(str(error)) from error
        check_agent(self.agent)
        config_class = type(AGENTS[self.agent][1])
        if not isinstance(self.agent_config, config_class):
            raise ConfigError(
                f"agent {self.agent} takes a {config_class.__name__}, not {type(self.agent_config).__name__}"
            )
        self._check_chunks(datasets.task(self.task).max_episode_steps)
        for name, least in (
            *(("seed", 0), ("offline_updates", 0), ("online_steps", 0), ("warmup_steps", 0)),
            *(("utd_ratio", 1), ("batch_size", 1), ("replay_capacity", 1), ("eval_episodes", 1), ("log_interval", 1)),
            *(("eval_interval_updates", 1), ("eval_interval_steps", 1), ("gradient_norm_interval", 0)),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}")
        if self.seed > LARGEST_SEED:
            raise ConfigError(f"seed is {self.seed}; it must be at most {LARGEST_SEED}")
        if self.warmup_actions not in ("policy", "random"):
            raise ConfigError(f"warmup_actions is {self.warmup_actions!r}; it must be policy or random")
        if self.success_rule not in ("any", "last"):
            raise ConfigError(f"success_rule is {self.success_rule!r}; it must be any or last")
        if self.matmul not in get_args(Matmul):
            raise ConfigError(f"matmul is {self.matmul!r}; it must be one of {', '.join(get_args(Matmul))}")
        if self.episode_seeds not in ("own", "fixed"):
            raise ConfigError(f"episode_seeds is {self.episode_seeds!r}; it must be own or fixed")
        if self.eval_episodes > MOST_EPISODES:
            raise ConfigError(f"eval_episodes is {self.eval_episodes}; it must be at most {MOST_EPISODES}")
        if self.replay not in ("overwrite", "keep"):
            raise ConfigError(f"replay is {self.replay!r}; it must be overwrite or keep")
        if self.replay == "keep" and self.replay_capacity != RunSettings.replay_capacity:
            raise ConfigError(
                f"replay_capacity is {self.replay_capacity}; replay keep has room for all transitions, so leave it at "
                f"{RunSettings.replay_capacity}"
            )
        share = self.online_batch_share
        if share is not None and not 0.0 <= share <= 1.0:
            raise ConfigError(f"online_batch_share is {share!r}; it must lie in [0, 1], or be none")
        if share and self.online_steps and self.warmup_steps < self.agent_config.chunk_length:
            raise ConfigError(
                f"warmup_steps is {self.warmup_steps}; with an online_batch_share it must be at least one chunk, "
                f"{self.agent_config.chunk_length}"
            )
        if self.rollout_steps is not None:
            if share is not None or self.warmup_actions != "policy" or self.replay != "overwrite":
                raise ConfigError(
                    f"{self.agent} is on-policy: it has neither online_batch_share, random warmup_actions nor a replay"
                )
            decisions = self.agent_config.rollout_decisions
            found = f"{self.agent}: rollout_decisions is {decisions}; it must be"
            if decisions % self.num_envs:
                raise ConfigError(f"{found} a multiple of num_envs, {self.num_envs}")
            least = 2 * self.num_envs  # so that each holds a whole decision
            if decisions < least:
                raise ConfigError(f"{found} at least two in each environment, {least}")
        if not 0.0 <= self.discount <= 1.0:
            raise ConfigError(f"discount is {self.discount!r}; it must lie in [0, 1]")
        if self.dataset is None:
            self._check_from_scratch()
        if self.offline_updates + self.online_steps == 0:
            raise ConfigError("offline_updates and online_steps are both 0: nothing to run")

    def _check_chunks(self, longest_episode: int) -> None:
        length, rows = self.agent_config.chunk_length, self.online_dataset_rows
        if length > longest_episode:
            raise ConfigError(
                f"chunk_length is {length}; an episode of {self.task} has at most {longest_episode} steps, so a chunk "
                "must be no longer"
            )
        if rows is not None and rows < length:
            raise ConfigError(f"online_dataset_rows is {rows}; it must be at least one chunk, {length}, or be none")

    def _check_from_scratch(self) -> None:
        """ConfigError for what needs data, in a run that has none."""
        no_data = f"{self.task} has no data here, so {self.agent} can only learn from scratch"
        mend = "or name data with --dataset or --data FILE"
        if self.offline_updates:
            raise ConfigError(f"offline_updates is {self.offline_updates}; {no_data}: it must be 0, {mend}")
        if self.online_batch_share not in (None, 1.0):
            raise ConfigError(f"online_batch_share is {self.online_batch_share}; {no_data}: it must be 1, {mend}")
        if self.online_dataset_rows is not None:
            raise ConfigError(f"online_dataset_rows is {self.online_dataset_rows}; {no_data}: it must be none, {mend}")
        if self.rollout_steps is None and self.warmup_steps < self.agent_config.chunk_length:
            raise ConfigError(
                f"warmup_steps is {self.warmup_steps}; {no_data}, after at least one chunk, "
                f"{self.agent_config.chunk_length}"
            )

    @property
    def data(self) -> str | None:
        """The data set that updates draw from: those of an offline phase do, and online ones that mix it in.

        None where no update would, also of a run whose `dataset` names its task's, as runs always have.
        """
        is_sampled = self.offline_updates > 0 or (self.rollout_steps is None and self.online_batch_share != 1.0)
        return self.dataset if is_sampled else None

    @property
    def rollout_steps(self) -> int | None:
        """Environment steps that an on-policy agent collects between updates; None for any other agent."""
        if not issubclass(AGENTS[self.agent][0], OnPolicyAgent):
            return None
        return self.agent_config.rollout_decisions * self.agent_config.chunk_length

    @property
    def online_batch_size(self) -> int:
        """Rows of an online update: transitions, or decisions of an on-policy agent."""
        return self.batch_size if self.rollout_steps is None else self.agent_config.batch_decisions

    @property
    def num_envs(self) -> int:
        """Training environments of each seed, which are stepped in turn."""
        return self.agent_config.num_envs if self.rollout_steps is not None else 1

    @property
    def name(self) -> RunName:
        return RunName(self.suite, self.task, self.agent, self.variant, self.seed)

    @property
    def label(self) -> str:
        """The agent and its variant, as in folders, tables and figures."""
        return self.name.label

    def directory(self, results: Path) -> Path:
        return self.name.directory(results)

    def replace(self, **changes: Any) -> "RunConfig":
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """What config.json holds: all fields, the schema version and the hash of both.

        The agent's settings are one flat object, those of nested configs among them under their own names.
        """
        names = [field.name for field in dataclasses.fields(self)]
        names.sort(key=lambda name: hasattr(RunSettings, name))  # what is run, then its settings
        values = {name: getattr(self, name) for name in names}
        values["agent_config"] = settings_of(self.agent_config)
        fields = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **values}))
        for holder, later in ((fields, LATER_FIELDS), (fields["agent_config"], _later_settings(self.agent_config))):
            for name, absent in later.items():
                if holder[name] == absent:
                    del holder[name]
        return {**fields, "config_hash": config_hash(fields)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunConfig":
        """The inverse of `to_json`; ConfigError where the file is of another schema or was edited."""
        fields = {**LATER_FIELDS, **data}
        written_hash = fields.pop("config_hash", None)
        version = fields.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise ConfigError(f"config of schema {version}, this checkout writes {SCHEMA_VERSION}")
        if fields.get("agent") not in AGENTS:
            raise ConfigError(
                f"config names the unknown agent {fields.get('agent')!r}; one of yours comes with --plugin MODULE"
            )
        try:
            settings = {name: str_value(value) for name, value in fields.pop("agent_config").items()}
            later = _later_settings(AGENTS[fields["agent"]][1])
            agent_config = default_agent_config(fields["agent"], {**later, **settings})
            config = cls(**fields, agent_config=agent_config)
        except (TypeError, KeyError) as error:
            raise ConfigError(f"config does not fit this checkout: {error}") from error
        if config.to_json()["config_hash"] != written_hash:
            raise ConfigError("config.json does not match its own hash: it was edited by hand")
        return config


def _later_settings(config: Any) -> dict[str, Any]:
    """LATER_AGENT_FIELDS of the config and of those nested in it, by flat name."""
    later = dict(LATER_AGENT_FIELDS.get(type(config).__name__, {}))
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            later |= _later_settings(value)
    return later


def check_length(name: str, value: str) -> None:
    """ConfigError for what is too long to be a folder's name."""
    length = len(value.encode())
    if length > LONGEST_NAME:
        raise ConfigError(f"{name} {value[:24]!r}… has {length} bytes; a folder's name may have {LONGEST_NAME} here")


def check_agent(name: str) -> None:
    """Raises ConfigError for a name that is not in the registry."""
    if name not in AGENTS:
        raise ConfigError(f"unknown agent {name!r}{nearest(name, AGENTS)}; agents: {', '.join(AGENTS)}")


def default_agent_config(agent: str, overrides: Mapping[str, str | Any] = {}, base: Any = None) -> Any:
    """The agent's config, or `base`, with settings replaced by flat name.

    Values may be text as typed on a command line. Raises ConfigError for a name or value that does not fit the agent.
    """
    check_agent(agent)
    base = AGENTS[agent][1] if base is None else base
    types = setting_types(type(base))
    changes = {}
    for name, value in overrides.items():
        if name not in types:
            raise ConfigError(f"{agent} has no option {name!r}{nearest(name, types)}; options: {', '.join(types)}")
        changes[name] = parse_value(types[name], value, name) if isinstance(value, str) else value
    try:
        return with_settings(base, **changes)
    except ValueError as error:
        raise ConfigError(f"{agent}: {error}") from error


def str_value(value: Any) -> Any:
    """JSON has no tuples: a list from a file becomes the tuple that the config holds."""
    return tuple(value) if isinstance(value, list) else value


def parse_value(kind: Any, text: str, name: str) -> Any:
    """Text to a config field's type: int, float, bool, str, Literal, tuple[int, ...], or one of these or None."""
    options = [option for option in get_args(kind) if option is not type(None)]
    if get_origin(kind) is Literal:
        for option in options:
            if text == str(option):
                return option
        raise ConfigError(
            f"{name} is {text!r}; it must be one of {', '.join(map(str, options))}{nearest(text, map(str, options))}"
        )
    if get_origin(kind) is tuple:
        return tuple(parse_value(int, part, name) for part in text.replace(" ", ",").split(",") if part)
    if options:  # X | None
        return None if text.lower() == "none" else parse_value(options[0], text, name)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{name} is {text!r}; it must be true or false")
        return text.lower() == "true"
    try:
        value = kind(text.replace("_", "")) if kind in (int, float) else kind(text)
        if isinstance(value, float) and math.isnan(value):
            raise ValueError("not a number")
        return value
    except ValueError as error:
        raise ConfigError(f"{name} is {text!r}; it must be of type {kind.__name__}") from error


def config_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Names the fields in which two `to_json` values differ, for messages."""
    flat_ours, flat_theirs = flat(ours), flat(theirs)
    names = [k for k in {**flat_ours, **flat_theirs} if flat_ours.get(k) != flat_theirs.get(k) and k != "config_hash"]
    value = {name: LATER_FIELDS.get(name, "absent") for name in names}  # where a config does not name it
    first = [
        f"{name} {flat_theirs.get(name, value[name])} there, {flat_ours.get(name, value[name])} here"
        for name in names[:4]
    ]
    return "; ".join(first) + (f"; also {', '.join(names[4:])}" if len(names) > 4 else "")
