"""Reading, refusing, drawing: from files under a results folder to arrays, figures and tables."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.text import Text

from agents import AGENTS
from analysis.__main__ import main
from analysis.figures import comparisons
from analysis.figures import curves as figures
from analysis.figures.overview import overview_figure
from analysis.labels.names import DISPLAY_NAMES, named_agent
from analysis.labels.style import AGENT_STYLES, COLUMN_WIDTH, FALLBACK_STYLES, styles_of
from analysis.labels.wording import count_label, seeds_label
from analysis.loading.gradients import load_norms
from analysis.loading.load import Suite, load_results
from analysis.loading.read import NORMALISED_RETURN, RETURN, SUCCESS, ResultsError
from analysis.loading.run_record import read_record
from analysis.published import overlay
from analysis.published.points import read_published
from analysis.published.verdicts import counterparts
from analysis.report.page import load_each
from analysis.statistics.pairs import pairs_of
from analysis.statistics.scores import Estimate
from analysis.tables import success as tables
from analysis.tables.comparisons import write_comparisons
from analysis.tables.paper import write_paper_table
from bench.runs.contract import REPRODUCIBLE, config_hash, find_runs

HEADER = "phase,updates,env_steps,episode_seed,success,return,length"
EPISODES = 5
OWN_AGENTS = tuple(AGENT_STYLES)[:6]


def write_run(
    root: Path,
    task: str = "cube-single-task1",
    agent: str = "fql",
    seed: int = 0,
    suite: str = "quick",
    offline: tuple[float, ...] = (0.0, 0.2, 0.4),
    online: tuple[float, ...] = (0.2, 0.6, 0.8, 1.0),
    origin: str = "generated",
    state: str = "complete",
    by_return: bool = False,
    reference_returns: list[float] | None = None,
    variant: str = "",
    **config: Any,
) -> Path:
    """One run with these success rates (multiples of 1 / EPISODES) every 100 updates and 10 steps.

    `by_return`: a task without success, and these are the mean returns of its evaluations.
    """
    folder = root / suite / task / (f"{agent}@{variant}" if variant else agent) / f"seed_{seed:03d}"
    folder.mkdir(parents=True)
    offline_updates, online_steps = 100 * (len(offline) - 1), 10 * len(online)
    settings = {
        "schema_version": 1,
        "suite": suite,
        "task": task,
        "agent": agent,
        "seed": seed,
        "success_timing": "post",
        "offline_updates": offline_updates,
        "online_steps": online_steps,
        "eval_episodes": EPISODES,
        "discount": 0.99,
        "agent_config": {"chunk_length": 5, "bc_coef": 10.0},
    }
    settings |= ({"variant": variant} if variant else {}) | config
    write_json(folder / "config.json", {"config_hash": config_hash(settings)} | settings)
    dataset = {"name": f"data-{task}", "origin": origin, "content_hash": f"content-{task}"}
    starts = [{"commit": "0123abcd", "dirty_diff_hash": None}]
    provenance = {"schema_version": 1, "dataset": dataset, "starts": starts, "reference_returns": reference_returns}
    write_json(folder / "provenance.json", provenance)
    write_json(folder / "status.json", {"schema_version": 1, "state": state})
    points = [("offline", 100 * k, 0, rate) for k, rate in enumerate(offline)]
    points += [("online", offline_updates + 10 * k, 10 * k, rate) for k, rate in enumerate(online, start=1)]

    def outcome(rate: float, episode: int) -> str:
        if by_return:
            return f",{rate + episode - (EPISODES - 1) / 2}"
        return f"{int(episode < round(rate * EPISODES))},-3.5"

    rows = [
        f"{phase},{updates},{steps},{1000 + episode},{outcome(rate, episode)},17"
        for phase, updates, steps, rate in points
        for episode in range(EPISODES)
    ]
    (folder / "episodes.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return folder


def seal(folder: Path) -> None:
    """Completes a run as `bench` does: complete.json says what its files hold."""
    rows = folder / "train.csv"
    if not rows.exists():
        rows.write_text("phase,updates,env_steps,name,value\n")
    contents = {name: (folder / name).read_bytes() for name in REPRODUCIBLE}
    sums = {name: {"bytes": len(one), "sha256": hashlib.sha256(one).hexdigest()} for name, one in contents.items()}
    write_json(folder / "complete.json", {"schema_version": 1, "files": sums})


def write_sealed(root: Path, **options: Any) -> Path:
    """One complete run whose files can be checked."""
    folder = write_run(root, **options)
    seal(folder)
    return folder


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, sort_keys=True))


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def write_grid(
    root: Path, tasks: int = 2, agents: tuple[str, ...] = ("fql", "sac_flow_g"), seeds: int = 3, **rest: Any
) -> Path:
    """Runs with different random success rates, always the same ones."""
    rng = np.random.default_rng(0)
    for k in range(1, tasks + 1):
        for agent in agents:
            for seed in range(seeds):
                rates = np.sort(rng.integers(0, EPISODES + 1, size=7)) / EPISODES
                curve = {"offline": (0.0, *rates[:2]), "online": tuple(rates[2:])}
                write_run(root, f"cube-double-task{k}", agent, seed, **(curve | rest))
    return root


def load_one(root: Path, **options: Any) -> Suite:
    (suite,) = load_results(root, **options)
    return suite


# ------------------------------------------------------------------------------------------------------ reading


def test_success_rates_of_a_run_are_means_over_its_episodes(tmp_path: Path):
    write_sealed(tmp_path, offline=(0.0, 0.2, 0.4), online=(0.2, 0.6))
    suite = load_one(tmp_path)
    cell = suite.cells["cube-single-task1", "fql"]
    assert cell.offline_updates.tolist() == [0, 100, 200]
    assert cell.offline_score == pytest.approx(np.array([[0.0, 0.2, 0.4]]))
    assert cell.online_steps.tolist() == [0, 10, 20]
    assert cell.online_score == pytest.approx(np.array([[0.4, 0.2, 0.6]]))
    assert (suite.origin, suite.eval_episodes, suite.success_timing) == ("generated", EPISODES, "post")
    assert suite.notes == ()


def test_order_of_rows_does_not_matter(tmp_path: Path):
    folder = write_run(tmp_path / "a")
    before = load_one(tmp_path / "a").cells["cube-single-task1", "fql"]
    header, *rows = (folder / "episodes.csv").read_text().splitlines()
    (folder / "episodes.csv").write_text("\n".join([header, *reversed(rows)]) + "\n")
    after = load_one(tmp_path / "a").cells["cube-single-task1", "fql"]
    assert np.array_equal(before.online_score, after.online_score)


def test_runs_are_stacked_by_ascending_seed(tmp_path: Path):
    for seed, rate in ((11, 0.2), (2, 0.4), (1000, 0.6)):
        write_run(tmp_path, seed=seed, online=(rate,))
    cell = load_one(tmp_path).cells["cube-single-task1", "fql"]
    assert cell.seeds.tolist() == [2, 11, 1000]
    assert cell.online_score[:, -1] == pytest.approx([0.4, 0.2, 0.6])


def test_tasks_are_in_the_order_of_their_numbers(tmp_path: Path):
    for task in ("cube-double-task10", "cube-double-task9", "cube-quadruple-task1", "cube-single-task2"):
        write_run(tmp_path, task=task)
    assert load_one(tmp_path).tasks == (
        "cube-single-task2",
        "cube-double-task9",
        "cube-double-task10",
        "cube-quadruple-task1",
    )


def test_suites_are_loaded_by_name(tmp_path: Path):
    write_run(tmp_path, suite="quick")
    write_run(tmp_path, suite="other")
    assert [suite.name for suite in load_results(tmp_path)] == ["other", "quick"]
    assert [suite.name for suite in load_results(tmp_path, ["quick"])] == ["quick"]


def test_fault_in_a_suite_that_is_not_asked_for_does_not_matter(tmp_path: Path):
    write_run(tmp_path, suite="quick")
    (write_run(tmp_path, suite="other") / "config.json").write_text("{")
    assert load_one(tmp_path, suites=["quick"]).name == "quick"


def test_agents_may_be_evaluated_at_different_points(tmp_path: Path):
    write_run(tmp_path, agent="fql", online=(0.2, 0.4, 0.6, 0.8))
    folder = write_run(tmp_path, agent="qc_fql", online=(0.2, 0.4, 0.6, 0.8))
    lines = (folder / "episodes.csv").read_text().splitlines(keepends=True)
    (folder / "episodes.csv").write_text("".join(line for line in lines if ",10," not in line))
    suite = load_one(tmp_path)
    assert suite.cells["cube-single-task1", "fql"].online_steps.tolist() == [0, 10, 20, 30, 40]
    assert suite.cells["cube-single-task1", "qc_fql"].online_steps.tolist() == [0, 20, 30, 40]


# ----------------------------------------------------------------------------------------------------- refusing


def test_missing_and_empty_folders_are_one_line(tmp_path: Path):
    with pytest.raises(ResultsError, match=r"no results folder at .*nowhere"):
        load_results(tmp_path / "nowhere")
    (tmp_path / "figures").mkdir()
    with pytest.raises(ResultsError, match=r"no runs under .* expected folders <suite>/<task>/<agent>/seed_<nnn>"):
        load_results(tmp_path)


def test_unknown_suite_is_answered_with_the_nearest(tmp_path: Path):
    write_run(tmp_path)
    with pytest.raises(ResultsError, match=r"no suite 'quik' under .*did you mean 'quick'"):
        load_results(tmp_path, ["quik"])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"task": "b", "success_timing": "pre"},
            "suite quick: success_timing is post in quick/a/.* but pre in quick/b/",
        ),
        (
            {"task": "b", "success_rule": "any"},
            "suite quick: success_rule is last in quick/a/.* but any in quick/b/",
        ),
        (
            {"task": "b", "episode_seeds": "own"},
            "suite quick: episode_seeds is fixed in quick/a/.* but own in quick/b/",
        ),
        ({"task": "b", "offline": (0.0, 0.2)}, "suite quick: offline_updates is 200 in .* but 100 in"),
        ({"task": "b", "online": (0.2,)}, "suite quick: online_steps is 40 in .* but 10 in"),
        ({"task": "b", "origin": "published"}, "data origin is generated in quick/a/.* but published in quick/b/"),
        ({"seed": 1, "discount": 0.995}, "discount is 0.99 in quick/a/fql/seed_000 but 0.995 in quick/a/fql/seed_001"),
        ({"seed": 1, "agent_config": {"chunk_length": 5}}, "agent_config.bc_coef is 10.0 in .* but absent in"),
        ({"seed": 1, "extra": 1}, "extra is absent in .* but 1 in"),
        ({"seed": 1, "schema_version": 2}, "seed_001/config.json: schema_version 2, .* only version 1"),
    ],
)
def test_runs_that_differ_are_refused_by_name(tmp_path: Path, second: dict[str, Any], message: str):
    write_run(tmp_path, task="a")
    arguments: dict[str, Any] = {"task": "a"} | second
    write_run(tmp_path, **arguments)
    with pytest.raises(ResultsError, match=message):
        load_results(tmp_path)


@pytest.mark.parametrize(("key", "what"), [("content_hash", "dataset content hash"), ("name", "dataset")])
def test_agents_on_different_data_are_refused_by_name(tmp_path: Path, key: str, what: str):
    write_run(tmp_path, agent="fql")
    folder = write_run(tmp_path, agent="qc_fql")
    edit_json(folder / "provenance.json", lambda content: content["dataset"].update({key: "another"}))
    with pytest.raises(
        ResultsError, match=rf"task cube-single-task1: {what} is .*/fql/seed_000 but another in .*/qc_fql/"
    ):
        load_results(tmp_path)


def test_config_hash_may_differ_between_seeds(tmp_path: Path):
    write_run(tmp_path, seed=0, config_hash="a")
    write_run(tmp_path, seed=1, config_hash="b")
    assert load_one(tmp_path).cells["cube-single-task1", "fql"].seeds.tolist() == [0, 1]


def test_copied_folder_is_refused(tmp_path: Path):
    folder = write_run(tmp_path)
    shutil.copytree(folder, folder.with_name("seed_001"))
    with pytest.raises(ResultsError, match=r"seed_001/config.json belongs to quick/cube-single-task1/fql/seed_000"):
        load_results(tmp_path)


def replace_line(number: int, line: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [*lines[: number - 1], line, *lines[number:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_line(1, "phase,updates"), "header 'phase,updates', expected 'phase,updates,env_steps"),
        (replace_line(4, "offline,0,0,1002,1,0.0"), "line 4: 6 fields, expected 7"),
        (replace_line(4, "offline,0,0,1002,1,0.0,3,9"), "line 4: 8 fields, expected 7"),
        (replace_line(4, ""), "line 4: 1 fields, expected 7"),
        (replace_line(4, "offline,0,0,1002,2,0.0,3"), "line 4: success is '2', expected 0 or 1"),
        (replace_line(4, "offline,0,0,1002,,0.0,3"), "line 4: success is '', expected 0 or 1"),
        (replace_line(4, "offline,0,0,1002,1,nan,3"), "line 4: return is 'nan', expected a finite number"),
        (replace_line(4, "offline,zero,0,1002,1,0.0,3"), "line 4: updates is 'zero', expected a whole number"),
        (replace_line(4, "offline,-1,0,1002,1,0.0,3"), "line 4: updates is '-1', expected a whole number"),
        (replace_line(4, "warmup,0,0,1002,1,0.0,3"), "line 4: phase is 'warmup', expected offline or online"),
        (
            replace_line(4, "offline,0,0,1001,1,0.0,3"),
            "episode_seed 1001 stands twice in the evaluation at offline update 0",
        ),
        (lambda lines: lines[:3] + lines[4:], "4 of 5 episodes in the evaluation at offline update 0"),
        (lambda lines: lines[:-5], "no evaluation at online step 40"),
        (lambda lines: [line for line in lines if "offline,200," not in line], "no evaluation at offline update 200"),
        (lambda lines: lines[:1], "no evaluation at offline update 200"),
        (lambda lines: [], "header '', expected"),
    ],
)
def test_faulty_episodes_of_a_complete_run_are_one_line(
    tmp_path: Path, change: Callable[[list[str]], list[str]], message: str
):
    path = write_run(tmp_path) / "episodes.csv"
    lines = change(path.read_text().splitlines())
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(ResultsError, match=re.escape(message)) as error:
        load_results(tmp_path)
    assert str(path.parent) in str(error.value)
    assert "\n" not in str(error.value)


def test_binary_rubbish_in_episodes_is_one_line(tmp_path: Path):
    path = write_run(tmp_path) / "episodes.csv"
    path.write_bytes(path.read_bytes()[:200] + b"\xff\x00\x81" * 20 + b"\n")
    with pytest.raises(ResultsError, match=r"episodes.csv, line \d+: ") as error:
        load_results(tmp_path)
    assert "\n" not in str(error.value)


def test_complete_run_without_episodes_or_with_a_cut_row_is_refused(tmp_path: Path):
    path = write_run(tmp_path) / "episodes.csv"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ResultsError, match=r"last row is cut off although the run is complete"):
        load_results(tmp_path, allow_incomplete=True)
    path.unlink()
    with pytest.raises(ResultsError, match=r"episodes.csv is missing although the run is complete"):
        load_results(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "provenance.json", "status.json"])
def test_faulty_json_is_one_line(tmp_path: Path, name: str):
    path = write_run(tmp_path) / name
    faults = {"{": "is not valid JSON", "[]": "expected a JSON object", "{}": "schema_version None"}
    for content, message in faults.items():
        path.write_text(content)
        with pytest.raises(ResultsError, match=message) as error:
            load_results(tmp_path)
        assert name in str(error.value)
        assert "\n" not in str(error.value)


def test_unknown_origin_and_state_are_refused(tmp_path: Path):
    folder = write_run(tmp_path, origin="found")
    with pytest.raises(ResultsError, match=r"dataset origin 'found', expected published or generated or user"):
        load_results(tmp_path)
    edit_json(folder / "status.json", lambda content: content.update(state="done"))
    with pytest.raises(ResultsError, match=r"state 'done', expected one of running, preempted, failed, complete"):
        load_results(tmp_path)


def test_seeds_with_different_points_of_evaluation_are_refused(tmp_path: Path):
    write_run(tmp_path, seed=0)
    path = write_run(tmp_path, seed=1) / "episodes.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "offline,100," not in line))
    with pytest.raises(ResultsError, match=r"fql/seed_001 has no evaluation at offline update 100"):
        load_results(tmp_path)


# ------------------------------------------------------------------------------------------------ what bench wrote


def write_training(folder: Path, loss: float) -> None:
    rows = ["offline,50,0,critic_loss,{}", "online,220,20,behaviour_success,1", "online,230,30,behaviour_success,0"]
    text = "\n".join(["phase,updates,env_steps,name,value", *rows]).format(loss) + "\n"
    (folder / "train.csv").write_text(text)


def swap_outcome(folder: Path) -> None:
    path = folder / "episodes.csv"
    path.write_text(path.read_text().replace("online,240,40,1000,1", "online,240,40,1000,0"))


def of_another_run(folder: Path) -> None:
    other = write_run(folder.parents[4] / "other", seed=1, online=(0.2, 0.2, 0.2, 0.2))
    shutil.copy(other / "episodes.csv", folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_outcome, r"seed_001: episodes.csv is not what the run wrote \(complete.json: "),
        (of_another_run, r"seed_001: episodes.csv is not what the run wrote"),
        (lambda folder: write_training(folder, 2.0), r"seed_001: train.csv is not what the run wrote"),
        (lambda folder: (folder / "train.csv").unlink(), r"seed_001: train.csv is missing, and complete.json says"),
        (lambda folder: (folder / "episodes.csv").unlink(), r"seed_001: episodes.csv is missing, and complete.json"),
        (
            lambda folder: edit_json(folder / "config.json", lambda config: config.update(discount=0.9)),
            r"seed_001/config.json: its settings are not those of its config_hash",
        ),
        (
            lambda folder: edit_json(folder / "config.json", lambda config: config["agent_config"].pop("bc_coef")),
            r"seed_001/config.json: its settings are not those of its config_hash",
        ),
        (
            lambda folder: edit_json(folder / "complete.json", lambda marker: marker.update(files=["train.csv"])),
            r"complete.json: files is \['train.csv'\], expected bytes and sha256",
        ),
        (
            lambda folder: edit_json(folder / "complete.json", lambda marker: marker.update(schema_version=2)),
            r"complete.json: schema_version 2, and this analysis reads only version 1",
        ),
        (lambda folder: (folder / "complete.json").write_text("{"), r"complete.json is not valid JSON"),
    ],
)
def test_run_whose_files_are_not_what_it_wrote_is_refused(tmp_path: Path, change: Callable[[Path], None], message: str):
    for seed in range(2):
        folder = write_run(tmp_path / "results", seed=seed)
        write_training(folder, seed)
        seal(folder)
    assert load_one(tmp_path / "results").notes == ()
    change(folder)
    with pytest.raises(ResultsError, match=message):
        load_results(tmp_path / "results")
    if "episodes" in message:
        assert main(["--results", str(tmp_path / "results")]) == 2


def test_runs_of_older_versions_load_and_what_cannot_be_checked_is_reported(tmp_path: Path):
    write_sealed(tmp_path, seed=0)
    write_run(tmp_path, seed=1)
    (write_run(tmp_path, seed=2) / "complete.json").write_text("{}")
    write_sealed(tmp_path, seed=3, config_hash="of an imported run")
    write_run(tmp_path, seed=4, state="running")
    notes = load_one(tmp_path, allow_incomplete=True).notes
    cannot = "changed since the run cannot be checked, as in runs of older versions"
    cell = "quick/cube-single-task1/fql"
    assert notes[1:] == (
        f"suite quick: whether config.json {cannot}: {cell}/seed_003",
        f"suite quick: whether episodes.csv, train.csv {cannot}: {cell}/seed_001, {cell}/seed_002",
    )


def dos(content: bytes) -> bytes:
    return content.replace(b"\n", b"\r\n")


@pytest.mark.parametrize("convert", [dos, lambda content: dos(content[:80]) + content[80:]], ids=["all", "some"])
@pytest.mark.parametrize("before", [True, False], ids=["written so", "converted later"])
def test_rows_are_read_right_whatever_ends_them(tmp_path: Path, convert: Callable[[bytes], bytes], before: bool):
    norms = "".join(f"offline,50,0,gradient_norm_x_{k},1\n" for k in range(2))
    plain, folder = (write_run(tmp_path / name) for name in ("unix", "dos"))
    for one in (plain, folder):
        write_training(one, 1.0)
        with (one / "train.csv").open("a") as file:
            file.write(norms + "offline,50,0,gradient_norm_parameters_0,1\n")
        seal(one)
    for name in REPRODUCIBLE:
        (folder / name).write_bytes(convert((folder / name).read_bytes()))
    if before:
        seal(folder)
    unix, other = (load_one(tmp_path / name) for name in ("unix", "dos"))
    mine, theirs = (suite.cells["cube-single-task1", "fql"] for suite in (unix, other))
    assert mine.behaviour_success.tolist() == [0.5] == theirs.behaviour_success.tolist()
    assert np.array_equal(mine.online_score, theirs.online_score)
    assert unix.notes == () and len(other.notes) == (not before)
    assert before or "rows end with \\r\\n in place of \\n, and are what the run wrote" in other.notes[0]
    assert load_norms(unix, tmp_path / "unix").keys() == load_norms(other, tmp_path / "dos").keys() != set()
    records = [read_record(tmp_path / name, suite.runs[0], 0) for name, suite in (("unix", unix), ("dos", other))]
    assert [(one.name, one.value.tolist()) for one in records[0].train] == [
        (one.name, one.value.tolist()) for one in records[1].train
    ]
    assert records[1].damage == ()


def test_runs_of_different_seeds_with_equal_training_are_reported(tmp_path: Path):
    for seed, loss in enumerate((1.0, 2.0, 1.0, 3.0)):
        folder = write_run(tmp_path, seed=seed)
        write_training(folder, loss)
        seal(folder)
    (note,) = load_one(tmp_path).notes
    cell = "quick/cube-single-task1/fql"
    assert note.startswith(f"suite quick: equal bytes in train.csv of {cell}/seed_000 = {cell}/seed_002; losses of")
    last = tmp_path / cell / "seed_003"
    (last / "train.csv").write_bytes(dos((tmp_path / cell / "seed_001/train.csv").read_bytes()))
    seal(last)
    (note,) = load_one(tmp_path).notes
    assert f"{cell}/seed_000 = {cell}/seed_002; {cell}/seed_001 = {cell}/seed_003; losses of" in note


def test_equal_training_of_one_seed_or_without_losses_is_no_news(tmp_path: Path):
    for agent, variant in (("fql", ""), ("fql", "again")):  # a variant may change nothing
        folder = write_run(tmp_path / "a", agent=agent, variant=variant)
        write_training(folder, 1.0)
        seal(folder)
    for seed in range(2):
        folder = write_run(tmp_path / "b", seed=seed)
        rows = "phase,updates,env_steps,name,value\nonline,0,5,behaviour_return,-5\n"
        (folder / "train.csv").write_text(rows)
        seal(folder)
    assert load_one(tmp_path / "a").notes == () == load_one(tmp_path / "b").notes


@pytest.mark.parametrize("name", ["quick/cube-single-task1/fql/seed_001", "quick/cube-single-task1/qc", "quick/task2"])
def test_link_that_leads_nowhere_is_reported(tmp_path: Path, name: str):
    write_sealed(tmp_path)
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(ResultsError, match=rf"links under .* lead nowhere: {name}; mend or remove them, or pass"):
        load_results(tmp_path)
    (note,) = load_one(tmp_path, allow_incomplete=True).notes
    assert note == f"{name}: left out, it is a link that leads nowhere"


def test_suite_behind_a_link_that_leads_nowhere_is_reported(tmp_path: Path):
    write_sealed(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "gone")
    with pytest.raises(ResultsError, match=r"links under .* lead nowhere: other;"):
        load_results(tmp_path)
    assert load_one(tmp_path, suites=["quick"]).notes == ()
    assert load_one(tmp_path, allow_incomplete=True).notes == ("other: left out, it is a link that leads nowhere",)
    loaded, refused = load_each(tmp_path, None)
    assert [suite.name for suite in loaded] == ["quick"] and "leads nowhere" in refused["other"]


# --------------------------------------------------------------------------------------- incomplete and missing


def test_the_first_word_of_a_complete_run_stands_against_a_later_status(tmp_path: Path):
    write_sealed(tmp_path, state="running")
    assert load_one(tmp_path).notes == ()


@pytest.mark.parametrize("state", ["running", "preempted", "failed"])
def test_incomplete_runs_are_refused_by_name_unless_asked_for(tmp_path: Path, state: str):
    write_sealed(tmp_path, seed=0)
    write_run(tmp_path, seed=1, state=state)
    with pytest.raises(ResultsError, match=rf"1 of 2 runs .* quick/cube-single-task1/fql/seed_001 \({state}\)"):
        load_results(tmp_path)
    suite = load_one(tmp_path, allow_incomplete=True)
    assert suite.incomplete("fql") == 1
    assert suite.notes == ("incomplete: fql on cube-single-task1, seed 1",)


def test_half_written_row_and_evaluation_of_a_stopped_run_are_left_out_and_reported(tmp_path: Path):
    write_run(tmp_path, seed=0)
    path = write_run(tmp_path, seed=1, state="preempted") / "episodes.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: 1 + 4 * EPISODES + 2]) + "online,220,2")
    suite = load_one(tmp_path, allow_incomplete=True)
    cell = suite.cells["cube-single-task1", "fql"]
    assert cell.complete.tolist() == [True, False]
    assert np.isnan(cell.online_score[1]).tolist() == [False, False, True, True, True]
    name = "quick/cube-single-task1/fql/seed_001"
    assert f"{name}: left out the half-written last row of episodes.csv" in suite.notes
    assert f"{name}: left out the last evaluation: 2 of 5 episodes in the evaluation at online step 20" in suite.notes


def test_run_that_was_stopped_before_its_first_evaluation_can_be_drawn(tmp_path: Path):
    (write_run(tmp_path, seed=0, state="running") / "episodes.csv").unlink()
    (write_run(tmp_path, seed=1, state="running") / "episodes.csv").write_text("phase,upd")
    (write_run(tmp_path, seed=2, state="running") / "config.json").unlink()
    assert main(["--results", str(tmp_path), "--allow-incomplete"]) == 0
    suite = load_one(tmp_path, allow_incomplete=True)
    assert np.isnan(suite.cells["cube-single-task1", "fql"].offline_score).all()
    assert "quick/cube-single-task1/fql/seed_002: left out, it has no config.json yet" in suite.notes


@pytest.mark.parametrize("name", ["config.json", "provenance.json"])
def test_run_that_has_not_begun_is_refused_by_name(tmp_path: Path, name: str):
    write_run(tmp_path, seed=0)
    (write_run(tmp_path, seed=1) / name).unlink()
    with pytest.raises(ResultsError, match=rf"quick/cube-single-task1/fql/seed_001 has no {name}"):
        load_results(tmp_path)


def test_suite_in_which_nothing_has_begun_is_refused_by_name(tmp_path: Path):
    write_run(tmp_path, suite="quick")
    (write_run(tmp_path, suite="other") / "config.json").unlink()
    with pytest.raises(ResultsError, match=r"no run of suite other under .* has begun"):
        load_results(tmp_path, allow_incomplete=True)


def test_hidden_folders_are_no_suites(tmp_path: Path):
    write_run(tmp_path)
    write_run(tmp_path, suite=".code-of-a-job")
    assert load_one(tmp_path).name == "quick"


def test_incomplete_runs_count_only_where_they_have_come_far_enough(tmp_path: Path):
    write_run(tmp_path, seed=0, offline=(0.0, 0.2), online=(0.4, 0.4, 0.4))
    path = write_run(tmp_path, seed=1, offline=(0.0, 0.6), online=(1.0, 1.0, 1.0), state="running") / "episodes.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: 1 + 3 * EPISODES]))
    row = tables.suite_rows(load_one(tmp_path, allow_incomplete=True))[0]
    assert row.estimates["offline_end"].mean == pytest.approx(0.4)
    assert row.estimates["final"].mean == pytest.approx(0.4)
    assert row.estimates["improvement"].mean == pytest.approx(0.2)
    assert np.isnan(row.estimates["final"].low)


def test_missing_seeds_and_tasks_are_reported_by_name(tmp_path: Path):
    write_grid(tmp_path)
    shutil.rmtree(tmp_path / "quick/cube-double-task1/fql/seed_001")
    shutil.rmtree(tmp_path / "quick/cube-double-task2/sac_flow_g")
    for folder in find_runs(tmp_path):
        seal(folder)
    suite = load_one(tmp_path)
    assert suite.notes == (
        "missing: fql on cube-double-task1 lacks seed 1",
        "missing: sac_flow_g has no run on cube-double-task2; its means are over the other tasks",
    )
    assert (suite.missing("fql"), suite.missing("sac_flow_g")) == (1, 3)
    assert (suite.missing("fql", ["cube-double-task1"]), suite.missing("fql", ["cube-double-task2"])) == (1, 0)


def test_runs_of_several_states_of_the_code_are_reported(tmp_path: Path):
    write_sealed(tmp_path, seed=0)
    folder = write_sealed(tmp_path, seed=1)
    start = {"commit": "fedc9876", "dirty_diff_hash": "55aa55aa55"}
    edit_json(folder / "provenance.json", lambda content: content["starts"].append(start))
    (note,) = load_one(tmp_path).notes
    assert note == "suite quick: runs of 2 states of the code: 0123abcd, fedc9876 with changes 55aa55aa"


# ------------------------------------------------------------------------------------------------------- tables


def test_table_has_the_numbers_of_the_runs(tmp_path: Path):
    # Final success of the tasks: means of 0.4, 0.6 and of 1.0, 1.0; hand-over 0.2 everywhere.
    for task, seed, rate in (("a", 0, 0.4), ("a", 1, 0.6), ("b", 0, 1.0), ("b", 1, 1.0)):
        write_run(tmp_path, task=task, seed=seed, offline=(0.0, 0.2), online=(rate,) * 4)
    suite = load_one(tmp_path)
    (tmp_path / "out").mkdir()
    tables.write_tables(suite, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/quick_table.csv").set_index(["task", "agent"])
    overall, task_a = table.loc[("all tasks", "fql")], table.loc[("a", "fql")]
    assert overall["success_offline_end"] == 0.2
    assert overall["success_final"] == 0.75
    assert overall["improvement"] == pytest.approx(0.55)
    # Standard error of task a: 0.1, so 0.05 for the mean of two tasks; one degree of freedom.
    assert overall["improvement_low"] == pytest.approx(0.55 - 12.7062 * 0.05, abs=1e-4)
    assert (overall["success_final_low"], overall["success_final_high"]) == (pytest.approx(0.114690, abs=1e-5), 1.0)
    # Trapezoids of 0.2, r, r, r, r over four intervals.
    assert overall["online_auc"] == pytest.approx(np.mean([(0.1 + 3.5 * r) / 4 for r in (0.4, 0.6, 1.0, 1.0)]))
    assert task_a["success_final"] == 0.5
    assert (overall["num_tasks"], overall["seeds_min"], overall["seeds_max"]) == (2, 2, 2)
    assert set(table["data_origin"]) == {"generated"}


def test_markdown_says_what_its_numbers_rest_on(tmp_path: Path):
    suite = load_one(write_grid(tmp_path))
    text = tables.to_markdown(suite, tables.suite_rows(suite))
    assert "generated data · 3 seeds (smoke) · 5 evaluation episodes per point." in text
    assert "mean of the last 3 evaluations" in text
    for heading in ("### all tasks (2)", "### cube-double-task1", "### cube-double-task2"):
        assert heading in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {8}
    assert sum(line.startswith("| SAC Flow-G ") for line in rows) == 3


def test_latex_table_is_a_well_formed_tabular(tmp_path: Path):
    write_grid(tmp_path, agents=("sac_flow_g", "odd_50%&$#{}~^\\name"))
    suite = load_one(tmp_path)
    (tmp_path / "out").mkdir()
    tables.write_tables(suite, tmp_path / "out")
    for name in ("quick_table.tex", "quick_table_by_task.tex"):
        text = (tmp_path / "out" / name).read_text()
        assert text.isascii()
        comment, begin, *body, end = text.splitlines()
        assert comment.startswith("% needs \\usepackage{booktabs}")
        assert (begin, end) == (r"\begin{tabular}{lcccccc}", r"\end{tabular}")
        assert (body[0], body[2], body[-1]) == (r"\toprule", r"\midrule", r"\bottomrule")
        commands = {"toprule", "midrule", "bottomrule", "multicolumn", "textit", "footnotesize"}
        commands |= {"textbackslash", "textasciitilde", "textasciicircum", "dagger"}
        for line in body:
            if line in (r"\toprule", r"\midrule", r"\bottomrule"):
                continue
            assert line.endswith(r" \\")
            row = line.removesuffix(r" \\")
            assert set(re.findall(r"\\([a-zA-Z]+)", row)) <= commands
            plain = re.sub(r"\\[&%$#_{}]", "", row)
            assert plain.count("{") == plain.count("}")
            # What is left of the special characters: column separators and the minus signs.
            assert plain.count("&") == (0 if plain.startswith(r"\multicolumn{7}{l}") else 6)
            plain, daggers = re.subn(re.escape(r"$^\dagger$"), "", plain)
            assert not re.search(r"[%#_~^]", plain) and daggers < 5
            assert plain.count("$") == 2 * plain.count("$-$")
    overall = (tmp_path / "out/quick_table.tex").read_text()
    assert r"SAC Flow-G & " in overall
    assert r"odd\_50\%\&\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}name & " in overall
    assert "generated data; 3 seeds (smoke); 5 evaluation episodes per point" in overall


@pytest.mark.parametrize(
    ("final", "limits", "csv"), [(0.0, "[0.00, 0.56]", (0.0, 0.561497)), (1.0, "[0.44, 1.00]", (0.438503, 1.0))]
)
def test_runs_that_all_fail_or_all_succeed_are_not_known_to_the_last_digit(
    tmp_path: Path, final: float, limits: str, csv: tuple[float, float]
):
    for seed in range(3):
        write_run(tmp_path, seed=seed, offline=(0.0, 0.0), online=(final,) * 3)
        write_run(tmp_path, agent="qc_fql", seed=seed, offline=(0.0, 0.2 * seed), online=(0.2, 0.2, 0.2 * seed))
    write_all_tables(load_one(tmp_path), tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/quick_table.csv").set_index(["task", "agent"])
    row, other = table.loc[("all tasks", "fql")], table.loc[("all tasks", "qc_fql")]
    assert (row.success_final_low, row.success_final_high) == pytest.approx(csv, abs=1e-6)
    assert set(row.wilson.split()) >= {"success_offline_end", "success_final", "improvement"} and other.isna().wilson
    for name in ("table", "metrics", "offline_to_online", "comparisons"):
        text = (tmp_path / f"out/quick_{name}.md").read_text()
        assert "† Where" in text and "Wilson's interval" in text and "]†" in text, name
    text = (tmp_path / "out/quick_table.md").read_text()
    assert re.search(rf"\| FQL .*\| (\*\*)?{final:.2f} {re.escape(limits)}†", text)
    assert "†" not in next(line for line in text.splitlines() if line.startswith("| QC-FQL"))
    assert rf"{final:.2f} {limits}$^\dagger$" in (tmp_path / "out/quick_table.tex").read_text()


def test_minus_signs_of_a_latex_table_are_minus_signs(tmp_path: Path):
    write_run(tmp_path, offline=(0.0, 0.8), online=(0.2, 0.2, 0.2))
    suite = load_one(tmp_path)
    assert "$-$0.60" in tables.to_latex(suite, tables.suite_rows(suite))


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.623, 0.481, 0.766), "0.62 [0.48, 0.77]"),
        (Estimate(-0.001, -0.5, 0.498), "0.00 [-0.50, 0.50]"),
        (Estimate(0.5, float("nan"), float("nan")), "0.50"),
        (Estimate(float("nan"), float("nan"), float("nan")), "-"),
    ],
)
def test_estimates_are_shown_with_two_digits(estimate: Estimate, text: str):
    assert tables.show(estimate) == text


# ------------------------------------------------------------------------------------------------------ figures


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([1], "1 seed (smoke)"),
        ([3, 3], "3 seeds (smoke)"),
        ([3, 8], "3 to 8 seeds (smoke)"),
        ([4], "4 seeds (below the floor of 5)"),
        ([5, 5], "5 seeds"),
        ([8, 10], "8 to 10 seeds"),
    ],
)
def test_number_of_seeds_says_what_it_is_too_small_for(numbers: list[int], text: str):
    assert seeds_label(numbers) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (500, "500"), (1250, "1.25k"), (500_000, "500k"), (1e6, "1M"), (2.5e6, "2.5M")]
)
def test_counts_on_an_axis_are_short(count: float, text: str):
    assert count_label(count) == text


def test_known_agents_differ_in_colour_in_line_and_in_marker():
    ours = [style for agent, style in AGENT_STYLES.items() if agent in OWN_AGENTS]
    for mark in zip(*ours, strict=True):
        assert len(set(mark)) == len(OWN_AGENTS)
    # There are not so many lines and markers for the published methods: each has its colour.
    assert len({style.color for style in AGENT_STYLES.values()}) == len(AGENT_STYLES)


def test_styles_of_the_table_are_apart_with_and_without_colour():
    marks = [(style.line, style.marker, style.color) for style in AGENT_STYLES.values()]
    assert len({(line, marker) for line, marker, _ in marks}) == len(marks), "apart without colour, too"
    colors = {color for *_, color in marks}
    assert not colors - {"#000000"} & {style.color for style in FALLBACK_STYLES}


def test_unknown_agent_looks_the_same_whatever_stands_beside_it():
    alone, among = styles_of(["my_agent"]), styles_of(["zeta", "fql", "my_agent", "alpha"])
    assert alone["my_agent"] == among["my_agent"]
    assert list(among) == ["fql", "alpha", "my_agent", "zeta"]


def test_variant_of_any_agent_looks_like_no_other():
    names = ["fql", "fql@deep", "my_agent", "my_agent@deep"]
    styles = styles_of(names)
    assert list(styles) == names
    assert len(set(styles.values())) == 4
    assert styles_of(["my_agent@deep"])["my_agent@deep"] == styles["my_agent@deep"]


def test_a_variant_alone_of_its_agent_looks_as_the_agent_does_and_stands_in_its_place():
    styles = styles_of(["qc_fql", "flow_mlp@no-entropy", "sac_flow_t@no-entropy", "sac_flow_g@no-entropy"])
    both = styles_of(["sac_flow_g", "sac_flow_t", "flow_mlp", "qc_fql"])
    assert list(styles.values()) == list(both.values())
    assert [label.partition("@")[0] for label in styles] == list(both)
    of_two = styles_of(["sac_flow_g@a", "sac_flow_g@b"])
    assert len({*of_two.values(), AGENT_STYLES["sac_flow_g"]}) == 3


def test_no_two_agents_of_a_figure_look_the_same():
    styles = styles_of([*AGENT_STYLES, *(f"agent_{k}" for k in range(60))])
    assert len(set(styles.values())) == len(AGENT_STYLES) + 60


def test_hand_over_lies_at_zero_between_the_phases(tmp_path: Path):
    suite = load_one(write_grid(tmp_path))
    cell = next(iter(suite.cells.values()))
    x = figures.axis_position(suite, cell.offline_updates, cell.online_steps)
    assert x == pytest.approx([-0.4, -0.2, 0.0, 0.12, 0.24, 0.36, 0.48, 0.6])


def test_curve_is_the_mean_over_tasks_and_seeds_with_a_band_inside_the_unit_range(tmp_path: Path):
    suite = load_one(write_grid(tmp_path, agents=("fql",)))
    with figures.house_style():
        (axes,) = figures.suite_figure(suite).axes
    curve = axes.lines[0]
    cells = suite.cells_of("fql")
    expected = np.mean([cell.online_score.mean(axis=0) for cell in cells], axis=0)
    assert np.asarray(curve.get_ydata())[2:] == pytest.approx(expected)
    runs, band = axes.collections
    assert len(runs.get_paths()) == 2 * 3
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert (heights.min(), heights.max()) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("draw", "tasks", "agents"),
    [
        (figures.suite_figure, 1, ("fql",)),
        (figures.suite_figure, 5, (*OWN_AGENTS, "an_agent_with_a_long_name", "dsrl")),
        (figures.tasks_figure, 1, ("fql", "qc_fql")),
        (figures.tasks_figure, 3, tuple(OWN_AGENTS)),
        (figures.tasks_figure, 7, (*OWN_AGENTS, "an_agent_with_a_long_name", "dsrl")),
        (figures.agents_figure, 2, (*OWN_AGENTS, "an_agent_with_a_long_name", "dsrl", "qam", "ifql", "qc", "bfn")),
    ],
)
def test_all_words_of_a_figure_lie_inside_it_and_apart(
    tmp_path: Path, draw: Callable[[Suite], figures.Figure], tasks: int, agents: tuple[str, ...]
):
    write_grid(tmp_path, tasks=tasks, agents=agents, seeds=2)
    shutil.rmtree(tmp_path / f"quick/cube-double-task1/{agents[0]}/seed_001")
    write_run(tmp_path, "cube-double-task1", agents[0], 7, offline=(0.0, 0.2, 0.4), online=(0.4,) * 5, state="failed")
    suite = load_one(tmp_path, allow_incomplete=True)
    with figures.house_style():
        figure = draw(suite)
        figure.draw_without_rendering()
        title = figure._suptitle  # pyright: ignore[reportAttributeAccessIssue]
        texts = [title, *(text for legend in figure.legends for text in legend.get_texts())]
        panels = [axes.get_tightbbox() for axes in figure.axes if axes.axison]
        boxes = [text.get_window_extent() for text in texts]
        outer = figure.bbox.padded(1)
        for box in [*boxes, *panels]:
            assert box is not None
            assert outer.x0 <= box.x0 and box.x1 <= outer.x1
            assert outer.y0 <= box.y0 and box.y1 <= outer.y1
        parts = [title.get_window_extent(), *(legend.get_window_extent() for legend in figure.legends), *panels]
        for index, one in enumerate(parts):
            for other in parts[index + 1 :]:
                assert not one.padded(-1).overlaps(other.padded(-1))
        ticks = [label for axes in figure.axes for label in axes.get_xticklabels() if label.get_visible()]
        assert min(text.get_fontsize() for text in [*texts, *ticks]) >= 6


def test_figure_says_what_it_rests_on(tmp_path: Path):
    write_grid(tmp_path, origin="published", seeds=4)
    edit = tmp_path / "quick/cube-double-task1/fql/seed_002/status.json"
    edit_json(edit, lambda content: content.update(state="running"))
    shutil.rmtree(tmp_path / "quick/cube-double-task2/sac_flow_g/seed_003")
    suite = load_one(tmp_path, allow_incomplete=True)
    for draw in (figures.suite_figure, figures.tasks_figure):
        with figures.house_style():
            figure = draw(suite)
        words = figure.get_suptitle()
        for fact in ("published data", "3 to 4 seeds (smoke)", "5 evaluation episodes per point", "95 % t band"):
            assert fact in words
        assert "1 run missing" in words
        assert "1 run incomplete" in words
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels == ["SAC Flow-G (1 missing)", "FQL (1 incomplete)"]


def test_plain_figures_have_no_words_that_belong_into_a_caption(tmp_path: Path):
    suites = [replace(suite, plain=True) for suite in load_results(write_three_suites(tmp_path))]
    drawn = [figures.suite_figure, figures.tasks_figure, figures.agents_figure, comparisons.profile_figure]
    drawn += [lambda suite: comparisons.matrix_figure(suite, pairs_of(suite, suite.agents))]
    with figures.house_style():
        made = [draw(suites[0]) for draw in drawn] + [overview_figure(suites)]
        for figure in made:
            figure.draw_without_rendering()
            words = " ".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[union-attr]
            assert "success rate" in words or "beats one" in words, "axes keep their names"
            for word in ("seeds", "evaluation episodes", "generated", "t band", "thin", "Holm", "smoke"):
                assert word not in words, (word, words)
        assert "seeds" in figures.suite_figure(replace(suites[0], plain=False)).get_suptitle()


def write_three_suites(root: Path) -> Path:
    for suite in ("a", "b", "c"):
        write_grid(root, suite=suite)
    return root


def test_single_runs_are_drawn_where_they_can_be_told_apart(tmp_path: Path):
    few, many = load_one(write_grid(tmp_path / "few")), load_one(write_grid(tmp_path / "many", tasks=5, seeds=5))
    with figures.house_style():
        for suite, shown in ((few, True), (many, False)):
            figure = figures.suite_figure(suite)
            lines = [one for one in figure.axes[0].collections if isinstance(one, LineCollection)]
            assert len(lines) == shown * len(suite.agents) and all(
                0.1 <= (one.get_alpha() or 0) <= 0.4 for one in lines
            )
            assert ("thin lines: single runs" in figure.get_suptitle()) == shown
        by_task = figures.tasks_figure(many)
    assert "thin lines: single runs" in by_task.get_suptitle(), "a panel of 10 runs has room for them"


@pytest.mark.parametrize("agents", [2, 12])
def test_legends_are_smaller_than_panels_and_axes_hold_their_names(tmp_path: Path, agents: int):
    names = (*list(DISPLAY_NAMES)[:agents],)
    suite = load_one(write_grid(tmp_path, agents=names, seeds=2))
    with figures.house_style():
        made = [figures.suite_figure(suite), figures.tasks_figure(suite), comparisons.profile_figure(suite)]
        made.append(comparisons.matrix_figure(suite, pairs_of(suite, styles_of(suite.agents))))
        if found := counterparts(suite, read_published()):
            made.append(overlay.published_figure(suite, found))
        for figure in made:
            figure.draw_without_rendering()
            for legend in figure.legends:
                assert legend.get_window_extent().height < 0.45 * figure.bbox.height
            for axes in filter(lambda axes: axes.axison and axes.get_ylabel(), figure.axes):
                name, inside = axes.yaxis.label.get_window_extent(), axes.get_window_extent().padded(2)
                assert inside.y0 <= name.y0 and name.y1 <= inside.y1, axes.get_ylabel()


def test_no_word_above_a_narrow_figure_is_cut_off(tmp_path: Path):
    suite = load_one(write_grid(tmp_path, agents=("fql",), seeds=1))
    with figures.house_style():
        figure = figures.new_figure(COLUMN_WIDTH, 2.0)
        what, fact = "ours (colour) and published (grey): normalised return by agent and task", "a fact of many words"
        figures.title(figure, suite, what, [fact, " ".join([fact] * 5)])
        figure.draw_without_rendering()
        words = figure._suptitle  # pyright: ignore[reportAttributeAccessIssue]
        assert " ".join(words.get_text().split("\n")).count(fact) == 6
        assert words.get_window_extent().x1 <= figure.bbox.x1


def test_axis_names_both_units_and_the_hand_over(tmp_path: Path):
    suite = load_one(write_grid(tmp_path))
    with figures.house_style():
        (axes,) = figures.suite_figure(suite).axes
        words = [label.get_text() for minor in (False, True) for label in axes.get_xticklabels(minor=minor)]
    assert words[:5] == ["0", "200 | 0", "50", "100", "25"]
    assert words[5:] == ["offline\n(gradient updates)", "online\n(environment steps)"]
    assert [line.get_xdata() for line in axes.lines if len(np.asarray(line.get_xdata())) == 2] == [[0.0, 0.0]]


@pytest.mark.parametrize("phase", ["offline", "online"])
def test_suite_with_one_phase_is_drawn_over_the_whole_axis(tmp_path: Path, phase: str):
    curves = {
        "offline": {"offline": (0.0, 0.2, 0.6), "online": ()},
        "online": {"offline": (0.0,), "online": (0.2, 0.6)},
    }
    write_grid(tmp_path, **curves[phase])
    suite = load_one(tmp_path)
    with figures.house_style():
        axes = figures.suite_figure(suite).axes[0]
        figures.tasks_figure(suite).draw_without_rendering()
    x = np.asarray(axes.lines[0].get_xdata())
    assert x.max() - x.min() == pytest.approx(1.0)
    (words,) = [label.get_text() for label in axes.get_xticklabels(minor=True)]
    assert words.startswith(phase)


def test_many_agents_have_a_panel_each_with_the_others_behind_it(tmp_path: Path):
    names = ("fql", "qc_fql", "qc", "bfn", "ifql", "dsrl", "qam", "dac")
    write_grid(tmp_path / "few", agents=names)
    few = load_one(tmp_path / "few")
    assert not [path for path in figures.draw_suite(few, tmp_path) if "_agents" in path.name]
    write_grid(tmp_path / "many", agents=(*names, "qsm"))
    suite = load_one(tmp_path / "many")
    drawn = {path.name for path in figures.draw_suite(suite, tmp_path)}
    assert {f"quick_agents.{suffix}" for suffix in ("pdf", "svg", "png")} <= drawn
    with figures.house_style():
        (whole,), panels = figures.suite_figure(suite).axes, figures.agents_figure(suite).axes
    lines = {line.get_color(): np.asarray(line.get_xydata()) for line in whole.lines}
    for axes in filter(lambda axes: axes.axison, panels):
        agent = named_agent(axes.get_title(), suite.agents)
        assert agent and agent != axes.get_title(), "people read names of papers"
        color = figures.styles_of(suite.agents)[agent].color
        (mean,) = (line for line in axes.lines if line.get_color() == color)
        assert np.asarray(mean.get_xydata()) == pytest.approx(lines.pop(color))
        others, runs = (axes.collections[index] for index in (0, 1))
        assert len(others.get_paths()) == len(suite.agents) - 1 and len(runs.get_paths()) == len(suite.runs) / 9


def test_figures_do_not_touch_the_settings_of_matplotlib(tmp_path: Path):
    suite = load_one(write_grid(tmp_path, tasks=1))
    before = dict(mpl.rcParams)
    figures.draw_suite(suite, tmp_path)
    assert dict(mpl.rcParams) == before


# ------------------------------------------------------------------------------------- tasks scored by their return


def test_returns_are_normalised_where_references_exist_and_not_clipped(tmp_path: Path):
    curve: dict[str, Any] = {"offline": (-40.0, 10.0), "online": (110.0, 260.0), "by_return": True}
    write_run(tmp_path / "raw", **curve)
    write_run(tmp_path / "normalised", **curve, reference_returns=[10, 210.0])
    raw, normalised = load_one(tmp_path / "raw"), load_one(tmp_path / "normalised")
    assert (raw.measure, normalised.measure) == (RETURN, NORMALISED_RETURN)
    task = ("cube-single-task1", "fql")
    assert raw.cells[task].offline_score == pytest.approx(np.array([[-40.0, 10.0]]))
    assert raw.cells[task].online_score == pytest.approx(np.array([[10.0, 110.0, 260.0]]))
    assert normalised.cells[task].offline_score == pytest.approx(np.array([[-0.25, 0.0]]))
    assert normalised.cells[task].online_score == pytest.approx(np.array([[0.0, 0.5, 1.25]]))


def test_success_counts_even_where_reference_returns_exist(tmp_path: Path):
    write_run(tmp_path, reference_returns=[-10.0, 0.0])
    suite = load_one(tmp_path)
    assert suite.measure == SUCCESS
    assert suite.cells["cube-single-task1", "fql"].offline_score == pytest.approx(np.array([[0.0, 0.2, 0.4]]))


def test_runs_from_before_reference_returns_were_written_are_read(tmp_path: Path):
    folder = write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, reference_returns=[-10.0, 0.0])
    edit_json(folder / "provenance.json", lambda content: content.pop("reference_returns"))
    assert load_one(tmp_path).measure == SUCCESS


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (4, "offline,0,0,1002,1,0.0,3", "line 4: success is '1', expected an empty field as in line 2"),
        (2, "offline,0,0,1000,0,0.0,3", "line 3: success is '', expected 0 or 1"),
        (4, "offline,0,0,1002,nan,0.0,3", "line 4: success is 'nan', expected an empty field as in line 2"),
        (4, "offline,0,0,1002,,,3", "line 4: return is '', expected a finite number"),
    ],
)
def test_success_column_that_is_partly_empty_is_refused_as_damaged(
    tmp_path: Path, number: int, line: str, message: str
):
    path = write_run(tmp_path, by_return=True) / "episodes.csv"
    lines = replace_line(number, line)(path.read_text().splitlines())
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(ResultsError, match=re.escape(message)):
        load_results(tmp_path)


def test_word_for_nothing_is_not_an_empty_field(tmp_path: Path):
    path = write_run(tmp_path, by_return=True) / "episodes.csv"
    path.write_text(path.read_text().replace(",,", ",nan,"))
    with pytest.raises(ResultsError, match="line 2: success is 'nan', expected 0 or 1"):
        load_results(tmp_path)


@pytest.mark.parametrize("references", [[1.0, 1.0], [2.0, 1.0], [0.0], ["0", "1"], [float("nan"), 1.0], 3.0])
def test_references_that_cannot_scale_are_refused(tmp_path: Path, references: Any):
    write_run(tmp_path, by_return=True, reference_returns=references)
    with pytest.raises(ResultsError, match=r"provenance.json: reference_returns is .*, expected \[lower, higher\]"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"reference_returns": [0.0, 2.0]}, r"reference_returns is \[0.0, 1.0\] in .* but \[0.0, 2.0\] in"),
        ({}, r"reference_returns is \[0.0, 1.0\] in .* but None in"),
        (
            {"by_return": False, "reference_returns": [0.0, 1.0]},
            "the score is normalised return in .* but success rate in",
        ),
    ],
)
def test_task_scored_in_two_ways_is_refused_by_name(tmp_path: Path, second: dict[str, Any], message: str):
    write_run(tmp_path, seed=0, by_return=True, reference_returns=[0.0, 1.0])
    write_run(tmp_path, **({"seed": 1, "by_return": True} | second))
    with pytest.raises(ResultsError, match=f"task cube-single-task1: {message}"):
        load_results(tmp_path)


def write_locomotion(root: Path, references: bool = True) -> Path:
    """Two tasks whose returns lie on very different scales, two agents, three seeds."""
    rng = np.random.default_rng(1)
    for task, scale in (("hopper-medium", 2000.0), ("ant-medium", 500.0)):
        for agent in ("fql", "sac_flow_g"):
            for seed in range(3):
                returns = scale * np.sort(rng.uniform(-0.2, 1.4, size=6))
                write_run(
                    root,
                    task=task,
                    agent=agent,
                    seed=seed,
                    offline=tuple(returns[:2]),
                    online=tuple(returns[2:]),
                    by_return=True,
                    reference_returns=[0.0, scale] if references else None,
                )
    return root


def test_intervals_of_normalised_returns_reach_beyond_zero_and_one(tmp_path: Path):
    for seed, value in ((0, 0.1), (1, 1.9)):
        write_run(tmp_path, seed=seed, offline=(value,), online=(value,), by_return=True, reference_returns=[0.0, 1.0])
    row = tables.suite_rows(load_one(tmp_path))[0]
    # Standard error 0.9, t(0.975, 1) = 12.7062.
    final = row.estimates["final"]
    assert (final.mean, final.low, final.high) == pytest.approx((1.0, 1 - 12.7062 * 0.9, 1 + 12.7062 * 0.9), abs=1e-3)


def test_suite_of_normalised_returns_says_so_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_locomotion(tmp_path)
    assert main(["--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "### all tasks (2)" in printed
    assert "Normalised return: mean over seeds and over 2 tasks of equal weight, with 95 % t interval." in printed
    assert "0 and 1 are the task's reference returns (random actions; an expert or a published agent)." in printed
    assert "uccess" not in printed
    out = tmp_path / "figures"
    written = {path.name for path in out.iterdir()}
    assert written == {name.replace("success", "normalised_return") for name in WRITTEN} | COMPARED
    table = pd.read_csv(out / "quick_table.csv")
    assert set(table["scored_by"]) == {"normalised return"}
    assert {"score_offline_end", "score_final", "improvement", "online_auc"} <= set(table.columns)
    suite = load_one(tmp_path)
    assert table["score_final"].to_numpy()[0] == pytest.approx(
        np.mean([cell.online_score[:, -3:].mean() for cell in suite.cells_of("sac_flow_g")]), abs=1e-6
    )
    with figures.house_style():
        (axes,) = figures.suite_figure(suite).axes
        panels = figures.tasks_figure(suite).axes
    assert axes.get_ylabel() == panels[0].get_ylabel() == "normalised return"
    low, high = axes.get_ylim()
    scores = np.concatenate([cell.online_score.ravel() for cell in suite.cells.values()])
    assert low < min(0.0, scores.min()) and high > max(1.0, scores.max())
    assert panels[0].get_ylim() == panels[1].get_ylim()
    assert not any(label.get_visible() for label in panels[1].get_yticklabels())


def test_raw_returns_of_several_tasks_are_not_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_locomotion(tmp_path, references=False)
    suite = load_one(tmp_path)
    assert suite.measure is None
    assert main(["--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "all tasks" not in printed
    assert "Return: mean over seeds, task by task (no mean over tasks: their scores have no common scale)" in printed
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {name for name in WRITTEN if "success" not in name} - {"quick_table.tex"}
    with figures.house_style():
        panels = figures.tasks_figure(suite).axes
    assert [panel.get_ylabel() for panel in panels] == ["return", "return"]
    assert panels[0].get_ylim()[1] < 800 < 2000 < panels[1].get_ylim()[1]
    assert all(label.get_visible() for panel in panels for label in panel.get_yticklabels())


def test_suite_that_mixes_success_and_returns_is_shown_task_by_task(tmp_path: Path):
    write_locomotion(tmp_path)
    write_run(tmp_path, offline=(0.0, 0.2))
    suite = load_one(tmp_path)
    assert suite.measure is None
    text = tables.to_markdown(suite, tables.suite_rows(suite))
    assert "Normalised return or success rate: mean over seeds, task by task" in text
    for heading in ("### hopper-medium (normalised return)", "### cube-single-task1 (success rate)"):
        assert heading in text
    assert "all tasks" not in text
    (tmp_path / "out").mkdir()
    tables.write_tables(suite, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/quick_table.csv").set_index("task")
    assert table.loc["cube-single-task1", "scored_by"] == "success rate"
    assert set(table.loc["ant-medium", "scored_by"]) == {"normalised return"}
    with figures.house_style():
        figure = figures.tasks_figure(suite)
    assert [axes.get_ylabel() for axes in figure.axes] == ["normalised return", "success rate", "normalised return"]
    assert figure.axes[1].get_ylim() == (-0.03, 1.03)


def test_single_task_scored_by_its_return_has_its_own_figure(tmp_path: Path):
    write_run(tmp_path, offline=(3.0, 20.0), online=(40.0,), by_return=True)
    suite = load_one(tmp_path)
    names = {path.name for path in figures.draw_suite(suite, tmp_path)}
    assert names == {f"quick_return.{kind}" for kind in ("pdf", "svg", "png")}, "by task it would be the same figure"
    assert "Return: undiscounted sum of rewards of an episode." in tables.caption(suite)


def test_run_without_an_episode_so_far_is_taken_to_be_scored_like_the_others(tmp_path: Path):
    write_run(tmp_path, task="a", by_return=True, reference_returns=[0.0, 1.0])
    folder = write_run(tmp_path, task="b", by_return=True, reference_returns=[0.0, 1.0], state="running")
    (folder / "episodes.csv").write_text(HEADER + "\n")
    assert load_one(tmp_path, allow_incomplete=True).measures == {"a": NORMALISED_RETURN, "b": NORMALISED_RETURN}


@pytest.mark.parametrize("references", [True, False])
def test_words_of_a_figure_of_returns_lie_inside_it_and_apart(tmp_path: Path, references: bool):
    write_locomotion(tmp_path, references)
    for task in ("walker2d-medium", "halfcheetah-medium"):
        curve: dict[str, Any] = {"offline": (-3.0, 800.0), "online": (1e3, 2e3, 5e3, 9e3), "by_return": True}
        write_run(tmp_path, task=task, reference_returns=[0.0, 9e3] if references else None, **curve)
    suite = load_one(tmp_path)
    with figures.house_style(figures.PANEL_STYLE):
        figure = figures.tasks_figure(suite)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        boxes = [legend.get_window_extent(), *(axes.get_tightbbox() for axes in figure.axes if axes.axison)]
        outer = figure.bbox.padded(1)
        for index, one in enumerate(boxes):
            assert one is not None
            assert outer.x0 <= one.x0 and one.x1 <= outer.x1 and outer.y0 <= one.y0 and one.y1 <= outer.y1
            for other in boxes[index + 1 :]:
                assert other is not None
                assert not one.padded(-1).overlaps(other.padded(-1))


# ------------------------------------------------------------------------------------------------- command line

WRITTEN = {f"quick_{kind}.{suffix}" for kind in ("success", "tasks") for suffix in ("pdf", "svg", "png")}
WRITTEN |= {"quick_table.csv", "quick_table.md", "quick_table.tex", "quick_table_by_task.tex"}
WRITTEN |= {f"quick_offline_to_online.{suffix}" for suffix in ("csv", "md", "tex")}
WRITTEN |= {f"quick_{kind}.{suffix}" for kind in ("comparisons", "metrics") for suffix in ("csv", "md")}
# Where tasks have a common scale; profiles are of success rates.
COMPARED = {f"quick_comparison.{suffix}" for suffix in ("pdf", "svg", "png")}
PROFILE = {f"quick_profile.{suffix}" for suffix in ("pdf", "svg", "png")}
# Of success rates on tasks with published numbers.
AGAINST = {f"quick_published.{suffix}" for suffix in ("pdf", "svg", "png")} | {
    "quick_verdicts.csv",
    "quick_verdicts.md",
}


def test_command_prints_the_table_and_writes_figures_that_show_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_grid(tmp_path)
    assert main(["--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| SAC Flow-G |" in printed
    *_, wrote, last = printed.splitlines()
    assert wrote.startswith("wrote ") and "quick_success.{pdf,svg,png}" in wrote
    assert wrote.endswith(f" into {tmp_path}/figures")
    assert last.startswith(f"open {tmp_path}/figures/quick_success.png; one HTML page of everything: make report")
    out = tmp_path / "figures"
    assert {path.name for path in out.iterdir()} == WRITTEN | AGAINST | COMPARED | PROFILE
    assert (out / "quick_success.pdf").read_bytes().startswith(b"%PDF")
    assert b"</svg>" in (out / "quick_success.svg").read_bytes()
    picture = imread(out / "quick_success.png")[..., :3]
    assert picture.shape[1] == 3.4 * 300
    for agent in ("fql", "sac_flow_g"):
        color = to_rgb(AGENT_STYLES[agent].color)
        assert (np.abs(picture - color).max(axis=-1) < 0.02).sum() > 500


def write_all_tables(suite: Suite, out: Path) -> None:
    out.mkdir(parents=True)
    for write in (tables.write_tables, write_paper_table, write_comparisons):
        write(suite, out)


def test_people_read_names_of_papers_unless_they_ask_for_those_of_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_grid(tmp_path, agents=("sac_flow_g", "my_agent"), seeds=2)
    write_grid(tmp_path, agents=("sac_flow_g",), seeds=2, variant="wide")
    names = {"paper": ("SAC Flow-G", "SAC Flow-G@wide"), "code": ("sac_flow_g", "sac_flow_g@wide")}
    for kind, options in (("paper", []), ("code", ["--code-names"])):
        out = tmp_path / "out" / kind
        write_all_tables(replace(load_one(tmp_path), code_names=bool(options)), out)
        assert main(["report", "--results", str(tmp_path), "--out", str(out / "report.html"), *options]) == 0
        for table in ("table", "offline_to_online", "comparisons", "metrics"):
            words = (out / f"quick_{table}.md").read_text().split("\n* ")[0]  # notes speak of runs
            assert all(re.search(rf"\| {name} +\|", words) for name in (*names[kind], "my_agent")), table
            assert not any(name in words for name in set(names["paper" if kind == "code" else "code"]))
        page = (out / "report.html").read_text()
        assert all(f"<span>{name}</span></button>" in page for name in (*names[kind], "my_agent"))
        assert set(pd.read_csv(out / "quick_table.csv").agent) == {*names["code"], "my_agent"}, "files for programs"
    drawn: list[Suite] = []
    monkeypatch.setattr(
        "analysis.output.write_all", lambda suites, *_: drawn.extend(suites) or ([tmp_path / "a.md"], [])
    )
    assert main(["--results", str(tmp_path), "--code-names", "--plain"]) == 0
    assert drawn[0].plain
    with figures.house_style():
        (legend,) = figures.suite_figure(drawn[0]).legends
    assert {text.get_text() for text in legend.get_texts()} == {*names["code"], "my_agent"}


def test_every_agent_of_the_registry_has_a_name_for_people():
    assert set(AGENTS) == set(DISPLAY_NAMES) == set(AGENT_STYLES)
    assert len(set(DISPLAY_NAMES.values())) == len(DISPLAY_NAMES)


def test_refusal_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--results", str(tmp_path)]) == 2
    write_run(tmp_path, state="running")
    assert main(["--results", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("error: no runs under")
    assert "seed_000 (running)" in second
    assert not (tmp_path / "figures").exists()


def test_output_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["--results", str(tmp_path), "--out", str(tmp_path / "file")]) == 2
    assert re.fullmatch(r"error: cannot write to .*\n", capsys.readouterr().err)


def test_same_results_give_the_same_bytes(tmp_path: Path):
    # Another process, folder, hash seed, time zone and user style: nothing of them may show.
    write_grid(tmp_path / "one/results", agents=("fql", "sac_flow_g", "my_agent"))
    shutil.copytree(tmp_path / "one/results", tmp_path / "two/moved")
    (tmp_path / "two/matplotlibrc").write_text("font.size: 20\nsavefig.dpi: 50\naxes.facecolor: red\n")
    root = Path(__file__).resolve().parents[1]
    for number, folder in enumerate(("one/results", "two/moved")):
        environment = os.environ | {
            "PYTHONPATH": str(root),
            "PYTHONHASHSEED": str(number),
            "TZ": ("UTC", "Asia/Tokyo")[number],
        }
        command = [sys.executable, "-m", "analysis", "--results", str(tmp_path / folder), "--out", "out"]
        cwd = (tmp_path / folder).parent
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    for name in sorted(WRITTEN | AGAINST):
        assert (tmp_path / "one/out" / name).read_bytes() == (tmp_path / "two/out" / name).read_bytes(), name
