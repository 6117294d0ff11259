"""The registry of families: who knows a task, who reads a data set, and what an environment needs to be installed."""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import cast

from bench.runs.contract import nearest
from datasets.bullet import source as bullet
from datasets.gymnasium_mujoco import source as gymnasium_mujoco
from datasets.minari import source as minari
from datasets.ogbench import source as ogbench
from datasets.robomimic import source as robomimic
from datasets.source import Family, Generator, Reader, Source
from datasets.spec import DataError, Dataset, Recipe, TaskSpec, generated_name
from datasets.toy import source as toy
from datasets.user_files.source import UserFiles

GENERATORS: list[Generator] = [ogbench, robomimic, bullet, toy]
SOURCES: list[Source] = [*GENERATORS, minari]
FAMILIES: list[Family] = [*SOURCES, gymnasium_mujoco]  # also those without data
DOWNLOADERS = {minari.SUITE: minari.get}  # of sources whose package fetches its data itself
TASKS = {name: spec for family in FAMILIES for name, spec in family.TASKS.items()}
EXTRAS = {  # the extras of pyproject.toml, and a module that each brings
    "robomimic": "robosuite",
    "minari": "minari",
    "bullet": "pybullet_envs_gymnasium",
}


def task(name: str) -> TaskSpec:
    """The task of a name; a bare domain is its default task. Raises DataError for an unknown one."""
    for family in FAMILIES:
        if spec := family.task(name):
            if spec.played_in is None:
                return spec
            played = played_task(spec)
            returns = spec.reference_returns or played.reference_returns
            return replace(
                spec,
                max_episode_steps=played.max_episode_steps,
                tells_success=played.tells_success,
                success_rule=played.success_rule,
                reference_returns=returns,
                least_reward=played.least_reward,
                action_scale=played.action_scale,
            )
    if why := _unsupported(name):
        raise DataError(f"unsupported task '{name}': {why}; python -m bench data list shows every task")
    raise DataError(
        f"unknown task '{name}'{nearest(name, [*TASKS, *domains()])}; domains are {', '.join(domains())}, "
        "and python -m bench data list shows every task; one of yours comes with --plugin MODULE"
    )


def _unsupported(name: str) -> str | None:
    asked = (minari, *GENERATORS, gymnasium_mujoco)
    return next((why for family in asked if (why := family.unsupported(name))), None)


def played_task(spec: TaskSpec) -> TaskSpec:
    """The task whose environment `spec` is played in: most often itself. Raises DataError where that one is unknown."""
    return played_task(task(spec.played_in)) if spec.played_in else spec


def may_share_rewards(name: str, spec: TaskSpec) -> bool:
    """False where the task of a name is known to have other rewards than `spec`.

    Tasks of equal domain and id have the same rewards, whatever data they start from (`can-mh`, `can-ph`).
    """
    try:
        rewarded = played_task(task(name))
    except DataError:  # of a Minari set that is not here: nothing is known of its task
        return True
    played = played_task(spec)
    # An environment that Minari recovers may be one of ours under another name; whether it is cannot be told.
    is_comparable = (rewarded.suite == minari.SUITE) == (played.suite == minari.SUITE)
    return not is_comparable or (rewarded.domain, rewarded.task_id) == (played.domain, played.task_id)


READERS: list[Reader] = [*SOURCES, UserFiles(SOURCES, may_share_rewards)]
PLUGINS: list[str] = []  # modules that have registered sources, for processes that start afresh to import


def register_source(source: Family) -> None:
    """Adds a family of tasks from outside this checkout: a Source where it has data, a Generator where it makes them.

    Raises ValueError for a name that is taken, and for an extra or a suite that the family's tasks do not have.
    """
    for what, names, taken in (
        ("suite", [source.SUITE], {known.SUITE for known in (*FAMILIES, *READERS)}),
        ("task", [*source.TASKS], TASKS),
        ("domain", [spec.domain for spec in source.TASKS.values()], domains()),
    ):
        if known := [name for name in names if name in taken]:
            raise ValueError(f"there is a {what} {known[0]!r} already; choose another name")
    for name, spec in source.TASKS.items():
        if (spec.name, spec.suite) != (name, source.SUITE):
            raise ValueError(f"task {name!r} says that it is {spec.name!r} of {spec.suite!r}, not of {source.SUITE!r}")
    if source.EXTRA is not None and source.EXTRA not in EXTRAS:
        raise ValueError(f"{source.SUITE}: EXTRA is {source.EXTRA!r}; it must be None or one of {', '.join(EXTRAS)}")
    FAMILIES.append(source)
    if hasattr(source, "read"):
        SOURCES.append(cast(Source, source))
        READERS.insert(-1, cast(Source, source))  # files of users come last
    if hasattr(source, "make_episode"):
        GENERATORS.append(cast(Generator, source))
    TASKS.update(source.TASKS)


def parse_name(name: str) -> Dataset:
    """The parts of a data set's name. Raises DataError for a name that no source knows."""
    for reader in READERS:
        if dataset := reader.parse(name):
            return dataset
    if why := _unsupported(name):
        raise DataError(f"unsupported data set '{name}': {why}; python -m bench data list shows every set")
    raise DataError(
        f"unknown data set '{name}'{nearest(name, [*published(), *_generated_like(name)])}; "
        f"names are like {published()[0]}, "
        f"cube-double-play-generated-1000ep-seed0 or cube-single-task1-mixed-generated-60ep-seed0"
    )


def _generated_like(name: str) -> Iterator[str]:
    """Names of sets that can be generated, of every domain and kind; with as many episodes and the seed of `name`."""
    numbers = re.search(r"([0-9]{1,9})[a-z]*-[a-z]*([0-9]{1,9})$", name)
    if numbers is None:
        return
    episodes, seed = max(1, int(numbers[1])), int(numbers[2])
    for spec in TASKS.values():
        for kind, is_for_one in kinds_for(spec).items():
            yield generated_name(spec.domain, Recipe(kind, episodes, seed, spec.task_id if is_for_one else 0))


def default_dataset(task_name: str) -> str:
    """Name of the data set that a task is trained on, also where its task is known by its data alone (Minari).

    Raises DataError for an unknown task and for one without data.
    """
    dataset = minari.parse(task_name)
    name = dataset.name if dataset else task(task_name).dataset
    if name is None:
        raise DataError(f"task {task(task_name).name} has no data: it is learned from scratch")
    return name


def domains() -> tuple[str, ...]:
    """The domains of all tasks that are known without looking at files."""
    return tuple(dict.fromkeys(spec.domain for spec in TASKS.values()))


def published() -> tuple[str, ...]:
    """Names of all published data sets."""
    return tuple(name for source in SOURCES for name in source.PUBLISHED)


def kinds(domain: str) -> Mapping[str, bool]:
    """Kinds of data that can be generated for a domain, and whether a set of the kind is made for one task.

    Raises DataError for an unknown domain.
    """
    spec = next((spec for spec in TASKS.values() if spec.domain == domain), None)
    if spec is None:
        raise DataError(f"unknown domain '{domain}'{nearest(domain, domains())}; domains are {', '.join(domains())}")
    return kinds_for(spec)


def kinds_for(spec: TaskSpec) -> Mapping[str, bool]:
    """The same for the domain of a task; none where its family has no data."""
    return next((source.kinds(spec.domain) for source in SOURCES if spec.suite == source.SUITE), {})


def family_of(spec: TaskSpec) -> Family:
    """The family that a task belongs to."""
    return next(family for family in FAMILIES if spec.suite == family.SUITE)


def reader_of(dataset: Dataset) -> Reader:
    """Who reads a data set."""
    return next(reader for reader in READERS if dataset.suite == reader.SUITE)


def generator_of(dataset: Dataset) -> Generator:
    """Who makes a generated data set."""
    return next(source for source in GENERATORS if dataset.suite == source.SUITE)


def missing_extra(source: Family) -> str | None:
    """The extra that the source's environments need and that is not installed."""
    return source.EXTRA if source.EXTRA and importlib.util.find_spec(EXTRAS[source.EXTRA]) is None else None


def require_extra(source: Family) -> None:
    """Raises DataError, with the command that helps, where the source's environments cannot be made."""
    if extra := missing_extra(source):
        raise DataError(
            f"{source.SUITE} tasks need {EXTRAS[extra]}, which is not installed; install it: "
            f"make setup EXTRAS={extra} (or pip install -r requirements-{extra}.lock)"
        )


def unavailable(task_name: str) -> str | None:
    """Why a task's environment cannot be made here, with the command that helps; None where it can."""
    try:
        require_extra(family_of(task(task_name)))
    except DataError as error:
        return str(error)
    return None
