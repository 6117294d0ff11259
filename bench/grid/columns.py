"""Tables for a person that fit a terminal: what is worth least goes first, and nothing is cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table


@dataclass(frozen=True)
class Column:
    """A column by its title, and its cells from the first row to the last."""

    title: str
    cells: Sequence[RenderableType]
    justify: Literal["left", "right"] = "left"
    stays: bool = True  # where the table is too wide; of the others the last one goes first
    wraps: int = 0  # down to this width its cells take more lines before those of other columns do


def fitting(columns: Sequence[Column], width: int) -> Table:
    """The table of a terminal `width` letters wide. What stays too wide goes on in the next line of its cell.

    A column without a word in any row is left out.
    """
    shown = [column for column in columns if any(map(str, column.cells))]
    ruler = Console(width=10_000)
    while True:
        table = _table(shown, keep=False)
        spare = [column for column in shown if not column.stays]
        if not spare or ruler.measure(table).maximum <= width:
            break
        shown.remove(spare[-1])
    kept = _table(shown, keep=True)
    return kept if ruler.measure(kept).minimum <= width else table


def _table(columns: Sequence[Column], keep: bool) -> Table:
    """`keep`: only columns that wrap may become narrower than their cells."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        whole = max(cell_len(str(text)) for text in (column.title, *column.cells))
        least = min(whole, column.wraps or whole) if keep else None
        table.add_column(column.title, justify=column.justify, overflow="fold", min_width=least)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table
