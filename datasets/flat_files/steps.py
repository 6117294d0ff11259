"""Compares the ends that a flat file's keys show with its observations.

Where a row does not lead to the next one, an episode ends, whatever the keys say. Where it does although an end is
flagged, the task ends inside a trajectory, or the file has the observation after a reset there. And a step may be far
too long to be one.
"""

from typing import NamedTuple

import numpy as np

from datasets.flat_files.columns import Content
from datasets.flat_files.ends import Told, contradiction, count, starts_of, steps_since_end
from datasets.spec import DataError

_SAME_OBS = 1e-5  # relative to max(1, |x|): next_obs[t] and obs[t + 1] are the same state, rounded differently
_JUMP = 20  # times the median step: no step of the episode, but another episode
_LOOKED_AT = 2_048  # rows at the file's beginning, for whether rows follow each other
_SIDE_BY_SIDE = 64  # environments at most
_SHUFFLED = 0.75  # of the mean distance of any two rows: no step is as long


class Followed(NamedTuple):
    """Ends after a look at the observations."""

    ends: np.ndarray  # (N,) bool
    knows_next: np.ndarray  # (N,) bool: next_observations has the state that this row led to
    warnings: tuple[str, ...]


def follow(content: Content, told: Told, max_episode_steps: int) -> Followed:
    """Compares what is told with the observations. Raises DataError where they cannot both be right."""
    steps, apart = _scan(content, len(told.ends))
    ends = told.ends.copy()
    warnings = list(told.warnings)
    if apart is None and told.truncated is None and told.splits is None:  # D4RL's rule: no key tells time limits
        ends |= steps_since_end(ends) % max_episode_steps == max_episode_steps - 1
    usual = float(np.median(steps[~ends])) if not ends.all() else 0.0
    jumps = steps > _JUMP * usual if usual > 0 else np.zeros_like(ends)
    _check_task_ends_late(content, told, jumps if apart is None else apart)
    late = _late(told, jumps if apart is None else apart)
    if late.any():
        ends[late] = False
        ends[np.flatnonzero(late) - 1] = True
        ends[-1] = True
        key = content.key("truncated")
        warnings.append(f"'{key}' comes a row late: its {int(late.sum()):,} flags are read as of the row before")
    knows_next = np.full_like(ends, apart is not None)
    is_ours = "recipe" in content.notes  # written here: next observations are never those after a reset
    if apart is not None:
        cut = apart & ~ends
        _check_cuts(content, told, cut)
        warnings += _many_cuts(cut, ends)
        goes_on = ends & ~apart & ~told.no_transition
        goes_on[-1] = False
        solved = _solved_inside(told, goes_on, is_ours, jumps)
        ends = (ends | cut) & ~solved
        key = content.key("next_obs")
        if solved.any() and not is_ours:
            warnings.append(
                f"{count(solved)} end the task inside a trajectory that goes on in '{key}': kept so, no episode is "
                "cut there"
            )
        reset = goes_on & ~solved
        if reset.any() and not is_ours:
            _check_resets(content, told, cut, reset)
            knows_next &= ~reset
            warnings.append(
                f"'{key}' of {count(reset)} that end episodes is the observation after the reset, so the state they "
                "led to is unknown"
            )
    elif not is_ours and (line := _out_of_order(content, ends)):
        warnings.append(line)
    inside = jumps & ~ends
    if inside.any() and not is_ours:
        warnings.append(
            f"{count(inside)} jump by more than {_JUMP} times the median step inside an episode, the first is row "
            f"{int(inside.argmax())}: does an episode end there?"
        )
    return Followed(ends, knows_next, tuple(warnings))


def _many_cuts(cut: np.ndarray, ends: np.ndarray) -> list[str]:
    """A line where over a quarter of the rows do not lead to the next one though no end is told."""
    if cut.sum() <= len(cut) / 4:
        return []
    single = int((cut & starts_of(cut | ends)).sum())
    return [
        f"{count(cut)} do not lead to the next row though no end is told, as where environments are stepped side by "
        f"side or rows are shuffled; episodes are cut there, {single:,} have one step: no chunk of several steps fits"
    ]


def _solved_inside(told: Told, goes_on: np.ndarray, is_ours: bool, jumps: np.ndarray) -> np.ndarray:
    """(N,) bool: of the ends whose next observation is the next row's, those of the task alone, not of the episode.

    Else it is the observation after a reset, which is one for all ends of a file: time limits are ends for certain,
    and terminals where most are followed by a jump.
    """
    none = np.zeros_like(goes_on)
    if told.splits is not None:
        return none
    solved = goes_on & told.terminated & (True if told.truncated is None else ~told.truncated)
    if is_ours:
        return solved
    after_reset = (goes_on & ~solved).any() or 2 * (solved & jumps).sum() > solved.sum()
    return none if after_reset else solved


def _check_cuts(content: Content, told: Told, cut: np.ndarray) -> None:
    """Raises DataError where an episode breaks off whose rows a key says to lie together."""
    if told.rows_lie_together and cut.any():
        key = content.key("next_obs")
        row = int(cut.argmax())
        raise contradiction(content, told.splits or "", "goes on", key, "does not lead to the next row", row)


def _check_resets(content: Content, told: Told, cut: np.ndarray, reset: np.ndarray) -> None:
    """Raises DataError where episodes break off in other rows than those flagged, which go on.

    One break apart from them is the seam of a ring.
    """
    beside = np.append(cut[1:], False) | np.append(False, cut[:-1])
    if cut.sum() <= 1 and not (beside & reset).any():
        return
    at_limit = told.truncated is not None and (told.truncated & reset).any()
    flagged = told.splits or (content.key("truncated") if at_limit else told.source)
    key, row = content.key("next_obs"), int(cut.argmax())
    raise contradiction(content, flagged, "goes on", key, "does not lead to the next row", row)


def _check_task_ends_late(content: Content, told: Told, breaks: np.ndarray) -> None:
    """Raises DataError where each end of the task is flagged in the first row of the next episode.

    Of a flag in the file's last row alone nothing tells whether an episode goes on behind it.
    """
    rows = np.flatnonzero(told.terminated)
    if told.splits is not None or not len(rows) or rows[0] in (0, len(breaks) - 1):
        return
    if (breaks & ~told.ends)[rows - 1].all() and not breaks[rows].any():
        raise DataError(
            f"{content.file}: key '{told.source}' ends the task a row late in {count(told.terminated)}: the first is "
            f"row {rows[0]}, but it is row {rows[0] - 1} that does not lead to the next one; move its flags a row back"
        )


def _out_of_order(content: Content, ends: np.ndarray) -> str | None:
    """A line where rows do not seem to follow each other, as far as a file without next_observations can show it."""
    obs = next(content.column("obs").blocks())[:_LOOKED_AT].astype(np.float64)
    steps = _distances(obs[:-1], obs[1:])[~ends[: len(obs) - 1]]
    strides = range(2, min(_SIDE_BY_SIDE, len(obs) // 3) + 1)
    if not len(steps) or not strides:
        return None
    key, usual = content.key("obs"), np.median(steps)
    apart = {stride: np.median(_distances(obs[:-stride], obs[stride:])) for stride in strides}
    nearest = min(apart, key=lambda stride: apart[stride])
    if apart[nearest] < usual / 4:
        return (
            f"'{key}' of a row is nearer to that {nearest} rows on than to the next one ({apart[nearest]:.3g} against "
            f"{usual:.3g} in the median), as where {nearest} environments are stepped side by side: every row is read "
            "as leading to the next one, so put the rows of each episode together"
        )
    others = _distances(obs, np.random.default_rng(0).permutation(obs))
    if steps.mean() > _SHUFFLED * others.mean():
        return f"'{key}' of the next row is as far as that of any other row: are rows shuffled? They must be in order"
    return None


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.linalg.norm(one - other, axis=1)


def _late(told: Told, breaks: np.ndarray) -> np.ndarray:
    """(N,) bool: the time limits, where each is flagged in the first row of the next episode; else none."""
    none = np.zeros(len(breaks), bool)
    if told.splits is not None or told.truncated is None:
        return none
    late = told.truncated & ~told.terminated
    rows = np.flatnonzero(late)
    if not len(rows) or rows[0] == 0 or not (breaks & ~told.ends)[rows - 1].all() or breaks[rows[:-1]].any():
        return none
    return none if breaks[rows[-1]] and rows[-1] < len(breaks) - 1 else late


def _scan(content: Content, num_rows: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(N,) float32, how far it is to the next row's observation, and (N,) bool, whether next_observations differ from
    it; None without them."""
    steps = np.zeros(num_rows, np.float32)
    nexts = content.spelled("next_obs")[:1]
    apart = np.zeros(num_rows, bool) if nexts else None
    start = 0
    before: list[np.ndarray] = []  # the newest row's arrays
    for block in zip(*(column.blocks() for column in (*content.spelled("obs")[:1], *nexts)), strict=True):
        pairs = [(start, list(block), block[0][1:])]
        if before:
            pairs.append((start - 1, before, block[0][:1]))
        for first, arrays, follows in pairs:
            obs, *next_obs = (array[: len(follows)] for array in arrays)
            rows = slice(first, first + len(follows))
            with np.errstate(over="ignore"):
                steps[rows] = np.linalg.norm(follows - obs, axis=1)
            if apart is not None:
                differs = np.abs(next_obs[0] - follows) > _SAME_OBS * np.maximum(1, np.abs(follows))
                apart[rows] = differs.any(axis=1)
        before = [array[-1:].copy() for array in block]
        start += len(block[0])
    return steps, apart
