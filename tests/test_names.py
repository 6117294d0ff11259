"""Names that packages and papers of the field use: the task that each means, or that it is not supported."""

import re

import gymnasium
import pytest

import datasets
from bench.command_line import parse
from bench.grid.options import PlanOptions, selected_configs
from bench.protocol.config import RunConfig
from bench.runs.contract import ConfigError
from datasets.ogbench.tasks import ABSENT, DOMAINS
from datasets.spec import DataError

# What OGBench's page lists beside environments: its data sets, by domain.
KINDS = ("navigate", "stitch", "explore", "play", "noisy")


def ogbench_names() -> list[str]:
    """Every environment that OGBench registers."""
    import ogbench  # noqa: F401  registers them

    return sorted(name for name, spec in gymnasium.registry.items() if "ogbench" in str(spec.entry_point))


def test_every_name_of_ogbench_is_its_task_or_unsupported() -> None:
    names = ogbench_names()
    assert len(names) > 250
    understood = set()
    for name in names:
        domain = re.sub(r"(-singletask.*)?-v0$", "", name)
        if domain in DOMAINS and "singletask" in name:
            number = re.search(r"-task(\d)", name)
            expected = f"{domain}-task{number[1] if number else DOMAINS[domain].default_task_id}"
            assert datasets.task(name) == datasets.task(expected), name
            understood.add(domain)
            continue
        with pytest.raises(DataError, match=f"unsupported task '{name}'") as error:
            datasets.task(name)
        assert "did you mean" not in str(error.value)
    assert understood == set(DOMAINS)


@pytest.mark.parametrize("domain", [*DOMAINS, *ABSENT])
def test_a_name_with_data_chooses_these_data(domain: str) -> None:
    for kind in KINDS:
        for middle in ("-singletask", "-singletask-task3"):
            name = f"{domain}-{kind}{middle}-v0"
            if domain in DOMAINS and kind in DOMAINS[domain].published:
                spec = datasets.task(name)
                assert spec.dataset == datasets.parse_name(name).name == f"{domain}-{kind}-v0"
                assert spec.name == f"{domain}-task{3 if 'task3' in name else DOMAINS[domain].default_task_id}"
                continue
            for look in (datasets.task, datasets.parse_name):
                with pytest.raises(DataError, match="unsupported"):
                    look(name)


ALIASES = {
    "Lift": "lift-mh",
    "Can": "can-mh",
    "PickPlaceCan": "can-mh",
    "NutAssemblySquare": "square-mh",
    "square-mh-low_dim": "square-mh",
    "lift_ph": "lift-ph",
    "can-ph-low_dim-v15": "can-ph",
    "lift-mh-v15": "lift-mh",
    "hopper-bullet-medium-v0": "hopper-bullet-medium",
    "Walker2DBulletEnv-v0": "walker2d-bullet",
    "HalfCheetahBulletEnv-v0": "halfcheetah-bullet",
}


@pytest.mark.parametrize("name", ALIASES)
def test_a_name_of_another_package_is_understood(name: str) -> None:
    assert datasets.task(name) == datasets.task(ALIASES[name])


UNSUPPORTED = {  # and what the line must offer
    "visual-cube-single-task1": "from pixels",
    "cube-octuple-task1": "OGBench's cube-octuple is not supported",
    "puzzle-4x5-task1": "OGBench's puzzle-4x5 is not supported",
    "cube-double-task6": "cube-double-task1 … -task5",
    "cube-double-play-v0": "--dataset cube-double-play-v0",
    "cube-double-v0": "goal-conditioned",
    "antmaze-large-navigate-oraclerep-v0": "goal-conditioned",
    "antmaze-large-diverse-v2": "minari:D4RL/antmaze/large-diverse-v1",
    "antmaze-umaze-v0": "minari:D4RL/antmaze/umaze-v1",
    "maze2d-medium-dense-v1": "minari:D4RL/pointmaze/medium-dense-v2",
    "hopper-medium-v2": "minari:mujoco/hopper/medium-v0",
    "walker2d-medium-replay-v2": "D4RL's walker2d-medium-replay-v2 is not supported;",
    "pen-cloned-v1": "minari:D4RL/pen/cloned-v2",
    "kitchen-partial-v0": "minari:D4RL/kitchen/partial-v2",
    "lift-mg-low_dim": "lift-mh, lift-ph",
    "square-mh-image": "lift-mh, lift-ph",
    "can-ph-low_dim_v141": "version 1.5",
    "ToolHang": "Lift, Can and Square",
    "transport-mh-low_dim": "Lift, Can and Square",
    "HumanoidBulletEnv-v0": "hopper-bullet",
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_name_of_the_field_without_a_task_is_unsupported_and_not_guessed(name: str) -> None:
    with pytest.raises(DataError) as error:
        datasets.task(name)
    assert str(error.value).startswith(f"unsupported task '{name}': ") and "did you mean" not in str(error.value)
    assert UNSUPPORTED[name] in str(error.value)


@pytest.mark.parametrize("name", ["D4RL/door/human-v2", "mujoco/hopper/expert-v0"])
def test_a_bare_id_of_minari_is_its_task(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert datasets.default_dataset(name) == datasets.default_dataset(f"minari:{name}")
    with pytest.raises(DataError, match=f"data get --task minari:{name}"):
        datasets.task(name)


def test_a_run_has_the_data_that_its_tasks_name_chooses() -> None:
    """Nothing else may contradict them: a suite's data, or another set."""
    name = "cube-single-noisy-singletask-task2-v0"
    single = f"--agent fql --task {name}"
    (config,) = configs(single)
    assert (config.task, config.dataset) == ("cube-single-task2", "cube-single-noisy-v0")
    for line in (f"{single} --dataset cube-single-play-v0", f"--suite ogbench-cube-single --tasks {name}"):
        with pytest.raises(ConfigError, match="means cube-single-task2 with data cube-single-noisy-v0"):
            configs(line)
    assert configs(f"{single} --dataset cube-single-noisy-singletask-v0") == [config]
    part = "--suite ogbench-cube-single --seeds 0 --agents fql --tasks "
    assert configs(part + "cube-single-play-singletask-task2-v0") == configs(part + "cube-single-task2")


def configs(line: str) -> list[RunConfig]:
    return selected_configs(parse(PlanOptions, line.split(), "plan"))
