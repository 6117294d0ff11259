"""Rows, status and checkpoints on disk: atomic, truncated to what a checkpoint counts on, never half-written."""

import contextlib
from pathlib import Path

import pytest
import torch

from bench.runs.checkpoint import Checkpoints
from bench.runs.claims import Claim, Claims, Takeover
from bench.runs.contract import HEADERS, StorageError, read_json, write_json
from bench.runs.state import MetricSums, RunState, TrainingPoint
from bench.runs.writer import RunWriter
from tests.tiny_runs import small_disk

EPISODE = {
    "phase": "offline",
    "updates": 0,
    "env_steps": 0,
    "episode_seed": 1,
    "success": 0,
    "return": -1.5,
    "length": 3,
}


def claim(directory: Path) -> Claim:
    """The run, which no other process may hold."""
    held = Claims().take(directory)
    assert isinstance(held, Claim)
    return held


def written_anew(directory: Path, offsets: dict[str, int] | None = None) -> RunWriter:
    """As after a restart of the process: under a new claim."""
    held = claim(directory)
    writer = RunWriter(directory, held, offsets)
    held.release()
    return writer


def test_rows_appear_under_their_header(tmp_path):
    writer = RunWriter(tmp_path, claim(tmp_path))
    writer.episodes([EPISODE])
    writer.train("online", 5, 2, {"critic_loss": 0.25})
    assert (tmp_path / "episodes.csv").read_text() == ",".join(HEADERS["episodes.csv"]) + "\noffline,0,0,1,0,-1.5,3\n"
    assert (tmp_path / "train.csv").read_text().splitlines()[1] == "online,5,2,critic_loss,0.25"


def test_a_restart_cuts_rows_after_the_checkpoint_and_keeps_those_before(tmp_path):
    held = claim(tmp_path)
    writer = RunWriter(tmp_path, held)
    writer.episodes([EPISODE])
    offsets = writer.offsets()
    before = (tmp_path / "episodes.csv").read_bytes()
    writer.episodes([EPISODE, EPISODE])
    held.release()
    written_anew(tmp_path, offsets).close()
    assert (tmp_path / "episodes.csv").read_bytes() == before
    written_anew(tmp_path).close()  # no checkpoint: from the beginning
    assert (tmp_path / "episodes.csv").read_text() == ",".join(HEADERS["episodes.csv"]) + "\n"


def test_rows_that_a_checkpoint_counts_on_must_be_there(tmp_path):
    held = claim(tmp_path)
    writer = RunWriter(tmp_path, held)
    writer.episodes([EPISODE])
    offsets = writer.offsets()
    held.release()
    (tmp_path / "episodes.csv").write_text("")
    with pytest.raises(StorageError, match="rows were lost or edited"):
        written_anew(tmp_path, offsets)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda rows: rows.replace(b"\n", b"\r\n"),
            r"train\.csv has lines that end with \\r\\n, its checkpoint",
        ),
        (lambda rows: rows.replace(b"0.25", b"0.125"), r"train\.csv has no end of a row where its checkpoint has one"),
    ],
)
def test_rows_that_a_checkpoint_counts_on_must_be_as_they_were(tmp_path, edit, message):
    held = claim(tmp_path)
    writer = RunWriter(tmp_path, held)
    writer.train("offline", 1, 0, {"critic_loss": 0.25})
    offsets = writer.offsets()
    held.release()
    changed = edit((tmp_path / "train.csv").read_bytes())
    (tmp_path / "train.csv").write_bytes(changed)
    with pytest.raises(StorageError, match=message):
        written_anew(tmp_path, offsets)
    assert (tmp_path / "train.csv").read_bytes() == changed
    assert not list(tmp_path.glob(".train.csv.*"))


def test_json_is_replaced_whole_and_damage_is_named(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    write_json(tmp_path / "a.json", {"x": 2})
    assert read_json(tmp_path / "a.json") == {"x": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "none.json") is None
    (tmp_path / "a.json").write_text('{"x": ')
    with pytest.raises(StorageError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_full_disk_loses_no_earlier_row_and_says_so(tmp_path):
    with small_disk(tmp_path, "64k"), contextlib.closing(RunWriter(tmp_path, claim(tmp_path))) as writer:
        written = -1
        with pytest.raises(StorageError, match=r"No space left.*rows written before are kept"):
            while True:
                written += 1
                writer.episodes([EPISODE] * 10)
        lines = (tmp_path / "episodes.csv").read_text().splitlines()
        assert len(lines) == 1 + 10 * written
        assert set(lines[1:]) == {"offline,0,0,1,0,-1.5,3"}
        with pytest.raises(StorageError, match="what was there before is unchanged"):
            write_json(tmp_path / "big.json", {"x": "y" * 100_000})
        assert not (tmp_path / "big.json").exists()


def rows(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(count, 3)


def at(updates: int) -> TrainingPoint:
    return TrainingPoint(updates, 0, False)


def state(updates: int) -> RunState:
    return RunState(at(updates), {"x": torch.full((2,), float(updates))}, MetricSums({}, {}))


def begun(directory: Path) -> Checkpoints:
    """Checkpoints of a run that starts from nothing."""
    checkpoints = Checkpoints(directory)
    held = claim(directory)
    checkpoints.adopt(held, None)
    held.release()
    return checkpoints


def test_the_newest_of_two_slots_comes_back_with_its_rows(tmp_path):
    checkpoints = begun(tmp_path)
    for step in range(5):
        checkpoints.save(state(step), rows(10 * step, 10))
    states = Checkpoints(tmp_path).load()
    assert sorted(states) == [at(3), at(4)]
    assert states[at(4)].agent["x"].tolist() == [4.0, 4.0]
    again = Checkpoints(tmp_path)
    older = again.load()[at(3)]
    again.adopt(claim(tmp_path), older)
    assert again.restore_replay(older, 3)[:, 0].tolist() == list(range(40))
    again.save(state(4), rows(40, 10))  # rows beyond the older slot are written anew, not twice
    final = Checkpoints(tmp_path)
    assert final.restore_replay(final.load()[at(4)], 3)[:, 0].tolist() == list(range(50))
    assert len(list((tmp_path / "checkpoint").glob("*.f32"))) == 5  # the file beyond the older slot is gone


def test_what_an_older_process_still_saves_is_never_looked_at(tmp_path, monkeypatch):
    older = begun(tmp_path)
    older.save(state(1), rows(0, 10))
    newer = Checkpoints(tmp_path)
    held = claim(tmp_path)
    newer.adopt(held, newer.load()[at(1)])
    with pytest.raises(Takeover, match="was taken over by process"):
        older.save(state(2), rows(10, 10))
    monkeypatch.setattr(Claim, "check", lambda self: None)  # as if it had not learned of the new owner in time
    older.save(state(9), rows(10, 10))
    assert sorted(Checkpoints(tmp_path).load()) == [at(1)]
    newer.save(state(2), rows(100, 10))
    final = Checkpoints(tmp_path)
    assert final.restore_replay(final.load()[at(2)], 3)[:, 0].tolist() == [*range(10), *range(100, 110)]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_slot_is_named_and_the_other_one_used(tmp_path, capsys):
    checkpoints = begun(tmp_path)
    checkpoints.save(state(1), rows(0, 0))
    checkpoints.save(state(2), rows(0, 0))
    damage(tmp_path / "checkpoint" / "slot-000001-b.pt")
    assert list(Checkpoints(tmp_path).load()) == [at(1)]
    assert "slot-000001-b.pt" in capsys.readouterr().err
    damage(tmp_path / "checkpoint" / "slot-000001-a.pt")
    with pytest.raises(StorageError, match="no slot is left"):
        Checkpoints(tmp_path).load()


def test_damaged_replay_rows_are_refused(tmp_path):
    begun(tmp_path).save(state(1), rows(0, 10))
    damage(tmp_path / "checkpoint" / "replay-000001-000000000.f32")
    again = Checkpoints(tmp_path)
    with pytest.raises(StorageError, match=r"replay-000001-000000000\.f32 is damaged"):
        again.restore_replay(again.load()[at(1)], 3)
