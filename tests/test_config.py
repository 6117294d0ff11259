"""RunConfig: identity, JSON round trip, and one clear line for every mistake."""

import csv
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import bench.protocol.tuned
import datasets
from agents import AGENTS
from agents.blocks.config import setting_types, settings_of, with_settings
from agents.blocks.critic import CriticConfig
from bench.grid.options import PlanOptions, Selection, selected_configs
from bench.protocol.config import (
    ConfigError,
    RunConfig,
    RunSettings,
    config_difference,
    default_agent_config,
    parse_value,
)
from bench.protocol.departures import departures
from bench.protocol.grids import run_config
from bench.protocol.schedule import total_updates, updates_after
from bench.protocol.suites import SUITES
from bench.protocol.tuned import (
    AGENT_SETTINGS,
    DOMAIN_SETTINGS,
    MUJOCO,
    MUJOCO_SETTINGS,
    RELEASE,
    RUN_SETTINGS,
    TUNED,
    WITHOUT_DATA,
    release_config,
    tuned_config,
)
from datasets.ogbench.tasks import DOMAINS
from tests.tiny_runs import tiny_config


@pytest.mark.parametrize("agent", AGENTS)
def test_config_comes_back_from_its_json(agent):
    config = tiny_config(agent)
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_is_a_grid_of_distinct_runs_with_a_docstring(suite):
    configs = SUITES[suite]()
    assert len({config.directory(Path()) for config in configs}) == len(configs)
    assert {config.suite for config in configs} == {suite}
    assert (SUITES[suite].__doc__ or "").strip()
    for config in configs[:: max(1, len(configs) // 7)]:
        assert RunConfig.from_json(config.to_json()) == config


# Of seed 0, from the time when an agent's config was one flat dataclass.
HASHES = {
    "baselines-cube/cube-double-task1/sac_flow_t": "7e6b3b3abcb66f28",
    "baselines-cube/cube-double-task1/sac_flow_g": "73d3ea13d905622a",
    "baselines-cube/cube-double-task1/flow_mlp": "f73766c10851d62e",
    "baselines-cube/cube-double-task1/naive_sac_flow": "a4a79111c457cb24",
    "baselines-cube/cube-double-task1/fbrac": "79636b1c211e543c",
    "baselines-cube/cube-double-task1/qc_fql": "5a76918012bd7afd",
    "baselines-cube/cube-double-task1/qc": "7ac6a858b22938cf",
    "baselines-cube/cube-double-task1/ifql": "e679e17d43e83acf",
    "baselines-cube/cube-double-task1/fawac": "6ee4ac2e05dcacf8",
    "baselines-cube/cube-double-task1/dsrl": "8b292e8e4890c437",
    "baselines-cube/cube-double-task1/qam": "028ca2698e28e494",
    "baselines-cube/cube-double-task1/qam_e": "e1dc5cb4d1c86c88",
    "baselines-cube/cube-double-task1/qam_f": "95e7736d8074b194",
    "baselines-cube/cube-double-task1/dac": "ee846bc771a72545",
    "baselines-cube/cube-double-task1/qsm": "c9a60d3f6aaa76d6",
    "baselines-cube/cube-double-task1/diffusion_ql": "ea628f0f200bcb98",
    "baselines-cube/cube-double-task1/idql": "f47f11ebcea46246",
    "baselines-cube/cube-double-task1/dppo": "293f61f44c082a3d",
    "baselines-cube/cube-double-task1/reinflow": "b47655e33b650eb6",
    "baselines-cube/cube-double-task1/rlpd_ac": "c27b7477904a03bb",
    "baselines-cube/cube-double-task1/sac": "c0022e701f2f6e6b",
    "baselines-cube/cube-double-task1/rebrac": "f2b37d721cc1b248",
    "baselines-cube/cube-double-task1/iql": "29e5d255536ec097",
    "baselines-cube/cube-double-task1/bc": "6a3e4530c6d603da",
    "baselines-cube/cube-double-task1/bc_diffusion": "dcc8643226d88f4e",
    "quick/cube-single-task1/sac_flow_g": "0c8779e18994d6ec",
    "robomimic-quick/lift-mh/flow_mlp": "9a203e780ca63192",
    "baselines-quick/cube-single-task1/rlpd": "fe79632adc167dcb",
    "baselines-quick/cube-single-task1/bfn": "77fe9bd09e3ebf68",
    "ogbench-antmaze-large/antmaze-large-task1/fql": "64fd0485fce34c4f",
    "sac-flow-ablations/cube-double-task2/sac_flow_t@distilled": "6102b5fe40d75a3a",
    "sac-flow-ablations/cube-double-task2/qc_fql@ten-pessimistic-critics": "7f797b932fc4a93b",
    "bullet/hopper-bullet-medium/sac_flow_t": "8168c25a7dcb2a32",
}


def test_runs_of_earlier_code_keep_their_hashes():
    """Every agent, and suites with settings of their own; a run whose hash changes would be trained anew."""
    suites = {name: SUITES[name]() for name in {key.split("/")[0] for key in HASHES}}
    found = {
        f"{config.suite}/{config.task}/{config.label}": config.to_json()["config_hash"]
        for configs in suites.values()
        for config in configs
        if config.seed == 0
    }
    assert {key: found[key] for key in HASHES} == HASHES


def test_settings_of_critics_stand_beside_the_others_in_files_and_commands():
    config = default_agent_config("qc_fql", {"num_critics": "10", "critic_hidden_dims": "8,8", "bc_coef": "3"})
    assert config.critic == CriticConfig(10, "mean", critic_hidden_dims=(8, 8)) and config.bc_coef == 3
    written = tiny_config("qc_fql").replace(agent_config=config).to_json()["agent_config"]
    assert written["num_critics"] == 10 and written["q_aggregation"] == "mean" and "critic" not in written
    with pytest.raises(ConfigError, match=r"fql has no option 'num_critic' \(did you mean 'num_critics'\?\)"):
        default_agent_config("fql", {"num_critic": "2"})
    with pytest.raises(ConfigError, match=r"fql: CriticConfig.num_critics = 0: must be a whole number"):
        default_agent_config("fql", {"num_critics": "0"})


# Whole numbers of which few are allowed, or that others bound.
CHOICES = ("critic_updates_per_offline_step", "decoder_dim", "step_dim")


@pytest.mark.parametrize("agent", AGENTS)
def test_settings_have_types_and_are_replaced_by_flat_names(agent):
    config = AGENTS[agent][1]
    settings = settings_of(config)
    assert settings.keys() == setting_types(type(config)).keys()
    assert with_settings(config, **settings) == config
    for name, value in settings.items():
        if isinstance(value, int) and not isinstance(value, bool) and name not in CHOICES:
            assert settings_of(with_settings(config, **{name: value + 1})) == settings | {name: value + 1}
    with pytest.raises(TypeError, match="critic_size"):
        with_settings(config, critic_size=3)


def test_two_fields_of_one_flat_name_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Twice:
        num_critics: int = 1
        critic: CriticConfig = CriticConfig(2, "mean")

    with pytest.raises(TypeError, match="Twice and its nested configs have two fields 'num_critics'"):
        setting_types(Twice)


def test_a_later_field_is_left_out_of_the_hash_for_its_own_class_alone(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Gloomy:
        chunk_length: int = 5
        pessimism: float = 0.5  # of another meaning than a critic's

    monkeypatch.setitem(AGENTS, "gloomy", (AGENTS["bc"][0], Gloomy()))
    config = tiny_config("bc").replace(agent="gloomy", agent_config=Gloomy())
    assert config.to_json()["agent_config"] == {"chunk_length": 5, "pessimism": 0.5}
    assert "pessimism" not in tiny_config("fql").to_json()["agent_config"]
    assert RunConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("domain", TUNED)
def test_tuned_settings_fit_their_agents(domain):
    for agent, settings in TUNED[domain].items():
        with_settings(AGENTS[agent][1], **settings)


def test_the_release_holds_chunks_and_critics_fixed():
    configs = SUITES["baselines-cube"]()
    assert {config.agent for config in configs} == set(AGENTS) - {"fql", "bfn", "rlpd", "ppo", *WITHOUT_DATA}
    assert {config.seed for config in configs} == set(range(12))
    for config in configs:
        agent = config.agent_config
        assert agent.chunk_length == 5 and config.online_steps == 500_000
        assert config.offline_updates == (0 if config.agent in ("rlpd_ac", "sac") else 1_000_000)
        if hasattr(agent, "critic"):
            assert agent.critic == CriticConfig(10, "pessimistic", 0.5)
    by_task = {(config.task, config.agent): config.agent_config for config in configs}
    assert by_task["cube-triple-task2", "qc_fql"].bc_coef == 30
    assert by_task["cube-triple-task2", "qc_fql"].window_mask == "window"  # of QAM's FQL; Q-chunking masks steps
    assert by_task["cube-quadruple-task1", "qam_f"].inverse_temperature == 0.3
    assert by_task["cube-double-task4", "dsrl"].noise_scale == 1.0
    # QAM's replay where it gives other batches than Q-chunking's; one shard of the 100M transitions at a time
    others = {(config.task.rsplit("-", 1)[0], config.agent) for config in configs if config.replay == "keep"}
    agents = {config.agent for config in configs} - {"dppo", "reinflow", "sac"}
    triple, quadruple = (
        {(domain, agent) for agent in agents - without}
        for domain, without in (("cube-triple", {"rlpd_ac", "idql"}), ("cube-quadruple", set()))
    )
    assert others == triple | quadruple
    assert {config.online_dataset_rows for config in configs if "quadruple" in config.task} == {1_000_000}


def test_a_single_run_may_keep_all_its_transitions_whatever_its_agent():
    for agent in ("fql", "rlpd"):
        words = ("--task", "cube-triple-task1", "--agent", agent, "--replay", "keep")
        selection = Selection(task=words[1], agent=agent)
        (config,) = selected_configs(PlanOptions(selection, RunSettings(replay="keep"), typed=words))
        assert (config.replay, config.replay_capacity) == ("keep", 2_000_000)


@pytest.mark.parametrize("domain", sorted({task.domain for task in datasets.TASKS.values()}))
def test_a_domain_asks_the_same_of_every_agent_in_it(domain):
    """Of the release's config, of the tuned one, and of a run that is named by its task."""
    task = next(task for task in datasets.TASKS.values() if task.domain == domain)
    maze, humanoid = "maze" in domain, "humanoidmaze" in domain
    scratch = ("--offline-updates", "0") if task.dataset is None else ()
    run_settings = RunSettings(offline_updates=0) if scratch else RunSettings()
    for agent, (_, default) in AGENTS.items():
        selection = Selection(task=task.name, agent=agent)
        typed = ("--task", task.name, "--agent", agent, *scratch)
        (single,) = selected_configs(PlanOptions(selection, run_settings, typed=typed))
        of_domain = 0.995 if humanoid or domain == "antmaze-giant" else 0.99
        assert single.discount == RUN_SETTINGS.get(agent, {}).get("discount", of_domain)
        assert single.online_dataset_rows == (1_000_000 if domain in ("cube-quadruple", "puzzle-4x4") else None)
        assert single.agent_config == tuned_config(agent, domain)
        for config, chunk_length in ((single.agent_config, default.chunk_length), (release_config(agent, domain), 5)):
            assert config.chunk_length == (1 if maze else chunk_length), agent
            settings = settings_of(config)
            if settings.get("q_aggregation") == "pessimistic":
                assert settings["pessimism"] == (0.0 if humanoid else 0.5), agent


def test_agents_that_measure_entropies_in_the_environments_units_know_its_scale():
    for domain, scale in (("humanoid-v4", 0.4), ("humanoidstandup-v5", 0.4), ("hopper-v4", 1.0)):
        assert AGENT_SETTINGS.get(domain, {}).get("action_scale", 1.0) == scale == datasets.task(domain).action_scale
        for agent in AGENTS:
            assert settings_of(tuned_config(agent, domain)).get("action_scale", scale) == scale, agent


def test_settings_of_a_data_set_are_those_of_the_one_that_is_trained_on():
    words = ("--task", "cube-quadruple-task1", "--agent", "fql", "--dataset", "cube-quadruple-play-v0")
    selection = Selection(task=words[1], agent="fql", dataset=words[-1])
    (config,) = selected_configs(PlanOptions(selection, typed=words))
    assert config.online_dataset_rows is None  # one file, which the releases keep whole


def test_weights_of_mazes_are_those_of_fql():
    assert TUNED["antmaze-giant"]["fql"]["bc_coef"] == 10  # not the release's
    assert release_config("fql", "antmaze-giant").bc_coef == release_config("qc_fql", "antmaze-giant").bc_coef == 3


def test_agents_without_an_offline_phase_have_none_wherever_they_are_named():
    from bench.protocol.grids import run_config

    task = datasets.task("cube-double-task2")
    config = run_config("s", task, "rlpd", 0, offline_updates=10)
    assert (config.offline_updates, config.online_batch_share, config.warmup_actions) == (0, 0.5, "random")
    assert run_config("s", task, "qc", 0, offline_updates=10).offline_updates == 10


def test_ablations_change_what_their_names_say():
    configs = {config.label: config.agent_config for config in SUITES["sac-flow-ablations"]()}
    base = configs["sac_flow_t@no-entropy"]
    assert base.temperature == "off"
    for label, changed in (("one-critic-update", {"critic_updates_per_offline_step"}), ("distilled", {"bc_target"}),
                           ("ten-critics", {"num_critics"}), ("paper-sde", {"noise_scheme"})):  # fmt: skip
        other = settings_of(configs[f"sac_flow_t@{label}"])
        assert {name for name, value in settings_of(base).items() if value != other[name]} == changed


@pytest.mark.parametrize("suite", [name for name in SUITES if name.startswith("velocity")])
def test_a_cell_of_the_velocity_study_differs_by_its_velocity_alone(suite):
    configs = [config for config in SUITES[suite]() if config.agent in ("sac_flow_t", "sac_flow_g", "flow_mlp")]
    for task, variant in {(config.task, config.variant) for config in configs}:
        cell = [config for config in configs if (config.task, config.variant) == (task, variant)]
        of_runs = [config.to_json() | dict.fromkeys(("agent", "agent_config", "config_hash")) for config in cell]
        assert len({json.dumps(of_run, sort_keys=True) for of_run in of_runs}) == 10  # seeds
        settings = {config.agent: settings_of(config.agent_config) for config in cell}
        assert len(settings) == 3
        assert {name for name, value in settings["flow_mlp"].items()
                if any(other[name] != value for other in settings.values())} == {"velocity_field"}  # fmt: skip


def test_critics_budgets_and_batches_are_the_same_for_every_agent_of_scratch_small():
    configs = SUITES["scratch-small"]()
    assert {(config.agent, config.seed) for config in configs} == set(itertools.product(
        ("sac_flow_t_scratch", "sac_flow_g_scratch", "flow_mlp_scratch", "crossq"), range(3)))  # fmt: skip
    assert len({config.agent_config.critic for config in configs}) == 1
    of_runs = [config.to_json() | dict.fromkeys(("agent", "agent_config", "config_hash", "seed")) for config in configs]
    assert all(of_run == of_runs[0] for of_run in of_runs)


def test_published_weights_are_those_of_the_table():
    assert TUNED["cube-double"]["sac_flow_t"] == {"bc_coef": 300, "bc_coef_online": 300}
    assert TUNED["cube-triple"]["qc_fql"] == {"bc_coef": 100}
    assert TUNED["cube-quadruple"]["fql"] == {"bc_coef": 300}
    assert TUNED["square"]["sac_flow_g"] == {"bc_coef": 10_000, "bc_coef_online": 1_000}


OF_RUNS = ("warmup_steps", "batch_size", "utd_ratio")


def published_settings() -> list[dict[str, str]]:
    """A row for each agent and domain; "" for an agent that is not here, `*` for all."""
    path = Path(bench.protocol.tuned.__file__).with_name("published_settings.csv")
    return [
        row | {"agent": agent, "domain": domain}
        for row in csv.DictReader(path.open())
        for agent in row["agent"].split() or [""]
        for domain in row["domain"].split() or [""]
    ]


def ours(row: dict[str, str], agent: str) -> tuple[Any, Any]:
    """Our value of a published setting, and the published one; (None, None) for a setting that the agent lacks."""
    task, name, value = datasets.task(row["domain"]), row["setting"], row["value"]
    if name == "sparse":
        return DOMAINS[task.domain].sparse, value == "True"
    if name in ("dataset", "max_episode_steps"):
        return str(getattr(task, name)), value
    run = run_config("s", task, agent, 0, **({} if task.dataset else {"offline_updates": 0}))
    if name in ("discount", "online_dataset_rows", *OF_RUNS):
        return getattr(run, name), float(value)
    config = release_config(agent, task.domain) if row["source"] == "qam" else run.agent_config
    settings = settings_of(config)
    if name not in settings or (name == "pessimism" and settings["q_aggregation"] != "pessimistic"):
        return None, None
    return settings[name], settings_of(default_agent_config(agent, {name: value}))[name]


def test_every_published_setting_is_ours_or_has_a_reason():
    for row in published_settings():
        assert row["reason"] or (row["agent"] and row["value"]), row
        if not row["agent"] or not row["value"]:
            continue
        of_all = [agent for agent in AGENTS if row["setting"] not in RUN_SETTINGS.get(agent, {})]  # but their own
        for agent in of_all if row["agent"] == "*" else [row["agent"]]:
            value, published = ours(row, agent)
            if row["reason"] and row["source"] != "own":  # which must not outlive the difference
                assert value is None or value != published, row
            else:
                assert value == published, (agent, row)
                assert value is not None or row["agent"] == "*", row


def test_no_setting_is_tuned_without_a_source_or_a_reason():
    rows = [row for row in published_settings() if not row["reason"] or row["source"] == "own"]
    for table, followed in ((TUNED, lambda row: True), (RELEASE, lambda row: row["source"] == "qam")):
        sources = {(row["domain"], row["agent"], row["setting"]) for row in rows if followed(row)}
        for domain, agents in table.items():
            missing = {(domain, agent, name) for agent, tuned in agents.items() for name in tuned} - sources
            assert not missing
    sources = {(row["domain"], row["agent"], row["setting"]) for row in rows}
    assert {(d, a, name) for d in MUJOCO for a, tuned in MUJOCO_SETTINGS.items() for name in tuned} <= sources
    sources = {(row["domain"], row["setting"]) for row in rows if not row["reason"]}
    for domain, tuned in [*DOMAIN_SETTINGS.items(), *AGENT_SETTINGS.items()]:
        assert {(domain, name) for name in tuned} <= sources
    sparse = {(row["domain"], row["setting"]) for row in rows if row["value"] == "True"}
    assert {(domain, "sparse") for domain, facts in DOMAINS.items() if facts.sparse} == sparse


def test_every_field_is_part_of_the_identity():
    config = tiny_config(task="cube-single-task1")
    changes = {
        "suite": "other",
        "task": "cube-single-task2",
        "dataset": "x",
        "success_timing": "pre",
        "success_rule": "any",
        "episode_seeds": "fixed",
        "discount": 0.5,
        "online_dataset_rows": 7,
        "variant": "x",
        "warmup_actions": "random",
        "online_batch_share": 0.5,
        "replay": "keep",
        "matmul": "bf16",
    }
    for field in dataclasses.fields(config):
        if field.name == "agent":
            other = tiny_config("flow_mlp", task=config.task)
        elif field.name == "agent_config":
            other = config.replace(agent_config=dataclasses.replace(config.agent_config, bc_coef=7.0))
        else:
            value = changes.get(field.name, getattr(config, field.name))
            other = config.replace(
                **{field.name: value + 1 if isinstance(value, int) and field.name not in changes else value}
            )
        assert other.to_json()["config_hash"] != config.to_json()["config_hash"], field.name


def test_runs_of_before_a_setting_existed_keep_their_hash():
    config = tiny_config()
    written = config.to_json()
    assert "pessimism" not in written["agent_config"]
    assert RunConfig.from_json(written) == config
    other = config.replace(agent_config=with_settings(config.agent_config, pessimism=1.0))
    assert RunConfig.from_json(other.to_json()) == other


def test_on_policy_runs_update_after_each_rollout():
    config = tiny_config("dppo", batch_size=7)
    agent = config.agent_config
    assert (agent.rollout_decisions, agent.epochs, agent.chunk_length, config.online_steps) == (4, 2, 5, 40)
    assert (config.rollout_steps, config.online_batch_size) == (20, 8)
    assert [step for step in range(1, 41) if updates_after(config, step)] == [20, 40]
    assert updates_after(config, 20) == 1  # 2 epochs of 4 decisions in batches of 8
    assert total_updates(config) == 30 + 2
    for batch_decisions, updates in ((2, 4), (100, 1)):
        changed = config.replace(agent_config=dataclasses.replace(agent, batch_decisions=batch_decisions))
        assert updates_after(changed, 20) == updates
    with pytest.raises(ConfigError, match="rollout_decisions is 4; it must be a multiple of num_envs, 3"):
        config.replace(agent_config=dataclasses.replace(agent, num_envs=3))
    with pytest.raises(ConfigError, match="must be at least two in each environment, 8"):
        config.replace(agent_config=dataclasses.replace(agent, num_envs=4))
    for change in ({"warmup_actions": "random"}, {"replay": "keep"}):
        with pytest.raises(ConfigError, match="dppo is on-policy: it has neither"):
            config.replace(**change)


def test_bare_domain_is_task_two():
    assert tiny_config(task="cube-single").task == "cube-single-task2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": "sac_flow_gg"}, "did you mean 'sac_flow_g'"),
        ({"task": "cube-duoble"}, "did you mean 'cube-double"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"offline_updates": -1}, "offline_updates is -1"),
        ({"online_steps": 1.5}, "online_steps is 1.5"),
        ({"discount": 1.5}, "discount is 1.5"),
        ({"episode_seeds": "fresh"}, "episode_seeds is 'fresh'; it must be own or fixed"),
        ({"eval_episodes": 10**9}, "eval_episodes is 1000000000; it must be at most 100000000"),
        ({"success_timing": "later"}, "unknown success timing 'later' of toy-reach; it is 'post'"),
        ({"offline_updates": 0, "online_steps": 0}, "nothing to run"),
        ({"suite": "a/b"}, "cannot be a folder's name"),
        ({"warmup_actions": "rnadom"}, "warmup_actions is 'rnadom'; it must be policy or random"),
        ({"replay": "kepp"}, "replay is 'kepp'; it must be overwrite or keep"),
        ({"replay": "keep", "replay_capacity": 9}, "replay keep has room for all transitions, so leave it at 2000000"),
        ({"online_batch_share": 1.5}, "online_batch_share is 1.5; it must lie in"),
        ({"online_batch_share": 0.5, "warmup_steps": 2}, "with an online_batch_share it must be at least one chunk, 5"),
        ({"agent_config": AGENTS["fql"][1]}, "takes a SACFlowConfig"),
    ],
)
def test_a_mistake_is_named_at_construction(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tiny_config().replace(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bc_coeff": "1"}, "did you mean 'bc_coef'"),
        ({"bc_coef": "much"}, "must be of type float"),
        ({"temperature": "realised"}, "did you mean 'released'"),
        ({"mask_bc_by_valid": "maybe"}, "true or false"),
        ({"flow_steps": "0"}, "at least 1"),
    ],
)
def test_agent_options_are_checked(overrides, message):
    with pytest.raises(ConfigError, match=message):
        default_agent_config("sac_flow_g", overrides)


def test_values_are_read_by_the_type_of_their_field():
    assert parse_value(int, "1_000", "x") == 1000
    assert parse_value(int | None, "none", "x") is None
    assert parse_value(int | None, "3", "x") == 3
    assert parse_value(tuple[int, ...], "64,64", "x") == (64, 64)
    config = default_agent_config(
        "sac_flow_t", {"policy_hidden_dims": "8 8", "norm": "pre", "critic_updates_per_offline_step": "1"}
    )
    assert (config.policy_hidden_dims, config.norm, config.critic_updates_per_offline_step) == ((8, 8), "pre", 1)


def test_an_edited_or_foreign_config_file_is_refused():
    written = tiny_config().to_json()
    with pytest.raises(ConfigError, match="edited by hand"):
        RunConfig.from_json({**written, "batch_size": 9})
    with pytest.raises(ConfigError, match="schema 99"):
        RunConfig.from_json({**written, "schema_version": 99})
    with pytest.raises(ConfigError, match="does not fit"):
        RunConfig.from_json({**written, "colour": "red"})


def test_the_difference_of_two_configs_names_the_fields():
    ours, theirs = tiny_config().to_json(), tiny_config(batch_size=8).to_json()
    assert config_difference(ours, theirs) == "batch_size 8 there, 16 here"
    others = {"batch_size": 8, "utd_ratio": 3, "discount": 0.5, "online_steps": 1, "warmup_steps": 1, "log_interval": 1}
    difference = config_difference(ours, tiny_config(**others).to_json())
    assert all(name in difference for name in others) and difference.count("there") == 4 and "; also " in difference


def test_published_settings_are_no_departures_whatever_the_agent():
    """Neither those of an agent's paper nor, where it was in it, those of the 12-seed release."""
    tasks = {task.domain: task for task in datasets.TASKS.values() if task.suite == "ogbench"}
    for agent in AGENTS:
        for domain, task in tasks.items():
            released = release_config(agent, domain)
            in_release = agent in RELEASE.get(domain, {})
            for settings in (tuned_config(agent, domain), *([released] if in_release else [])):
                config = run_config("s", task, agent, 0, agent_config=settings)
                assert departures(config) == {}, (agent, domain)
    chunks = run_config("s", tasks["cube-double"], "awac", 0, agent_config=release_config("awac", "cube-double"))
    assert departures(chunks)["chunk_length"] == {"value": 5, "released": 1}  # AWAC was not in that release


def test_a_departure_is_named_by_the_agents_own_setting():
    changed = default_agent_config("fql", {"num_critics": "7", "bc_coef": "3"}, tuned_config("fql", "cube-single"))
    found = departures(tiny_config("fql").replace(agent_config=changed))
    assert found == {"bc_coef": {"value": 3.0, "released": 300.0}, "num_critics": {"value": 7, "released": 2}}
