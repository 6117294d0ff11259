"""robosuite's Lift, Can and Square, the same to the last bit, in a third of the time. Imports the simulator.

Resets, goals of the arm, rewards and sensors are the package's own. It simulates 25 substeps per step, and in each of
them computes positions and forces three times, updates every sensor, and looks up everything by name; and at each
reset it builds the model anew from XML. Here a substep computes once what its torques need, sensors are read in the one
substep in which the package samples them, and a reset sets what differs from one compilation to the next: the size of
Lift's cube. To agree to the last bit, operations keep their kind, order and library: NumPy's products and those of
compiled code come from different BLAS builds.
"""

# MuJoCo's compiled functions have no stubs, robosuite's attributes no types:
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportCallIssue=false
# pyright: reportArgumentType=false

import hashlib
import sys
from collections import OrderedDict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import robosuite
from robosuite.environments.manipulation.lift import Lift
from robosuite.environments.manipulation.nut_assembly import NutAssemblySquare
from robosuite.environments.manipulation.pick_place import PickPlaceCan
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error
from robosuite.utils.mjcf_utils import get_size

# The package's sources whose work is repeated or left out here, and the SHA-256 of those it has been compared with.
REPEATED_SOURCES = (
    "controllers/composite/composite_controller.py",
    "controllers/parts/arm/osc.py",
    "controllers/parts/controller.py",
    "controllers/parts/gripper/gripper_controller.py",
    "controllers/parts/gripper/simple_grip.py",
    "environments/base.py",
    "environments/manipulation/lift.py",
    "environments/manipulation/manipulation_env.py",
    "environments/manipulation/nut_assembly.py",
    "environments/manipulation/pick_place.py",
    "environments/robot_env.py",
    "models/grippers/panda_gripper.py",
    "models/objects/generated_objects.py",
    "models/objects/primitive/box.py",
    "robots/fixed_base_robot.py",
    "robots/robot.py",
    "utils/binding_utils.py",
    "utils/control_utils.py",
    "utils/mjcf_utils.py",
    "utils/observables.py",
    "utils/placement_samplers.py",
    "utils/transform_utils.py",
)
KNOWN_DIGESTS = frozenset({"860a364d123e459c63c1eb7a17e13aef28b112994a23f339fae0b9e3fdee57e3"})  # of robosuite 1.5.1

ROBOT_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


@cache
def is_known() -> bool:
    """Whether the installed package is one that this module agrees with. Says so on stderr, once, where it is not."""
    agrees = source_digest() in KNOWN_DIGESTS
    if not agrees:
        print(
            f"warning: the environments of the installed robosuite {version('robosuite')} are not those that "
            "datasets/robomimic/fast.py agrees with; using the package's own, which take about 3 times as long",
            file=sys.stderr,
            flush=True,
        )
    return agrees


def source_digest() -> str:
    """SHA-256 of the installed package's sources that this module stands in for."""
    folder = Path(robosuite.__file__).parent
    return hashlib.sha256(b"\0".join((folder / name).read_bytes() for name in REPEATED_SOURCES)).hexdigest()


class FastSteps:
    """Mixed into an environment of the package with one Panda arm that is controlled by OSC_POSE in the world's frame.

    `step` returns, of the observations, those of the published protocol alone. Takes the same arguments except
    `hard_reset`: in place of building the model anew, a reset changes in it what would be drawn anew.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, hard_reset=False)
        # Else each substep clears marks that tell a viewer which of 360,000 volumes were tested for collisions.
        self.sim.model._model.vis.global_.bvactive = 0
        # A new MjData sets a clock for the process, which each substep reads a dozen times to fill `MjData.timer`.
        if mujoco.get_mjcb_time() is None:  # not a clock of the user's
            mujoco.set_mjcb_time(None)

    def _setup_observables(self) -> OrderedDict:
        observables = super()._setup_observables()  # type: ignore[misc]
        self._object_keys = [
            name
            for name, observable in observables.items()
            if observable.modality == "object" and observable.is_enabled() and observable.is_active()
        ]
        # `world_pose_in_gripper` is not observed itself, but the object's relative pose comes from it.
        needed = {*ROBOT_KEYS, "world_pose_in_gripper", *self._object_keys}
        self._sampled = [observable for name, observable in observables.items() if name in needed]
        return observables

    def _reset_internal(self) -> None:
        super()._reset_internal()  # type: ignore[misc]
        robot = self.robots[0]
        arm = robot.part_controllers["right"]
        model, data = self.sim.model._model, self.sim.data._data
        self._composite = robot.composite_controller
        self._arm, self._hand = arm, robot.part_controllers["right_gripper"]
        self._model, self._data = model, data
        self._site = self.sim.model.site_name2id(arm.ref_name)
        # Views of the simulator's memory, which stays where it is.
        self._site_xpos = data.site_xpos[self._site]  # (3,)
        self._site_xmat = data.site_xmat[self._site].reshape(3, 3)
        self._qvel = data.qvel  # (V,)
        self._arm_qpos, self._arm_qvel = _view(data.qpos, arm.qpos_index), _view(data.qvel, arm.qvel_index)  # (J,)
        self._arm_bias = _view(data.qfrc_bias, arm.qvel_index)  # (J,)
        self._arm_ctrl, *self._arm_range = self._actuators("right")
        self._hand_ctrl, *self._hand_range = self._actuators("right_gripper")
        # Jacobians and inertia of all degrees of freedom, and of the arm's.
        dofs, joints = slice(arm.qvel_index[0], arm.qvel_index[-1] + 1), len(arm.qvel_index)
        self._jac_pos, self._jac_ori = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        self._jac_views = self._jac_pos[:, dofs], self._jac_ori[:, dofs]
        self._arm_jac_pos, self._arm_jac_ori = np.zeros((3, joints)), np.zeros((3, joints))
        self._arm_jac = np.zeros((6, joints))
        self._mass = np.zeros((model.nv, model.nv))
        self._mass_view = self._mass[dofs, dofs]
        self._arm_mass = np.zeros((joints, joints), order="F")  # as the package's indexing leaves it
        self._wrench = np.zeros(6)
        self._gains = arm.kp[:3], arm.kd[:3], arm.kp[3:], arm.kd[3:]

    def _actuators(self, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Their controls, and the lower and upper limits of these."""
        indexes = self.robots[0]._ref_actuators_indexes_dict[part]
        low, high = self.sim.model.actuator_ctrlrange[indexes].T.copy()
        return _view(self._data.ctrl, indexes), low, high

    def step(self, action: np.ndarray) -> tuple[OrderedDict, float, bool, dict]:
        """One control step of 50 ms; the arguments and results are the package's."""
        if self.done:
            raise ValueError("executing action in terminated episode")
        self.timestep += 1
        model, data, timestep = self._model, self._data, self.model_timestep
        clock = self._sampled[0]
        period, elapsed, sampled = clock._sampling_timestep, clock._time_since_last_sample, clock._sampled
        mj_step1, mj_step2, minimum, maximum = mujoco.mj_step1, mujoco.mj_step2, np.minimum, np.maximum
        arm, arm_ctrl, (low, high) = self._arm, self._arm_ctrl, self._arm_range
        for substep in range(int(self.control_timestep / timestep)):
            mj_step1(model, data)
            if substep == 0 and self.timestep == 1:
                # The package goes by what its controller saw when it was made, amid the reset.
                self._composite.set_goal(action)
                torques = arm.run_controller()
            else:
                if substep == 0:
                    arm.ref_pos[:] = self._site_xpos
                    arm.ref_ori_mat[:] = self._site_xmat
                    arm.new_update = False
                    self._composite.set_goal(action)
                    arm.new_update = True
                torques = self._torques()
            minimum(maximum(torques, low), high, out=arm_ctrl)
            if substep == 0:
                hand_low, hand_high = self._hand_range
                minimum(maximum(self._hand.run_controller(), hand_low), hand_high, out=self._hand_ctrl)
            mj_step2(model, data)
            # The package's sensors have a clock each, which all show the same.
            elapsed += timestep
            if not sampled and period >= elapsed:
                self._sample()
                sampled = True
            if elapsed >= period:
                elapsed %= period
                sampled = False
        for observable in self._observables.values():
            observable._time_since_last_sample, observable._sampled = elapsed, sampled
        self.cur_time += self.control_timestep
        reward, done, info = self._post_action(action)
        return self._observed(), reward, done, info

    def _sample(self) -> None:
        for observable in self._sampled:
            value = np.array(observable._sensor(self._obs_cache))
            observable._current_observed_value = value
            self._obs_cache[observable.name] = value

    def _observed(self) -> OrderedDict:
        values = self._observables
        observed = OrderedDict((key, values[key].obs) for key in ROBOT_KEYS)
        observed["object-state"] = np.concatenate([values[key].obs for key in self._object_keys])
        return observed

    def _torques(self) -> np.ndarray:
        """Torques of the arm's joints (J,), in Nm, before they are limited: operational space control."""
        arm, mass, wrench, dot = self._arm, self._arm_mass, self._wrench, np.dot
        jac_pos, jac_ori, jac = self._arm_jac_pos, self._arm_jac_ori, self._arm_jac
        kp_pos, kd_pos, kp_ori, kd_ori = self._gains
        mujoco.mj_jacSite(self._model, self._data, self._jac_pos, self._jac_ori, self._site)
        jac[:3] = jac_pos[:] = self._jac_views[0]
        jac[3:] = jac_ori[:] = self._jac_views[1]
        mujoco.mj_fullM(self._model, self._mass, self._data.qM)
        mass[:] = self._mass_view

        # The robot's base, to which the package refers velocities, does not move.
        force = (arm.goal_pos - self._site_xpos) * kp_pos + -dot(self._jac_pos, self._qvel) * kd_pos
        turn = orientation_error(arm.goal_ori, self._site_xmat) * kp_ori + -dot(self._jac_ori, self._qvel) * kd_ori
        _, lambda_pos, lambda_ori, nullspace = opspace_matrices(mass, jac, jac_pos, jac_ori)
        wrench[:3] = dot(lambda_pos, force)
        wrench[3:] = dot(lambda_ori, turn)
        torques = dot(jac.T, wrench) + self._arm_bias
        torques += nullspace_torques(mass, nullspace, arm.initial_joint, self._arm_qpos, self._arm_qvel)
        return torques


class FastLift(FastSteps, Lift):
    """Lift, whose cube has another size in every episode."""

    def reset(self) -> OrderedDict:
        size = get_size(None, [0.022, 0.022, 0.022], [0.020, 0.020, 0.020], [0.07, 0.07, 0.07], [0.03, 0.03, 0.03])
        self.cube.size = list(size)
        model, data = self.sim.model._model, self.sim.data._data
        body = self.cube_body_id
        first = model.body_geomadr[body]
        x, y, z = size.tolist()
        for geom in range(first, first + model.body_geomnum[body]):  # one that collides, one that is seen
            model.geom_size[geom] = size
            model.geom_aabb[geom, 3:] = size
            model.geom_rbound[geom] = np.sqrt(x * x + y * y + z * z)
        model.bvh_aabb[model.body_bvhadr[body], 3:] = size
        mass = x * y * z * 8 * 1000.0
        model.body_mass[body] = mass
        model.body_inertia[body] = mass * (y * y + z * z) / 3, mass * (x * x + z * z) / 3, mass * (x * x + y * y) / 3
        mujoco.mj_setConst(model, data)
        return super().reset()


class FastCan(FastSteps, PickPlaceCan):
    """PickPlaceCan."""


class FastSquare(FastSteps, NutAssemblySquare):
    """NutAssemblySquare."""


ENVS = {"Lift": FastLift, "PickPlaceCan": FastCan, "NutAssemblySquare": FastSquare}  # by the package's names


def _view(array: np.ndarray, indexes: list[int]) -> np.ndarray:
    """The entries as a view: writing to one changes the other. They follow one another."""
    first, last = int(indexes[0]), int(indexes[-1])
    assert [int(index) for index in indexes] == list(range(first, last + 1)), indexes
    return array[first : last + 1]
