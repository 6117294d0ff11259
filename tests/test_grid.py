"""Grids as far as they go without a cluster: options, plans, records, states, crashes; the rest is in test_slurm.py."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import datasets
from bench.__main__ import main
from bench.command_line import parse
from bench.grid import slurm
from bench.grid.job import CRASHES_OF_A_NODE, bad_nodes, crash_folder, note_crash
from bench.grid.launch_options import CORES_PER_GPU, LaunchOptions, Site, minutes_of
from bench.grid.launches import Array, Job, Launch, Need, array_name, launches, new_id, queued_runs
from bench.grid.needs import MB_OF_CONTEXT, MB_PER_COMPILER, megabytes, with_cores_shared_out
from bench.grid.options import selected_configs
from bench.grid.plan import Pack, sort_out, visible_gpus
from bench.grid.pool import Ending, Work, ending_of
from bench.grid.slurm import SlurmError, Task, expand
from bench.grid.snapshot import snapshot_path, take_snapshot
from bench.grid.survey import Queue, state_of, survey
from bench.protocol.suites import SUITES
from bench.runs.claims import Claim, Claims, Owner
from bench.runs.contract import ConfigError, write_json
from bench.runs.provenance import ROOT
from bench.training.execution import Execution
from bench.training.pack import prepare_directory
from tests.slurm_cluster import SMALL, bytes_of, run_dirs, run_here, wait_until
from tests.tiny_runs import provenance_of, python, status_of, tiny_config

LAUNCH = ["launch", *SMALL, "--agent", "fql", "--seeds", "0", "1", "2", "--name", "grid"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one line of an error."""
    assert main(list(arguments)) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without Slurm's commands, and a working directory without a profile."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0-3,7%4", [0, 1, 2, 3, 7]),
        ("[5]", [5]),
        ("N/A", [0]),
        ("0-8:4", [0, 4, 8]),
        ("12", [12]),
        ("0-999%64", list(range(1000))),
    ],
)
def test_array_indices_are_read(text, numbers):
    assert expand(text) == numbers


def test_array_indices_that_make_no_sense_are_an_error():
    with pytest.raises(SlurmError, match=r"'0-3,\.\.\.'"):
        expand("0-3,...")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("12:00:00", 720), ("30:00", 30), ("1-0", 1440), ("1-12:30", 2190), ("2-00:00:30", 2881), ("0:10", 1)],
)
def test_time_limits_are_read_as_slurm_reads_them(text, minutes):
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "1:2:3:4", "1.5h"])
def test_time_limits_that_make_no_sense_are_refused(text):
    with pytest.raises(ConfigError, match="--time is"):
        minutes_of(text)


def test_a_launch_says_where_and_how_many(capsys, no_slurm):
    assert "say where: --slurm" in fails(capsys, *LAUNCH)
    assert "say where: --slurm" in fails(capsys, *LAUNCH, "--slurm", "--local")
    assert "--packs-per-job is 0" in fails(capsys, *LAUNCH, "--slurm", "--packs-per-job", "0")
    assert "--pack is 0" in fails(capsys, *LAUNCH, "--slurm", "--pack", "0", "--dry-run")
    assert "unknown suite 'quik' (did you mean 'quick'?)" in fails(capsys, "launch", "quik", "--slurm", "--dry-run")


def test_without_slurm_a_launch_says_what_to_do(capsys, no_slurm):
    assert "there is no squeue here: log in to the cluster's login node, or run on this machine with --local" in fails(
        capsys, *LAUNCH, "--slurm", code=1
    )


def dry_run(tmp_path: Path, *options: str) -> str:
    """What a launch prints on a machine without Slurm."""
    command = ["-m", "bench", *LAUNCH, "--slurm", "--dry-run", "--results", str(tmp_path / "res"), *options]
    done = python(*command, PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dry_run_shows_plan_and_script_and_writes_nothing(tmp_path):
    options = ["--partition", "gpu", "--account", "lab", "--time", "1-0", "--gpus-per-node", "1", "--pack", "2"]
    options += ["--setup", "module load cuda", "--max-parallel", "8", "--exclude", "n1,n2"]
    printed = dry_run(tmp_path, *options)
    assert "2 job arrays: 2 jobs with 2 packs of seeds, 3 runs; each job 1 GPU, up to 24.0 h, 8 of an array" in printed
    assert needs_in(printed) == [["5", "12000M", "1", "1", "2", "fql"], ["4", "11000M", "1", "1", "1", "fql"]]
    assert "cost: unknown for 2 jobs, since no run of their kind has finished on such a GPU" in printed
    for line in (
        *("partition = gpu", "account = lab", "time = 1440", "gpus_per_node = 1", "exclude = n1,n2", "requeue = True"),
        *("array_parallelism = 8", "cpus_per_task = 5", "mem = 12000M", "signal_delay_s = 120"),
        *("kill-on-invalid-dep = yes", "setup: module load cuda"),
    ):
        assert f"\n  {line}\n" in printed, line
    assert "each job of array o2o-grid-" in printed
    assert not list(tmp_path.iterdir())


def test_a_profile_holds_the_site_s_options_and_the_command_line_has_the_last_word(tmp_path):
    profile = ["[launch]", 'partition = "gpu"', 'time = "2:00:00"', "gpus-per-node = 1", "threads = 3", "pack = 1"]
    (tmp_path / "site.toml").write_text("\n".join([*profile, 'setup = ["module load a", "b"]', ""]))
    printed = dry_run(tmp_path, "--time", "45", "--profile", str(tmp_path / "site.toml"))
    for line in ("partition = gpu", "time = 45", "gpus_per_node = 1", "setup: module load a", "setup: b"):
        assert f"\n  {line}\n" in printed
    assert "3 jobs with 3 packs of seeds, 3 runs; each job 1 GPU" in printed
    assert [row[0] for row in needs_in(printed)] == ["6"]


def needs_in(printed: str) -> list[list[str]]:
    """The rows of the table of kinds of jobs: cores, memory, jobs, packs, runs, agents."""
    lines = printed.splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.split()[:2] == ["cores", "memory"]]
    rows = [line.split(maxsplit=5) for line in lines[head + 1 :]]
    return list(itertools.takewhile(lambda row: row[0].isdigit(), rows))


@pytest.mark.parametrize("suite", SUITES)
def test_no_job_of_a_suite_asks_for_more_cores_than_a_gpu_has(suite, capsys, no_slurm):
    configs = SUITES[suite]()
    first = {datasets.task(config.task).domain: config.task for config in reversed(configs)}  # its tasks are alike
    command = ["launch", suite, "--slurm", "--dry-run", "--gpus-per-node", "1", "--tasks", *first.values()]
    assert main(command) == 0
    printed = capsys.readouterr().out
    rows = needs_in(printed)
    runs = sum(config.task in first.values() for config in configs)
    assert sum(int(row[4]) for row in rows) >= runs  # shared offline phases are runs as well
    assert all(int(cores) <= CORES_PER_GPU for cores, *_ in rows) and "warning" not in printed
    assert all(int(memory.removesuffix("M")) <= 3_000 * int(cores) for cores, memory, *_ in rows)
    on_policy = [row for row in rows if {"reinflow", "dppo", "ppo"} & {*row[5].split(", ")}]
    assert bool(on_policy) == any(config.num_envs > 1 for config in configs)
    assert all({*row[5].split(", ")} <= {"reinflow", "dppo", "ppo"} for row in on_policy), "they have jobs of their own"


def test_more_cores_are_asked_for_where_they_are_wanted_and_said_to_be_many(capsys, no_slurm):
    command = ["launch", "--slurm", "--dry-run", "--task", "toy-reach", "--agent", "reinflow", "--seeds", "0..7"]
    command += ["--gpus-per-node", "1"]

    def cores(*options: str) -> str:
        assert main([*command, *options]) == 0
        printed = capsys.readouterr().out
        assert ("warning: a job of " in printed) == (needs_in(printed)[0][0] in ("83", "23"))
        return needs_in(printed)[0][0]

    assert cores() == "16"
    assert cores("--cores-per-gpu", "100") == "83"
    assert cores("--env-workers", "20") == "23"
    assert cores("--cpus-per-task", "6") == "6"


@pytest.mark.parametrize(
    ("site", "workers"),
    [
        (Site(), 13),
        (Site(gpus_per_node=2), 29),
        (Site(gres="gpu:h100:2"), 29),
        (Site(gres="gpu:1g.10gb:1"), 13),
        (Site(gres="shard:8"), 13),
        (Site(packs_per_job=4), 1),
        (Site(cpus_per_task=8), 5),
        (Site(cpus_per_task=1), 1),
    ],
)
def test_environments_share_the_cores_that_a_job_has_left(site, workers):
    shared = with_cores_shared_out(Execution(eval_workers=2), site)
    assert shared.env_workers == workers
    assert shared.processes(80) == 3 + workers and shared.processes(1) == 4
    assert with_cores_shared_out(Execution(env_workers=40), site).env_workers == 40


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("", set()),
        ("n1,n2", {"n1", "n2"}),
        ("n[1,3-5],gpu-7", {"n[1,3-5]", "gpu-7"}),
        ("r[1-2]n[3,4]", {"r[1-2]n[3,4]"}),
    ],
)
def test_lists_of_nodes_stay_whole(text, nodes):
    assert Site(exclude=text).excluded == nodes


@pytest.mark.parametrize(("text", "mb"), [("2G", 2048), ("16000", 16000), ("2048k", 2), ("1T", 1024**2), ("0", None)])
def test_memory_is_read_as_slurm_reads_it(text, mb):
    assert Site(mem=text).megabytes == mb


def test_memory_covers_what_a_pack_collects_and_less_than_that_is_refused(capsys, no_slurm):
    options = ["--gpus-per-node", "1", "--pack", "3", "--online-steps", "300000000", "--replay-capacity", "300000000"]
    assert main([*LAUNCH, "--slurm", "--dry-run", *options]) == 0
    (row,) = needs_in(capsys.readouterr().out)
    assert int(row[1].removesuffix("M")) > 3 * 4 * 300 * 7  # seeds, bytes, millions of rows, numbers of each
    little = fails(capsys, *LAUNCH, "--slurm", "--dry-run", *options, "--mem", "16G")
    assert "--mem is 16G, and replay and batches of a job of toy-reach fql alone take 25 GB; leave --mem out" in little
    assert f"or ask for {row[1]}\n" in little
    assert main([*LAUNCH, "--slurm", "--dry-run", *options, "--mem", "0"]) == 0


def pack_of(agent: str, seeds: int) -> Pack:
    return Pack(tuple(tiny_config(agent, seed=seed) for seed in range(seeds)), Path("results"))


EXECUTIONS = [
    Execution(eval_workers=workers, env_workers=1, engine=engine)
    for workers in (1, 2, 5)
    for engine in ("eager", "compiled")
]


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_job_asks_for_the_memory_of_each_process_and_of_each_pack_s_gpu(execution):
    cores = 3

    def on_gpu(seeds: int = 1, packs: int = 1, **changes) -> float:
        """How much more than on a CPU."""
        pack, own = pack_of("fql", seeds), replace(execution, **changes)
        gpu, cpu = (Site(gpus_per_node=count, cpus_per_task=cores) for count in (1, 0))
        return megabytes(pack, packs, gpu, own) - megabytes(pack, packs, cpu, own)

    assert on_gpu() >= MB_OF_CONTEXT
    assert on_gpu(seeds=8) == pytest.approx(on_gpu()), "one process, one context"
    assert on_gpu(packs=3) == pytest.approx(3 * on_gpu())
    assert on_gpu(device="cpu") == 0
    assert on_gpu(eval_workers=execution.eval_workers + 1) > on_gpu()
    assert on_gpu(engine="compiled") == on_gpu(engine="auto") == on_gpu(engine="compiled-graph")
    compiling = MB_PER_COMPILER * (1 + cores)
    assert on_gpu(engine="compiled") == pytest.approx(on_gpu(engine="graph") + compiling)


def test_processes_that_compile_are_no_more_than_the_cores_and_no_more_than_four():
    def of_them(cores: int) -> float:
        site = Site(gpus_per_node=1, cpus_per_task=cores)
        asked = [megabytes(pack_of("fql", 1), 1, site, Execution(engine=engine)) for engine in ("auto", "graph")]
        return (asked[0] - asked[1]) / MB_PER_COMPILER

    assert [of_them(cores) for cores in (1, 2, 4, 64)] == pytest.approx([0, 3, 5, 5])  # and one that they are forked of


def test_a_dry_run_shows_the_memory_of_the_gpu(capsys, no_slurm):
    assert main([*LAUNCH, "--slurm", "--dry-run", "--gpus-per-node", "1"]) == 0
    printed = capsys.readouterr().out
    assert "of the memory, a pack takes 1 GB for its GPU, and 4 GB while it compiles\n" in printed
    need = int(needs_in(printed)[0][1].removesuffix("M"))
    assert main([*LAUNCH, "--slurm", "--dry-run", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "for its GPU" not in printed and int(needs_in(printed)[0][1].removesuffix("M")) <= need - 5_000


@pytest.mark.extra("tensorboard")
def test_a_profile_may_ask_for_a_mirror_and_the_job_has_memory_for_it(tmp_path):
    (tmp_path / "site.toml").write_text(
        '[launch]\ngpus-per-node = 1\ndevice = "cpu"\npack = 2\nmirror = ["tensorboard"]\n'
    )
    assert "  mem = 6000M\n" in dry_run(tmp_path, "--profile", str(tmp_path / "site.toml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[launch]\npartitoin = "gpu"\n', "no option 'partitoin' (did you mean 'partition'?)"),
        ('partition = "gpu"\n', "all options stand in the table [launch]"),
        ('[launch]\ngpus_per_node = "many"\n', "bench.toml: --gpus-per-node: 'many' is not a whole number"),
        ('[launch]\nsetup = "module load cuda"\n', "setup must be a list of strings"),
        ("[launch\n", "is not valid TOML"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(text, said, capsys, no_slurm, tmp_path):
    (tmp_path / "bench.toml").write_text(text)
    assert said in fails(capsys, *LAUNCH, "--slurm", "--dry-run")
    assert "cannot read the profile other.toml" in fails(capsys, *LAUNCH, "--slurm", "--profile", "other.toml")


def a_launch(results: Path, **changes) -> Launch:
    identity = new_id("grid")
    work = Work("w", results, (results / "grid/t/a/seed_000",), frozenset({results / "offline/k/t/a/seed_000"}))
    job = Job((work,), 12.5)
    need = Need(4, "5000M")
    arrays = (
        Array(array_name(identity, 0), (job, replace(job, seconds=None)), need, (), "77"),
        Array(array_name(identity, 1), (job,), need, (array_name(identity, 0),)),
    )
    execution = Execution(device="cpu", data_dir=results / "data", env_workers=None, mirrors=("tensorboard",))
    launch = Launch(identity, "grid", results, results / "code", ("--x", "y"), execution, 1, ("n1",), arrays=arrays)
    return replace(launch, **changes)


def test_a_launch_record_comes_back_as_it_was(tmp_path):
    launch = a_launch(tmp_path)
    launch.save()
    assert Launch.load(launch.folder) == launch
    named = launch.with_job_id(launch.arrays[1], "78")
    named.save()
    assert [array.job_id for array in Launch.load(launch.folder).arrays] == ["77", "78"]
    assert launches(tmp_path) == [named] and launches(tmp_path, "other") == []
    said = json.loads((launch.folder / "launch.json").read_text())
    write_json(launch.folder / "launch.json", {**said, "schema_version": 0})
    with pytest.raises(ConfigError, match="another version"):
        Launch.load(launch.folder)


def test_a_launch_record_of_before_arrays_had_needs_is_read(tmp_path):
    launch = a_launch(tmp_path)
    launch.save()
    said = json.loads((launch.folder / "launch.json").read_text())
    arrays = [{name: value for name, value in array.items() if name != "need"} for array in said["arrays"]]
    write_json(launch.folder / "launch.json", {**said, "arrays": arrays, "cpus_per_job": 83, "environments": 80})
    (loaded,) = launches(tmp_path)
    assert {array.need for array in loaded.arrays} == {Need(83, "")}
    assert [array.jobs for array in loaded.arrays] == [array.jobs for array in launch.arrays]


def test_an_array_in_two_halves_holds_its_jobs_and_is_waited_for_as_a_whole(tmp_path):
    launch = a_launch(tmp_path)
    first, second = launch.arrays
    halves = launch.divided(0)
    assert [array.jobs for array in halves.arrays] == [first.jobs[:1], first.jobs[1:], second.jobs]
    assert halves.arrays[2].after == (halves.arrays[0].name, halves.arrays[1].name)
    assert len({array.name for array in (*launch.arrays, *halves.arrays)}) == 4
    halves.save()
    task = Task("99", "PENDING", "Priority", "")
    assert set(queued_runs(tmp_path, {(halves.arrays[1].name, 0): task}).values()) == {task}


def test_queued_runs_are_known_by_the_name_of_their_array_also_without_its_number(tmp_path):
    launch = a_launch(tmp_path)
    launch.save()
    task = Task("99_0", "PENDING", "Priority", "")
    tasks = {(launch.arrays[1].name, 0): task, ("o2o-of-another-results-folder-0", 3): task}
    assert queued_runs(tmp_path, tasks) == {tmp_path / "grid/t/a/seed_000": task}
    assert queued_runs(tmp_path, {(launch.arrays[1].name, 5): task}) == {}


def test_a_snapshot_is_named_by_what_it_holds_and_runs_on_its_own(tmp_path):
    path = snapshot_path(tmp_path)
    take_snapshot(path)
    take_snapshot(path)  # used again
    assert [own.name for own in tmp_path.iterdir()] == [path.name]
    assert (path / "bench" / "training" / "train.py").read_bytes() == (
        ROOT / "bench" / "training" / "train.py"
    ).read_bytes()
    code = "from bench.runs.provenance import check_checkout, commit; check_checkout(); print(commit()['commit'])"
    told = subprocess.run([sys.executable, "-c", code], cwd=path, capture_output=True, text=True, check=True).stdout
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    assert told.strip() == (head.strip() or "None")
    code = "from bench.grid.snapshot import snapshot_path; from pathlib import Path; print(snapshot_path(Path('.')))"
    (path / "bench" / "protocol" / "suites.py").write_text("# edited\n")
    edited = subprocess.run([sys.executable, "-c", code], cwd=path, capture_output=True, text=True, check=True).stdout
    assert edited.strip() != path.name


PENDING = Task("7_0", "PENDING", "Resources", "")
RUNNING = Task("7_0", "RUNNING", "None", "n1", started=2e10)  # after the owner claimed the run
STALE = Task("7_0", "RUNNING", "None", "n1", started=1e9)  # it is the owner's own start


@pytest.mark.parametrize(
    ("written", "owner", "queued", "asked", "state"),
    [
        (None, None, None, True, "planned"),
        (None, None, PENDING, True, "queued"),
        (None, None, RUNNING, True, "starting"),
        ("running", "beating", RUNNING, True, "running"),
        ("running", "beating", None, True, "running"),  # Slurm has lost sight of it
        ("running", "silent", None, True, "lost"),
        ("running", "silent", None, False, "lost"),
        ("running", "silent", PENDING, True, "queued"),  # requeued after its node died
        ("running", "silent", RUNNING, True, "starting"),
        ("running", "silent", STALE, True, "lost"),  # its node is dead, and Slurm has not noticed
        ("preempted", "released", STALE, True, "starting"),  # about to be requeued
        ("preempted", "released", None, True, "preempted"),
        ("preempted", "released", PENDING, True, "queued"),
        ("failed", "released", None, True, "failed"),
        ("failed", "beating", RUNNING, True, "running"),  # tried again
        ("complete", "beating", RUNNING, True, "complete"),
    ],
)
def test_the_state_of_a_run_is_what_its_files_say_then_what_slurm_says(
    written, owner, queued, asked, state, tmp_path, monkeypatch
):
    monkeypatch.setattr("bench.runs.claims._machine", lambda: None)
    now = 1_000_000.0
    own = replace(Owner.here(1, 60.0), released=owner == "released", beat_at=now - {"silent": 61}.get(owner, 5))
    status = {"state": written, "error": "boom"} if written else {}
    got, why = state_of(tmp_path, status, own if owner else None, now, queued, a_launch(tmp_path), asked)
    assert got == state
    if state == "lost":
        assert "ended without a word, 61 s ago" in why and ("or waits in Slurm's queue" in why) == (not asked)
    (tmp_path / "complete.json").write_text("{}")
    assert state_of(tmp_path, status, own if owner else None, now, queued, None, asked)[0] == "complete"


def test_an_owner_of_unknown_time_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.runs.claims._machine", lambda: None)
    owner = replace(Owner.here(1, 60.0), beat_at=0.0)
    state, why = state_of(tmp_path, {"state": "running"}, owner, 1_000_000.0, None, None, False)
    assert state == "lost" and "ended without a word, by a clock ahead of the one here" in why


def test_plans_and_status_see_through_a_clock_that_is_ahead(tmp_path, monkeypatch, capsys):
    """A run that stopped on a machine whose clock is a day ahead, copied here with its times."""
    config = tiny_config()
    directory = prepare_directory(config, tmp_path)
    held = Claims(0.5).take(directory)
    assert isinstance(held, Claim)
    held._ended.set()
    monkeypatch.setattr("bench.runs.claims._machine", lambda: "another kernel")
    assert set(sort_out([config], tmp_path)[1]) == {config}
    tomorrow = time.time() + 86_400
    os.utime(directory / "owner" / "000001.json", (tomorrow, tomorrow))
    assert sort_out([config], tmp_path) == ((), {}, [config])
    assert survey(tmp_path, None, Queue()).count() == {"lost": 1}


def test_status_reports_links_that_lead_nowhere(tmp_path):
    directory = prepare_directory(tiny_config(), tmp_path)
    (directory.parent / "seed_009").symlink_to(tmp_path / "gone")
    grid = survey(tmp_path, None, Queue())
    (note,) = [note for note in grid.notes if "nowhere" in note]
    assert note.endswith(f"{directory.parent.relative_to(tmp_path)}/seed_009") and len(grid.runs) == 1


def crash(results: Path, node: str, run: str, ago: float = 0.0) -> None:
    folder = crash_folder(results)
    folder.mkdir(parents=True, exist_ok=True)
    said = {"launch": "grid", "runs": [run], "node": node, "at": time.time() - ago, "line": "killed by signal 9"}
    write_json(folder / f"{len(list(folder.iterdir()))}.json", said)


def test_a_node_is_bad_after_crashes_of_several_packs_within_a_day(tmp_path):
    for number in range(CRASHES_OF_A_NODE):
        crash(tmp_path, "one-bad-run", "a")
        crash(tmp_path, "long-ago", str(number), ago=90_000)
        crash(tmp_path, "clock-ahead", str(number), ago=-90_000)
        assert bad_nodes(tmp_path) == set()
    for number in range(CRASHES_OF_A_NODE):
        assert bad_nodes(tmp_path) == set()
        crash(tmp_path, "bad", str(number % 2))
    assert bad_nodes(tmp_path) == {"bad"}


def test_a_refusal_is_named_by_its_own_words_whoever_wrote_last_into_the_log(tmp_path):
    work = Work("w", tmp_path, (tmp_path,))
    work.log.write_text("success 0.00\nerror: no space on the disk\nException ignored in: <x>\nTraceback (most rec")
    refused, raised = (ending_of(work, code, stopping=False) for code in (2, 1))
    assert refused is not None and refused.line == f"error: no space on the disk (exit code 2; {work.log})"
    assert raised is not None and raised.line.startswith("Traceback")


def test_a_run_that_crashes_wherever_it_goes_has_failed_until_it_is_launched_again(tmp_path):
    config = tiny_config("fql", suite="grid")
    directory = prepare_directory(config, tmp_path)
    ending = Ending(Work("w", tmp_path, (directory,)), -9, "killed by signal 9", crashed=True)
    first, second = a_launch(tmp_path), a_launch(tmp_path)
    assert [note_crash(first, ending, node) for node in ("n1", "n2")] == [True, True]
    assert not (directory / "status.json").exists()
    assert not note_crash(first, ending, "n3")
    status = status_of(directory)
    assert status["state"] == "failed" and status["error"].startswith("crashed 3 times, the last time on n3")
    assert note_crash(second, ending, "n1")


def test_gpus_are_shared_out_by_the_names_that_the_machine_gives_them(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f1c,MIG-22aa")
    assert visible_gpus() == ("GPU-8f1c", "MIG-22aa")


def start_here(results: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "bench", "run", "--results", str(results), "--name", "grid", *SMALL]
    command += ["--agent", "qc_fql", "--device", "cpu", "--checkpoint-seconds", "0.5", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pid_at(directory: Path) -> int | None:
    """The process that has begun to train the run."""
    if not (directory / "status.json").exists():
        return None
    (claim,) = (directory / "owner").glob("*.json")
    return json.loads(claim.read_text())["pid"]


@pytest.mark.thorough
def test_a_crashed_pack_goes_on_run_by_run_and_each_crash_is_told(data_cache, tmp_path):
    process = start_here(tmp_path, "--seeds", "0", "1", "--pack", "2", "--jobs", "1", "--offline-updates", "600")
    first = tmp_path / "grid/toy-reach/qc_fql/seed_000"
    wait_until(lambda: pid_at(first), 120)
    crashed = pid_at(first)
    assert crashed is not None
    os.kill(crashed, signal.SIGKILL)
    wait_until(lambda: len(provenance_of(first)["starts"]) == 2 and pid_at(first) != crashed, 120)
    alone = pid_at(first)
    assert alone is not None
    os.kill(alone, signal.SIGKILL)
    printed, errors = process.communicate(timeout=900)
    assert process.returncode == 1
    assert "its process crashed" in printed and errors.count("failed: ") == 1 and "killed by signal 9" in errors
    told = json.loads(python("-m", "bench", "status", "grid", "--results", str(tmp_path), "--json").stdout)
    assert told["counts"] == {"complete": 1, "failed": 1}
    assert told["failures"][0]["cause"].startswith("killed by signal 9 (")
    run_here("grid", tmp_path / "more", "--agent", "qc_fql", "--seeds", "1", "--offline-updates", "600")
    text = python("-m", "bench", "status", "--results", str(tmp_path)).stdout
    assert text.startswith("2 runs of grid: 1 complete, 1 failed") and "seed 0 alone" not in text.splitlines()[0]


@pytest.mark.thorough
def test_a_second_run_of_the_same_leaves_it_to_the_first(data_cache, tmp_path):
    process = start_here(tmp_path, "--seeds", "0", "--offline-updates", "2000")
    directory = tmp_path / "grid/toy-reach/qc_fql/seed_000"
    wait_until(lambda: pid_at(directory), 120)
    second = start_here(tmp_path, "--seeds", "0", "--offline-updates", "2000")
    printed, _ = second.communicate(timeout=900)
    assert second.returncode == 0 and "1 left to process" in printed and "complete or under way" in printed
    asked = python("-m", "bench", "status", "grid", "--running", "--results", str(tmp_path))
    assert (asked.returncode, asked.stdout) == (0, "still running, see make status\n")
    live = json.loads(python("-m", "bench", "status", "--results", str(tmp_path), "--json").stdout)
    assert live["counts"] == {"running": 1} and live["runs"][0]["job"] is None
    assert process.wait(timeout=900) == 0
    asked = python("-m", "bench", "status", "grid", "--running", "--results", str(tmp_path))
    assert (asked.returncode, asked.stdout) == (1, "")
    assert len(provenance_of(directory)["starts"]) == 1
    assert bytes_of(tmp_path, "grid") and [run.name for run in run_dirs(tmp_path, "grid")] == ["seed_000"]


def test_status_logs_and_cancel_say_in_one_line_what_they_lack(capsys, no_slurm, tmp_path):
    assert "no runs of quick under" in fails(capsys, "status", "quick")
    assert "there is no run 'quick/x'" in fails(capsys, "logs", "quick/x")
    assert "no launch is recorded under" in fails(capsys, "cancel")
    assert "no launch of quick is recorded" in fails(capsys, "retry", "quick")
    a_launch(tmp_path / "results").save()
    assert "there is no squeue here" in fails(capsys, "cancel", code=1)


def test_a_retry_reads_the_options_of_the_record(capsys, no_slurm, tmp_path):
    """Also of a record that an older version has written: it holds the words of the command line."""
    results = tmp_path / "results"
    words = (*LAUNCH[1:], "--agent-config.bc-coef", "5", "--slurm", "--dry-run", "--jobs", "2", "--mem", "9G")
    a_launch(results, arguments=words).save()
    options = parse(LaunchOptions, words, "launch")
    configs = selected_configs(options)
    assert len(configs) == 3 and all(config.agent_config.bc_coef == 5.0 for config in configs)
    write_json(prepare_directory(configs[1], results) / "status.json", {"state": "failed", "error": "boom"})
    assert main(["retry", "grid"]) == 0
    printed = capsys.readouterr().out
    assert "1 run: 0 complete, 1 to do" in printed and "each job of array o2o-grid-" in printed
    assert "1 job array: 1 job with 1 pack of seeds, 1 run; " in printed
    assert "\n  mem = 9G\n" in printed


def test_a_dry_run_goes_on_where_slurm_does_not_answer_and_a_launch_does_not(capsys, monkeypatch, tmp_path):
    def call(*command, **options):
        raise slurm.SlurmError("squeue: no configuration source")

    monkeypatch.setattr(slurm, "exists", lambda command: True)
    monkeypatch.setattr(slurm, "call", call)
    monkeypatch.chdir(tmp_path)
    assert main([*LAUNCH, "--slurm", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "1 job array: " in printed.out or "job arrays: " in printed.out
    assert "warning: Slurm does not answer, the plan is made without it" in printed.err
    assert "no configuration source" in fails(capsys, *LAUNCH, "--slurm", code=1)


def test_an_option_that_does_nothing_is_refused(capsys, no_slurm):
    assert "--mem is for --slurm" in fails(capsys, *LAUNCH, "--local", "--mem", "3G")
    assert "--jobs is for --local" in fails(capsys, *LAUNCH, "--slurm", "--jobs", "2")


def test_commands_that_only_look_do_not_load_torch():
    code = "import sys; import bench.__main__, bench.grid.job, bench.grid.status; sys.exit('torch' in sys.modules)"
    assert python("-c", code).returncode == 0


def test_a_slurm_that_fails_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact controller' >&2\nexit 1\n"
    )
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SlurmError, match=r"^squeue: slurm_load_jobs error: Unable to contact controller$"):
        slurm.queue()
