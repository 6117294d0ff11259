"""`python -m bench data list | get | verify | generate | import`: data sets, and what runs do about theirs."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tyro.conf import Positional

import datasets
from bench.command_line import check_least
from bench.protocol.plugins import Plugins
from bench.runs.contract import ConfigError
from bench.runs.quantities import counted, duration, size
from bench.training.execution import available_cores
from datasets.generate import will_fetch
from datasets.minari.source import local_ids
from datasets.registry import kinds_for
from datasets.spec import DataError

if TYPE_CHECKING:  # it brings torch, which takes seconds
    from bench.protocol.config import RunConfig


# What `run` does about the data of its configs.


def describe_data(configs: Sequence["RunConfig"], data_dir: Path | None) -> set[str]:
    """Prints a line per data set that the runs need, and warnings; returns these.

    A user's file is converted, as a run would, so that whatever is wrong with its arrays shows here. Raises DataError,
    before any data are made, also for a set of another domain.
    """
    said: set[str] = set()
    untouched: dict[str, list[str]] = {}  # tasks of runs without data, and their agents
    for config in dict.fromkeys(config.replace(seed=0) for config in configs if config.data is None):
        untouched.setdefault(config.task, []).append(config.label)
    for task, labels in untouched.items():
        print(f"data none: {task} is learned from scratch by {', '.join(dict.fromkeys(labels))}", flush=True)
    for task, name in named_data(configs):
        datasets.check_dataset(datasets.task(task), name)
    for name in dict.fromkeys(name for _, name in named_data(configs)):
        facts = datasets.describe(name, data_dir)
        generated = facts["origin"] == "generated"
        if facts["present"]:
            state = f"in {facts['path']}"
            if facts["origin"] == "user" or not datasets.parse_name(name).domain:  # also a Minari set of the user's
                data = [_loaded(task, name, configs, data_dir, said) for task in _tasks_on(name, configs)]
                state += f" ({_extent(data[0])})"
        elif generated:
            state = "will be generated here first"
        elif will_fetch(name):
            state = "absent, will be downloaded first"
        else:
            state = f"absent: python -m bench data get {name} first"
        note = (
            ""
            if facts["origin"] == "published"
            else " - not the published set, never compare it with published numbers"
        )
        print(f"data {name}: {facts['origin']}, {state}{note}", flush=True)
    return said


def named_data(configs: Sequence["RunConfig"]) -> list[tuple[str, str]]:
    """Task and data set of the runs that have data, each pair once."""
    return list(dict.fromkeys((config.task, config.data) for config in configs if config.data is not None))


def ensure_data(configs: Sequence["RunConfig"], data_dir: Path | None, said: set[str]) -> None:
    """Makes or fetches sets that are absent and converts each once, so that an error shows before a run starts.

    Args:
        said: warnings that need no repetition.
    """
    for task, name in named_data(configs):
        datasets.ensure(name, available_cores(), episode_progress(), data_dir, byte_progress())
        transitions = _loaded(task, name, configs, data_dir, said)
        print(f"{task}: {_extent(transitions, f'{transitions.origin} ')}", flush=True)


def _extent(data: datasets.Transitions, kind: str = "") -> str:
    """3 transitions in 1 episode."""
    return f"{counted(data.num_transitions, f'{kind}transition')} in {counted(data.num_episodes, 'episode')}"


def few_chunks(transitions: datasets.Transitions, chunk_length: int) -> str | None:
    """A line for data in which under a quarter of the transitions begin a chunk that fits into its episode."""
    lengths = np.diff(transitions.episode_ends, prepend=0)
    fitting = int((lengths - chunk_length + 1).clip(0).sum())
    if 4 * fitting >= transitions.num_transitions:
        return None
    return (
        f"only {fitting:,} of {transitions.num_transitions:,} transitions begin {chunk_length} steps in one episode, "
        f"as agents with chunks of {chunk_length} learn from; episodes have {np.median(lengths):g} steps in the median"
    )


def _tasks_on(name: str, configs: Sequence["RunConfig"]) -> list[str]:
    return list(dict.fromkeys(config.task for config in configs if config.data == name))


def _loaded(
    task: str, name: str, configs: Sequence["RunConfig"], data_dir: Path | None, said: set[str]
) -> datasets.Transitions:
    """The data of a task's runs; prints and adds warnings that are not yet among those `said`. Raises DataError, also
    where they are fewer transitions than a chunk has."""
    data = datasets.load(task, name, data_dir, quiet=True)
    warnings = list(data.warnings)
    of_data = [config for config in configs if (config.task, config.data) == (task, name)]
    for length, config in sorted({config.agent_config.chunk_length: config for config in of_data}.items()):
        if data.num_transitions < length:
            raise DataError(
                f"data set '{name}' has {data.num_transitions} transitions, fewer than one chunk of {config.label} "
                f"(chunk_length {length}); use more data, or shorter chunks"
            )
        if line := few_chunks(data, length):
            warnings.append(line)
    for line in dict.fromkeys(warnings):
        if line not in said:
            print(f"warning: {line}", file=sys.stderr, flush=True)
    said.update(warnings)
    return data


def episode_progress() -> Callable[[int, int], None]:
    """A progress line with rate and time left for data generation: live on a terminal, each ten seconds elsewhere."""
    return ProgressLine(lambda done, total: f"generating data: {done}/{total} episodes", lambda rate: f"{rate:.1f}/s")


def byte_progress() -> Callable[[int, int | None], None]:
    """The same for downloads."""

    def text_of(done: int, total: int | None) -> str:
        return f"downloading: {size(done)}" + (f" of {size(total)}" if total else "")

    return ProgressLine(text_of, lambda rate: f"{size(rate)}/s")


class ProgressLine:
    """Called with how much is done of how much; prints now and then, and once at the end."""

    def __init__(self, text_of: Callable[[int, int | None], str], rate_text: Callable[[float], str]):
        self._text_of, self._rate_text = text_of, rate_text
        self._started = self._last = time.monotonic()
        self._first: int | None = None
        self._finished = False

    def __call__(self, done: int, total: int | None) -> None:
        self._first = done if self._first is None else self._first
        now = time.monotonic()
        at_end = total is not None and done >= total
        pause = 0.2 if sys.stdout.isatty() else 10.0
        if self._finished or (not at_end and now - self._last < pause):
            return
        self._last, self._finished = now, at_end
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = f", {duration((total - done) / rate)} left" if rate > 0 and total and not at_end else ""
        begin, end = ("\r\x1b[K", "\n" if at_end else "") if sys.stdout.isatty() else ("", "\n")
        print(f"{begin}{self._text_of(done, total)}, {self._rate_text(rate)}{left}", end=end, flush=True)

    def clear(self) -> None:
        """Takes an unfinished line off the terminal, so that what follows begins where it did."""
        if sys.stdout.isatty() and not self._finished:
            print("\r\x1b[K", end="", flush=True)


# The commands.


@dataclass(frozen=True)
class ListOptions:
    """Every task, its data set, and whether both can be used here."""

    data_dir: Path | None = None  # where published data lie
    plugins: Plugins = Plugins()


@dataclass(frozen=True)
class GetOptions:
    """Download published data; goes on where a cut download stopped."""

    names: Positional[tuple[str, ...]] = ()  # data sets, e.g. cube-double-play-v0 or lift-mh-v15
    task: tuple[str, ...] = ()  # the data sets of these tasks
    data_dir: Path | None = None  # folder to put them; default: where other projects keep them
    workers: int = 4  # files fetched at once
    plugins: Plugins = Plugins()

    def __post_init__(self) -> None:
        check_least(self, workers=1)


@dataclass(frozen=True)
class VerifyOptions:
    """Compare data files with the checksums recorded at their first download."""

    names: Positional[tuple[str, ...]] = ()  # data sets; default: all published ones that are here
    data_dir: Path | None = None  # where published data lie
    record: bool = False  # record the checksums of files that have none yet
    plugins: Plugins = Plugins()


@dataclass(frozen=True)
class GenerateOptions:
    """Make data with scripted experts, or by the policy of a run."""

    task: str | None = None  # cube-double; for data made for one task cube-double-task2; lift; …
    kind: str | None = None  # e.g. play, noisy (published recipes), mixed (demos of different quality)
    run: Path | None = None  # roll out the final policy of this complete run
    noise: float = 0.0  # with --run: standard deviation of action noise
    episodes: int = 1000
    seed: int = 0
    workers: int = available_cores()
    out: Path | None = None  # folder (with --run: file); default: the cache
    plugins: Plugins = Plugins()

    def __post_init__(self) -> None:
        check_least(self, episodes=1, workers=1, seed=0)
        if (self.run is None) == (self.task is None):
            raise ConfigError("name a task for its scripted expert (--task lift --kind mixed) or a run (--run DIR)")
        if self.run is not None and self.kind:
            raise ConfigError("--kind is for scripted experts; a run has one policy, to which --noise adds")
        if self.run is None and self.noise:
            raise ConfigError("--noise is for the policy of a run (--run DIR); a recipe has noise of its own")


@dataclass(frozen=True)
class ImportOptions:
    """Name an npz or HDF5 file of yours so that runs can use it."""

    file: Positional[Path]
    task: str | None = None  # convert it for this task now, so that an error shows at once
    copy: bool = False  # keep a copy in the cache instead of the path
    plugins: Plugins = Plugins()
    accept: tuple[str, ...] = ()  # actions (clipped) or rewards (as they are) that are not the task's
    filter_key: str | None = None  # in robomimic's layout: only this filter key's demonstrations


def list_command(options: ListOptions) -> int:
    """Prints domain by domain: tasks, data set, state."""
    tasks_of: dict[tuple[str, str | None], list[str]] = {}
    for spec in datasets.TASKS.values():
        tasks_of.setdefault((spec.suite, spec.dataset), []).append(spec.name)
    suite = ""
    for (family, name), tasks in tasks_of.items():
        if family != suite:
            suite = family
            problem = datasets.unavailable(tasks[0])
            print(f"{suite}" + (f" - environments unavailable: {problem}" if problem else ""))
        these = tasks[0] if len(tasks) == 1 else f"{tasks[0]} … {tasks[-1].removeprefix(tasks[0].rsplit('-', 1)[0])}"
        print(f"  {these}: {_described(name, options.data_dir) if name else 'no data, learned from scratch'}")
    for title, names in {
        "in Minari's folder (use them with --task NAME)": [f"minari:{name}" for name in local_ids()],
        "made or named here (use them with --dataset NAME)": datasets.made_here(),
    }.items():
        if names:
            print(title)
        for name in names:
            print(f"  {_described(name)}")
    return 0


def _described(name: str, data_dir: Path | None = None) -> str:
    """A data set and its state; one that is damaged keeps no other from being shown."""
    try:
        facts = datasets.describe(name, data_dir)
    except datasets.DataError as error:
        return f"{name}: {error}"
    state = f"{facts['origin']}, {size(facts['bytes'])}," if facts["present"] else "absent, looked for as"
    return f"{name}: {state} {facts['path']}"


def get_command(options: GetOptions) -> int:
    names = [*options.names, *map(datasets.default_dataset, options.task)]
    if not names:
        raise ConfigError("name a data set (cube-double-play-v0) or tasks (--task cube-double lift-mh)")
    for name in dict.fromkeys(names):
        files = datasets.get(name, options.data_dir, options.workers, byte_progress())
        where = files[0] if len(files) == 1 else files[0].parent
        print(f"{name}: {where}", flush=True)
    return 0


def verify_command(options: VerifyOptions) -> int:
    """Exit code 1 where a file differs from what was recorded."""
    names, differing = list(options.names), 0
    if not names:
        for name in datasets.published():
            try:
                if datasets.describe(name, options.data_dir)["present"]:
                    names.append(name)
            except datasets.DataError as error:
                print(f"{name}: {error}", flush=True)
                differing += 1
    if not names and not differing:
        print("no published data are here; python -m bench data list shows where they are looked for")
    for name in names:
        for line, differs in datasets.verify(name, options.data_dir, options.record):
            print(line, flush=True)
            differing += differs
    return 1 if differing else 0


def generate_command(options: GenerateOptions) -> int:
    if options.run is not None:
        return _roll_out_run(options, options.run)
    task = options.task or ""
    spec = None if task in datasets.domains() else datasets.task(task)
    domain = spec.domain if spec else task
    kinds = kinds_for(spec) if spec else datasets.kinds(domain)
    if not kinds:
        instead = "use its published data, or your own with --data FILE"
        if domain in datasets.domains() and datasets.task(task).dataset is None:
            instead = "it has no data; the policy of a run makes some: --run DIR"
        raise ConfigError(f"no expert is known for {options.task}: {instead}")
    kind = options.kind or next(iter(kinds), "")
    path = datasets.generate(
        domain,
        kind,
        options.episodes,
        seed=options.seed,
        workers=options.workers,
        task_id=spec.task_id if spec and kinds.get(kind) else None,
        out=options.out,
        progress=episode_progress(),
    )
    where = f" --data-dir {options.out}" if options.out else ""
    print(f"wrote {path}\nuse it: python -m bench run … --dataset {path.stem}{where}", flush=True)
    return 0


def _roll_out_run(options: GenerateOptions, run: Path) -> int:
    from bench.tools.roll_out import roll_out

    path = roll_out(
        run,
        options.episodes,
        options.out,
        noise=options.noise,
        seed=options.seed,
        workers=options.workers,
        progress=episode_progress(),
    )
    print(f"wrote {path}\nuse it: python -m bench run … --data {path}", flush=True)
    return 0


def import_command(options: ImportOptions) -> int:
    reading = datasets.FileOptions(options.accept, options.filter_key)
    name = datasets.register(options.file, options.copy, reading)
    if options.task:
        data = datasets.load(options.task, name)
        print(f"{_extent(data)} fit {options.task}")
    print(f"{options.file} is data set {name}\nuse it: python -m bench run … --dataset {name}")
    return 0
