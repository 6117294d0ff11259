"""The board as one HTML page, in the look of the report. It holds no script and fetches nothing."""

from pathlib import Path

from analysis.leaderboard.audit import CHECKS, SMALL, Audit
from analysis.leaderboard.board import Board, reading_table, runs_of, words_of
from analysis.loading.load import assemble
from analysis.loading.run_record import read_record
from analysis.report.page import TEMPLATES as REPORT
from analysis.report.page import templates
from analysis.report.protocol_card import CardSection, protocol
from bench.runs.contract import replacing

TEMPLATES = Path(__file__).resolve().parent


def write_page(board: Board, out: Path) -> Path:
    """Writes the page to `out`."""
    page = (
        templates(TEMPLATES)
        .get_template("board.html")
        .render(
            board=board,
            style=(REPORT / "page.css").read_text(encoding="utf-8"),
            slug=lambda name: f"suite-{name}",
            small=SMALL,
            checks=list(CHECKS),
            reading_table=reading_table,
            words_of=words_of,
            cards={one.entry.id: cards_of(one) for one in board.admitted},
        )
    )
    with replacing(out) as draft:
        draft.write_text(page, encoding="utf-8", newline="\n")
    return out


def cards_of(one: Audit) -> list[tuple[str, list[CardSection]]]:
    """The protocol card of each suite of an entry."""
    cards = []
    for name in sorted({run.config["suite"] for run in runs_of(one)}):
        suite = assemble(name, [run for run in runs_of(one) if run.config["suite"] == name])
        cards.append((name, protocol(suite, [read_record(one.entry.folder, run, 0) for run in suite.runs])))
    return cards
