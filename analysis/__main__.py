"""`python -m analysis`: tables to the terminal, figures and tables to files. Reads `results/`, writes nothing else."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.gradients import load_norms
from analysis.load import load_results
from analysis.published import read_published
from analysis.read import ResultsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 after one line on what is wrong with the results."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis", description="Figures and tables from the runs under a results folder."
    )
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: figures inside the results folder")
    parser.add_argument("--suite", nargs="+", metavar="NAME", help="only these suites; default: all")
    parser.add_argument(
        "--allow-incomplete",
        action="store_true",
        help="also use runs that are not complete; figures and tables say how many",
    )
    parser.add_argument(
        "--published",
        type=Path,
        metavar="PATH",
        help="published curves or rates per seed, a CSV file or a folder; default: the end points that come along",
    )
    options = parser.parse_args(arguments)
    out: Path = options.out or options.results / "figures"
    try:
        published = read_published(options.published)
        suites = load_results(options.results, options.suite, options.allow_incomplete)
        norms = {suite.name: load_norms(suite, options.results) for suite in suites}
    except (ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # Late: drawing takes a second to import, which a refusal need not wait for.
    from analysis.figures import draw_suite
    from analysis.gradient_figures import draw_gradients
    from analysis.overlay import draw_published
    from analysis.tables import suite_rows, to_markdown, write_tables
    from analysis.verdicts import judge, summarised, write_verdicts

    verdicts = {suite.name: judge(suite, options.results, published) for suite in suites}

    try:
        out.mkdir(parents=True, exist_ok=True)
        written = [path for suite in suites for path in (*write_tables(suite, out), *draw_suite(suite, out))]
        written += [path for suite in suites for path in draw_gradients(suite, norms[suite.name], out)]
        for suite in suites:
            written += write_verdicts(suite, verdicts[suite.name], out)
            written += draw_published(suite, options.results, published, out)
    except OSError as error:
        print(f"error: cannot write to {out}: {error}", file=sys.stderr)
        return 2
    for suite in suites:
        print(to_markdown(suite, suite_rows(suite)))
        if verdicts[suite.name]:
            print(summarised(suite, verdicts[suite.name]))
    print("\n".join(f"wrote {path}" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
