"""What agents are called in figures, in tables for people and on the page: the names of their papers.

Files for programs, paths and commands have the names of the registry. An agent that is not listed here is one from
outside, and has its own name everywhere.
"""

from collections.abc import Iterable

from analysis.loading.load import Suite

DISPLAY_NAMES = {
    "sac_flow_g": "SAC Flow-G",
    "sac_flow_t": "SAC Flow-T",
    "naive_sac_flow": "Naive SAC Flow",
    "flow_mlp": "Flow MLP",
    "fql": "FQL",
    "qc_fql": "QC-FQL",
    "qc": "QC",
    "bfn": "BFN",
    "ifql": "IFQL",
    "dsrl": "DSRL",
    "fbrac": "FBRAC",
    "fawac": "FAWAC",
    "qam": "QAM",
    "qam_e": "QAM-E",
    "qam_f": "QAM-F",
    "dac": "DAC",
    "qsm": "QSM",
    "rebrac": "ReBRAC",
    "rlpd": "RLPD",
    "rlpd_ac": "RLPD-AC",
    "reinflow": "ReinFlow",
    "iql": "IQL",
    "awac": "AWAC",
    "sac": "SAC",
    "idql": "IDQL",
    "diffusion_ql": "Diffusion-QL",
    "dppo": "DPPO",
    "bc": "Flow BC",
    "bc_diffusion": "Diffusion BC",
    "sac_flow_g_scratch": "SAC Flow-G (scratch)",
    "sac_flow_t_scratch": "SAC Flow-T (scratch)",
    "naive_flow_scratch": "Naive flow (scratch)",
    "flow_mlp_scratch": "Flow MLP (scratch)",
    "crossq": "CrossQ",
    "dime": "DIME",
    "flowrl": "FlowRL",
    "qsm_scratch": "QSM (scratch)",
    "ppo": "PPO",
}


def display_name(agent: str, code_names: bool = False) -> str:
    """The name for people of an agent or of a variant of it, `qc_fql@wide`: QC-FQL@wide."""
    base, at, variant = agent.partition("@")
    return agent if code_names else f"{DISPLAY_NAMES.get(base, base)}{at}{variant}"


def name_in(suite: Suite, agent: str) -> str:
    """What the figures and tables of a suite call an agent."""
    return display_name(agent, suite.code_names)


def named_agent(name: str, agents: Iterable[str]) -> str | None:
    """Which of `agents` is meant by a name of either kind; None: none of them."""
    present = list(agents)
    return name if name in present else next((one for one in present if display_name(one) == name), None)
