"""Every command of every page, run as a reader types it; and what else a page promises: links, options, its length.

A command that would take hours, a cluster, an extra or the network is run in a form that takes seconds, by rules that
go by the kind of command and know no page:

* `make X …` is what `make --dry-run X …` prints, each line of it a command of its own;
* `python -m bench run | plan | launch …` is planned, for one seed of its suite's last agent and task unless it, or a
  claim, chooses some;
* `python -m bench data generate …` makes one episode, `video` draws one small GIF, `repeat` says what it will cost;
* `python -m pytest …` collects its tests;
* `python -m tests.benchmarks.X …` reads its options and stops before it measures;
* anything else of `bench` and `analysis` runs as it stands.

All of it happens in a copy of the checkout, by links, whose `results` holds two complete runs of the suite toy. A
command may end for want of something that the machine lacks (LACKING), which it finds out once its options are read.
Programs of others (OTHERS) are asserted by form. A command that no rule knows fails.
"""

import argparse
import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest

import analysis.__main__
import bench.__main__
from agents import AGENTS
from agents.blocks.config import settings_of
from bench.protocol.suites import SUITES
from tests.tiny_runs import ROOT, python

pytestmark = pytest.mark.thorough
PAGES = sorted(
    path
    for pattern in ("*.md", "[a-z]*/README.md", "tests/*/README.md")
    for path in ROOT.glob(pattern)
    if ".venv" not in path.parts
)
FRONT_PAGE = ROOT / "README.md"
FRONT_PAGE_LINES = 130  # two screens
LANGUAGES = ("bash", "text", "toml", "python")
SHORT = (  # a run of the suite toy with each of its agents, in seconds
    *("--offline-updates", "20", "--eval-interval-updates", "20", "--log-interval", "20"),
    *("--online-steps", "40", "--eval-interval-steps", "20", "--eval-episodes", "3", "--warmup-steps", "10"),
)
PATH = os.environ["PATH"]  # of programs such as make; commands of ours are run without it

# What a machine may lack, as the one line of a command says it, with exit code 2.
LACKING = (
    r"O2O_BENCH_OFFLINE is set, so nothing is downloaded",
    r"data set '[\w./:-]+' is missing: .*make it: python -m bench data generate",
    r"make setup EXTRAS=",
    rf"no suite '({'|'.join(SUITES)})' under results",
    rf"no (runs|launch) of ({'|'.join(SUITES)}) (under|is recorded)",
    r"no runs of '[\w/@-]+' under results/repeated; train them first",
    r"the last evaluation has no episode (that failed|where one fails and the other succeeds)",
)
# Programs that are not ours, by how they are called.
OTHERS = (
    r"git clone \S+",
    r"cd [\w-]+",
    r"\.venv/bin/tensorboard --logdir results/\S+",
    r"\.venv/bin/wandb sync results/\S+",
    r"echo .*",
    r"touch \.venv/\S+",
    r"rm -rf( \.\w+)+",
    r"sed -n .* Makefile \| expand -t \d+",
    r"python3 -c .*",
    r"python3 -m venv \.venv",
    r"\.venv/bin/python -m pip install .*",
    r"\.venv/bin/ruff (check|format --check) \.",
    r"\.venv/bin/pyright",
)


Main = Callable[[list[str]], int]
MAINS: dict[str, Main] = {"bench": bench.__main__.main, "analysis": analysis.__main__.main}


class Command(NamedTuple):
    page: str
    line: int
    text: str  # without its comment, in one line

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Fenced blocks: the number of the first line, the language, the lines."""
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    for number, line in lines:
        if fence := re.fullmatch(r"\s*```(\w*)", line):
            inner = takewhile(lambda entry: entry[1].strip() != "```", lines)
            yield number + 1, fence[1], [text.strip() for _, text in inner]


def commands() -> Iterator[Command]:
    for page in PAGES:
        for start, language, lines in blocks(page):
            if language == "bash":
                yield from commands_of(str(page.relative_to(ROOT)), start, lines)


def commands_of(page: str, start: int, lines: list[str]) -> Iterator[Command]:
    """Continued lines as one, at the number of the last; comments left out."""
    text = ""
    for number, line in enumerate(lines, start):
        text += re.sub(r"(^|\s)#\s.*", "", line)
        if text.endswith("\\"):
            text = text.removesuffix("\\")
        elif text.strip():
            yield Command(page, number, " ".join(text.split()))
            text = ""


COMMANDS = list({command.text: command for command in commands()}.values())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the checkout by links, with two complete runs of the suite toy and their figures."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name not in ("results", ".git", ".venv", "bench.toml"):
            (folder / path.name).symlink_to(path)
    made = python(
        *("-m", "bench", "run", "--suite", "toy", "--seeds", "0", "--results", str(folder / "results"), *SHORT),
        O2O_BENCH_DATA=str(folder / "cache"),
    )
    assert made.returncode == 0, made.stderr
    shutil.copytree(ROOT / "results" / "reference", folder / "results" / "reference")
    (folder / "results/leaderboard").symlink_to(ROOT / "results/leaderboard")
    yield folder


@pytest.fixture
def reader(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout as the working directory, on a machine without Slurm or a home of its own."""
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("O2O_BENCH_DATA", str(checkout / "cache"))
    monkeypatch.setenv("O2O_BENCH_LOCK", str(tmp_path / "lock.json"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    return checkout


# --- how each kind of command is run


def follow(text: str, empty: Path) -> None:
    """Runs a command by the rules above. AssertionError with what it said where it fails, or where no rule knows it."""
    if any(re.fullmatch(form, text) for form in OTHERS):
        check_others(text)
        return
    words = [word for word in shlex.split(text) if not re.fullmatch(r"[A-Z_0-9]+=\S*", word)]
    if words[0] == "make":
        for line in targets(shlex.split(text)):
            follow(line, empty)
        return
    assert words[0] in (".venv/bin/python", "python") and words[1] == "-m", f"no rule knows the command {text!r}"
    module, *arguments = words[2:]
    if module == "bench":
        run_bench(arguments, empty)
    elif module == "analysis":
        expect(MAINS[module], arguments)
    elif module == "pytest":
        collect(arguments)
    elif module.startswith("tests.benchmarks."):
        read_options(module, arguments)
    else:
        pytest.fail(f"no rule knows the module of {text!r}")


def check_others(text: str) -> None:
    """What can be checked of a command of others without running it: the files that it reads are there."""
    for name in re.findall(r"requirements[\w.-]*", text):
        assert (ROOT / name).exists(), f"{text}: there is no {name}"


def targets(words: list[str]) -> list[str]:
    """The commands that `make` would run, in a checkout whose environment is installed."""
    variables = [word for word in words[: words.index("make")]]
    call = ["env", *variables, "make", "--dry-run", "--no-print-directory", *words[words.index("make") + 1 :]]
    made = subprocess.run(call, cwd=ROOT, env={"PATH": PATH}, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    lines = [part.strip() for line in made.stdout.splitlines() for part in re.split(r" && | \|\| ", line)]
    return [
        line.removeprefix("MUJOCO_GL=disable ")
        for line in lines
        if line not in ("", ":") and not line.startswith("make: Nothing to be done")
    ]


def outcome(main: Main, arguments: list[str]) -> tuple[int, str, str]:
    """The exit code of a command, and what it printed to either stream."""
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            code = main(arguments)
        except SystemExit as ending:
            code = int(ending.code or 0)
    return code, printed.getvalue(), errors.getvalue()


def expect(main: Main, arguments: list[str]) -> None:
    """The command succeeds, or ends for want of something that the machine lacks."""
    code, _, error = outcome(main, arguments)
    is_lacking = code == 2 and any(re.search(form, error) for form in LACKING)
    answers_no = code == 1 and "--running" in arguments and not error
    assert code == 0 or is_lacking or answers_no, f"{' '.join(arguments)}\nexit code {code}: {error}"


def run_bench(arguments: list[str], empty: Path) -> None:
    verb = arguments[0]
    if "--extend" in arguments:  # goes on from the runs of the checkout, so it has their settings but the budget
        arguments = [verb, *SHORT, *arguments[1:], "--seeds", "0", "--dry-run"]
    elif verb in ("run", "plan", "launch"):
        shorter = ["--results", str(empty)]
        shorter += [] if verb == "plan" else ["--dry-run"]
        named = suite_of(arguments)
        if named:  # one kind of run is measured, not dozens
            config = SUITES[named]()[-1]
            choices = {"--agents": config.agent, "--tasks": config.task, "--seeds": "0", "--batch-size": "8"}
            if "--until-decided" in arguments:  # which chooses them
                choices = {"--batch-size": "8"}
            for option, value in choices.items():
                shorter += [] if option in arguments else [option, value]
        arguments = arguments + shorter
    elif verb == "archive":
        arguments = [*arguments, "--out", str(empty)]
    elif verb == "repeat":
        arguments = [*arguments, "--results", str(empty), "--dry-run"]
    elif arguments[:2] == ["data", "generate"]:
        arguments = [*arguments, "--episodes", "1", "--workers", "1"]
    elif verb == "video":
        arguments = [*arguments, "--episodes", "1", "--format", "gif", "--size", "128x96", "--out", str(empty)]
    main = MAINS["bench"]
    if verb == "mirror":  # makes its process give way to others for good
        main = in_a_process
    expect(main, arguments)


def in_a_process(arguments: list[str]) -> int:
    done = python("-m", "bench", *arguments, cwd=Path.cwd())
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


def suite_of(arguments: list[str]) -> str | None:
    """The suite that `run --suite S`, `plan --suite S` or `launch S` names, where there is one of that name."""
    named = arguments[arguments.index("--suite") + 1] if "--suite" in arguments else arguments[1]
    return named if named in SUITES else None


def collect(arguments: list[str]) -> None:
    """Reads pytest's options and finds its tests; those of this file where the command means all of them."""
    paths = [argument for argument in arguments if argument.startswith("tests/")]
    for path in paths:
        assert (ROOT / path.split("::")[0]).exists(), f"there is no {path}"
    command = [sys.executable, "-m", "pytest", *arguments, *([] if paths else [__file__]), "--collect-only", "-qq"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    allowed = (0, 5) if not paths else (0,)  # 5: none of this file's tests has the marker that is asked for
    assert found.returncode in allowed, found.stdout + found.stderr


class OptionsRead(Exception):
    """The options of a program have been read, and nothing has been measured."""


def read_options(module: str, arguments: list[str]) -> None:
    """Runs a module up to where it has read its command line."""
    read = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: object, **named: object) -> None:
        read(parser)
        raise OptionsRead

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [module, *arguments])
        patch.delitem(sys.modules, module, raising=False)  # that another module has imported
        with pytest.raises(OptionsRead):
            runpy.run_module(module, run_name="__main__", alter_sys=True)


# --- commands in blocks


@pytest.mark.parametrize("command", [pytest.param(c, id=str(c)) for c in COMMANDS])
def test_a_command_of_a_page_runs(command: Command, reader: Path, tmp_path: Path) -> None:
    follow(command.text, tmp_path / "plans")


MISTAKES = {
    "make bench SUITE=toyy": "unknown suite 'toyy'",
    "make benhc": "benhc",
    "make bench SUITE=toy ARGS=--seedz": "--seedz",
    "make figures RESULTS=elsewhere": "elsewhere",
    "make figures REFERENCE=1 SUITE=toy": "does not read SUITE",
    "make verify-reference CELL=toy/toy-reach/qc_fq": "did you mean 'toy/toy-reach/qc_fql'",
    "PARITY_DIR=tests/parity make paritee": "paritee",
    ".venv/bin/python -m bench launch toy --slurm --partitoin gpu": "--partitoin",
    ".venv/bin/python -m bench run --task toy-reach --agent awac --agent-config.learn_rate 1": "learn_rate",
    ".venv/bin/python -m bench data get cube-double-play-v0 --worker 3": "--worker",
    ".venv/bin/python -m bench data generate --task toy-reach --kind mixd": "mixd",
    ".venv/bin/python -m bench retry --faild toy": "--faild",
    ".venv/bin/python -m bench video toy/toy-reach/qc_fql/seed_000 --failure": "--failure",
    ".venv/bin/python -m bench mirror toy --too tensorboard": "--too",
    ".venv/bin/python -m analysis --suitee toy": "--suitee",
    ".venv/bin/python -m analysis explain results/figures/toy_success.pdf --curve fql --step 0": "fql",
    ".venv/bin/python -m pytest tests/test_no_such_file.py": "test_no_such_file",
    ".venv/bin/python -m pytest --no-such-option": "no-such-option",
    "python -m tests.benchmarks.grids --rnus 4": "2",  # argparse's exit code
    "python -m tests.benchmarks.gridz": "gridz",
    "ls results": "no rule",
    ".venv/bin/python -m json.tool x": "no rule",
    "pip install o2o-bench": "no rule",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=list(MISTAKES))
def test_a_mistake_in_a_command_fails_its_test(text: str, message: str, reader: Path, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, SystemExit, ImportError, KeyError), match=message):
        follow(text, tmp_path / "plans")


def test_every_page_is_found_and_has_commands_of_each_kind() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert names >= {"README.md", "CONTRIBUTING.md", "tests/benchmarks/README.md", "results/README.md"}
    assert names >= {f"{room}/README.md" for room in ("agents", "datasets", "bench", "analysis")}
    for beginning in ("make", ".venv/bin/python -m bench", ".venv/bin/python -m analysis", "python -m tests"):
        assert any(command.text.startswith(beginning) for command in COMMANDS), beginning
    for page in PAGES:
        assert {language for _, language, _ in blocks(page)} <= set(LANGUAGES), page


# --- commands, options and names within sentences


def sentences(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(page: Path) -> list[str]:
    """What stands between backticks within sentences."""
    return [span.strip() for span in re.findall(r"`([^`]+)`", sentences(page))]


@pytest.fixture(scope="module")
def options() -> set[str]:
    """The options of agents, and all that the help of the commands on the pages speaks of."""
    found: set[str] = {f"--agent-config.{name}" for _, config in AGENTS.values() for name in settings_of(config)}
    for text in (command.text for command in COMMANDS):
        if call := re.search(r"-m (bench|analysis) ((?:data )?[a-z]\w*)", text):
            code, printed, _ = outcome(MAINS[call[1]], [*call[2].split(), "--help"])
            assert code == 0, text
            found |= set(re.findall(r"--[a-z][\w.-]*", printed))
    return found | set(re.findall(r"--[a-z][\w.-]*", outcome(MAINS["analysis"], ["figures", "--help"])[1]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_and_commands_within_sentences_exist(page: Path, options: set[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for span in spans(page):
        for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", span):
            is_of_benchmarks = page.parent.name == "benchmarks" or "tests.benchmarks" in span
            assert option in options or option == "--agent-config.FIELD" or is_of_benchmarks, (option, span)
        for target in re.findall(r"(?:^|\s)make ([a-z-]+)", span):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), span
        for module in re.findall(r"python -m (tests\.[\w.]+)", span):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), span
        for name, verb in re.findall(r"python -m (bench|analysis) ((?:data )?\w+)", span):
            assert outcome(MAINS[name], [*verb.split(), "--help"])[0] == 0, span
        if re.fullmatch(r"(bench|agents|datasets|analysis|tests)/[\w./-]+", span):
            assert (ROOT / span).exists() or "lock.json" in span, f"{page}: there is no {span}"


# --- links, length, licence


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", sentences(page)):
        assert not target.startswith("/"), target
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
            assert anchor in map(anchor_of, headings), f"{page}: {target}"


def anchor_of(heading: str) -> str:
    """How a heading is linked to: lower case, spaces as hyphens, no punctuation."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_the_front_page_fits_two_screens_and_names_every_agent_and_every_room() -> None:
    text = FRONT_PAGE.read_text()
    assert len(text.splitlines()) <= FRONT_PAGE_LINES
    for name in AGENTS:
        assert f"`{name}`" in text, name
    for page in PAGES:
        if page != FRONT_PAGE and "fixtures" not in page.parts:
            assert f"({page.relative_to(ROOT)}" in text, page


def test_every_suite_has_its_row() -> None:
    page = (ROOT / "bench" / "README.md").read_text()
    table = page.split("| suite | runs |\n|---|---|\n")[1].split("\n\n")[0]
    listed = [name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(SUITES)


def test_every_agent_has_its_paper_and_its_file() -> None:
    """A row of the first table of agents/README.md has the names, and links to the file of their class."""
    page = (ROOT / "agents" / "README.md").read_text()
    table = page.split("|---|---|---|\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    listed = {name: file for names, _, file in rows for name in re.findall(r"`(\w+)`", names)}
    expected = {name: f"{agent.__module__.split('.')[1]}.py" for name, (agent, _) in AGENTS.items()}
    assert listed == {name: f"[{file}]({file})" for name, file in expected.items()}


# What readers stumbled over in earlier pages.
STUMBLES = (
    "How little three seeds say",
    "the OGBench rows but cube-single",
    "the task that OGBench means by it",
    "which libc's own headers bring along",
    "is named",
    "cannot be told from",
    "no interval of 3 seeds does",
    "what the other still writes",
    "a GPU's driver brings it",
    "by rates measured",
    "stands behind",
    "is told",
    "goes on where",
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_that_readers_stumbled_over_are_gone(page: Path) -> None:
    text = " ".join(page.read_text().lower().split())
    assert not [words for words in STUMBLES if words.lower() in text]
