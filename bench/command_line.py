"""Command lines from frozen dataclasses: a field is an option, its default and comment are what `--help` says of it.

With the contract below every room of `bench` and `analysis`. Whatever is wrong with a command line is a ConfigError of
one line. Of tyro's errors only what it prints is public, so that is read.
"""

import contextlib
import dataclasses
import errno
import importlib
import io
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from bench.runs.contract import ConfigError, nearest, one_line

Options = TypeVar("Options")

STYLE = (
    tyro.conf.OmitArgPrefixes,  # fields of nested dataclasses are options like all others
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.DisallowNone,
    tyro.conf.SuppressFixed,
    tyro.conf.PositionalMetavarFromFieldName,
)
WORDS = {int: "a whole number", float: "a number"}
LONGEST_SPAN = 10_000  # numbers that one `0..9` may stand for


class Verb(NamedTuple):
    """What stands after the program's name: one word or two."""

    does: str  # for the list of verbs; empty: not in it
    function: Callable[[Any], int] | str  # of one argument, `options`, a dataclass; or its `module:name`


# --- values

RULES = ConstructorRegistry()


@RULES.primitive_rule
def _value(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Numbers and words out of a few, with errors in plain words, and `none` or `auto` where there may be no number."""
    names = _choices(info.type)
    members = {int, float, Path} & {info.type, *typing.get_args(info.type)}
    if not (names or members) or info.type_origin in (tuple, dict):
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(names)}}}" if names else members.pop().__name__.upper(),
        instance_from_str=lambda words: _read(info.type, words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


@RULES.primitive_rule
def _several(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """At least one value, with blanks or commas between them; positional ones may be left out."""
    if info.type_origin is not tuple or tyro.conf.UseAppendAction in info.markers:
        return None
    kind = typing.get_args(info.type)[0]

    def values(words: Sequence[str]) -> tuple[Any, ...]:
        if not words and tyro.conf.Positional not in info.markers:
            raise ValueError("it needs a value")
        if kind is int:
            return tuple(number for word in parts_of(words) for number in _whole_numbers(word))
        return tuple(_read(kind, word) for word in (parts_of(words) if kind is str else words))

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{'STR' if kind is str else kind.__name__.upper()} …",
        instance_from_str=values,
        is_instance=lambda value: True,
        str_from_instance=lambda value: list(map(str, value)),
    )


def parts_of(words: Sequence[str]) -> list[str]:
    """`a,b c` as `a b c`. ValueError where nothing is left."""
    parts = [part for word in words for part in re.split(r"[,\s]+", word) if part]
    if words and not parts:
        raise ValueError("it needs a value")
    return parts


def _whole_numbers(text: str) -> Sequence[int]:
    """A number, or those of `0..7` or `0-7`, both ends included. ValueError."""
    span = re.fullmatch(r"(\d+)(?:\.\.|-)(\d+)", text)
    if span is None:
        try:
            return [int(text)]
        except ValueError:
            forms = "several are 0 1 2 or 0..2"
            raise ValueError(f"{text!r} is not {WORDS[int]}; {forms}") from None
    first, last = int(span[1]), int(span[2])
    if last < first:
        raise ValueError(f"{text!r} ends before it begins; {last}..{first} would not")
    if last - first >= LONGEST_SPAN:
        raise ValueError(f"{text!r} are {last - first + 1} numbers; at most {LONGEST_SPAN} are taken")
    return range(first, last + 1)


def _choices(kind: Any) -> list[str]:
    return [str(name) for name in typing.get_args(kind)] if typing.get_origin(kind) is Literal else []


def _read(kind: Any, text: str) -> Any:
    """ValueError says what is wrong with the text; tyro puts the option's name before it."""
    names = _choices(kind)
    if names:
        if text not in names:
            raise ValueError(f"{text!r} is none of {', '.join(names)}{nearest(text, names)}")
        return text
    if NoneType in typing.get_args(kind):
        if text.lower() in ("none", "auto"):
            return None
        kind = next(member for member in typing.get_args(kind) if member is not NoneType)
    if kind is Path and not text.strip():
        raise ValueError("it needs a path; '.' is the folder one is in")
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {WORDS[kind]}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value


def check_least(options: object, **least: int) -> None:
    """ConfigError for an option below its least value; None is the default of one that may be left out."""
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise ConfigError(f"{flag(name)} is {value}; it must be at least {low}")


def check_finite(options: object, *names: str, above: float = 0.0) -> None:
    """ConfigError for an option that is not a finite number above `above`."""
    for name in names:
        value = getattr(options, name)
        if not above < value < math.inf:
            raise ConfigError(f"{flag(name)} is {value:g}; it must be a number above {above:g}")


def check_folder(options: object, name: str = "results") -> None:
    """ConfigError for an option whose path can be no folder: a file is in its place, or the name is too long."""
    path = getattr(options, name)
    try:
        there = next(folder for folder in (path, *path.parents, Path("/")) if folder.exists())
    except OSError as error:
        raise ConfigError(f"{flag(name)} {brief(path)}: {error.strerror}; name a folder") from error
    if not there.is_dir():
        raise ConfigError(f"{flag(name)} {brief(path)}: {brief(there)} is a file; name a folder")


def brief(text: object, most: int = 120) -> str:
    """The text, or its beginning and end where it is long."""
    text = str(text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


# --- options


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def option_types(kind: type) -> dict[str, Any]:
    """The types of a dataclass's options by name, also of those nested in it; not of what stands by position."""
    types: dict[str, Any] = {}
    plain = typing.get_type_hints(kind)
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(plain[name]):
            types |= option_types(plain[name])
        elif not {tyro.conf.Positional, tyro.conf.Fixed} & {*getattr(hint, "__metadata__", ())}:
            types[name] = plain[name]
    return types


def typed_names(words: Sequence[str]) -> set[str]:
    """Names of the options that a command line says something about."""
    return {name[2:].replace("-", "_") for name in map(_flag_of, words) if name}


def _flag_of(word: str) -> str:
    """The option that a word is, or begins; empty for any other word. A value that looks so must follow a `=`."""
    return flag(word[2:].split("=")[0]) if word.startswith("--") else ""


def parse(kind: type[Options], words: Sequence[str], program: str) -> Options:
    """A dataclass from the words of a command line; `--help` prints and ends the process. Raises ConfigError.

    `--name.KEY VALUE` sets a key of a field that is a dict of strings. A field `typed` gets the words themselves.
    """
    types = option_types(kind)
    words, typed = _keys_together(words, [name for name, hint in types.items() if hint == dict[str, str]]), words
    unknown = [name for name in map(_flag_of, words) if name and name not in ("--help", *map(flag, types))]
    if unknown:  # whatever else is wrong
        raise ConfigError(
            f"unknown option {unknown[0]!r}{nearest(unknown[0], map(flag, types))}; see `{program} --help`"
        )
    printed, refused = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(refused):
            options, others = tyro.cli(
                kind,
                args=words,
                prog=program,
                config=STYLE,
                registry=RULES,
                return_unknown_args=True,
            )
    except SystemExit as end:
        if end.code:
            raise ConfigError(f"{_said(_text(refused))}; see `{program} --help`") from None
        print(_without_empty_defaults(_text(printed)), end="")
        raise
    if others:
        raise ConfigError(f"unknown word {others[0]!r}; see `{program} --help`")
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if getattr(options, field.name) == () and field.default is dataclasses.MISSING:
            raise ConfigError(f"{field.name} are missing; see `{program} --help`")
    return dataclasses.replace(options, typed=tuple(typed)) if hasattr(options, "typed") else options  # type: ignore[type-var]


def _keys_together(words: Sequence[str], dicts: Sequence[str]) -> list[str]:
    """`--name.KEY VALUE` or `--name.KEY=VALUE` of each dict as tyro takes them: `--name KEY VALUE KEY VALUE`."""
    others: list[str] = []
    pairs: dict[str, list[str]] = {}
    tokens = iter(words)
    for token in tokens:
        name, _, key = _flag_of(token)[2:].replace("-", "_").partition(".")
        if not key or name not in dicts:
            others.append(token)
            continue
        _, separator, value = token.partition("=")
        value = value if separator else next(tokens, "")
        if not value:
            raise ConfigError(f"{token} needs a value")
        pairs.setdefault(flag(name), []).extend((key, value))
    return others + [word for name, entries in pairs.items() for word in (name, *entries)]


def _text(written: io.TextIOWrapper) -> str:
    written.seek(0)
    return written.read()


def _said(box: str) -> str:
    """What a box of tyro's says, without its frame and the help below its first rule."""
    lines = [line.strip("│").rstrip() for line in box.splitlines() if line[:1] == "│"]
    rule = next((number for number, line in enumerate(lines) if line and not line.strip(" ─")), len(lines))
    if lines and lines[0].strip().startswith("Missing from "):  # names are indented, their help is further
        names = [line.strip() for line in lines[1:rule] if line[:6].strip()]
        return f"missing: {', '.join(names)}"
    text = one_line(" ".join(lines[:rule])).removesuffix(".").removeprefix("Error parsing ")
    text = re.sub(r"^\[(\w+)\]", r"\1", text.partition(". Expected ")[0])
    return text if text[:2].isupper() else text[:1].lower() + text[1:]  # what stands by position has a name in capitals


def _without_empty_defaults(text: str) -> str:
    """Help without the defaults that say nothing; frames stay as wide as they are."""
    said_nothing = re.compile(r"\(default:[\s│]*(None|False|'')?\)")
    text = said_nothing.sub(lambda found: re.sub(r"[^\n│]", " ", found[0]), text)
    return "\n".join(line for line in text.split("\n") if line.strip(" │") or not line)


# --- programs

NO_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)  # of a path that a user has named


def exit_code(
    program: Callable[[], int],
    refused: tuple[type[Exception], ...] = (),
    failed: tuple[type[Exception], ...] = (),
) -> int:
    """What a program returns. Where it ends with an exception, one line says so on the error output.

    2 for what it refuses and for paths that no file can have, 1 where something failed, 130 after Ctrl-C, 141 where
    nobody reads on. Standard output shows `?` for a letter that its encoding lacks.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        return program()
    except BrokenPipeError:  # `… | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python writes at its end goes nowhere
        return 141  # as of a process that SIGPIPE ends
    except refused as error:
        line, code = str(error), 2
    except failed as error:
        line, code = str(error), 1
    except OSError as error:
        if error.errno not in NO_NAMES:
            raise
        line, code = f"cannot use {brief(error.filename)}: {error.strerror}", 2
    except KeyboardInterrupt:
        print("stopped; start again to go on", file=sys.stderr, flush=True)
        return 130
    print(f"error: {line}", file=sys.stderr, flush=True)
    return code


# --- verbs


def run_verb(verbs: Mapping[str, Verb], words: Sequence[str], program: str, about: str, default: str = "") -> int:
    """What the verb that the words begin with returns. Raises ConfigError for one that there is not.

    Args:
        default: the verb of a command line without one.
    """
    name = next((" ".join(words[:count]) for count in (2, 1) if " ".join(words[:count]) in verbs), "")
    if not name:
        group = words[0] if words and any(verb.startswith(f"{words[0]} ") for verb in verbs) else ""
        following = words[1:2] if group else words[:1]
        if following and following[0] in ("-h", "--help"):
            print(list_of(verbs, program, about, group))
            return 0
        if following and not (default and following[0].startswith("-")):
            asked = f"{group} {following[0]}".strip()
            names = verbs if group else {verb.split()[0] for verb in verbs}
            raise ConfigError(f"unknown command {asked!r}{nearest(asked, names)}; see `{program} --help`")
        if not default or group:
            raise ConfigError(f"name a command; see `{f'{program} {group}'.strip()} --help`")
    function = verbs[name or default].function
    if isinstance(function, str):
        module, _, attribute = function.partition(":")
        function = getattr(importlib.import_module(module), attribute)
    kind = typing.get_type_hints(function)["options"]
    return function(parse(kind, words[len(name.split()) :], f"{program} {name or default}"))


def list_of(verbs: Mapping[str, Verb], program: str, about: str, group: str = "") -> str:
    """The verbs, or those that begin with the word `group`."""
    shown = {name: verb.does for name, verb in verbs.items() if verb.does and f"{name} ".startswith(group)}
    width = max(map(len, shown))
    lines = [f"  {name:{width}}  {does}" for name, does in shown.items()]
    usage = f"usage: {program} {f'{group} ' if group else ''}COMMAND [OPTIONS]"
    return "\n".join([usage, "", about, "", *lines, "", f"Options of a command: {program} COMMAND --help"])
