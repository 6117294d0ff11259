"""Runs that differ only after the hand-over train their offline phase once, and end as if each had trained its own."""

from dataclasses import replace

import pytest

from agents import AGENTS
from agents.blocks.config import settings_of, with_settings
from agents.fql import FQL
from bench.grid.plan import make_plan, run_plan
from bench.runs.contract import OFFLINE_PHASES
from bench.training.execution import Execution
from bench.training.shared_phase import finished_offline_phases, offline_phase, shared_offline_phases
from bench.training.train import run
from tests.test_train import execute, results_of
from tests.tiny_runs import once_per_class, provenance_of, tiny_config

# Another value for each field that acts online only.
OTHER = {
    "bc_coef_online": 3.0,
    "collect_noise_std": 0.5,
    "num_envs": 3,
    "rollout_decisions": 6,
    "batch_decisions": 4,
    "epochs": 1,
    "gae_lambda": 0.5,
    "gae_at_time_limits": "released",
    "max_reward": 1.0,
    "max_step_noise": 1.0,
    "count_start": False,
    "min_log_prob": -0.5,
    "max_log_prob": 0.5,
    "denoising_discount": 0.5,
    "clip_range": 0.2,
    "first_clip_range": 0.1,
    "clip_range_rate": 1.0,
    "min_std": 0.09,
    "max_std": 0.2,
    "entropy_coef": 0.5,
    "value_coef": 1.0,
    "first_policy_rollout": 1,
    "learning_rate": 1e-2,
    "value_learning_rate": 1e-2,
    "value_weight_decay": 0.1,
    "online_policy": "trained",
}


def variant(agent: str, seed: int = 0, **changes):
    """The same run but for all that comes after the hand-over, in a suite of its own."""
    config = tiny_config(
        agent, seed, suite="variant", online_steps=25, warmup_steps=3, eval_interval_steps=20, **changes
    )
    own = {name: OTHER[name] for name in AGENTS[agent][0].online_only}
    return config.replace(agent_config=replace(config.agent_config, **own))


WITH_ONLINE_FIELDS = {agent_class for agent_class, _ in AGENTS.values() if agent_class.online_only}
# Agents without such fields share their offline phase by the settings of the run, like FQL.
SHARING = [p for p in once_per_class() if AGENTS[p.values[0]][0] in {*WITH_ONLINE_FIELDS, FQL}]
QUICK = ("sac_flow_g", "dppo")  # in `make test`
SHARING = [
    p if p.values[0] in QUICK else pytest.param(*p.values, marks=[*p.marks, pytest.mark.thorough]) for p in SHARING
]


@pytest.mark.parametrize("agent", SHARING)
def test_what_acts_online_only_changes_no_byte_of_the_offline_phase(agent, data_cache, tmp_path):
    plain, other = tiny_config(agent, eval_interval_updates=30), variant(agent, eval_interval_updates=30)
    assert plain != other and offline_phase(plain) == offline_phase(other)
    phase = offline_phase(plain)
    execute([phase], tmp_path / OFFLINE_PHASES)
    execute([other], tmp_path / "alone")
    execute([other], tmp_path)
    assert results_of(other, tmp_path) == results_of(other, tmp_path / "alone")
    provenance = provenance_of(other.directory(tmp_path))
    assert provenance["offline_phase"] == {"config_hash": phase.to_json()["config_hash"], "seed": 0}
    assert provenance["starts"][0]["resumed_from"] == {"phase": "offline", "updates": 30, "env_steps": 0}
    assert provenance_of(other.directory(tmp_path / "alone"))["offline_phase"] is None


@pytest.mark.parametrize("agent", AGENTS)
def test_whatever_acts_offline_makes_another_phase(agent):
    config = tiny_config(agent)
    for change in ({"seed": 1}, {"discount": 0.5}, {"offline_updates": 31}, {"eval_episodes": 3}, {"batch_size": 9}):
        assert offline_phase(config) != offline_phase(config.replace(**change))
    for name, value in settings_of(config.agent_config).items():
        if name in AGENTS[agent][0].online_only or not isinstance(value, float):
            continue
        other = with_settings(config.agent_config, **{name: value * 0.9 + 3e-4})
        assert offline_phase(config) != offline_phase(config.replace(agent_config=other)), name


def test_a_plan_trains_a_shared_offline_phase_once_and_before_its_runs(data_cache, tmp_path):
    configs = [config for seed in (0, 1) for config in (tiny_config("sac_flow_g", seed), variant("sac_flow_g", seed))]
    alone = tiny_config("qc_fql")
    plan = make_plan([*configs, alone], tmp_path, Execution(device="cpu", eval_workers=1), jobs=2, pack=2)
    offline = [pack for pack in plan.packs if pack.results == tmp_path / OFFLINE_PHASES]
    assert [len(pack.configs) for pack in offline] == [2]  # both seeds, once for both variants
    assert [bool(pack.phases) for pack in plan.packs] == [False, True, True, False]
    assert not run_plan(plan, dict.fromkeys(plan.packs, _cost(alone)), lambda: False)
    for pack in (configs[0::2], configs[1::2]):
        run(pack, tmp_path / "alone", Execution(device="cpu", eval_workers=1), lambda: False)
    for config in configs:
        assert results_of(config, tmp_path) == results_of(config, tmp_path / "alone")
    assert not shared_offline_phases(configs, tmp_path)  # all have begun
    assert set(finished_offline_phases(configs, tmp_path)) == set(configs)
    assert not make_plan([*configs, alone], tmp_path, Execution(device="cpu")).packs


def test_analysis_does_not_count_an_offline_phase_as_a_run(data_cache, tmp_path):
    from analysis.loading.load import load_results

    config = tiny_config("fql")
    execute([offline_phase(config)], tmp_path / OFFLINE_PHASES)
    execute([config], tmp_path)
    (suite,) = load_results(tmp_path)
    assert [(cell, runs.seeds.tolist()) for cell, runs in suite.cells.items()] == [((config.task, "fql"), [0])]


def test_analysis_says_which_suites_share_offline_phases(data_cache, tmp_path):
    from analysis.loading.load import load_results

    plain, other = tiny_config("qc_fql"), variant("qc_fql")
    execute([offline_phase(plain)], tmp_path / OFFLINE_PHASES)
    execute([plain], tmp_path)
    execute([other], tmp_path)
    notes = [note for suite in load_results(tmp_path) for note in suite.notes if "offline phases" in note]
    assert len(notes) == 2 and notes[0].startswith(
        "suite tiny: 1 of its offline phases are also those of suite variant"
    )


def _cost(config):
    from bench.grid.cost import Cost

    return Cost(0.1, 0.1, 0.0, 1.0, 1000, config)
