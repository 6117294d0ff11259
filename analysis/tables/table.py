"""The one kind of table: rows below their headings, as CSV for programs, as Markdown and LaTeX for people."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ARROW = "→"
DAGGER = "†"  # behind limits that are not of the usual kind


@dataclass(frozen=True)
class Part:
    """A number with its limits, as people read them."""

    number: str  # 0.62
    limits: str = ""  # [0.48, 0.76], or with a dagger
    bold: bool = False

    def __str__(self) -> str:
        return f"{self.number} {self.limits}".rstrip()


Cell = str | int | float | None | Sequence[Part]  # parts: one behind the other, with an arrow between


@dataclass(frozen=True)
class Table:
    """Rows of cells below their headings. For people: text and parts; for programs: numbers, NaN and None for none."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    digits: str = ".6f"  # of numbers in CSV
    sections: Mapping[int, str] = field(default_factory=dict)  # LaTeX: number of a row -> heading above it, or a rule

    def csv(self) -> str:
        """As CSV; an empty field where there is no number."""
        buffer = io.StringIO()
        rows = [[self._field(cell) for cell in row] for row in self.rows]
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *rows])
        return buffer.getvalue()

    def _field(self, cell: Cell) -> str:
        if cell is None or isinstance(cell, bool):
            return "" if cell is None else str(cell).lower()
        if isinstance(cell, float):
            return "" if math.isnan(cell) else format(cell, self.digits)
        return str(cell)

    def markdown(self) -> str:
        """As Markdown whose columns also line up as plain text."""
        cells = [list(self.columns), *([_markdown(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"
            for line in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(lines)

    def latex(self, notes: Sequence[str], stacked: bool = False) -> str:
        """As a bare `tabular` to be read in by \\input; asks for booktabs and nothing else.

        Args:
            notes: sentences in small print below the rows, each on a line of its own: a row that spans all columns
                cannot break its line.
            stacked: limits stand in small print below their numbers, not beside them.
        """
        span = rf"\multicolumn{{{len(self.columns)}}}{{l}}"
        lines = [
            r"% needs \usepackage{booktabs} in the preamble",
            rf"\begin{{tabular}}{{l{'c' * (len(self.columns) - 1)}}}",
            r"\toprule",
            " & ".join(map(escape, self.columns)) + r" \\",
            r"\midrule",
        ]
        for number, row in enumerate(self.rows):
            if number in self.sections:
                heading = self.sections[number]
                lines += [r"\midrule"] * bool(number)
                lines += [rf"{span}{{\textit{{{escape(heading)}}}}} \\"] * bool(heading)
            if stacked:
                lines.append(" & ".join(map(_latex_number, row)) + r" \\")
                lines.append(" & ".join(map(_latex_limits, row)) + r" \\[2pt]")
            else:
                lines.append(" & ".join(map(_latex, row)) + r" \\")
        lines.append(r"\midrule")
        lines += [rf"{span}{{\footnotesize {escape(note)}}} \\" for note in notes]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


# ---------------------------------------------------------------------------------------------------- a single cell


def limits_of(low: str, high: str, wilson: bool) -> str:
    """[0.48, 0.76], with a dagger where it is Wilson's; nothing where the limits are not defined."""
    return "" if "nan" in low else f"[{low}, {high}]{DAGGER * wilson}"


def _markdown(cell: Cell) -> str:
    if not isinstance(cell, Sequence) or isinstance(cell, str):
        return str(cell)
    return f" {ARROW} ".join(f"**{part}**" if part.bold else str(part) for part in cell) or "-"


def _latex(cell: Cell) -> str:
    if not isinstance(cell, Sequence) or isinstance(cell, str):
        return escape(str(cell))
    return _latex_arrow([_latex_bold(_latex_signs(str(part)), part.bold) for part in cell]) or "--"


def _latex_number(cell: Cell) -> str:
    if not isinstance(cell, Sequence) or isinstance(cell, str):
        return escape(str(cell))
    return _latex_arrow([_latex_bold(part.number.replace("-", "$-$"), part.bold) for part in cell]) or "--"


def _latex_limits(cell: Cell) -> str:
    if not isinstance(cell, Sequence) or isinstance(cell, str) or not any(part.limits for part in cell):
        return ""
    return rf"{{\scriptsize {_latex_arrow([_latex_signs(part.limits) for part in cell])}}}"


def _latex_signs(text: str) -> str:
    return re.sub(r"-(?=\d)", "$-$", text).replace(DAGGER, r"$^\dagger$")


def _latex_arrow(texts: Sequence[str]) -> str:
    return r" $\rightarrow$ ".join(texts)


def _latex_bold(text: str, bold: bool) -> str:
    return rf"\textbf{{{text}}}" if bold else text


def escape(text: str) -> str:
    """Text for LaTeX: special characters, and the few beyond ASCII that we use ourselves."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "·": ";",
        DAGGER: r"$^\dagger$",
    }
    special |= {character: "\\" + character for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)


def write_texts(texts: Mapping[str, str], out: Path) -> list[Path]:
    """Writes texts by file name into `out`, with the same line ends everywhere; returns their paths."""
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    return [out / name for name in texts]
