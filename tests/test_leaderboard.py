"""`analysis leaderboard`: what is wrong with an entry is said by name, all of it and no more; the others are ranked."""

import csv
import io
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from agents import AGENTS
from analysis.__main__ import main
from analysis.leaderboard.audit import CHECKS, audit
from analysis.leaderboard.board import ranks_of, read_board
from analysis.leaderboard.entries import read_entry
from analysis.leaderboard.known import FURTHER_KEYS, NEEDED_KEYS, PROTOCOL_COLUMNS, PROTOCOLS, parity, protocols
from analysis.loading.load import load_results
from bench.protocol.config import RunConfig
from bench.protocol.suites import SUITES
from bench.runs.contract import REPRODUCIBLE, config_hash, find_runs, sums_of
from tests.known_protocols import official_numbers, protocol_rows, text_of
from tests.test_analysis import edit_json, write_grid
from tests.tiny_runs import ROOT

OURS = ROOT / "results/leaderboard"
GOOD, OTHER, BROKEN = "toy-qc-fql", "toy-sac-flow-g", "toy-broken"
QUICK = ("toy", "quick", "robomimic-quick", "mujoco-quick")
CELL = "toy/toy-reach/qc_fql"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def entry(tmp_path) -> Path:
    """A copy of an entry that passes."""
    return Path(shutil.copytree(OURS / GOOD, tmp_path / "board" / GOOD))


def run_of(entry: Path, seed: int = 1) -> Path:
    return entry / CELL / f"seed_{seed:03d}"


def every(entry: Path, file: str, change: Change) -> None:
    for run in find_runs(entry):
        edit_json(run / file, change)


def configs(entry: Path, change: Change) -> None:
    """Changes every config as its author would: the hashes fit."""

    def rehashed(config: dict[str, Any]) -> None:
        change(config)
        config["config_hash"] = config_hash(config)

    every(entry, "config.json", rehashed)


def starts(entry: Path, seeds: range = range(5), **values: Any) -> None:
    for seed in seeds:
        edit_json(run_of(entry, seed) / "provenance.json", lambda content: content["starts"][0].update(values))


def replace_in(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


def reseal(run: Path) -> None:
    edit_json(
        run / "complete.json", lambda c: c.update(files={n: sums_of((run / n).read_bytes()) for n in REPRODUCIBLE})
    )


def copy_training(entry: Path) -> None:
    shutil.copy(run_of(entry, 0) / "train.csv", run_of(entry, 1) / "train.csv")
    reseal(run_of(entry, 1))


def rename_agent(entry: Path) -> None:
    configs(entry, lambda config: config.update(agent="mine"))
    (entry / CELL).rename(entry / "toy/toy-reach/mine")


def remove(entry: Path, *seeds: int) -> None:
    for seed in seeds:
        shutil.rmtree(run_of(entry, seed))


FAULTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a digit of episodes.csv": (
        lambda e: replace_in(run_of(e) / "episodes.csv", "offline,0,0,", "offline,0,1,"),
        "files",
        f"{CELL}/seed_001: episodes.csv is not what the run wrote",
    ),
    "a digit of train.csv": (
        lambda e: replace_in(run_of(e) / "train.csv", "0.", "1."),
        "files",
        f"{CELL}/seed_001: train.csv is not what the run wrote",
    ),
    "an edited config": (
        lambda e: replace_in(run_of(e) / "config.json", '"discount": 0.99', '"discount": 0.98'),
        "files",
        "seed_001: config.json: its settings are not those of its config_hash",
    ),
    "no sums": (
        lambda e: edit_json(run_of(e) / "complete.json", lambda c: c.pop("files")),
        "files",
        "there is no sum or hash of episodes.csv, train.csv",
    ),
    "no JSON": (
        lambda e: (run_of(e) / "provenance.json").write_text("{"),
        "files",
        "provenance.json is not valid JSON",
    ),
    "a folder that is no run": (
        lambda e: shutil.copytree(run_of(e), e / CELL / "seed_best"),
        "files",
        f"{CELL}/seed_best is not <suite>",
    ),
    "a key lacks": (
        lambda e: configs(e, lambda c: c.pop("utd_ratio")),
        "config",
        f"config.json lacks utd_ratio ({CELL} seeds 0, 1, 2, 3, 4)",
    ),
    "an unknown key": (lambda e: configs(e, lambda c: c.update(luck=7)), "config", "has the unknown luck"),
    "seeds with other settings": (
        lambda e: configs(e, lambda c: c["agent_config"].update(bc_coef=10.0 + c["seed"])),
        "config",
        "configs differ beyond the seed: agent_config.bc_coef",
    ),
    "a run that has not ended": (
        lambda e: (run_of(e) / "complete.json").unlink(),
        "grid",
        f"not complete: {CELL} seed 1",
    ),
    "more evaluation episodes": (
        lambda e: configs(e, lambda c: c.update(eval_interval_steps=75)),
        "protocol",
        f"eval_interval_steps is 75, the suite prescribes 150 ({CELL} seeds 0, 1, 2, 3, 4)",
    ),
    "products in bf16": (
        lambda e: configs(e, lambda c: c.update(matmul="bf16")),
        "protocol",
        "matmul is bf16, the suite prescribes fp32",
    ),
    "another rule of success": (
        lambda e: configs(e, lambda c: c.update(success_rule="any")),
        "protocol",
        "success_rule is any, the suite prescribes last",
    ),
    "a seed in between": (lambda e: remove(e, 2), "seeds", "has seeds 0 to 1, 3 to 4 and lacks 2"),
    "the first seed": (lambda e: remove(e, 0), "seeds", "has seeds 1 to 4 and lacks 0"),
    "few seeds": (lambda e: remove(e, 3, 4), "seeds", f"{CELL} has 3 seeds, a score takes at least 5"),
    "a run that is a copy": (copy_training, "seeds", "equal bytes in train.csv"),
    "no commit": (lambda e: starts(e, range(1), commit=None), "code", f"started without a commit ({CELL} seed 0)"),
    "another commit": (
        lambda e: starts(e, range(1), commit="f" * 40),
        "code",
        "commit ffffffffffff, entry.toml says b76d28d02a39",
    ),
    "changes not committed": (
        lambda e: starts(e, range(2, 4), dirty_diff_hash="0123456789abcdef"),
        "code",
        f"started with changes that are not committed ({CELL} seeds 2, 3)",
    ),
    "no start": (
        lambda e: every(e, "provenance.json", lambda p: p.update(starts=[])),
        "code",
        "no start is recorded",
    ),
    "an agent that was edited": (
        lambda e: starts(e, agent_source="0123456789abcdef"),
        "parity",
        "qc_fql ran with code 0123456789abcdef",
    ),
    "data of the user": (
        lambda e: every(e, "provenance.json", lambda p: p["dataset"].update(origin="user")),
        "provenance",
        "data are a file of the user's",
    ),
    "other data in one run": (
        lambda e: edit_json(run_of(e) / "provenance.json", lambda p: p["dataset"].update(content_hash="0" * 64)),
        "provenance",
        "runs on toy/toy-reach have 2 different data sets: 000000000000, 615581d337e8",
    ),
    "data of another name": (
        lambda e: every(e, "provenance.json", lambda p: p["dataset"].update(name="other")),
        "provenance",
        "seed_000 has read other, its config says toy-reach-mixed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused_by_its_name_and_by_no_other(entry, fault) -> None:
    plant, check, said = FAULTS[fault]
    plant(entry)
    faults = audit(read_entry(entry)).faults
    assert {one.check for one in faults} == {check}, faults
    assert any(said in one.text for one in faults), faults
    assert check in CHECKS


def test_a_task_that_lacks_and_a_suite_that_is_none_are_refused(entry) -> None:
    configs(entry, lambda config: config.update(suite="toys"))
    (entry / "toy").rename(entry / "toys")
    (fault,) = audit(read_entry(entry)).faults
    assert str(fault) == "grid: there is no suite 'toys' (did you mean 'toy'?)"


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        (lambda e: starts(e, agent_source=None), "parity: qc_fql: not known which code ran"),
        (rename_agent, "parity: mine is not of this project"),
        (
            lambda e: starts(e, range(2), plugins=[{"module": "mine", "file": "mine.py", "sha256": ""}]),
            "provenance: plugin mine (2 of 5 runs)",
        ),
        (
            lambda e: edit_json(
                run_of(e) / "provenance.json",
                lambda p: p["departures"].update({"resumed on": {"value": "cpu: B", "released": "cpu: A"}}),
            ),
            "provenance: resumed on cpu: B, before cpu: A (1 of 5 runs)",
        ),
        (lambda e: every(e, "provenance.json", lambda p: p.pop("departures")), "config: departures from published"),
    ],
)
def test_what_does_not_disqualify_is_marked(entry, change, mark) -> None:
    change(entry)
    result = audit(read_entry(entry))
    assert not result.faults
    assert any(str(one).startswith(mark) for one in result.marks), result.marks


def test_our_board_ranks_two_entries_and_refuses_the_broken_one_with_both_reasons(tmp_path, capsys) -> None:
    assert main(["leaderboard", "--leaderboard", str(OURS), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    board, refused = said.split("## Not admitted")
    assert re.search(rf"\| 1 +\| {OTHER} .*\n\| 2 +\| {GOOD} ", board) and BROKEN not in board
    assert f"**{BROKEN}**\n* files: {CELL}/seed_001: episodes.csv is not what" in refused
    assert "* seeds:" in refused and "lacks 3" in refused and refused.count("\n* ") == 2
    rows = list(csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text())))
    assert [(row["rank"], row["entry"], bool(row["not_admitted"])) for row in rows] == [
        ("1", OTHER, False),
        ("2", GOOD, False),
        ("", BROKEN, True),
    ]
    page = (tmp_path / "leaderboard.html").read_text()
    listed = page[page.index('id="refused"') :]
    assert BROKEN in listed and listed.count("banner refused") == 2 and "Protocol of toy" in page
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page


def test_what_a_card_says_is_text_on_the_page(entry, tmp_path) -> None:
    replace_in(entry / "entry.toml", 'name = "QC-FQL, toy"', 'name = "<script>alert(1)</script>"')
    assert main(["leaderboard", "--leaderboard", str(entry.parent), "--out", str(tmp_path / "out")]) == 0
    assert "<script" not in (tmp_path / "out/leaderboard.html").read_text()


def test_entries_on_other_data_than_those_before_are_refused_by_name(entry) -> None:
    other = Path(shutil.copytree(OURS / OTHER, entry.parent / OTHER))
    every(other, "provenance.json", lambda content: content["dataset"].update(content_hash="0" * 64))
    board = read_board(entry.parent)
    assert [one.entry.id for one in board.admitted] == [GOOD]
    (refused,) = board.refused
    assert refused.entry.id == OTHER and "dataset content hash" in refused.faults[0].text


def test_equal_entries_share_a_rank(entry) -> None:
    shutil.copytree(entry, entry.parent / "again")
    (ranking,) = read_board(entry.parent).rankings
    assert [(line.rank, line.audit.entry.id) for line in ranking.lines] == [(1, "again"), (1, GOOD)]


def test_a_rank_ends_with_the_first_that_is_told_from_its_best(tmp_path) -> None:
    write_grid(tmp_path, tasks=1, agents=("a", "b"), seeds=5)
    (suite,) = load_results(tmp_path)
    assert ranks_of(suite, ["a", "b"]) in ([1, 1], [1, 2])


def edited(old: str, new: str) -> Callable[[Path], Any]:
    return lambda entry: replace_in(entry / "entry.toml", old, new)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: shutil.rmtree(e), "has no entries: an entry is a folder"),
        (lambda e: shutil.rmtree(e.parent), "no leaderboard at"),
        (lambda e: (e / "entry.toml").unlink(), "is not an entry: it has no entry.toml"),
        (lambda e: shutil.rmtree(e / "toy"), "has no runs: expected <suite>"),
        (edited("url =", "web ="), "unknown key 'web'"),
        (edited("url =", "ulr ="), "unknown key 'ulr' (did you mean 'url'?)"),
        (edited('url = "results/README.md"', ""), "no key 'url'"),
        (edited("description = ", "# "), "no key 'paper' or 'description'"),
        (edited('url = "results/README.md"', "url = 7"), "url is 7, expected text"),
        (edited('["the authors of o2o-bench"]', "[]"), "authors is [], expected text, or a list of them"),
        (edited("b76d28d", "b76d28g"), "expected its 40 hexadecimal digits"),
        (edited("url =", "url"), "is not valid TOML"),
    ],
)
def test_what_is_no_board_is_one_line(entry, capsys, change, said) -> None:
    change(entry)
    assert main(["leaderboard", "--leaderboard", str(entry.parent)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (entry.parent.parent / "figures").exists()


def rows_of(suites: Collection[str]) -> list[str]:
    """The lines of the table that are of these suites."""
    head, *lines = PROTOCOLS.read_text().splitlines()
    return [head, *(line for line in lines if line.split(",")[0] in suites)]


@pytest.mark.parametrize(
    "suites", [QUICK, pytest.param(tuple(SUITES), marks=pytest.mark.thorough)], ids=["quick", "all"]
)
def test_the_table_of_protocols_is_that_of_the_suites(suites) -> None:
    made = text_of(PROTOCOL_COLUMNS, protocol_rows(suites)).splitlines()
    assert rows_of(suites) == made, "python -m tests.known_protocols"
    assert set(protocols()) == set(SUITES)


def test_the_keys_that_an_audit_knows_are_those_that_runs_write() -> None:
    written = [set(SUITES[suite]()[0].to_json()) for suite in QUICK]
    run = SUITES["toy"]()[0]
    written.append(set(run.replace(variant="wide", matmul="bf16", online_batch_share=0.5).to_json()))
    written.append(set(run.replace(replay="keep", warmup_actions="random", success_rule="any").to_json()))
    written.append({field.name for field in fields(RunConfig)} | {"schema_version", "config_hash"})
    assert set.intersection(*written) >= NEEDED_KEYS
    assert set.union(*written) == NEEDED_KEYS | FURTHER_KEYS


def test_parity_is_known_of_agents_of_this_project_alone() -> None:
    assert set(parity()) <= set(AGENTS)
    for agent in ("sac_flow_g", "qc_fql", "ppo"):
        assert official_numbers(agent) in {row["numbers"] for row in parity()[agent].values()} - {""}
