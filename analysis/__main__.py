"""`python -m analysis VERB`: figures and tables, one HTML page of everything, the runs behind one point of a figure,
whether an agent is better than another, whether an archive gives the same runs and figures again, a leaderboard, the
table of published numbers. Reads `results/` and writes what it is asked for alone.

A verb is a function of its options. It imports late: drawing takes a second to import, which `--help` and a refusal
need not wait for.
"""

import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if importlib.util.find_spec("tyro") is None or importlib.util.find_spec("pandas") is None:
    print(f"error: {sys.executable} lacks the packages; use .venv/bin/python -m analysis (make setup)", file=sys.stderr)
    sys.exit(2)

from tyro.conf import Positional

from bench.command_line import Verb, check_folder, check_least, exit_code, run_verb
from bench.runs.contract import FIGURES, LEADERBOARD, REFERENCE, REPEATED, ConfigError, StorageError

# -------------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class FiguresOptions:
    """Figures and tables from the runs under a results folder."""

    results: Path = Path("results")
    out: Path | None = None  # a folder; default: figures inside the results folder
    suite: tuple[str, ...] = ()  # only these suites; default: all
    allow_incomplete: bool = False  # also use runs that are not complete; figures and tables say how many
    mixed_matmul: bool = False  # show runs together whose updates multiply in different precisions (--matmul)
    code_names: bool = False  # call agents by their names in commands and files: qc_fql, not QC-FQL
    plain: bool = False  # figures without the words above them, for a paper that says them in its caption
    published: Path | None = None  # curves or rates per seed, a CSV file or a folder; default: end points, built in

    def __post_init__(self) -> None:
        check_folder(self)


def figures(options: FiguresOptions) -> int:
    """Tables to the terminal, figures and tables to files."""
    written, texts = draw(options)
    # What a reader must know, and do next, stands last, where it is seen.
    first = ("_success.png", "_returns.png")
    figure = next((path for end in first for path in written if path.name.endswith(end)), written[0])
    again = "" if options.results == Path("results") else f" RESULTS={options.results}"
    last = f"open {figure}; one HTML page of everything: make report{again}"
    print("\n".join([*texts, f"wrote {folded(written)} into {figure.parent}", last]))
    return 0


def draw(options: FiguresOptions) -> tuple[list[Path], list[str]]:
    """Writes figures and tables: their paths, and words for the terminal."""
    from analysis.loading.gradients import load_norms
    from analysis.loading.load import load_results
    from analysis.loading.training import training_returns
    from analysis.published.points import read_published

    out: Path = options.out or options.results / FIGURES
    # Whatever may be refused is read before the first file is written.
    published = read_published(options.published)
    suites = load_results(options.results, options.suite or None, options.allow_incomplete, options.mixed_matmul)
    suites = [replace(suite, code_names=options.code_names, plain=options.plain) for suite in suites]
    norms = {suite.name: load_norms(suite, options.results) for suite in suites}
    scratch = [suite for suite in suites if not suite.offline_updates]
    training = {suite.name: training_returns(suite, options.results) for suite in scratch}
    from analysis.output import write_all

    try:
        out.mkdir(parents=True, exist_ok=True)
        return write_all(suites, norms, training, published, out)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error}") from error


def folded(written: Sequence[Path]) -> str:
    """Names of files, those that differ in their ending alone as one: quick_success.{pdf,svg,png}."""
    endings: dict[str, list[str]] = {}
    for path in written:
        endings.setdefault(path.stem, []).append(path.suffix[1:])
    return ", ".join(f"{stem}.{{{','.join(of)}}}" if len(of) > 1 else f"{stem}.{of[0]}" for stem, of in endings.items())


# ------------------------------------------------------------------------------------------------------ reference


@dataclass(frozen=True)
class ReferenceOptions:
    """Draw an archive of runs, and compare every file with the one that was recorded."""

    results: Path = Path("results") / REFERENCE  # the archive
    write: bool = False  # record what is drawn, after a change of its runs or of the figures

    def __post_init__(self) -> None:
        check_folder(self)


def reference(options: ReferenceOptions) -> int:
    """Exit code 1 where a file differs; one line each."""
    from analysis.report.reference import DRAWN, differences, draw_apart, narrower_arithmetic, read_drawn, write_drawn

    if narrower := narrower_arithmetic():
        return draw_apart(options.results, options.write, narrower)
    drawn = None if options.write else read_drawn(options.results)
    written, _ = draw(FiguresOptions(options.results))
    print(f"wrote {folded(written)} into {written[0].parent}")
    if drawn is None:
        write_drawn(options.results, written)
        print(f"recorded {len(written)} files in {options.results / DRAWN}")
        return 0
    lines = differences(drawn, written)
    print("\n".join(lines or [f"all {len(written)} files are those that were recorded, byte for byte"]))
    return 1 if lines else 0


# --------------------------------------------------------------------------------------------------------- verify


@dataclass(frozen=True)
class VerifyOptions:
    """Whether runs of an archive, trained again by `python -m bench repeat`, are the same."""

    cell: Positional[str]  # suite/task/agent
    reference: Path = Path("results") / REFERENCE  # the archive
    results: Path = Path("results") / REPEATED  # the runs that were trained again

    def __post_init__(self) -> None:
        check_folder(self, "reference")
        check_folder(self)


def verify(options: VerifyOptions) -> int:
    """A line for each seed and one for the cell. Exit code 1 where it does not agree."""
    from analysis.report.verify import verify

    verification = verify(options.reference, options.results, options.cell)
    print("\n".join(verification.lines))
    return 0 if verification.agrees else 1


# --------------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class ReportOptions:
    """One HTML page of all suites and runs, complete or not."""

    results: Path = Path("results")
    out: Path | None = None  # a file; default: figures/report.html inside the results folder
    suite: tuple[str, ...] = ()  # only these suites; default: all
    mixed_matmul: bool = False  # show runs together whose updates multiply in different precisions (--matmul)
    code_names: bool = False  # call agents by their names in commands and files: qc_fql, not QC-FQL
    published: Path | None = None  # curves or rates per seed, a CSV file or a folder; default: end points, built in
    embed_videos: float = 8.0  # put so many megabytes of recorded videos into the page and link the others

    def __post_init__(self) -> None:
        check_folder(self)
        if not 0 <= self.embed_videos < math.inf:
            raise ConfigError(f"--embed-videos is {self.embed_videos:g}; it must be a number of megabytes, or 0")


def report(options: ReportOptions) -> int:
    """One HTML page, and a protocol card per suite beside it. Runs that are not complete are shown as such."""
    out: Path = options.out or options.results / FIGURES / "report.html"
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name the HTML file to write")
    from analysis.published.points import read_published
    from analysis.report.page import write_report

    published = read_published(options.published)
    written = write_report(
        options.results,
        out,
        options.suite or None,
        int(options.embed_videos * 1e6),
        code_names=options.code_names,
        published=published,
        mixed_matmul=options.mixed_matmul,
    )
    for name, reason in written.refused.items():
        print(f"warning: suite {name} is left out of the report: {reason}", file=sys.stderr)
    print("\n".join(f"wrote {path}" for path in written.written))
    return 0


# -------------------------------------------------------------------------------------------------------- explain


@dataclass(frozen=True)
class ExplainOptions:
    """The runs and episodes behind one point of a figure."""

    figure: Positional[str]  # a figure's file or name: results/figures/quick_success.pdf
    curve: str  # the agent whose curve it is: qc_fql or QC-FQL
    step: str  # online environment step (0: the hand-over), or offline:UPDATES
    task: str | None = None  # the panel of this task, or this task's part of a mean
    results: Path = Path("results")
    allow_incomplete: bool = False  # also use runs that are not complete
    mixed_matmul: bool = False  # of a figure that --mixed-matmul has drawn
    json: bool = False  # print JSON

    def __post_init__(self) -> None:
        check_folder(self)


def explain(options: ExplainOptions) -> int:
    """The mean and interval of one point, and the runs behind it, to the terminal."""
    from analysis.report.explain import explain, print_point, to_json

    asked = (options.figure, options.curve, options.step, options.task)
    point = explain(options.results, *asked, options.allow_incomplete, options.mixed_matmul)
    if options.json:
        sys.stdout.write(to_json(point))
    else:
        print_point(point)
    return 0


# ---------------------------------------------------------------------------------------------------------- claim


@dataclass(frozen=True)
class ClaimOptions:
    """Whether an agent is better than another, by limits that hold however often one looks."""

    claim: Positional[
        str
    ]  # "sac_flow_t > flow_mlp on SUITE", "… on SUITE/TASK"; tasks may be cube-single for all of it
    results: Path = Path("results")
    first_seed: int = 0  # seeds from here on count: those that were seen before the claim was made do not
    mixed_matmul: bool = False  # also runs together whose updates multiply in different precisions (--matmul)
    json: bool = False  # print JSON

    def __post_init__(self) -> None:
        check_folder(self)
        check_least(self, first_seed=0)


def claim(options: ClaimOptions) -> int:
    """What complete runs say of a claim, to the terminal."""
    from analysis.report.claim import judge, lines_of, to_json

    judgement = judge(options.results, options.claim, options.first_seed, options.mixed_matmul)
    sys.stdout.write(to_json(judgement) if options.json else "\n".join([*lines_of(judgement), ""]))
    return 0


# ---------------------------------------------------------------------------------------------------- leaderboard


@dataclass(frozen=True)
class LeaderboardOptions:
    """Audits the entries of a leaderboard and ranks those that pass."""

    leaderboard: Path = Path("results") / LEADERBOARD  # a folder of entries
    out: Path | None = None  # a folder; default: figures beside the leaderboard

    def __post_init__(self) -> None:
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"--out {self.out} is a file; name a folder")


def leaderboard(options: LeaderboardOptions) -> int:
    """The board to the terminal and to files. An entry that fails the audit is listed with every reason."""
    from analysis.leaderboard.board import read_board, to_markdown, write_board
    from analysis.leaderboard.page import write_page

    board = read_board(options.leaderboard)
    out: Path = options.out or options.leaderboard.parent / FIGURES
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = [*write_board(board, out), write_page(board, out / "leaderboard.html")]
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error}") from error
    print(f"{to_markdown(board)}\nwrote {folded(written)} into {out}")
    return 0


# ------------------------------------------------------------------------------------------------------ published


@dataclass(frozen=True)
class CompactOptions:
    """Make the table of published end points anew, from files of a release."""

    path: Positional[Path]  # a file of published numbers, or a folder of them
    out: Path | None = None  # a file; default: the table that the project comes with


def published(options: CompactOptions) -> int:
    """The end points of published curves as one small file."""
    from analysis.published.compact import write_compact
    from analysis.published.points import COMPACT

    out: Path = options.out or COMPACT
    write_compact(options.path, out)
    print(f"wrote {out}")
    return 0


# ----------------------------------------------------------------------------------------------------------- main


PROGRAM = "python -m analysis"
DEFAULT = "figures"
ABOUT = f"Figures, tables and pages of what lies under results/. Without a command: {DEFAULT}."
VERBS = {
    "figures": Verb("figures and tables from the runs under a results folder", figures),
    "report": Verb("one HTML page of all suites and runs, complete or not", report),
    "explain": Verb("the runs and episodes behind one point of a figure", explain),
    "claim": Verb("whether an agent is better than another, by the seeds so far", claim),
    "reference": Verb("draw an archive of runs, and compare with what was recorded", reference),
    "verify": Verb("whether runs of an archive, trained again, are the same", verify),
    "leaderboard": Verb("entries of a leaderboard: audited, and ranked where they pass", leaderboard),
    "published compact": Verb("the table of published end points, from files of a release", published),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 after one line on what is wrong with the results or the command line."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code(lambda: run_verb(VERBS, words, PROGRAM, ABOUT, DEFAULT), (StorageError, ConfigError, OSError))


if __name__ == "__main__":
    sys.exit(main())
