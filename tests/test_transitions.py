"""The in-memory form: what its rows mean and which arrays it refuses."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets import DataError, Transitions
from datasets.transitions import is_mapped


def arrays_of(lengths: list[int]) -> dict[str, np.ndarray]:
    """Arrays of episodes with `lengths` transitions each; obs counts the rows."""
    final = np.concatenate([np.arange(length + 1) == length for length in lengths])
    rows = len(final)
    return {
        "obs": np.repeat(np.arange(rows, dtype=np.float32)[:, None], 3, axis=1),
        "action": np.zeros((rows, 2), np.float32),
        "reward": np.zeros(rows, np.float32),
        "terminated": np.zeros(rows, bool),
        "final": final,
    }


def transitions(arrays: dict[str, np.ndarray]) -> Transitions:
    return Transitions(**arrays, name="toy", origin="generated", content_hash="", warnings=())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_episode_ends_map_transitions_to_rows(lengths: list[int]) -> None:
    data = transitions(arrays_of(lengths))
    assert (data.num_transitions, data.num_episodes) == (sum(lengths), len(lengths))
    transition = np.arange(data.num_transitions)
    rows = transition + np.searchsorted(data.episode_ends, transition, side="right")
    np.testing.assert_array_equal(rows, np.flatnonzero(~data.final))
    assert [data.row(int(number)) for number in transition] == rows.tolist()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("obs", np.zeros((7, 3)), "'obs' is float64"),
        ("obs", np.zeros(7, np.float32), "2 axes"),
        ("reward", np.zeros(6, np.float32), "7 rows"),
        ("terminated", np.zeros(7, np.float32), "'terminated' is float32"),
        ("final", np.zeros(7, bool), "no row ends an episode"),
        ("final", np.arange(7) == 3, "row 6, the last one, does not end its episode"),
        ("final", np.isin(np.arange(7), (3, 4, 6)), "row 4 is an episode of its own"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(key: str, value: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=f"toy: .*{message}"):
        transitions(arrays_of([2, 3]) | {key: value})


def test_bytes_are_those_that_sampling_reads() -> None:
    data = transitions(arrays_of([2, 3]))
    assert data.num_bytes() == 7 * (3 * 4 + 2 * 4 + 4 + 1)
    assert data.num_bytes(first_row=3) == 4 * (3 * 4 + 2 * 4 + 4 + 1)


def test_only_a_whole_file_counts_as_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros((4, 2), np.float32))
    array = np.load(tmp_path / "array.npy", mmap_mode="c")
    assert is_mapped(array)
    assert not is_mapped(array[1:])  # its `offset` is still that of the whole array
    assert not is_mapped(np.array(array))
