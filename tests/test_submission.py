"""Submissions to a site that limits its users, by stand-ins of Slurm's commands; a real Slurm is in test_slurm.py."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.grid.launches import launches
from bench.grid.submission import limit_of
from bench.protocol.config import RunConfig
from bench.protocol.suites import SUITES
from bench.runs.contract import write_json
from tests.slurm_cluster import SMALL, run_dirs
from tests.test_offline import variant
from tests.tiny_runs import tiny_config

SBATCH = """#!{python} -S
import json, pathlib, re, sys
here = pathlib.Path(__file__).parent
site = json.loads((here / "site.json").read_text())
script = pathlib.Path(sys.argv[-1]).read_text()
said = dict(re.findall("#SBATCH --([a-z-]+)=(\\S+)", script))
count = int(re.match("0-(\\d+)", said.get("array", "0-0"))[1]) + 1
if sum(job["count"] for job in site["jobs"]) + count > site["limit"]:
    sys.exit(site["refusal"])
job = {{"id": site["next"], "count": count, "name": said["job-name"], "after": said.get("dependency", "")}}
(here / "site.json").write_text(json.dumps({{**site, "jobs": [*site["jobs"], job], "next": site["next"] + 1}}))
print("Submitted batch job", job["id"])
"""
SQUEUE = """#!{python} -S
import json, pathlib
for job in json.loads((pathlib.Path(__file__).parent / "site.json").read_text())["jobs"]:
    tasks = "N/A" if job["count"] == 1 else "0-%d" % (job["count"] - 1)
    print(job["id"], tasks, "PENDING", job["name"], "", "N/A", "Priority", sep="|")
"""
REFUSAL = (
    "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: "
    "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


class Site:
    """A site whose users may have so many jobs in the queue."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self._file = folder / "site.json"
        self._says(jobs=[], limit=1000, refusal=REFUSAL, next=100)
        for name, text in (
            *(("sbatch", SBATCH.format(python=sys.executable)), ("squeue", SQUEUE.format(python=sys.executable))),
            *(("scontrol", "#!/bin/sh\necho MaxArraySize = 1001\n"), ("srun", "#!/bin/sh\n")),
        ):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def _says(self, **changes: Any) -> None:
        write_json(self._file, {**(json.loads(self._file.read_text()) if self._file.exists() else {}), **changes})

    def allows(self, limit: int, refusal: str = REFUSAL) -> None:
        self._says(limit=limit, refusal=refusal)

    def ends(self, count: int) -> None:
        """The oldest arrays end."""
        self._says(jobs=self.jobs[count:])

    @property
    def jobs(self) -> list[dict[str, Any]]:
        return json.loads(self._file.read_text())["jobs"]


@pytest.fixture
def site(tmp_path, monkeypatch, data_cache) -> Site:
    made = Site(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    return made


def launch(*options: str, seeds: str = "0..11", suite: str = "grid") -> int:
    words = [*SMALL, "--agent", "fql", "--seeds", seeds, "--pack", "1", "--name", suite, "--gpus-per-node", "1"]
    return main(["launch", "--slurm", *words, *options])


def submitted(results: Path) -> list[Path]:
    """Runs of all arrays that have a number, as often as they are there."""
    arrays = [array for launch in launches(results) for array in launch.arrays if array.job_id]
    return sorted(path for array in arrays for job in array.jobs for path in job.directories)


def test_a_limit_of_jobs_is_filled_and_the_same_command_submits_the_rest(site, capsys, tmp_path):
    site.allows(4)
    assert launch() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: the site takes no more jobs now (QOSMaxSubmitJob")
    assert "4 of 12 runs are submitted; launch again for the other 8 when some of these have ended" in error
    assert sum(job["count"] for job in site.jobs) == 4 and len(submitted(tmp_path / "results")) == 4
    assert launch() == 1
    assert "none of 8 runs is submitted; launch again when some of those in the queue" in capsys.readouterr().err
    site.allows(100)
    assert launch() == 0
    assert "4 runs in Slurm's queue already" in capsys.readouterr().out
    assert submitted(tmp_path / "results") == run_dirs(tmp_path / "results", "grid"), "each of twelve once"
    assert sum(job["count"] for job in site.jobs) == 12 and len({job["name"] for job in site.jobs}) == len(site.jobs)


def test_where_no_job_at_all_is_taken_the_advice_is_another(site, capsys, tmp_path):
    site.allows(0)
    assert launch(seeds="0..1") == 1
    error = capsys.readouterr().err
    assert "takes not one job, and none of this project is in the queue" in error and "squeue" in error
    assert not submitted(tmp_path / "results")
    site.allows(0, "sbatch: error: invalid partition specified: gpuu")
    assert launch(seeds="0..1") == 1
    assert capsys.readouterr().err.startswith(
        "error: sbatch: error: invalid partition specified: gpuu (nothing is submitted)\n"
    )


def test_arrays_are_no_larger_than_they_are_asked_to_be(site, capsys):
    assert launch("--array-size", "5") == 0
    assert [job["count"] for job in site.jobs] == [5, 5, 2]


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        (REFUSAL, True),
        ("sbatch: error: AssocMaxSubmitJobLimit", True),
        ("sbatch: error: QOSGrpSubmitJobsLimit", True),
        ("Batch job submission failed: Invalid job array specification", True),
        ("Batch job submission failed: Resource temporarily unavailable", True),
        ("Batch job submission failed: Invalid account or account/partition combination specified", False),
        ("Batch job submission failed: Memory specification can not be satisfied", False),
        ("error: QOSMaxWallDurationPerJobLimit\nJob violates accounting/QOS policy (job submit limit, user's", False),
    ],
)
def test_a_limit_of_jobs_is_known_by_its_name(words, limit):
    assert (limit_of(words) is not None) == limit


def ablation() -> list[RunConfig]:
    """Two runs that share their offline phase."""
    return [tiny_config("sac_flow_g"), variant("sac_flow_g")]


def test_runs_wait_for_an_offline_phase_that_an_earlier_launch_has_submitted(site, capsys, monkeypatch):
    monkeypatch.setitem(SUITES, "ablation", ablation)
    command = ["launch", "ablation", "--slurm", "--gpus-per-node", "1"]
    site.allows(1)
    assert main(command) == 1
    assert "1 of 3 runs are submitted; launch again for the other 2" in capsys.readouterr().err
    site.allows(100)
    assert main(command) == 0
    (phase, *others) = site.jobs
    assert phase["after"] == "" and [job["after"] for job in others] == [f"afterany:{phase['id']}"] * len(others)
    assert sum(job["count"] for job in others) == 2
    assert main(command) == 0
    assert len(site.jobs) == 1 + len(others)


def test_a_retry_goes_through_all_suites_and_names_those_that_it_cannot_launch(site, capsys, tmp_path):
    (tmp_path / "site.toml").write_text("[launch]\n")
    for suite, options in {"first": ("--profile", "site.toml"), "second": ()}.items():
        assert launch(*options, seeds="0", suite=suite) == 0
        (directory,) = run_dirs(tmp_path / "results", suite)
        write_json(directory / "status.json", {"state": "failed", "error": "boom"})
    site.ends(2)
    (tmp_path / "site.toml").unlink()
    capsys.readouterr()
    assert main(["retry"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "error: first: cannot read the profile site.toml: No such file or directory\n"
    (job,) = site.jobs
    assert job["name"].startswith("o2o-second-") and "submitted 1 job" in printed.out
