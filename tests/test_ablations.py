"""Variants of an agent: where their runs lie, what they share, and how they are drawn."""

from pathlib import Path

import numpy as np
import pytest

from agents import AGENTS
from analysis.figures import ablations
from analysis.figures import curves as figures
from analysis.figures.ablations import ablations_of, draw_ablations
from analysis.loading.load import load_results
from analysis.report.protocol_card import protocol
from bench.protocol.config import ConfigError, RunConfig, default_agent_config
from bench.training.shared_phase import offline_phase
from tests.test_analysis import load_one, write_run
from tests.tiny_runs import tiny_config

BASE = {"chunk_length": 5, "bc_coef": 10.0, "flow_steps": 4, "hidden_dims": [64, 64]}


def test_variant_has_a_folder_beside_its_agent(tmp_path: Path):
    config = tiny_config("sac_flow_g").replace(variant="flow_steps=8")
    assert config.directory(tmp_path).parent.name == "sac_flow_g@flow_steps=8"
    assert RunConfig.from_json(config.to_json()) == config


def test_agents_without_variant_keep_their_hash():
    config = tiny_config("fql")
    assert "variant" not in config.to_json()
    assert config.to_json()["config_hash"] != config.replace(variant="x").to_json()["config_hash"]


@pytest.mark.parametrize("name", ["a/b", "a@b", "a b", "ä/.."])
def test_variant_that_cannot_be_a_folder_is_refused(name: str):
    with pytest.raises(ConfigError, match="variant"):
        tiny_config("fql").replace(variant=name)


def test_variants_of_the_online_phase_share_the_offline_phase_with_their_agent():
    config = tiny_config("sac_flow_g")
    online = default_agent_config("sac_flow_g", {"bc_coef_online": "7.0"}, config.agent_config)
    variant = config.replace(variant="weak", agent_config=online)
    assert offline_phase(variant) == offline_phase(config)
    both = default_agent_config("sac_flow_g", {"flow_steps": "7"}, config.agent_config)
    assert offline_phase(config.replace(variant="deep", agent_config=both)) != offline_phase(config)
    assert "bc_coef_online" in AGENTS["sac_flow_g"][0].online_only


def write_ablation(root: Path, tasks: int = 1) -> Path:
    variants = {
        "": {},
        "k8": {"flow_steps": 8},
        "k16": {"flow_steps": 16},
        "both": {"bc_coef": 0.0, "hidden_dims": [8, 8, 8]},
    }
    for task in range(1, tasks + 1):
        for name, changes in variants.items():
            for seed in range(2):
                config = {"agent_config": BASE | changes, "log_interval": 7 + len(changes)}
                write_run(root, f"cube-double-task{task}", "sac_flow_g", seed, variant=name, **config)
    return root


def test_ablations_are_sorted_by_the_settings_that_they_change(tmp_path: Path):
    write_ablation(tmp_path)
    write_run(tmp_path, "cube-double-task1", "fql", variant="alone")  # without the agent itself there is nothing to see
    first, second = ablations_of(load_one(tmp_path))
    assert first.settings == ("bc_coef", "hidden_dims")
    assert first.values == {"sac_flow_g": "10, 2x64", "sac_flow_g@both": "0, 3x8"}
    assert second.settings == ("flow_steps",)
    assert second.values == {"sac_flow_g": "4", "sac_flow_g@k16": "16", "sac_flow_g@k8": "8"}


def test_a_variant_on_some_tasks_is_drawn_beside_its_agent_on_these_and_not_in_the_mean_over_all(tmp_path: Path):
    for task in (1, 2):
        for seed in range(2):
            write_run(tmp_path, f"cube-double-task{task}", "sac_flow_g", seed, agent_config=BASE)
    deep = BASE | {"flow_steps": 8}
    for seed in range(2):
        write_run(tmp_path, "cube-double-task1", "sac_flow_g", seed, variant="k8", agent_config=deep)
    suite = load_one(tmp_path)
    with figures.house_style():
        (panel,) = ablations.ablation_figure(suite, ablations_of(suite)).axes
        mean = figures.suite_figure(suite)
    assert panel.get_title() == "SAC Flow-G: flow_steps\non cube-double-task1"
    own = suite.cells["cube-double-task1", "sac_flow_g"].online_score.mean(axis=0)
    assert any(np.allclose(np.asarray(line.get_ydata())[-len(own) :], own) for line in panel.lines)
    legend = panel.get_legend()
    assert legend and [text.get_text() for text in legend.get_texts()] == ["4 (default)", "8"]
    assert sum(line.get_marker() not in ("None", "") for line in mean.axes[0].lines) == 1
    words = mean._suptitle.get_text()  # pyright: ignore[reportAttributeAccessIssue]
    assert "not drawn, without runs on all of them: SAC Flow-G@k8" in " ".join(words.split("\n"))


def test_ablation_figure_has_a_panel_for_each_and_legends_by_value(tmp_path: Path):
    suite = load_one(write_ablation(tmp_path, tasks=2))
    with figures.house_style():
        figure = ablations.ablation_figure(suite, ablations_of(suite))
        figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == ["SAC Flow-G: bc_coef, hidden_dims", "SAC Flow-G: flow_steps"]
    legends = [axes.get_legend() for axes in panels]
    words = [[text.get_text() for text in legend.get_texts()] for legend in legends if legend]
    assert words == [["10, 2x64 (default)", "0, 3x8"], ["4 (default)", "8", "16"]]
    for axes in panels:
        box = axes.get_tightbbox()
        assert box is not None and box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y0 >= -1


def test_suite_without_variants_has_no_ablation_figure(tmp_path: Path):
    write_run(tmp_path / "results")
    assert draw_ablations(load_one(tmp_path / "results"), tmp_path) == []


def test_ablation_figure_is_written_in_every_format(tmp_path: Path):
    suite = load_one(write_ablation(tmp_path / "results"))
    assert [path.name for path in draw_ablations(suite, tmp_path)] == [
        f"quick_ablations.{kind}" for kind in ("pdf", "svg", "png")
    ]


def test_variants_have_rows_of_their_own(tmp_path: Path):
    (suite,) = load_results(write_ablation(tmp_path))
    assert suite.agents == ("sac_flow_g", "sac_flow_g@both", "sac_flow_g@k16", "sac_flow_g@k8")


def test_protocol_card_has_the_settings_of_each_variant(tmp_path: Path):
    (suite,) = load_results(write_ablation(tmp_path))
    (settings,) = [section.facts for section in protocol(suite, []) if section.title == "Settings of the agents"]
    assert {agent: "flow_steps 8" in facts for agent, facts in settings} == {
        "SAC Flow-G (sac_flow_g)": False,
        "SAC Flow-G@both (sac_flow_g@both)": False,
        "SAC Flow-G@k16 (sac_flow_g@k16)": False,
        "SAC Flow-G@k8 (sac_flow_g@k8)": True,
    }
