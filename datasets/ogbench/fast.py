"""OGBench's cube environments, the same to the last bit, in less time. Imports the simulator: import it in a function.

Step, reset and physics are the package's own. What the package computes around the physics with small arrays and
rotation objects, some of it three times per step, is arithmetic of plain floats here. To agree to the last bit,
operations keep their kind and order: `y**2` is the C library's `pow`, which can differ from `y * y`, and NumPy's
`arctan2` differs from that of `math` on some processors.
"""

# MuJoCo's compiled functions have no stubs:
# pyright: reportAttributeAccessIssue=false

import hashlib
import math
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import ogbench.manipspace
from ogbench.manipspace.controllers import DiffIKController
from ogbench.manipspace.envs.cube_env import CubeEnv

# The package's sources whose arithmetic is repeated here, and the SHA-256 of those that it has been compared with.
REPEATED_SOURCES = (
    "controllers/diff_ik.py",
    "envs/cube_env.py",
    "envs/env.py",
    "envs/manipspace_env.py",
    "lie/se3.py",
    "lie/so3.py",
    "lie/utils.py",
)
KNOWN_DIGESTS = frozenset({"f442c41a23e73d30afe39eb8aa579d4a7bfddf7c07fe10c1beac17cd9f72ecb4"})  # of ogbench 1.2.2

Quaternion = tuple[float, float, float, float]  # w, x, y, z


@cache
def is_known() -> bool:
    """Whether the installed package is one that `FastCubeEnv` agrees with. Says so on stderr, once, where it is not."""
    agrees = source_digest() in KNOWN_DIGESTS
    if not agrees:
        print(
            f"warning: the cube environments of the installed ogbench {version('ogbench')} are not those that "
            "datasets/ogbench/fast.py agrees with; using the package's own step, which takes about 1.6 times as long",
            file=sys.stderr,
            flush=True,
        )
    return agrees


def source_digest() -> str:
    """SHA-256 of the installed package's sources whose arithmetic is repeated here."""
    folder = Path(ogbench.manipspace.__file__).parent
    return hashlib.sha256(b"\0".join((folder / name).read_bytes() for name in REPEATED_SOURCES)).hexdigest()


class FastCubeEnv(CubeEnv):
    """`CubeEnv` with state observations. Takes the same arguments.

    Its methods replace those of the same names, which the package's `step` and `reset` call.
    """

    full_info = True  # False: the info of a step holds `success` alone

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ik = FastIK(self._ik._model, ["attachment_site"])
        self._action_low = self.action_low.tolist()
        self._action_span = (self.action_high - self.action_low).tolist()
        self._bounds = self._workspace_bounds.tolist()
        self._down = _quaternion(self._effector_down_rotation.wxyz)
        self._up = _quaternion(self._effector_down_rotation.inverse().wxyz)
        self._painted: object = None  # what the colours of the cubes show

    def post_compilation(self) -> None:
        super().post_compilation()
        model, data = self.model, self.data
        # Else each substep clears 370 kB of marks that tell a viewer which volumes collision detection has tested.
        model.vis.global_.bvactive = 0
        # A new MjData sets a clock for the process, which each substep reads a dozen times to fill `MjData.timer`.
        if mujoco.get_mjcb_time() is None:  # not a clock of the user's
            mujoco.set_mjcb_time(None)
        # Views of the simulator's memory, which stays where it is until the next compilation.
        arm, gripper = self._arm_joint_ids, self._gripper_opening_joint_id
        self._arm_qpos, self._arm_qvel = _view(data.qpos, arm), _view(data.qvel, arm)
        self._arm_ctrl = _view(data.ctrl, self._arm_actuator_ids)
        self._gripper_qpos = data.qpos[gripper : gripper + 1]
        self._gripper_ctrl = _view(data.ctrl, self._gripper_actuator_ids)
        self._pinch_xpos = data.site_xpos[self._pinch_site_id]  # (3,)
        self._pinch_xmat = data.site_xmat[self._pinch_site_id]  # (9,)
        self._pinch_quat = np.empty(4)
        self._pad_force = data.cfrc_ext[model.body("ur5e/robotiq/right_pad").id]  # (6,)
        starts = [model.joint(f"object_joint_{cube}").qposadr[0] for cube in range(self._num_cubes)]
        self._cube_qpos = [data.qpos[start : start + 7] for start in starts]  # position and quaternion
        self._cube_xpos = [qpos[:3] for qpos in self._cube_qpos]
        self._cube_targets = [data.mocap_pos[mocap] for mocap in self._cube_target_mocap_ids]
        self._flange_rotation = _quaternion(self._T_pa.rotation().wxyz)
        self._flange_offset = (0.0, *self._T_pa.translation().tolist())

    def initialize_episode(self) -> None:
        self._painted = None
        super().initialize_episode()

    def set_control(self, action: np.ndarray) -> None:
        # The sum is taken in the precision of the action, the rest in double precision.
        dx, dy, dz, turn, close = (
            0.5 * above * span + low
            for above, span, low in zip((action + 1).tolist(), self._action_span, self._action_low, strict=True)
        )

        # The effector's target pose, within the workspace and pointing down.
        x, y, z = self._pinch_xpos.tolist()
        (x_low, y_low, z_low), (x_high, y_high, z_high) = self._bounds
        x, y, z = _clip(x + dx, x_low, x_high), _clip(y + dy, y_low, y_high), _clip(z + dz, z_low, z_high)
        yaw = _yaw(_product(_product(_about_z(turn), _about_z(_yaw(self._pinch_rotation()))), self._up))
        rotation = _product(_about_z(_clip(yaw, -math.pi, math.pi)), self._down)

        # The target pose of the flange, to which the gripper is attached, and the joint angles there.
        _, to_x, to_y, to_z = _product(_product(rotation, self._flange_offset), _inverse(rotation))
        self._arm_ctrl[:] = self._ik.solve(
            pos=np.array((to_x + x, to_y + y, to_z + z)),
            quat=np.array(_product(rotation, self._flange_rotation)),
            curr_qpos=self._arm_qpos,
        )
        self._gripper_ctrl[:] = 255.0 * _clip(self._opening() + close, 0.0, 1.0)

    def pre_step(self) -> None:
        self._prev_qpos = self.data.qpos.copy()
        self._prev_qvel = self.data.qvel.copy()

    def post_step(self) -> None:
        successes = self._compute_successes()
        colours = (successes, self._target_block)
        if colours != self._painted:
            super().post_step()
            self._painted = colours
        elif self._mode == "data_collection":
            self._success = successes[self._target_block]
        else:
            self._success = all(successes)

    def _compute_successes(self) -> list[bool]:
        offsets = [xpos - target for xpos, target in zip(self._cube_xpos, self._cube_targets, strict=True)]
        return [_norm(offset) <= 0.04 for offset in offsets]

    def compute_observation(self) -> np.ndarray:
        x, y, z = self._pinch_xpos.tolist()
        cubes = [qpos.tolist() for qpos in self._cube_qpos]
        sides = [_yaw_sides(rotation) for rotation in (self._pinch_rotation(), *(qpos[3:] for qpos in cubes))]
        yaws = np.arctan2([opposite for opposite, _ in sides], [adjacent for _, adjacent in sides])
        cos, sin = np.cos(yaws).tolist(), np.sin(yaws).tolist()
        values = self._arm_qpos.tolist() + self._arm_qvel.tolist()
        values += ((x - 0.425) * 10.0, y * 10.0, z * 10.0, cos[0], sin[0], self._opening() * 3.0, self._contact())
        for (x, y, z, *quat), cos_yaw, sin_yaw in zip(cubes, cos[1:], sin[1:], strict=True):
            values += ((x - 0.425) * 10.0, y * 10.0, z * 10.0, *quat, cos_yaw, sin_yaw)
        return np.array(values)

    def get_step_info(self) -> dict[str, Any]:
        return self.compute_ob_info() if self.full_info else {}

    def _pinch_rotation(self) -> list[float]:
        mujoco.mju_mat2Quat(self._pinch_quat, self._pinch_xmat)
        return self._pinch_quat.tolist()

    def _opening(self) -> float:
        """OGBench's gripper opening, 0 to 1; at 1 the gripper is closed."""
        return _clip(self._gripper_qpos.item() / 0.8, 0.0, 1.0)

    def _contact(self) -> float:
        """Force on one finger, 0 to 1."""
        return _clip(_norm(self._pad_force) / 50, 0.0, 1.0)


class FastIK(DiffIKController):
    """`DiffIKController` for one site and joints that are all hinges."""

    def __init__(self, model: mujoco.MjModel, sites: list[str]) -> None:
        super().__init__(model, sites)
        (self._site,) = self._site_ids.tolist()
        self._qpos = self._data.qpos
        self._site_xpos = self._data.site_xpos[self._site]
        self._site_xmat = self._data.site_xmat[self._site]
        self._quats = np.empty((3, 4))
        (self._error,) = self._err  # (6,)

    def solve(
        self,
        pos: np.ndarray,
        quat: np.ndarray,
        curr_qpos: np.ndarray,
        max_iters: int = 20,
        pos_thresh: float = 1e-4,
        ori_thresh: float = 1e-4,
    ) -> np.ndarray:
        model, data, jac = self._model, self._data, self._jac
        error, jac_pos, jac_ori = self._error, jac[:3], jac[3:]
        error_pos, error_ori = error[:3], error[3:]
        site_quat, inverse, difference = self._quats
        self._qpos[:] = curr_qpos
        for _ in range(max_iters):
            mujoco.mj_kinematics(model, data)
            np.subtract(pos, self._site_xpos, out=error_pos)
            mujoco.mju_mat2Quat(site_quat, self._site_xmat)
            mujoco.mju_negQuat(inverse, site_quat)
            mujoco.mju_mulQuat(difference, quat, inverse)
            mujoco.mju_quat2Vel(error_ori, difference, 1.0)
            if _norm(error_pos) <= pos_thresh and _norm(error_ori) <= ori_thresh:
                break
            mujoco.mj_comPos(model, data)  # for the Jacobian only
            mujoco.mj_jacSite(model, data, jac_pos, jac_ori, self._site)
            update = jac.T @ np.linalg.solve(jac @ jac.T + self._damping, error)
            largest = max(map(abs, update.tolist()))
            if largest > self._max_angle_change:
                update *= self._max_angle_change / largest
            self._qpos += update
        return self._qpos.copy()


def _view(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """View of consecutive elements."""
    view = array[indices[0] : indices[-1] + 1]
    if len(view) != len(indices):
        raise ValueError(f"elements {indices} are not consecutive")
    return view


def _norm(vector: np.ndarray) -> float:
    return math.sqrt(vector.dot(vector))


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _quaternion(wxyz: np.ndarray) -> Quaternion:
    w, x, y, z = wxyz.tolist()
    return w, x, y, z


def _about_z(angle: float) -> Quaternion:
    """The rotation by an angle in radians, at most half a turn, about the vertical."""
    squared = angle * angle
    if squared < 1e-10:
        fourth = squared * squared
        return 1.0 - squared / 8.0 + fourth / 384.0, 0.0, 0.0, (0.5 - squared / 48.0 + fourth / 3840.0) * angle
    theta = math.sqrt(squared)
    return float(np.cos(0.5 * theta)), 0.0, 0.0, float(np.sin(0.5 * theta)) / theta * angle


def _product(a: Quaternion, b: Quaternion) -> Quaternion:
    w0, x0, y0, z0 = a
    w1, x1, y1, z1 = b
    return (
        -x0 * x1 - y0 * y1 - z0 * z1 + w0 * w1,
        x0 * w1 + y0 * z1 - z0 * y1 + w0 * x1,
        -x0 * z1 + y0 * w1 + z0 * x1 + w0 * y1,
        x0 * y1 - y0 * x1 + z0 * w1 + w0 * z1,
    )


def _inverse(rotation: Quaternion) -> Quaternion:
    w, x, y, z = rotation
    return w, -x, -y, -z


def _yaw_sides(rotation: Sequence[float]) -> tuple[float, float]:
    """Sides opposite and adjacent to the yaw angle of a quaternion."""
    w, x, y, z = rotation
    return 2 * (w * z + x * y), 1 - 2 * (y**2 + z**2)


def _yaw(rotation: Sequence[float]) -> float:
    return float(np.arctan2(*_yaw_sides(rotation)))
