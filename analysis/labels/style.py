"""How figures look: one table of agents, one of matplotlib settings. An agent looks the same in every figure."""

import itertools
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from matplotlib.typing import LineStyleType


class AgentStyle(NamedTuple):
    """Three marks that each tell agents apart: colour on screen, line and marker in black-and-white print."""

    color: str
    line: LineStyleType
    marker: str


# Colours: Okabe and Ito's palette (jfly.uni-koeln.de/color), safe for the common colour-vision deficiencies.
AGENT_STYLES: dict[str, AgentStyle] = {
    "sac_flow_g": AgentStyle("#0072B2", "-", "o"),
    "sac_flow_t": AgentStyle("#D55E00", (0, (6, 1.5)), "s"),
    "naive_sac_flow": AgentStyle("#CC79A7", (0, (1, 1)), "v"),
    "flow_mlp": AgentStyle("#56B4E9", (0, (4, 1.2, 1, 1.2)), "<"),
    "fql": AgentStyle("#009E73", (0, (2.5, 1.2)), "^"),
    "qc_fql": AgentStyle("#E69F00", (0, (6, 1.2, 1, 1.2, 1, 1.2)), "D"),
    # Methods that others publish on the same tasks; colours of Tol's muted palette (personal.sron.nl/~pault).
    "qc": AgentStyle("#332288", "-", ">"),
    "bfn": AgentStyle("#88CCEE", (0, (6, 1.5)), "P"),
    "ifql": AgentStyle("#117733", (0, (1, 1)), "h"),
    "dsrl": AgentStyle("#999933", "-", "X"),
    "fbrac": AgentStyle("#882255", (0, (2.5, 1.2)), "p"),
    "fawac": AgentStyle("#44AA99", (0, (4, 1.2, 1, 1.2)), "8"),
    "qam": AgentStyle("#CC6677", "-", "d"),
    "qam_e": AgentStyle("#661100", (0, (6, 1.5)), "H"),
    "qam_f": AgentStyle("#AA4466", (0, (1, 1)), "*"),
    "dac": AgentStyle("#6699CC", (0, (6, 1.2, 1, 1.2, 1, 1.2)), "o"),
    "qsm": AgentStyle("#AA4499", (0, (4, 1.2, 1, 1.2)), "s"),
    "rebrac": AgentStyle("#555555", (0, (2.5, 1.2)), "v"),
    "rlpd": AgentStyle("#000000", (0, (6, 1.5)), "^"),
    "reinflow": AgentStyle("#DDAA33", "-", "<"),
    "iql": AgentStyle("#777722", (0, (1, 1)), "D"),
    # The other agents of the registry, in colours as far from those above as there is room.
    "rlpd_ac": AgentStyle("#E0115F", "-", "v"),
    "awac": AgentStyle("#8A5A00", "-", "h"),
    "sac": AgentStyle("#3A3AE8", (0, (6, 1.5)), "o"),
    "idql": AgentStyle("#004B23", (0, (4, 1.2, 1, 1.2)), "h"),
    "diffusion_ql": AgentStyle("#9A7FD1", (0, (6, 1.5)), "X"),
    "dppo": AgentStyle("#55B82A", (0, (2.5, 1.2)), "P"),
    "bc": AgentStyle("#1F3A5F", (0, (1, 1)), "p"),
    "bc_diffusion": AgentStyle("#C22AE0", (0, (6, 1.2, 1, 1.2, 1, 1.2)), "8"),
    # From scratch: SAC Flow's own have the colours of its offline-to-online agents, somewhat darker.
    "sac_flow_g_scratch": AgentStyle("#005A8E", "-", "s"),
    "sac_flow_t_scratch": AgentStyle("#A94A00", (0, (6, 1.5)), "D"),
    "naive_flow_scratch": AgentStyle("#B0568A", (0, (1, 1)), "^"),
    "flow_mlp_scratch": AgentStyle("#2E86B5", (0, (4, 1.2, 1, 1.2)), ">"),
    "crossq": AgentStyle("#7A0045", (0, (2.5, 1.2)), "X"),
    "dime": AgentStyle("#6B8E00", (0, (6, 1.2, 1, 1.2, 1, 1.2)), "^"),
    "flowrl": AgentStyle("#00796B", (0, (4, 1.2, 1, 1.2)), "D"),
    "qsm_scratch": AgentStyle("#8E24AA", (0, (2.5, 1.2)), "s"),
    "ppo": AgentStyle("#37474F", (0, (6, 1.5)), "<"),
}
# Agents without an entry: muted colours outside the table above, so that nobody takes one for a known agent.
FALLBACK_LINES: tuple[LineStyleType, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (3, 1, 1, 1)))
FALLBACK_STYLES = tuple(
    itertools.starmap(
        AgentStyle, itertools.product(("#000000", "#7F6000", "#5B2C83", "#7F7F7F"), FALLBACK_LINES, "Xhp>8dPH")
    )
)

# Variants of one agent in an ablation, beside the agent's own style: from dark to light, so that an order shows.
VARIANT_STYLES = (
    AgentStyle("#000000", (0, (5, 1.5)), "^"),
    AgentStyle("#6A3D9A", (0, (1, 1)), "v"),
    AgentStyle("#B15928", (0, (4, 1.2, 1, 1.2)), "<"),
    AgentStyle("#1B9E9E", (0, (2.5, 1.2)), ">"),
    AgentStyle("#999999", (0, (6, 1.2, 1, 1.2, 1, 1.2)), "P"),
)

COLUMN_WIDTH = 3.4  # inches; one column of a two-column page
PAGE_WIDTH = 6.9  # inches; both columns
MATPLOTLIB: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same outlines, hence the same bytes, everywhere
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.labelsize": 7.0,
    "figure.titlesize": 6.5,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 3.4,
    "legend.columnspacing": 1.2,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # submission systems refuse Type 3 fonts
    "svg.hashsalt": "o2o-bench",  # element names in an SVG are random otherwise
}


def styles_of(agents: Iterable[str]) -> dict[str, AgentStyle]:
    """A style for each agent, in the order of legends: those of the table first, then the others by name.

    A variant that is alone of its agent looks as the agent does. The style of any other, and of an unknown agent,
    follows from its name, but for the rare two names that would get the same one.
    """
    present = set(agents)
    styles: dict[str, AgentStyle] = {}
    for agent, style in AGENT_STYLES.items():
        variants = [label for label in present if label.partition("@")[0] == agent]
        if agent in present or len(variants) == 1:
            styles[agent if agent in present else variants[0]] = style
    for label in sorted(present - styles.keys()):
        slot = zlib.crc32(label.encode())
        taken = styles.values()
        turns = (FALLBACK_STYLES[(slot + turn) % len(FALLBACK_STYLES)] for turn in range(len(FALLBACK_STYLES)))
        styles[label] = next((style for style in turns if style not in taken), FALLBACK_STYLES[0])
    return styles
