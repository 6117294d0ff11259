"""What an episode looks like: states recorded while it is played, and pictures drawn of them afterwards.

Drawing never touches the simulation: states are copies, and are shown in a simulation of their own. Imports no
simulator.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from datasets.spec import DataError

RENDERERS = ("egl", "osmesa")  # values of MUJOCO_GL that need no screen, the better one first


@dataclass(frozen=True)
class Look:
    """How pictures are drawn."""

    width: int  # pixels
    height: int
    camera: str | None = None  # one of `View.cameras`; None: the first
    shadows: bool = True  # and reflections; they take most of the time where no GPU draws


class View(Protocol):
    """How one environment is seen; `env.view()` of every task's environment gives it, once it has been reset."""

    @property
    def rate(self) -> float:
        """Control steps per second."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """Those to choose from, the default one first; empty where there is no choice."""
        ...

    def state(self) -> Any:
        """A copy of all that shows now."""
        ...

    def picture(self, state: Any, look: Look) -> np.ndarray:
        """What a state looks like: (height, width, 3) uint8."""
        ...


def usable_renderer() -> str:
    """The value of MUJOCO_GL with which MuJoCo draws here: the user's, else the first of RENDERERS that works.

    Tried in processes of their own, since a process is bound to the first one it loads. Raises DataError, which says
    what to install.
    """
    setting = os.environ.get("MUJOCO_GL", "disable").strip().lower()
    candidates = RENDERERS if setting in ("", "0", "off", "false", "disable", "disabled") else (setting,)
    causes = []
    for renderer in candidates:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL], env={**os.environ, "MUJOCO_GL": renderer}, capture_output=True, text=True
        )
        if done.returncode == 0:
            return renderer
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        causes.append(f"{renderer}: {lines[-1]}")
    raise DataError(
        "pictures need OpenGL without a screen, which MuJoCo does not find here; install it: apt-get install libegl1 "
        f"libgl1-mesa-dri (EGL in software; a GPU's driver brings its own) or libosmesa6 ({'; '.join(causes)})"
    )


_TRIAL = """
import mujoco
context = mujoco.GLContext(16, 16)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), 150).free()
context.free()
"""
