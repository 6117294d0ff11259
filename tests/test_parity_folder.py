"""The parity tests read the folder that PARITY_DIR names, and notice a wrong number there: by file, kind and key."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = Path(__file__).parent / "parity"

Arrays = dict[str, np.ndarray]


def parity(folder: Path) -> tuple[int, str]:
    """Exit code and output of the eager tests of one seed on a folder's files."""
    tests = [f"tests/test_parity{which}.py" for which in ("", "_ppo", "_scratch")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "(eager and 1) or chains"]
    environment = os.environ | {"PARITY_DIR": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def write(folder: Path, name: str, change: Callable[[Arrays], None]) -> None:
    with np.load(SHIPPED / f"{name}.npz") as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(folder / f"{name}.npz", allow_pickle=False, **arrays)


def exchange_critics(arrays: Arrays) -> None:
    """Both critics in the other's place, with their gradients: all else that the program computed stays as it is."""
    for key, value in arrays.items():
        if "critic/value_net/" in key:
            arrays[key] = value[::-1].copy()


def exchange_first_critics(arrays: Arrays) -> None:
    """The same in the starting parameters alone."""
    first = {key: value for key, value in arrays.items() if key.startswith("params/")}
    exchange_critics(first)
    arrays.update(first)


def off(key: str) -> Callable[[Arrays], None]:
    """The largest entry of an array off by a thousandth."""

    def change(arrays: Arrays) -> None:
        value = arrays[key] = np.array(arrays[key])
        value.flat[np.abs(value).argmax()] *= 1.001

    return change


@pytest.mark.thorough
def test_another_folder_of_numbers_is_what_is_tested(tmp_path: Path) -> None:
    write(tmp_path, "bfn", exchange_critics)
    with np.load(SHIPPED / "bfn.npz") as shipped, np.load(tmp_path / "bfn.npz") as other:
        changed = {key for key in shipped if not np.array_equal(shipped[key], other[key])}
    assert {key.split("/")[0] for key in changed} == {"params", "step0", "step2"}
    code, said = parity(tmp_path)
    assert code == 0 and "1 passed" in said, said
    write(tmp_path, "bfn", exchange_first_critics)
    code, said = parity(tmp_path)
    assert code == 1 and "[bfn-eager-1]" in said, said


WRONG = {
    "bfn": ("step0/grad/critic/value_net/Dense_0/kernel", "('gradient', 'step 0 critic.online.mlp.hidden.0.weight')"),
    "qc": ("step0/grad/actor_bc_flow/mlp/Dense_1/bias", "('gradient', 'step 0 behaviour_velocity.mlp.hidden.1.bias')"),
    "sac": ("step1/metric/critic/critic_loss", "('metric', 'step 1 critic_loss')"),
    "iql": ("step2/params_after/value/value_net/Dense_0/kernel", "('parameter', 'step 2 value.mlp.hidden.0.weight')"),
    "rebrac": ("act/actions", "('action', 'act collect')"),
    "reinflow": ("step0/new_log_prob", "density 0"),
}


@pytest.mark.thorough
def test_a_number_a_thousandth_off_fails_by_file_and_key(tmp_path: Path) -> None:
    for name, (key, _) in WRONG.items():
        write(tmp_path, name, off(key))
    code, said = parity(tmp_path)
    failed = re.findall(r"^FAILED .*equal_those_of_the_official_code\[(?:eager-1-)?(\w+?)(?:-eager-1)?\]", said, re.M)
    assert code == 1 and sorted(failed) == sorted(WRONG), said
    assert all(key in said for _, key in WRONG.values()), said


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_numbers_is_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, said = parity(tmp_path / folder)
    assert code == 2 and f"PARITY_DIR={tmp_path / folder}: no .npz files there" in said


def test_a_file_from_scratch_of_no_program_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "scratch_sac", lambda arrays: None)
    (tmp_path / "scratch_sac.npz").rename(tmp_path / "scratch_sacc.npz")
    code, said = parity(tmp_path)
    assert code == 2 and f"{tmp_path / 'scratch_sacc.npz'} is of no program" in said
