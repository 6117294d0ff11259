"""One process at a time writes a run, also when an older one is still alive, stopped, or on another machine."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.runs.claims import (
    Claim,
    Claims,
    Heartbeats,
    Owner,
    Takeover,
    clock_of,
    is_fresh,
    owner_of,
    process_start,
    spent_seconds,
)
from bench.runs.contract import COMPLETE, StorageError, is_complete, read_json
from bench.runs.writer import RunWriter
from bench.training.execution import Execution
from bench.training.pack import claim_runs
from bench.training.train import Preemption, run
from tests.tiny_runs import ROOT, tiny_config

LEASE = 2.0  # seconds, for tests; long for a beat that is late on a busy machine

HOLD = """
import sys, time
from pathlib import Path
from bench.runs.claims import Claims
claim = Claims(float(sys.argv[2])).take(Path(sys.argv[1]))
print(claim.generation, flush=True)
time.sleep(600)
"""


def take(directory: Path, lease: float = LEASE) -> Claim:
    held = Claims(lease).take(directory)
    assert isinstance(held, Claim)
    return held


def hold_elsewhere(directory: Path) -> subprocess.Popen:
    """Another process that holds the run and shows signs of life."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory), str(LEASE)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline().strip().isdigit()
    return process


def on_another_machine(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process becomes one that knows nothing of the processes of the machine on which `directory` was claimed."""
    monkeypatch.setattr("bench.runs.claims._machine", lambda: "another kernel")


def until_taken(claims: Claims, directory: Path, seconds: float) -> Claim:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        held = claims.take(directory)
        if isinstance(held, Claim):
            return held
        time.sleep(0.02)
    raise AssertionError("the lease did not run out")


def test_one_of_many_threads_takes_a_run(tmp_path):
    taken, barrier = [], threading.Barrier(16)

    def attempt() -> None:
        barrier.wait()
        taken.append(Claims(60).take(tmp_path))

    threads = [threading.Thread(target=attempt) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [held for held in taken if isinstance(held, Claim)]
    assert all(held.nonce == winner.owner.nonce for held in taken if isinstance(held, Owner)) and len(taken) == 16
    winner.check()
    assert [path.name for path in (tmp_path / "owner").iterdir()] == ["000001.json"]


@pytest.mark.parametrize("error", [FileExistsError, FileNotFoundError])
def test_a_draft_that_the_winner_sweeps_away_claims_nothing(error, tmp_path, monkeypatch):
    """Before this process has linked it, or between its refusal and the look at what was refused."""
    held = []

    def slower(draft, path):
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", link)
            held.append(Claims(60).take(tmp_path))
        assert not draft.exists()
        raise error

    link = os.link
    monkeypatch.setattr(os, "link", slower)
    loser = Claims(60).take(tmp_path)
    (winner,) = held
    assert isinstance(winner, Claim) and isinstance(loser, Owner) and loser.nonce == winner.owner.nonce


def test_a_live_process_keeps_its_run_and_a_killed_one_loses_it_at_once(tmp_path):
    holder = hold_elsewhere(tmp_path)
    claims = Claims(LEASE)
    try:
        first = claims.take(tmp_path)
        assert isinstance(first, Owner) and first.pid == holder.pid
        time.sleep(2.5 * LEASE)
        assert isinstance(claims.take(tmp_path), Owner) and claims.lives(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    held = claims.take(tmp_path)
    assert isinstance(held, Claim) and held.generation == 2
    assert held.previous is not None and held.previous.pid == holder.pid


def test_a_process_that_is_stopped_loses_its_run_after_the_lease(tmp_path, monkeypatch):
    holder = hold_elsewhere(tmp_path)
    on_another_machine(tmp_path, monkeypatch)
    claims = Claims(LEASE)
    try:
        holder.send_signal(signal.SIGSTOP)
        time.sleep(LEASE / 3)
        started = time.monotonic()
        held = until_taken(claims, tmp_path, 10)
        assert time.monotonic() - started >= LEASE * 0.9
        assert held.generation == 2 and not claims.lives(tmp_path)
    finally:
        holder.kill()
        holder.wait()


def test_a_released_run_is_free_and_its_owner_still_known(tmp_path, monkeypatch):
    take(tmp_path).release()
    on_another_machine(tmp_path, monkeypatch)
    before = owner_of(tmp_path)
    assert before is not None and before.released and before.pid == os.getpid()
    assert take(tmp_path).generation == 2


def test_slurm_s_next_start_of_a_job_takes_its_runs_at_once(tmp_path, monkeypatch):
    """Slurm starts a job anew when it holds the node for lost, whatever still runs there."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    older = take(tmp_path, lease=3600)
    on_another_machine(tmp_path, monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    assert isinstance(Claims(3600).take(tmp_path), Owner)  # another job has no such right
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    newer = take(tmp_path, lease=3600)
    newer.check()
    with pytest.raises(Takeover, match=r"taken over by job 77 \(restart 1\), process"):
        older.check()
    older.release()
    newer.check()  # whatever the loser does


def test_a_process_number_that_was_given_again_is_another_process(tmp_path):
    held = take(tmp_path)
    started = process_start(os.getpid())
    assert started is not None and not held.owner.is_gone
    assert replace(held.owner, process_started=started - 1).is_gone
    assert process_start(2**22 + 1) is None


def test_freshness_is_told_by_the_file_system_s_clock(tmp_path):
    held = take(tmp_path, lease=60)
    owner = owner_of(tmp_path)
    assert owner is not None and is_fresh(owner, clock_of(tmp_path))
    assert not is_fresh(owner, clock_of(tmp_path) + 61)
    held.release()
    released = owner_of(tmp_path)
    assert released is not None and not is_fresh(released, clock_of(tmp_path))


def ahead(directory: Path, seconds: float = 86_400.0) -> None:
    """The heartbeat of the run's owner is of a time that has not come yet."""
    (path,) = (directory / "owner").glob("*.json")
    os.utime(path, (time.time() + seconds, time.time() + seconds))


def test_a_heartbeat_of_the_future_is_unknown_unless_it_changes(tmp_path, monkeypatch, capsys):
    on_another_machine(tmp_path, monkeypatch)
    still, beating, plain = (tmp_path / name for name in ("still", "beating", "plain"))
    for path in (still, beating, plain):
        path.mkdir()
        take(path)._ended.set()  # no heart beats but by hand
    for path in (still, beating):
        ahead(path)
    later = threading.Timer(LEASE / 6, ahead, [beating, 90_000.0])
    later.start()
    heartbeats, started = Heartbeats(), time.monotonic()
    owners = heartbeats.owners([still, beating, plain, tmp_path / "none"], tmp_path)
    later.join()
    now = clock_of(tmp_path)
    assert {path.name: is_fresh(owner, now) for path, owner in owners.items()} == {
        "still": False,
        "beating": True,
        "plain": True,
    }
    assert owners[still].beat_at == 0.0 and spent_seconds(owners[still]) == 0.0
    assert time.monotonic() - started < LEASE
    assert "2 runs have heartbeats ahead of the clock here: watching" in capsys.readouterr().err
    # Looks that follow remember: nothing is watched again, and a change shows at once.
    started = time.monotonic()
    assert not is_fresh(heartbeats.owners([still], tmp_path)[still], clock_of(tmp_path))
    ahead(still, 80_000.0)
    assert is_fresh(heartbeats.owners([still], tmp_path)[still], clock_of(tmp_path))
    assert time.monotonic() - started < LEASE / 3 and capsys.readouterr().err == ""


@pytest.mark.parametrize("seconds", [30.0, 3_600.0, 1e9])
def test_a_heartbeat_of_the_future_is_not_fresh(tmp_path, seconds):
    take(tmp_path, lease=60)._ended.set()
    ahead(tmp_path, seconds)
    owner = owner_of(tmp_path)
    assert owner is not None and not is_fresh(owner, clock_of(tmp_path))


def test_a_damaged_claim_is_named(tmp_path):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "000001.json").write_text("{")
    with pytest.raises(StorageError, match=r"000001\.json is no claim"):
        owner_of(tmp_path)


def test_rows_of_two_live_processes_never_meet(tmp_path, monkeypatch):
    """Even one that never learns that it lost the run writes where nobody reads."""
    older = take(tmp_path)
    first = RunWriter(tmp_path, older)
    first.train("offline", 1, 0, {"loss": 1.0})
    offsets = first.offsets()
    first.train("offline", 2, 0, {"loss": 2.0})
    on_another_machine(tmp_path, monkeypatch)
    older._ended.set()  # its heart stops; the process does not
    newer = until_taken(Claims(LEASE), tmp_path, 10)
    second = RunWriter(tmp_path, newer, offsets)
    for write in (
        lambda: first.train("offline", 3, 0, {"loss": 3.0}),
        lambda: first.status("running"),
        first.complete,
    ):
        with pytest.raises(Takeover):
            write()
    monkeypatch.setattr(older, "check", lambda: None)
    first.train("offline", 3, 0, {"loss": 666.0})
    second.train("offline", 2, 0, {"loss": 2.0})
    assert (tmp_path / "train.csv").read_text().splitlines()[1:] == ["offline,1,0,loss,1", "offline,2,0,loss,2"]


def test_a_process_that_loses_its_run_while_it_completes_takes_its_word_back(tmp_path, monkeypatch):
    older = take(tmp_path)
    first = RunWriter(tmp_path, older)
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:  # between its word and the look that follows
            Claim.check(take(tmp_path))
        Claim.check(older)

    monkeypatch.setattr(Owner, "is_gone", True)
    monkeypatch.setattr(older, "check", check)
    first.status("running")
    with pytest.raises(Takeover):
        first.complete()
    assert asked == 3 and not is_complete(tmp_path)


def test_the_first_word_that_a_run_is_complete_says_what_its_files_hold(tmp_path):
    held = take(tmp_path)
    writer = RunWriter(tmp_path, held)
    writer.train("offline", 1, 0, {"loss": 1.0})
    writer.complete()
    said = read_json(tmp_path / COMPLETE)
    assert said is not None and said["files"]["train.csv"]["bytes"] == (tmp_path / "train.csv").stat().st_size
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_pack_leaves_runs_to_a_process_that_goes_on_with_them(tmp_path, capsys):
    holder = hold_elsewhere(tmp_path / "held") if (tmp_path / "held").mkdir() is None else None
    (tmp_path / "free").mkdir()
    configs = {tiny_config("fql", 0): tmp_path / "held", tiny_config("fql", 1): tmp_path / "free"}
    try:
        taken = claim_runs(configs, Claims(LEASE), lambda: False)
    finally:
        assert holder is not None
        holder.kill()
        holder.wait()
    assert [config.seed for config in taken] == [1]
    printed = capsys.readouterr().out
    assert "waiting to see whether it goes on" in printed and "is left to process" in printed


def test_a_pack_that_waits_for_a_run_can_be_stopped(tmp_path):
    (tmp_path / "held").mkdir()
    holder = hold_elsewhere(tmp_path / "held")
    try:
        with pytest.raises(Preemption):
            claim_runs({tiny_config("fql"): tmp_path / "held"}, Claims(60), lambda: True)
    finally:
        holder.kill()
        holder.wait()


def test_a_run_taken_over_while_it_trains_ends_once_with_the_bytes_of_an_undisturbed_one(
    data_cache, tmp_path, capsys, monkeypatch
):
    """Two processes train the same run at the same time, as after a node that comes back from the dead."""
    config, other = tiny_config("sac_flow_g", 0), tiny_config("sac_flow_g", 1)
    execution = Execution(device="cpu", checkpoint_seconds=0.02, eval_workers=1)
    run([config], tmp_path / "whole", execution, lambda: False)
    results, polls = tmp_path / "twice", 0

    def take_over() -> bool:
        """Half-way, another process takes seed 0 and finishes it, while this one goes on with both."""
        nonlocal polls
        polls += 1
        if polls == 45:
            with monkeypatch.context() as patch:
                patch.setattr(Owner, "is_gone", True)
                run([config], results, execution, lambda: False)
        return False

    run([config, other], results, execution, take_over)
    for name in ("episodes.csv", "train.csv"):
        assert (config.directory(results) / name).read_bytes() == (
            config.directory(tmp_path / "whole") / name
        ).read_bytes()
    for own in (config, other):
        status = read_json(own.directory(results) / "status.json")
        assert status is not None and status["state"] == "complete" and is_complete(own.directory(results))
    assert "seed 0:" in capsys.readouterr().err
    word = read_json(config.directory(results) / COMPLETE)
    assert word is not None and word["generation"] == 2
