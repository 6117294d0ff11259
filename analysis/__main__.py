"""`python -m analysis [figures|report|explain|published]`: figures and tables, one HTML page of everything, the runs
behind one point of a figure, the table of published numbers. Reads `results/` and writes what it is asked for alone.

A command is a pair of functions in COMMANDS: its options, and what it does with them. Both import late: drawing takes a
second to import, which `--help` and a refusal need not wait for.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from analysis.labels.wording import alternatives
from analysis.loading.load import load_results
from analysis.loading.read import ResultsError


class OutputError(Exception):
    """Where what was asked for cannot be written, and why: one line."""


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one line, as everything here does."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")


def add_incomplete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-incomplete",
        action="store_true",
        help="also use runs that are not complete; figures and tables say how many",
    )


# -------------------------------------------------------------------------------------------------------- figures


def figures_options(parser: argparse.ArgumentParser) -> None:
    add_results(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: figures inside the results folder")
    parser.add_argument("--suite", nargs="+", metavar="NAME", help="only these suites; default: all")
    add_incomplete(parser)
    parser.add_argument(
        "--published",
        type=Path,
        metavar="PATH",
        help="published curves or rates per seed, a CSV file or a folder; default: the end points that come along",
    )


def figures(options: argparse.Namespace) -> None:
    """Tables to the terminal, figures and tables to files."""
    from analysis.loading.gradients import load_norms
    from analysis.published.points import read_published

    out: Path = options.out or options.results / "figures"
    # Whatever may be refused is read before the first file is written.
    published = read_published(options.published)
    suites = load_results(options.results, options.suite, options.allow_incomplete)
    norms = {suite.name: load_norms(suite, options.results) for suite in suites}
    from analysis.output import write_all

    try:
        out.mkdir(parents=True, exist_ok=True)
        written, texts = write_all(suites, norms, published, out)
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error}") from error
    print("\n".join([*texts, *(f"wrote {path}" for path in written)]))


# --------------------------------------------------------------------------------------------------------- report


def report_options(parser: argparse.ArgumentParser) -> None:
    add_results(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: figures/report.html inside the results folder"
    )
    parser.add_argument("--suite", nargs="+", metavar="NAME", help="only these suites; default: all")
    parser.add_argument(
        "--embed-videos",
        type=float,
        default=8.0,
        metavar="MB",
        help="put so many megabytes of recorded videos into the page and link the others; default: 8",
    )


def report(options: argparse.Namespace) -> None:
    """One HTML page, and a protocol card per suite beside it. Runs that are not complete are shown as such."""
    out: Path = options.out or options.results / "figures" / "report.html"
    if out.is_dir():
        raise OutputError(f"--out {out} is a folder; name the HTML file to write")
    from analysis.report.page import write_report

    written = write_report(options.results, out, options.suite, int(options.embed_videos * 1e6))
    for name, reason in written.refused.items():
        print(f"warning: suite {name} is left out of the report: {reason}", file=sys.stderr)
    print("\n".join(f"wrote {path}" for path in written.written))


# -------------------------------------------------------------------------------------------------------- explain


def explain_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("figure", metavar="FIGURE", help="a figure's file or name: results/figures/quick_success.pdf")
    parser.add_argument("--curve", required=True, metavar="AGENT", help="the agent whose curve it is")
    parser.add_argument(
        "--step", required=True, metavar="N", help="online environment step (0: the hand-over), or offline:UPDATES"
    )
    parser.add_argument("--task", metavar="NAME", help="the panel of this task, or this task's part of a mean")
    add_results(parser)
    add_incomplete(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def explain(options: argparse.Namespace) -> None:
    """The mean and interval of one point, and the runs behind it, to the terminal."""
    from analysis.report.explain import explain, print_point, to_json

    point = explain(
        options.results, options.figure, options.curve, options.step, options.task, options.allow_incomplete
    )
    if options.json:
        sys.stdout.write(to_json(point))
    else:
        print_point(point)


# ------------------------------------------------------------------------------------------------------ published


def published_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", type=published_action, metavar="compact", help="make the table of end points anew")
    parser.add_argument("path", type=Path, metavar="PATH", help="a file of published numbers, or a folder of them")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: the table that the project comes with")


def published_action(text: str) -> str:
    if text != "compact":
        raise argparse.ArgumentTypeError(f"no such action {text!r}{alternatives(text, ['compact'])}")
    return text


def published(options: argparse.Namespace) -> None:
    """The end points of published curves as one small file."""
    from analysis.published.compact import write_compact
    from analysis.published.points import COMPACT

    out: Path = options.out or COMPACT
    write_compact(options.path, out)
    print(f"wrote {out}")


# ----------------------------------------------------------------------------------------------------------- main


class Verb(NamedTuple):
    """What stands after `python -m analysis`."""

    does: str  # for --help
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


COMMANDS = {
    "figures": Verb("figures and tables from the runs under a results folder", figures_options, figures),
    "report": Verb("one HTML page of all suites and runs, complete or not", report_options, report),
    "explain": Verb("the runs and episodes behind one point of a figure", explain_options, explain),
    "published": Verb("the table of published end points, from files of a release", published_options, published),
}
DEFAULT = "figures"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 after one line on what is wrong with the results or the command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        print(f"error: no command {words[0]!r}{alternatives(words[0], COMMANDS)}", file=sys.stderr)
        return 2
    name = words.pop(0) if words and words[0] in COMMANDS else DEFAULT
    others = "\n".join(f"  python -m analysis {other:9} {command.does}" for other, command in COMMANDS.items())
    parser = OneLineParser(
        prog=f"python -m analysis {name}",
        description=f"{COMMANDS[name].does[0].upper()}{COMMANDS[name].does[1:]}.",
        epilog=f"commands ({DEFAULT} where none is named):\n{others}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    COMMANDS[name].add_options(parser)
    try:
        COMMANDS[name].run(parser.parse_args(words))
    except (ResultsError, OutputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
