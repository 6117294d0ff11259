"""Scripted experts for robosuite's Lift, Can and Square, which see and move what a simulator that is handed in holds.

They look at the scene at every step and head for way points that move with it, so they correct what went wrong.
Several strategies, speeds and degrees of care make the data multimodal and, in sets of kind "mixed", of mixed quality.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

Vector = tuple[float, float, float]  # metres
Pose = tuple[np.ndarray, float]  # (3,) metres in the world's frame, and a turn about the vertical in radians


@dataclass(frozen=True)
class Strategy:
    """One way to do a task; each is followed in an equal share of the episodes."""

    name: str
    turn: int = 0  # of the ways to grasp the object: 0 asks for the least turn of the wrist, 1 for the next one, …
    side: int = 0  # of the ways to fit the nut onto the peg, likewise
    approach: Vector = (0.0, 0.0, 0.1)  # way point before the grasp, in the frame of the turned hand
    grasp: float = 0.0  # metres from the object's centre: up the can, or along the nut's handle
    detour: Vector = (0.0, 0.0, 0.0)  # of the way point half way to the goal, in the world's frame
    goal: Vector = (0.0, 0.0, 0.0)  # where the can is let go, from where it stands in its compartment


@dataclass(frozen=True)
class Quality:
    """How a share of the episodes goes."""

    name: str
    share: float
    speed: tuple[float, float] = (0.6, 1.0)  # range of the size of the greatest action
    noise: float = 0.05  # standard deviation of what is added to actions
    aim: float = 0.002  # metres, standard deviation of the place of a grasp
    pauses: tuple[int, int] = (0, 4)  # range of the steps of a rest between two movements
    misses: int = 0  # first grasps that are beside the object or above it
    after_miss: str = "retry"  # or "leave", or "pretend" to hold the object
    drops: bool = False  # lets go of the object on its way, and leaves
    dawdles: bool = False  # hovers about until the time is over


STRATEGIES = {
    "lift": (
        Strategy("from above"),
        Strategy("from above, turned", turn=1),
        Strategy("low from the near side", approach=(-0.1, 0.0, 0.03)),
        Strategy("low from the side, turned", turn=1, approach=(-0.1, 0.0, 0.03)),
    ),
    "can": (
        Strategy("high, dropped", approach=(0.0, 0.0, 0.14), detour=(0.0, 0.0, 0.13), goal=(0.0, 0.0, 0.1)),
        Strategy("near the robot, turned", turn=1, approach=(-0.05, 0.0, 0.1), detour=(-0.15, 0.0, 0.0)),
        Strategy("far from the robot", grasp=0.015, detour=(0.15, 0.0, 0.03), goal=(0.01, 0.02, 0.02)),
        Strategy("straight, turned back", turn=2, grasp=-0.01, goal=(-0.02, -0.03, 0.02)),
    ),
    "square": (
        Strategy("straight", grasp=0.06),
        Strategy("straight, other side", side=1, grasp=0.06),
        Strategy("wide, by the handle's end", grasp=0.068, approach=(0.0, 0.0, 0.15), detour=(0.0, 0.15, 0.03)),
        Strategy("near the robot, by the ring", grasp=0.059, approach=(-0.05, 0.0, 0.09), detour=(-0.12, 0.0, 0.03)),
    ),
}
QUALITIES = {
    "expert": (Quality("clean", share=1.0),),
    "mixed": (
        Quality("clean", share=0.35),
        Quality("sloppy", share=0.25, speed=(0.4, 0.8), noise=0.15, aim=0.006, pauses=(0, 12)),
        Quality("misses, recovers", share=0.15, speed=(0.4, 0.9), noise=0.1, pauses=(0, 10), misses=1),
        Quality("misses, leaves", share=0.08, speed=(0.4, 0.9), noise=0.15, misses=1, after_miss="leave"),
        Quality("misses, pretends", share=0.06, noise=0.1, misses=1, after_miss="pretend"),
        Quality("drops", share=0.08, speed=(0.4, 0.9), noise=0.15, drops=True),
        Quality("dawdles", share=0.03, speed=(0.3, 0.5), noise=0.15, dawdles=True),
    ),
}

TRIES = 4  # grasps
GAIN, TURN_GAIN = (14.0, 22.0), (1.4, 2.2)  # ranges of the action per metre and per radian that is missing
CLOSING = (7, 11)  # range of the steps that the fingers are given
HOVER = (0.8, 1.3)  # range of the factor on a strategy's approach and detour
SCATTER = 0.015  # metres, greatest distance along x and y of the place of a can from its strategy's
NOISE_MEMORY = 0.7  # correlation of the noise of two successive steps
TURN_NOISE = 0.5  # noise of turns, relative to that of moves
PATIENCE = 12  # steps without coming nearer, after which a way point has to do
LEAVING = (8, 25)  # range of the steps of an expert that leaves

_WRIST = (-2.0, 2.0)  # radians from straight ahead that no joint hinders the hand to turn
_BODIES = {"lift": "cube_main", "can": "Can_main", "square": "SquareNut_main"}
_SYMMETRY = {"lift": np.pi / 2, "can": np.pi / 3, "square": np.pi}  # radians between grasps that are alike
_MISS = {"lift": (0.055, 0.05), "can": (0.07, 0.09), "square": (0.07, 0.05)}  # metres beside and above the object
_CAN_GOAL = np.array([0.165, 0.365, 0.86])  # metres, the centre of a can in its compartment, towards the robot
_PEG = np.array([0.23, 0.1, 0.83])  # metres, the centre of a nut at the foot of its peg
_FITTED = 0.87  # metres, a nut below this is around its peg
_BASE, _REACH = np.array([-0.56, 0.0, 0.0]), 0.81  # metres, of the arm at the table with pegs
_CLEAR = {"can": 1.0, "square": 0.985}  # metres, an object's centre above walls and peg
_LEVER = 0.1  # metres per radian: weighs turns against moves
_LOST = 0.03  # metres that an object held may shift in the hand


def behaviour_of(domain: str, kind: str, index: int) -> tuple[Strategy, Quality]:
    """Those of episode `index`; any run of consecutive episodes holds all shares, and pairs of them, closely."""
    plastic = 1.32471795724474602596  # multiples of its inverse and of its square's, modulo 1, fill the unit square
    strategies, qualities = STRATEGIES[domain], QUALITIES[kind]
    strategy = strategies[int((0.5 + index / plastic) % 1 * len(strategies))]
    position = (0.5 + index / plastic**2) % 1 * sum(quality.share for quality in qualities)
    for quality in qualities:
        position -= quality.share
        if position < 0:
            return strategy, quality
    return strategy, qualities[-1]


class Command(NamedTuple):
    """Where the hand shall go."""

    place: np.ndarray  # (3,) metres
    turn: float  # radians
    closed: bool
    hurry: float = 1.0  # factor on the expert's speed


Commands = Generator[Command, None, bool]  # one for each step; returns whether all has gone as intended


class Scene:
    """What an expert sees at the moment: poses in the world's frame, in metres and radians."""

    def __init__(self, simulator: Any, domain: str) -> None:
        self.domain = domain
        self._data = simulator.sim.data
        self._site = simulator.robots[0].eef_site_id["right"]
        self._body = simulator.sim.model.body_name2id(_BODIES[domain])

    @property
    def hand(self) -> np.ndarray:
        """(3,) the point between the fingertips."""
        return np.array(self._data.site_xpos[self._site])

    @property
    def hand_rotation(self) -> np.ndarray:
        return np.array(self._data.site_xmat[self._site]).reshape(3, 3)

    @property
    def hand_turn(self) -> float:
        return float(np.arctan2(self.hand_rotation[1, 1], self.hand_rotation[0, 1]))

    @property
    def object(self) -> np.ndarray:
        """(3,) the centre of cube, can or nut."""
        return np.array(self._data.body_xpos[self._body])

    @property
    def object_turn(self) -> float:
        rotation = np.array(self._data.body_xmat[self._body]).reshape(3, 3)
        return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


class Expert:
    """Plays one episode, with a strategy, a quality, and what it draws for the episode."""

    def __init__(self, scene: Scene, strategy: Strategy, quality: Quality, rng: np.random.Generator) -> None:
        self.scene, self.strategy, self.quality, self.rng = scene, strategy, quality, rng
        self.speed = rng.uniform(*quality.speed)
        self.gain, self.turn_gain = rng.uniform(*GAIN), rng.uniform(*TURN_GAIN)
        self.hover = rng.uniform(*HOVER)
        self.noise = np.zeros(6)
        self.distance = 0.0  # metres between hand and object as it was taken

    def action(self, command: Command) -> np.ndarray:
        """(7,) float32 in [-1, 1]: move and turn of the hand in the world's frame, and of the fingers."""
        speed = self.speed * command.hurry
        move = _at_most(speed, self.gain * (command.place - self.scene.hand))
        missing = Rotation.from_matrix(_pointing_down(command.turn) @ self.scene.hand_rotation.T).as_rotvec()
        turn = _at_most(speed, self.turn_gain * missing)
        fresh = self.rng.normal(0, self.quality.noise, 6) * (1, 1, 1, TURN_NOISE, TURN_NOISE, TURN_NOISE)
        self.noise = NOISE_MEMORY * self.noise + np.sqrt(1 - NOISE_MEMORY**2) * fresh
        action = np.append(np.concatenate([move, turn]) + self.noise, 1 if command.closed else -1)
        return action.clip(-1, 1).astype(np.float32)

    def play(self) -> Commands:
        """The whole episode: ends when the task is done or given up."""
        if self.quality.dawdles:
            yield from self.dawdle()
        deliver = {"lift": self.lift, "can": self.put_down, "square": self.fit}[self.scene.domain]
        for attempt in range(TRIES):
            misses = attempt < self.quality.misses
            holds = yield from self.take(misses)
            if misses and self.quality.after_miss == "leave":
                break
            pretends = misses and self.quality.after_miss == "pretend"
            if (holds or pretends) and ((yield from deliver(pretends)) or pretends or self.quality.drops):
                break
        yield from self.leave()
        return True

    def take(self, misses: bool) -> Commands:
        """Closes the hand about the object and raises it a little; returns whether the object comes along."""
        scene, domain = self.scene, self.scene.domain
        error = self.rng.normal(0, self.quality.aim, 3)
        if misses:
            beside, above = _MISS[domain]
            error += (beside, 0, 0) if self.rng.random() < 0.5 else (0, 0, above)
        offset = self.grasp_turn() - scene.object_turn  # the object may be pushed and turn
        height = self.rng.uniform(0.0, 0.006)

        def grasp(approach: np.ndarray) -> Pose:
            turn = scene.object_turn + offset
            if domain == "square":
                held_at = _turned(np.array([self.strategy.grasp, 0, height]), scene.object_turn)
            else:
                held_at = np.array([0, 0, height + self.strategy.grasp])
            return scene.object + held_at + _turned(error + approach, turn), turn

        approach = self.hover * np.array(self.strategy.approach)
        yield from self.go(lambda: grasp(approach), closed=False, near=0.02)
        yield from self.rest(closed=False)
        yield from self.go(lambda: grasp(np.zeros(3)), closed=False, near=0.008, hurry=0.7, most=60)
        place, turn, before = scene.hand, scene.hand_turn, scene.object[2]
        for _ in range(self.rng.integers(*CLOSING)):
            yield Command(place, turn, closed=True)
        # A cube that will be let go must not count as lifted before.
        slips = domain == "lift" and self.quality.drops and not misses
        raised = 0.012 if slips else 0.05
        above = place + np.array([0, 0, raised])
        yield from self.go(lambda: (above, turn), closed=True, near=0.01, most=2 if slips else 100)
        self.distance = float(np.linalg.norm(scene.object - scene.hand))
        return slips or bool(scene.object[2] > before + raised / 2)

    def lift(self, pretends: bool) -> Commands:
        """Raises the cube, or an empty hand."""
        if self.quality.drops:
            yield from self.let_go()
            return False
        place, turn = self.scene.hand + np.array([0, 0, self.rng.uniform(0.05, 0.12)]), self.scene.hand_turn
        return (yield from self.go(lambda: (place, turn), closed=True, near=0.01, holds=not pretends))

    def put_down(self, pretends: bool) -> Commands:
        """Lets go of the can in its compartment."""
        goal = _CAN_GOAL + self.strategy.goal + (*self.rng.uniform(-SCATTER, SCATTER, 2), 0)
        turn = self.scene.hand_turn
        if not (yield from self.carry(goal, turn, pretends)):
            return False
        yield from self.go(lambda: (self.hand_for(goal, pretends), turn), closed=True, near=0.015, holds=not pretends)
        yield from self.rest(closed=True)
        yield from self.let_go()
        return True

    def fit(self, pretends: bool) -> Commands:
        """Lowers the nut onto its peg."""
        scene = self.scene
        hand_turn, nut_turn = self.fit_turns()

        def turn() -> float:
            return hand_turn if pretends else scene.hand_turn + _wrapped(nut_turn - scene.object_turn)

        if not (yield from self.carry(_PEG, hand_turn, pretends)):
            return False
        above = np.array([*_PEG[:2], _CLEAR["square"]])
        for _ in range(TRIES):
            aligned = yield from self.go(
                lambda: (self.hand_for(above, pretends), turn()),
                closed=True,
                near=0.005,
                near_turn=0.06,
                hurry=0.5,
                settle=3,
                holds=not pretends,
            )
            lowered = aligned and (
                yield from self.go(
                    lambda: (self.hand_for(_PEG, pretends), turn()),
                    closed=True,
                    near=0.012,
                    hurry=0.6,
                    holds=not pretends,
                )
            )
            if not lowered:
                return False
            if pretends or scene.object[2] < _FITTED:
                break
        yield from self.let_go()
        return True

    def carry(self, goal: np.ndarray, turn: float, pretends: bool) -> Commands:
        """Brings the object above its goal, by the strategy's detour; returns whether it is still held."""
        start, above = self.scene.object, np.array([*goal[:2], _CLEAR[self.scene.domain]])
        halfway = np.array([*(start + goal)[:2] / 2, above[2]]) + self.hover * np.array(self.strategy.detour)
        raised = np.array([*start[:2], above[2]])
        legs = ((raised, 0.04), (halfway, 0.05), (above, 0.02))
        for place, near in legs:
            pose = lambda place=place: (self.hand_for(place, pretends), turn)  # noqa: E731
            near_turn = 0.3 if place is above else np.inf
            if not (yield from self.go(pose, closed=True, near=near, near_turn=near_turn, holds=not pretends)):
                return False
            if self.quality.drops and place is halfway:
                yield from self.let_go()
                return False
        yield from self.rest(closed=True)
        return pretends or self.holds()

    def go(
        self,
        pose: Callable[[], Pose],
        closed: bool,
        near: float,
        near_turn: float = 0.15,
        hurry: float = 1.0,
        most: int = 100,
        settle: int = 1,
        holds: bool = False,
    ) -> Commands:
        """Heads for a pose, which may move, until it has been near for `settle` steps, or comes no nearer.

        Returns False as soon as an object that it `holds` is lost.
        """
        scene = self.scene
        best, since_best, settled = np.inf, 0, 0
        for _ in range(most):
            if holds and not self.holds():
                return False
            place, turn = pose()
            distance, angle = float(np.linalg.norm(place - scene.hand)), abs(_wrapped(turn - scene.hand_turn))
            settled = settled + 1 if distance < near and angle < near_turn else 0
            if settled == settle:
                return True
            since_best += 1
            if distance + _LEVER * angle < best - 0.002:
                best, since_best = distance + _LEVER * angle, 0
            if since_best > PATIENCE:
                return True
            yield Command(place, turn, closed, hurry)
        return True

    def rest(self, closed: bool) -> Commands:
        place, turn = self.scene.hand, self.scene.hand_turn
        for _ in range(self.rng.integers(*self.quality.pauses)):
            yield Command(place, turn, closed)
        return True

    def let_go(self) -> Commands:
        place, turn = self.scene.hand, self.scene.hand_turn
        for _ in range(self.rng.integers(*CLOSING)):
            yield Command(place, turn, closed=False)
        return True

    def leave(self) -> Commands:
        """Moves up and away; the hand of a cube's expert stays closed, as lifting it is all of the task."""
        place, turn = self.scene.hand + np.array([0, 0, 0.08]), self.scene.hand_turn
        closed = self.scene.domain == "lift" and self.holds() and not self.quality.drops
        for _ in range(self.rng.integers(*LEAVING)):
            yield Command(place, turn, closed)
        return True

    def dawdle(self) -> Commands:
        """Hovers from place to place around the object."""
        while True:
            place = self.scene.object + self.rng.uniform((-0.12, -0.12, 0.06), (0.12, 0.12, 0.2))
            turn = self.rng.uniform(-0.5, 0.5)
            yield from self.go(lambda place=place, turn=turn: (place, turn), closed=False, near=0.03, most=40)
            yield from self.rest(closed=False)

    def holds(self) -> bool:
        """Whether the object is where it was in the hand when it was taken."""
        distance = np.linalg.norm(self.scene.object - self.scene.hand)
        return bool(abs(distance - self.distance) < _LOST)

    def hand_for(self, place: np.ndarray, pretends: bool) -> np.ndarray:
        """(3,) where the hand has to be for the object to be at a place."""
        return place if pretends else place + self.scene.hand - self.scene.object

    def grasp_turn(self) -> float:
        """The hand's turn for the strategy's grasp."""
        step = _SYMMETRY[self.scene.domain]
        turns = {_wrapped(self.scene.object_turn + step * k) for k in range(round(2 * np.pi / step))}
        near = sorted((turn for turn in turns if _WRIST[0] < turn < _WRIST[1]), key=abs)
        return near[min(self.strategy.turn, len(near) - 1)]

    def fit_turns(self) -> tuple[float, float]:
        """Turns of hand and nut with which the nut fits onto its peg, on the strategy's side."""
        scene = self.scene
        ways = [(scene.hand_turn + _wrapped(turn - scene.object_turn), turn) for turn in np.pi / 2 * np.arange(4)]

        def can_reach(way: tuple[float, float]) -> bool:
            hand = _PEG + _turned(scene.hand - scene.object, way[1] - scene.object_turn)
            return _WRIST[0] < way[0] < _WRIST[1] and float(np.linalg.norm((hand - _BASE)[:2])) < _REACH

        ways = list(filter(can_reach, ways)) or ways
        near = sorted(ways, key=lambda way: abs(way[0] - scene.hand_turn))
        return near[min(self.strategy.side, len(near) - 1)]


def _at_most(size: float, vector: np.ndarray) -> np.ndarray:
    return vector * min(1.0, size / max(float(np.linalg.norm(vector)), 1e-9))


def _wrapped(angle: float) -> float:
    """The same direction within [-pi, pi)."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _turned(vector: np.ndarray, turn: float) -> np.ndarray:
    """(3,) turned about the vertical."""
    cos, sin = np.cos(turn), np.sin(turn)
    return np.array([cos * vector[0] - sin * vector[1], sin * vector[0] + cos * vector[1], vector[2]])


def _pointing_down(turn: float) -> np.ndarray:
    """(3, 3) rotation of a hand that points down; at turn 0 its fingers close along y."""
    cos, sin = np.cos(turn), np.sin(turn)
    return np.array([[-sin, cos, 0.0], [cos, sin, 0.0], [0.0, 0.0, -1.0]])
