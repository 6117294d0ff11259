"""What a checkpoint holds: all that a run needs to go on with the same bytes, as one typed value."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

# success_rate in [0, 1] and mean_return of the newest finished evaluation, and its point
Score = dict[str, float | None]
UNKNOWN_SCORE: Score = dict.fromkeys(("success_rate", "mean_return", "score_updates", "score_env_steps"))  # none yet


class TrainingPoint(NamedTuple):
    """How far a run has come."""

    updates: int  # gradient updates
    env_steps: int
    evaluated: bool  # whether the evaluation at this very point, if one is due, has been handed out

    @property
    def phase(self) -> Literal["offline", "online"]:
        """The hand-over is the last point of the offline phase."""
        return "online" if self.env_steps else "offline"


@dataclass
class MetricSums:
    """Sums of one run's metrics since its last log."""

    count: dict[str, int]  # updates added, by metric
    sums: dict[str, Tensor]  # () float64


@dataclass
class RolloutState:
    """A training environment: the episode under way is restored by playing its actions again."""

    episode: int  # its number; decides the reset seed
    actions: list[list[float]]  # taken in it so far
    chunk: list[list[float]]  # decided, not yet taken
    obs: list[float]  # to check the replay against


@dataclass
class PendingEvaluation:
    """An evaluation whose rows are not on disk: it starts anew."""

    phase: str
    updates: int
    env_steps: int
    policy: dict[str, Tensor]


@dataclass
class ReplaySegment:
    """A file of online transitions, which never changes."""

    name: str
    rows: int
    crc: int


@dataclass
class RunState:
    """One run at one point of its training."""

    point: TrainingPoint
    agent: dict[str, Tensor]  # Agent.state_of_seed
    metrics: MetricSums
    rollouts: list[RolloutState] | None = None  # of each training environment; None before the first one
    trajectories: dict[str, Tensor] | None = None  # of an on-policy agent, what it has collected since its last update
    pending: list[PendingEvaluation] = field(default_factory=list)  # in order of the schedule
    score: Score = field(default_factory=lambda: dict(UNKNOWN_SCORE))
    offsets: dict[str, int] = field(default_factory=dict)  # bytes of each CSV file that the state counts on
    replay: list[ReplaySegment] = field(default_factory=list)  # filled in where the state is saved

    def to_saved(self) -> dict[str, Any]:
        """As plain values and tensors, which `torch.load(weights_only=True)` reads."""
        return _plain(self)

    @staticmethod
    def from_saved(saved: Mapping[str, Any]) -> "RunState":
        """The inverse of `to_saved`; KeyError or TypeError for something else. Older checkpoints call the point
        `progress`, and have no score."""
        rollouts = saved["rollouts"]
        return RunState(
            point=TrainingPoint(*(saved["point"] if "point" in saved else saved["progress"])),
            agent=saved["agent"],
            metrics=MetricSums(**saved["metrics"]),
            rollouts=None if rollouts is None else [RolloutState(**rollout) for rollout in rollouts],
            trajectories=saved["trajectories"],
            pending=[PendingEvaluation(**evaluation) for evaluation in saved["pending"]],
            score=saved.get("score", dict(UNKNOWN_SCORE)),
            offsets=saved["offsets"],
            replay=[ReplaySegment(**segment) for segment in saved["replay"]],
        )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return tuple(value) if isinstance(value, tuple) else value
