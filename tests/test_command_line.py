"""Every verb of every command line: one line for each mistake, and nothing heavy imported before it is needed."""

import dataclasses
import importlib
import subprocess
import sys
import typing
from pathlib import Path
from typing import Literal

import pytest
from tyro.conf import Fixed, Positional, UseAppendAction

import analysis.__main__
import bench.__main__
from bench.command_line import check_least, option_types, parse, typed_names
from bench.runs.contract import ConfigError
from tests.tiny_runs import ROOT

MAINS = {"bench": bench.__main__, "analysis": analysis.__main__}
VERBS = [(program, verb) for program, module in MAINS.items() for verb in module.VERBS]


def options_of(program: str, verb: str) -> type:
    function = MAINS[program].VERBS[verb].function
    if isinstance(function, str):
        module, _, name = function.partition(":")
        function = getattr(importlib.import_module(module), name)
    return typing.get_type_hints(function)["options"]


def positional(kind: type) -> dict[str, object]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hint for name, hint in hints.items() if Positional in getattr(hint, "__metadata__", ())}


def mistakes() -> list[tuple[str, str, list[str], str]]:
    """Program, verb, words, and what the line must say: of each kind of mistake that the verb's options allow."""
    found = []
    for program, verb in VERBS:
        kind = options_of(program, verb)
        types = option_types(kind)
        flags = {name: f"--{name.replace('_', '-')}" for name in types}
        found.append((program, verb, ["--verbosely"], "unknown option '--verbosely'"))
        if not types:
            continue
        first = next(iter(types))
        near = flags[first] + "x"
        found.append((program, verb, [near, "1"], f"unknown option '{near}' (did you mean '{flags[first]}'?)"))
        valued = next(name for name, hint in types.items() if hint is not bool)
        found.append((program, verb, [flags[valued]], flags[valued]))
        numbers = [name for name, hint in types.items() if {int, float} & {hint, *typing.get_args(hint)}]
        found += [(program, verb, [flags[name], "many"], f"{flags[name]}: 'many' is not a") for name in numbers[:1]]
        choices = [name for name, hint in types.items() if typing.get_origin(hint) is Literal]
        for name in choices[:1]:
            right = typing.get_args(types[name])[0]
            said = f"{flags[name]}: '{right}x' is none of {right}, "
            found.append((program, verb, [flags[name], f"{right}x"], said))
    return found


@pytest.mark.parametrize(
    ("program", "verb", "words", "said"), [pytest.param(*one, id=" ".join([*one[:2], *one[2]])) for one in mistakes()]
)
def test_a_mistake_in_any_verb_is_one_line(program, verb, words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind = options_of(program, verb)
    before = ["x"] * len(positional(kind))
    for field in dataclasses.fields(kind):
        option = f"--{field.name}"
        if field.default is dataclasses.MISSING and field.name not in positional(kind) and option not in words:
            before += [option, "x"]
    assert MAINS[program].main([*verb.split(), *before, *words]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
    assert said in printed.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("program", "verb"), VERBS)
def test_help_of_any_verb_names_every_option(program, verb, capsys):
    with pytest.raises(SystemExit) as ended:
        MAINS[program].main([*verb.split(), "--help"])
    assert not ended.value.code
    printed = capsys.readouterr().out
    kind = options_of(program, verb)
    for name in option_types(kind):
        assert f"--{name.replace('_', '-')}" in printed


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        ("bench", ["rnu"], "unknown command 'rnu' (did you mean 'run'?)"),
        ("bench", ["data", "lsit"], "unknown command 'data lsit' (did you mean 'data list'?)"),
        ("bench", ["data"], "name a command; see `python -m bench data --help`"),
        ("bench", [], "name a command; see `python -m bench --help`"),
        ("bench", ["--suite", "quick"], "unknown command '--suite'"),
        ("analysis", ["reprot"], "unknown command 'reprot' (did you mean 'report'?)"),
        ("analysis", ["published"], "name a command; see `python -m analysis published --help`"),
    ],
)
def test_a_verb_that_does_not_exist_is_one_line(program, words, said, capsys):
    assert MAINS[program].main(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {said}") and printed.count("\n") == 1


LIGHT = [
    ("bench", ["--help"]),
    ("bench", ["data", "--help"]),
    ("bench", ["status"]),
    ("bench", ["status", "--help"]),
    ("bench", ["logs", "x"]),
    ("bench", ["cancel"]),
    ("bench", ["mirror", "--help"]),
    ("bench", ["data", "list"]),
    ("analysis", ["--help"]),
    ("analysis", ["report", "--help"]),
]


@pytest.mark.parametrize(("program", "words"), LIGHT, ids=[" ".join([program, *words]) for program, words in LIGHT])
def test_what_only_looks_loads_no_torch(program, words, tmp_path):
    code = (
        f"import sys\nfrom {program}.__main__ import main\n"
        f"try:\n    main({[*words]!r})\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    environment = {"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "MUJOCO_GL": "disable"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- options


@dataclasses.dataclass(frozen=True)
class Nested:
    """of another room"""

    rate: float | None = 0.5  # per step; none: all
    kind: Literal["one", "two"] = "one"

    def __post_init__(self) -> None:
        check_least(self, rate=0)


@dataclasses.dataclass(frozen=True)
class Options:
    """What a verb is asked for."""

    files: Positional[tuple[Path, ...]]
    nested: Nested = Nested()
    seeds: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    lines: UseAppendAction[tuple[str, ...]] = ()
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    dry_run: bool = False
    typed: Fixed[tuple[str, ...]] = ()


def options(line: str) -> Options:
    return parse(Options, line.split(), "program")


def test_options_may_be_written_in_all_the_usual_ways():
    for line in ("a b --rate 2 --dry-run --seeds 3 4", "a b --rate=2 --dry_run --seeds 3 4"):
        found = options(line)
        assert found.files == (Path("a"), Path("b")) and found.nested.rate == 2.0
        assert found.dry_run and found.seeds == (3, 4)
    assert options("a --lines x --lines y").lines == ("x", "y")
    assert [options(f"a --rate {word}").nested.rate for word in ("none", "None", "auto")] == [None] * 3
    assert options("a --rate 1e-3").nested.rate == 1e-3
    assert options("a --seeds -1 1_000").seeds == (-1, 1000)


@pytest.mark.parametrize("words", [["0,1,2"], ["0..2"], ["0-2"], ["0 1 2"], ["0, 1", "2"], ["0", "1-2"], ["0,1..2"]])
def test_several_numbers_may_be_written_in_all_the_usual_ways(words):
    assert parse(Options, ["a", "--seeds", *words], "program").seeds == (0, 1, 2)


@pytest.mark.parametrize("words", [["x", "y"], ["x,y"], ["x y"], ["x, y"], ["x,", "y"]])
def test_several_names_may_have_commas_between_them(words):
    assert parse(Options, ["a", "--names", *words], "program").names == ("x", "y")
    assert parse(Options, ["a,b", "--lines", "x, y"], "program").files == (Path("a,b"),)  # paths and lines may not
    assert parse(Options, ["a,b", "--lines", "x, y"], "program").lines == ("x, y",)


def test_keys_of_a_dict_are_options_of_their_own():
    found = options("--settings.some-name 16,16 a --settings.other=-0.5 --settings.other 2 b --dry-run")
    assert found.settings == {"some_name": "16,16", "other": "2"} and found.files == (Path("a"), Path("b"))
    with pytest.raises(ConfigError, match=r"--settings\.name needs a value"):
        options("a --settings.name")
    with pytest.raises(ConfigError, match=r"unknown option '--other\.name'"):
        options("a --other.name 3")


def test_what_was_typed_is_known_beside_its_values():
    found = options("a --rate 0.5 --settings.name 3")
    assert found.typed == ("a", "--rate", "0.5", "--settings.name", "3")
    assert {"rate"} == typed_names(found.typed) & option_types(Options).keys()
    assert not typed_names(options("a").typed)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "files are missing"),
        ("a --rate", "missing value for argument '--rate'"),
        ("a --seeds", "--seeds: it needs a value"),
        ("a --seeds ,", "--seeds: it needs a value"),
        ("a --seeds 1 x", "--seeds: 'x' is not a whole number; several are 0 1 2 or 0..2"),
        ("a --seeds 0-6:2", "--seeds: '0-6:2' is not a whole number"),
        ("a --seeds 7..0", "--seeds: '7..0' ends before it begins; 0..7 would not"),
        ("a --seeds 0..10000", "--seeds: '0..10000' are 10001 numbers; at most 10000"),
        ("a --rate -1", "--rate is -1.0; it must be at least 0"),
        ("a --kind oen", "--kind: 'oen' is none of one, two (did you mean 'one'?)"),
        ("a --no-dry-run", "unknown option '--no-dry-run' (did you mean '--dry-run'?)"),
        ("a --kin one", "unknown option '--kin' (did you mean '--kind'?)"),
        ("a --rate " + "many" * 40, "many' is not a number"),
    ],
)
def test_a_wrong_option_is_said_with_what_would_be_right(line, said):
    with pytest.raises(ConfigError) as error:
        options(line)
    assert said in str(error.value) and "\n" not in str(error.value)
