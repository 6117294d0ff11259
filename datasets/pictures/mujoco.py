"""Pictures of what MuJoCo simulates. Imports the simulator: import this module inside a function."""

# MuJoCo's compiled functions have no stubs:
# pyright: reportAttributeAccessIssue=false

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from datasets.pictures.view import Look
from datasets.spec import DataError

# Arrays of a model that environments change within an episode, or from one to the next, as far as it shows.
LOOKS = ("body_pos", "body_quat", "geom_pos", "geom_quat", "geom_size", "geom_rgba", "geom_matid", "mat_rgba")
LOOKS += ("site_pos", "site_quat", "site_size", "site_rgba")


@dataclass(frozen=True)
class MujocoState:
    """What shows of a simulation. `model` is the live one, to tell one compilation from the next."""

    model: mujoco.MjModel
    qpos: np.ndarray
    mocap_pos: np.ndarray
    mocap_quat: np.ndarray
    looks: Mapping[str, np.ndarray]


class MujocoView:
    """MuJoCo's own renderer; MUJOCO_GL must have been what `usable_renderer` tells when mujoco was imported.

    Args:
        simulation: gives the environment's model and data, which may change at a reset.
        rate: control steps per second.
        cameras: names of the model's or of `free_cameras`, the default one first; None: all of the model's.
        free_cameras: those that the model does not have, by name.
        hidden_groups: of geoms that are there for collisions only.
    """

    def __init__(
        self,
        simulation: Callable[[], tuple[mujoco.MjModel, mujoco.MjData]],
        rate: float,
        cameras: Sequence[str] | None = None,
        free_cameras: Mapping[str, mujoco.MjvCamera] | None = None,
        hidden_groups: Sequence[int] = (),
    ) -> None:
        self.rate = rate
        self.cameras = tuple(named_cameras(simulation()[0]) if cameras is None else cameras)
        self._simulation = simulation
        self._free_cameras = free_cameras or {}
        self._looks: dict[str, np.ndarray] = {}  # of the newest state
        self._drawn: tuple[mujoco.MjModel, Look] | None = None  # what is open for drawing
        self._options = mujoco.MjvOption()
        for group in hidden_groups:
            self._options.geomgroup[group] = 0

    def state(self) -> MujocoState:
        """A copy of all that shows now."""
        model, data = self._simulation()
        for name in LOOKS:  # states share what has not changed, which is most of it
            values = getattr(model, name)
            if name not in self._looks or not np.array_equal(values, self._looks[name]):
                self._looks[name] = values.copy()
        return MujocoState(model, data.qpos.copy(), data.mocap_pos.copy(), data.mocap_quat.copy(), dict(self._looks))

    def picture(self, state: MujocoState, look: Look) -> np.ndarray:
        """What a state looks like: (height, width, 3) uint8."""
        if self._drawn is None or self._drawn[0] is not state.model or self._drawn[1] != look:
            self._open(state.model, look)
        for name, values in state.looks.items():
            getattr(self._model, name)[:] = values
        data = self._data
        data.qpos[:], data.mocap_pos[:], data.mocap_quat[:] = state.qpos, state.mocap_pos, state.mocap_quat
        mujoco.mj_forward(self._model, data)
        camera = look.camera or self.cameras[0]
        self._renderer.update_scene(data, self._free_cameras.get(camera, camera), self._options)
        return self._renderer.render()

    def _open(self, model: mujoco.MjModel, look: Look) -> None:
        if self._drawn is not None:
            self._renderer.close()
        self._model = copy.deepcopy(model)
        self._model.vis.global_.offwidth, self._model.vis.global_.offheight = look.width, look.height
        self._data = mujoco.MjData(self._model)
        self._renderer = mujoco.Renderer(self._model, look.height, look.width)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = look.shadows
        self._drawn = model, look


def named_cameras(model: mujoco.MjModel) -> tuple[str, ...]:
    """Names of a model's cameras."""
    names = (model.camera(index).name for index in range(model.ncam))
    return tuple(name for name in names if name)


def free_camera(model: mujoco.MjModel, **settings: object) -> mujoco.MjvCamera:
    """MuJoCo's own view of the whole scene, with what is set: `lookat` (3,), `distance`, `azimuth`, `elevation`, …"""
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    for name, value in settings.items():
        if isinstance(value, (int, float)):
            setattr(camera, name, value)
        else:
            getattr(camera, name)[:] = value
    return camera


def gymnasium_view(env: Any) -> MujocoView:
    """Of an unwrapped environment of gymnasium, through its own camera. Raises DataError for another simulator's."""
    # gymnasium-robotics keeps those of mazes and of the kitchen within another environment.
    simulators = [env, *(getattr(env, name, None) for name in ("robot_env", "ant_env", "point_env"))]
    simulator = next(
        (candidate for candidate in simulators if isinstance(getattr(candidate, "model", None), mujoco.MjModel)), None
    )
    if simulator is None:
        name = env.spec.id if env.spec else type(env).__name__
        raise DataError(f"{name} is not simulated by MuJoCo: it can be trained on, but not drawn")
    names = named_cameras(simulator.model)
    default = "track" if "track" in names else "free"
    settings = dict(getattr(getattr(simulator, "mujoco_renderer", None), "default_cam_config", None) or {})
    if settings.get("trackbodyid", -1) >= 0:
        settings["type"] = int(mujoco.mjtCamera.mjCAMERA_TRACKING)
    return MujocoView(
        lambda: (simulator.model, simulator.data),
        float(env.metadata.get("render_fps") or 1 / simulator.dt),
        tuple(dict.fromkeys((default, *names, "free"))),
        {"free": free_camera(simulator.model, **settings)},
    )
