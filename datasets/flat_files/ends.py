"""Where the episodes of a flat file end and where the task does, told by whichever arrays the file has.

`read_ends` is one pass over small arrays: what splits the rows into episodes, what ends the task, and whether they
agree. `follow` then compares that with the observations: where `next_observations` do not lead to the next row, and
where a step is far too long to be one.
"""

import re
from typing import NamedTuple

import numpy as np

from datasets.flat_files.columns import FLAGS, KEYS, Column, Content
from datasets.spec import DataError

_SAME_OBS = 1e-5  # relative to max(1, |x|): next_obs[t] and obs[t + 1] are the same state, rounded differently
_SOUNDS = re.compile(r"done|termina|timeout|trunc|episode|traj|mask|valid|is_first|is_last")
_JUMP = 20  # times the median step: no step of the episode, but another episode


class Told(NamedTuple):
    """What a file of N rows tells of its episodes. The last row always ends one."""

    ends: np.ndarray  # (N,) bool: an episode ends with this row
    terminated: np.ndarray  # (N,) bool: the task ends with the transition from this row
    truncated: np.ndarray | None  # (N,) bool: the time limit comes with it; None: the file does not say
    no_transition: np.ndarray  # (N,) bool: the row has only the observation that an episode ends in
    source: str  # the key that tells where the task ends
    splits: str | None  # the key that tells every end; None: none does, time limits may be missing
    rows_lie_together: bool  # that key is no flag: within an episode each row must lead to the next one
    warnings: tuple[str, ...]


class _Split(NamedTuple):
    """All ends of episodes, by one key."""

    key: str
    ends: np.ndarray  # (N,) bool
    is_flag: bool  # one of 0 and 1 per row, written step by step


def read_ends(content: Content, num_rows: int) -> Told:
    """What the file's keys say together. Raises DataError that names the keys and the row where two contradict."""
    flags = {meaning: _flags(content, meaning) for meaning in FLAGS}
    no_transition = np.zeros(num_rows, bool) if flags["valid"] is None else ~flags["valid"]
    source, terminated = _terminated(content, flags, no_transition)
    splits = _splits(content, num_rows, flags, source, terminated, no_transition)
    _check_splits(content, splits)
    truncated = None if flags["truncated"] is None else _at_last_rows(flags["truncated"], no_transition)
    task_ends = _at_last_rows(terminated, no_transition)
    if splits:
        ends = splits[0].ends.copy()
        _check_inside(content, splits[0], source, task_ends, truncated)
    elif source == "mask" and truncated is None and flags["terminated"] is None and flags["done"] is None:
        raise DataError(
            f"{content.file}: key '{content.key('mask')}' tells where the task ends, no key where trajectories do; add "
            "'terminals' or 'dones' (1 in the last row of each) or 'timeouts' (1 where the time limit came)"
        )
    else:
        ends = task_ends if truncated is None else task_ends | truncated
    warnings = _unknown_keys(content)
    if source == "done" and truncated is None and terminated.any() and (task_ends | ~ends)[:-1].all():
        warnings.append(
            f"'{content.key('done')}' alone tells no time limits apart: {_count(terminated)} are read as ends of the "
            "task; 'terminals' or 'timeouts' beside it would tell"
        )
    if truncated is not None and (both := task_ends & truncated).any():
        warnings.append(
            f"{_count(both)} are flagged both in '{content.key(source)}' and in '{content.key('truncated')}': read as "
            "ends of the task"
        )
    if source == "mask" and 2 * terminated.sum() > num_rows:
        warnings.append(
            f"'{content.key('mask')}' is 0 in {_count(terminated)}, where the task ends: is it upside down?"
        )
    ends[-1] = True
    return Told(
        ends,
        terminated,
        truncated,
        no_transition,
        source=content.key(source),
        splits=splits[0].key if splits else None,
        rows_lie_together=bool(splits) and not splits[0].is_flag,
        warnings=tuple(warnings),
    )


def _terminated(
    content: Content, flags: dict[str, np.ndarray | None], no_transition: np.ndarray
) -> tuple[str, np.ndarray]:
    """The meaning that tells where the task ends, and (N,) bool where it does."""
    if flags["mask"] is not None:
        return "mask", ~flags["mask"] & ~no_transition
    source = "done" if flags["terminated"] is None else "terminated"
    flagged = flags[source]
    if flagged is None:
        raise DataError(content.without_ends())
    if source == "done" and flags["truncated"] is not None:
        flagged = flagged & ~flags["truncated"]
    if (flagged & no_transition).any():
        row = int((flagged & no_transition).argmax())
        raise DataError(
            f"{content.file}: key '{content.key(source)}' is 1 in row {row}, where '{content.key('valid')}' is 0: it "
            "tells ends of trajectories, not of the task; add 'masks' (0 where the task ends)"
        )
    return source, flagged


def _splits(
    content: Content,
    num_rows: int,
    flags: dict[str, np.ndarray | None],
    source: str,
    terminated: np.ndarray,
    no_transition: np.ndarray,
) -> list[_Split]:
    """The ends that each key tells which splits all rows into episodes; flags come last."""
    splits = []
    for meaning, read in {"length": _ends_of_lengths, "end": _ends_of_ends, "index": _ends_of_index}.items():
        splits += [_Split(column.key, read(column, num_rows), False) for column in content.spelled(meaning)]
    if (start := flags["start"]) is not None:
        if not start[0]:
            raise DataError(f"{content.file}: key '{content.key('start')}' is 0 in row 0, where an episode starts")
        splits.append(_Split(content.key("start"), np.append(start[1:], True), False))
    if no_transition.any():
        splits.append(_Split(content.key("valid"), no_transition, False))
    for meaning in ("terminated", "done"):
        flagged = flags[meaning]
        if flagged is None or meaning == source or np.array_equal(flagged, terminated):
            continue  # it tells ends of the task, not of all episodes
        if terminated.any() and not flagged.any():
            row = int(terminated.argmax())
            raise _contradiction(content, content.key(source), "ends the task", content.key(meaning), "never", row)
        splits.append(_Split(content.key(meaning), _at_last_rows(flagged, no_transition), True))
    return splits


def _ends_of_lengths(column: Column, num_rows: int) -> np.ndarray:
    lengths = column.integers()
    if lengths.min() < 1:
        episode = int((lengths < 1).argmax())
        raise DataError(f"{column.file}: key '{column.key}' is {lengths[episode]} for episode {episode}, at least 1")
    if lengths.sum() != num_rows:
        raise DataError(f"{column.file}: key '{column.key}' sums to {lengths.sum()}, but the file has {num_rows} rows")
    return _flagged(np.cumsum(lengths) - 1, num_rows)


def _ends_of_ends(column: Column, num_rows: int) -> np.ndarray:
    """Rows up to and including each episode; or, of as many numbers as rows, flags."""
    ends = column.integers()
    if len(ends) == num_rows and np.isin(ends, (0, 1)).all():
        return ends.astype(bool)
    increases = np.diff(ends, prepend=0) > 0
    if not increases.all():
        episode = int(increases.argmin())
        raise DataError(f"{column.file}: key '{column.key}' does not increase at episode {episode}")
    if ends[-1] != num_rows:
        raise DataError(
            f"{column.file}: key '{column.key}' ends at {ends[-1]}, but the file has {num_rows} rows; expected the "
            "number of rows up to and including each episode"
        )
    return _flagged(ends - 1, num_rows)


def _ends_of_index(column: Column, num_rows: int) -> np.ndarray:
    index = column.integers()
    if len(index) != num_rows:
        raise DataError(f"{column.file}: key '{column.key}' has {len(index)} numbers, but the file has {num_rows} rows")
    starts = np.flatnonzero(np.append(True, index[1:] != index[:-1]))
    _, first = np.unique(index[starts], return_index=True)
    again = np.delete(starts, first)
    if len(again):
        row = int(again[0])
        raise DataError(
            f"{column.file}: key '{column.key}' comes back to {index[row]} in row {row}; the rows of an episode must "
            "lie together: sort them by episode"
        )
    return _flagged(np.append(starts[1:], num_rows) - 1, num_rows)


def _flagged(rows: np.ndarray, num_rows: int) -> np.ndarray:
    flags = np.zeros(num_rows, bool)
    flags[rows] = True
    return flags


def _flags(content: Content, meaning: str) -> np.ndarray | None:
    """(N,) bool of a meaning, whose keys must all say the same; None where the file has none."""
    first: np.ndarray | None = None
    for column in content.spelled(meaning):
        flags = column.flags()
        if first is not None and (flags != first).any():
            row = int((flags != first).argmax())
            raise DataError(
                f"{content.file}: keys '{content.key(meaning)}' and '{column.key}' contradict in row {row}: "
                f"{int(first[row])} and {int(flags[row])}; mend or leave out the wrong one"
            )
        first = flags
    return first


def _at_last_rows(flags: np.ndarray, no_transition: np.ndarray) -> np.ndarray:
    """Flags of a last transition, moved to the row after it where that has the episode's final observation."""
    before = np.append(no_transition[1:], False) & ~no_transition
    moved = flags & ~before
    moved[1:] |= (flags & before)[:-1]
    return moved


def _check_splits(content: Content, splits: list[_Split]) -> None:
    for other in splits[1:]:
        differ = (other.ends != splits[0].ends)[:-1]  # recording may have stopped at the last row
        if differ.any():
            row = int(differ.argmax())
            ending, going = (other, splits[0]) if other.ends[row] else (splits[0], other)
            raise _contradiction(content, ending.key, "ends an episode", going.key, "does not", row)


def _check_inside(
    content: Content, split: _Split, source: str, task_ends: np.ndarray, truncated: np.ndarray | None
) -> None:
    """Raises DataError for ends of the task or time limits inside an episode, and for ends that are neither."""
    # The task may stay solved in the midst of a trajectory: `masks` say so, or next observations that go on.
    may_go_on = source == "mask" or (bool(content.spelled("next_obs")) and not split.is_flag)
    checked = {} if may_go_on else {source: task_ends}
    if truncated is not None:
        checked["truncated"] = truncated
    for meaning, flagged in checked.items():
        inside = (flagged & ~split.ends)[:-1]
        if inside.any():
            row = int(inside.argmax())
            raise _contradiction(content, content.key(meaning), "ends an episode", split.key, "does not", row)
    if truncated is not None and truncated.any():
        untold = (split.ends & ~task_ends & ~truncated)[:-1]
        if untold.any():
            row = int(untold.argmax())
            raise _contradiction(content, split.key, "ends an episode", content.key("truncated"), "does not", row)


def _unknown_keys(content: Content) -> list[str]:
    """A line on keys that sound as if they told ends and are not understood."""
    known = {key for keys in KEYS.values() for key in keys}
    unknown = sorted(key for key in (*content.columns, *content.groups) if key not in known and _SOUNDS.search(key))
    return [f"not understood and left out: {', '.join(unknown)}"] if unknown else []


def _contradiction(content: Content, one: str, says: str, other: str, instead: str, row: int) -> DataError:
    return DataError(
        f"{content.file}: keys '{one}' and '{other}' contradict in row {row}: '{one}' {says}, '{other}' {instead}; "
        "mend or leave out the wrong one"
    )


# What the observations say.


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
        if cut.sum() > len(cut) / 4:
            single = int((cut & starts_of(cut | ends)).sum())
            warnings.append(
                f"{_count(cut)} do not lead to the next row though no end is told, as where environments are stepped "
                f"side by side or rows are shuffled; episodes are cut there, {single:,} have one step: no chunk of "
                "several steps fits"
            )
        goes_on = ends & ~apart & ~told.no_transition
        goes_on[-1] = False
        solved = _solved_inside(told, goes_on, is_ours, jumps)
        ends = (ends | cut) & ~solved
        key = content.key("next_obs")
        if solved.any() and not is_ours:
            warnings.append(
                f"{_count(solved)} end the task inside a trajectory that goes on in '{key}': kept so, no episode is "
                "cut there"
            )
        reset = goes_on & ~solved
        if reset.any() and not is_ours:
            _check_resets(content, told, cut, reset)
            knows_next &= ~reset
            warnings.append(
                f"'{key}' of {_count(reset)} that end episodes is the observation after the reset, so the state they "
                "led to is unknown"
            )
    inside = jumps & ~ends
    if inside.any() and not is_ours:
        warnings.append(
            f"{_count(inside)} jump by more than {_JUMP} times the median step inside an episode, the first is row "
            f"{int(inside.argmax())}: does an episode end there?"
        )
    return Followed(ends, knows_next, tuple(warnings))


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
        raise _contradiction(content, told.splits or "", "goes on", key, "does not lead to the next row", row)


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
    raise _contradiction(content, flagged, "goes on", key, "does not lead to the next row", row)


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


def starts_of(ends: np.ndarray) -> np.ndarray:
    """(N,) bool: the first row of each episode."""
    return np.append(True, ends[:-1])


def steps_since_end(ends: np.ndarray) -> np.ndarray:
    """(N,) int64: a row's number within its episode, from 0."""
    rows = np.arange(len(ends))
    return rows - np.maximum.accumulate(np.where(starts_of(ends), rows, 0))


def _count(flags: np.ndarray) -> str:
    return f"{int(flags.sum()):,} of {len(flags):,} rows"
