"""Settings per agent and task domain, each with where it comes from. Everything else is the agent's default.

`bc_coef` is the weight of the behaviour regulariser (alpha of FQL and QC-FQL, beta of SAC Flow) in the offline phase,
`bc_coef_online` the one in the online phase, for the agents that tell the two apart. What the releases publish for our
tasks is in `published_settings.csv`, by file and place, with reasons where it is not followed or where there is none.
"""

from typing import Any

from agents import AGENTS
from agents.blocks.config import settings_of, with_settings
from datasets.registry import TASKS

Settings = dict[str, Any]

# How an agent's runs differ from everyone's: RLPD (arXiv 2302.02948) and SAC have no offline phase, act at random until
# their first update, and keep online transitions apart, half of each batch or all of it. IDQL's fine-tuning
# (github.com/philippe-eecs/IDQL, 7582571) has half of each batch from the replay, too.
FROM_SCRATCH: Settings = {"offline_updates": 0, "warmup_actions": "random", "replay_capacity": 1_000_000}
# Agents that no release trains on data; PPO, which is on-policy, beside them.
SCRATCH_FLOWS = ("sac_flow_t_scratch", "sac_flow_g_scratch", "naive_flow_scratch", "flow_mlp_scratch")
WITHOUT_DATA = (*SCRATCH_FLOWS, "crossq", "flowrl", "dime", "qsm_scratch")
RUN_SETTINGS: dict[str, Settings] = {
    "rlpd": {**FROM_SCRATCH, "online_batch_share": 0.5},
    "rlpd_ac": {**FROM_SCRATCH, "online_batch_share": 0.5},
    "sac": {**FROM_SCRATCH, "online_batch_share": 1.0},
    **{agent: {**FROM_SCRATCH, "online_batch_share": 1.0} for agent in WITHOUT_DATA},
    "ppo": {"offline_updates": 0},
    "idql": {"online_batch_share": 0.5},
    # .999 per decision of four steps, as DPPO and ReinFlow run Robomimic.
    "dppo": {"discount": 0.99975},
    "reinflow": {"discount": 0.99975},
}

# What runs from scratch on MuJoCo do as their papers do, and not as everyone here: steps of random actions before the
# first update, the batch, and updates per step. SAC Flow's release has one set of them for its flows, and for DIME two
# updates a step; CrossQ, FlowRL and QSM have their own.
_SAC_FLOW_RUNS: Settings = {"warmup_steps": 50_000, "batch_size": 512}
MUJOCO_SETTINGS: dict[str, Settings] = {
    **dict.fromkeys(SCRATCH_FLOWS, _SAC_FLOW_RUNS),
    "crossq": {"warmup_steps": 5_000, "batch_size": 256},
    "sac": {"warmup_steps": 10_000},  # arXiv 1812.05905 and its code
    "dime": {**_SAC_FLOW_RUNS, "utd_ratio": 2},
    "flowrl": {"warmup_steps": 5_000, "batch_size": 256},
    "qsm_scratch": {"warmup_steps": 10_000, "batch_size": 256},
}

# What a domain asks of every run in it: FQL and QAM look further ahead in the larger mazes.
DOMAIN_SETTINGS: dict[str, Settings] = {
    "antmaze-giant": {"discount": 0.995},
    "humanoidmaze-medium": {"discount": 0.995},
    "humanoidmaze-large": {"discount": 0.995},
}
MUJOCO = tuple(task.domain for task in TASKS.values() if task.suite == "gymnasium_mujoco")

SHARD_ROWS = 1_000_000  # of OGBench's sets of 100M transitions; the releases hold one shard at a time in their buffer


def data_settings(dataset: str | None) -> Settings:
    """What a data set asks of every run on it."""
    return {"online_dataset_rows": SHARD_ROWS} if dataset and "-100m-" in dataset else {}


# What a domain asks of every agent that has the setting (pessimism: where its critics are pessimistic). QAM
# (arXiv 2601.14234) runs all of its agents without chunks in mazes.
AGENT_SETTINGS: dict[str, Settings] = {
    "antmaze-large": {"chunk_length": 1},
    "antmaze-giant": {"chunk_length": 1},
    "humanoidmaze-medium": {"chunk_length": 1, "pessimism": 0.0},
    "humanoidmaze-large": {"chunk_length": 1, "pessimism": 0.0},
    # Where an action of 1 is less in the environment: releases measure entropies there, and so do target entropies.
    **{task.domain: {"action_scale": task.action_scale} for task in TASKS.values() if task.action_scale != 1.0},
}

SAC_FLOW = ("sac_flow_g", "sac_flow_t", "naive_sac_flow", "flow_mlp")


def _flow_family(fql: float, qc_fql: float, sac_flow: float, sac_flow_online: float) -> dict[str, Settings]:
    same = {name: {"bc_coef": sac_flow, "bc_coef_online": sac_flow_online} for name in SAC_FLOW}
    return {
        "fql": {"bc_coef": fql},
        "qc_fql": {"bc_coef": qc_fql},
        **same,
    }


def _one_weight(bc_coef: float, **settings: Any) -> dict[str, Settings]:
    """The same for the whole family."""
    family = _flow_family(fql=bc_coef, qc_fql=bc_coef, sac_flow=bc_coef, sac_flow_online=bc_coef)
    return {agent: {**tuned, **settings} for agent, tuned in family.items()}


# SAC Flow (arXiv 2509.25756), table of regulariser weights by environment. The official driver's command line falls
# back to 100 online for every task unless told otherwise; the paper's table is followed here.
_PAPERS: dict[str, dict[str, Settings]] = {
    # Not in that table; FQL (arXiv 2502.02538) uses 300 on cube-single, and so does the row of cube-double below.
    "cube-single": _one_weight(300),
    "cube-double": _one_weight(300),
    "cube-triple": _flow_family(fql=300, qc_fql=100, sac_flow=100, sac_flow_online=100),
    "cube-quadruple": _flow_family(fql=300, qc_fql=100, sac_flow=100, sac_flow_online=100),
    # Below, SAC Flow has published no weights; all agents take those of FQL (github.com/seohongpark/fql, README: h = 1,
    # 2 critics). humanoidmaze-medium: 100 for offline-to-online, 30 for offline runs. Q-chunking says of its QC-FQL on
    # such domains only that it was tuned among a third, once and three times FQL's weight.
    "scene": _one_weight(300),
    "puzzle-3x3": _one_weight(1_000),
    "puzzle-4x4": _one_weight(1_000),
    "antmaze-large": _one_weight(10, q_aggregation="min"),
    "antmaze-giant": _one_weight(10, q_aggregation="min"),
    "humanoidmaze-medium": _one_weight(100),
    "humanoidmaze-large": _one_weight(30),
    # SAC Flow's table again.
    "lift": _flow_family(fql=10_000, qc_fql=10_000, sac_flow=10_000, sac_flow_online=1_000),
    "can": _flow_family(fql=10_000, qc_fql=10_000, sac_flow=10_000, sac_flow_online=1_000),
    "square": _flow_family(fql=10_000, qc_fql=10_000, sac_flow=10_000, sac_flow_online=1_000),
}

# The 12-seed release of QAM (arXiv 2601.14234): every agent over chunks of 5 actions (1 in mazes), with the same ten
# critics, whose targets are the mean less half a standard deviation (humanoidmaze: the mean); what it tuned is below,
# by domain. Its FQL drops whole windows that run into the next episode, Q-chunking's their steps there.
RELEASE_CRITIC: Settings = {
    **{"num_critics": 10, "q_aggregation": "pessimistic", "pessimism": 0.5},
    **{"critic_norm": "after", "critic_activation": "gelu"},
}
RELEASE_FIXED: Settings = {"chunk_length": 5, **RELEASE_CRITIC}
RELEASE_DOMAINS = (
    *("cube-double", "cube-triple", "cube-quadruple", "scene", "puzzle-3x3", "puzzle-4x4"),
    *("antmaze-large", "antmaze-giant", "humanoidmaze-medium", "humanoidmaze-large"),
)
_RELEASE: dict[tuple[str, str], tuple[float, ...]] = {
    ("qc_fql", "bc_coef"): (300, 30, 100, 300, 300, 1, 3, 3, 30, 30),
    ("fbrac", "bc_coef"): (0.1, 0.03, 1, 100, 0.03, 0.3, 0.1, 0.1, 30, 10),
    ("ifql", "expectile"): (0.9, 0.95, 0.95, 0.9, 0.95, 0.9, 0.9, 0.8, 0.7, 0.8),
    ("fawac", "inverse_temperature"): (0.8, 0.8, 0.8, 6.4, 0.8, 0.8, 6.4, 0.8, 6.4, 0.8),
    ("dsrl", "noise_scale"): (1, 1.4, 1.4, 0.4, 1, 1, 0.8, 1.2, 0.6, 0.8),
    ("qam", "inverse_temperature"): (1, 3, 1, 1, 3, 30, 10, 3, 3, 3),
    ("qam_e", "inverse_temperature"): (1, 3, 3, 1, 1, 0.1, 1, 10, 3, 3),
    ("qam_e", "edit_scale"): (0, 0.1, 0.1, 0, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1),
    ("qam_f", "inverse_temperature"): (1, 10, 0.3, 1, 3, 3, 3, 3, 1, 0.3),
    ("qam_f", "bc_coef"): (0, 300, 30, 300, 0, 3, 30, 30, 30, 30),
    ("dac", "bc_coef"): (3, 0.3, 1, 1, 1, 1, 0.3, 0.3, 1, 0.3),
    ("qsm", "inverse_temperature"): (1, 10, 1, 3, 10, 10, 10, 10, 10, 10),
    ("qsm", "bc_coef"): (10, 10, 10, 30, 30, 1, 10, 10, 30, 30),
    ("rebrac", "bc_coef"): (0.01, 0.01, 0.01, 0.03, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01),
    ("rebrac", "policy_noise"): (0, 0.2, 0.2, 0, 0, 0.2, 0, 0, 0, 0.1),
}


def _by_domain(table: dict[tuple[str, str], tuple[float, ...]]) -> dict[str, dict[str, Settings]]:
    """Settings of each agent by domain, from those of each field over RELEASE_DOMAINS."""
    found: dict[str, dict[str, Settings]] = {domain: {} for domain in RELEASE_DOMAINS}
    for (agent, field), values in table.items():
        for domain, value in zip(RELEASE_DOMAINS, values, strict=True):
            found[domain].setdefault(agent, {})[field] = float(value)
    for domain, agents in found.items():
        agents["qc_fql"]["window_mask"] = "window"
        if domain in AGENT_SETTINGS:  # where chunks have one action, its FQL is both agents
            agents["fql"] = agents["qc_fql"]
    return found


RELEASE = _by_domain(_RELEASE)

# QC draws more candidates where actions are more ambiguous, fewer on Robomimic (arXiv 2507.07969).
_CANDIDATES = {"puzzle-3x3": 64, "puzzle-4x4": 64, "lift": 16, "can": 16, "square": 16}

# Agents on MuJoCo, from scratch. SAC: two layers of 256 (arXiv 1812.05905), as its public seeds. DIME: values that
# returns can reach, where its fork would cut those of every robot that runs at 200. A humanoid that stands up is paid
# up to 300 a step.
_MUJOCO: dict[str, Settings] = {
    "sac": {"policy_hidden_dims": (256, 256), "critic_hidden_dims": (256, 256)},
    "dime": {"min_value": -1_600, "max_value": 1_600},
}
_STANDUP: dict[str, Settings] = {**_MUJOCO, "dime": {"min_value": -1_600, "max_value": 30_000}}

# Agents that no other source tunes take the release's settings; on domains that it lacks, their defaults.
TUNED: dict[str, dict[str, Settings]] = {
    domain: {
        **RELEASE.get(domain, {}),
        **({"qc": {"num_candidates": _CANDIDATES[domain]}} if domain in _CANDIDATES else {}),
        **({"dppo": {"policy_hidden_dims": (1024, 1024, 1024)}} if domain == "square" else {}),
        **papers,
    }
    for domain, papers in {
        **_PAPERS,
        **{domain: _STANDUP if domain.startswith("humanoidstandup") else _MUJOCO for domain in MUJOCO},
    }.items()
}


def tuned_config(agent: str, domain: str) -> Any:
    """The agent's config with the domain's settings, and those published for the agent in it."""
    return with_settings(_in_domain(AGENTS[agent][1], domain), **TUNED.get(domain, {}).get(agent, {}))


def release_config(agent: str, domain: str) -> Any:
    """The agent's config as the 12-seed release of QAM has it, or would have it: its chunks, critics and weights."""
    config = tuned_config(agent, domain)
    fixed = with_settings(config, **settings_it_has(config, RELEASE_FIXED))
    return with_settings(_in_domain(fixed, domain), **RELEASE.get(domain, {}).get(agent, {}))


def settings_it_has(config: Any, settings: Settings) -> Settings:
    """Of settings for several agents, those of this one's config."""
    return {name: value for name, value in settings.items() if name in settings_of(config)}


def _in_domain(config: Any, domain: str) -> Any:
    """The config with what the domain asks of every agent, as far as it has such settings."""
    settings, asked = settings_of(config), AGENT_SETTINGS.get(domain, {})
    unused = () if settings.get("q_aggregation") == "pessimistic" else ("pessimism",)
    return with_settings(config, **{n: v for n, v in asked.items() if n in settings and n not in unused})
