"""How often the scripted experts of Lift, Can and Square succeed, and the paths that their hands take.

Run as `python -m tests.benchmarks.robomimic_experts`. Prints success rates of both kinds of data, and draws the paths
to results/benchmarks/robomimic_experts.png.
"""

import argparse
import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, mean
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from datasets.robomimic.source import KINDS, parse
from datasets.robomimic.tasks import ENV_NAMES
from tests.benchmarks.measure import machine_line, table

FIGURE = Path("results/benchmarks/robomimic_experts.png")
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")  # Okabe and Ito: told apart by colour-blind readers
FAILURE = "#555555"
SIDE = {"lift": 0, "can": 1, "square": 0}  # axis that the hand crosses the scene along: the side view's horizontal one
GOALS = {"can": ((0.1, 0.28), (0.195, 0.245)), "square": ((0.214, 0.084), (0.032, 0.032))}  # from above: corner, size


@dataclass(frozen=True)
class Played:
    """What the tables and the figure need of an episode."""

    strategy: str
    quality: str
    success: bool
    hand: np.ndarray  # (T + 1, 3) metres
    start: np.ndarray  # (3,) metres, where the object is at first


def play(domain: str, kind: str, episodes: int, seed: int) -> tuple[list[Played], float]:
    """The first episodes of a set, and the environment's steps per second of this process, all work included."""
    from datasets.robomimic.episodes import make_episode

    dataset = parse(f"{domain}-{kind}-generated-{episodes}ep-seed{seed}")
    assert dataset is not None
    make_episode(dataset, 0)  # makes the simulator
    played, started = [], time.process_time()
    for index in range(episodes):
        episode = make_episode(dataset, index)
        scene = episode["obs/object"][0]
        played.append(
            Played(
                strategy=episode["strategy"].item().decode(),
                quality=episode["quality"].item().decode(),
                success=bool(episode["success"]),
                hand=np.concatenate([episode["obs/robot0_eef_pos"], episode["next_obs/robot0_eef_pos"][-1:]]),
                start=scene[:3] if domain == "lift" else scene[7:10],
            )
        )
    steps = sum(len(each.hand) - 1 for each in played)
    return played, steps / (time.process_time() - started)


def rate(played: list[Played], confidence: float = 0.95) -> str:
    """Share of successes with Wilson's interval, in percent."""
    num, share = len(played), mean(each.success for each in played)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * (share * (1 - share) / num + z**2 / (4 * num**2)) ** 0.5
    return f"{share:.0%} ({max(0.0, middle - half):.0%} to {min(1.0, middle + half):.0%})"


def draw(sets: dict[tuple[str, str], list[Played]], file: Path) -> None:
    """Paths of all hands: a column per task; experts from above and from the side, and mixed sets from above."""
    rows = (("expert", "above"), ("expert", "side"), ("mixed", "above"))
    settings: dict[Any, Any] = {
        "font.size": 9,
        "legend.fontsize": 8.5,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings):
        figure, panels = plt.subplots(len(rows), len(ENV_NAMES), figsize=(12.5, 11.5), layout="constrained")
        for column, domain in enumerate(ENV_NAMES):
            strategies = sorted({each.strategy for each in sets[domain, "expert"]})
            colors = dict(zip(strategies, COLORS, strict=True))
            for row, (kind, view) in enumerate(rows):
                axes, played = panels[row, column], sets[domain, kind]
                draw_paths(axes, domain, view, played, colors)
                successes = sum(each.success for each in played)
                title = f"{ENV_NAMES[domain]}, {kind}: {successes} of {len(played)} succeed"
                axes.set_title(title if view == "above" else f"{ENV_NAMES[domain]}, {kind}, from the side")
            lines = [Line2D([], [], color=color, lw=2, label=name) for name, color in colors.items()]
            lines.append(Line2D([], [], color=FAILURE, lw=1.2, ls=(0, (3, 2)), label="failed (mixed sets)"))
            lines.append(Line2D([], [], color="black", marker="x", ls="", label="object at the start"))
            if domain in GOALS:
                lines.append(Line2D([], [], color="black", marker="s", mfc="none", ls="", label="goal"))
            panels[-1, column].legend(
                handles=lines, loc="upper center", bbox_to_anchor=(0.45, -0.17), frameon=False, ncols=2, columnspacing=1
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        figure.savefig(content, dpi=100)
        plt.close(figure)
        # A palette of few colours takes a quarter of the bytes, and nobody sees a difference.
        with Image.open(content) as image:
            image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(file, optimize=True)


def draw_paths(axes: Axes, domain: str, view: str, played: list[Played], colors: Mapping[str, str]) -> None:
    """One panel; failures lie below."""
    across, up = (0, 1) if view == "above" else (SIDE[domain], 2)
    for each in sorted(played, key=lambda each: each.success):
        style = {"color": colors[each.strategy], "lw": 0.9, "alpha": 0.75}
        if not each.success:
            style = {"color": FAILURE, "lw": 0.7, "alpha": 0.6, "ls": (0, (3, 2))}
        axes.plot(each.hand[:, across], each.hand[:, up], solid_capstyle="round", **style)
        axes.plot(each.start[across], each.start[up], "x", color="black", ms=3.5, mew=0.8, zorder=3)
    if domain in GOALS and view == "above":
        corner, size = GOALS[domain]
        axes.add_patch(Rectangle(corner, *size, fill=False, ec="black", lw=1.5, zorder=4))
    axes.set_xlabel(f"{'xyz'[across]} (m)")
    axes.set_ylabel(f"{'xyz'[up]} (m)")
    axes.set_aspect("equal", adjustable="datalim")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=50, help="per task and kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    args = parser.parse_args()
    os.environ.setdefault("MUJOCO_GL", "disable")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    print(machine_line())
    sets, totals, groups = {}, [], []
    for domain in ENV_NAMES:
        for kind in KINDS:
            played, speed = play(domain, kind, args.episodes, args.seed)
            sets[domain, kind] = played
            length = mean(len(each.hand) - 1 for each in played)
            totals.append((domain, kind, rate(played), f"{length:.0f}", f"{speed:.0f}"))
            for label in ("strategy", "quality"):
                for name in dict.fromkeys(getattr(each, label) for each in played):
                    group = [each for each in played if getattr(each, label) == name]
                    share = f"{sum(each.success for each in group)} of {len(group)}"
                    length = mean(len(each.hand) - 1 for each in group)
                    groups.append((domain, kind, label, name, share, f"{length:.0f}"))
    columns = ("task", "kind", "success (95 % interval)", "mean length", "steps per CPU-second")
    print(table(f"Scripted experts, {args.episodes} episodes each", columns, totals))
    print(table("The same by strategy and quality", ("task", "kind", "by", "name", "success", "mean length"), groups))
    draw(sets, args.figure)
    print(f"\nPaths: {args.figure}")


if __name__ == "__main__":
    main()
