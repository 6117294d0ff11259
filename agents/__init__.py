"""Algorithms, by the name used in configs, folders and figures: name -> (class, default config)."""

import os
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from agents.awac import AWAC, AWACConfig
from agents.bc import BC, BCConfig
from agents.blocks.base import Agent
from agents.blocks.config import setting_types, with_settings
from agents.blocks.critic import CriticConfig
from agents.blocks.policy import Policy, read_policy
from agents.blocks.streams import SeedStreams
from agents.crossq import CrossQ, CrossQConfig
from agents.dac import DAC, DACConfig
from agents.diffusion_ql import DiffusionQL, DiffusionQLConfig
from agents.dime import DIME, DIMEConfig
from agents.dppo import DPPO, DPPOConfig
from agents.dsrl import DSRL, DSRLConfig
from agents.fawac import FAWAC, FAWACConfig
from agents.fbrac import FBRAC, FBRACConfig
from agents.flowrl import FlowRL, FlowRLConfig
from agents.fql import FQL, FQLConfig
from agents.idql import IDQL, IDQLConfig
from agents.ifql import IFQL, IFQLConfig
from agents.iql import IQL, IQLConfig
from agents.naive_sac_flow import NaiveSACFlow, NaiveSACFlowConfig
from agents.ppo import PPO, PPOGaussianConfig
from agents.qam import QAM, QAMConfig
from agents.qc import QC, QCConfig
from agents.qsm import QSM, QSMConfig
from agents.qsm_scratch import QSMScratch, QSMScratchConfig
from agents.rebrac import ReBRAC, ReBRACConfig
from agents.reinflow import ReinFlow, ReinFlowConfig
from agents.sac import SAC, SACConfig
from agents.sac_flow import SACFlow, SACFlowConfig
from agents.scratch_flow import ScratchFlow, ScratchFlowConfig
from bench.runs.contract import nearest

_RLPD = SACConfig(
    entropy_coef=1.0,
    target_entropy=-0.5,
    entropy_in_target=False,
    evaluation="sample",
    policy_activation="gelu",
    critic=CriticConfig(num_critics=10, q_aggregation="mean"),
)

AGENTS: dict[str, tuple[type[Agent], Any]] = {
    # Flow policies that are trained through their steps, or distilled.
    "sac_flow_t": (SACFlow, SACFlowConfig(velocity_field="decoded")),
    "sac_flow_g": (SACFlow, SACFlowConfig(velocity_field="gated")),
    "flow_mlp": (SACFlow, SACFlowConfig(velocity_field="plain")),
    "naive_sac_flow": (NaiveSACFlow, NaiveSACFlowConfig()),
    "fbrac": (FBRAC, FBRACConfig()),
    "fql": (FQL, FQLConfig(chunk_length=1, bc_coef=300.0)),
    "qc_fql": (FQL, FQLConfig(chunk_length=5)),
    # Flow policies that are selected from, weighted, steered, or matched to an adjoint.
    "qc": (QC, QCConfig()),
    "bfn": (QC, QCConfig(chunk_length=1, num_candidates=4)),
    "ifql": (IFQL, IFQLConfig()),
    "fawac": (FAWAC, FAWACConfig()),
    "dsrl": (DSRL, DSRLConfig()),
    "qam": (QAM, QAMConfig()),
    "qam_e": (QAM, QAMConfig(variant="edit")),
    "qam_f": (QAM, QAMConfig(variant="one_step")),
    # Diffusion policies.
    "dac": (DAC, DACConfig()),
    "qsm": (QSM, QSMConfig()),
    "diffusion_ql": (DiffusionQL, DiffusionQLConfig()),
    "idql": (IDQL, IDQLConfig()),
    # On-policy.
    "dppo": (DPPO, DPPOConfig()),
    "reinflow": (ReinFlow, ReinFlowConfig()),
    # Gaussian and deterministic policies, and cloning.
    "rlpd": (SAC, _RLPD),
    "rlpd_ac": (SAC, replace(_RLPD, chunk_length=5)),
    "sac": (SAC, SACConfig()),
    "crossq": (CrossQ, CrossQConfig()),
    # Flow policies from scratch, without data.
    "sac_flow_t_scratch": (ScratchFlow, ScratchFlowConfig(velocity_field="decoded", noise_scale="velocity")),
    "sac_flow_g_scratch": (ScratchFlow, ScratchFlowConfig(velocity_field="gated")),
    "naive_flow_scratch": (ScratchFlow, ScratchFlowConfig(velocity_field="naive")),
    "flow_mlp_scratch": (ScratchFlow, ScratchFlowConfig(velocity_field="plain")),
    # What they are compared with, from scratch.
    "flowrl": (FlowRL, FlowRLConfig()),
    "dime": (DIME, DIMEConfig()),
    "qsm_scratch": (QSMScratch, QSMScratchConfig()),
    "ppo": (PPO, PPOGaussianConfig()),
    "rebrac": (ReBRAC, ReBRACConfig()),
    "iql": (IQL, IQLConfig()),
    "awac": (AWAC, AWACConfig()),
    "bc": (BC, BCConfig(policy="flow")),
    "bc_diffusion": (BC, BCConfig(policy="diffusion")),
}


def register(name: str, agent_class: type[Agent], config: Any) -> None:
    """Adds an agent from outside this checkout, under the name it has in commands, folders and figures.

    Args:
        config: its default settings, a frozen dataclass with chunk_length.

    Raises ValueError for a name that is taken or can be no folder's, TypeError for what is no agent or no config.
    """
    if name in AGENTS:
        raise ValueError(f"there is an agent {name!r} already; choose another name")
    if not name.isidentifier():
        raise ValueError(f"an agent cannot be called {name!r}; use letters, digits and '_'")
    if not (isinstance(agent_class, type) and issubclass(agent_class, Agent)):
        raise TypeError(f"agent {name!r}: {agent_class!r} is no subclass of agents.blocks.base.Agent")
    if not is_dataclass(config) or isinstance(config, type) or "chunk_length" not in setting_types(type(config)):
        raise TypeError(f"agent {name!r}: its config must be an object of a dataclass with a field chunk_length")
    AGENTS[name] = (agent_class, config)


def load_policy(path: str | os.PathLike[str], obs_dim: int | None = None, action_dim: int | None = None) -> Policy:
    """A finished run's policy, by its file or by the run's folder, ready to act on NumPy observations.

    Args:
        obs_dim, action_dim: only for a file of an older version, beside which the run's config.json must lie.

    Raises ValueError, one line, for a file that is damaged, of an unknown agent, or does not say what it is of.
    """
    file, facts, tensors = read_policy(Path(path), obs_dim, action_dim)
    name = facts["agent"]
    if name not in AGENTS:
        raise ValueError(
            f"{file} is of the unknown agent {name!r}{nearest(name, AGENTS)}; import the module that registers it first"
        )
    agent_class, default = AGENTS[name]
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in facts["agent_config"].items()}
    try:
        config = with_settings(default, **settings)
        agent = agent_class(config, facts["obs_dim"], facts["action_dim"], SeedStreams([0], "cpu", "init"))
        agent.load_policy(tensors)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} does not fit this checkout's {name}: {error}") from error
    return Policy(agent, facts)
