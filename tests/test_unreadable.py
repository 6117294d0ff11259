"""Files that are whole and cannot be read all the same, and arrays in another form: not called damaged."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from datasets.minari.files import note_of
from datasets.ogbench.files import NpzFile
from datasets.robomimic import source as robomimic
from datasets.robomimic.tasks import TASKS
from datasets.spec import DataError, Dataset, RemoteFile
from datasets.unreadable import why_unreadable
from datasets.user_files.source import layout_of, register
from tests.test_flat_files import good, read, write

MINE = Dataset("user-x-0123456789", "user", "", (RemoteFile("x.hdf5"),))
READERS: dict[str, Callable[[Path], object]] = {
    "flat": layout_of,
    "robomimic": lambda file: robomimic.read(MINE, [file], [TASKS["lift-mh"]]),
    "minari": note_of,
}


def refusal(reader: Callable[[Path], object], file: Path) -> str:
    """The line with which a file is refused."""
    with pytest.raises(DataError) as error:
        reader(file)
    line = str(error.value)
    assert line.startswith(str(file)) and "\n" not in line
    return line


def says_nothing_of_damage(line: str) -> bool:
    return not any(word in line for word in ("whole", "damage", "delete", "get it again", "get the file again"))


HOLD = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"


def test_a_file_that_another_process_holds_is_locked_and_not_damaged(tmp_path: Path) -> None:
    file = write(tmp_path / "x.hdf5", good())
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "open\n"
        for reader in READERS.values():
            line = refusal(reader, file)
            assert "another process has the file open for writing; close it there" in line
            assert "HDF5_USE_FILE_LOCKING=FALSE" in line and says_nothing_of_damage(line)
        holder.communicate("")
    assert layout_of(file) == "flat"


@pytest.mark.parametrize("reader", READERS)
def test_a_mark_of_a_writer_that_was_killed_is_told_with_what_clears_it(reader: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "open.hdf5", "w", libver="latest") as file:
        file["observations"] = np.zeros(3)
        file.swmr_mode = True
        shutil.copyfile(tmp_path / "open.hdf5", tmp_path / "left.hdf5")
    line = refusal(READERS[reader], tmp_path / "left.hdf5")
    assert f"h5clear -s {tmp_path / 'left.hdf5'}" in line and says_nothing_of_damage(line)


@pytest.mark.parametrize("name", ["x.hdf5", "x.npz"])
def test_a_file_that_this_user_may_not_read_is_not_damaged(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / name, good())
    file.chmod(0)
    own = [lambda file: NpzFile(file).__enter__()] if name == "x.npz" else READERS.values()
    readers = [register, layout_of, *own]
    is_root = os.geteuid() == 0
    if is_root:  # who may read everything
        os.seteuid(65534)
    try:
        for reader in readers:
            line = refusal(reader, file)
            assert "permission denied; its owner can allow it" in line and says_nothing_of_damage(line)
    finally:
        if is_root:
            os.seteuid(0)


def test_errors_of_the_system_say_nothing_of_the_content() -> None:
    for number in (errno.EMFILE, errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        line = why_unreadable(Path("x.npz"), OSError(number, os.strerror(number)), "get it again")
        assert os.strerror(number) in line and says_nothing_of_damage(line)
    without = OSError(errno.ENOLCK, "unable to lock file, errno = 37, error message = 'No locks available'")
    assert "its file system has no locks" in why_unreadable(Path("x.hdf5"), without, "get it again")


def test_a_filter_that_is_not_installed_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "x.hdf5", {key: array for key, array in good().items() if key != "rewards"})
    with h5py.File(file, "a") as content:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_chunk((12,))
        layout.set_filter(32_999, h5py.h5z.FLAG_OPTIONAL, ())  # a number that no filter has
        space = h5py.h5s.create_simple((12,))
        rewards = h5py.h5d.create(content.id, b"rewards", h5py.h5t.IEEE_F32LE, space, dcpl=layout)
        rewards.write_direct_chunk((0,), b"compressed")
    line = refusal(read, file)
    assert "key 'rewards' is compressed with a filter that is not installed here" in line
    assert "gzip" in line and says_nothing_of_damage(line)


def test_an_empty_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "x.npz").touch()
    assert "x.npz is empty" in refusal(register, tmp_path / "x.npz")


@pytest.mark.parametrize("key", ["observations", "actions", "rewards"])
def test_a_group_where_an_array_is_wanted_is_told_with_what_is_in_it(key: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.hdf5", {name: array for name, array in good().items() if name != key})
    with h5py.File(file, "a") as content:
        content[f"{key}/state"] = np.zeros((12, 3))
        content[f"{key}/pixels"] = np.zeros((12, 4, 4))
    assert f"'{key}' is a group of pixels, state, expected one array with a row per step" in refusal(register, file)
    assert f"'{key}' is a group of pixels, state" in refusal(read, file)


def test_transposed_arrays_are_guessed(tmp_path: Path) -> None:
    file = write(tmp_path / "x.npz", {**good(), "observations": good()["observations"].T.copy()})
    assert "task walk needs rows of 3 numbers; is it transposed?" in refusal(read, file)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2", "f8"])
@pytest.mark.parametrize("name", ["x.npz", "x.hdf5"])
def test_numbers_of_any_order_and_width_are_read(dtype: str, name: str, tmp_path: Path) -> None:
    arrays = {key: array.astype(dtype) if array.dtype.kind == "f" else array for key, array in good().items()}
    data = read(write(tmp_path / name, arrays))
    rows = np.flatnonzero(~data.final)
    np.testing.assert_array_equal(data.obs[rows], arrays["observations"][: len(rows)].astype(np.float32))
