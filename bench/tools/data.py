"""`python -m bench data list | get | verify | generate | import | export`: data sets, and what runs do about theirs."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
from bench.protocol.config import ConfigError, RunConfig
from bench.runs.quantities import duration, size
from bench.training.execution import available_cores
from datasets.generate import will_fetch
from datasets.minari.source import local_ids
from datasets.registry import source_of


def add_data_commands(commands: argparse._SubParsersAction) -> None:
    """The `data` command and its actions."""
    make = commands.add_parser
    data = make("data", help="data sets: list, get, verify, generate, import, export", allow_abbrev=False)
    actions = data.add_subparsers(required=True, metavar="ACTION", parser_class=type(data))

    def action(name: str, command: Callable, help: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=help, description=help, allow_abbrev=False)
        parser.set_defaults(command=command)
        return parser

    listing = action("list", list_command, "every task, its data set, and whether both can be used here")
    listing.add_argument("--data-dir", type=Path, help="where published data lie")
    get = action("get", get_command, "download published data; goes on where a cut download stopped")
    get.add_argument("names", nargs="*", metavar="NAME", help="data sets, e.g. cube-double-play-v0 or lift-mh-v15")
    get.add_argument("--task", nargs="+", default=[], help="the data sets of these tasks")
    get.add_argument("--data-dir", type=Path, help="folder to put them; default: where other projects keep them")
    get.add_argument("--workers", type=int, default=4, help="files fetched at once")
    verify = action("verify", verify_command, "compare data files with the checksums recorded at their first download")
    verify.add_argument("names", nargs="*", metavar="NAME", help="data sets; default: all published ones that are here")
    verify.add_argument("--data-dir", type=Path)
    verify.add_argument("--record", action="store_true", help="record the checksums of files that have none yet")
    generate = action("generate", generate_command, "make data with scripted experts, or by the policy of a run")
    generate.add_argument("--task", help="cube-double; for data made for one task cube-double-task2; lift; …")
    generate.add_argument("--kind", help="e.g. play, noisy (published recipes), mixed (demos of different quality)")
    generate.add_argument("--run", type=Path, metavar="DIR", help="roll out the final policy of this complete run")
    generate.add_argument("--noise", type=float, default=0.0, help="with --run: standard deviation of action noise")
    generate.add_argument("--episodes", type=int, default=1000)
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--workers", type=int, default=available_cores())
    generate.add_argument("--out", type=Path, help="folder (with --run: file); default: the cache")
    importing = action("import", import_command, "name an npz or HDF5 file of yours so that runs can use it")
    importing.add_argument("file", type=Path)
    importing.add_argument("--task", help="convert it for this task now, so that an error shows at once")
    importing.add_argument("--copy", action="store_true", help="keep a copy in the cache instead of the path")
    export = action("export", export_command, "write a data set, or the replay of a run, as a Minari data set or file")
    export.add_argument("--task")
    export.add_argument("--dataset", help="default: the task's own")
    export.add_argument("--run", type=Path, metavar="DIR", help="the online transitions of this run")
    export.add_argument("--minari", metavar="ID", help="id of the new Minari data set, e.g. cube/single-play-v0")
    export.add_argument("--out", type=Path, metavar="FILE", help="a flat HDF5 file in the D4RL layout")
    export.add_argument("--data-dir", type=Path)
    export.add_argument("--replace", action="store_true", help="overwrite what is there")


# What `run` does about the data of its configs.


def describe_data(configs: Sequence[RunConfig], data_dir: Path | None) -> None:
    """One line per data set that the runs need. Raises DataError, before any is made, for one of another domain."""
    for task, name in dict.fromkeys((config.task, config.dataset) for config in configs):
        datasets.check_dataset(datasets.task(task), name)
    for name in dict.fromkeys(config.dataset for config in configs):
        facts = datasets.describe(name, data_dir)
        generated = facts["origin"] == "generated"
        if facts["present"]:
            state = f"in {facts['path']}"
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


def ensure_data(configs: Sequence[RunConfig], data_dir: Path | None) -> None:
    """Makes or fetches sets that are absent and converts each once, so that an error shows before a run starts."""
    for name, task in dict.fromkeys((config.dataset, config.task) for config in configs):
        datasets.ensure(name, available_cores(), episode_progress(), data_dir, byte_progress())
        transitions = datasets.load(task, name, data_dir)
        print(
            f"{task}: {transitions.num_transitions:,} {transitions.origin} transitions "
            f"in {transitions.num_episodes:,} episodes",
            flush=True,
        )


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
        end = "\r" if sys.stdout.isatty() and not at_end else "\n"
        print(f"{self._text_of(done, total)}, {self._rate_text(rate)}{left}    ", end=end, flush=True)


# The commands.


def list_command(options: argparse.Namespace, _: dict[str, str]) -> int:
    """Prints domain by domain: tasks, data set, state."""
    tasks_of: dict[tuple[str, str], list[str]] = {}
    for spec in datasets.TASKS.values():
        tasks_of.setdefault((spec.suite, spec.dataset), []).append(spec.name)
    suite = ""
    for (family, name), tasks in tasks_of.items():
        if family != suite:
            suite = family
            problem = datasets.unavailable(tasks[0])
            print(f"{suite}" + (f" - environments unavailable: {problem}" if problem else ""))
        these = tasks[0] if len(tasks) == 1 else f"{tasks[0]} … {tasks[-1].removeprefix(tasks[0].rsplit('-', 1)[0])}"
        print(f"  {these}: {_described(name, options.data_dir)}")
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


def get_command(options: argparse.Namespace, _: dict[str, str]) -> int:
    names = [*options.names, *map(datasets.default_dataset, options.task)]
    if not names:
        raise ConfigError("name a data set (cube-double-play-v0) or tasks (--task cube-double lift-mh)")
    if options.workers < 1:
        raise ConfigError(f"--workers is {options.workers}; it must be at least 1")
    for name in dict.fromkeys(names):
        files = datasets.get(name, options.data_dir, options.workers, byte_progress())
        where = files[0] if len(files) == 1 else files[0].parent
        print(f"{name}: {where}", flush=True)
    return 0


def verify_command(options: argparse.Namespace, _: dict[str, str]) -> int:
    """Exit code 1 where a file differs from what was recorded."""
    names, differing = options.names, 0
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


def generate_command(options: argparse.Namespace, _: dict[str, str]) -> int:
    if options.episodes < 1 or options.workers < 1 or options.seed < 0:
        raise ConfigError("--episodes and --workers must be at least 1, --seed at least 0")
    if (options.run is None) == (options.task is None):
        raise ConfigError("name a task for its scripted expert (--task lift --kind mixed) or a run (--run DIR)")
    if options.run is not None:
        return _roll_out_run(options)
    spec = None if options.task in datasets.domains() else datasets.task(options.task)
    domain = spec.domain if spec else options.task
    kinds = source_of(spec).kinds(domain) if spec else datasets.kinds(domain)
    if not kinds:
        raise ConfigError(
            f"no expert is known for {options.task}: use its published data, or your own with --data FILE"
        )
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


def _roll_out_run(options: argparse.Namespace) -> int:
    from bench.tools.roll_out import roll_out

    if options.kind:
        raise ConfigError("--kind is for scripted experts; a run has one policy, to which --noise adds")
    path = roll_out(
        options.run,
        options.episodes,
        options.out,
        noise=options.noise,
        seed=options.seed,
        workers=options.workers,
        progress=episode_progress(),
    )
    print(f"wrote {path}\nuse it: python -m bench run … --data {path}", flush=True)
    return 0


def import_command(options: argparse.Namespace, _: dict[str, str]) -> int:
    name = datasets.register(options.file, copy=options.copy)
    if options.task:
        data = datasets.load(options.task, name)
        print(f"{data.num_transitions:,} transitions in {data.num_episodes:,} episodes fit {options.task}")
    print(f"{options.file} is data set {name}\nuse it: python -m bench run … --dataset {name}")
    return 0


def export_command(options: argparse.Namespace, _: dict[str, str]) -> int:
    if (options.run is None) == (options.task is None):
        raise ConfigError("name what to export: a task's data (--task T [--dataset D]) or a run's replay (--run DIR)")
    if (options.minari is None) == (options.out is None):
        raise ConfigError("name where to: a Minari data set (--minari ID) or a flat HDF5 file (--out FILE)")
    from bench.tools.export import export

    print(export(options))
    return 0
