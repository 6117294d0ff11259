"""Runs on a real Slurm (see test_slurm.py) whose job, node or controller fails."""

import time
from pathlib import Path

import pytest

from tests.slurm_cluster import (
    PAIR,
    all_complete,
    bytes_of,
    processes_of,
    progressed,
    run_dirs,
    run_here,
    wait_until,
)
from tests.tiny_runs import provenance_of

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the runs of PAIR end with on this machine."""
    results = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("O2O_BENCH_DATA", str(tiny_data))
        run_here("run", results, *PAIR)
    return bytes_of(results, "run")


FAULTS = ("requeue", "preempt", "warn", "kill node", "restart controller", "cancel")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_goes_on_after(fault, cluster, undisturbed, tmp_path):
    cluster.launch("run", tmp_path, *PAIR)
    first, _ = run_dirs(tmp_path, "run")
    wait_until(lambda: progressed(first, 60), 120, lambda: cluster.status(tmp_path), tmp_path)
    ((job, _, node),) = cluster.jobs()
    before = cluster.status(tmp_path)
    assert before["counts"] == {"running": 2} and {run["job"] for run in before["runs"]} == {job}
    if fault == "requeue":
        cluster.says("scontrol", "requeue", job)
    elif fault == "preempt":
        cluster.says(
            "sbatch", "-p", "urgent", "-N", "3", "--exclusive", "--mem=0", "-o", "/dev/null", "--wrap", "sleep 5"
        )
    elif fault == "warn":  # as some time before the time limit
        cluster.says("scancel", "--signal=USR2", job)
    elif fault == "kill node":
        cluster.does("kill-node", node.removeprefix("node"))
    elif fault == "restart controller":
        cluster.does("kill-ctld")
        unanswered = cluster.status(tmp_path)
        assert unanswered["counts"] == {"running": 2} and "Slurm does not answer" in unanswered["notes"][0]
        refused = cluster.bench("launch", "quick", "--slurm", "--results", str(tmp_path))
        assert refused.returncode == 1 and refused.stderr.startswith("error: squeue: ")
        cluster.does("start-ctld")
    else:
        assert "cancelled 1 job;" in cluster.bench("cancel", "run", "--results", str(tmp_path)).stdout
        cluster.drain(240)  # Slurm holds a job that it has requeued for two minutes
        after = cluster.status(tmp_path)
        assert after["counts"].keys() <= {"cancelled", "lost"} and not processes_of(tmp_path), after
        assert "2 to do" in cluster.launch("run", tmp_path, *PAIR)
    seen: set[str] = set()

    def ended() -> bool:
        time.sleep(1.0)
        seen.update(run["state"] for run in cluster.status(tmp_path)["runs"])
        return all_complete(tmp_path, "run")

    wait_until(ended, 240, lambda: cluster.status(tmp_path), tmp_path)
    assert seen <= {"running", "starting", "queued", "complete", "preempted", "lost"}
    cluster.drain(240)  # Slurm holds a job that it has requeued for two minutes
    starts = provenance_of(first)["starts"]
    assert len(starts) == (1 if fault == "restart controller" else 2)
    assert all(start["seconds"] > 0 for start in starts)
    assert bytes_of(tmp_path, "run") == undisturbed
