"""What data and rings hold in memory: nothing twice, nothing early, and of a huge set only what is in use."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.replay.ring import OnlineRing, ring_bytes

ROOT = Path(__file__).resolve().parent.parent
OBS_DIM, ACTION_DIM = 37, 5  # cube-double

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")


def resident_bytes() -> int:
    """Resident memory of this process, mapped pages included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def make_ring(num_seeds: int, slots: int) -> OnlineRing:
    return OnlineRing(num_seeds, slots, OBS_DIM, ACTION_DIM, torch.device("cpu"))


def test_ring_stores_an_observation_once():
    ring = make_ring(num_seeds=8, slots=10_000)
    numbers_per_transition = ring.num_bytes / 4 / 8 / 10_000
    assert ring.num_bytes == ring_bytes(8, 10_000, OBS_DIM, ACTION_DIM)
    assert ring.row_width == 2 * OBS_DIM + ACTION_DIM + 3
    assert OBS_DIM + ACTION_DIM + 3 <= numbers_per_transition < 1.05 * (OBS_DIM + ACTION_DIM + 3)


@needs_proc
def test_ring_takes_memory_as_it_fills():
    before = resident_bytes()
    ring = make_ring(num_seeds=8, slots=1_000_000)
    assert ring.num_bytes > 1.4e9
    assert resident_bytes() - before < 50e6
    obs = torch.zeros(8, OBS_DIM)
    zeros = torch.zeros(8)
    for _ in range(2000):
        action = torch.zeros(8, ACTION_DIM)
        ring.append(
            {
                "obs": obs,
                "action": action,
                "reward": zeros,
                "terminated": zeros,
                "episode_end": zeros,
                "next_obs": obs,
            }
        )
    assert resident_bytes() - before < 50e6


def sparse_array(file: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A `.npy` file of zeros that takes no disk space until it is written to."""
    return np.lib.format.open_memmap(file, "w+", dtype, shape)


STREAM = """
import sys
from pathlib import Path
import numpy as np, torch
from datasets.replay.replay import Replay
from datasets.transitions import Transitions

names = ("obs", "action", "reward", "terminated", "final")
arrays = {name: np.load(f"{sys.argv[1]}/{name}.npy", mmap_mode="c") for name in names}
transitions = Transitions(**arrays, name="sparse", origin="generated", content_hash="0")
replay, mapped = (
    Replay(transitions, num_seeds=2, chunk_length=5, discount=0.99, device=torch.device("cpu"), placement=placement)
    for placement in ("auto", "host")
)
assert replay.placement == "stream", replay.placement

# Rows of the whole set that hold something, as the first batch; the mapped set gives the same.
rows = torch.from_numpy(np.load(f"{sys.argv[1]}/rows.npy"))
starts = rows - torch.searchsorted(torch.from_numpy(np.flatnonzero(arrays["final"])), rows)
count = transitions.num_transitions - 4
fractions = ((starts.double() + 0.5) / count).expand(2, -1)
batch, expected = replay.sample(fractions), mapped.sample(fractions)
for name in ("obs", "action_chunk", "chunk_return", "bootstrap", "next_obs", "valid"):
    assert torch.equal(getattr(batch, name), getattr(expected, name)), name
assert torch.equal(batch.obs[0, :, 0], torch.arange(64.0))
assert torch.equal(batch.next_obs[0, :, 0], torch.arange(64) + 0.5)

generator = torch.Generator().manual_seed(0)
fractions = [torch.rand(2, 256, dtype=torch.float64, generator=generator) for _ in range(200)]
for number in range(4):
    replay.prefetch(number, fractions[number])
for number in range(200):
    if number + 4 < 200:
        replay.prefetch(number + 4, fractions[number + 4])
    replay.sample(fractions[number], number)
# Not ru_maxrss, which begins with the memory of the process that started this one.
lines = Path("/proc/self/status").read_text().splitlines()
print(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
"""


@needs_proc
def test_set_far_beyond_memory_streams_uniformly_under_a_fixed_budget(tmp_path):
    # the shape of cube-quadruple-play-100m: 24.5 GB, of which the files take only what is written to them here
    num_rows, episode_rows = 100_000_000, 250_000
    obs = sparse_array(tmp_path / "obs.npy", np.float32, (num_rows, 55))
    sparse_array(tmp_path / "action.npy", np.float32, (num_rows, 5))
    sparse_array(tmp_path / "reward.npy", np.float32, (num_rows,))
    sparse_array(tmp_path / "terminated.npy", np.bool_, (num_rows,))
    final = sparse_array(tmp_path / "final.npy", np.bool_, (num_rows,))
    final[episode_rows - 1 :: episode_rows] = True
    rows = np.arange(64) * (num_rows // 64) + 1000  # over the whole set
    obs[rows, 0] = np.arange(64)
    obs[rows + 5, 0] = np.arange(64) + 0.5
    np.save(tmp_path / "rows.npy", rows)
    del obs, final
    result = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, result.stderr
    peak = int(result.stdout)
    # torch, rewards and flags; mapped in place, these windows would take 1.2 GB more, and the next ones more again
    assert peak < 1.5e9
