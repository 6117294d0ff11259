"""Variants of an agent are runs of their own wherever runs are named: status, logs, trackers, videos, cost."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from bench.__main__ import main
from bench.grid.options import PlanOptions, Selection, selected_configs
from bench.grid.survey import Queue, survey
from bench.runs.contract import LOG, STATUS, RunName, write_json
from bench.tools.film import caption
from bench.tools.trackers import MIRRORS
from bench.tools.video import file_name
from bench.training.pack import prepare_directory
from tests.tiny_runs import tiny_config

LABELS = ("sac_flow_g", "sac_flow_g@no-noise", "sac_flow_g@ten-critics")


@pytest.fixture
def runs(tmp_path):
    """Runs of one agent and two variants of it, each with a log that names it."""
    configs = [tiny_config(variant=label.partition("@")[2], seed=seed) for label in LABELS for seed in (0, 1)]
    for config in configs:
        (prepare_directory(config, tmp_path) / LOG).write_text(f"error: log of {config.name}\n")
    return configs


def test_status_has_a_row_for_each_variant_and_a_name_for_each_run(runs, tmp_path, capsys):
    assert main(["status", "--results", str(tmp_path), "--runs"]) == 0
    text = capsys.readouterr().out
    assert text.count("2 planned") == len(LABELS)
    for config in runs:
        assert text.count(f"{config.name}: planned") == 1
    assert main(["status", "--results", str(tmp_path), "--json"]) == 0
    names = [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert sorted(names) == sorted(str(config.name) for config in runs)


def test_status_for_programs_says_of_which_point_a_score_is(runs, tmp_path, capsys):
    said = {"state": "running", "updates": 30, "success_rate": 0.5, "score_updates": 20, "score_env_steps": 0}
    (runs[0].directory(tmp_path) / STATUS).write_text(json.dumps(said))
    assert main(["status", "--results", str(tmp_path), "--json"]) == 0
    of = {run["name"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    first, other = (of[str(config.name)] for config in runs[:2])
    assert [first[key] for key in said if key != "state"] == [30, 0.5, 20, 0]
    assert other["success_rate"] is other["score_updates"] is other["score_env_steps"] is None


def test_the_name_that_status_shows_opens_the_log_of_that_run(runs, tmp_path, capsys):
    for config in runs:
        assert main(["logs", str(config.name), "--results", str(tmp_path)]) == 0
        assert f"log of {config.name}\n" in capsys.readouterr().out


def test_time_left_rests_on_finished_runs_of_the_same_variant(runs, tmp_path):
    """Complete runs of one variant say nothing of how long another takes."""
    for config in runs:
        done = config.variant == "" or (config.variant == "no-noise" and config.seed == 0)
        start = {"pack": [config.seed], "seconds": 3600.0 if config.variant == "" else 60.0}
        directory = config.directory(tmp_path)
        write_json(directory / STATUS, {"state": "complete" if done else "planned", "updates": 0, "env_steps": 0})
        write_json(directory / "provenance.json", {"starts": [start] if done else []})
    ten = [config for config in runs if config.variant == "ten-critics"]
    for config in ten:  # nothing is known of them: they are taken out, so that the estimate is one of no-noise alone
        (config.directory(tmp_path) / "config.json").unlink()
    grid = survey(tmp_path, None, Queue())
    assert grid.left_seconds == pytest.approx(60.0)


@pytest.mark.parametrize(
    ("asked", "labels"),
    [
        ("crossq", ["crossq", "crossq@released-density", "crossq@no-batch-renorm"]),
        ("crossq@", ["crossq"]),
        ("crossq@no-batch-renorm", ["crossq@no-batch-renorm"]),
    ],
)
def test_a_suite_is_run_with_all_variants_of_an_agent_with_one_or_without(asked, labels):
    options = PlanOptions(Selection(suite="scratch-ablations", agents=(asked,), tasks=("ant-v4",), seeds=(0,)))
    assert [config.label for config in selected_configs(options)] == labels


@pytest.mark.extra("tensorboard")
def test_trackers_group_seeds_by_variant(runs, tmp_path):
    names = [RunName.of_config(config.to_json()) for config in runs]
    assert len({name.group for name in names}) == len(LABELS)
    for config in runs:
        MIRRORS["tensorboard"](config.directory(tmp_path), config.to_json()).close()
        (events,) = (config.directory(tmp_path) / "tensorboard").iterdir()
        assert config.name.group.encode() in events.read_bytes()


def test_videos_and_captions_tell_variants_apart(runs):
    own, *others = [config for config in runs if config.seed == 0]
    options = SimpleNamespace(camera=None, format="gif")
    names = {file_name(options, [own, other], 1_000_000) for other in others}  # type: ignore[arg-type]
    assert len(names) == 2
    take: Any = SimpleNamespace(row={"episode_seed": 1}, returns=[0.0, 1.0], solved=[False, True])
    assert len({caption(config, take, 0)[0] for config in (own, *others)}) == len(LABELS)
