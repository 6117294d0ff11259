"""Agent settings per task domain, each with the table it comes from. Everything else is the agent's default.

`bc_coef` is the weight of the behaviour regulariser (alpha of FQL and QC-FQL, beta of SAC Flow) in the offline phase,
`bc_coef_online` the one in the online phase, for the agents that tell the two apart.
"""

from typing import Any

SAC_FLOW = ("sac_flow_g", "sac_flow_t", "naive_sac_flow", "flow_mlp")


def _flow_family(fql: float, qc_fql: float, sac_flow: float, sac_flow_online: float) -> dict[str, dict[str, Any]]:
    same = {name: {"bc_coef": sac_flow, "bc_coef_online": sac_flow_online} for name in SAC_FLOW}
    return {
        "fql": {"bc_coef": fql},
        "qc_fql": {"bc_coef": qc_fql},
        **same,
    }


# SAC Flow (arXiv 2509.25756), table of regulariser weights by environment. The official driver's command line falls
# back to 100 online for every task unless told otherwise; the paper's table is followed here.
TUNED: dict[str, dict[str, dict[str, Any]]] = {
    # Not in that table; FQL (arXiv 2502.02538) uses 300 on cube-single, and so does the row of cube-double below.
    "cube-single": _flow_family(fql=300, qc_fql=300, sac_flow=300, sac_flow_online=300),
    "cube-double": _flow_family(fql=300, qc_fql=300, sac_flow=300, sac_flow_online=300),
    "cube-triple": _flow_family(fql=300, qc_fql=100, sac_flow=100, sac_flow_online=100),
    "cube-quadruple": _flow_family(fql=300, qc_fql=100, sac_flow=100, sac_flow_online=100),
    "lift": _flow_family(fql=10_000, qc_fql=10_000, sac_flow=10_000, sac_flow_online=1_000),
    "can": _flow_family(fql=10_000, qc_fql=10_000, sac_flow=10_000, sac_flow_online=1_000),
    "square": _flow_family(fql=10_000, qc_fql=10_000, sac_flow=10_000, sac_flow_online=1_000),
}
