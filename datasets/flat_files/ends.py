"""Where the episodes of a flat file end and where the task does, by whichever keys the file has.

One key shows where the task ends (`masks`, else `terminals`, else `dones`). Those that split all rows into episodes
must agree, and ends of the task and time limits must lie at their ends. `steps` compares that with the observations.
"""

import re
from typing import NamedTuple

import numpy as np

from datasets.flat_files.columns import FLAGS, KEYS, READ_ONCE, Column, Content
from datasets.spec import DataError

_SOUNDS = re.compile(r"done|termina|timeout|trunc|episode|traj|mask|valid|is_first|is_last")


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
    warnings = _left_out(content)
    if source == "done" and truncated is None and terminated.any() and (task_ends | ~ends)[:-1].all():
        warnings.append(
            f"'{content.key('done')}' alone tells no time limits apart: {count(terminated)} are read as ends of the "
            "task; 'terminals' or 'timeouts' beside it would tell"
        )
    if truncated is not None and (both := task_ends & truncated).any():
        warnings.append(
            f"{count(both)} are flagged both in '{content.key(source)}' and in '{content.key('truncated')}': read as "
            "ends of the task"
        )
    if source == "mask" and 2 * terminated.sum() > num_rows:
        warnings.append(f"'{content.key('mask')}' is 0 in {count(terminated)}, where the task ends: is it upside down?")
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
            raise contradiction(content, content.key(source), "ends the task", content.key(meaning), "never", row)
        splits.append(_Split(content.key(meaning), _at_last_rows(flagged, no_transition), True))
    return splits


def _ends_of_lengths(column: Column, num_rows: int) -> np.ndarray:
    lengths = column.integers()
    if lengths.min() < 1:
        episode = int((lengths < 1).argmax())
        raise DataError(
            f"{column.file}: key '{column.key}' is {lengths[episode]} for episode {episode}, expected at least 1"
        )
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
            "lie together, each with a number of its own"
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
            raise contradiction(content, ending.key, "ends an episode", going.key, "does not", row)


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
            raise contradiction(content, content.key(meaning), "ends an episode", split.key, "does not", row)
    if truncated is not None and truncated.any():
        untold = (split.ends & ~task_ends & ~truncated)[:-1]
        if untold.any():
            row = int(untold.argmax())
            raise contradiction(content, split.key, "ends an episode", content.key("truncated"), "does not", row)


def _left_out(content: Content) -> list[str]:
    """A line on what might have told something: keys that sound of ends, arrays of one number per row or per episode,
    and further spellings of a meaning."""
    known = {key for keys in KEYS.values() for key in keys}
    unknown = [
        *(name for name in content.groups if name not in known and _SOUNDS.search(name)),
        *(
            key
            for key, column in content.columns.items()
            if key not in known and (_SOUNDS.search(key) or (column.shape[1:] in ((), (1,)) and column.shape))
        ),
    ]
    lines = [f"not understood and left out: {', '.join(sorted(unknown))}"] if unknown else []
    for first, *others in (content.spelled(meaning) for meaning in READ_ONCE if content.spelled(meaning)):
        lines += [f"'{column.key}' is left out beside '{first.key}'" for column in others]
    return lines


def contradiction(content: Content, one: str, says: str, other: str, instead: str, row: int) -> DataError:
    """The error to raise where of two keys `one` says this and `other` that of a row."""
    return DataError(
        f"{content.file}: keys '{one}' and '{other}' contradict in row {row}: '{one}' {says}, '{other}' {instead}; "
        "mend or leave out the wrong one"
    )


def starts_of(ends: np.ndarray) -> np.ndarray:
    """(N,) bool: the first row of each episode."""
    return np.append(True, ends[:-1])


def steps_since_end(ends: np.ndarray) -> np.ndarray:
    """(N,) int64: a row's number within its episode, from 0."""
    rows = np.arange(len(ends))
    return rows - np.maximum.accumulate(np.where(starts_of(ends), rows, 0))


def count(flags: np.ndarray) -> str:
    """How many of the rows are flagged: "2 of 1,000 rows"."""
    return f"{int(flags.sum()):,} of {len(flags):,} rows"
